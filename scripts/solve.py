"""`mfmarl solve` as a script: run it as it stands, or copy it and make it yours.

python scripts/solve.py --help
"""

import sys

from mfmarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["solve", *sys.argv[1:]]))
