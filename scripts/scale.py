"""`mfmarl scale` as a script: run it as it stands, or copy it and make it yours.

python scripts/scale.py --help
"""

import sys

from mfmarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["scale", *sys.argv[1:]]))
