"""An energy-based classifier by eight losses: perceptron against hinge, log, contrastive and the others.

    python scripts/experiments/energy_based_classifier.py            # about four CPU-minutes
    python scripts/experiments/energy_based_classifier.py --quick    # under 40 s

One network E(x, y) per run: tanh, 64 hidden units, an energy per class; answers are the lowest energy. Scikit-learn's
digits (1,000 train, 300 validate, 497 test), breast cancer (250, 100, 219) and wine (80, 40, 58), split anew by every
seed. Per run and loss the rate of Adam is chosen among three by validation accuracy (ties: validation log loss), so
every loss gets the same tuning. Probabilities are Gibbs at T = 1, and at the temperature fitted on the validation
set (with Platt's smoothed targets).

1. accuracy, log loss, calibration error and cost of each loss, interquartile means over seeds with 95 % intervals;
2. paired differences to the perceptron;
3. the collapse: how large the gap between wrong and right energies is, with and without a pull to 0 on the weights;
4. the mistakes of Rosenblatt's rule on pairs of digits against Novikoff's bound (R/gamma)^2.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.evaluation import statistics
from mfmarl.evaluation.drawing import COLOURS, SOFT, canvas, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.random import Key
from mfmarl.statmech.energy_learning import losses
from mfmarl.statmech.variational import calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETS = {"digits": (1000, 300), "breast_cancer": (250, 100), "wine": (80, 40)}
LOSSES = ("perceptron", "hinge", "log", "contrastive", "nll", "mce", "square_square", "square_exponential")
RATES = (1e-3, 3e-3, 1e-2)
HIDDEN, BATCH = 64, 50
MEASURES = {
    "accuracy": "accuracy",
    "log_loss_1": "log loss, T = 1",
    "log_loss": "log loss, T fitted",
    "ece_1": "ECE, T = 1",
    "ece": "ECE, T fitted",
    "temperature": "T fitted",
    "gap": "median gap",
    "seconds": "CPU-s",
}


class Split(NamedTuple):
    """Standardised by the training part: inputs [n, d], labels [n]."""

    train: tuple[Tensor, Tensor]
    validate: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load(name: str) -> tuple[Tensor, Tensor]:
    try:
        from sklearn import datasets
    except ImportError:
        raise ConfigError("This experiment's data come with scikit-learn: pip install scikit-learn.") from None
    bunch = getattr(datasets, f"load_{name}")()
    return torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target, dtype=torch.int64)


def split(x: Tensor, y: Tensor, train: int, validate: int, key: Key) -> Split:
    order = torch.randperm(len(x), generator=random.generator(key))
    mean, deviation = x[order[:train]].mean(0), x[order[:train]].std(0)
    x = (x - mean) / deviation.clamp(min=1e-6)  # a pixel that is always dark stays 0
    x = torch.where(deviation > 1e-6, x, torch.zeros_like(x))
    parts = order.split([train, validate, len(x) - train - validate])
    return Split(*((x[part], y[part]) for part in parts))


def network(inputs: int, classes: int, key: Key) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, classes))
    for place, value in enumerate(model.parameters()):
        ids = torch.arange(value.numel()).reshape(value.shape)
        value.data.copy_(
            random.normal(key.fold(place), ids) / inputs**0.5 if value.ndim == 2 else torch.zeros_like(value)
        )
    return model


def train(
    loss: str, data: tuple[Tensor, Tensor], classes: int, rate: float, epochs: int, key: Key, decay: float = 0.0
) -> tuple[nn.Sequential, float]:
    """The network and the CPU-seconds that its training took."""
    x, y = data
    model = network(x.shape[1], classes, key.fold("weights"))
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    # Energies that are at least 0 by construction, where the loss asks for it.
    positive = loss.startswith("square")
    begun = time.process_time()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=random.generator(key.fold("order", epoch)))
        for start in range(0, len(x), BATCH):
            index = order[start : start + BATCH]
            energies = model(x[index])
            energies = nn.functional.softplus(energies) if positive else energies
            if loss == "contrastive":
                value = losses.contrastive(energies, y[index], index, key.fold("draw", epoch))
            else:
                value = losses.named(loss)(energies, y[index])
            optimiser.zero_grad()
            value.mean().backward()
            optimiser.step()
    return model, time.process_time() - begun


@torch.no_grad()
def energies_of(model: nn.Sequential, loss: str, x: Tensor) -> Tensor:
    energies = model(x)
    return nn.functional.softplus(energies) if loss.startswith("square") else energies


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T of least log loss with Platt's targets: (n + 1)/(n + 2) for the label (1999), the rest shared.

    With plain labels a validation set without a mistake asks for T = 0, and one mistake on the test set is then
    infinitely surprising.
    """
    n, classes = logits.shape
    sure = (n + 1) / (n + 2)
    target = torch.full_like(logits, (1 - sure) / (classes - 1)).scatter_(1, labels.unsqueeze(-1), sure).double()

    def loss(log_t: float) -> float:
        return -float((target * torch.log_softmax(logits.double() / math.exp(log_t), -1)).sum(-1).mean())

    return math.exp(optimize.minimize_scalar(loss, bounds=(-7.0, 7.0), method="bounded").x)


