r"""The crowd as something that is believed in: a hidden factor, of which a few peers are the evidence.

$$ p(n \mid m) = \mathrm{Multinomial}(n;\, k, \theta_m), \qquad q'(m) \propto p(n \mid m) \sum_{m'} B(m \mid m')\, q(m') $$

A population that acts by the shares theta (a point of the simplex) shows its state in what k of its members do. The
shares are one of K points theta_m, and which one is a hidden factor like any other, with a likelihood, transitions and
beliefs; so an agent's cost does not depend on how many others there are. (One factor for each other agent, as in
Ruiz-Serra, Sweeney and Harre 2024, arXiv 2411.07362, costs A^N.)

Without points: a Dirichlet distribution over the shares, whose prediction of k peers is the Dirichlet-multinomial
(exchangeable beliefs), and whose expected information is the value of looking at the crowd.

What agents expect of a sum over independent others is exact by the Poisson-binomial law, O(N^2); the utility of the
mean instead is off by O(1/N), and u'' Var / 2 takes that error away.

When two-valued agents infer the majority from k others and act by a draw from what they believe (likelihood ratio
e^{2w} a peer; Construction II), the mean of a crowd without end follows

$$ m' = E_{n \sim \mathrm{Bin}(k, (1 + m)/2)} \tanh(w (2n - k)), \qquad
   m' = \tanh(J m), \; J = k w \quad \text{where all are seen} $$

and orders where the slope at m = 0, E[(2n - k) tanh(w (2n - k))], passes 1: at w = .4753 for k = 3, never for k < 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.optimize import brentq
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference import dirichlet
from mfmarl.inference.model import GenerativeModel

_MOST = 1_000_000  # outcomes or points that a table may have

# ------------------------------------------------------------------------------- points and outcomes


def compositions(total: int, parts: int) -> Tensor:
    """All ways to count `total` in `parts` classes, int64 [O, parts]; of two classes, row n has n in the second.

    Raises ConfigError where there are more than a table can hold.
    """
    if total < 0 or parts < 1:
        raise ConfigError(f"Counts need a total of at least 0 in at least 1 class, not {total} in {parts}.")
    number = math.comb(total + parts - 1, parts - 1)
    if number > _MOST:
        raise ConfigError(
            f"{total} peers of {parts} actions have {number:.3g} different counts: sample fewer peers, or keep beliefs "
            "over points and weigh them by `log_likelihood`, which lists no counts."
        )
    rows = torch.zeros(1, 0, dtype=torch.int64)
    left = torch.full((1,), total, dtype=torch.int64)
    for _ in range(parts - 1):
        # Every row once for every number that its next class may hold, the most first.
        repeats = left + 1
        rows, held = rows.repeat_interleave(repeats, 0), left.repeat_interleave(repeats)
        start = (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
        left = torch.arange(len(held)) - start
        rows = torch.cat([rows, (held - left).unsqueeze(-1)], -1)
    return torch.cat([rows, left.unsqueeze(-1)], -1)


def number_of(counts: Tensor) -> Tensor:
    """The row of `compositions` that counts [*b, parts] are, int64 [*b]."""
    parts = counts.shape[-1]
    left, number = counts.sum(-1), torch.zeros_like(counts[..., 0])
    for i in range(parts - 1):
        # Before it stand the rows that hold more in this class: of what they leave, all ways to count it in the rest.
        left = left - counts[..., i]
        number = number + _choose(left + parts - 2 - i, parts - 1 - i)
    return number


def _choose(n: Tensor, k: int) -> Tensor:
    """Binomial coefficients of n [*b], 0 where n < k: exact, as whole numbers."""
    found = torch.ones_like(n)
    for j in range(k):
        found = found * (n - j) // (j + 1)
    return torch.where(n >= k, found, 0)


def simplex(actions: int, points: int, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""At most `points` evenly spread shares theta [K, A]: (c + 1/2) / (n + A/2) for all ways c to count n in A classes.

    Of two actions the middles of K = `points` equal intervals. None is 0: nothing that is seen is impossible. There
    are at least as many points as actions (n = 1).
    """
    if actions < 1 or points < 1:
        raise ConfigError(f"A crowd needs at least 1 action and 1 point, not {actions} and {points}.")
    if actions == 1 or points == 1:
        return torch.full((1, actions), 1 / actions, dtype=dtype)
    total = 1
    while math.comb(total + actions, actions - 1) <= points:
        total += 1
    counts = compositions(total, actions).to(dtype)
    return (counts + 0.5) / (total + actions / 2)


