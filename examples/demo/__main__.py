"""`python examples/demo`: see `demo.py`."""

import signal
import sys

if __name__ == "__main__":
    # While libraries are imported, an interrupt just ends the process; later, `main` handles it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from demo import main

    sys.exit(main())
