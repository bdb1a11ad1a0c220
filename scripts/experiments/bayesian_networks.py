"""What is it worth to be Bayesian about a small network? Mean-field VI beside MAP, an ensemble of eight and HMC.

python scripts/experiments/bayesian_networks.py            # about eight CPU-minutes
python scripts/experiments/bayesian_networks.py --quick    # under one

One hidden layer of 16 tanh units on two data sets of scikit-learn: digits (300 to train) and breast cancer (150 to
train), 100 more to choose by, the rest to judge by; five splits. Every method chooses its prior's precision by the log
loss on the 100, and is also judged after temperature scaling on the same. Cost is counted in CPU-seconds and in
gradients of one network over all the training data.

Variational inference is Bayes-by-backprop with local reparameterisation; HMC is tuned by itself (step size, masses,
length) and judged by R-hat; `cold` is the same at T = .1. Leaves report.html, numbers.json and figures/ in `--out`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.drawing import COLOURS, INK, NEUTRAL, SOFT, canvas, room_for_rows, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.random import Key
from mfmarl.statmech.energies.losses import LossEnergy, cross_entropy
from mfmarl.statmech.sampling import diagnostics, hamiltonian, tuning
from mfmarl.statmech.variational import calibration
from mfmarl.statmech.variational.bayesian_networks import MeanFieldLayers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA = {"digits": 300, "breast cancer": 150}
HIDDEN, VALIDATION, MEMBERS, BINS = 16, 100, 8, 15
PRIORS = (0.001, 0.01, 0.1, 0.3, 1.0)
HMC_PRIORS = PRIORS[1:]
COLD = 0.1
METHODS = (
    "Adam, no prior",
    "MAP",
    "ensemble of 8",
    "mean-field VI",
    "mean-field VI, cold",
    "HMC, 8 chains",
    "HMC, cold",
)
SCORES = ("accuracy", "NLL", "ECE", "Brier", "NLL scaled", "ECE scaled")


class Split(NamedTuple):
    inputs: Tensor
    labels: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Prediction(NamedTuple):
    """Log-probabilities, [n, C] each (or [members, n, C] where members are judged one by one)."""

    validation: Tensor
    test: Tensor


@dataclass
class Counted:
    """An energy that counts the gradients it is asked for."""

    energy: LossEnergy
    gradients: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x)

    def gradient(self, x: Tensor) -> Tensor:
        self.gradients += x[..., 0].numel()
        return self.energy.gradient(x)


def split(name: str, seed: int) -> Split:
    from sklearn import datasets

    found = datasets.load_digits() if name == "digits" else datasets.load_breast_cancer()
    x, y = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target, dtype=torch.int64)
    order = torch.argsort(random.bits(Key.of(seed).fold("split", name), torch.arange(len(y))))
    x, y = x[order], y[order]
    n = DATA[name]
    middle, spread = x[:n].mean(0), x[:n].std(0)
    x = (x - middle) / torch.where(spread > 0, spread, torch.ones(()))
    return Split(
        x[:n], y[:n], (x[n : n + VALIDATION], y[n : n + VALIDATION]), (x[n + VALIDATION :], y[n + VALIDATION :])
    )


def network(data: Split, key: Key) -> nn.Module:
    """Its own weights are of no account: every method draws its own."""
    classes = int(data.labels.max()) + 1
    return nn.Sequential(nn.Linear(data.inputs.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, classes))


def first_weights(energy: LossEnergy, count: int, key: Key) -> Tensor:
    """As torch's layers begin, [count, d]: uniform within 1/sqrt(inputs)."""
    shapes, bounds = list(energy.shapes.values()), []
    for shape in shapes:
        inputs = shape[1] if len(shape) == 2 else shapes[shapes.index(shape) - 1][1]
        bounds.append(torch.full((shape.numel(),), 1 / math.sqrt(inputs)))
    return (2 * random.uniform(key, torch.arange(count), energy.size) - 1) * torch.cat(bounds)


def held_out(energy: LossEnergy, weights: Tensor, data: Split) -> Prediction:
    """Log-probabilities of networks [members, d]: [members, n, C]."""
    each = [torch.log_softmax(energy.outputs(weights, x), -1) for x in (data.validation[0], data.test[0])]
    return Prediction(*each)


