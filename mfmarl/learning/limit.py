r"""What a trained population would do if it were infinitely large: its policy in the limit.

$$ \pi_t(a \mid s) = e^{-E(a \mid o_t(s),\, m_t) / T} / Z, \qquad
   m_t = \sum_{s, a} L_{t-1}(s, a)\, \phi(a) \quad (m_0 = 0 \text{ of actions: nobody has acted}) $$

The field m_t that N agents feel of each other becomes the mean under the joint distribution L of states and actions
that the policy itself makes, so policy and crowd are followed together from the start. What is seen, felt and when is
what `mfmarl.learning.episode.Episode` gives N agents; the field of N differs from it by O(1/sqrt(N)).

With a mind for each agent the population is a mixture: each mind m has its own flow mu^m under the common crowd, and
pi = sum_m mu^m pi^m / sum_m mu^m makes the crowd and the mean reward of the mixture exactly, so that its exploitability
is the mean over minds of what each could gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.learning.agent import Agent, forbid
from mfmarl.learning.players import Player
from mfmarl.population.field import Actions, Everyone, Feature, Field, Joint, Moments, Nothing, States
from mfmarl.statmech import gibbs

_ROWS = 1 << 14  # rows that a network is given at a time
_SETTLED = 1e-5  # change of a policy from one step to the next below which a game without end stands: float32 networks
_STEPS = 3000
_TABLE = 1 << 22  # entries of minds' tables held at a time


class _Moment(NamedTuple):
    """The population at one time: K pasts of the common noise (1 without)."""

    own: tuple[Tensor, ...]  # per group [K, M, S]: each mind's distribution over states
    acted: Tensor  # [K, G, A], the last actions' shares; 0 before the first
    felt: tuple[Tensor, ...]  # per group [K, F]
    common: Tensor | None  # int64 [K, 1, 1]

    @property
    def mu(self) -> Tensor:
        """[K, G, S]."""
        return torch.stack([x.mean(1) for x in self.own], 1)


class Seat(NamedTuple):
    """Who plays a group, and which of that agent's minds (None: its only one)."""

    agent: Agent
    minds: slice | None


def limit_policy(game: MeanFieldGame, players: Sequence[Player]) -> Tensor:
    """The policy [T, G, S, A] (float64) of these players in a crowd without end.

    Raises ConfigError for players whose policy is not a Gibbs distribution of energies, for fields that stay random
    in the limit (a sample of others), and where a game without a horizon does not come to rest.
    """
    seats = [seat(game, players, g) for g in range(game.num_groups)]
    with torch.no_grad():
        return _settle(game, seats) if game.horizon is None else _follow(game, seats)


def seat(game: MeanFieldGame, players: Sequence[Player], group: int) -> Seat:
    slots = list(game.spec().group_slices.values())[group]
    player = next(p for p in players if p.slots.start <= slots.start and slots.stop <= p.slots.stop)
    agent = player.agent
    if type(agent).act is not Agent.act:
        raise ConfigError(
            f"{type(agent).__name__} does not act by its energies, so its policy in the limit is not known."
        )
    if agent.perceives:
        raise ConfigError(
            f"{type(agent).__name__} acts upon beliefs that it carries along, so its policy in the limit is not known."
        )
    check_field(agent.field)
    if game.major and agent.field.typed:
        raise ConfigError(
            "What a major agent does stays random in the limit, and a typed field feels it; use 'over team'."
        )
    first = slots.start - player.slots.start
    return Seat(agent, None if agent.minds == 1 else slice(first, first + slots.stop - slots.start))


def check_field(field: Field) -> None:
    """Raises ConfigError for a field that has no value in the limit."""
    if not field.is_nothing and not isinstance(field.over, Everyone):
        raise ConfigError(
            f"The field '{field}' is not that of a whole crowd and stays random in the limit; use 'over everyone' or 'over team'."
        )
    _check_feature(field.of)


def _check_feature(feature: Feature) -> None:
    if isinstance(feature, Joint):
        for part in feature.parts:
            _check_feature(part)
    elif not isinstance(feature, Actions | States | Moments | Nothing):
        raise ConfigError(f"The mean of {feature} in the limit is not known; use actions, states or moments.")


# ------------------------------------------------------------------------------------------------ following


