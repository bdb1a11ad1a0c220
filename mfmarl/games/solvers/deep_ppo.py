r"""Mean-field PPO: policy gradients amid a crowd that is held, and a bound on how far the crowd's policy moves.

$$ L(\theta) = -\mathbb{E}\Big[ w\, \ell\Big(\tfrac{\pi_\theta}{\pi_{\theta_r}}, \epsilon_r\Big)
   + (1 - w)\, \ell\Big(\tfrac{\pi_\theta}{\pi_k}, \epsilon_k\Big) \Big], \qquad
   \ell(\rho, \epsilon) = \min\big( \rho A,\; \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A \big) $$

pi_k is the policy that the crowd of this iteration has, pi_{theta_r} the one that sampled the paths of this round;
several rounds make an iteration, and the crowd moves only between iterations. The second bound is what damps the
mean-field iteration, which without it goes round in circles as best responses do. Algumaei, Solozabal, Alami, Hacid,
Debbah and Takac 2023 (arXiv 2304.01547); PPO: Schulman et al. 2017 (arXiv 1707.06347); advantages: generalised, Schulman
et al. 2016 (arXiv 1506.02438, eq. 16). Both ratios are of the action that was taken, to which the advantage belongs
(OpenSpiel 2.0.2 puts the advantage of one action beside the second ratio of another).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.games import approximation as nets
from mfmarl.games import sampling, values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.options import Bounds, Seed
from mfmarl.random import Key
from mfmarl.statmech import gibbs


class State(NamedTuple):
    actor: Tensor  # [*b, G, 3, P]: weights and Adam's moments of the policy's network
    critic: Tensor  # [*b, G, 3, P]: of the critic's
    scale: Tensor  # [*b, G], the unit of values
    updates: Tensor  # int64 []


@dataclass(frozen=True)
class DeepPPO(Solver):
    """PPO amid the crowd, whose policy moves by little in an iteration (MF-PPO)."""

    name: ClassVar[str] = "deep_ppo"
    hidden: tuple[Annotated[int, Bounds(1, 1 << 20)], ...] = (64, 64)
    """Widths of the hidden layers, of policy and critic."""
    agents: Annotated[int, Bounds(2, 1 << 20)] = 200
    """Paths that are sampled in a round."""
    length: Annotated[int, Bounds(1, 1 << 20)] = 50
    """Steps of a path, in a game without a horizon."""
    rounds: Annotated[int, Bounds(1, 1 << 20)] = 4
    """Rounds of sampling and learning amid one crowd."""
    updates: Annotated[int, Bounds(1, 1 << 20)] = 20
    """Steps of descent in a round."""
    rows: Annotated[int, Bounds(1, 1 << 20)] = 256
    """Steps of paths in a step of descent."""
    clip: Annotated[float, Bounds(0, 1, open_low=True)] = 0.2
    """epsilon_r, within a round."""
    crowd_clip: Annotated[float, Bounds(0, 1, open_low=True)] = 0.05
    """epsilon_k, within an iteration: of the first ones."""
    settle: Annotated[float, Bounds(0, 1e9, open_low=True)] | None = 20.0
    """Iterations after which epsilon_k is half as large, and then falls as 1/k; none: it stays."""
    share: Annotated[float, Bounds(0, 1)] = 0.5
    """w, what the first of the two bounds counts; 1: PPO without a bound on the crowd's policy."""
    trace: Annotated[float, Bounds(0, 1)] = 0.95
    """lambda of the advantages."""
    entropy: Annotated[float, Bounds(0, 1e6)] = 0.01
    """What the entropy of choices counts, beside advantages of spread 1."""
    learning_rate: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-3
    """Adam's."""
    seed: Seed = 0
    """Of weights and paths."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        nets.check_beginning(game, policy, self.name)
        layout = sampling.layout_of(game, policy.shape[1:-3])
        start = self._start(game, layout, policy)
        rows = nets.rows_of(game, layout, start.unsqueeze(0))
        key = Key.of(self.seed)
        acting, judging = self._sizes(game)
        actor = nets.new_networks(layout, acting, rows, key.fold("weights", 0))
        critic = nets.new_networks(layout, judging, rows, key.fold("weights", 1))
        path = flow(game, policy.reshape(layout.times, layout.flows, *policy.shape[-3:]), start)
        return State(actor, critic, nets.reward_scale(game, path, layout), torch.zeros((), dtype=torch.int64))

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        layout = sampling.layout_of(game, state.scale.shape[:-1])
        seen = self._seen(game, layout, state)
        of_crowd = self._log(game, layout, seen.said)
        bound = self.crowd_clip if self.settle is None else self.crowd_clip / (1 + iteration / self.settle)
        for number in range(self.rounds):
            key = Key.of(self.seed).fold("round", iteration, number)
            state = self._round(game, layout, state, seen, of_crowd, bound, key)
        return state

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        layout = sampling.layout_of(game, state.scale.shape[:-1])
        policy = self._seen(game, layout, state).flow.policy
        return layout.with_batch(policy)

    def _round(
        self,
        game: MeanFieldGame,
        layout: sampling.Layout,
        state: State,
        seen: nets.Seen,
        of_crowd: Tensor,
        bound: float,
        key: Key,
    ) -> State:
        """One round amid the crowd of `seen`, whose policy has the logarithms `of_crowd` [M, R, A]."""
        acting, judging = self._sizes(game)
        actor, critic = state.actor.flatten(0, -3), state.critic.flatten(0, -3)
        views = seen.rows.expand(layout.minds, -1, -1)
        said = layout.by_time(nets.answers(actor[:, 0], acting, views).to(state.scale.dtype))
        paths = sampling.walk(game, layout, seen.flow, self._head(game)(said), self.agents, self.length, 0.0, key)
        worth = nets.answers(critic[:, 0], judging, views).squeeze(-1)
        gain = self._advantages(game, paths, worth, state.scale).transpose(0, 1).flatten(1)
        row, action, *_ = paths.transitions()
        goal = gain + worth.gather(1, row)
        advantage = (gain - gain.mean(1, keepdim=True)) / (gain.std(1, keepdim=True) + 1e-8)
        place = row * game.num_actions + action
        before = self._log(game, layout, said).flatten(1).gather(1, place)
        crowd = of_crowd.flatten(1).gather(1, place)
        mask = game.legal_mask(said.device)
        legal = None if mask is None else layout.by_mind(mask.expand(layout.times, layout.flows, *mask.shape))

        def loss(weights: Tensor, drawn: Tensor) -> Tensor:
            here = row.gather(1, drawn)
            logits = nets.answers(weights, acting, nets.look(seen.rows, here))
            if legal is not None:
                # Finite, so that no gradient is 0 times infinity.
                logits = logits.masked_fill(~nets.look(legal, here), -1e9)
            log = torch.log_softmax(logits, -1)
            chosen = log.gather(-1, action.gather(1, drawn).unsqueeze(-1)).squeeze(-1)
            gained = advantage.gather(1, drawn)
            inner = _bounded(chosen - before.gather(1, drawn), gained, self.clip)
            ratio = chosen - crowd.gather(1, drawn)
            outer = _bounded(ratio, gained, bound)
            entropy = -(log.exp() * log).sum(-1)
            total = (self.share * inner + (1 - self.share) * outer + self.entropy * entropy).mean(-1)
            if self.share == 1:
                return -total
            # Clipping takes the gradient away and not Adam's momentum: at the bound a mind waits for the next crowd.
            near = (ratio.detach().exp() - 1).abs().mean(-1) <= bound
            return torch.where(near, -total, torch.zeros_like(total))

        def error(weights: Tensor, drawn: Tensor) -> Tensor:
            told = nets.answers(weights, judging, nets.look(seen.rows, row.gather(1, drawn))).squeeze(-1)
            return (told - goal.gather(1, drawn)).square().mean(-1)

        for_all = (row.shape[1], self.rows, self.updates, self.learning_rate, int(state.updates))
        actor = nets.minibatches(actor, loss, *for_all, key.fold("actor"))
        critic = nets.minibatches(critic, error, *for_all, key.fold("critic"))
        return State(
            actor.view(state.actor.shape), critic.view(state.critic.shape), state.scale, state.updates + self.updates
        )

    def _advantages(self, game: MeanFieldGame, paths: sampling.Paths, worth: Tensor, scale: Tensor) -> Tensor:
        """[L, M, N], by the critic's `worth` [M, R] of all rows."""
        reward = paths.reward / scale.reshape(-1, 1).float()
        steps, found = len(reward), []
        ahead = torch.zeros_like(reward[0])
        for step in range(steps - 1, -1, -1):
            following = game.discount * paths.goes_on[step] * worth.gather(1, paths.after[step])
            ahead = reward[step] + following - worth.gather(1, paths.row[step]) + game.discount * self.trace * ahead
            found.append(ahead)
        return torch.stack(found[::-1])

    def _seen(self, game: MeanFieldGame, layout: sampling.Layout, state: State) -> nets.Seen:
        acting, _ = self._sizes(game)
        weights = state.actor.flatten(0, -3)[:, 0]
        return nets.tabulate(game, layout, weights, acting, self._head(game), self._start(game, layout, state.scale))

    def _log(self, game: MeanFieldGame, layout: sampling.Layout, said: Tensor) -> Tensor:
        """log pi [M, R, A] float32 of what the policy's network said; -inf for the illegal."""
        legal = game.legal_mask(said.device)
        energy = -said if legal is None else (-said).masked_fill(~legal, torch.inf)
        return layout.by_mind(gibbs.log_probabilities(energy, 1.0)).float()

    def _head(self, game: MeanFieldGame) -> nets.Head:
        return lambda said: values.boltzmann(game, said, 1.0)

    def _start(self, game: MeanFieldGame, layout: sampling.Layout, like: Tensor) -> Tensor:
        return game.start(like.dtype, like.device).expand(layout.flows, -1, -1)

    def _sizes(self, game: MeanFieldGame) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the policy's network and of the critic's."""
        seen = nets.features(game)
        return (seen, *self.hidden, game.num_actions), (seen, *self.hidden, 1)


def _bounded(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
