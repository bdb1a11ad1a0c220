"""Who leaves the wrong well? Optimisers with and without a temperature on the double well V = x^4 - 4 x^2 + x.

python scripts/experiments/escape.py            # about two CPU-minutes
python scripts/experiments/escape.py --quick    # about twenty seconds

1. One well, 2,000 gradients from x = 2 on the wrong side: the share that ends in the global well, beside the exact law
   of noisy descent where there is one. Rates of Adam are swept, for one of them leaps the barrier by its stride alone.
2. 32 independent wells from random starts, the same budget: what becomes of each method with the dimension.
3. Escape times of Langevin dynamics against Kramers' rate and the exact mean first passage time.

A lone double well is a test of correctness, not a benchmark of learning: nothing here says how networks train.
Leaves report.html, numbers.json and figures/ in `--out`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.drawing import COLOURS, INK, NEUTRAL, SOFT, canvas, room_for_rows, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.random import Key
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.energies.continuous import DoubleWell
from mfmarl.statmech.exact import double_well
from mfmarl.statmech.optimisers.exchange import ReplicaExchangeSGLD
from mfmarl.statmech.optimisers.hamiltonian import Underdamped
from mfmarl.statmech.optimisers.langevin import SGLD
from mfmarl.statmech.optimisers.local_entropy import EntropySGD
from mfmarl.statmech.optimisers.noisy import NoisySGD
from mfmarl.statmech.optimisers.simulated import SimulatedAnnealing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUDGET, LR, WELL = 2000, 0.01, DoubleWell()
LEFT, BARRIER, RIGHT = WELL.stationary_points
Row = dict[str, Any]
Method = Callable[[nn.Parameter, Key], None]
"""Spends the budget of gradients (or evaluations) of every run on parameters [runs, d], in place."""


def _closure(x: nn.Parameter) -> Callable[[], Tensor]:
    """Energies [*runs] with their gradient left on x."""

    def closure() -> Tensor:
        x.grad = WELL.gradient(x.detach())
        return WELL(x.detach())

    return closure


def descent(make: Callable[[nn.Parameter], torch.optim.Optimizer], decay: bool = False) -> Method:
    def method(x: nn.Parameter, key: Key) -> None:
        optimizer = make(x)
        rate = optimizer.param_groups[0]["lr"]
        for step in range(BUDGET):
            if decay:
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / BUDGET))
            x.grad = WELL.gradient(x.detach())
            optimizer.step()

    return method


def langevin(temperature: float | Schedule) -> Method:
    def method(x: nn.Parameter, key: Key) -> None:
        optimizer = SGLD([x], LR, temperature, key=key)
        for step in range(BUDGET):
            if isinstance(temperature, Schedule):
                optimizer.advance(step / (BUDGET - 1))
            x.grad = WELL.gradient(x.detach())
            optimizer.step()

    return method


def fixed_noise(x: nn.Parameter, key: Key) -> None:
    optimizer = NoisySGD([x], LR, key=key, noise=0.1)
    for _ in range(BUDGET):
        x.grad = WELL.gradient(x.detach())
        optimizer.step()


def underdamped(temperature: Schedule) -> Method:
    def method(x: nn.Parameter, key: Key) -> None:
        optimizer = Underdamped([x], 0.1, temperature, key=key, friction=1.0)
        for step in range(BUDGET):
            optimizer.advance(step / (BUDGET - 1))
            x.grad = WELL.gradient(x.detach())
            optimizer.step()

    return method


def exchange(temperatures: tuple[float, ...]) -> Method:
    """As many replicas share the budget; what counts is where the coldest ends."""

    def method(x: nn.Parameter, key: Key) -> None:
        replicas = nn.Parameter(x.detach().repeat(len(temperatures), 1, 1))
        optimizer = ReplicaExchangeSGLD([replicas], LR, temperatures, key=key)
        closure = _closure(replicas)
        for _ in range(BUDGET // len(temperatures)):
            optimizer.step(closure)
        with torch.no_grad():
            x.copy_(replicas[0])

    return method


def local_entropy(x: nn.Parameter, key: Key) -> None:
    inner = 20
    optimizer = EntropySGD([x], 0.5, 0.5, key=key, scope=1.0, inner_steps=inner, inner_lr=LR)
    for _ in range(BUDGET // inner):
        optimizer.step(_closure(x))


def annealing(schedule: Schedule, scale: float = 0.5) -> Method:
    def method(x: nn.Parameter, key: Key) -> None:
        optimizer = SimulatedAnnealing([x], scale, schedule, key=key)
        for step in range(BUDGET - 1):  # and one evaluation of the start
            optimizer.advance(step / (BUDGET - 1))
            optimizer.step(lambda: WELL(x))

    return method


def sam(radius: float) -> Method:
    """Sharpness-aware minimisation with steps of LR: two gradients each (Foret et al. 2021)."""

    def method(x: nn.Parameter, key: Key) -> None:
        with torch.no_grad():
            for _ in range(BUDGET // 2):
                slope = WELL.gradient(x)
                up = radius * slope / slope.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                x.sub_(LR * WELL.gradient(x + up))

    return method


def methods() -> dict[str, tuple[str, Method, float | None]]:
    """Name: (kind, method, exact share in one dimension where the chain's law is computed)."""
    at = lambda noise: double_well.noisy_descent(BUDGET, LR, noise, 2.0).left  # noqa: E731
    adam = {f"Adam, lr {rate:g}": ("without noise", descent(lambda p, r=rate: torch.optim.Adam([p], r)), None) for rate in (0.001, 0.01, 0.1, 1.0)}  # type: ignore[misc]  # fmt: skip
    return {
        "SGD": ("without noise", descent(lambda p: torch.optim.SGD([p], LR)), None),
        "SGD, momentum .9": ("without noise", descent(lambda p: torch.optim.SGD([p], LR, momentum=0.9)), None),
        **adam,
        "Adam, lr 1, decaying": ("without noise", descent(lambda p: torch.optim.Adam([p], 1.0), decay=True), None),
        "SAM, radius 1": ("without noise", sam(1.0), None),
        "noisy SGD, noise .1 (T = .5)": ("constant", fixed_noise, at(0.1)),
        "Langevin, T = 1": ("constant", langevin(1.0), at(math.sqrt(2 * LR))),
        "Langevin, T = 2": ("constant", langevin(2.0), at(math.sqrt(4 * LR))),
        "Entropy-SGD, T = .5": ("constant", local_entropy, None),
        "annealed Langevin, T 1 to .1": ("cooled", langevin(Schedule("geometric", 1, 0.1)), None),
        "annealed Langevin, T 3 to .1": ("cooled", langevin(Schedule("geometric", 3, 0.1)), None),
        "annealed Langevin, T 5 to .3": ("cooled", langevin(Schedule("geometric", 5, 0.3)), None),
        "annealed underdamped, T 3 to .1": ("cooled", underdamped(Schedule("geometric", 3, 0.1)), None),
        "simulated annealing, no gradient": ("cooled", annealing(Schedule("geometric", 3, 0.1)), None),
        "replica exchange, T = .15, 3": ("exchanged", exchange((0.15, 3.0)), None),
        "replica exchange, 5 temperatures": ("exchanged", exchange((0.15, 0.32, 0.67, 1.42, 3.0)), None),
    }


def one_well(given: argparse.Namespace, tell: Callable[[str], None]) -> list[Row]:
    rows = []
    for name, (kind, method, exact) in methods().items():
        tell(name)
        runs = 1 if kind == "without noise" else given.runs
        began, shares, heights = time.process_time(), [], []
        for seed in range(1 if runs == 1 else given.seeds):
            x = nn.Parameter(torch.full((runs, 1), 2.0, dtype=torch.float32))
            method(x, Key.of(seed).fold("escape", name))
            shares.append((x.detach()[:, 0] < BARRIER).double())
            heights.append(WELL(x.detach()).double())
        share, height = torch.cat(shares), torch.cat(heights)
        p = float(share.mean())
        row: Row = {
            "method": name, "kind": kind, "share": p, "runs": len(share), "exact": exact,
            "error": math.sqrt(p * (1 - p) / len(share)) if len(share) > 1 else None,
            "energy": float(height.mean()), "cpu": time.process_time() - began,
        }  # fmt: skip
        rows.append(row)
    return rows


def many_wells(given: argparse.Namespace, tell: Callable[[str], None], dimension: int = 32) -> list[Row]:
    rows = []
    runs = max(given.runs // 8, 50)
    for name, (kind, method, _) in methods().items():
        tell(f"{name}, {dimension} dimensions")
        single, whole, heights = [], [], []
        for seed in range(given.seeds):
            ids = torch.arange(runs)
            start = 4 * random.uniform(Key.of(seed).fold("start"), ids, dimension) - 2
            x = nn.Parameter(start)
            method(x, Key.of(seed).fold("many", name))
            left = x.detach() < BARRIER
            single.append(left.double().mean(-1))
            whole.append(left.all(-1).double())
            heights.append(WELL(x.detach()).double() / dimension)
        each, every = torch.cat(single), torch.cat(whole)
        rows.append({
            "method": name, "kind": kind, "share": float(each.mean()), "all": float(every.mean()),
            "error": float(each.std()) / math.sqrt(len(each)), "energy": float(torch.cat(heights).mean()),
            "runs": len(each),
        })  # fmt: skip
    return rows


def escape_times(given: argparse.Namespace, tell: Callable[[str], None]) -> list[Row]:
    """Mean time from the right minimum to the left one, of Langevin steps small beside the wells."""
    rows, lr = [], 0.005
    for temperature in (0.6, 0.75, 1.0, 1.5) if given.quick else (0.45, 0.5, 0.6, 0.75, 1.0, 1.5):
        tell(f"escape times at T = {temperature:g}")
        runs = 300 if given.quick else 2000
        x = nn.Parameter(torch.full((runs, 1), RIGHT, dtype=torch.float32))
        optimizer = SGLD([x], lr, temperature, key=Key.of(7).fold("escape", str(temperature)))
        arrived = torch.zeros(runs)
        step = 0
        while bool((arrived == 0).any()):
            step += 1
            x.grad = WELL.gradient(x.detach())
            optimizer.step()
            if step % 4 == 0:  # how often one looks is of no account where the way is downhill and the stay is long
                arrived[(arrived == 0) & (x.detach()[:, 0] < LEFT)] = step
        seen = arrived.double() * lr
        kramers = 1 / double_well.kramers_rate(temperature)
        rows.append({
            "temperature": temperature, "time": float(seen.mean()), "error": float(seen.std()) / math.sqrt(runs),
            "first_passage": double_well.first_passage(temperature, RIGHT, LEFT), "kramers": kramers,
        })  # fmt: skip
    return rows


_SHADES = dict(zip(("without noise", "constant", "cooled", "exchanged"), (NEUTRAL, *COLOURS[:3]), strict=True))


@themed
def draw_shares(rows: list[Row], many: list[Row]) -> Figure:
    figure, [[left, right]] = canvas(11, 6.2, 1, 2)
    figure.subplots_adjust(left=0.25, right=0.98, top=0.88, bottom=0.1, wspace=0.08)
    for axes, found in ((left, rows), (right, many)):
        place = range(len(found))
        axes.barh(place, [r["share"] for r in found], color=[_SHADES[r["kind"]] for r in found], height=0.66)
        for k, row in enumerate(found):
            axes.annotate(f"{row['share']:.3f}", (row["share"], k), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=8.5, color=INK)  # fmt: skip
            if row.get("exact") is not None:
                axes.plot([row["exact"]] * 2, [k - 0.42, k + 0.42], color=INK, linewidth=2)
        axes.set_xlim(0, 1.12)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(list(place), [r["method"] for r in found] if axes is left else [])
        axes.set_xlabel("share in the global well")
    left.set_title("One well, from the wrong side", pad=20)
    subtitle(left, f"{BUDGET:,} gradients; black bars: exact law of the chain")
    right.set_title("32 wells, from random starts", pad=20)
    subtitle(right, "share of coordinates; a start alone is right in .53")
    room_for_rows(left)
    return figure


@themed
def draw_times(rows: list[Row]) -> Figure:
    figure, [[axes]] = canvas(6.4, 4.4)
    figure.subplots_adjust(left=0.12, right=0.97, top=0.85, bottom=0.13)
    cold = torch.linspace(0.66, 2.3, 60).tolist()
    exact = [double_well.first_passage(1 / b, RIGHT, LEFT) for b in cold]
    axes.plot(cold, exact, color=INK, linewidth=1.4, label="exact first passage time")
    rates = [1 / double_well.kramers_rate(1 / b) for b in cold]
    axes.plot(cold, rates, color=COLOURS[1], linewidth=1.4, linestyle=(0, (5, 3)), label="1/Kramers' rate")
    axes.errorbar(
        [1 / r["temperature"] for r in rows], [r["time"] for r in rows], [2 * r["error"] for r in rows],
        fmt="o", color=COLOURS[0], markersize=6, label="measured, 95 %",
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_yticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    axes.minorticks_off()
    axes.set_xlabel("1/T")
    axes.set_title("Time from the right minimum to the left", pad=20)
    height = float(WELL(torch.tensor([BARRIER])) - WELL(torch.tensor([RIGHT])))
    subtitle(axes, f"Langevin steps of .005; the barrier is {height:.3f} high")
    axes.legend(frameon=False, fontsize=9, labelcolor=SOFT)
    return figure


def sections(rows: list[Row], many: list[Row], times: list[Row]) -> list[Section]:
    by = {r["method"]: r for r in rows}
    noisy, swapped = by["noisy SGD, noise .1 (T = .5)"], by["replica exchange, T = .15, 3"]
    leap = [r["method"] for r in rows if r["kind"] == "without noise" and r["share"] > 0.5]
    wells = {r["method"]: r for r in many}
    best = max(many, key=lambda r: r["share"])
    worst = max(abs(r["time"] - r["first_passage"]) / r["error"] for r in times)
    ratios = [r["kramers"] / r["first_passage"] for r in times]
    number = lambda v, digits=4: "" if v is None else f"{v:.{digits}f}"  # noqa: E731
    return [
        Section(
            "One well",
            f"Started at x = 2, {BUDGET:,} gradients each (replicas share them). Global minimum V = -5.4442 at "
            f"{LEFT:.4f}, local -2.6186 at {RIGHT:.4f}, barrier at {BARRIER:.4f}.\n\n"
            f"Noise of a fixed scale .1 at lr .01 is a temperature of .5, and {noisy['share']:.4f} of its runs cross, "
            f"where the exact law of the chain says {noisy['exact']:.5f}: that popular demonstration mostly stays where "
            f"it began. Replica exchange with the same gradients ends at {swapped['share']:.4f}.\n\n"
            f"Descent without noise stays put, except for {', '.join(leap) or 'none'}: with strides wider than the well "
            "it leaps the barrier without any physics. So a lone well ranks nothing; it only shows that the "
            "temperatures are right.",
            Table(
                ["method", "share in the global well", "standard error", "exact", "mean V", "CPU-s"],
                [
                    [r["method"], number(r["share"]), number(r["error"]), number(r["exact"], 5),
                     number(r["energy"]), f"{r['cpu']:.2f}"]
                    for r in rows
                ],
            ),
            draw_shares(rows, many),
            "shares",
            "Left, one well from the wrong side. Right, 32 wells from uniform starts in (-2, 2).",
        ),
        Section(
            "32 wells",
            f"Per coordinate the best is {best['method']} with {best['share']:.3f}. Exchange with two temperatures "
            f"falls from {swapped['share']:.3f} to {wells[swapped['method']]['share']:.3f}: a swap must please all 32 "
            "coordinates at once, and its acceptance dies with the dimension; more replicas would each get fewer "
            "gradients. All 32 wells right at once is rare for everyone.",
            Table(
                ["method", "share of coordinates", "standard error", "all 32", "mean V per coordinate"],
                [[r["method"], number(r["share"]), number(r["error"]), number(r["all"]), number(r["energy"])]
                 for r in many],
            ),
        ),
        Section(
            "Escape times and Kramers' rate",
            f"The measured mean times lie within {worst:.1f} standard errors of the exact first passage times (quadrature). "
            "Kramers' formula is their limit for a barrier high above T: here it gives "
            f"{min(ratios):.2f} to {max(ratios):.2f} of them.",
            Table(
                ["T", "measured", "standard error", "exact first passage", "1/Kramers' rate", "deviations"],
                [
                    [f"{r['temperature']:g}", number(r["time"], 3), number(r["error"], 3),
                     number(r["first_passage"], 3), number(r["kramers"], 3),
                     f"{(r['time'] - r['first_passage']) / r['error']:+.1f}"]
                    for r in times
                ],
            ),
            draw_times(times),
            "times",
            "Mean time to reach the left minimum from the right one.",
        ),
    ]  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiment-escape"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=4000, help="runs of each method and seed (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two seeds, 800 runs each, four temperatures")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.seeds, known.runs = min(known.seeds, 2), min(known.runs, 800)
    if known.seeds < 1 or known.runs < 2:
        parser.error("--seeds must be at least 1, --runs at least 2.")
    return known


def main() -> int:
    given = arguments()
    began = time.process_time()
    try:
        with Progress(given.quiet) as progress:
            total = 2 * len(methods()) + (4 if given.quick else 6)
            progress.add("escape", total)
            done = 0

            def tell(note: str) -> None:
                nonlocal done
                progress.update("escape", done, note)
                done += 1

            rows, many, times = one_well(given, tell), many_wells(given, tell), escape_times(given, tell)
            progress.update("escape", total)
        page = write_experiment(
            given.out,
            "Escape from the wrong well",
            "Optimisers with and without a temperature in the double well, beside exact laws and Kramers' rate; and what is "
            "left of it in 32 dimensions.",
            sections(rows, many, times),
            {"one_well": rows, "many_wells": many, "escape_times": times, "cpu": time.process_time() - began},
        )
    except MfmarlError as error:
        print(f"escape: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        exact = "" if row["exact"] is None else f"   exact {row['exact']:.5f}"
        print(f"{row['method']:<36}{row['share']:.4f}   V {row['energy']:+.4f}{exact}")
    for row in many:
        print(f"32 wells: {row['method']:<36}{row['share']:.4f}   all {row['all']:.4f}")
    for row in times:
        print(
            "T = {temperature:g}: {time:.3f} +- {error:.3f}, exact {first_passage:.3f}, Kramers {kramers:.3f}".format(
                **row
            )
        )
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
