r"""One learner, two answers: whether the crowd or the values are the slower decides between equilibrium and optimum.

$$ L \leftarrow L + \rho_n (\delta_{(X, A)} - L), \qquad
   Q(X, A) \leftarrow Q + c_n \big[ r(X, A; L) + \gamma \max_a Q(X', a) - Q \big] $$

with rho_n = (1 + n)^-omega_mu of the n-th step (episode) and c_n = (1 + visits)^-omega_Q. Everything is the path of one
agent, who stands for the crowd. A slow crowd is one that the agent cannot move: a best response, and the game's
equilibrium. A fast crowd is where the agent itself has just been: what it does, all do, and it finds the control, the
planner's optimum. Angiuli, Fouque and Lauriere 2022 (arXiv 2006.13912, their exponents: (omega_Q, omega_mu) = (.55, .85)
for the game and (.65, .15) for control); with a horizon Angiuli, Fouque and Lauriere 2021 (arXiv 2106.13755).

How fast is fast: a deed counts in its own crowd with weight rho_n, for one step and those that it lasts. On a commons
(tests) control is found at rates of .2 to .7; with a horizon, where an agent comes to each time but once an episode, it
is not, and that is refused. The optimum is sought among pure policies.

The equilibrium's policy is the slow average of what was done, L(a | s): it may be mixed, as the greedy one cannot. The
optimum's is the greedy one.
"""

from __future__ import annotations

from abc import ABC
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


class State(NamedTuple):
    q: Tensor  # [T, *b, G, S, A]
    visits: Tensor  # [T, *b, G, S, A]
    joint: Tensor  # L, [T, *b, G, S, A]
    place: Tensor  # int64 [*b, G], where the agent of each group is
    steps: Tensor  # int64 [], that L has made: episodes, or steps of a path without end