def _begin(game: MeanFieldGame, seats: Sequence[Seat], common: Tensor | None) -> _Moment:
    pasts = 1 if common is None else len(common)
    start = game.start()
    own = []
    for g, seat in enumerate(seats):
        minds = 1 if seat.minds is None else seat.minds.stop - seat.minds.start
        own.append(start[g].expand(pasts, minds, -1))
    acted = torch.zeros(pasts, game.num_groups, game.num_actions, dtype=torch.float64)
    empty = tuple(torch.zeros(pasts, 0, dtype=torch.float64) for _ in seats)
    return _feel(game, seats, 0, _Moment(tuple(own), acted, empty, common), first=True)


def _feel(game: MeanFieldGame, seats: Sequence[Seat], t: int, now: _Moment, first: bool = False) -> _Moment:
    """The moment, with what each group feels of it."""
    felt = []
    for g, seat in enumerate(seats):
        field = seat.agent.field
        fresh = field_in_the_limit(field, game, t, g, now.mu, now.acted, now.common)
        felt.append(fresh if first or not field.decay else field.decay * now.felt[g] + (1 - field.decay) * fresh)
    return now._replace(felt=tuple(felt))


def field_in_the_limit(
    field: Field, game: MeanFieldGame, t: int, group: int, mu: Tensor, acted: Tensor, common: Tensor | None = None
) -> Tensor:
    """What every agent of a group feels, [K, F]: of states mu [K, G, S] and last actions' shares acted [K, G, A]."""
    if field.is_nothing:
        return mu.new_zeros(len(mu), 0)
    mean = _mean(field.of, game, t, mu, acted, common)  # [K, G, F]
    sizes = torch.tensor(game.group_sizes, dtype=mean.dtype)
    same = isinstance(field.over, Everyone) and field.over.same
    # Who is alone in its group has no others there.
    counted = torch.where(sizes > 1, 1.0, 0.0) if same else torch.ones_like(sizes)
    if same:
        counted = counted * torch.nn.functional.one_hot(torch.tensor(group), len(sizes))
    if field.typed:
        return (mean * counted.unsqueeze(-1)).flatten(-2)
    weight = counted * sizes
    return (mean * (weight / weight.sum().clamp(min=1)).unsqueeze(-1)).sum(-2)


def _mean(feature: Feature, game: MeanFieldGame, t: int, mu: Tensor, acted: Tensor, common: Tensor | None) -> Tensor:
    """Each group's mean of a feature, [K, G, F]."""
    if isinstance(feature, Joint):
        return torch.cat([_mean(part, game, t, mu, acted, common) for part in feature.parts], -1)
    if isinstance(feature, States):
        return torch.einsum("kgs,kgso->kgo", mu, game.views(t, mu, common).double())
    if isinstance(feature, Moments):
        scale = torch.arange(game.num_actions, dtype=torch.float64) / max(game.num_actions - 1, 1)
        return torch.stack([acted @ scale**power for power in range(1, feature.k + 1)], -1)
    return acted


def _choices(game: MeanFieldGame, seat: Seat, group: int, t: int, now: _Moment) -> Tensor:
    """Probabilities [K, M, S, A] of each mind of a group in each state."""
    return _probabilities(game, seat, group, game.views(t, now.mu, now.common)[:, group], now.felt[group])


