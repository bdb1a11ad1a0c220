"""Active inference in small worlds: what curiosity is worth, what the model is worth, and where it loses.

python scripts/reproduce/active_inference.py            # some eight CPU-minutes: ten runs of each
python scripts/reproduce/active_inference.py --quick    # about two: three runs of each

Players that are given the world's own generative model and learn nothing:
  active inference, by sequences of actions (open loop) or by plans that heed what will be seen (closed loop: sophisticated
  inference), each with the epistemic term and without it; and a belief planner: the closed loop, `max` instead of the
  soft back-up, reward alone. Far plans are closed loops of three steps after which states are valued as if they were known
  (`beyond`), with curiosity and without.
Players that are given nothing and learn from reward: independent Q-learning, as a table and as a network, on what it sees
now (it has no memory). And one that chooses at random.

All planners of a world but the far ones look equally far ahead, at the same temperature. Beside them stands the most that anybody can earn
who is given the model, by dynamic programming over all beliefs that can be held: what a belief planner with time enough
comes to. A score is the mean reward per step of the policy as it is in the end, on noise of its own; intervals are
`mfmarl.evaluation.statistics`' of the interquartile mean over runs, differences Holm-corrected over all worlds.
What comes of it. Curiosity is what a short or a blind look ahead needs: in the chain of cues it adds .18 a step to the
closed loop and 1.05 to the open one, of 1.17. It is worth nothing where the closed loop sees the reward by itself (T-maze).
It loses where sequences of actions count the same information twice (the T-maze with sure arms: an arm tells the side in
each of two steps, the cue once, and gambling follows), where landing is all there is to know (the lake), and most where one
slips: that one does not know where the ice will take one is information about states as well. Who looks
far enough needs no curiosity on the lake, and is hardly harmed by it: far plans come to the optimum either way. The belief
planner's `max` hardly counts delay, so on sure ice, where the goal does not run away, it puts it off. The model is
worth what memory needs: Q-learning on what it sees now learns the T-maze as well as anybody, on the lake goes to the nearer
place always, and in the chain of cues stays away from cheese and shock. How well it would do with a memory is not told here.

Leaves two comparisons with their reports for every world (planners, learners), active_inference.json, .png and .svg in `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError, RunsFailed
from mfmarl.evaluation import statistics
from mfmarl.evaluation.comparison import PlannedRun, execute, plan, write_plan
from mfmarl.evaluation.drawing import INK, agent_rows, canvas, draw_interval, save, styles, subtitle, themed
from mfmarl.evaluation.report import write_report
from mfmarl.evaluation.results import folder_name, write_text
from mfmarl.learning.run_config import Choice, RunOptions
from mfmarl.learning.run_folder import read_metrics
from mfmarl.options import from_table
from mfmarl.population.environment import PopulationEnv
from mfmarl.registry import lookup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPEN, OPEN_BLIND, CLOSED, CLOSED_BLIND, PLANNER, FAR, FAR_BLIND = (
    "open loop",
    "open, incurious",
    "closed loop",
    "closed, incurious",
    "belief planner",
    "far",
    "far, incurious",
)
TABLE, NETWORK, RANDOM = "iql (table)", "iql (network)", "random"
PLANNERS = (OPEN, OPEN_BLIND, CLOSED, CLOSED_BLIND, PLANNER, FAR, FAR_BLIND)
LEARNERS = (TABLE, NETWORK, RANDOM)


@dataclass(frozen=True)
class World:
    """An environment, how far and how warmly planners look ahead in it, and how learners cool down."""

    environment: str
    options: dict[str, Any]
    depth: int
    temperature: str
    cooling: str
    steps: int
    """Of learning."""
    measured: int
    """Steps that a policy is measured for: whole episodes."""
    agents: int = 20
    without: tuple[str, ...] = field(default=())
    """Players that are left out."""
    beyond: int = 0
    """Steps that far plans count after a tree of three; 0: there are none."""

    @property
    def far(self) -> dict[str, Any]:
        return {"depth": min(self.depth, 3), "beyond": self.beyond, "discount": 0.99}

    @property
    def choice(self) -> Choice:
        return Choice(self.environment, {"num_agents": self.agents, **self.options})

    def rules(self) -> PopulationEnv:
        made: PopulationEnv = from_table(lookup("environment", self.environment).load(), self.choice.options)
        return made

    def most(self) -> float:
        return self.rules().reference()["reward"].value

    def planners(self) -> dict[str, dict[str, Choice]]:
        kinds = {
            OPEN: ("active_inference", "open_loop", {}),
            OPEN_BLIND: ("active_inference", "open_loop", {"state_information": "none"}),
            CLOSED: ("active_inference", "sophisticated", {}),
            CLOSED_BLIND: ("active_inference", "sophisticated", {"state_information": "none"}),
            PLANNER: ("belief_planner", "sophisticated", {}),
            FAR: ("active_inference", "sophisticated", self.far),
            FAR_BLIND: ("active_inference", "sophisticated", {**self.far, "state_information": "none"}),
        }
        common = {"depth": self.depth, "temperature": self.temperature}
        return {
            label: {"all": Choice(name, {**common, "planning": planning, **options})}
            for label, (name, planning, options) in kinds.items()
            if label not in self.without and (self.beyond or label not in (FAR, FAR_BLIND))
        }

    def learners(self) -> dict[str, dict[str, Choice]]:
        kinds = {
            TABLE: Choice("iql", {"values": "table", "learning_rate": 0.1, "temperature": self.cooling}),
            NETWORK: Choice("iql", {"temperature": self.cooling}),
            RANDOM: Choice("random", {}),
        }
        return {label: {"all": choice} for label, choice in kinds.items() if label not in self.without}


_CHAIN = {"rows": 3, "columns": 5, "start": 5, "first_cue": 6, "second_cues": [2, 12], "baits": [4, 14], "horizon": 12}
WORLDS = {
    "T-maze, sure arms": World("t_maze", {}, 2, "0.0625", "geometric(1, 0.05, 0.7)", 500, 200, 50),
    "T-maze, unsure arms": World(
        "t_maze", {"reward_probability": 0.9, "cue_reliability": 0.98}, 2, "0.0625", "geometric(1, 0.05, 0.7)", 500, 200, 50,
        (NETWORK,),
    ),
    "chain of cues": World("cue_chain", _CHAIN, 4, "0.0625", "geometric(1, 0.05, 0.7)", 800, 180, 20, (NETWORK,), 12),
    "lake, sure-footed": World(
        "frozen_lake_swap", {"success_rate": 1.0}, 6, "0.02", "geometric(0.3, 0.01, 0.7)", 800, 200, beyond=100
    ),
    "lake, slippery": World(
        # Sequences of six steps are too many where one slips; shorter ones do not reach the goal.
        "frozen_lake_swap", {"success_rate": 0.9}, 6, "0.02", "geometric(0.3, 0.01, 0.7)", 800, 200, 20,
        (OPEN, OPEN_BLIND, NETWORK), 100,
    ),
}  # fmt: skip
Scores = dict[str, dict[str, list[float]]]


def carry_out(kind: str, given: argparse.Namespace, progress: Progress) -> Scores:
    """The last evaluation of every run of one kind of players, by world and player."""
    seeds = list(range(given.seeds))
    runs: list[PlannedRun] = []
    folders = []
    for label, world in WORLDS.items():
        # A comparison each: players of one name have other options in other worlds.
        folder = given.out / folder_name(f"{label} - {kind}")
        players = world.planners() if kind == "planners" else world.learners()
        steps = 1 if kind == "planners" else world.steps
        options = RunOptions(
            steps=steps, copies=4, report_every=steps, evaluation_copies=given.copies, evaluation_steps=world.measured
        )
        write_plan(folder, {label: world.choice}, players, seeds, "scripts/reproduce/active_inference.py")
        runs += plan({label: world.choice}, players, seeds, options, folder)
        folders.append(folder)
    progress.add(kind, len(runs))
    done: set[Path] = set()

    def note(run: PlannedRun, event: dict[str, Any]) -> None:
        if event["event"] in ("done", "failed"):
            done.add(run.path)
            progress.update(kind, len(done), f"{run.environment}: {run.agent} {run.seed}")

    failed = execute(runs, given.jobs, note)
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(runs)} runs failed; {failed[0][0].path}: {failed[0][1]}")
    scores: Scores = {}
    for run in runs:
        last = read_metrics(run.path)[-1]["eval/reward"]
        scores.setdefault(run.environment, {}).setdefault(run.agent, []).append(float(last))
    for folder in folders:
        write_report(folder)
    return scores


@themed
def draw(scores: Scores, most: dict[str, float]) -> Figure:
    style = styles([*PLANNERS, *LEARNERS], {})
    figure, grid = canvas(12.5, 8.4, 2, 3)
    figure.subplots_adjust(left=0.11, right=0.985, top=0.92, bottom=0.06, wspace=0.72, hspace=0.42)
    for axes, (label, found) in zip(grid.flatten(), scores.items(), strict=False):
        for row, (player, runs) in enumerate(found.items()):
            draw_interval(axes, row, statistics.estimate([runs]), style[player])
        agent_rows(axes, list(found), style)
        axes.axvline(most[label], color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
        axes.set_title(label, pad=18)
        subtitle(axes, f"reward per step; dashed: optimum {most[label]:.3g}")
    for axes in grid.flatten()[len(scores) :]:
        axes.set_axis_off()
    return figure


class Row(NamedTuple):
    world: str
    what: str
    first: str
    second: str
    gap: statistics.Difference
    verdict: str


def differences(scores: Scores) -> list[Row]:
    """What the epistemic term does, and what the model is worth: pairs of players in every world."""
    pairs = (
        ("curiosity, open loop", OPEN, OPEN_BLIND),
        ("curiosity, closed loop", CLOSED, CLOSED_BLIND),
        ("curiosity, far", FAR, FAR_BLIND),
        ("looking beyond", FAR, CLOSED),
        ("soft against max", CLOSED_BLIND, PLANNER),
        ("active inference - learner", CLOSED, TABLE),
        ("belief planner - learner", PLANNER, TABLE),
    )
    rows: list[tuple[str, str, str, str]] = []
    gaps: list[statistics.Difference] = []
    for label, found in scores.items():
        for what, first, other in pairs:
            if first in found and other in found:
                rows.append((label, what, first, other))
                gaps.append(statistics.difference([found[first]], [found[other]]))
    adjusted = statistics.holm([gap.p for gap in gaps])
    return [Row(*row, gap, statistics.verdict(gap, p)) for row, gap, p in zip(rows, gaps, adjusted, strict=True)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind (default: 10)")
    parser.add_argument("--copies", type=int, default=2, help="populations that a policy is measured on (default: 2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce-active-inference"), help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="three runs of each kind")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    if given.quick:
        given.seeds = min(given.seeds, 3)
    if given.seeds < 2 or given.copies < 1:
        parser.error("--seeds must be at least 2 and --copies 1.")
    return given


def main() -> int:
    given = arguments()
    try:
        with Progress(given.quiet) as progress:
            planned, learned = carry_out("planners", given, progress), carry_out("learners", given, progress)
        scores = {label: {**planned[label], **learned[label]} for label in WORLDS}
        most = {label: world.most() for label, world in WORLDS.items()}
        gaps = differences(scores)
        stem = given.out / "active_inference"
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        told = [{**row._asdict(), "gap": row.gap._asdict()} for row in gaps]
        table = {"settings": settings, "most": most, "runs": scores, "differences": told}
        write_text(Path(f"{stem}.json"), json.dumps(table, indent=1))
        _, png = save(draw(scores, most), stem)
    except MfmarlError as error:
        print(f"active_inference: {error}", file=sys.stderr)
        return error.exit_code
    for label, found in scores.items():
        print(f"{label} (depth {WORLDS[label].depth}); the most that can be earned: {most[label]:.4f}")
        for player, runs in found.items():
            e = statistics.estimate([runs])
            print(f"    {player:<27}{e.value:8.4f}  ({e.low:.4f} to {e.high:.4f})  {e.value / most[label]:7.1%} of it")
    print("differences of interquartile means, 95 % intervals, Holm-corrected verdicts")
    for row in gaps:
        gap = row.gap
        interval = f"({gap.low:+.4f} to {gap.high:+.4f})" if math.isfinite(gap.low) else "(no interval)"
        print(f"    {row.world:<21}{row.what:<30}{gap.value:+8.4f} {interval:<22} {row.verdict}")
        print(f"{'':<25}{row.first} - {row.second}")
    print(f"figure: {png}\nnumbers: {stem}.json")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
