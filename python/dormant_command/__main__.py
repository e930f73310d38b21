"""`python -m dormant_command` is the command `dormant`, without importing torch for its help."""

from __future__ import annotations

import sys

from dormant_command.main import main

if __name__ == "__main__":
    sys.exit(main())
