"""``python -m rnla``: the same as the command ``rnla``."""

import sys

from rnla.cli import main

if __name__ == "__main__":
    sys.exit(main())
