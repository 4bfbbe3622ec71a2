"""`python -m graphopt` is the command line."""

import sys

from graphopt.cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
