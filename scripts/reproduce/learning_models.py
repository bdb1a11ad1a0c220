"""How fast a population learns the model of a world: a grid's floor and moves, and a reward that reverses.

    python scripts/reproduce/learning_models.py            # about two CPU-minutes
    python scripts/reproduce/learning_models.py --quick    # about ten seconds

1. Grid. Agents walk at random on a torus of 4 x 4 cells whose moves slip. Where they are they sense with errors, by a
   known modality; the colours of the floor (A) and the moves (B) begin flat, and are counted by what each believes. One
   mind for all of N agents, or each its own; transitions from products of beliefs, as pymdp and SPM count, or from the
   joint posterior of a move. Error: mean total variation of the columns; surprise: nats per observation above those of
   an agent that is given the true model.
2. Reversal. Two levers pay with .8 and .2, and change places half-way. Agents pull by softmax of expected free energy
   (preference for reward and information on A), and forget at a row of rates. Delay: steps until the now better lever
   is expected to be. The theory: with memory of eta / omega visits it stays a constant, without it grows with the past.

Every number is a mean over `--seeds` (10) with a 95 % interval of the t distribution; seeds are a batch axis. Leaves
learning_models.json and .md in `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.results import write_text
from mfmarl.inference import counts as learning
from mfmarl.inference import filtering
from mfmarl.inference.expected_free_energy import of_beliefs
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.random import Key
from mfmarl.statmech import gibbs

SIDE, COLOURS, SLIP, SIGHT = 4, 4, 0.2, 0.7
POPULATIONS = (1, 10, 100, 1000)
FORGETTING = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)
PAYS = (0.8, 0.2)
Row = dict[str, Any]


def grid() -> GenerativeModel:
    """Senses: the cell (right with SIGHT, else one of its neighbours) and its colour (right with .9); slips: no move."""
    cells = SIDE * SIDE
    row, column = torch.arange(cells) // SIDE, torch.arange(cells) % SIDE

    def lies(dr: int, dc: int) -> Tensor:
        return (row + dr) % SIDE * SIDE + (column + dc) % SIDE

    around = [lies(*step) for step in ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))]
    moves = torch.zeros(cells, cells, len(around), dtype=torch.float64)
    sense = SIGHT * torch.eye(cells, dtype=torch.float64)
    for u, to in enumerate(around):
        moves[to, torch.arange(cells), u] += 1 - SLIP
        moves[torch.arange(cells), torch.arange(cells), u] += SLIP
        if u < 4:
            sense[to, torch.arange(cells)] += (1 - SIGHT) / 4
    colour = (row + 2 * column) % COLOURS
    floor = torch.full((COLOURS, cells), 0.1 / (COLOURS - 1), dtype=torch.float64)
    floor[colour, torch.arange(cells)] = 0.9
    return GenerativeModel(
        A=(sense, floor),
        B=(moves,),
        C=(torch.zeros(cells, dtype=torch.float64), torch.zeros(COLOURS, dtype=torch.float64)),
        D=(torch.full((cells,), 1 / cells, dtype=torch.float64),),
        modalities=("cell", "colour"),
        factors=("place",),
    ).to(dtype=torch.float32)


def drawn(p: Tensor, ids: Tensor, key: Key) -> Tensor:
    """One of the last axis, by its probabilities."""
    return gibbs.sample(-p.log(), 1.0, ids, key)


def learn_grid(agents: int, own: bool, joint: bool, steps: int, seeds: int, seed: int) -> Row:
    """Error of A and of B and surprise above the true model's, by time; all of a run [times, seeds]."""
    true, key = grid(), Key.of(seed).fold("grid", agents)
    lead = (seeds, agents) if own else (seeds, 1)
    flat = true.trusted(
        A=(true.A[0], torch.full_like(true.A[1], 1 / COLOURS)), B=(torch.full_like(true.B[0], 1 / SIDE**2),)
    )
    # Cells that nothing tells apart stay alike: each move begins with a grain of where one stands.
    counts = learning.begin(flat, "AB", scale=1.0, modalities=[1], lead=lead)
    ids = torch.arange(seeds * agents).view(seeds, agents)
    state = random.integers(key.fold("start"), ids, SIDE**2)
    action = torch.zeros_like(state)
    marks = sorted({int(m) for m in np.geomspace(1, steps, 24).round()})
    rows: dict[str, list[Tensor]] = {"A": [], "B": [], "surprise": []}
    believed = informed = None
    gap = torch.zeros(seeds)
    since = 0
    for t in range(steps + 1):
        model = learning.expected(flat, counts)
        seen = torch.stack([drawn(a.T[state], ids, key.fold("see", m, t)) for m, a in enumerate(true.A)], -1)
        if believed is None:
            expected, known = tuple(d.expand(seeds, agents, -1) for d in flat.D), true.D
        else:
            assert informed is not None
            expected, known = filtering.predict(model, believed, action), filtering.predict(true, informed, action)
        now, best = filtering.update(model, expected, seen), filtering.update(true, known, seen)
        gap, since = gap + (now.free_energy - best.free_energy).mean(-1), since + 1
        counts = learning.learn_A(model, counts, seen, now.factors)
        if believed is not None:
            counts = learning.learn_B(model, counts, believed, action, now.factors, joint=joint)
        believed, informed = now.factors, best.factors
        if t in marks:
            for name, mine, truth in (("A", model.A[1], true.A[1]), ("B", model.B[0], true.B[0])):
                axis = -2 if name == "A" else -3
                rows[name].append(0.5 * (mine - truth).abs().sum(axis).flatten(1).mean(-1))
            rows["surprise"].append(gap / since)
            gap, since = torch.zeros(seeds), 0
        action = random.integers(key.fold("act", t), ids, true.num_actions)
        state = drawn(true.B[0].permute(2, 1, 0)[action, state], ids, key.fold("move", t))
    return {"marks": marks, **{name: torch.stack(x) for name, x in rows.items()}}


