"""`python -m mfmarl` is the `mfmarl` command."""

import sys


def run() -> int:
    """The exit code of the command; Ctrl-C while it is still being imported leaves no traceback either."""
    try:
        from mfmarl.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
