"""`python examples/demo`: see `demo.py`."""

import signal
import sys

if __name__ == "__main__":
    # While libraries are imported an interrupt just ends this; `main` then takes care of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from demo import main

    sys.exit(main())