@dataclass(frozen=True)
class TwoTimescales(Solver, ABC):
    """What both share."""

    length: Annotated[int, Bounds(1, 1 << 24)] = 100
    """Steps of the path in an iteration, in a game without a horizon."""
    episodes: Annotated[int, Bounds(1, 1 << 24)] = 50
    """Episodes in an iteration, in a game with one: the agent starts anew from its initial distribution."""
    explore: Annotated[float, Bounds(0, 1)] = 0.1
    """Probability of any action alike."""
    value_decay: Annotated[float, Bounds(0, 1)] = 0.55
    """omega_Q, how fast the rate of values falls with visits."""
    crowd_decay: Annotated[float, Bounds(0, 1)] = 0.85
    """omega_mu, how fast the rate of the crowd falls with steps."""
    seed: Seed = 0
    """Of the path."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        nets.check_beginning(game, policy, self.name)
        place = torch.zeros((*policy.shape[1:-3], game.num_groups), dtype=torch.int64, device=policy.device)
        zero = torch.zeros_like(policy)
        return State(zero, zero, policy / game.num_states, place, torch.zeros((), dtype=torch.int64))

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        # Tables are copied once, and then changed in place.
        q, visits, joint = (x.reshape(len(x), -1, *x.shape[-3:]).clone() for x in state[:3])
        flat = State(q, visits, joint, state.place.reshape(-1, game.num_groups), state.steps)
        for leg in range(self.episodes if game.horizon is not None else 1):
            flat = self._leg(game, flat, Key.of(self.seed).fold("path", iteration, leg), iteration == 1)
        shapes = [x.shape for x in state]
        return State(*(x.reshape(shape) for x, shape in zip(flat, shapes, strict=True)))

    def _leg(self, game: MeanFieldGame, state: State, key: Key, fresh: bool) -> State:
        """One episode, or `length` steps, of all entries at once."""
        q, visits, joint, place, steps = state
        entries, groups = place.shape
        ids = torch.arange(entries * groups, device=q.device).view(entries, groups)
        length = game.horizon or self.length
        noise = random.uniform(key, ids, 2 * length + 1)
        group = torch.arange(groups, device=q.device)
        if game.horizon is not None or fresh:
            place = sampling.drawn(game.start(q.dtype, q.device).expand(entries, -1, -1), group, noise[..., -1])
        legal = game.legal_mask(q.device)
        done = int(steps)
        for step in range(length):
            t, n = (step, done) if game.horizon is not None else (0, done + step)
            policy = sampling.exploring(values.greedy(game, q[t]), legal, self.explore)
            action = sampling.choice(sampling.at_place(policy, place), noise[..., 2 * step])
            cell = (place * game.num_actions + action).unsqueeze(-1)
            # The crowd hears of the deed before the deed is paid: of a fast crowd the agent is a large part.
            rate = (1 + n) ** -self.crowd_decay
            joint[t].mul_(1 - rate).flatten(2).scatter_add_(
                2, cell, torch.full(cell.shape, rate, dtype=q.dtype, device=q.device)
            )
            crowd = Crowd(joint[t].sum(-1), counted=joint[t])
            reward = game.paid(t, crowd).flatten(2).gather(2, cell)
            after = game.kernel(t, crowd).draw(group, place, action, noise[..., 2 * step + 1])
            ahead = self._ahead(game, q, crowd, t, after).unsqueeze(-1)
            seen = visits[t].flatten(2)
            seen.scatter_add_(2, cell, torch.ones(cell.shape, dtype=q.dtype, device=q.device))
            error = reward + ahead - q[t].flatten(2).gather(2, cell)
            q[t].flatten(2).scatter_add_(2, cell, error * seen.gather(2, cell) ** -self.value_decay)
            place = after
        return State(q, visits, joint, place, steps + (1 if game.horizon is not None else length))

    def _ahead(self, game: MeanFieldGame, q: Tensor, crowd: Crowd, t: int, after: Tensor) -> Tensor:
        """What comes after, discounted: [B, G]."""
        if game.horizon is not None and t + 1 == game.horizon:
            if type(game).terminal is MeanFieldGame.terminal:
                return q.new_zeros(after.shape)
            paid = game.terminal(Crowd(game.kernel(t, crowd).carry(crowd.joint)))
            return q.new_zeros(after.shape) if paid is None else game.discount * sampling.at_place(
                paid.expand(*after.shape, -1).unsqueeze(-1), after).squeeze(-1)  # fmt: skip
        legal = game.legal_mask(q.device)
        table = q[t + 1 if game.horizon is not None else 0]
        table = table if legal is None else table.masked_fill(~legal, -torch.inf)
        return game.discount * sampling.at_place(table, after).amax(-1)


@dataclass(frozen=True)
class GameQLearning(TwoTimescales):
    """Q-learning amid a slow crowd: the game's equilibrium (unified Q-learning)."""

    name: ClassVar[str] = "unified_game"

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        mu = state.joint.sum(-1, keepdim=True)
        # Where nobody comes any more, the sum is what is left of the first guess.
        return torch.where(mu > 1e-12, state.joint / mu.clamp(min=1e-12), values.greedy(game, state.q))


@dataclass(frozen=True)
class ControlQLearning(TwoTimescales):
    """Q-learning amid a fast crowd: the planner's optimum (unified Q-learning)."""

    name: ClassVar[str] = "unified_control"
    cooperative: ClassVar[bool] = True

    value_decay: Annotated[float, Bounds(0, 1)] = 0.65
    """omega_Q, how fast the rate of values falls with visits."""
    crowd_decay: Annotated[float, Bounds(0, 1)] = 0.15
    """omega_mu, how fast the rate of the crowd falls with steps."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        if game.horizon is not None:
            raise ConfigError(
                "unified_control learns from a path without end: with a horizon an agent that tries something is too small "
                "a part of the crowd it meets. Give the game horizon=none, or use a planner."
            )
        return super().begin(game, policy)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.greedy(game, state.q)