def pooled(each: Prediction) -> Prediction:
    return Prediction(calibration.predictive(each.validation), calibration.predictive(each.test))


def descend(data: Split, steps: int, key: Key) -> dict[str, Any]:
    """Adam on every prior (and none) times eight networks, all at once."""
    began = time.process_time()
    energy = LossEnergy(network(data, key), cross_entropy, data.inputs, data.labels, 0.0)
    priors = torch.tensor([0.0, *PRIORS]).reshape(-1, 1, 1)
    w = first_weights(energy, MEMBERS, key.fold("weights")).repeat(len(priors), 1, 1)
    adam = torch.optim.Adam([w], lr=0.01)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / steps))
        w.grad = energy.gradient(w) + priors * w
        adam.step()
    every = [held_out(energy, each, data) for each in w]
    share = (time.process_time() - began) / len(priors) / MEMBERS  # of one network with one prior
    labels = data.validation[1]
    alone = [float(torch.stack([calibration.log_loss(p, labels) for p in e.validation]).mean()) for e in every[1:]]
    together = [float(calibration.log_loss(pooled(e).validation, labels)) for e in every[1:]]
    one, all_of_them = int(np.argmin(alone)), int(np.argmin(together))
    tried = len(PRIORS)
    return {
        "Adam, no prior": {"each": every[0], "prior": 0.0, "gradients": steps, "cpu": share},
        "MAP": {"each": every[1 + one], "prior": PRIORS[one], "gradients": tried * steps, "cpu": tried * share},
        "ensemble of 8": {
            "pooled": pooled(every[1 + all_of_them]), "members": every[1 + all_of_them], "prior": PRIORS[all_of_them],
            "gradients": tried * MEMBERS * steps, "cpu": tried * MEMBERS * share,
        },
        "start": w[1 + one].clone(),
    }  # fmt: skip


def vary(data: Split, steps: int, temperature: float, key: Key) -> dict[str, Any]:
    """Mean-field VI for every prior at once."""
    began = time.process_time()
    widths = [data.inputs.shape[1], HIDDEN, int(data.labels.max()) + 1]
    q = MeanFieldLayers(widths, torch.tensor(PRIORS), key=key, scale=0.02, networks=len(PRIORS))
    adam = torch.optim.Adam(q.parameters(), lr=0.01)
    draws = 2
    labels = data.labels.expand(draws, len(PRIORS), -1)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = q(data.inputs, key.fold("step", step), draws)
        losses = nn.functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none").sum(-1)
        adam.zero_grad()
        q.free_energy(losses, temperature).sum().backward()
        adam.step()
    with torch.no_grad():
        drawn = [torch.log_softmax(q(x, key.fold("predict"), 64), -1) for x in (data.validation[0], data.test[0])]
    found = [Prediction(*(x[:, k] for x in drawn)) for k in range(len(PRIORS))]
    losses_seen = [float(calibration.log_loss(pooled(f).validation, data.validation[1])) for f in found]
    best = int(np.argmin(losses_seen))
    return {
        "pooled": pooled(found[best]), "members": found[best], "prior": PRIORS[best],
        "gradients": steps * draws * len(PRIORS), "cpu": time.process_time() - began,
    }  # fmt: skip


