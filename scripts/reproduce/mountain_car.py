"""Sparse Mountain Car: deep active inference with and without its information term, random play, DQN, PPO and SAC.

python scripts/reproduce/mountain_car.py            # about twenty CPU-minutes
python scripts/reproduce/mountain_car.py --quick    # about two: three runs of 600 actions each

Nothing is paid but 1 on reaching the top, which ends the episode (167 actions at most); an action lasts three steps of
Gymnasium's MountainCarContinuous-v0. The reward says nothing before the top has been reached once: what gets there
is exploration. Each kind of agent makes `--seeds` runs of `--steps` actions; those of deep active inference are the cars of
one population with a mind each, which learn at once and know nothing of each other. DQN, PPO and SAC are stable-baselines3's,
with their own defaults but for what `BASELINES` says, on Gymnasium's own environment; DQN pushes -1, 0 or 1.

Reported are interquartile means over runs with 95 % intervals: how much of phase space (20 x 20 cells) was seen within the
budget, the action that first reached the top (a run that never did counts as the whole budget), and how often it was reached.
Tschantz et al. 2020 (arXiv 2002.12636, section 5.1) have the same task, larger networks and searches. Leaves mountain_car.json,
.png and .svg in `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
import torch

from mfmarl.cli.progress import Progress
from mfmarl.envs.mountain_car import FASTEST, LEFT, RIGHT
from mfmarl.errors import MfmarlError
from mfmarl.evaluation import statistics
from mfmarl.evaluation.drawing import agent_rows, canvas, draw_interval, save, styles, subtitle, themed
from mfmarl.evaluation.results import write_text
from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPEAT, HORIZON, BINS = 3, 167, 20
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "with information": ("deep_active_inference", {"information": 1.0}),
    "without": ("deep_active_inference", {"information": 0.0}),
    "random": ("random", {}),
}
BASELINES: dict[str, dict[str, Any]] = {
    "dqn": {"learning_starts": 200, "train_freq": 1, "target_update_interval": 200, "exploration_fraction": 0.5},
    "ppo": {"n_steps": 512},
    "sac": {"learning_starts": 200},
}


class Watch:
    """What runs have seen and reached: lifetime coverage, first arrival, arrivals."""

    def __init__(self, runs: int) -> None:
        self.seen = np.zeros((runs, BINS * BINS), bool)
        self.first = np.full(runs, -1)
        self.arrivals = np.zeros(runs, int)
        self.asked = np.zeros(runs, int)  # actions of each run
        self.curve: list[np.ndarray] = []

    def step(self, runs: np.ndarray, obs: np.ndarray, arrived: np.ndarray) -> None:
        """`runs` of the rows that acted, what they see now [n, 2], and which of them have arrived [n]."""
        self.asked[runs] += 1
        column = ((obs[:, 0] - LEFT) / (RIGHT - LEFT) * BINS).astype(int).clip(0, BINS - 1)
        row = ((obs[:, 1] + FASTEST) / (2 * FASTEST) * BINS).astype(int).clip(0, BINS - 1)
        self.seen[runs, column * BINS + row] = True
        done = runs[arrived]
        self.arrivals[done] += 1
        self.first[done] = np.where(self.first[done] < 0, self.asked[done], self.first[done])
        self.curve.append(self.seen.mean(1))


class Found(NamedTuple):
    coverage: list[float]
    first: list[float]
    arrivals: list[float]
    cpu: float  # seconds of a run


def found(watch: Watch, steps: int, cpu: float) -> Found:
    first = np.where(watch.first < 0, steps, watch.first).astype(float)
    return Found(watch.seen.mean(1).tolist(), first.tolist(), watch.arrivals.astype(float).tolist(), cpu / len(first))


def ours(name: str, given: argparse.Namespace, progress: Progress) -> Found:
    """All runs of one of our agents at once: a population whose cars have a mind each."""
    agent, options = OURS[name]
    if agent == "deep_active_inference":
        options = {"horizon": given.horizon, "candidates": given.candidates, "members": given.members, **options}
    rules = Choice("mountain_car", {"num_agents": given.seeds, "repeat": REPEAT, "horizon": HORIZON, "bins": BINS})
    # Cars that have arrived wait for the others: the budget is counted for each car by its own actions.
    run = RunOptions(steps=2 * given.steps, copies=1, seed=given.seed, sharing="none", evaluation_copies=0)
    training = build(RunConfig(rules, {"all": Choice(agent, options)}, run)).training
    watch, play = Watch(given.seeds), training.episode.play

    def watched(action: Any = None) -> Any:
        before, chosen, after, now = play(action)
        mine = before.acting[0].numpy() & (watch.asked < given.steps)
        runs = np.flatnonzero(mine)
        watch.step(runs, after.obs[0].numpy()[runs], after.reward[0].numpy()[runs] > 0)
        return before, chosen, after, now

    training.episode.play = watched  # type: ignore[method-assign]
    began = time.process_time()
    while watch.asked.min() < given.steps and training.tick < 2 * given.steps:
        training.step()
        progress.update(name, int(watch.asked.min()))
    return found(watch, given.steps, time.process_time() - began)


class SparseCar(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gymnasium's car: an action lasts three steps, and pays 1 on arriving, else nothing."""

    def __init__(self, watch: Watch, run: int, steps: int, discrete: bool) -> None:
        super().__init__(gymnasium.make("MountainCarContinuous-v0", max_episode_steps=REPEAT * HORIZON))
        self.watch, self.run, self.steps, self.discrete = watch, run, steps, discrete
        if discrete:
            self.action_space = gymnasium.spaces.Discrete(3)

    def step(self, action: Any) -> Any:
        push = np.array([action - 1], np.float32) if self.discrete else action
        for _ in range(REPEAT):
            obs, _, arrived, cut, info = self.env.step(push)
            if arrived or cut:
                break
        if self.watch.asked[self.run] < self.steps:
            self.watch.step(np.array([self.run]), obs[None], np.array([arrived]))
        return obs, float(arrived), arrived, cut, info