def _probabilities(game: MeanFieldGame, seat: Seat, group: int, views: Tensor, felt: Tensor) -> Tensor:
    """Of what is seen in each state [K, S, O] and felt [K, F]: [K, M, S, A]."""
    agent = seat.agent
    device = agent.log_temperature.device
    pasts, states = views.shape[:2]
    obs = views.flatten(0, 1)
    every = felt.float().repeat_interleave(states, 0)
    mask = game.legal_mask()
    legal = None if mask is None else mask[group].repeat(pasts, 1)
    parts = []
    step = max(1, _ROWS // agent.minds)
    for first in range(0, len(obs), step):
        rows = slice(first, first + step)
        o, f = (x[rows].to(device).expand(agent.minds, *x[rows].shape) for x in (obs, every))
        energy = agent.energy(o, f)
        energy = energy if seat.minds is None else energy[seat.minds]
        energy = forbid(energy, None if legal is None else legal[rows].to(device))
        parts.append(gibbs.probabilities(energy.double(), agent.temperature).cpu())
    p = torch.cat(parts, 1).unflatten(1, (pasts, states)).transpose(0, 1)
    return p / p.sum(-1, keepdim=True)


def _act(game: MeanFieldGame, seats: Sequence[Seat], t: int, now: _Moment) -> tuple[Tensor, list[Tensor]]:
    """The population's policy [K, G, S, A], and each group's minds' [K, M, S, A]."""
    each, mixed = [], []
    for g, seat in enumerate(seats):
        p = _choices(game, seat, g, t, now)
        weight = now.own[g].unsqueeze(-1)
        total = weight.sum(1)
        mean = torch.where(total > 0, (weight * p).sum(1) / total.clamp(min=1e-300), p.mean(1))
        # Rounding must leave a distribution, where hardly anybody is too.
        mixed.append(mean / mean.sum(-1, keepdim=True))
        each.append(p)
    return torch.stack(mixed, 1), each


def _move(game: MeanFieldGame, t: int, now: _Moment, policy: Tensor, each: Sequence[Tensor]) -> _Moment:
    """The moment after everybody's step."""
    crowd = Crowd(now.mu, policy, common=now.common)
    kernel = game.kernel(t, crowd)
    after = kernel.carry(crowd.joint)  # [K, G, S]
    own = []
    for g, p in enumerate(each):
        if p.shape[1] == 1:
            own.append(after[:, g : g + 1])
            continue
        # Minds lead, as a batch; in chunks, since each brings the table of all groups.
        joint = (now.own[g].unsqueeze(-1) * p).transpose(0, 1)  # [M, K, S, A]
        moved = []
        for part in joint.split(max(1, _TABLE // crowd.joint.numel())):
            alone = part.new_zeros((len(part), *crowd.joint.shape))
            alone[:, :, g] = part
            moved.append(kernel.carry(alone)[:, :, g])
        own.append(torch.cat(moved).transpose(0, 1))
    return now._replace(own=tuple(own), acted=crowd.joint.sum(-2))


def _follow(game: MeanFieldGame, seats: Sequence[Seat]) -> Tensor:
    assert game.horizon is not None
    tree, policies = game.tree, []
    if tree is None and game.sight == "state" and all(x.agent.field.is_nothing and x.minds is None for x in seats):
        return _at_all_times(game, seats)
    now = _begin(game, seats, None if tree is None else tree.common[0].view(-1, 1, 1))
    for t in range(game.horizon):
        policy, each = _act(game, seats, t, now)
        policies.append(policy)
        if t + 1 == game.horizon:
            break
        now = _move(game, t, now, policy, each)
        if tree is not None:
            now = _branch(now, tree.parent[t + 1], tree.common[t + 1])
        now = _feel(game, seats, t + 1, now)
    return torch.cat(policies)


def _at_all_times(game: MeanFieldGame, seats: Sequence[Seat]) -> Tensor:
    """Of players who see nothing of the crowd: each time as if it were one of the pasts, in one go."""
    steps = game.horizon or 1
    mu = game.start().expand(steps, -1, -1)
    views = torch.stack([game.views(t, mu[t]) for t in range(steps)])
    empty = mu.new_zeros(steps, 0)
    return torch.cat([_probabilities(game, seat, g, views[:, g], empty) for g, seat in enumerate(seats)], 1)


def _branch(now: _Moment, parent: Tensor, common: Tensor) -> _Moment:
    return _Moment(
        tuple(x.index_select(0, parent) for x in now.own),
        now.acted.index_select(0, parent),
        tuple(x.index_select(0, parent) for x in now.felt),
        common.view(-1, 1, 1),
    )


def _settle(game: MeanFieldGame, seats: Sequence[Seat]) -> Tensor:
    """Of a game without a horizon: the policy where the crowd, and what is felt of it, stand."""
    now = _begin(game, seats, None)
    before = None
    for _ in range(_STEPS):
        policy, each = _act(game, seats, 0, now)
        after = _feel(game, seats, 0, _move(game, 0, now, policy, each))
        moved = float((after.mu - now.mu).abs().max())
        if before is not None and moved + float((policy - before).abs().max()) < _SETTLED:
            return policy
        before, now = policy, after
    raise ConfigError(
        f"{type(game).__name__}: the crowd of these players never comes to rest; give the game a horizon."
    )
