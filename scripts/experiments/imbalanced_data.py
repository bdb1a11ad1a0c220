"""Training on rare classes: importance sampling against uniform and re-weighted minibatches.

    python scripts/experiments/imbalanced_data.py            # about two CPU-minutes
    python scripts/experiments/imbalanced_data.py --quick    # under 40 s

Two data sets of scikit-learn, made rare: digits, "is it an 8?" (20 eights among 1,020 to learn from), and breast
cancer (13 malignant among 263); what is left over is the test set. One tanh network of 32 hidden units, SGD with
momentum, minibatches of 32, an equal number of steps; every method's rate is the best of four by its own objective.

Two objectives q (the natural shares of the classes; equal shares) times three ways P to draw examples, always with
weights q/P, so that the gradient is unbiased for its objective:

    uniform       P = 1/n: for equal shares this is the re-weighted loss
    by class      P balances the classes: for equal shares the weights are then 1
    by gradient   P in proportion to q times the norm of the last layer's gradient, refreshed every ten steps (a tenth
                  uniform), after Katharopoulos and Fleuret 2018 (ICML, arXiv 1803.00942)

1. the variance of the weights (share of examples that count, Pareto shape), and the exact variance of the gradients;
2. convergence of the objective; 3. generalisation, with and without the correction of the prior; 4. the intercept of a
logistic regression where the truth is known: log(pi/(1 - pi)) = -4.5951 at pi = .01.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.evaluation import statistics
from mfmarl.evaluation.drawing import COLOURS, SOFT, canvas, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.random import Key
from mfmarl.statmech import imbalance, importance, weighted_sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OBJECTIVES, SAMPLERS = ("natural", "equal"), ("uniform", "by class", "by gradient")
METHODS = tuple(itertools.product(OBJECTIVES, SAMPLERS))
RATES = (0.003, 0.01, 0.03, 0.1)
HIDDEN, BATCH, EVERY, REFRESH, FLOOR = 32, 32, 20, 10, 0.1
SETS = {"digits": (1000, 20), "breast_cancer": (250, 13)}
"""Common and rare examples to learn from."""


class Data(NamedTuple):
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    shares: Tensor
    """[2] of the classes to learn from."""


def load(name: str, key: Key) -> Data:
    """Common examples are class 0, rare ones class 1; standardised by what is learned from."""
    try:
        from sklearn import datasets
    except ImportError:
        raise ConfigError("This experiment's data come with scikit-learn: pip install scikit-learn.") from None
    bunch = getattr(datasets, f"load_{name}")()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    y = torch.tensor((bunch.target == (8 if name == "digits" else 0)).astype(np.int64))
    order = torch.randperm(len(x), generator=random.generator(key))
    x, y = x[order], y[order]
    common, rare = (y == 0).nonzero().squeeze(-1), (y == 1).nonzero().squeeze(-1)
    many, few = SETS[name]
    learn = torch.cat([common[:many], rare[:few]])
    test = torch.cat([common[many:], rare[few:]])
    mean, deviation = x[learn].mean(0), x[learn].std(0)
    x = torch.where(deviation > 1e-6, (x - mean) / deviation.clamp(min=1e-6), torch.zeros_like(x)).clamp(-5, 5)
    return Data(x[learn], y[learn], x[test], y[test], imbalance.class_shares(y[learn], 2))


class Network(nn.Module):
    def __init__(self, inputs: int, key: Key) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN, 2)
        for place, layer in enumerate((self.first, self.last)):
            ids = torch.arange(layer.weight.numel()).reshape(layer.weight.shape)
            layer.weight.data.copy_(random.normal(key.fold(place), ids) / layer.in_features**0.5)
            layer.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())

    @torch.no_grad()
    def last_gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """The norm of every example's gradient in the last layer, [n]: |p - y| sqrt(|hidden|^2 + 1)."""
        hidden = self.first(x).tanh()
        away = torch.softmax(self.last(hidden), -1) - nn.functional.one_hot(y, 2)
        return away.norm(dim=-1) * (hidden.square().sum(-1) + 1).sqrt()


def target(data: Data, objective: str) -> Tensor:
    """q [n], sums to 1."""
    if objective == "equal":
        return imbalance.sample_probabilities(data.y, 2)
    return torch.full((len(data.y),), 1 / len(data.y), dtype=torch.float64)


