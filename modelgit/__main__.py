"""`python -m modelgit`: the command line."""

import sys

from modelgit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
