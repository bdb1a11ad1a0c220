r"""Munchausen online mirror descent: one network learns the sum of all past values from sampled paths.

$$ \tilde Q_k(s, a) \leftarrow r + \alpha \tau \log \pi_{k-1}(a \mid s) + \gamma \sum_{a'} \pi_{k-1}(a' \mid s')
   \big[ \tilde Q_k(s', a') - \alpha \tau \log \pi_{k-1}(a' \mid s') \big], \qquad \pi_k \propto e^{\tilde Q_k / \tau} $$

Rewards and moves are those amid the crowd of pi_{k-1}. At the fixed point Q~ = Q^{pi_{k-1}} + alpha tau log pi_{k-1}:
with alpha = 1 the steps of mirror descent at rate 1/tau, with less the leak (1 - alpha) tau, whose fixed point is the
Boltzmann policy at that temperature; and no past network is kept. Lauriere et al. 2022 (arXiv 2203.11973, algorithm 2;
of one agent Vieillard, Pietquin and Geist 2020, arXiv 2007.14430). Logarithms are exact: a floor under pi
(1e-6 in OpenSpiel's) would stop the sum at tau log 1e-6.

A policy that sees the crowd (`sight = "crowd"`) may learn from several `starts` at once, and then answers distributions
that it never saw (Perrin et al. 2022, arXiv 2109.09717, "master policy"; with mirror descent Wu et al. 2024,
arXiv 2403.03552).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games import approximation as nets
from mfmarl.games import sampling, values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.options import Bounds, Seed
from mfmarl.random import Key
from mfmarl.statmech import gibbs


class State(NamedTuple):
    learned: Tensor  # [*b, G, 3, P]: weights and Adam's moments of Q~
    scale: Tensor  # [*b, G], the unit of values
    updates: Tensor  # int64 [], made so far


@dataclass(frozen=True)
class DeepMirrorDescent(Solver):
    """Munchausen online mirror descent with a Q network (D-MOMD)."""

    name: ClassVar[str] = "deep_omd"
    temperature: Annotated[float, Bounds(0, 1e9, open_low=True)] = 5.0
    """tau: mirror descent at rate 1/tau."""
    alpha: Annotated[float, Bounds(0, 1)] = 1.0
    """Share of the past that is kept; below 1 it goes to the Boltzmann policy at (1 - alpha) tau."""
    hidden: tuple[Annotated[int, Bounds(1, 1 << 20)], ...] = (64, 64)
    """Widths of the hidden layers."""
    agents: Annotated[int, Bounds(1, 1 << 20)] = 200
    """Paths that are sampled in an iteration."""
    length: Annotated[int, Bounds(1, 1 << 20)] = 50
    """Steps of a path, in a game without a horizon."""
    explore: Annotated[float, Bounds(0, 1)] = 0.2
    """Probability of any action alike."""
    scatter: Annotated[float, Bounds(0, 1)] = 0.1
    """Probability of finding oneself in any state alike, before a step."""
    sweeps: Annotated[int, Bounds(1, 1 << 20)] = 10
    """How often in an iteration the values that targets stand on are renewed."""
    updates: Annotated[int, Bounds(1, 1 << 20)] = 20
    """Steps of descent between."""
    rows: Annotated[int, Bounds(1, 1 << 20)] = 256
    """Transitions in a step of descent."""
    learning_rate: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-3
    """Adam's."""
    seed: Seed = 0
    """Of weights and paths."""
    starts: Tensor | None = None
    """Distributions at the start [D, G, S] to learn from instead of the game's own; with sight=crowd."""

    @property
    def rests_elsewhere(self) -> bool:
        return self.alpha < 1

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        nets.check_beginning(game, policy, self.name)
        if self.starts is not None and game.sight != "crowd":
            raise ConfigError("Several starts are for policies that see which it was: give the game sight=crowd.")
        layout = self._layout(game, policy.shape[1:-3])
        start = self._start(game, layout, policy)
        rows = nets.rows_of(game, layout, start.unsqueeze(0))
        first = flow(
            game, policy.reshape(len(policy), -1, *policy.shape[-3:]).repeat_interleave(layout.starts, 1), start
        )
        learned = nets.new_networks(layout, self._sizes(game), rows, Key.of(self.seed).fold("weights"))
        return State(learned, nets.reward_scale(game, first, layout), torch.zeros((), dtype=torch.int64))

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        layout = self._layout(game, state.scale.shape[:-1])
        learned = state.learned.flatten(0, -3)
        start = self._start(game, layout, state.scale)
        scale = self._scale(layout, state)
        sizes = self._sizes(game)
        seen = nets.tabulate(game, layout, learned[:, 0], sizes, self._head(game, scale), start)
        policy = seen.flow.policy
        memory = self._memory(game, seen.said * scale) / scale
        key = Key.of(self.seed).fold("step", iteration)
        behaviour = sampling.exploring(policy, game.legal_mask(policy.device), self.explore)
        paths = sampling.walk(game, layout, seen.flow, behaviour, self.agents, self.length, self.scatter, key)
        row, action, reward, after, on = paths.transitions()
        unit = state.scale.reshape(-1, 1).float()
        # r + alpha tau log pi, in the network's unit.
        kept = layout.by_mind(memory).float()
        paid = reward / unit + kept.flatten(1).gather(1, row * kept.shape[-1] + action)
        done, said = int(state.updates), seen.said
        for sweep in range(self.sweeps):
            ahead = (policy * (said - memory)).sum(-1, keepdim=True)
            target = paid + game.discount * on * layout.by_mind(ahead).float().squeeze(-1).gather(1, after)
            learned = nets.fit_values(learned, sizes, seen.rows, row, action, target, self.rows, self.updates,
                                      self.learning_rate, done, key.fold("rows", sweep))  # fmt: skip
            done += self.updates
            said = layout.by_time(
                nets.answers(learned[:, 0], sizes, seen.rows.expand(layout.minds, -1, -1)).to(said.dtype)
            )
        return State(learned.view(state.learned.shape), state.scale, torch.full_like(state.updates, done))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return self.policy_from(game, state, game.start(state.scale.dtype, state.scale.device))

    def policy_from(self, game: MeanFieldGame, state: State, start: Tensor) -> Tensor:
        """The policy [T, *b, G, S, A] along the flow from `start` [G, S] or [*b, G, S], and not the game's own start."""
        layout = sampling.layout_of(game, state.scale.shape[:-1])
        start = start.expand(*layout.batch, *start.shape[-2:]).reshape(layout.flows, *start.shape[-2:])
        sizes = self._sizes(game)
        head = self._head(game, self._scale(layout, state))
        seen = nets.tabulate(game, layout, state.learned.flatten(0, -3)[:, 0], sizes, head, start)
        return layout.with_batch(seen.flow.policy)

    def _head(self, game: MeanFieldGame, scale: Tensor) -> nets.Head:
        return lambda said: values.boltzmann(game, said * scale, self.temperature)

    def _scale(self, layout: sampling.Layout, state: State) -> Tensor:
        """[E, G, 1, 1]."""
        return state.scale.reshape(-1, layout.groups, 1, 1).repeat_interleave(layout.starts, 0)

    def _layout(self, game: MeanFieldGame, batch: torch.Size) -> sampling.Layout:
        return sampling.layout_of(game, batch, 1 if self.starts is None else len(self.starts))

    def _start(self, game: MeanFieldGame, layout: sampling.Layout, like: Tensor) -> Tensor:
        """[E, G, S]."""
        mine = game.start(like.dtype, like.device).unsqueeze(0) if self.starts is None else self.starts.to(like)
        return mine.repeat(layout.flows // layout.starts, 1, 1)

    def _memory(self, game: MeanFieldGame, q: Tensor) -> Tensor:
        """alpha tau log pi of pi ~ exp(q / tau); of an illegal action, which nobody takes, 0."""
        legal = game.legal_mask(q.device)
        energy = -q if legal is None else (-q).masked_fill(~legal, torch.inf)
        # Not the logarithm of a probability: one that is too small for a float must not be forgotten.
        log = gibbs.log_probabilities(energy, self.temperature)
        return self.alpha * self.temperature * (log if legal is None else log.masked_fill(~legal, 0.0))

    def _sizes(self, game: MeanFieldGame) -> tuple[int, ...]:
        return (nets.features(game), *self.hidden, game.num_actions)
