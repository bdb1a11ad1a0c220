"""Tasks one after the other, as a thermodynamic cycle: work, heat, hysteresis, and what is forgotten.

    python scripts/experiments/continual_learning.py            # about four CPU-minutes
    python scripts/experiments/continual_learning.py --quick    # under a CPU-minute

A network of 306 weights learns to tell 0 from 1, 2 from 3, ... 8 from 9 (scikit-learn's digits, 4 x 4 pixels, 100
examples each, 100 others to test). The loss of a task, with a Gaussian prior, is the energy of the weights; a change of
task at frozen weights is work, relaxing afterwards is heat.

1. There and back: from the first task to the second and home again in small steps, at temperature 1, from equilibrium
   (Hamiltonian Monte Carlo). Every protocol must obey <exp(-w)> = 1; the mean w is what is lost for good, and falls with slower driving.
2. All five tasks in a row, under five protocols: cold; warm; each task reheated and cooled; warm with the earlier
   tasks' energies kept (a Bayesian's sum); and reheated with ten remembered examples of each.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.evaluation.drawing import COLOURS, SOFT, canvas, end_labels, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.random import Key
from mfmarl.statmech import cycles, importance
from mfmarl.statmech.annealing.schedule import Schedule, parse_schedule
from mfmarl.statmech.cycles import Stroke
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.energies.losses import LossEnergy, cross_entropy
from mfmarl.statmech.sampling.chains import Sweep
from mfmarl.statmech.sampling.diagnostics import Estimate
from mfmarl.statmech.sampling.hamiltonian import hmc
from mfmarl.statmech.sampling.langevin import ula

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = 5
EXAMPLES, PRIOR, MEMORY = 100, 1.0, 10
STEP = 0.01
SWEEPS = 4
"""Of Hamiltonian Monte Carlo at each stage of a loop."""


class Task(NamedTuple):
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Mixture:
    """sum_k c_k H_k of loss energies on the same weights, the prior counted once."""

    parts: tuple[LossEnergy, ...]
    shares: tuple[float, ...]

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([c * v for c, v in zip(self.shares, values, strict=True)]).sum(0)

    def __call__(self, w: Tensor) -> Tensor:
        return self._joined([part(w) for part in self.parts]) + 0.5 * PRIOR * w.square().sum(-1)

    def gradient(self, w: Tensor) -> Tensor:
        return self._joined([part.gradient(w) for part in self.parts]) + PRIOR * w


def load(key: Key) -> list[Task]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("This experiment's data come with scikit-learn: pip install scikit-learn.") from None
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float64).unsqueeze(1)
    x = nn.functional.avg_pool2d(images, 2).flatten(1)
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6) / 4  # |x| about 1
    label = torch.tensor(np.asarray(digits.target))
    tasks = []
    for k in range(TASKS):
        here = ((label == 2 * k) | (label == 2 * k + 1)).nonzero().squeeze(-1)
        here = here[torch.randperm(len(here), generator=random.generator(key.fold(k)))]
        learn, test = here[:EXAMPLES], here[EXAMPLES : 2 * EXAMPLES]
        tasks.append(Task(x[learn], label[learn] % 2, x[test], label[test] % 2))
    return tasks


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)).double()


def loss_of(task: Task, rows: int | None = None) -> LossEnergy:
    """Without its prior, which is counted once."""
    weight = 1.0 if rows is None else len(task.x) / rows
    return LossEnergy(network(), cross_entropy, task.x[:rows], task.y[:rows], 0.0, data_weight=weight)


def exact(energy: Energy) -> Sweep:
    """Hamiltonian Monte Carlo: unbiased, whatever the step."""
    return hmc(energy, 0.05, 10, jitter=True)


class Loop(NamedTuple):
    stages: int
    """Each way."""
    lost: Estimate
    jarzynski: Estimate
    """<exp(-w)>: 1."""
    counting: float
    """How many chains that average rests on: the effective sample size of exp(-w)."""
    shares: list[float]
    first_loss: list[float]
    """Mean energy of the first task along the way there and back."""


def there_and_back(tasks: list[Task], stages: int, start: Tensor, key: Key) -> Loop:
    first, second = loss_of(tasks[0]), loss_of(tasks[1])
    way = [k / stages for k in range(stages + 1)]
    shares = [*way, *way[-2::-1]]
    strokes = [Stroke(Mixture((first, second), (1 - s, s)), 1.0, 0 if n == 0 else SWEEPS) for n, s in enumerate(shares)]
    x, seen = start, [float(first(start).mean())]
    accounts = []
    for number, pair in enumerate(pairwise(strokes)):
        before, after = pair
        x, account = cycles.drive([before._replace(sweeps=0), after], exact, x, key.fold(number))
        accounts.append(account)
        seen.append(float(first(x).mean()))
    work, heat, energy, exponent = (torch.cat([a[column] for a in accounts]) for column in range(4))
    whole = cycles.Account(work, heat, energy, exponent, torch.ones(len(strokes), dtype=torch.float64))
    weight = (-whole.reduced_work).exp()
    found = Estimate(weight.mean(), weight.std() / math.sqrt(len(weight)))
    counting = float(importance.effective_sample_size(-whole.reduced_work))
    return Loop(stages, cycles.dissipated(whole), found, counting, shares, seen)


class Protocol(NamedTuple):
    name: str
    temperature: Schedule
    """Over the sweeps of each task."""
    keeps: str
    """nothing, everything, or memory: what of the earlier tasks stays in the energy."""


PROTOCOLS = (
    Protocol("cold", parse_schedule("0.001"), "nothing"),
    Protocol("warm", parse_schedule("1"), "nothing"),
    Protocol("reheated and cooled", parse_schedule("geometric(3, 0.001)"), "nothing"),
    Protocol("warm, all energies kept", parse_schedule("1"), "everything"),
    Protocol("reheated, 10 examples remembered", parse_schedule("geometric(3, 0.001)"), "memory"),
)


class Course(NamedTuple):
    accuracy: Tensor
    """[after task, of task, chains]."""
    work: Tensor
    """[chains]: surprise of the tasks, summed."""
    heat: Tensor


def take_course(tasks: list[Task], protocol: Protocol, sweeps: int, start: Tensor, key: Key) -> Course:
    x, accuracy = start, []
    work, heat = torch.zeros(len(x)).double(), torch.zeros(len(x)).double()
    before: Any = None
    blocks = 20
    for number in range(TASKS):
        earlier = range(number) if protocol.keeps != "nothing" else ()
        rows = MEMORY if protocol.keeps == "memory" else None
        parts = (*(loss_of(tasks[k], rows) for k in earlier), loss_of(tasks[number]))
        energy = Mixture(parts, (1.0,) * len(parts))
        temperatures = protocol.temperature.temperatures(blocks)
        strokes = [Stroke(energy, 1 / t, max(1, sweeps // blocks)) for t in temperatures]
        first = Stroke(before or Mixture((loss_of(tasks[0]),), (1.0,)), strokes[0].beta, 0)
        # Steps that a growing sum of energies can bear.
        step = STEP / len(parts)
        x, account = cycles.drive([first, *strokes], partial(ula, step_size=step), x, key.fold("task", number))
        work, heat, before = work + account.work.sum(0), heat + account.heat.sum(0), energy
        right = [(loss_of(task).outputs(x, task.test_x).argmax(-1) == task.test_y).double().mean(-1) for task in tasks]
        accuracy.append(torch.stack(right))
    return Course(torch.stack(accuracy), work, heat)


def spread(values: Tensor) -> Estimate:
    return Estimate(values.mean(), values.std() / math.sqrt(len(values)))


def told(found: Estimate, digits: int = 3) -> str:
    return f"{float(found.value):.{digits}f} ± {float(found.error):.{digits}f}"


@themed
def draw_loops(loops: list[Loop]) -> Figure:
    figure, [[left, right]] = canvas(10.4, 4.4, 1, 2)
    figure.subplots_adjust(left=0.07, right=0.97, top=0.85, bottom=0.13, wspace=0.22)
    for loop, colour, height in zip((loops[0], loops[-1]), (COLOURS[1], COLOURS[0]), (0.88, 0.95), strict=True):
        middle = len(loop.shares) // 2
        left.plot(loop.shares[: middle + 1], loop.first_loss[: middle + 1], color=colour, linewidth=1.5)
        back = loop.shares[middle:], loop.first_loss[middle:]
        left.plot(*back, color=colour, linewidth=1.5, linestyle=(0, (3, 2)))
        place = {"xycoords": "axes fraction", "fontsize": 9, "color": colour, "va": "top"}
        left.annotate(f"{loop.stages} stages each way", (0.03, height), **place)
    left.set_xlabel("share of the second task")
    left.set_title("Loss of the first task, there and back", pad=20)
    subtitle(left, "solid: on the way there; dashed: on the way back")
    stages = np.array([loop.stages for loop in loops])
    lost = np.array([(float(loop.lost.value), float(loop.lost.error)) for loop in loops])
    right.errorbar(stages, lost[:, 0], 2 * lost[:, 1], fmt="o-", color=COLOURS[2], markersize=5)
    right.plot(stages, lost[-1, 0] * stages[-1] / stages, color=SOFT, linewidth=1, linestyle=(0, (5, 3)))
    right.annotate("1/time", (stages[1], lost[-1, 0] * stages[-1] / stages[1]), xytext=(4, 6), textcoords="offset points",
                   fontsize=9, color=SOFT)  # fmt: skip
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(stages, [str(stage) for stage in stages])
    right.set_yticks([3, 10, 30, 100], ["3", "10", "30", "100"])
    left.set_yscale("log")
    left.set_yticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    for axes in (left, right):
        axes.minorticks_off()
    right.set_xlabel("stages each way")
    right.set_title("Work lost in a loop, nats", pad=20)
    subtitle(right, "95 % intervals over chains; a reversible drive loses none")
    return figure


@themed
def draw_courses(courses: dict[str, Course]) -> Figure:
    figure, [[axes]] = canvas(8.4, 4.4)
    figure.subplots_adjust(left=0.08, right=0.64, top=0.86, bottom=0.13)
    ends = []
    for (name, course), colour in zip(courses.items(), COLOURS, strict=False):
        means = [float(course.accuracy[k, : k + 1].mean()) for k in range(TASKS)]
        axes.plot(range(1, TASKS + 1), means, color=colour, linewidth=1.5, marker="o", markersize=4)
        ends.append((means[-1], name, colour, "normal"))
    axes.set_xticks(range(1, TASKS + 1))
    axes.set_xlabel("tasks learned")
    axes.set_title("Accuracy on all tasks so far", pad=20)
    subtitle(axes, "mean over chains, test examples; chance is 0.5")
    end_labels(figure, axes, ends)
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=48, help="networks driven side by side (default: 48)")
    parser.add_argument("--sweeps", type=int, default=1000, help="Langevin steps for each task (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/continual-learning"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer chains, faster drives")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.chains, known.sweeps = min(known.chains, 24), min(known.sweeps, 200)
    if known.chains < 4 or known.sweeps < 20:
        parser.error("--chains must be at least 4 and --sweeps at least 20.")
    return known


def main() -> int:
    given = arguments()
    key = Key.of(given.seed)
    speeds = (5, 10, 20) if given.quick else (5, 10, 20, 40, 80, 160)
    settle = 150 if given.quick else 600
    try:
        tasks = load(key.fold("data"))
        first = Mixture((loss_of(tasks[0]),), (1.0,))
        ids = torch.arange(given.chains)
        start = random.normal(key.fold("start"), ids, loss_of(tasks[0]).size).double()
        with Progress(given.quiet) as progress:
            progress.add("there and back", settle + 2 * SWEEPS * sum(speeds))
            x, sweep = start, exact(first)
            for step in range(settle):
                x = sweep(x, 1.0, ids, key.fold("settle", step))
                progress.update("there and back", step + 1, "to equilibrium")
            loops, done = [], settle
            for speed in speeds:
                loops.append(there_and_back(tasks, speed, x, key.fold("loop", speed)))
                done += 2 * SWEEPS * speed
                progress.update("there and back", done, f"{speed} stages each way")
            progress.add("courses", len(PROTOCOLS))
            courses = {}
            for number, protocol in enumerate(PROTOCOLS):
                courses[protocol.name] = take_course(tasks, protocol, given.sweeps, start, key.fold("course", number))
                progress.update("courses", number + 1, protocol.name)
        page = report(given, loops, courses)
    except MfmarlError as error:
        print(f"continual_learning: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'stages each way':<34}{'lost, nats':<20}<exp(-w)>")
    for loop in loops:
        print(f"{loop.stages:<34}{told(loop.lost, 2):<20}{told(loop.jarzynski)}")
    print(f"{'protocol':<34}{'accuracy on all':<20}{'on the first':<20}on the last")
    for name, course in courses.items():
        final = course.accuracy[-1]
        print(f"{name:<34}{told(spread(final.mean(0))):<20}{told(spread(final[0])):<20}{told(spread(final[-1]))}")
    print(f"report: {page}")
    return 0


def report(given: argparse.Namespace, loops: list[Loop], courses: dict[str, Course]) -> Path:
    rows = [[str(loop.stages), told(loop.lost, 2), told(loop.jarzynski), f"{loop.counting:.1f}"] for loop in loops]
    table = []
    for name, course in courses.items():
        final = course.accuracy[-1]
        learned = torch.stack([course.accuracy[k, k] for k in range(TASKS)])
        forgotten = (learned - final)[:-1].mean(0)
        table.append(
            [name, *(told(spread(v)) for v in (final.mean(0), final[0], final[-1], forgotten)),
             told(spread(course.work), 0), told(spread(course.heat), 0)]
        )  # fmt: skip
    fall = float(loops[0].lost.value) / max(float(loops[-1].lost.value), 1e-9)
    best = max(courses, key=lambda name: float(courses[name].accuracy[-1].mean()))
    cold, warm, heated = (float(courses[p.name].accuracy[-1].mean()) for p in PROTOCOLS[:3])
    sections = [
        Section(
            "A loop costs, and the less the slower",
            f"Driven there and back {loops[-1].stages // loops[0].stages} times as slowly, {fall:.1f} times less is lost. The equality "
            "<exp(-w)> = 1 holds at every speed, but its average lives on rare chains: where more than a few nats are "
            "lost, so few chains show it too small, as every such estimate is.",
            Table(["stages each way", "lost <w>, nats", "<exp(-w)>", "chains that count"], rows),
            draw_loops(loops), "loops", "Hysteresis of a loss, and its cost against the speed of the drive.",
        ),
        Section(
            "What a course of five tasks leaves",
            f"Best on all five tasks: {best}. Temperature alone does not remember: cold {cold:.3f}, warm {warm:.3f}, "
            f"reheated and cooled {heated:.3f} of all tests right, against the .5 of chance. What keeps the old tasks is "
            "that they stay in the energy, whole or by a few examples.\n\n"
            "Forgotten is what was right on a task when it had just been learned and is no longer at the end, mean over "
            "the first four. Work is what the tasks' changes did to the energy of the frozen weights, in nats of loss; heat what learning took away (and, when "
            "reheated, gave). They balance to the change of energy, chain by chain.",
            Table(["protocol", "right, all tasks", "first task", "last task", "forgotten", "work", "heat"], table),
            draw_courses(courses), "courses", "Accuracy on all tasks learned so far.",
        ),
    ]  # fmt: skip
    numbers = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()},
        "loops": [
            {
                "stages": loop.stages,
                "lost": [float(v) for v in loop.lost],
                "jarzynski": [float(v) for v in loop.jarzynski],
            }
            for loop in loops
        ],
        "courses": {
            name: {"accuracy": c.accuracy.mean(-1).tolist(), "work": float(c.work.mean()), "heat": float(c.heat.mean())}
            for name, c in courses.items()
        },
    }
    lead = (
        f"{given.chains} networks, {given.sweeps} Langevin steps a task; intervals are one standard error over networks "
        "that share the data."
    )
    return write_experiment(given.out, "Learning task after task, as a thermodynamic cycle", lead, sections, numbers)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