def sample(data: Split, start: Tensor, pilot: int, steps: int, temperature: float, key: Key) -> dict[str, Any]:
    """HMC from the MAP networks [8, d]: short pilots choose the prior, a longer run is judged."""
    beta = 1 / temperature
    began, gradients = time.process_time(), 0

    def run(prior: float, warm: int, kept: int, chains: int, tag: str) -> tuple[Tensor, LossEnergy, Any]:
        nonlocal gradients
        energy = LossEnergy(network(data, key), cross_entropy, data.inputs, data.labels, prior)
        counted = Counted(energy)
        x, tuned = tuning.warm_up(counted, start[:chains].clone(), beta, key.fold(tag, "warm"), warm, max_steps=24)
        _, seen, report = hamiltonian.sample(counted, tuned, x, beta, key.fold(tag), kept)
        gradients += counted.gradients
        return seen, energy, report

    pilots = []
    for prior in HMC_PRIORS[1::2] if steps < 100 else HMC_PRIORS:
        seen, energy, _ = run(prior, max(50, pilot // 2), pilot // 2, 4, f"pilot {prior}")
        weights = seen[::5].flatten(0, 1)
        log_p = calibration.predictive(torch.log_softmax(energy.outputs(weights, data.validation[0]), -1))
        pilots.append((float(calibration.log_loss(log_p, data.validation[1])), prior))
    prior = min(pilots)[1]
    seen, energy, report = run(prior, max(50, steps // 2), steps, MEMBERS, "final")
    each = held_out(energy, seen[:: max(1, steps // 32)].flatten(0, 1), data)
    traces = torch.stack([energy(x) for x in seen])
    right = torch.log_softmax(energy.outputs(seen[::2], data.test[0][:50]), -1)
    right = right.gather(-1, data.test[1][:50].expand(*right.shape[:2], -1).unsqueeze(-1)).squeeze(-1)
    return {
        "pooled": pooled(each), "members": each, "prior": prior, "gradients": gradients,
        "cpu": time.process_time() - began, "acceptance": float(report.acceptance.mean()),
        "divergent": int(report.divergences.sum()), "rhat_energy": float(diagnostics.split_r_hat(traces)),
        "rhat_predictions": float(diagnostics.split_r_hat(right, observables=1).median()),
    }  # fmt: skip


def score(found: dict[str, Any], data: Split) -> dict[str, float]:
    """Every score on the test rows; of single networks, the average over the eight."""
    if "each" in found:
        many = [Prediction(v, t) for v, t in zip(found["each"].validation, found["each"].test, strict=True)]
    else:
        many = [found["pooled"]]
    labels = data.test[1]
    rows = []
    for one in many:
        temperature = calibration.best_temperature(one.validation, data.validation[1], 0.05, 20)
        scaled = torch.log_softmax(one.test / temperature, -1)
        rows.append([
            float(calibration.accuracy(one.test, labels)),
            float(calibration.log_loss(one.test, labels)),
            float(calibration.calibration_error(one.test, labels, BINS)),
            float(calibration.brier(one.test, labels)),
            float(calibration.log_loss(scaled, labels)),
            float(calibration.calibration_error(scaled, labels, BINS)),
            temperature,
        ])  # fmt: skip
    averages = np.mean(rows, 0)
    return dict(zip((*SCORES, "temperature"), averages.tolist(), strict=True))


def one_split(name: str, seed: int, given: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    data, key = split(name, seed), Key.of(seed).fold("experiment", name)
    quick = given.quick
    tell(f"{name}, split {seed}: descent")
    found = descend(data, 300 if quick else 1000, key.fold("descent"))
    start = found.pop("start")
    tell(f"{name}, split {seed}: variational inference")
    steps = 400 if quick else 2000
    found["mean-field VI"] = vary(data, steps, 1.0, key.fold("vi"))
    found["mean-field VI, cold"] = vary(data, steps, COLD, key.fold("cold"))
    for method, temperature in (("HMC, 8 chains", 1.0), ("HMC, cold", COLD)):
        tell(f"{name}, split {seed}: {method}")
        pilot, sweeps = (40, 40) if quick else (100, 400)
        found[method] = sample(data, start, pilot, sweeps, temperature, key.fold(method))
    rows: dict[str, Any] = {}
    for method, got in found.items():
        extra = {k: got[k] for k in ("acceptance", "divergent", "rhat_energy", "rhat_predictions") if k in got}
        rows[method] = {
            **score(got, data), "prior": got["prior"], "gradients": got["gradients"], "cpu": got["cpu"], **extra
        }  # fmt: skip
        log_p = got["each"].test[0] if "each" in got else got["pooled"].test
        bars = calibration.reliability(log_p, data.test[1], 10)
        rows[method]["reliability"] = [bars.confidence.tolist(), bars.accuracy.tolist(), bars.points.tolist()]
        if "members" in got:
            doubt = calibration.doubt(got["members"].test)
            wrong = got["pooled"].test.argmax(-1) != data.test[1]
            rows[method]["epistemic right"] = float(doubt.epistemic[~wrong].mean())
            rows[method]["epistemic wrong"] = float(doubt.epistemic[wrong].mean()) if bool(wrong.any()) else math.nan
    return rows


def averages(rows: list[dict[str, Any]], method: str, name: str) -> tuple[float, float]:
    """Mean over splits and its standard error."""
    values = np.array([r[method][name] for r in rows], dtype=float)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def verdicts(rows: list[dict[str, Any]], against: str, name: str = "NLL") -> list[str]:
    """What differs from one method on the same splits by more than two standard errors of the paired difference."""
    said = []
    for method in METHODS:
        if method == against:
            continue
        gap = np.array([r[method][name] - r[against][name] for r in rows])
        error = gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
        if abs(gap.mean()) > 2 * error:
            said.append(f"{method} {'loses' if gap.mean() > 0 else 'wins'} by {abs(gap.mean()):.3f} +- {error:.3f}")
    return said


@themed
def draw(rows: list[dict[str, Any]], name: str) -> Figure:
    figure, [[left, right]] = canvas(10.4, 4.4, 1, 2)
    figure.subplots_adjust(left=0.2, right=0.98, top=0.84, bottom=0.13, wspace=0.2)
    shades = dict(zip(METHODS, (NEUTRAL, *COLOURS[:6]), strict=True))
    for k, method in enumerate(METHODS):
        for offset, column, marker in ((-0.14, "NLL", "o"), (0.14, "NLL scaled", "D")):
            seen = [r[method][column] for r in rows]
            hollow = "none" if marker == "D" else shades[method]
            left.plot(seen, [k + offset] * len(seen), marker, markersize=3.5, color=shades[method], alpha=0.5,
                      markerfacecolor=hollow, linestyle="none")  # fmt: skip
            left.plot([np.mean(seen)] * 2, [k + offset - 0.13, k + offset + 0.13], color=shades[method], linewidth=2.5)
        confidence, right_share, points = (np.array([r[method]["reliability"][i] for r in rows]) for i in range(3))
        total = points.sum(0)
        full = total >= 10
        mean = lambda x: np.nansum(np.nan_to_num(x) * points, 0)[full] / total[full]  # noqa: B023, E731
        right.plot(mean(confidence), mean(right_share), "o-", color=shades[method], markersize=4, linewidth=1.3,
                   label=method)  # fmt: skip
    left.set_yticks(range(len(METHODS)), METHODS)
    left.set_ylim(len(METHODS) - 0.5, -0.5)
    left.grid(axis="y", visible=False)
    left.set_xlabel("log loss on the test rows (nats)")
    left.set_title(f"{name.capitalize()}: log loss", pad=20)
    subtitle(left, "a point per split; hollow: after temperature scaling")
    right.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    right.set_xlabel("confidence")
    right.set_ylabel("share that is right")
    right.set_title("Calibration before scaling", pad=20)
    subtitle(right, "ten bins; below the dashes: too sure")
    right.legend(frameon=False, fontsize=8.5, labelcolor=SOFT, loc="lower right")
    room_for_rows(left)
    return figure


def section(name: str, rows: list[dict[str, Any]]) -> Section:
    number = lambda pair, digits=3: f"{pair[0]:.{digits}f}" + (f" ± {pair[1]:.{digits}f}" if pair[1] == pair[1] else "")  # noqa: E731
    hmc = [r["HMC, 8 chains"] for r in rows]
    against_map, against_ensemble = verdicts(rows, "MAP"), verdicts(rows, "ensemble of 8")
    scaled = verdicts(rows, "MAP", "NLL scaled")
    listed = lambda said: "; ".join(said) + "." if said else "nothing differs by more than two standard errors."  # noqa: E731
    best = min(METHODS, key=lambda m: averages(rows, m, "NLL")[0])
    doubts = [
        f"{m} {averages(rows, m, 'epistemic wrong')[0]:.3f} against {averages(rows, m, 'epistemic right')[0]:.3f}"
        for m in ("ensemble of 8", "mean-field VI", "HMC, 8 chains")
    ]
    worst = np.mean([r["rhat_predictions"] for r in hmc])
    mixed = (
        "have" if worst <= 1.01 else "have not quite: what stands for HMC here is short chains, not the exact posterior"
    )
    text = (
        f"Lowest mean log loss before scaling: {best}. On the same splits, against MAP: {listed(against_map)}\n\n"
        f"Against the ensemble: {listed(against_ensemble)} After temperature scaling of both, against MAP: "
        f"{listed(scaled)}\n\n"
        f"HMC's chains: acceptance {np.mean([r['acceptance'] for r in hmc]):.2f}, R-hat of the energy "
        f"{np.mean([r['rhat_energy'] for r in hmc]):.2f} and of predictions "
        f"{np.mean([r['rhat_predictions'] for r in hmc]):.2f} (median over 50 rows), {sum(r['divergent'] for r in hmc)} "
        "divergent trajectories. Above 1.01 chains have not mixed. Weights cannot (hidden units change places); "
        f"predictions could, and {mixed}.\n\n"
        f"Mean epistemic doubt (nats) of rows predicted wrongly against those predicted rightly: {'; '.join(doubts)}."
    )
    table = Table(
        ["method", *SCORES, "prior (median)", "gradients", "CPU-s"],
        [
            [
                m,
                *(number(averages(rows, m, s)) for s in SCORES),
                f"{np.median([r[m]['prior'] for r in rows]):g}",
                f"{averages(rows, m, 'gradients')[0]:,.0f}",
                f"{averages(rows, m, 'cpu')[0]:.1f}",
            ]
            for m in METHODS
        ],
    )
    caption = "Left, log loss of every split and its mean. Right, confidence against how often it is right, all splits."
    return Section(name.capitalize(), text, table, draw(rows, name), name.replace(" ", "_"), caption)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/experiment-bayesian-networks"), help="(default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="splits of each data set (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two splits, short runs: a look, no result")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.seeds = min(known.seeds, 2)
    if known.seeds < 1:
        parser.error("--seeds must be at least 1.")
    return known


def main() -> int:
    given = arguments()
    began = time.process_time()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in DATA}
    try:
        with Progress(given.quiet) as progress:
            progress.add("networks", 4 * given.seeds * len(DATA))
            done = 0

            def tell(note: str) -> None:
                nonlocal done
                progress.update("networks", done, note)
                done += 1

            for name in DATA:
                for seed in range(given.seeds):
                    found[name].append(one_split(name, seed, given, tell))
            progress.update("networks", done)
        page = write_experiment(
            given.out,
            "What being Bayesian about a small network is worth",
            "Mean-field variational inference, MAP, an ensemble and HMC on two small data sets: accuracy, log loss, "
            f"calibration and cost over {given.seeds} splits, wins and losses alike.",
            [
                *(section(name, rows) for name, rows in found.items()),
                Section(
                    "How it was done",
                    f"Hidden layer of {HIDDEN} tanh units; inputs standardised on the training rows; {VALIDATION} rows "
                    f"choose the prior's precision from {', '.join(f'{p:g}' for p in PRIORS)} (HMC, for its cost, from "
                    f"{', '.join(f'{p:g}' for p in HMC_PRIORS)}) and fit the scaling temperature: the "
                    "same rows for every method. Costs include the choice. "
                    "Scores of MAP and Adam are averages over eight networks; CPU-seconds are of one. ECE has "
                    f"{BINS} bins of equal width and is biased upwards on small test sets. ± is one standard error "
                    "over splits, which share data: differences are paired, and splits overlap, so that two standard "
                    "errors are a hint and no proof.",
                ),
            ],
            {"splits": found, "cpu": time.process_time() - began, "seeds": given.seeds, "quick": given.quick},
        )
    except MfmarlError as error:
        print(f"bayesian_networks: {error}", file=sys.stderr)
        return error.exit_code
    for name, rows in found.items():
        print(name)
        for method in METHODS:
            cells = "   ".join(f"{s} {averages(rows, method, s)[0]:.3f}" for s in SCORES)
            print(f"  {method:<20}{cells}   {averages(rows, method, 'cpu')[0]:.1f} s")
    print(f"report: {page}   ({time.process_time() - began:.0f} CPU-s)")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
