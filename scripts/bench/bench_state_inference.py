"""What an agent's belief update costs, beside pymdp's, in CPU-nanoseconds of one core.

    python scripts/bench/bench_state_inference.py [t_maze|grid|factors ...] [--agents 16384] [--rounds 5] [--json]

Each update is of all agents at once, from beliefs of their own, single precision, one thread, the least of the rounds.
"shared": all agents have the same tables; "own": each its own, with a tenth of the agents. pymdp (jitted, JAX) answers
from an interpreter of its own (`make peers`, or MFMARL_PEERS names one): with and without compilation, which is shared
out over the agents. Beliefs of the two are compared before times are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peer_process import Peer  # type: ignore[import-not-found]
from torch import Tensor

from mfmarl import random
from mfmarl.envs.t_maze import TMaze
from mfmarl.inference import filtering, message_passing, smoothing
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key

WINDOW = 8
MESSAGES = f"{{}} messages over {WINDOW} steps, 16 parallel sweeps, per step"
RULES: tuple[tuple[message_passing.Rule, str], ...] = (("variational", "vmp"), ("marginal", "mmp"))


def columns(seed: int, *shape: int) -> Tensor:
    x = random.exponential(Key.of(seed), torch.arange(int(torch.tensor(shape).prod())).reshape(shape))
    return x / x.sum(0)


def grid() -> GenerativeModel:
    """49 places that show themselves, one in ten times another one."""
    shown = 0.9 * torch.eye(49) + 0.1 / 49
    return GenerativeModel(A=(shown,), B=(columns(1, 49, 49, 5),), C=(torch.zeros(49),), D=(torch.full((49,), 1 / 49),))


def factors() -> GenerativeModel:
    """Three factors of 3, 2 and 4 states, four modalities of one to three of them."""
    return GenerativeModel(
        A=(columns(0, 4, 3, 2), columns(1, 3, 4), columns(2, 5, 3, 2, 4), columns(3, 2, 2)),
        B=(columns(4, 3, 3, 2), columns(5, 2, 2, 2), columns(6, 4, 4, 3)),
        C=tuple(torch.zeros(n) for n in (4, 3, 5, 2)),
        D=(columns(7, 3), columns(8, 2), columns(9, 4)),
        A_factors=((0, 1), (2,), (0, 1, 2), (1,)),
        B_controls=((0,), (0,), (1,)),
    )


WORLDS: dict[str, Callable[[], GenerativeModel]] = {
    "t_maze": lambda: TMaze().generative_model().to(dtype=torch.float32),
    "grid": grid,
    "factors": factors,
}


def lived(model: GenerativeModel, agents: int, times: int = 1) -> tuple[list[Tensor], Tensor, Tensor]:
    """Beliefs of agents' own [n, S_f], and what those see [T, n, M] and do [T - 1, n] who live in the model."""
    ids, key = torch.arange(agents), Key.of(5)

    def pick(p: Tensor, *what: str | int) -> Tensor:
        return (p.cumsum(-1) < random.uniform(key.fold(*what), ids).unsqueeze(-1) * p.sum(-1, keepdim=True)).sum(-1)

    state = [pick(d.expand(agents, -1), "begin", f) for f, d in enumerate(model.D)]
    expected = []
    for f, size in enumerate(model.sizes):
        noise = random.exponential(key.fold("doubt", f), ids, size)
        expected.append(noise / noise.sum(-1, keepdim=True))
    actions = random.integers(key.fold("act"), ids, model.num_actions, max(times - 1, 1)).T[: times - 1]
    seen = []
    for t in range(times):
        if t:
            tables = [model.of_action(f, actions[t - 1]).movedim(1, -1) for f in range(len(state))]
            rows = [x[(ids, *[state[g] for g in own])] for x, own in zip(tables, model.B_factors, strict=True)]
            state = [pick(x, "move", t, f) for f, x in enumerate(rows)]
        shown = [
            pick(a.movedim(0, -1)[tuple(state[f] for f in own)], "see", t, m)
            for m, (a, own) in enumerate(zip(model.A, model.A_factors, strict=True))
        ]
        seen.append(torch.stack(shown, -1))
    return expected, torch.stack(seen), actions


def timed(run: Callable[[], Any], rounds: int) -> float:
    run()
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        run()
        spent.append(time.process_time() - started)
    return min(spent)