def levers() -> GenerativeModel:
    """One state for each lever, seen as it is; A of the reward is to be learned."""
    return GenerativeModel(
        A=(torch.eye(2), torch.full((2, 2), 0.5)),
        B=(torch.eye(2).unsqueeze(-2).expand(2, 2, 2).clone(),),
        C=(torch.zeros(2), torch.tensor([0.0, 2.0])),
        D=(torch.full((2,), 0.5),),
        modalities=("lever", "reward"),
    )


def learn_reversal(agents: int, own: bool, omega: float, steps: int, seeds: int, seed: int) -> Row:
    """Reward [seeds] before, right after, and at the end; delay [seeds]."""
    model, key = levers(), Key.of(seed).fold("reversal", agents)
    start = learning.begin(model, "A", scale=2.0, modalities=[1], lead=(seeds, agents) if own else (seeds, 1))
    counts, pays = start, torch.tensor(PAYS)
    ids = torch.arange(seeds * agents).view(seeds, agents)
    objective = Objective(parameter_information="exact")
    ahead = model.B[0][:, 0].T  # [U, S]: a lever leads to its own state
    late = torch.full((seeds,), float(steps))
    pay = []
    better = torch.zeros(steps, seeds)
    for t in range(2 * steps):
        if t == steps:
            pays = pays.flip(0)
        mean = learning.expected(model, counts)
        # What is planned for has an axis of actions behind that of agents.
        wide = mean.trusted(A=(mean.A[0], mean.A[1].unsqueeze(2)))
        kept = counts.map(lambda a: a.unsqueeze(2))
        terms = of_beliefs(
            wide, (ahead.expand(seeds, agents, 2, 2),), objective=objective, counts=kept,
        )  # fmt: skip
        action = gibbs.sample(-terms.value(objective), 0.25, ids, key.fold("act", t))
        won = (random.uniform(key.fold("pay", t), ids) < pays[action]).long()
        pay.append(won.float().mean(-1))
        seen = torch.stack([action, won], -1)
        counts = learning.forget(counts, omega, start)
        counts = learning.learn_A(model, counts, seen, (torch.nn.functional.one_hot(action, 2).float(),))
        if t >= steps:
            p = mean.A[1][..., 1, :]
            better[t - steps] = (p[..., 1] > p[..., 0]).float().mean(-1)
    half = better >= 0.5
    late = torch.where(half.any(0), half.to(torch.uint8).argmax(0).float(), late)
    reward = torch.stack(pay)
    tenth = max(1, steps // 5)
    return {
        "before": reward[steps - tenth : steps].mean(0),
        "after": reward[steps : steps + tenth].mean(0),
        "end": reward[-tenth:].mean(0),
        "delay": late,
    }


def interval(x: Tensor) -> tuple[float, float]:
    """Mean over seeds, and half of a 95 % interval."""
    from scipy.stats import t

    n = x.shape[-1]
    return float(x.mean()), float(t.ppf(0.975, n - 1) * x.std() / n**0.5)


def told(pair: tuple[float, float], digits: int = 3) -> str:
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="steps of the grid (default: 1000)")
    parser.add_argument("--pulls", type=int, default=400, help="pulls before the reversal, and after (default: 400)")
    parser.add_argument("--seeds", type=int, default=10, help="(default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce-learning-models"), help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="short runs, small populations")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.steps, known.pulls = min(known.steps, 100), min(known.pulls, 100)
    if known.seeds < 2 or known.steps < 10 or known.pulls < 10:
        parser.error("--seeds must be at least 2, --steps and --pulls at least 10.")
    return known


