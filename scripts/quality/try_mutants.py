"""Runs the tests of mutated files: JSON lines in, JSON lines out. Used by `mfmarl selftest --goals G12`.

In, one line each: {"file": path, "source": text or null, "tests": [paths], "seconds": limit}; paths are relative to this
working folder, a copy of the checkout. The file gets that text while the tests run in a copy of this process, which
has the heavy packages in memory and nothing of ours. Out: {"exit_code": pytest's, or -1 where time ran out, "seconds"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.getcwd())
    os.environ["OMP_NUM_THREADS"] = "1"
    import gymnasium  # noqa: F401 - what every test file imports, once for all mutants
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pettingzoo  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    for number, line in enumerate(sys.stdin):
        asked = json.loads(line)
        path = Path(asked["file"])
        right = path.read_bytes()
        if asked["source"] is not None:
            path.write_text(asked["source"], encoding="utf-8")
            # Compiled files are trusted by time and size: each mutant has a time of its own.
            os.utime(path, (1e9 + number, 1e9 + number))
        begun = time.monotonic()
        code = _tests(asked["tests"], asked["seconds"])
        path.write_bytes(right)
        print(json.dumps({"exit_code": code, "seconds": round(time.monotonic() - begun, 2)}), flush=True)


def _tests(tests: list[str], seconds: float) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        code = 70
        try:
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not verify", *tests]))
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    code = -1
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    try:
        os.killpg(child, signal.SIGKILL)  # what the tests started, too
    except ProcessLookupError:
        pass
    if code == -1:
        os.waitpid(child, 0)
    return code


if __name__ == "__main__":
    main()