def proposal(model: Network, data: Data, q: Tensor, sampler: str) -> Tensor:
    """P [n], sums to 1."""
    if sampler == "uniform":
        return torch.full_like(q, 1 / len(q))
    if sampler == "by class":
        return imbalance.sample_probabilities(data.y, 2)
    wanted = weighted_sampling.replay_probabilities(q * model.last_gradients(data.x, data.y).double(), 1.0)
    return (1 - FLOOR) * wanted + FLOOR / len(q)


def prior(data: Data, objective: str) -> Tensor:
    return torch.full((2,), 0.5, dtype=torch.float64) if objective == "equal" else data.shares


@torch.no_grad()
def scores(model: Network, data: Data, objective: str) -> dict[str, float]:
    """On the test set: as it would be in a world with the natural shares (by weights), and in one with equal shares."""
    logits = model(data.test_x)
    found: dict[str, float] = {}
    present = imbalance.class_shares(data.test_y, 2)
    for world, shares in (("natural", data.shares), ("equal", torch.full((2,), 0.5, dtype=torch.float64))):
        weight = imbalance.class_weights(present, shares)[data.test_y]
        for corrected, here in (
            ("", imbalance.prior_shift(logits, prior(data, objective), shares)),
            (" as is", logits),
        ):
            loss = cross_entropy(here.double(), data.test_y, reduction="none")
            found[f"log loss, {world}{corrected}"] = float((weight * loss).mean())
            hit = (here.argmax(-1) == data.test_y).double()
            found[f"accuracy, {world}{corrected}"] = float((weight * hit).mean())
    odds = (logits[:, 1] - logits[:, 0]).double()
    rare, common = odds[data.test_y == 1], odds[data.test_y == 0]
    pairs = rare.unsqueeze(-1) - common
    found["AUC"] = float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())
    return found


@torch.no_grad()
def losses_on_training(model: Network, data: Data) -> Tensor:
    """Natural and equal objective, [2]."""
    loss = cross_entropy(model(data.x), data.y, reduction="none").double()
    return torch.stack([(target(data, objective) * loss).sum() for objective in OBJECTIVES])


class Trained(NamedTuple):
    model: Network
    curve: list[float]
    """The own objective on the training set, every 20 steps."""
    share: float
    """1/sum q^2/P: the share of drawn examples that count, mean over the steps."""
    log_weights: Tensor
    """Of all examples drawn."""
    kept: dict[int, Network]


def train(
    data: Data, objective: str, sampler: str, rate: float, steps: int, key: Key, keep: tuple[int, ...] = ()
) -> Trained:
    model = Network(data.x.shape[1], key.fold("weights"))
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    q = target(data, objective)
    p = proposal(model, data, q, sampler)
    curve, share, drawn, kept = [], [], [], {}
    ids = torch.arange(BATCH)
    for step in range(steps + 1):
        if step % EVERY == 0:
            curve.append(float(losses_on_training(model, data)[OBJECTIVES.index(objective)]))
        if step in keep:
            kept[step] = Network(data.x.shape[1], key)
            kept[step].load_state_dict(model.state_dict())
        if step == steps:
            break
        if sampler == "by gradient" and step % REFRESH == 0:
            p = proposal(model, data, q, sampler)
        index = weighted_sampling.draw(p, ids, key.fold("draw", step))
        weight = q[index] / p[index]
        loss = (weight.float() * cross_entropy(model(data.x[index]), data.y[index], reduction="none")).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        share.append(1 / float((q * q / p).sum()))
        drawn.append(weight.log())
    return Trained(model, curve, float(np.mean(share)), torch.cat(drawn), kept)


