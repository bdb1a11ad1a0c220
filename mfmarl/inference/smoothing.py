r"""What is believed of the past once the future has been seen: smoothing, whole histories drawn, and the likeliest one.

$$ \alpha_t(s) = p(s_t \mid o_{1:t}), \qquad \beta_t(s) \propto p(o_{t+1:T} \mid s_t = s), \qquad
   \gamma_t \propto \alpha_t \beta_t, \qquad
   \xi_t(s', s) \propto \beta_{t+1}(s')\, L_{t+1}(s')\, B(s' \mid s, u_t)\, \alpha_t(s) $$

Forward and backward (Rabiner 1989, Proc. IEEE 77, 257) on a model of one factor: of several factors take
`model.joint()`, which loses nothing. The posterior is a Markov chain, hence its free energy
$F = \mathrm{complexity} - \mathrm{accuracy}$ is exactly $-\ln p(o_{1:T})$ (MacKay 2003, ch. 33). Draws go backward
(Fruehwirth-Schnatter 1994), the likeliest history is Viterbi's (1967). `of_factors` smooths beliefs of several factors
that were filtered apart, each factor by its own chain (pymdp's online variational filtering): no exact posterior, but
one whose tables are small.

Times come first: observations [T, *b, M], actions [T - 1, *b] between them. An action -1 begins a new episode there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import filtering
from mfmarl.inference.filtering import Seen, Soft
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key


class Smoothed(NamedTuple):
    """The posterior over histories of a model of one factor."""

    states: Tensor
    """p(s_t | o_1..o_T) [T, *b, S]."""
    pairs: Tensor
    """p(s_t+1, s_t | o_1..o_T) [T - 1, *b, S', S]: the next state first. Empty, [0, *b, S', S], where not asked for."""
    filtered: Tensor
    """p(s_t | o_1..o_t) [T, *b, S]: what draws begin from."""
    free_energy: Tensor
    """-ln p(o_1..o_T) [*b], nats."""
    complexity: Tensor
    """KL of the histories from what the model expects of them without observations, [*b]."""
    accuracy: Tensor
    """E[sum_t ln p(o_t | s_t)] [*b]."""


class Path(NamedTuple):
    """The likeliest history."""

    states: Tensor
    """int64 [T, *b]."""
    log_probability: Tensor
    """ln p(s_1..s_T, o_1..o_T) [*b] of it."""


def smooth(
    model: GenerativeModel,
    observations: Seen,
    actions: Tensor,
    *,
    first: Tensor | None = None,
    pairs: bool = True,
    soft: Soft = "average",
    floor: float | None = None,
    check: bool = True,
) -> Smoothed:
    """The posterior over histories. `first`: what is expected at first [*b, S], D unless given.

    Raises ConfigError for a model of several factors, and for what is impossible (see `filtering.update`).
    """
    _refuse_factors(model)
    like = filtering.likelihoods(model, observations, soft, floor, check=check)
    begin = (model.D[0] if first is None else first,)
    believed, cost = filtering.follow(
        model, observations, actions, first=begin, soft=soft, floor=floor, check=check, terms=False
    )
    filtered = torch.stack(torch.broadcast_tensors(*[q[0] for q in believed]))
    batch, size = filtered.shape[1:-1], filtered.shape[-1]
    states, joint = [filtered[-1]], []
    for t in reversed(range(len(filtered) - 1)):
        # p(s_t | s_t+1, o_1..o_t) is Bayes' rule for the filtered belief: no product of small numbers is ever formed.
        action, belief = actions[t].clamp(min=0), filtered[t]
        begun = (actions[t] < 0).unsqueeze(-1)
        (expected,) = filtering.predict(model, (belief,), action, check=False)
        ratio = states[-1] / expected.where(expected > 0, 1.0)
        if pairs:
            pair = ratio.unsqueeze(-1) * model.of_action(0, action) * belief.unsqueeze(-2)
            apart = states[-1].unsqueeze(-1) * belief.unsqueeze(-2)
            pair = torch.where(begun.unsqueeze(-1), apart, pair)
            joint.append(pair.expand(*batch, size, size))
            states.append(pair.sum(-2))
        else:
            states.append(torch.where(begun, belief, belief * filtering.carried_back(model, 0, ratio, action)))
    smoothed = torch.stack(states[::-1])
    accuracy = filtering.sum_of([torch.xlogy(smoothed, x).sum(-1) for x in like]).sum(0)
    total = cost.sum(0)
    return Smoothed(
        smoothed,
        torch.stack(joint[::-1]) if joint else smoothed.new_zeros(0, *batch, size, size),
        filtered,
        total,
        total + accuracy,
        accuracy,
    )


def draw(
    model: GenerativeModel, smoothed: Smoothed, actions: Tensor, ids: Tensor, key: Key, draws: int | None = None
) -> Tensor:
    """Histories of the posterior, int64 [T, *b] (or [T, *b, draws]): each drawn with the noise of its id, int64 [*b]."""
    filtered, last = smoothed.filtered, len(smoothed.filtered) - 1
    if draws is not None:
        filtered, actions = filtered.unsqueeze(-2), actions.unsqueeze(-1)
    found: list[Tensor] = []
    for t in reversed(range(last + 1)):
        weight = filtered[t]
        if t < last:
            row = _row(model, actions[t].clamp(min=0), found[-1], draws is not None)
            weight = torch.where((actions[t] < 0).unsqueeze(-1), weight, weight * row)
        found.append(_picked(weight, random.uniform(key.fold("history", t), ids, draws)))
    return torch.stack(found[::-1])


def most_likely(
    model: GenerativeModel,
    observations: Seen,
    actions: Tensor,
    *,
    first: Tensor | None = None,
    soft: Soft = "average",
    check: bool = True,
) -> Path:
    """Viterbi's path. Raises ConfigError where no history can have shown what was seen."""
    _refuse_factors(model)
    weight = filtering.sum_of([x.log() for x in filtering.likelihoods(model, observations, soft, check=check)])
    best = (model.D[0] if first is None else first).log() + weight[0]
    came = []
    for t, action in enumerate(actions):
        anew = (action < 0).reshape(*action.shape, 1, 1)
        step = model.of_action(0, action.clamp(min=0)).log()
        top = (best.unsqueeze(-2) + torch.where(anew, model.D[0].log().unsqueeze(-1), step)).max(-1)
        came.append(top.indices)
        best = top.values + weight[t + 1]
    last = best.max(-1)
    if check and bool((last.values == -torch.inf).any()):
        raise ConfigError(
            "No history of states can have shown these observations: give A a floor, or mend B or D that exclude them."
        )
    path = [last.indices]
    for back in reversed(came):
        path.append(back.gather(-1, path[-1].unsqueeze(-1)).squeeze(-1))
    return Path(torch.stack(path[::-1]), last.values)


