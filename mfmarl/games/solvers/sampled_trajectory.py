r"""Learning from the path of one agent, who knows neither the crowd nor the rules: sandbox learning.

$$ Q(s, a) \leftarrow Q + c_n \big[ r(s, a; \hat\mu) + \gamma\, T \log \textstyle\sum_{a'} e^{Q(s', a') / T} - Q \big], \qquad
   \hat\mu_{t+1} \leftarrow \hat\mu_{t+1} + \rho_n \big[ \hat\mu_t\, \pi_t \hat P_t - \hat\mu_{t+1} \big], \qquad
   \pi \propto e^{Q / T} $$

Values move on the fast timescale, c_n = (1 + visits of (s, a))^-omega; the estimate mu^ of the crowd on the slow one,
rho_n = (1 + n)^-omega', carried on by the moves P^ that the agent has met with (the latest count most, since they
depend on the crowd). P^ belongs to states and actions, so that what the agent tries out does not change what it
believes of the others, who do not. Zaman, Koppel, Bhatt and Basar 2023 (arXiv 2208.11639), here with the soft value at
the temperature of its policy, so that the fixed point is the regularised equilibrium.

The simulator gives the reward and the move of one state and action amid mu^; the agent's path is the only sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games import approximation as nets
from mfmarl.games import sampling, values
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.options import Bounds, Seed
from mfmarl.random import Key
from mfmarl.statmech import gibbs

_LARGEST = 1 << 24  # entries of P^


class State(NamedTuple):
    q: Tensor  # [T, *b, G, S, A]
    visits: Tensor  # [T, *b, G, S, A]
    moves: Tensor  # P^, [T, *b, G, S, A, S]
    mu: Tensor  # mu^, [T, *b, G, S]
    place: Tensor  # int64 [*b, G], where the agent of each group is
    steps: Tensor  # int64 [], that mu^ has made


@dataclass(frozen=True)
class SampledTrajectory(Solver):
    """Q-learning and an estimate of the crowd on two timescales, from one agent's path (sandbox learning)."""

    name: ClassVar[str] = "trajectory"
    temperature: Annotated[float, Bounds(0, 1e9, open_low=True)] = 0.1
    """T of the policy, and of the equilibrium that it goes to."""
    length: Annotated[int, Bounds(1, 1 << 24)] = 100
    """Steps of the path in an iteration, in a game without a horizon."""
    episodes: Annotated[int, Bounds(1, 1 << 24)] = 50
    """Episodes in an iteration, in a game with one: the agent starts anew from its initial distribution."""
    explore: Annotated[float, Bounds(0, 1)] = 0.2
    """Probability of any action alike."""
    value_decay: Annotated[float, Bounds(0, 1)] = 0.6
    """omega, how fast the rate of values falls with visits."""
    crowd_decay: Annotated[float, Bounds(0, 1)] = 0.85
    """omega', how fast the rate of mu^ falls with steps: the larger, so that the crowd is the slower."""
    seed: Seed = 0
    """Of the path."""

    @property
    def entropy_bonus(self) -> float:
        return self.temperature

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        nets.check_beginning(game, policy, self.name)
        if policy.numel() * game.num_states > _LARGEST:
            raise ConfigError(
                f"trajectory keeps a table of {policy.numel()} state-actions by {game.num_states} states, which is too "
                "much; use deep_omd."
            )
        batch = policy.shape[1:-3]
        mu = torch.full(policy.shape[:-1], 1 / game.num_states, dtype=policy.dtype, device=policy.device)
        mu[0] = game.start(policy.dtype, policy.device)
        moves = torch.full((*policy.shape, game.num_states), 1 / game.num_states, dtype=mu.dtype, device=mu.device)
        place = torch.zeros((*batch, game.num_groups), dtype=torch.int64, device=policy.device)
        zero = torch.zeros_like(policy)
        return State(zero, zero, moves, mu, place, torch.zeros((), dtype=torch.int64))

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        # Tables are copied once, and then changed in place: a step of the path is a few microseconds' work.
        q, visits, moves, mu = (
            x.reshape(len(x), -1, *x.shape[-n:]).clone() for x, n in zip(state[:4], (3, 3, 4, 2), strict=True)
        )
        flat = State(q, visits, moves, mu, state.place.reshape(-1, game.num_groups), state.steps)
        legs = self.episodes if game.horizon is not None else 1
        for leg in range(legs):
            flat = self._leg(game, flat, Key.of(self.seed).fold("path", iteration, leg), iteration == 1)
        shapes = [x.shape for x in state]
        return State(*(x.reshape(shape) for x, shape in zip(flat, shapes, strict=True)))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.boltzmann(game, state.q, self.temperature)

    def _leg(self, game: MeanFieldGame, state: State, key: Key, fresh: bool) -> State:
        """One episode, or `length` steps, of B entries at once; tables are changed in place."""
        q, visits, moves, mu, place, steps = state
        entries, groups = place.shape
        ids = torch.arange(entries * groups, device=q.device).view(entries, groups)
        length = game.horizon or self.length
        noise = random.uniform(key, ids, 3 * length + 1)
        group = torch.arange(groups, device=q.device)
        if game.horizon is not None or fresh:
            place = sampling.drawn(game.start(q.dtype, q.device).expand(entries, -1, -1), group, noise[..., -1])
        legal = game.legal_mask(q.device)
        done = int(steps)
        rate = (1 + done) ** -self.crowd_decay
        for step in range(length):
            t = step if game.horizon is not None else 0
            policy = values.boltzmann(game, q[t], self.temperature)
            crowd = Crowd(mu[t], policy)
            chances = sampling.at_place(sampling.exploring(policy, legal, self.explore), place)
            action = sampling.choice(chances, noise[..., 3 * step])
            reward = _deed(game.paid(t, crowd), place, action)
            after = game.kernel(t, crowd).draw(group, place, action, noise[..., 3 * step + 1])
            ahead = self._ahead(game, q, crowd, moves[t], t, after)
            count = _deed(visits[t], place, action) + 1
            error = reward + ahead - _deed(q[t], place, action)
            cell = (place * game.num_actions + action).unsqueeze(-1)
            q[t].flatten(2).scatter_add_(2, cell, (error * count**-self.value_decay).unsqueeze(-1))
            visits[t].flatten(2).scatter_add_(2, cell, torch.ones_like(error).unsqueeze(-1))
            self._met(moves[t], place, action, after, count)
            if game.horizon is None:
                rate = (1 + done + step) ** -self.crowd_decay
            if game.horizon is None or t + 1 < length:
                mu[t + 1 if game.horizon is not None else 0].lerp_(_carried(crowd, moves[t]), rate)
            place = after
        return State(q, visits, moves, mu, place, steps + (1 if game.horizon is not None else length))

    def _ahead(self, game: MeanFieldGame, q: Tensor, crowd: Crowd, moves: Tensor, t: int, after: Tensor) -> Tensor:
        """What comes after, discounted: [B, G]."""
        if game.horizon is not None and t + 1 == game.horizon:
            paid = (
                None if type(game).terminal is MeanFieldGame.terminal else game.terminal(Crowd(_carried(crowd, moves)))
            )
            return q.new_zeros(after.shape) if paid is None else game.discount * _at(paid, after)
        energy = -sampling.at_place(q[t + 1 if game.horizon is not None else 0], after)
        legal = game.legal_mask(q.device)
        if legal is not None:
            energy = energy.masked_fill(~sampling.at_place(legal.expand(len(after), -1, -1, -1), after), torch.inf)
        return -game.discount * gibbs.free_energy(energy, self.temperature)

    def _met(self, moves: Tensor, place: Tensor, action: Tensor, after: Tensor, count: Tensor) -> None:
        """Carry the estimate of P(. | s, a) [B, G, S, A, S] towards where one came."""
        entries = (
            torch.arange(len(place), device=place.device).unsqueeze(-1),
            torch.arange(place.shape[1], device=place.device),
        )
        row = moves[(*entries, place, action)]
        came = torch.nn.functional.one_hot(after, row.shape[-1]).to(row.dtype)
        moves[(*entries, place, action)] = row + (count**-self.value_decay).unsqueeze(-1) * (came - row)


def _carried(crowd: Crowd, moves: Tensor) -> Tensor:
    """The crowd [B, G, S] after moves [B, G, S, A, S]."""
    return (crowd.joint.flatten(-2).unsqueeze(-2) @ moves.flatten(-3, -2)).squeeze(-2)


def _at(table: Tensor, place: Tensor) -> Tensor:
    """[B, G, S] at place [B, G]."""
    return table.expand(*place.shape, -1).gather(2, place.unsqueeze(-1)).squeeze(-1)


def _deed(table: Tensor, place: Tensor, action: Tensor) -> Tensor:
    """[B, G, S, A] at place and action [B, G]."""
    return sampling.at_place(table, place).gather(-1, action.unsqueeze(-1)).squeeze(-1)