def theirs(model: GenerativeModel, agents: int, peer: Peer, rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if peer.process is None:
        return rows
    single = len(model.sizes) == 1
    expected, seen, _ = lived(model, agents)
    few = agents // 10
    _, window, actions = lived(model, few, WINDOW)
    settings = model.settings()[actions]
    past = torch.stack([settings[..., own[0]] if own else torch.zeros_like(actions) for own in model.B_controls], -1)
    tables = {
        "A": [a.tolist() for a in model.A],
        "B": [(b if own else b.unsqueeze(-1)).tolist() for b, own in zip(model.B, model.B_controls, strict=True)],
        "D": [d.tolist() for d in model.D],
        "A_factors": model.A_factors,
        "B_factors": model.B_factors,
        "past": past.movedim(1, 0).tolist(),
        "sweeps": 16,
        "rounds": rounds,
    }

    def ask(what: str, which: str, method: str, shown: Tensor, begin: list[Tensor], per: int = 1) -> list[Tensor]:
        count = len(shown)
        expected = [q[:count].tolist() for q in begin]
        found = peer.ask(**tables, expected=expected, seen=shown.tolist(), method=method, tables=which)
        assert found is not None
        for name, said in (("warm", ""), ("first", ", with compilation")):
            ns = found[name] / count / per * 1e9
            rows.append({"who": "pymdp", "what": what + said, "tables": "own" if which == "agent" else which, "ns": ns})
        return [torch.tensor(q) for q in found["beliefs"]]

    def same(ours: Sequence[Tensor], others: list[Tensor]) -> None:
        for q, other in zip(ours, others, strict=True):
            assert torch.allclose(q, other, atol=1e-3), "pymdp believes something else"

    floor = 2.220446e-16
    step = filtering.update(
        model, [q[:100] for q in expected], seen[0, :100], "exact" if single else "parallel", floor=floor
    )
    for which, count in (("shared", agents), ("agent", few)):
        what, name = ("exact", "exact") if single else ("16 parallel sweeps", "fpi")
        same(step.factors, ask(what, which, name, seen[0, :count], expected))
    begin = [d.expand(few, -1) for d in model.D]
    for rule, name in RULES:
        found = ask(MESSAGES.format(rule), "shared", name, window.movedim(1, 0), begin, WINDOW)
        got = message_passing.infer(model, window[:, :100], actions[:, :100], rule, schedule="parallel", floor=floor)
        same([q.movedim(0, 1) for q in got.factors], found)
    return rows


def ours(model: GenerativeModel, agents: int, rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def row(what: str, tables: str, run: Callable[[], Any], count: int) -> None:
        rows.append({"who": "mfmarl", "what": what, "tables": tables, "ns": timed(run, rounds) / count * 1e9})

    few = agents // 10
    apart = model.map(lambda x: x.expand(few, *x.shape).contiguous())
    for tables, own, count in (("shared", model, agents), ("own", apart, few)):
        expected, seen, _ = lived(model, count)
        joint = own.joint()
        whole = expected[0]
        for q in expected[1:]:
            whole = (whole.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2)
        action = random.integers(Key.of(8), torch.arange(count), model.num_actions)

        def update(
            what: str,
            of: GenerativeModel,
            q: list[Tensor],
            method: filtering.Method,
            tables: str = tables,
            count: int = count,
            seen: Tensor = seen,
        ) -> None:
            def run() -> Any:
                return filtering.update(of, q, seen[0], method, check=False, terms=False)

            row(what, tables, run, count)

        update("exact, joint states", joint, [whole], "exact")
        if len(model.sizes) > 1:
            update("exact, factors", own, expected, "exact")
            update("sequential", own, expected, "sequential")
            update("16 parallel sweeps", own, expected, "parallel")

        def predict(
            of: GenerativeModel = own, q: list[Tensor] = expected, action: Tensor = action
        ) -> tuple[Tensor, ...]:
            return filtering.predict(of, q, action, check=False)

        row("prediction", tables, predict, count)
    count = agents // 4
    _, seen, actions = lived(model, count, WINDOW)
    joint = model.joint()
    per = count * WINDOW
    row(
        f"smoothing of {WINDOW} steps, per step",
        "shared",
        lambda: smoothing.smooth(joint, seen, actions, pairs=False, check=False),
        per,
    )
    for rule, _ in RULES:

        def infer(rule: message_passing.Rule = rule) -> message_passing.Window:
            return message_passing.infer(model, seen, actions, rule, schedule="parallel", check=False, terms=False)

        row(MESSAGES.format(rule), "shared", infer, per)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", default=list(WORLDS), help=f"some of {', '.join(WORLDS)}")
    parser.add_argument("--agents", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    if unknown := set(options.worlds) - set(WORLDS):
        parser.error(f"no world {sorted(unknown)}: some of {', '.join(WORLDS)}")
    torch.set_num_threads(1)
    peer = Peer("peer_state_inference.py")
    for name in options.worlds:
        model = WORLDS[name]()
        rows = theirs(model, options.agents, peer, options.rounds) + ours(model, options.agents, options.rounds)
        for found in rows:
            if options.json:
                print(json.dumps({"world": name, "agents": options.agents, **found}), flush=True)
            else:
                print(
                    f"{name:8} {found['who']:7} {found['tables']:7} {found['ns']:10.0f} ns  {found['what']}", flush=True
                )


if __name__ == "__main__":
    main()