def of_factors(
    model: GenerativeModel, believed: Sequence[Sequence[Tensor]], actions: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Smoothed beliefs [T, *b, S_f] and pairs [T - 1, *b, S'_f, S_f] of factors that were filtered apart.

    `believed`: a time's beliefs [*b, S_f] of every factor, as `filtering.follow` gives them. Each factor is a chain of
    its own; where its next state depends on others as well, these are averaged over what was believed of them.
    """
    smoothed, joint = [], []
    for f, size in enumerate(model.sizes):
        states, pairs = [believed[-1][f]], []
        for t in reversed(range(len(believed) - 1)):
            q, begun = believed[t][f], (actions[t] < 0).reshape(*actions[t].shape, 1, 1)
            step = of_own(model, f, believed[t], actions[t].clamp(min=0))
            expected = (step * q.unsqueeze(-2)).sum(-1)
            ratio = states[-1] / expected.where(expected > 0, 1.0)
            apart = states[-1].unsqueeze(-1) * q.unsqueeze(-2)
            pairs.append(torch.where(begun, apart, ratio.unsqueeze(-1) * step * q.unsqueeze(-2)))
            states.append(pairs[-1].sum(-2))
        smoothed.append(torch.stack(torch.broadcast_tensors(*states[::-1])))
        batch = smoothed[-1].shape[1:-1]
        joint.append(torch.stack(pairs[::-1]) if pairs else smoothed[-1].new_zeros(0, *batch, size, size))
    return tuple(smoothed), tuple(joint)


def of_own(model: GenerativeModel, f: int, believed: Sequence[Tensor], action: Tensor) -> Tensor:
    """B^f of actions int64 [*b] from the factor's own state to its next, [*b, S', S]: averaged over what is believed of
    its other parents."""
    own = model.B_factors[f]
    table = model.of_action(f, action)  # [*b, S', S_pa, ...]
    for i in reversed(range(len(own))):
        if own[i] != f:
            q = believed[own[i]]
            # Parents behind it are averaged away already, but for the factor itself.
            kept = 1 if f in own[i + 1 :] else 0
            table = (table * q.reshape(*q.shape[:-1], *[1] * (i + 1), q.shape[-1], *[1] * kept)).sum(-1 - kept)
    return table if f in own else table.unsqueeze(-1).expand(*table.shape, model.sizes[f])


def _refuse_factors(model: GenerativeModel) -> None:
    if len(model.sizes) > 1:
        raise ConfigError(
            f"Histories of one factor are smoothed, and this model has {len(model.sizes)}: take model.joint(), or filter "
            "factors apart and smooth them by smoothing.of_factors."
        )


def _row(model: GenerativeModel, action: Tensor, after: Tensor, drawn: bool) -> Tensor:
    """B[after, :, action], [*b, S]."""
    table, setting = filtering.transitions(model, 0, action)
    setting = torch.zeros_like(action) if setting is None else setting
    lead, size = table.ndim - 3, table.shape[-1]
    table = table.flatten(lead, lead + 1)
    if drawn and lead:
        table = table.unsqueeze(lead)
        lead += 1
    batch = torch.broadcast_shapes(table.shape[:lead], setting.shape, after.shape)
    number = (setting * size + after).expand(batch)
    if not lead:
        return table[number]
    where = number.reshape(*batch, 1, 1).expand(*batch, 1, size)
    return table.expand(*batch, *table.shape[lead:]).gather(-2, where).squeeze(-2)


def _picked(weight: Tensor, uniform: Tensor) -> Tensor:
    """The state [*b] at which the sum of weights [*b, S] passes this part of all: never one of weight 0."""
    below = weight.cumsum(-1)
    return (below <= uniform.unsqueeze(-1) * below[..., -1:]).sum(-1)
