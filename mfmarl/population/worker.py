"""A child process that hosts copies of a third-party environment: `python -m mfmarl.population.worker`.

It speaks over its standard input and output, as `mfmarl.population.adapter._Child` does: four bytes of
length, that much JSON, then raw arrays whose sizes the layout fixes. Nothing is unpickled. It ends when its
input does, so that no process outlives its parent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO

import numpy as np

from mfmarl.errors import MfmarlError


def _exactly(stream: BinaryIO, view: memoryview) -> bool:
    while view:
        got = stream.readinto(view)  # type: ignore[attr-defined]
        if not got:
            return False
        view = view[got:]
    return True


def _receive(stream: BinaryIO) -> dict[str, Any] | None:
    length = bytearray(4)
    if not _exactly(stream, memoryview(length)):
        return None
    text = bytearray(int.from_bytes(length, "little"))
    if not _exactly(stream, memoryview(text)):
        return None
    message: dict[str, Any] = json.loads(text.decode())
    return message


def _send(stream: BinaryIO, message: dict[str, Any]) -> None:
    text = json.dumps(message).encode()
    stream.write(len(text).to_bytes(4, "little") + text)


def _leave_with_parent() -> None:
    """An environment that hangs would not see the end of its input: leave when the parent is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    into = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    out = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    # What an environment prints must not mix with what is said here.
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        _serve(into, out)
    except MfmarlError as error:
        told = {"fault": type(error).__name__, "message": str(error), "code": error.code}
        _send(out, {**told, "traceback": traceback.format_exc()})
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 - told to the parent
        message = f"An environment's process failed: {type(error).__name__}: {error}"
        told = {"fault": "EnvironmentFault", "message": message, "code": "environment-raised"}
        _send(out, {**told, "traceback": traceback.format_exc()})
    with contextlib.suppress(OSError):
        out.flush()


def _serve(into: BinaryIO, out: BinaryIO) -> None:
    from mfmarl.population import third_party
    from mfmarl.population.single import host, isolated, play

    setup = _receive(into)
    if setup is None:
        return
    sys.path[:] = setup["path"]
    with isolated():
        maker = third_party.maker_at(setup["address"])
        copies = range(setup["first"], setup["first"] + setup["copies"])
        layout, made = host(maker, copies, setup["teams"], setup["masked"], setup["max_steps"])
    _send(out, {"fingerprint": hashlib.sha256(layout.fingerprint().encode()).hexdigest()})
    out.flush()

    def anew(single: Any) -> Any:
        return maker.single(maker(), layout, single.copy)

    again = anew if setup["restarts"] else None
    rows = layout.empty(len(made))
    n = len(layout.agents)
    action = (
        np.zeros((len(made), n), np.int64)
        if layout.discrete
        else np.zeros((len(made), n, int(np.prod(layout.action.shape or ()))), np.float32)
    )
    while True:
        order = _receive(into)
        if order is None or (action.size and not _exactly(into, action.data.cast("B"))):
            break
        with isolated():
            broken = play(made, order["command"], order["seeds"], action, rows, again)
        _send(out, {"broken": broken})
        for place, command in enumerate(order["command"]):
            if command:
                for array in rows.of(place):
                    if array.size:
                        out.write(array.data.cast("B"))
        out.flush()
    for single in made:
        single.close()


if __name__ == "__main__":
    main()