def gradient_variance(model: Network, data: Data, ideal: bool = False) -> dict[str, float]:
    """The trace of the covariance of a single example's weighted gradient, exactly, over the squared mean gradient.

    (sum q^2 |g|^2/P - |g mean|^2)/|g mean|^2; a minibatch has 1/32 of it. `ideal` draws by the norm of all of g.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, values, (x.unsqueeze(0),))
        return cross_entropy(logits, y.unsqueeze(0))

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, data.x, data.y)
    g = torch.cat([value.detach().flatten(1) for value in each.values()], -1).double()
    squares = g.square().sum(-1)
    found = {}
    for objective, sampler in METHODS:
        q = target(data, objective)
        if ideal and sampler == "by gradient":
            p = (1 - 1e-9) * q * squares.sqrt() / (q * squares.sqrt()).sum() + 1e-9 / len(q)
        else:
            p = proposal(model, data, q, sampler)
        mean = (q @ g).square().sum()
        found[f"{objective}, {sampler}"] = float(((q * q / p * squares).sum() - mean) / mean)
    return found


def intercepts(seeds: int, key: Key, count: int = 5000, share: float = 0.01) -> dict[str, list[float]]:
    """Of logistic regressions on two unit Gaussians at -1 and 1: the truth is (log-odds of the share, slope 2).

    Fitted to the natural and to equal shares (Newton, a ridge of 1e-6), the latter as it is and corrected.
    """
    found: dict[str, list[float]] = {"natural shares": [], "equal shares, as is": [], "equal shares, corrected": []}
    for seed in range(seeds):
        ids = torch.arange(count)
        y = (random.uniform(key.fold("label", seed), ids) < share).double()
        x = random.normal(key.fold("x", seed), ids).double() + 2 * y - 1
        features = torch.stack([torch.ones_like(x), x], -1)
        shares = imbalance.class_shares(y.long(), 2)
        for name, weight in (("natural", torch.ones_like(x)), ("equal", imbalance.class_weights(shares)[y.long()])):
            theta = torch.zeros(2, dtype=torch.float64)
            for _ in range(50):
                chance = torch.sigmoid(features @ theta)
                slope = features.mT @ (weight * (y - chance))
                bend = features.mT @ (features * (weight * chance * (1 - chance)).unsqueeze(-1))
                theta = theta + torch.linalg.solve(bend + 1e-6 * torch.eye(2, dtype=torch.float64), slope)
            if name == "natural":
                found["natural shares"].append(float(theta[0]))
            else:
                found["equal shares, as is"].append(float(theta[0]))
                found["equal shares, corrected"].append(float(theta[0]) + imbalance.intercept(float(shares[1])))
    return found


# ------------------------------------------------------------------------------------------ figures and tables


def plain_decades(panel: Any) -> None:
    """Powers of ten as plain numbers: the figures draw no mathematics."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


@themed
def draw_convergence(results: dict[str, dict[str, list[dict[str, Any]]]]) -> Figure:
    figure, axes = canvas(10.4, 3.3 * len(results), len(results), 2)
    figure.subplots_adjust(left=0.08, right=0.985, top=0.93, bottom=0.075, wspace=0.17, hspace=0.38)
    for row, (name, of_method) in enumerate(results.items()):
        for column, objective in enumerate(OBJECTIVES):
            panel = axes[row, column]
            for colour, sampler in zip(COLOURS, SAMPLERS, strict=False):
                curves = np.array([run["curve"] for run in of_method[f"{objective}, {sampler}"]])
                place = np.arange(curves.shape[1]) * EVERY
                band = statistics.curve(np.log(curves))
                panel.plot(place, np.exp(band.value), color=colour, label=sampler)
                panel.fill_between(
                    place, np.exp(band.low), np.exp(band.high), color=colour, alpha=0.15, linewidth=0
                )  # fmt: skip
            plain_decades(panel)
            panel.set_title(f"{name.replace('_', ' ')}: {objective} shares", pad=20)
            subtitle(panel, "own objective on the training set, 95 % band over seeds")
            panel.set_xlabel("steps" if row == len(results) - 1 else "")
    axes[0, 0].legend(frameon=False, labelcolor=SOFT, fontsize=9)
    return figure


@themed
def draw_variances(variances: dict[str, dict[str, dict[str, list[float]]]]) -> Figure:
    figure, axes = canvas(10.4, 4.0, 1, len(variances))
    figure.subplots_adjust(left=0.08, right=0.985, top=0.85, bottom=0.21, wspace=0.17)
    for panel, (name, of_stage) in zip(axes[0], variances.items(), strict=True):
        for number, objective in enumerate(OBJECTIVES):
            for colour, sampler in zip(COLOURS, SAMPLERS, strict=False):
                means = [statistics.estimate([of_stage[stage][f"{objective}, {sampler}"]]).value for stage in of_stage]
                panel.plot(
                    range(len(means)), means, "o-" if number == 0 else "s--", color=colour,
                    markerfacecolor=colour if number == 0 else "none", label=f"{objective}, {sampler}",
                )  # fmt: skip
        panel.set_xticks(range(len(of_stage)), list(of_stage))
        plain_decades(panel)
        panel.set_title(name.replace("_", " "), pad=20)
        subtitle(panel, "variance of one example's gradient over the squared mean")
        panel.set_xlabel("steps of training before")
    names, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(names, labels, frameon=False, labelcolor=SOFT, fontsize=8, ncols=6, loc="lower center")
    return figure


