"""Another package's interpreter beside a benchmark, which answers one request a line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


class Peer:
    """The peers' interpreter (MFMARL_PEERS, or .venv-peers of `make peers`) at work on a script that lies beside this
    file; where there is none, its answers are None.
    """

    def __init__(self, script: str) -> None:
        said = os.environ.get("MFMARL_PEERS")
        python = Path(said) if said else Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"
        self.process: subprocess.Popen[str] | None = None
        if python.exists():
            self.process = subprocess.Popen(
                [str(python), str(Path(__file__).with_name(script))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def ask(self, **request: Any) -> dict[str, Any] | None:
        if self.process is None or self.process.stdin is None or self.process.stdout is None:
            return None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
                return answer
        raise SystemExit(f"The peer gave up on {request}.")