def likelihood(theta: Tensor, peers: int) -> Tensor:
    """P(counts of `peers` | theta) [O, K], outcomes in the order of `compositions`: Binomial, or Multinomial."""
    counts = compositions(peers, theta.shape[-1]).to(theta)
    return (log_ways(counts).unsqueeze(-1) + log_likelihood(theta, counts)).exp()


def log_likelihood(theta: Tensor, counts: Tensor) -> Tensor:
    """sum_a n_a ln theta_ma [*b, K] of counts [*b, A] (they need not be whole), up to `log_ways`, the same for all m."""
    return counts @ theta.log().transpose(-1, -2)


def log_ways(counts: Tensor) -> Tensor:
    """ln n! / (n_1! ... n_A!) [*b] of counts [*b, A]."""
    return torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)


def persistence(theta: Tensor, stay: float = 0.9, width: float | None = None) -> Tensor:
    """B [K, K] of a crowd that stays as it is with probability `stay`, and else moves: anywhere, or near (`width`).

    Near: with weights exp(-|theta - theta'|^2 / (2 width^2)) of the other points.
    """
    if not 0 <= stay <= 1:
        raise ConfigError(f"A crowd stays with a probability from 0 to 1, not {stay:g}.")
    if width is not None and not 0 < width < math.inf:
        raise ConfigError(f"The width of a crowd's steps must be positive, not {width:g}.")
    points = len(theta)
    here = torch.eye(points, dtype=theta.dtype, device=theta.device)
    if points == 1:
        return here
    weight = 1 - here
    if width is not None:
        distance = (theta.unsqueeze(0) - theta.unsqueeze(1)).square().sum(-1)
        nearest = distance.masked_fill(here.bool(), math.inf).amin(0)
        # Relative to the nearest point, so that a narrow kernel does not vanish altogether.
        weight = weight * torch.exp(-(distance - nearest).clamp(min=0) / (2 * width**2))
    return stay * here + (1 - stay) * weight / weight.sum(0)


# --------------------------------------------------------------------------- as part of a generative model


def with_crowd(
    own: GenerativeModel,
    theta: Tensor,
    peers: int,
    *,
    transitions: Tensor | None = None,
    first: Tensor | None = None,
    preferences: Tensor | None = None,
    beside: int | None = None,
) -> GenerativeModel:
    """An agent's own model with one factor and one modality more: a population, and what `peers` of it are seen to do.

    `theta` [K, A] are the population's states; `transitions` [K, K] (default: `persistence(theta)`) and `first` [K]
    (uniform) its B and D. The crowd's outcomes are the rows of `compositions(peers, A)`, with log-preferences
    `preferences` [O_crowd] (default: none). `beside` a modality m of the agent's own, preferences are of pairs
    [O_m, O_crowd]: that modality is then seen together with the crowd, as outcome o_m O_crowd + o_crowd.

    Raises ConfigError where shapes do not fit.
    """
    if theta.ndim != 2:
        raise ConfigError(f"The states of a crowd are shares [K, A] of its A actions, not {list(theta.shape)}.")
    theta = theta.to(device=own.device, dtype=own.dtype)
    points, factors = len(theta), len(own.sizes)
    seen = likelihood(theta, peers)
    moves = persistence(theta) if transitions is None else transitions.to(seen)
    begin = seen.new_full((points,), 1 / points) if first is None else first.to(seen)
    outcomes = len(seen)
    if own.timed and preferences is not None:
        raise ConfigError("Preferences over a crowd are given to models whose own preferences do not change in time.")
    A, C = [*own.A, seen], [*own.C, seen.new_zeros(outcomes)]
    A_factors, modalities = [*own.A_factors, (factors,)], [*own.modalities, "crowd"]
    if beside is None:
        if preferences is not None:
            if preferences.shape[-1] != outcomes:
                raise ConfigError(
                    f"{peers} peers have {outcomes} outcomes: preferences [{outcomes}], not {list(preferences.shape)}."
                )
            C[-1] = preferences.to(seen)
        if own.timed:
            C[-1] = C[-1].expand(1, outcomes)
    else:
        if not 0 <= beside < len(own.A):
            raise ConfigError(f"The agent has modalities 0..{len(own.A) - 1}; none is {beside}.")
        alone, parents = own.A[beside], own.A_factors[beside]
        shape = [own.outcomes[beside], outcomes]
        if preferences is None or list(preferences.shape[-2:]) != shape:
            given = None if preferences is None else list(preferences.shape)
            raise ConfigError(
                f"Preferences over {own.modalities[beside]!r} and the crowd must be {shape}, own outcomes by counts, not {given}."
            )
        lead = alone.ndim - 1 - len(parents)
        # [*p, O_m, 1, S_pa, ..., 1] x [O_crowd, 1, ..., K]
        pair = alone.unsqueeze(lead + 1).unsqueeze(-1) * seen.view(outcomes, *[1] * len(parents), points)
        A.pop(), C.pop(), A_factors.pop(), modalities.pop()
        A[beside], C[beside] = (
            pair.flatten(lead, lead + 1),
            (own.C[beside].unsqueeze(-1) + preferences.to(seen)).flatten(-2),
        )
        A_factors[beside], modalities[beside] = (*parents, factors), f"{own.modalities[beside]} and crowd"
    return GenerativeModel(
        A=tuple(A),
        B=(*own.B, moves),
        C=tuple(C),
        D=(*own.D, begin),
        E=own.E,
        A_factors=tuple(A_factors),
        B_factors=(*own.B_factors, (factors,)),
        B_controls=(*own.B_controls, ()),
        controls=own.controls,
        timed=own.timed,
        modalities=tuple(modalities),
        factors=(*own.factors, "population"),
    )