def plain(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.4f}"


def shown(values: list[float]) -> str:
    if not values:
        return "-inf"
    found = statistics.estimate([values])
    return f"{plain(found.value)} [{plain(found.low)}, {plain(found.high)}]" if len(values) > 1 else plain(found.value)


def pareto(log_weights: Tensor) -> float | None:
    """The Pareto shape, or None where the weights are all alike: -inf is no JSON."""
    shape = float(importance.pareto_shape(log_weights))
    return shape if math.isfinite(shape) else None


def middle(values: list[float]) -> float:
    return float(statistics.interquartile_mean(values))


def ratio(of_method: dict[str, list[dict[str, Any]]], first: str, second: str, measure: str) -> tuple[str, list[float]]:
    """The paired ratio of two methods in words, and as numbers: differences of logarithms."""
    logs = [[math.log(run[measure]) for run in of_method[method]] for method in (first, second)]
    gap = statistics.difference(logs[:1], logs[1:])
    words = "no clear difference" if not gap.p < 0.05 else ("slower" if gap.value > 0 else "faster")
    found = [math.exp(number) for number in gap[:3]]
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}], {words}", [*found, gap.p]


def against(
    of_method: dict[str, list[dict[str, Any]]], first: str, second: str, measure: str
) -> tuple[str, list[float]]:
    """The paired difference of two methods in words, and as numbers."""
    gap = statistics.difference([[r[measure] for r in of_method[first]]], [[r[measure] for r in of_method[second]]])
    words = "no clear difference" if not gap.p < 0.05 else ("higher" if gap.value > 0 else "lower")
    return f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], {words}", list(gap)


