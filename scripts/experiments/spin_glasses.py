"""Who finds the ground state of a spin glass? Annealing, exchange, mean field and Adam on exactly solved instances.

python scripts/experiments/spin_glasses.py            # about five CPU-minutes
python scripts/experiments/spin_glasses.py --quick    # under one

Edwards-Anderson glasses of 10 x 10 spins with periodic sides, couplings +-1 and Gaussian, and
Sherrington-Kirkpatrick glasses of 22 spins. Ground energies are exact: a strip's transfer matrix at zero temperature,
and all 2^22 states. Every read of every method has the same budget: so many looks at the local field of each spin (a
sweep of a sampler, a gradient of a relaxation, a step of a mean field). A read succeeds if the lowest energy it met is
the ground energy. Relaxations are rounded, and both they and mean-field annealing end with ten sweeps of
descent, which are taken from their budget. Intervals are bootstrapped over instances. Leaves report.html, numbers.json
and figures/ in `--out`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.drawing import COLOURS, INK, NEUTRAL, SOFT, canvas, room_for_rows, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.random import Key
from mfmarl.statmech.annealing.mean_field import anneal_averages, rounded, small_averages
from mfmarl.statmech.annealing.population import anneal_population
from mfmarl.statmech.annealing.simulated import anneal
from mfmarl.statmech.annealing.thermodynamic_speed import constant_speed, measured_deviations
from mfmarl.statmech.energies.spins import Ising, edwards_anderson, sherrington_kirkpatrick
from mfmarl.statmech.exact.enumeration import ground_states
from mfmarl.statmech.exact.strips import lattice_ground_energy
from mfmarl.statmech.replicas import sherrington_kirkpatrick as replica_theory
from mfmarl.statmech.sampling.langevin import ula
from mfmarl.statmech.sampling.single_spin import heat_bath
from mfmarl.statmech.sampling.tempering import parallel_tempering

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, DENSE = 10, 22
PROBLEMS = ("EA +-1", "EA Gaussian", "SK")
NAMES = dict(
    zip(PROBLEMS, ("Edwards-Anderson, ±1", "Edwards-Anderson, Gaussian", "Sherrington-Kirkpatrick"), strict=True)
)
HOT, COLD = 0.1, 3.0
RUNGS, COPIES, DESCENT = 10, 20, 10
SIZES = (8, 12, 16, 20)


@dataclass(frozen=True)
class Problem:
    """Instances side by side: couplings [I, 1, M], ground energies [I, 1]."""

    system: Ising
    ground: Tensor

    @property
    def instances(self) -> int:
        return len(self.ground)


@dataclass(frozen=True)
class Relaxed:
    """H at averages tanh(x), held near 0 by x^2/20: a landscape for gradients."""

    system: Ising
    pull: float = 0.05

    def __call__(self, x: Tensor) -> Tensor:
        m = torch.tanh(x)
        bonds = (m * (self.system.local_field(m) + self.system.fields)).sum(-1) / 2
        return -bonds + self.pull * x.square().sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        m = torch.tanh(x)
        return -self.system.local_field(m) * (1 - m * m) + 2 * self.pull * x


def draw_problem(name: str, instances: int, key: Key) -> Problem:
    if name == "SK":
        glass = sherrington_kirkpatrick(DENSE, key, (instances,))
        ground = ground_states(glass).energy
    else:
        glass = edwards_anderson((SIDE, SIDE), key, "binary" if name == "EA +-1" else "gaussian", (instances,))
        # A few at a time: each holds 2^19 numbers.
        parts = [Ising(glass.pairs, part, glass.fields) for part in glass.couplings.split(5)]
        ground = torch.cat([lattice_ground_energy(part, (SIDE, SIDE)) for part in parts])
    return Problem(Ising(glass.pairs, glass.couplings.unsqueeze(-2), glass.fields), ground.unsqueeze(-1))


def descended(system: Ising, s: Tensor, key: Key) -> Tensor:
    """The lowest energies [*b] met by a few sweeps at zero temperature."""
    return anneal(heat_bath(system), system, s, torch.full((DESCENT,), torch.inf), key).best_energy


def quench(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    system = problem.system
    s = system.random_states((problem.instances, reads), key.fold("start"))
    return anneal(heat_bath(system), system, s, torch.full((sweeps,), torch.inf), key).best_energy


def annealing(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    system = problem.system
    s = system.random_states((problem.instances, reads), key.fold("start"))
    return anneal(heat_bath(system), system, s, torch.linspace(HOT, COLD, sweeps), key).best_energy


def annealing_evenly(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    """The schedule is measured once for all instances, in a pilot of 20 sweeps at 15 betas, which is not counted."""
    system = problem.system
    grid = torch.linspace(HOT, COLD, 15, dtype=torch.float64)
    pilot = system.random_states((problem.instances, 8), key.fold("pilot"))
    deviations = measured_deviations(heat_bath(system), system, pilot, grid, key.fold("measure"))
    betas = constant_speed(grid, deviations, sweeps)
    s = system.random_states((problem.instances, reads), key.fold("start"))
    return anneal(heat_bath(system), system, s, betas, key).best_energy


def population(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    """Populations of 20 copies share the budget of one read."""
    system = problem.system
    wide = Ising(system.pairs, system.couplings.unsqueeze(-2), system.fields)
    copies = min(COPIES, max(2, sweeps // 10))
    s = wide.random_states((problem.instances, reads, copies), key.fold("start"))
    betas = torch.linspace(0, COLD, sweeps // copies + 1, dtype=torch.float64)
    return anneal_population(heat_bath(wide), wide, s, betas, key).best_energy


def tempering(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    """Ten rungs share the budget of one read."""
    system = problem.system
    s = system.random_states((RUNGS, problem.instances, reads), key.fold("start"))
    betas = torch.linspace(0.3, COLD, RUNGS, dtype=torch.float64)
    found = parallel_tempering(heat_bath(system), system, s, betas, key, sweeps // RUNGS, system)
    return found.seen.amin((0, 1))


def exchange(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    """Replica-exchange Langevin on the relaxed energy: ten rungs, rounded on the way, the coldest descended."""
    system, relaxed = problem.system, Relaxed(problem.system)
    x = small_averages(system, (RUNGS, problem.instances, reads), key.fold("start"), size=1.0)
    betas = torch.linspace(0.5, 6.0, RUNGS, dtype=torch.float64)
    rounds = max(1, (sweeps - DESCENT) // RUNGS)
    found = parallel_tempering(
        ula(relaxed, 0.1), relaxed, x, betas, key, rounds, lambda y: system(rounded(y)), sweeps_per_swap=1
    )
    last = descended(system, rounded(found.states[-1]), key.fold("descent"))
    return torch.minimum(found.seen.amin((0, 1)), last)


def adam(problem: Problem, reads: int, sweeps: int, key: Key, temperature: float = 0.0) -> Tensor:
    """Adam on H(tanh x), or on the mean-field free energy at a temperature that falls to 0."""
    system, relaxed = problem.system, Relaxed(problem.system, 0.0)
    x = small_averages(system, (problem.instances, reads), key.fold("start"), size=0.5)
    optimiser = torch.optim.Adam([x], lr=0.05)
    steps = sweeps - DESCENT
    for step in range(steps):
        with torch.no_grad():
            m = torch.tanh(x)
            # -T S: dS/dx = -x (1 - m^2).
            x.grad = relaxed.gradient(x) + temperature * (1 - step / steps) * x * (1 - m * m)
        optimiser.step()
    return descended(system, rounded(x), key.fold("descent"))


def adam_with_entropy(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    return adam(problem, reads, sweeps, key, 4.0 if problem.system.num_spins > DENSE else 1.5)


def mean_field(problem: Problem, reads: int, sweeps: int, key: Key) -> Tensor:
    system = problem.system
    start = small_averages(system, (problem.instances, reads), key.fold("start"))
    m = anneal_averages(system, start, torch.linspace(0.2, 2 * COLD, sweeps - DESCENT), share=0.5)
    return descended(system, rounded(m), key.fold("descent"))


METHODS: dict[str, Callable[[Problem, int, int, Key], Tensor]] = {
    "parallel tempering": tempering,
    "population annealing": population,
    "simulated annealing": annealing,
    "simulated annealing, even speed": annealing_evenly,
    "quench (T = 0)": quench,
    "mean-field annealing": mean_field,
    "Adam + annealed entropy": adam_with_entropy,
    "Adam on tanh relaxation": adam,
    "replica-exchange Langevin on it": exchange,
}
SHORT = (
    "tempering",
    "population",
    "annealing",
    "even speed",
    "quench",
    "mean field",
    "Adam + entropy",
    "Adam",
    "exchange",
)


def bootstrap(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Mean over instances and its 95 % percentile interval."""
    noise = np.random.Generator(np.random.Philox(key=0))
    means = values[noise.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def measure(method: str, problem: Problem, reads: int, sweeps: int, key: Key) -> dict[str, Any]:
    began = time.process_time()
    energy = METHODS[method](problem, reads, sweeps, key)
    cpu = time.process_time() - began
    if bool((energy < problem.ground - 1e-6).any()):
        raise AssertionError(f"{method} went below an exact ground energy: one of the two is wrong.")
    won = (energy <= problem.ground + 1e-6).double().mean(-1).numpy()
    gap = ((energy - problem.ground) / problem.ground.abs()).mean(-1).numpy()
    return {"success": bootstrap(won), "gap": bootstrap(gap), "solved": float((won > 0).mean()),
            "cpu": cpu / energy.numel(), "by_instance": won.tolist()}  # fmt: skip


@themed
def draw(found: dict[str, dict[str, dict[int, dict[str, Any]]]], budgets: tuple[int, ...]) -> Figure:
    figure, [[left, right]] = canvas(10.4, 4.8, 1, 2)
    figure.subplots_adjust(left=0.25, right=0.98, top=0.86, bottom=0.13, wspace=0.16)
    methods = list(METHODS)
    for place, name in enumerate(PROBLEMS):
        for row, method in enumerate(methods):
            value, low, high = found[name][method][budgets[-1]]["success"]
            y = row + 0.22 * (place - 1)
            left.plot([low, high], [y, y], color=COLOURS[place], linewidth=1.6)
            left.plot(
                value, y, "osD"[place], markersize=5, color=COLOURS[place], label=NAMES[name] if row == 0 else None
            )
    left.set_yticks(range(len(methods)), methods)
    left.set_ylim(len(methods) + 0.4, -0.5)  # room for the legend
    left.grid(axis="y", visible=False)
    left.set_xlim(-0.03, 1.03)
    left.set_xlabel("share of reads that reach the ground energy")
    left.set_title(f"{budgets[-1]:,} sweeps a read", pad=20)
    subtitle(left, "95 % intervals over instances")
    left.legend(
        frameon=False, fontsize=8, labelcolor=SOFT, loc="lower right", ncols=3, columnspacing=1.0, handletextpad=0.1
    )
    shades = (*COLOURS, INK, NEUTRAL)
    for place, (shade, method, short) in enumerate(zip(shades, methods, SHORT, strict=False)):
        bars = np.array([found["EA +-1"][method][b]["success"] for b in budgets])
        apart = 1.03 ** (place - len(methods) / 2)
        right.errorbar(
            apart * np.array(budgets), bars[:, 0], [bars[:, 0] - bars[:, 1], bars[:, 2] - bars[:, 0]], fmt="o-",
            markersize=4,
            linewidth=1.3, color=shade, label=short,
        )  # fmt: skip
    right.set_xscale("log")
    right.set_ylim(-0.03, 1.3)  # room for the legend
    right.set_yticks(np.linspace(0, 1, 6))
    right.set_xticks(budgets, [f"{b:,}" for b in budgets])
    right.minorticks_off()
    right.set_xlabel("sweeps a read")
    right.set_title("What a budget buys (±1)", pad=20)
    subtitle(right, "share of reads that reach the ground energy")
    right.legend(frameon=False, fontsize=8, labelcolor=SOFT, loc="upper left", ncols=3, columnspacing=1.0)
    room_for_rows(left)
    return figure


def section(name: str, found: dict[str, dict[int, dict[str, Any]]], budget: int, reads: int) -> Section:
    rows = {method: found[method][budget] for method in METHODS}
    ranked = sorted(METHODS, key=lambda m: (-rows[m]["success"][0], rows[m]["gap"][0]))
    best, descent = ranked[0], "Adam on tanh relaxation"
    by = np.array(rows[best]["by_instance"])
    said = []
    for method in ranked[1:4]:
        mean, low, high = bootstrap(by - np.array(rows[method]["by_instance"]))
        clear = "more" if low > 0 else "not clearly more"
        said.append(f"{clear} than {method} (by {mean:.2f}, {low:.2f} to {high:.2f} on the same instances)")
    text = (
        f"Most successful: {best}, {rows[best]['success'][0]:.2f} of its reads; {'; '.join(said)}. "
        f"{descent} reaches the ground energy in {rows[descent]['success'][0]:.2f} of its reads and ends "
        f"{100 * rows[descent]['gap'][0]:.1f} % above it on average."
    )
    table = Table(
        ["method", "success", "95 %", "gap (%)", f"solved in {reads} reads", "CPU-ms a read"],
        [
            [
                method,
                f"{rows[method]['success'][0]:.3f}",
                f"{rows[method]['success'][1]:.3f} to {rows[method]['success'][2]:.3f}",
                f"{100 * rows[method]['gap'][0]:.2f}",
                f"{rows[method]['solved']:.2f}",
                f"{1000 * rows[method]['cpu']:.2f}",
            ]
            for method in METHODS
        ],
    )
    return Section(NAMES[name], text, table)


def sizes(instances: int, key: Key) -> tuple[Section, list[dict[str, float]]]:
    """Ground energies of small SK glasses on their way to Parisi's."""
    limit = replica_theory.GROUND_STATE_ENERGY
    rows = []
    for n in SIZES:
        low = ground_states(sherrington_kirkpatrick(n, key.fold(n), (4 * instances,))).energy / n
        error = float(low.std()) / len(low) ** 0.5
        rows.append({"n": n, "energy": float(low.mean()), "error": error, "predicted": limit + 0.70 * n ** (-2 / 3)})
    one, two = replica_theory.broken(1).free_energy, replica_theory.broken(2).free_energy
    text = (
        "Replica theory has the ground energy per spin of the endless glass: "
        f"{-((2 / np.pi) ** 0.5):.4f} if the replicas are taken as equal (its entropy is negative: wrong), {one:.5f} "
        f"and {two:.6f} with one and two steps of broken symmetry, {limit:.6f} with all. Finite glasses lie above, "
        "by about .70 N^(-2/3) where they are large (Boettcher 2010, an empirical law)."
    )
    table = Table(
        ["N", "mean ground energy per spin", "standard error", "law"],
        [[f"{r['n']:.0f}", f"{r['energy']:.4f}", f"{r['error']:.4f}", f"{r['predicted']:.4f}"] for r in rows],
    )
    return Section("What replica theory says", text, table), rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiment-spin-glasses"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=50, help="instances of each problem (default: %(default)s)")
    parser.add_argument("--reads", type=int, default=20, help="reads of each instance (default: %(default)s)")
    parser.add_argument("--sweeps", type=int, default=1000, help="sweeps a read, at most (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="eight instances, 300 sweeps: a look, no result")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.seeds, known.reads, known.sweeps = min(known.seeds, 8), min(known.reads, 10), min(known.sweeps, 300)
    if known.seeds < 2 or known.reads < 1 or known.sweeps < 100:
        parser.error("--seeds must be at least 2, --reads at least 1, --sweeps at least 100.")
    return known


def main() -> int:
    given = arguments()
    began = time.process_time()
    budgets = tuple(sorted({given.sweeps // 10, given.sweeps * 3 // 10, given.sweeps} - set(range(30))))
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {name: {m: {} for m in METHODS} for name in PROBLEMS}
    grounds = {}
    try:
        with Progress(given.quiet) as progress:
            progress.add("methods", len(PROBLEMS) * len(METHODS))
            done = 0
            for name in PROBLEMS:
                key = Key.of(0).fold("spin glasses", name)
                progress.update("methods", done, f"{name}: exact ground energies")
                problem = draw_problem(name, given.seeds, key)
                grounds[name] = problem.ground.squeeze(-1).tolist()
                for method in METHODS:
                    progress.update("methods", done, f"{name}: {method}")
                    for budget in budgets:
                        own = key.fold(method, budget)
                        found[name][method][budget] = measure(method, problem, given.reads, budget, own)
                    done += 1
            progress.update("methods", done)
        theory, rows = sizes(given.seeds, Key.of(0).fold("sizes"))
        page = write_experiment(
            given.out,
            "Ground states of spin glasses",
            "Annealing, exchange, mean field and Adam with equal budgets on glasses of known ground energy: "
            f"{given.seeds} instances of each kind, {given.reads} reads of {given.sweeps:,} sweeps.",
            [
                Section(
                    "Who gets there",
                    "Left, all three kinds of glass at the full budget. Right, how success grows with the budget.",
                    None,
                    draw(found, budgets),
                    "spin_glasses",
                    "Shares of reads that reach the exact ground energy.",
                ),
                *(section(name, found[name], budgets[-1], given.reads) for name in PROBLEMS),
                theory,
                Section(
                    "How it was done",
                    f"Betas from {HOT:g} to {COLD:g}: linear in simulated annealing, or at even thermodynamic speed as "
                    "measured in a pilot (not counted); from 0 in population annealing, where "
                    f"{COPIES} copies share a read's budget; {RUNGS} rungs from .3 share it in parallel tempering. "
                    f"Mean-field annealing goes on to {2 * COLD:g}. Adam has a rate of .05 on H(tanh x); with entropy "
                    "it descends <H> - T S, T falling linearly to 0. Replica-exchange Langevin walks on "
                    "H(tanh x) + x²/20 with ten rungs. The last three and mean-field annealing are rounded and spend "
                    f"{DESCENT} of their sweeps on descent. No method was tuned further, so that ranks close to each "
                    "other mean little; CPU times are of plain torch. With couplings of +-1 a quench is better than "
                    "its name: spins without a field keep flipping at T = 0, and so it wanders over plateaus.",
                ),
            ],
            {
                "found": found,
                "grounds": grounds,
                "sizes": rows,
                "cpu": time.process_time() - began,
                "seeds": given.seeds,
                "reads": given.reads,
                "quick": given.quick,
            },
        )
    except MfmarlError as error:
        print(f"spin_glasses: {error}", file=sys.stderr)
        return error.exit_code
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