def chooser(actions: int, dtype: torch.dtype = torch.float64) -> GenerativeModel:
    """The model of an agent whose only state is what it chose last, and which sees that: one factor, one modality."""
    same = torch.eye(actions, dtype=dtype)
    return GenerativeModel(
        A=(same,),
        B=(same.unsqueeze(1).expand(actions, actions, actions).contiguous(),),
        C=(torch.zeros(actions, dtype=dtype),),
        D=(torch.full((actions,), 1 / actions, dtype=dtype),),
        modalities=("own",),
        factors=("choice",),
    )


def stage_game(payoff: Tensor, theta: Tensor, peers: int, transitions: Tensor | None = None) -> GenerativeModel:
    """A game that is played again and again against `peers` of a crowd: `payoff` [U, O] of own action and their counts.

    Utility of the model is the expected payoff, and the crowd that is met is the evidence for the next round.
    """
    own = chooser(payoff.shape[0], payoff.dtype)
    return with_crowd(own, theta, peers, transitions=transitions, preferences=payoff, beside=0)


# ----------------------------------------------------------------------------------- exchangeable beliefs


def expected_shares(alpha: Tensor) -> Tensor:
    """Mean of the shares [*b, A] that Dirichlet counts [*b, A] believe in."""
    return alpha / alpha.sum(-1, keepdim=True)


def log_predictive(alpha: Tensor, counts: Tensor) -> Tensor:
    """ln P(counts) [*b] of peers [*b, A] under Dirichlet counts [*b, A]: the Dirichlet-multinomial law."""
    total, peers = alpha.sum(-1), counts.sum(-1)
    seen = torch.lgamma(total) - torch.lgamma(total + peers)
    return log_ways(counts) + seen + (torch.lgamma(alpha + counts) - torch.lgamma(alpha)).sum(-1)


def observe(alpha: Tensor, counts: Tensor, forgetting: float = 0.0, prior: Tensor | None = None) -> Tensor:
    """Dirichlet counts [*b, A] after peers [*b, A] were seen: a <- a_0 + (1 - forgetting) (a - a_0) + n."""
    if not 0 <= forgetting <= 1:
        raise ConfigError(f"What is forgotten of the crowd is a share from 0 to 1, not {forgetting:g}.")
    if forgetting == 0:
        return alpha + counts
    floor = torch.zeros_like(alpha) if prior is None else prior
    return floor + (1 - forgetting) * (alpha - floor) + counts


def information(alpha: Tensor, peers: int = 1) -> Tensor:
    """What `peers` are expected to tell of the shares [*b], nats: E_n KL[Dir(alpha + n) || Dir(alpha)], exact.

    Of one peer sum_a (alpha_a / alpha_0) w_a, w_a = ln alpha_0 - ln alpha_a + psi(alpha_a + 1) - psi(alpha_0 + 1).
    """
    if peers == 1:
        return dirichlet.information(alpha)
    counts = compositions(peers, alpha.shape[-1]).to(alpha)
    before = alpha.unsqueeze(-2)
    chance = log_predictive(before, counts).exp()
    return (chance * dirichlet.divergence(before + counts, before)).sum(-1)


# ------------------------------------------------------------------------------- what a sum over others pays


def poisson_binomial(probability: Tensor) -> Tensor:
    """Law of the number of successes [*b, N + 1] of independent trials with these probabilities [*b, N]; O(N^2)."""
    law = torch.zeros(*probability.shape[:-1], probability.shape[-1] + 1, dtype=probability.dtype)
    law = law.to(probability.device)
    law[..., 0] = 1
    for p in probability.unbind(-1):
        p = p.unsqueeze(-1)
        law = law * (1 - p) + torch.nn.functional.pad(law, (1, 0))[..., :-1] * p
    return law