def main() -> int:
    given = arguments()
    few = POPULATIONS[:2] if given.quick else POPULATIONS
    grids = [(n, False, True) for n in few] + [(few[-1] if given.quick else 100, own, joint) for own, joint in
             ((False, False), (True, True), (True, False))]  # fmt: skip
    crowds = [(1, False), (few[-1] if given.quick else 100, False), (few[-1] if given.quick else 100, True)]
    found: dict[str, list[Row]] = {"grid": [], "reversal": []}
    lines = ["| agents | minds | transitions from | steps | error of A | error of B | surprise above the true model |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    try:
        with Progress(given.quiet) as progress:
            progress.add("runs", len(grids) + len(crowds) * len(FORGETTING))
            done = 0
            for agents, own, joint in grids:
                progress.update("runs", done, f"grid, {agents} agents")
                run = learn_grid(agents, own, joint, given.steps, given.seeds, given.seed)
                minds, by = "each its own" if own else "one for all", "joint posterior" if joint else "products"
                for i, mark in enumerate(run["marks"]):
                    numbers = {name: interval(run[name][i]) for name in ("A", "B", "surprise")}
                    found["grid"].append({"agents": agents, "minds": minds, "by": by, "steps": mark, **numbers})
                    if mark == given.steps or mark == run["marks"][len(run["marks"]) // 2]:
                        cells = " | ".join(told(numbers[name]) for name in ("A", "B", "surprise"))
                        lines.append(f"| {agents} | {minds} | {by} | {mark} | {cells} |")
                done += 1
            lines += ["", "| agents | minds | forgetting | reward before | just after | at the end | delay |",
                      "|---|---|---|---|---|---|---|"]  # fmt: skip
            for agents, own in crowds:
                for omega in FORGETTING:
                    progress.update("runs", done, f"reversal, {agents} agents")
                    run = learn_reversal(agents, own, omega, given.pulls, given.seeds, given.seed)
                    numbers = {name: interval(x) for name, x in run.items()}
                    minds = "each its own" if own else "one for all"
                    found["reversal"].append({"agents": agents, "minds": minds, "forgetting": omega, **numbers})
                    cells = " | ".join(told(numbers[name]) for name in ("before", "after", "end"))
                    lines.append(f"| {agents} | {minds} | {omega:g} | {cells} | {told(numbers['delay'], 1)} |")
                    done += 1
            progress.update("runs", done)
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        given.out.mkdir(parents=True, exist_ok=True)
        write_text(given.out / "learning_models.json", json.dumps({"settings": settings, **found}, indent=1))
        write_text(given.out / "learning_models.md", "\n".join(lines) + "\n")
    except MfmarlError as error:
        print(f"learning_models: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    print(f"numbers: {given.out / 'learning_models.json'}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
