r"""Deep average-policy fictitious play: a network answers best, another remembers the average of all answers.

$$ \mathrm{BR}_k = \arg\max_a Q_k, \quad Q_k(s, a) \leftarrow r + \gamma \max_{a'} Q_k(s', a'), \qquad
   \bar\pi_k = \arg\min_\pi\; \mathbb{E}_{(s, a) \sim M_k} \big[ -\log \pi(a \mid s) \big] $$

Rewards and moves are those amid the crowd of the average policy; M_k is an even sample of what all best responses did
(the first policy's deeds among them, as in `fp`). States occur in it as often as responses come there, so that the
average policy is the one that makes the average flow. Lauriere et al. 2022 (arXiv 2203.11973, algorithm 1).

The reservoir is exact: every deed gets a random number, and the least are kept (Vitter 1985, ACM TOMS 11, 37).
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
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.options import Bounds, Seed
from mfmarl.random import Key


class State(NamedTuple):
    value: Tensor  # [*b, G, 3, P]: weights and Adam's moments of Q
    average: Tensor  # [*b, G, 3, P]: of the average policy
    scale: Tensor  # [*b, G], the unit of values
    deeds: Tensor  # int64 [*b, G, C]: row A + action, the reservoir, which grows to the capacity
    lots: Tensor  # int64 [*b, G, C]: their random numbers
    value_updates: Tensor  # int64 []
    average_updates: Tensor  # int64 []


@dataclass(frozen=True)
class DeepFictitiousPlay(Solver):
    """Fictitious play with a Q network and a network of the average policy (D-AFP)."""

    name: ClassVar[str] = "deep_fp"
    hidden: tuple[Annotated[int, Bounds(1, 1 << 20)], ...] = (64, 64)
    """Widths of the hidden layers, of both networks."""
    agents: Annotated[int, Bounds(1, 1 << 20)] = 200
    """Paths that are sampled in an iteration, to learn the best response and again to remember it."""
    length: Annotated[int, Bounds(1, 1 << 20)] = 50
    """Steps of a path, in a game without a horizon."""
    explore: Annotated[float, Bounds(0, 1)] = 0.2
    """Probability of any action alike, while the best response is learned."""
    scatter: Annotated[float, Bounds(0, 1)] = 0.1
    """Probability of finding oneself in any state alike, before a step, while the best response is learned."""
    sweeps: Annotated[int, Bounds(1, 1 << 20)] = 10
    """How often in an iteration the values that targets stand on are renewed."""
    updates: Annotated[int, Bounds(1, 1 << 20)] = 20
    """Steps of descent between, of Q; as many in all of the average policy."""
    rows: Annotated[int, Bounds(1, 1 << 20)] = 256
    """Transitions, and deeds, in a step of descent."""
    learning_rate: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-3
    """Adam's, of both."""
    capacity: Annotated[int, Bounds(1, 1 << 26)] = 100_000
    """Deeds that are remembered."""
    seed: Seed = 0
    """Of weights and paths."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        if game.sight == "crowd":
            raise ConfigError(
                "deep_fp remembers states and times, not crowds: give the game sight=state, or use deep_omd."
            )
        nets.check_beginning(game, policy, self.name)
        layout = sampling.layout_of(game, policy.shape[1:-3])
        start = self._start(game, layout, policy)
        rows = nets.rows_of(game, layout, start.expand(layout.times, *start.shape))
        key = Key.of(self.seed)
        value = nets.new_networks(layout, self._sizes(game), rows, key.fold("weights", 0))
        average = nets.new_networks(layout, self._sizes(game), rows, key.fold("weights", 1))
        flat = policy.reshape(layout.times, layout.flows, *policy.shape[-3:])
        path = flow(game, flat, start)
        paths = sampling.walk(game, layout, path, flat, self.agents, self.length, 0.0, key.fold("step", 0))
        empty = torch.zeros((layout.minds, 0), dtype=torch.int64, device=policy.device)
        deeds, lots = self._remember(game, paths, empty, empty, key.fold("lots", 0))
        none = torch.zeros((), dtype=torch.int64)
        shape = (*layout.batch, layout.groups, -1)
        return State(
            value, average, nets.reward_scale(game, path, layout), deeds.view(shape), lots.view(shape), none, none
        )

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        layout = sampling.layout_of(game, state.scale.shape[:-1])
        key = Key.of(self.seed)
        sizes = self._sizes(game)
        average = state.average.flatten(0, -3)
        seen = nets.tabulate(
            game, layout, average[:, 0], sizes, self._head(game), self._start(game, layout, state.scale)
        )
        value, answer = self._best_response(game, layout, state, seen, key.fold("step", iteration))
        paths = sampling.walk(
            game, layout, seen.flow, answer, self.agents, self.length, 0.0, key.fold("answer", iteration)
        )
        deeds, lots = self._remember(
            game, paths, state.deeds.flatten(0, -2), state.lots.flatten(0, -2), key.fold("lots", iteration)
        )
        legal = layout.by_mind(self._legal(game, layout, answer))

        def surprise(weights: Tensor, drawn: Tensor) -> Tensor:
            deed = deeds.gather(1, drawn)
            row = deed // game.num_actions
            said = nets.answers(weights, sizes, nets.look(seen.rows, row)).masked_fill(
                ~nets.look(legal, row), -torch.inf
            )
            taken = said.gather(-1, (deed % game.num_actions).unsqueeze(-1)).squeeze(-1)
            return (said.logsumexp(-1) - taken).mean(-1)

        updates = self.sweeps * self.updates
        done = int(state.average_updates)
        average = nets.minibatches(
            average, surprise, deeds.shape[1], self.rows, updates, self.learning_rate, done, key.fold("fit", iteration)
        )
        return State(
            value.view(state.value.shape), average.view(state.average.shape), state.scale,
            deeds.view(*state.deeds.shape[:-1], -1), lots.view(*state.lots.shape[:-1], -1),
            state.value_updates + updates, state.average_updates + updates,
        )  # fmt: skip

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        layout = sampling.layout_of(game, state.scale.shape[:-1])
        weights = state.average.flatten(0, -3)[:, 0]
        start = self._start(game, layout, state.scale)
        policy = nets.tabulate(game, layout, weights, self._sizes(game), self._head(game), start).flow.policy
        return layout.with_batch(policy)

    def _best_response(
        self, game: MeanFieldGame, layout: sampling.Layout, state: State, seen: nets.Seen, key: Key
    ) -> tuple[Tensor, Tensor]:
        """Q [M, 3, P] after deep Q-learning amid the crowd, and its greedy policy."""
        sizes, learned = self._sizes(game), state.value.flatten(0, -3)
        legal = game.legal_mask(state.scale.device)

        def told() -> Tensor:
            said = nets.answers(learned[:, 0], sizes, seen.rows.expand(layout.minds, -1, -1))
            return layout.by_time(said).to(state.scale.dtype)

        q = told()
        # Where the crowd goes, and where the last answer went.
        behaviour = sampling.exploring((seen.flow.policy + values.greedy(game, q)) / 2, legal, self.explore)
        paths = sampling.walk(game, layout, seen.flow, behaviour, self.agents, self.length, self.scatter, key)
        row, action, reward, after, on = paths.transitions()
        paid = reward / state.scale.reshape(-1, 1).float()
        done = int(state.value_updates)
        for sweep in range(self.sweeps):
            top = (q if legal is None else q.masked_fill(~legal, -torch.inf)).amax(-1, keepdim=True)
            target = paid + game.discount * on * layout.by_mind(top).float().squeeze(-1).gather(1, after)
            learned = nets.fit_values(learned, sizes, seen.rows, row, action, target, self.rows, self.updates,
                                      self.learning_rate, done, key.fold("rows", sweep))  # fmt: skip
            done += self.updates
            q = told()
        return learned, values.greedy(game, q)

    def _remember(
        self, game: MeanFieldGame, paths: sampling.Paths, deeds: Tensor, lots: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """The reservoir [M, C] with what was done on these paths: an even sample of all, of at most `capacity`."""
        new = (paths.row * game.num_actions + paths.action).transpose(0, 1).flatten(1)
        ids = torch.arange(new.numel(), device=new.device).view(new.shape)
        deeds, lots = torch.cat([deeds, new], 1), torch.cat([lots, random.bits(key, ids)], 1)
        if lots.shape[1] <= self.capacity:
            return deeds, lots
        least = lots.topk(self.capacity, dim=1, largest=False)
        return deeds.gather(1, least.indices), least.values

    def _legal(self, game: MeanFieldGame, layout: sampling.Layout, like: Tensor) -> Tensor:
        """bool [T, E, G, S, A]."""
        mask = game.legal_mask(like.device)
        return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.expand(like.shape)

    def _head(self, game: MeanFieldGame) -> nets.Head:
        return lambda said: values.boltzmann(game, said, 1.0)

    def _start(self, game: MeanFieldGame, layout: sampling.Layout, like: Tensor) -> Tensor:
        return game.start(like.dtype, like.device).expand(layout.flows, -1, -1)

    def _sizes(self, game: MeanFieldGame) -> tuple[int, ...]:
        return (nets.features(game), *self.hidden, game.num_actions)
