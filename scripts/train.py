"""`mfmarl train` as a script: run it as it stands, or copy it and make it yours.

python scripts/train.py --help
"""

import sys

from mfmarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
