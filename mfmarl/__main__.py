"""`python -m mfmarl` is the `mfmarl` command."""

import sys

from mfmarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