def run(loss: str, parts: Split, classes: int, epochs: int, key: Key) -> dict[str, float]:
    """The measures of one loss on one split; the rate is chosen on the validation part."""
    tried = []
    for rate in RATES:
        model, seconds = train(loss, parts.train, classes, rate, epochs, key)
        logits = -energies_of(model, loss, parts.validate[0])
        temperature = fitted_temperature(logits, parts.validate[1])
        log_p = torch.log_softmax(logits / temperature, -1)
        right = float(calibration.accuracy(log_p, parts.validate[1]))
        doubt = float(calibration.log_loss(log_p, parts.validate[1]))
        tried.append((-right, doubt, rate, temperature, seconds, model))
    _, _, rate, temperature, seconds, model = min(tried, key=lambda row: row[:3])
    x, y = parts.test
    energies = energies_of(model, loss, x)
    found = {"temperature": temperature, "seconds": seconds, "rate": rate}
    for suffix, t in (("_1", 1.0), ("", temperature)):
        log_p = torch.log_softmax(-energies / t, -1)
        found["accuracy"] = float(calibration.accuracy(log_p, y))
        found["log_loss" + suffix] = float(calibration.log_loss(log_p, y))
        found["ece" + suffix] = float(calibration.calibration_error(log_p, y))
    low, high = losses.right_and_wrong(energies, y)
    found["gap"] = float((high - low).median())
    return found


def collapse(x: Tensor, y: Tensor, seeds: int, epochs: int, key: Key) -> dict[str, dict[str, list[list[float]]]]:
    """Per loss and decay of the weights, per seed: median gap on the training part, and test accuracy; digits."""
    rows: dict[str, dict[str, list[list[float]]]] = {}
    for loss in ("perceptron", "hinge", "log"):
        rows[loss] = {}
        for decay in (0.0, 1e-3, 1e-2):
            found = []
            for seed in range(seeds):
                here = key.fold("collapse", seed)
                parts = split(x, y, *SETS["digits"], here.fold("split"))
                model, _ = train(loss, parts.train, 10, 3e-3, epochs, here, decay)
                right, wrong = losses.right_and_wrong(energies_of(model, loss, parts.train[0]), parts.train[1])
                hits = energies_of(model, loss, parts.test[0]).argmin(-1) == parts.test[1]
                found.append([float((wrong - right).median()), float(hits.double().mean())])
            rows[loss][f"{decay:g}"] = found
    return rows


