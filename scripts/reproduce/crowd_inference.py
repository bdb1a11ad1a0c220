"""Agents who infer their crowd, against mean-field and independent Q-learning: foraging, the stag hunt, and order.

python scripts/reproduce/crowd_inference.py            # about ten CPU-minutes: 10 seeds, crowds of 2, 100 and 2,000
python scripts/reproduce/crowd_inference.py --quick    # about one: 3 seeds, crowds of 2 and 100
python scripts/reproduce/crowd_inference.py --sizes 100000 --steps 40    # one large crowd: an hour

1. Foraging for a hidden patch that moves, and the stag hunt, whose hunters begin with trust one half. Everybody acts at
   the same temperature. `given` knows the environment's model and infers the crowd from 8 sampled peers; `not curious` is
   the same without the value of information; `learned` knows no model and counts payoffs; `alone` has the given model and
   does not see the crowd. MF-Q and IQL learn from the same rewards, with the same 8 peers and without.
   What the model is worth is the difference between `given` and `learned`, not between active inference and Q-learning.
   A score is the mean reward of the second half of a run; its interval is `mfmarl.evaluation.statistics`' of the
   interquartile mean over seeds. Copies of a crowd share what they learn and are no seeds.
2. Agents who infer the majority from k = 3, 5, 15 sampled peers and act by a draw: the magnetisation of 20,000 of them
   against m' = E tanh(w (2n - k)), and where it vanishes.

Leaves crowd_inference.json, and ordering.png and .svg, in `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError
from mfmarl.evaluation import statistics
from mfmarl.evaluation.averages import averages_while_learning
from mfmarl.evaluation.drawing import INK, canvas, save, styles, themed
from mfmarl.evaluation.results import write_text
from mfmarl.inference import crowd
from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key
from mfmarl.statmech import gibbs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEERS = "actions over sampled(8)"
GAMES: dict[str, dict[str, Any]] = {
    # Hard enough that one glimpse does not settle where the patch is.
    "foraging": {"accuracy": 0.6, "rich": 0.5, "poor": 0.1, "move": 0.05, "horizon": "none"},
    "stag_hunt": {"trust": 0.5, "horizon": "none"},
}
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "given": ("mean_field_inference", {"field": PEERS}),
    "not curious": ("mean_field_inference", {"field": PEERS, "curiosity": 0.0}),
    "learned": ("mean_field_inference", {"field": PEERS, "model": "learned"}),
    "alone": ("independent_inference", {}),
    "mfq": ("mfq", {"field": PEERS}),
    "iql": ("iql", {}),
}
TEMPERATURE = "0.0625"
ORDER = {3: (0.3, 1.0), 5: (0.15, 0.5), 15: (0.04, 0.16)}


def score(game: str, agent: str, size: int, steps: int, seed: int, device: str) -> float:
    """The mean reward of the second half of a run."""
    name, options = AGENTS[agent]
    copies = max(1, min(16, 1000 // size))
    run = RunOptions(steps=steps, copies=copies, seed=seed, sharing="all", evaluation_copies=0, device=device)
    place = Choice(game, {**GAMES[game], "num_agents": size})
    config = RunConfig(place, {"all": Choice(name, {**options, "temperature": TEMPERATURE})}, run)
    return averages_while_learning(build(config).training, steps // 2)["reward"].value


def magnetisation(precision: float, peers: int, agents: int, steps: int) -> float:
    """The mean of the second half of a run that begins in order: everyone samples others, infers and acts at once."""
    ids = agent_ids(1, agents)
    up = torch.ones(1, agents, dtype=torch.int64)
    total, kept = 0.0, steps // 2
    for step in range(steps):
        counts = torch.zeros(1, agents, 2)
        for draw in range(peers):
            # Others are a uniform draw, up with the chance that their number gives.
            other = random.integers(Key.of(1).fold(step, draw), ids, agents - 1) < up.sum() - up
            counts[..., 1] += other
            counts[..., 0] += ~other
        odds = crowd.log_odds(counts, precision)
        energy = torch.stack([torch.zeros_like(odds), -odds], -1)
        up = gibbs.sample(energy, 1.0, ids, Key.of(2).fold(step))
        total += float(2 * up.double().mean() - 1) * (step >= steps - kept)
    return abs(total / kept)


@themed
def draw(curves: dict[int, list[dict[str, float]]]) -> Figure:
    style = styles([str(k) for k in curves], {})
    figure, grid = canvas(6.4, 4.2)
    axes = grid.flatten()[0]
    for k, points in curves.items():
        low, high = ORDER[k]
        fine = torch.linspace(low, high, 200).tolist()
        look = style[str(k)]
        axes.plot(
            [w * k for w in fine],
            [crowd.ordered_magnetisation(w, k) for w in fine],
            color=look.colour,
            label=f"k = {k}",
        )
        axes.plot([p["w"] * k for p in points], [p["seen"] for p in points], "o", color=look.colour, markersize=4)
        axes.axvline(k * crowd.critical_precision(k), color=INK, linewidth=0.6, linestyle=(0, (2, 3)))
    axes.set_xlabel("k w, precision of all peers together")
    axes.set_ylabel("magnetisation")
    axes.legend(frameon=False)
    axes.set_title("Lines: the map of a crowd without end; points: agents")
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind (default: 10)")
    parser.add_argument("--steps", type=int, default=80, help="steps of each run (default: 80)")
    parser.add_argument("--sizes", default="2,100,2000", help="crowds, as 2,100 (default: %(default)s)")
    parser.add_argument(
        "--agents", type=int, default=20_000, help="agents of the second part (default: 20,000; 0: none)"
    )
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce-crowd-inference"), help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="three seeds, two sizes")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    try:
        given.sizes = [int(size) for size in given.sizes.split(",")]
    except ValueError:
        parser.error("--sizes must be whole numbers with commas between them.")
    if given.quick:
        given.seeds, given.sizes, given.agents = min(given.seeds, 3), given.sizes[:2], min(given.agents, 5000)
    if given.seeds < 2 or given.steps < 10 or min(given.sizes) < 2:
        parser.error("--seeds must be at least 2, --steps at least 10 and --sizes at least 2.")
    return given


def main() -> int:
    given = arguments()
    runs: dict[str, dict[str, list[float]]] = {}
    curves: dict[int, list[dict[str, float]]] = {}
    try:
        with Progress(given.quiet) as progress:
            progress.add("runs", len(GAMES) * len(given.sizes) * len(AGENTS) * given.seeds)
            done = 0
            for game in GAMES:
                for size in given.sizes:
                    found = runs.setdefault(f"{game}, N = {size}", {agent: [] for agent in AGENTS})
                    for seed in range(given.seeds):
                        for agent in AGENTS:
                            found[agent].append(score(game, agent, size, given.steps, seed, given.device))
                            done += 1
                            progress.update("runs", done, f"{game} {size}: {agent} {seed}")
        rows = []
        for form, found in runs.items():
            row: dict[str, Any] = {"form": form, "runs": found}
            row |= {agent: statistics.estimate([scores])._asdict() for agent, scores in found.items()}
            gaps = {
                f"{one} - {other}": statistics.difference([found[one]], [found[other]])
                for one, other in (("given", "not curious"), ("given", "alone"), ("learned", "mfq"), ("learned", "iql"))
            }
            row["differences"] = {name: gap._asdict() for name, gap in gaps.items()}
            adjusted = statistics.holm([gap.p for gap in gaps.values()])
            row["verdicts"] = {
                name: statistics.verdict(gap, p) for (name, gap), p in zip(gaps.items(), adjusted, strict=True)
            }
            rows.append(row)
        if given.agents:
            for k, (low, high) in ORDER.items():
                curves[k] = [
                    {"w": w, "seen": magnetisation(w, k, given.agents, 80), "known": crowd.ordered_magnetisation(w, k)}
                    for w in torch.linspace(low, high, 9).tolist()
                ]
            save(draw(curves), given.out / "ordering")
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        write_text(
            given.out / "crowd_inference.json",
            json.dumps({"settings": settings, "rows": rows, "order": curves}, indent=1),
        )
    except MfmarlError as error:
        print(f"crowd_inference: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        print(row["form"])
        for agent in AGENTS:
            e = row[agent]
            print(f"    {agent:>12}: {e['value']:.4f} ({e['low']:.4f} to {e['high']:.4f})")
        for name, gap in row["differences"].items():
            print(f"    {name}: {gap['value']:+.4f} ({gap['low']:.4f} to {gap['high']:.4f}): {row['verdicts'][name]}")
    for k, points in curves.items():
        worst = max(abs(p["seen"] - p["known"]) for p in points)
        below = [p["w"] for p in points if p["seen"] < 0.2]
        above = [b["w"] for a, b in pairwise(points) if a["seen"] < 0.2 <= b["seen"]]
        edge = f"{below[-1]:.4f} and {above[0]:.4f}" if below and above else "no two of them"
        print(f"k = {k}: order between w = {edge} (theory {crowd.critical_precision(k):.4f}); largest gap {worst:.4f}")
    print(f"numbers: {given.out / 'crowd_inference.json'}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
