"""Run the blocks of docs/tour.md and docs/games.md in their order, and put the pictures they draw into docs/images/.

python scripts/docs_pictures.py            # about half a minute
python scripts/docs_pictures.py --out DIR  # pictures into DIR instead, as the tests do
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("tour", "games", "active_inference")


def blocks(page: Path) -> str:
    """All Python blocks of a page as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS / "images", help="(default: %(default)s)")
    parser.add_argument("--page", choices=PAGES, action="append", help="only this page (default: all)")
    given = parser.parse_args()
    for page in given.page or PAGES:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / f"{page}.py"
            program.write_text(blocks(DOCS / f"{page}.md"), encoding="utf-8")
            done = subprocess.run([sys.executable, str(program)], cwd=folder, check=False)
            if done.returncode:
                print(
                    f"docs_pictures: a block of docs/{page}.md failed; its pictures were not replaced.", file=sys.stderr
                )
                return 1
            given.out.mkdir(parents=True, exist_ok=True)
            for picture in sorted((Path(folder) / "images").glob("*.png")):
                shutil.copy(picture, given.out / picture.name)
                print(given.out / picture.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
