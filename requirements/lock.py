"""Write requirements/lock.txt: the versions that pip chooses today for mfmarl with its development tools.

Run by `make lock`. Names and versions only: as constraints they serve every platform, whatever build of a
package (torch for CPU or for CUDA) a machine's index offers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"  # the version that results are compared under; raise it by hand
HEADER = """\
# Made by `make lock`; do not edit. Constraints for `make venv`: what the tests were run with.
# An ordinary `pip install mfmarl` does not read this file and takes any recent version.
"""


def resolve(*requirements: str) -> dict[str, str]:
    """The versions that pip would install into an empty environment, by canonical name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), *requirements], check=True)
        chosen = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"].partition("+")[0] for item in chosen}


def main() -> None:
    versions = resolve(TORCH, f"{FOLDER.parent}[dev]")
    versions.pop("mfmarl")
    names = {name.lower().replace("_", "-").replace(".", "-"): version for name, version in versions.items()}
    if "pygame" in names:  # pygame-ce, which magent2 and mpe2 want, is the same module under another name
        sys.exit("lock: pygame would be installed beside pygame-ce; find what asks for it and leave that out.")
    lines = [f"{name}=={version}" for name, version in sorted(names.items())]
    (FOLDER / "lock.txt").write_text(HEADER + "\n".join(lines) + "\n")
    print(f"lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
