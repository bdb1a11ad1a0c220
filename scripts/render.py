"""`mfmarl render` as a script: run it as it stands, or copy it and make it yours.

python scripts/render.py --help
"""

import sys

from mfmarl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["render", *sys.argv[1:]]))