def novikoff(x: Tensor, y: Tensor, pairs: list[tuple[int, int]]) -> list[dict[str, float]]:
    """Mistakes of Rosenblatt's rule against the bound by the widest margin found (a linear machine, hard margin)."""
    from sklearn.svm import SVC

    rows = []
    for one, other in pairs:
        chosen = (y == one) | (y == other)
        features = torch.cat([x[chosen] / 16, torch.ones(int(chosen.sum()), 1)], -1).double()
        signs = torch.where(y[chosen] == one, 1.0, -1.0).double()
        _, mistakes = losses.perceptron_mistakes(features, signs)
        machine = SVC(kernel="linear", C=1e6).fit(features[:, :-1].numpy(), signs.numpy())
        plane = torch.tensor(np.concatenate([machine.coef_[0], machine.intercept_]), dtype=torch.float64)
        rows.append(
            {"one": one, "other": other, "mistakes": mistakes, "bound": losses.mistake_bound(features, signs, plane)}
        )
    return rows


@themed
def draw_measures(results: dict[str, dict[str, list[dict[str, float]]]]) -> Figure:
    shown = (("accuracy", "Test accuracy"), ("log_loss", "Log loss, T fitted"), ("ece_1", "Calibration error, T = 1"))
    figure, axes = canvas(11.0, 2.2 * len(results) + 0.9, len(results), len(shown))
    figure.subplots_adjust(left=0.155, right=0.985, top=0.91, bottom=0.07, wspace=0.12, hspace=0.42)
    for row, (name, of_loss) in enumerate(results.items()):
        for column, (measure, title) in enumerate(shown):
            panel = axes[row, column]
            for place, loss in enumerate(LOSSES):
                values = [run[measure] for run in of_loss[loss]]
                found = statistics.estimate([values])
                colour = COLOURS[place % len(COLOURS)]
                panel.plot(values, [place] * len(values), ".", color=colour, alpha=0.35, markersize=5)
                if np.isfinite(found.low):
                    panel.plot([found.low, found.high], [place, place], color=colour, linewidth=4, alpha=0.5)
                panel.plot([found.value], [place], "o", color=colour, markersize=6)
            panel.set_yticks(range(len(LOSSES)), [loss.replace("_", "-") for loss in LOSSES] if column == 0 else [])
            panel.set_ylim(len(LOSSES) - 0.5, -0.5)
            panel.grid(axis="y", visible=False)
            if measure != "accuracy":
                panel.set_xscale("log")
                panel.minorticks_off()
                low, high = panel.get_xlim()
                ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if low <= t <= high]
                panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
            if row == 0:
                panel.set_title(title, pad=18)
            subtitle(panel, name.replace("_", " "))
    return figure