def expected_utility(
    utility: Callable[[Tensor], Tensor], probability: Tensor, how: str = "exact", curvature: float = 0.0
) -> Tensor:
    """E[u(share of N independent others who do it)] [*b] for probabilities [*b, N].

    `exact`: by the Poisson-binomial law. `mean`: u of the mean, off by O(1/N). `second_order`: that plus
    `curvature` u'' of the mean times half the share's variance, sum p (1 - p) / N^2.
    """
    others = probability.shape[-1]
    if how == "exact":
        share = torch.arange(others + 1, dtype=probability.dtype, device=probability.device) / others
        return (poisson_binomial(probability) * utility(share)).sum(-1)
    if how not in ("mean", "second_order"):
        raise ConfigError(f"What is expected of a crowd is 'exact', 'mean' or 'second_order', not {how!r}.")
    found = utility(probability.mean(-1))
    if how == "second_order":
        variance = (probability * (1 - probability)).sum(-1) / others**2
        found = found + curvature * variance / 2
    return found


# ------------------------------------------------------------------------------- what the crowd itself does


def magnetisation_map(m: Tensor, precision: float | Tensor, peers: int | None, field: float = 0.0) -> Tensor:
    """m' [*b]: the next mean of a crowd that infers from `peers` sampled others and acts by a draw; None: from all.

    `precision` is w; where all are seen it is J = k w, of the mean. `field` h biases everyone's prior.
    """
    if peers is None:
        return torch.tanh(precision * m + field)
    _peers(peers)
    surplus = 2 * torch.arange(peers + 1, dtype=m.dtype, device=m.device) - peers
    p = ((1 + m) / 2).unsqueeze(-1)
    law = log_ways(torch.stack([(peers + surplus) / 2, (peers - surplus) / 2], -1)).exp()
    law = law * p ** ((peers + surplus) / 2) * (1 - p) ** ((peers - surplus) / 2)
    pull = precision.unsqueeze(-1) * surplus if isinstance(precision, Tensor) else precision * surplus
    return (law * torch.tanh(pull + field)).sum(-1)


def slope(precision: float, peers: int) -> float:
    """dm'/dm at m = 0: E[(2n - k) tanh(w (2n - k))], n ~ Bin(k, 1/2)."""
    _peers(peers)
    return sum(
        math.comb(peers, n) / 2**peers * (2 * n - peers) * math.tanh(precision * (2 * n - peers))
        for n in range(peers + 1)
    )


def critical_precision(peers: int | None) -> float:
    """w above which agents who sample so many peers order; infinite for 1 and 2 (they never do), J = 1 where all are seen."""
    if peers is None:
        return 1.0
    if _peers(peers) < 3:
        return math.inf
    return float(brentq(lambda w: slope(w, peers) - 1, 1e-9, 2.0, xtol=1e-15))


def ordered_magnetisation(precision: float, peers: int | None, field: float = 0.0) -> float:
    """The largest m = m'(m), which is stable, for a `field` of at least 0: what an ordered crowd settles at; 0 in disorder."""
    if not field >= 0:
        raise ConfigError(f"The ordered crowd's mean is told for a field of at least 0, not {field:g}: turn its sign.")

    def excess(m: float) -> float:
        return float(magnetisation_map(torch.tensor(m, dtype=torch.float64), precision, peers, field)) - m

    # The map is concave on m > 0: it leaves the diagonal at 0, upwards or never, and lies below it beyond its fixed point.
    if field == 0 and (precision if peers is None else slope(precision, peers)) <= 1:
        return 0.0
    low = 1.0
    while low > 1e-9 and excess(low) <= 0:
        low /= 2
    if low == 1.0 or low <= 1e-9:
        return 1.0 if low == 1.0 else 0.0
    return float(brentq(excess, low, 1.0, xtol=1e-14))


def _peers(peers: int) -> int:
    if not 1 <= peers <= 1000:
        raise ConfigError(f"The crowd is inferred from 1 to 1000 sampled peers, or from all (None), not {peers}.")
    return peers


def log_odds(counts: Tensor, precision: float | Sequence[float] | Tensor, field: float = 0.0) -> Tensor:
    """ln q(+) / q(-) [*b] of a hidden majority whose each member shows it with likelihood ratio e^{2w}, from [*b, 2] seen.

    2 w (n_+ - n_-) + 2 h; `precision` may differ from agent to agent.
    """
    w = torch.as_tensor(precision, dtype=counts.dtype, device=counts.device)
    return 2 * w * (counts[..., 1] - counts[..., 0]) + 2 * field
