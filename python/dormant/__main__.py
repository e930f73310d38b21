"""`python -m dormant` is the command `dormant`."""

from __future__ import annotations

import sys

from dormant_command.main import main

if __name__ == "__main__":
    sys.exit(main())
