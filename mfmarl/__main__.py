"""`python -m mfmarl` is the `mfmarl` command."""

import os
import sys
from pathlib import Path


def forget_the_working_folder() -> None:
    """Python puts the working folder first on the search path of `-m`: a file torch.py there would be imported as torch.

    Neither this process nor those that it starts look there. A checkout that is not installed is run from its own folder,
    which then stays.
    """
    here = os.path.realpath(os.getcwd())
    if here == os.path.realpath(Path(__file__).parent.parent) or sys.flags.safe_path:
        return
    if sys.path and os.path.realpath(sys.path[0]) == here:
        del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"


def run() -> int:
    """The exit code of the command; Ctrl-C while it is still being imported leaves no traceback either."""
    try:
        forget_the_working_folder()
        from mfmarl.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