def report(
    given: argparse.Namespace,
    results: dict[str, dict[str, list[dict[str, Any]]]],
    variances: dict[str, dict[str, dict[str, list[float]]]],
    fits: dict[str, list[float]],
) -> Path:
    weights, sections = [], []
    for name, of_method in results.items():
        for method, runs in of_method.items():
            weights.append(
                [f"{name.replace('_', ' ')}: {method}", shown([r["share"] for r in runs]), shown([r["pareto"] for r in runs if r["pareto"] is not None]),
                 shown([r["largest"] for r in runs])]
            )  # fmt: skip
    rows = []
    for name, of_stage in variances.items():
        for objective, sampler in METHODS:
            method = f"{objective}, {sampler}"
            rows.append(
                [f"{name.replace('_', ' ')}: {method}", *(shown(of_stage[stage][method]) for stage in of_stage)]
            )
    factors = {
        name: {
            objective: [
                middle(of_stage[stage][f"{objective}, uniform"]) / middle(of_stage[stage][f"{objective}, by gradient"])
                for stage in of_stage
            ]
            for objective in OBJECTIVES
        }
        for name, of_stage in variances.items()
    }
    spans = "; ".join(
        f"{name.replace('_', ' ')}, {objective} shares: {' / '.join(f'{f:.2g}' for f in of_objective)}"
        for name, of in factors.items()
        for objective, of_objective in of.items()
    )
    sections.append(
        Section(
            "The variance of the weights",
            "How much the weights q/P spread: the share of drawn examples that count (1 over sum q^2/P, mean over the "
            "steps), the Pareto shape of all weights drawn in a run (above .7 an average with these weights would not be "
            "usable; where weights take two values it is far below 0, or -inf), and the largest weight. Draws by gradient "
            "under equal shares set off the alarm: their weights are enormous where gradients are tiny, which an average "
            "of anything but the gradient would suffer from.",
            Table(["data and method", "share that counts", "Pareto k", "largest weight"], weights),
        )
    )
    sections.append(
        Section(
            "The variance of the gradients",
            "Computed from every example's own gradient, not sampled, at the same three networks for all methods. What "
            "matters is not the spread of the weights but that of weight times gradient: drawing by gradient has the more "
            "uneven weights and the steadier gradient.\n\nUniform draws have so many times the variance of draws by "
            f"gradient, at the three stages: {spans}. Below 1 would be a loss.",
            Table(["data and method", *next(iter(variances.values()))], rows),
            draw_variances(variances), "gradient_variance",
            "Solid: natural shares, dashed and hollow: equal shares.",
        )
    )  # fmt: skip
    lines, gaps = [], {}
    for name, of_method in results.items():
        for objective in OBJECTIVES:
            for sampler in SAMPLERS[1:]:
                for measure, what in (("area", "mean objective over the run"), ("final", "objective at the end")):
                    words, number = ratio(of_method, f"{objective}, {sampler}", f"{objective}, uniform", measure)
                    gaps[f"{name}/{objective}/{sampler}/{measure}"] = number
                    lines.append([f"{name.replace('_', ' ')}: {objective} shares, {sampler}", what, words])
    sections.append(
        Section(
            "Convergence",
            "Each method's own objective on the training data, over that of uniform draws for the same objective (paired by "
            "seed, geometric means; below 1 is faster). Where the weights were worst, equal shares from uniform draws, "
            "drawing otherwise helps most. Under natural shares a gradient many times as steady buys little (a plausible "
            "reason, not tested here: momentum averages noise away, and every method has the rate that suits it), and by "
            "gradient is hardly ahead of by class.",
            Table(["data and method", "measure", "over uniform draws"], lines),
            draw_convergence(results), "convergence", "Log scale; the rate is the best of four for each method.",
        )
    )  # fmt: skip
    for name, of_method in results.items():
        measures = ("AUC", "accuracy, equal", "accuracy, equal as is", "log loss, equal", "log loss, natural",
                    "log loss, natural as is")  # fmt: skip
        best = max(of_method, key=lambda m: middle([r["AUC"] for r in of_method[m]]))
        words, number = against(of_method, "equal, by class", "equal, uniform", "AUC")
        gaps[f"{name}/AUC/equal by class - re-weighted"] = number
        harm = middle([r["log loss, natural"] - r["log loss, natural as is"] for r in of_method["equal, by class"]])

        def value(method: str, measure: str, runs: dict[str, list[dict[str, Any]]] = of_method) -> float:
            return middle([r[measure] for r in runs[method]])

        more, number = against(of_method, "natural, by gradient", "natural, uniform", "AUC")
        gaps[f"{name}/AUC/natural by gradient - uniform"] = number
        sections.append(
            Section(
                f"Generalisation: {name.replace('_', ' ')}",
                f"On the test set, weighted to the shares of either world. The highest AUC is that of {best}. Balanced draws "
                f"against the re-weighted loss, AUC: {words}. Drawing by gradient against uniform, natural shares, AUC: {more}."
                "\n\nThe prior: trained for natural shares and asked in a world of equal ones, balanced accuracy is "
                f"{value('natural, uniform', 'accuracy, equal as is'):.3f} as it is and "
                f"{value('natural, uniform', 'accuracy, equal'):.3f} with log(target/train) added, which needs no training; "
                f"trained for equal shares it is {value('equal, uniform', 'accuracy, equal'):.3f} (re-weighted) and "
                f"{value('equal, by class', 'accuracy, equal'):.3f} (balanced draws). The other way it "
                f"{'does harm' if harm > 0 else 'helps'}: log loss in the natural world of balanced draws is "
                f"{value('equal, by class', 'log loss, natural as is'):.4f} as it is and "
                f"{value('equal, by class', 'log loss, natural'):.4f} corrected. A network that explains all its training "
                "data no longer carries the shares it was trained with in its logits (compare Byrd and Lipton 2019, ICML: "
                "the effect of importance weights on deep networks fades), so the formula, exact for a calibrated model, "
                "corrects what is not there. The logistic regressions below are where it is exact.",
                Table(["method", *measures], [[m, *(shown([r[k] for r in runs]) for k in measures)] for m, runs in of_method.items()]),
            )
        )  # fmt: skip
    truth = imbalance.intercept(0.01)

    def wrong(fit: str) -> float:
        return math.sqrt(np.mean([(value - truth) ** 2 for value in fits[fit]]))

    sections.append(
        Section(
            "Where the truth is known",
            f"Logistic regression on 5,000 points of two Gaussians, 1 % in the rare one; the true intercept is {truth:.4f}. "
            "Fitted to equal shares it comes out near 0, and the correction by the shares of the sample brings it back: root "
            f"mean squared error {wrong('natural shares'):.3f} of the natural fit, {wrong('equal shares, corrected'):.3f} of "
            f"the corrected one, over {len(fits['natural shares'])} samples.",
            Table(
                ["fit", "intercept", "root mean squared error"],
                [[fit, shown(v), plain(wrong(fit))] for fit, v in fits.items()],
            ),
        )
    )
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
    numbers = {
        "settings": settings, "runs": results, "gradient_variance": variances, "variance_factors": factors,
        "differences": gaps, "intercepts": fits,
    }  # fmt: skip
    return write_experiment(
        given.out,
        "Importance-sampled training on imbalanced data",
        "Two objectives times three ways to draw minibatches: what the draws do to the weights, the gradients, the "
        "convergence and the test scores.",
        sections,
        numbers,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/imbalanced-data"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="splits and initial weights (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 seeds, 200 steps")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.seeds, known.steps = min(known.seeds, 3), min(known.steps, 200)
    if known.seeds < 1 or known.steps < EVERY:
        parser.error(f"--seeds must be at least 1 and --steps at least {EVERY}.")
    return known


def main() -> int:
    given = arguments()
    key = Key.of(0)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    variances: dict[str, dict[str, dict[str, list[float]]]] = {}
    stages = (0, given.steps // 4, given.steps)
    try:
        with Progress(given.quiet) as progress:
            progress.add("runs", len(SETS) * given.seeds * len(METHODS))
            done = 0
            for name in SETS:
                results[name] = {f"{objective}, {sampler}": [] for objective, sampler in METHODS}
                variances[name] = {str(stage): {method: [] for method in results[name]} for stage in stages}
                for seed in range(given.seeds):
                    here = key.fold(name, seed)
                    data = load(name, here.fold("split"))
                    for objective, sampler in METHODS:
                        progress.update("runs", done, f"{name}: {objective}, {sampler}")
                        tried = [(train(data, objective, sampler, rate, given.steps, here), rate) for rate in RATES]
                        # A rate that diverged has a NaN: it is the worst.
                        best, rate = min(tried, key=lambda row: row[0].curve[-1] if row[0].curve[-1] >= 0 else math.inf)
                        results[name][f"{objective}, {sampler}"].append(
                            {
                                **scores(best.model, data, objective),
                                "curve": best.curve, "area": float(np.mean(best.curve)), "final": best.curve[-1],
                                "rate": rate, "share": best.share,
                                "pareto": pareto(best.log_weights),
                                "largest": float(best.log_weights.max().exp()),
                            }
                        )  # fmt: skip
                        done += 1
                    # The networks on which all gradients are compared: those of the plainest training.
                    common = train(data, "natural", "uniform", 0.03, given.steps, here, keep=stages)
                    for stage, model in common.kept.items():
                        for method, value in gradient_variance(model, data).items():
                            variances[name][str(stage)][method].append(value)
            progress.update("runs", done)
        fits = intercepts(10 * given.seeds, key.fold("intercepts"))
        page = report(given, results, variances, fits)
    except MfmarlError as error:
        print(f"imbalanced_data: {error}", file=sys.stderr)
        return error.exit_code
    for name, of_method in results.items():
        print(
            f"{name:<22}{'share':>9}{'variance':>11}{'final objective':>28}{'AUC':>27}{'accuracy, equal':>27}{'as is':>10}"
        )
        for method, runs in of_method.items():
            noise = middle(variances[name][str(stages[1])][method])
            print(
                f"{method:<22}{middle([r['share'] for r in runs]):>9.3f}{noise:>11.3g}{shown([r['final'] for r in runs]):>28}"
                f"{shown([r['AUC'] for r in runs]):>27}{shown([r['accuracy, equal'] for r in runs]):>27}"
                f"{middle([r['accuracy, equal as is'] for r in runs]):>10.3f}"
            )
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