def plain_decades(panel: Any) -> None:
    """Powers of ten as plain numbers: the figures draw no mathematics."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


@themed
def draw_collapse(rows: dict[str, dict[str, list[list[float]]]]) -> Figure:
    figure, [[left, right]] = canvas(9.6, 3.8, 1, 2)
    figure.subplots_adjust(left=0.08, right=0.97, top=0.83, bottom=0.14, wspace=0.22)
    for colour, (loss, of_decay) in zip(COLOURS, rows.items(), strict=False):
        for panel, column in ((left, 0), (right, 1)):
            values = [[run[column] for run in found] for found in of_decay.values()]
            found = [statistics.estimate([v]) for v in values]
            place = np.arange(len(values))
            panel.plot(place, [f.value for f in found], "o-", color=colour, label=loss)
            panel.fill_between(place, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.15)
            panel.set_xticks(place, [f"{float(d):g}" for d in of_decay])
            panel.set_xlabel("weight decay")
    plain_decades(left)
    left.set_title("Gap between wrong and right energy", pad=20)
    subtitle(left, "median over the training digits")
    right.set_title("Test accuracy", pad=20)
    subtitle(right, "bands: 95 % intervals over seeds")
    right.legend(frameon=False, labelcolor=SOFT, fontsize=9)
    return figure


def plain(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 2 else f"{value:.4f}"


def shown(values: list[float]) -> str:
    found = statistics.estimate([values])
    return f"{plain(found.value)} [{plain(found.low)}, {plain(found.high)}]" if len(values) > 1 else plain(found.value)


def middle(runs: list[dict[str, float]], measure: str) -> float:
    return float(statistics.interquartile_mean([run[measure] for run in runs]))


def report(
    given: argparse.Namespace,
    results: dict[str, dict[str, list[dict[str, float]]]],
    flat: dict[str, dict[str, list[list[float]]]],
    mistakes: list[dict[str, float]],
) -> Path:
    sections = []

    def moved(name: str, loss: str) -> str:
        """The calibration error before and after the fit of T."""
        return f"{middle(results[name][loss], 'ece_1'):.3f} to {middle(results[name][loss], 'ece'):.3f}"

    numbers: dict[str, object] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()},
        "runs": results, "collapse": flat, "mistakes": mistakes,
    }  # fmt: skip
    verdicts, differences = [], {}
    for name, of_loss in results.items():
        rows = []
        for loss in LOSSES:
            values = {m: [run[m] for run in of_loss[loss]] for m in MEASURES}
            rows.append([loss.replace("_", "-"), *(shown(values[m]) for m in MEASURES)])
        best = max(LOSSES, key=lambda loss: statistics.estimate([[r["accuracy"] for r in of_loss[loss]]]).value)
        surest = min(LOSSES, key=lambda loss: statistics.estimate([[r["log_loss"] for r in of_loss[loss]]]).value)
        verdicts.append(
            f"{name.replace('_', ' ')}: the highest accuracy is {best.replace('_', '-')}'s, the lowest log loss (fitted T) "
            f"{surest.replace('_', '-')}'s."
        )
        against = []
        for loss in LOSSES[1:]:
            row = [loss.replace("_", "-")]
            for measure in ("accuracy", "log_loss", "ece_1"):
                gap = statistics.difference(
                    [[r[measure] for r in of_loss[loss]]], [[r[measure] for r in of_loss["perceptron"]]]
                )
                differences[f"{name}/{loss}/{measure}"] = list(gap)
                sign = "" if not gap.p < 0.05 else " *"
                row.append(f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]{sign}")
            against.append(row)
        sections.append(
            Section(
                name.replace("_", " ").capitalize(),
                f"Interquartile means over {given.seeds} seeds with 95 % intervals. {verdicts[-1]}",
                Table(["loss", *MEASURES.values()], rows),
            )
        )
        sections.append(
            Section(
                f"{name.replace('_', ' ').capitalize()}: each loss less the perceptron, same splits and weights",
                "A star: the two-sided p-value of the paired difference is below .05, not corrected for how many there are.",
                Table(["loss", "accuracy", "log loss, T fitted", "ECE, T = 1"], against),
            )
        )
    numbers["differences_to_perceptron"] = differences
    gaps = {loss: statistics.estimate([[run[0] for run in of_decay["0.01"]]]).value for loss, of_decay in flat.items()}
    last = all(
        min(LOSSES, key=lambda loss: middle(of_loss[loss], "accuracy")) == "perceptron" for of_loss in results.values()
    )
    sections.insert(
        0,
        Section(
            "All losses at a glance",
            "\n\n".join(
                [
                    "Every dot is a run, bars are 95 % intervals of the interquartile mean. " + " ".join(verdicts)
                    + (" The perceptron has the lowest accuracy everywhere; of the others" if last else " Of the losses")
                    + " most intervals overlap, and none is clearly the best.",
                    "A loss that stops pushing at a gap of its own choice (perceptron, hinge, square-square) does not set "
                    "the scale of the energies, so that Gibbs at T = 1 is badly calibrated; one temperature fitted on "
                    f"held-out data repairs most of that (ECE on the digits, perceptron {moved('digits', 'perceptron')}, "
                    f"hinge {moved('digits', 'hinge')}, square-square {moved('digits', 'square_square')}). It does not "
                    "repair the log loss: see the differences to the perceptron below.",
                    "The likelihood sets the scale itself, and too sharply (its fitted T is "
                    f"{middle(results['digits']['nll'], 'temperature'):.2f} on the digits). Where the validation set is tiny "
                    f"the fit does harm instead: ECE on wine, with 40 examples, nll {moved('wine', 'nll')}.",
                    "With two classes the log loss and the likelihood are the same function, hence the same rows on breast "
                    "cancer. The contrastive loss, which sees one drawn wrong answer instead of all, gives the likelihood's "
                    "gradient with noise: it costs no less here, and would pay only where answers cannot be listed.",
                ]
            ),
            figure=draw_measures(results), stem="measures", caption="Eight losses on the same networks and splits.",
        ),
    )  # fmt: skip
    sections.append(
        Section(
            "The collapse of the perceptron",
            "The perceptron loss is 0 for an energy that does not distinguish anything, the hinge's is its margin. Without "
            "any pull on the weights descent stops at small gaps, and still classifies. With weight decay nothing holds "
            f"the perceptron's gap open: at .01 the median gap is {gaps['perceptron']:.3g}, the hinge's {gaps['hinge']:.3g} "
            "(LeCun et al. 2006, section 2.2.2).",
            Table(
                ["loss, decay", "median gap", "test accuracy"],
                [
                    [f"{loss}, {decay}", shown([r[0] for r in runs]), shown([r[1] for r in runs])]
                    for loss, of_decay in flat.items()
                    for decay, runs in of_decay.items()
                ],
            ),
            draw_collapse(flat), "collapse", "Gap and accuracy against the pull on the weights, on digits.",
        )
    )  # fmt: skip
    sections.append(
        Section(
            "How often Rosenblatt's rule is wrong",
            "A linear perceptron on pairs of digits, one example at a time until none is wrong; the bound uses the plane of "
            "a hard-margin support vector machine. The bound holds, and is far from tight.",
            Table(
                ["pair", "mistakes", "(R/gamma)^2"],
                [
                    [f"{int(r['one'])}, {int(r['other'])}", f"{r['mistakes']:.0f}", f"{r['bound']:.0f}"]
                    for r in mistakes
                ],
            ),
        )
    )
    return write_experiment(
        given.out,
        "An energy-based classifier by eight losses",
        "What the loss does to the accuracy, the calibration and the cost of one and the same network E(x, y).",
        sections,
        numbers,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/energy-based-classifier"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="splits and initial weights (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="of each run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 seeds, 5 epochs")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.seeds, known.epochs = min(known.seeds, 3), min(known.epochs, 5)
    if known.seeds < 1 or known.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1.")
    return known


def main() -> int:
    given = arguments()
    key = Key.of(0)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    try:
        with Progress(given.quiet) as progress:
            progress.add("runs", given.seeds * len(LOSSES) * len(SETS))
            done = 0
            for name, (train_size, validate_size) in SETS.items():
                x, y = load(name)
                classes = int(y.max()) + 1
                results[name] = {loss: [] for loss in LOSSES}
                # Small sets get as many updates as large ones.
                epochs = round(given.epochs * 1000 / train_size)
                for seed, loss in itertools.product(range(given.seeds), LOSSES):
                    progress.update("runs", done, f"{name}, {loss}")
                    here = key.fold(name, seed)
                    parts = split(x, y, train_size, validate_size, here.fold("split"))
                    results[name][loss].append(run(loss, parts, classes, epochs, here))
                    done += 1
            progress.update("runs", done)
        x, y = load("digits")
        flat = collapse(x, y, given.seeds, given.epochs, key)
        mistakes = novikoff(x, y, [(0, 1), (3, 8), (4, 9), (1, 8), (5, 6), (7, 9)])
        page = report(given, results, flat, mistakes)
    except MfmarlError as error:
        print(f"energy_based_classifier: {error}", file=sys.stderr)
        return error.exit_code
    for name, of_loss in results.items():
        print(f"{name:<20}{'accuracy':>26}{'log loss, T fitted':>28}{'ECE, T = 1':>28}{'CPU-s':>10}")
        for loss in LOSSES:
            row = [shown([r[m] for r in of_loss[loss]]) for m in ("accuracy", "log_loss", "ece_1")]
            cost = statistics.estimate([[r["seconds"] for r in of_loss[loss]]]).value
            print(f"{loss:<20}{row[0]:>26}{row[1]:>28}{row[2]:>28}{cost:>10.2f}")
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