def theirs(name: str, given: argparse.Namespace, progress: Progress) -> Found:
    """One run after the other of an agent of stable-baselines3."""
    import stable_baselines3

    watch = Watch(given.seeds)
    began = time.process_time()
    for run in range(given.seeds):
        env = SparseCar(watch, run, given.steps, name == "dqn")
        agent = getattr(stable_baselines3, name.upper())(
            "MlpPolicy", env, seed=given.seed * 1000 + run, device="cpu", **BASELINES[name]
        )
        agent.learn(given.steps)
        progress.update(name, run + 1)
    return found(watch, given.steps, time.process_time() - began)


@themed
def draw(results: dict[str, Found], steps: int) -> Figure:
    look = styles(list(results), {"with information": "without"})
    figure, grid = canvas(10.4, 3.6, 1, 3)
    figure.subplots_adjust(left=0.14, right=0.985, top=0.8, bottom=0.12, wspace=0.1)
    titles = {
        "coverage": ("phase space seen", "share of 20 x 20 cells, by the whole run"),
        "first": ("first arrival", f"actions; never counts as {steps}"),
        "arrivals": ("arrivals", f"within {steps} actions"),
    }
    for place, (column, (title, words)) in enumerate(titles.items()):
        axes = grid[0, place]
        for row, (name, one) in enumerate(results.items()):
            runs = getattr(one, column)
            draw_interval(axes, row, statistics.estimate([runs]), look[name])
            axes.plot(
                runs, [row + 0.27] * len(runs), "o", color=look[name].colour, alpha=0.45, markersize=4, markeredgewidth=0
            )  # fmt: skip
        agent_rows(axes, list(results), look)
        if place:
            axes.set_yticklabels([])
        axes.set_title(title, pad=18)
        subtitle(axes, words)
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of all of them (default: 0)")
    parser.add_argument("--steps", type=int, default=2000, help="actions of each run (default: 2000)")
    parser.add_argument("--horizon", type=int, default=15, help="actions that are planned ahead (default: 15)")
    parser.add_argument("--candidates", type=int, default=64, help="plans in each iteration (default: 64)")
    parser.add_argument("--members", type=int, default=5, help="of the ensemble (default: 5)")
    parser.add_argument("--only", default="", help="some of them, such as `with information,dqn`")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce-mountain-car"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="three runs of 600 actions")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.steps = min(given.seeds, 3), min(given.steps, 600)
    if given.seeds < 2 or given.steps < 100:
        parser.error("--seeds must be at least 2 and --steps at least 100.")
    kinds = [*OURS, *BASELINES]
    given.kinds = [name.strip() for name in given.only.split(",") if name.strip()] or kinds
    unknown = [name for name in given.kinds if name not in kinds]
    if unknown:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(kinds)}.")
    return given


def main() -> int:
    given = arguments()
    results: dict[str, Found] = {}
    try:
        with Progress(given.quiet) as progress:
            for name in given.kinds:
                progress.add(name, given.steps if name in OURS else given.seeds)
                results[name] = (ours if name in OURS else theirs)(name, given, progress)
        rows: list[dict[str, Any]] = [
            {
                "agent": name,
                "cpu_seconds_a_run": round(one.cpu, 2),
                "arrived": sum(count > 0 for count in one.arrivals),
                **{k: statistics.estimate([getattr(one, k)])._asdict() for k in ("coverage", "first", "arrivals")},
                "runs": one._asdict(),
            }
            for name, one in results.items()
        ]
        gaps: dict[str, Any] = {}
        if "with information" in results:
            best = results["with information"].coverage
            others = {name: one.coverage for name, one in results.items() if name != "with information"}
            tested = {name: statistics.difference([best], [runs]) for name, runs in others.items()}
            adjusted = statistics.holm([gap.p for gap in tested.values()])
            for (name, gap), p in zip(tested.items(), adjusted, strict=True):
                gaps[name] = {**gap._asdict(), "adjusted_p": p, "verdict": statistics.verdict(gap, p)}
        stem = given.out / "mountain_car"
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        write_text(
            Path(f"{stem}.json"), json.dumps({"settings": settings, "rows": rows, "coverage_gained": gaps}, indent=1)
        )
        _, png = save(draw(results, given.steps), stem)
    except MfmarlError as error:
        print(f"mountain_car: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        parts = "; ".join(f"{k} {row[k]['value']:.3g} ({row[k]['low']:.3g} to {row[k]['high']:.3g})"
                          for k in ("coverage", "first", "arrivals"))  # fmt: skip
        print(
            f"{row['agent']}: {row['arrived']} of {given.seeds} arrived; {parts}; {row['cpu_seconds_a_run']} CPU-s a run"
        )
    for name, gap in gaps.items():
        print(
            f"coverage gained over {name}: {gap['value']:+.3f} ({gap['low']:.3f} to {gap['high']:.3f}): {gap['verdict']}"
        )
    print(f"figure: {png}\nnumbers: {stem}.json")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
