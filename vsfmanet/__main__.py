"""`python -m vsfmanet`."""

import sys

from vsfmanet.cli import main

if __name__ == "__main__":
    sys.exit(main())
