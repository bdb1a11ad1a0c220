"""The first steps of an episode played in another interpreter, whose texts have other hashes.

Sets of names are gone through in another order there, and `hash`, `id` and the process's number are others: what follows
from the seed and the actions alone is the same. The other interpreter reads JSON and answers with a digest of every moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np

from mfmarl.errors import ConfigError
from mfmarl.population import third_party
from mfmarl.testing.contract import Ledger
from mfmarl.testing.play import Alone, Episode, Seen, play_of, remember
from mfmarl.testing.surroundings import Watch

STEPS = 30


def digests_elsewhere(maker: third_party.Maker, episode: Episode, generators: int, patience: float) -> list[str] | None:
    """What another interpreter saw of the episode's first steps; None where it cannot be asked."""
    try:
        order = {
            "address": _address(maker),
            "seed": episode.seed,
            "generators": generators,
            "patience": patience,
            "actions": [_written(actions) for actions in episode.actions[:STEPS]],
        }
    except (ConfigError, TypeError):
        return None
    # Any two hash seeds are different orders; this process's own is not known.
    variables = {**os.environ, "PYTHONHASHSEED": "20261", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mfmarl.testing.elsewhere"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=patience + 120,
            env=variables,
            check=False,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError, OSError):
        return None
    return [str(one) for one in answer]


def digest(seen: Seen) -> str:
    """Of all that a moment shows but its infos, whatever the order of dictionaries."""
    parts = {name: value for name, value in seen.parts.items() if name not in ("infos", "last")}
    return hashlib.sha256(_canonical((parts, seen.agents, seen.asked)).encode()).hexdigest()


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        items = sorted((str(key), _canonical(inner)) for key, inner in value.items())
        return "{" + ",".join(f"{key!r}:{inner}" for key, inner in items) + "}"
    if isinstance(value, tuple):
        return "(" + ",".join(map(_canonical, value)) + ")"
    if isinstance(value, frozenset):
        return "<" + ",".join(sorted(map(str, value))) + ">"
    return repr(value)


def _address(maker: third_party.Maker) -> dict[str, Any]:
    """Where another interpreter finds it. Raises ConfigError where it cannot."""
    made = maker.make
    if isinstance(made, partial) and isinstance(made.func, type) and not maker.options:
        plain = third_party.Maker(maker.name, made.func)
        arguments = json.loads(json.dumps([list(made.args), made.keywords]))
        return {**plain.address(), "arguments": arguments[0], "keywords": arguments[1]}
    return maker.address()


def _written(actions: dict[Any, Any]) -> list[Any]:
    """Actions as JSON. Raises TypeError for those that have no such form."""
    written = []
    for agent, action in actions.items():
        if not isinstance(agent, str) or not isinstance(action, np.ndarray | np.generic | None):
            raise TypeError(f"{action!r} of {agent!r} cannot be written down")
        written.append([agent, None] if action is None else [agent, [action.dtype.str, action.tolist()]])
    return written


def _read(written: list[Any]) -> dict[str, Any]:
    return {agent: None if action is None else (np.asarray(action[1], action[0])[()]) for agent, action in written}


def main() -> int:
    """Play what standard input says; the last line of standard output is the answer."""
    order = json.loads(sys.stdin.read())
    watch = Watch(Ledger(), order["patience"])
    with watch:
        watch.seed(order["generators"])
        address = order["address"]
        maker = third_party.maker_at(address)
        given = {**maker.options, **address.get("keywords", {})}
        with third_party.quiet():
            env = maker.make(*address.get("arguments", []), **given)
        import gymnasium

        play = play_of(Alone(env) if isinstance(env, gymnasium.Env) else env, watch)
        moment = play.reset(order["seed"])
        seen = [digest(remember(moment))]
        for actions in order["actions"]:
            if moment.over:
                break
            moment = play.step(_read(actions))
            seen.append(digest(remember(moment)))
    print("\n" + json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
