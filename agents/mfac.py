r"""Mean-field actor-critic; without a field, independent actor-critic.

$$ y = r + \gamma\, v^{MF}(s'), \qquad v^{MF}(s') = \langle Q_-(s', \cdot, \bar a') \rangle_{\pi}, \qquad
   \nabla J = \langle \nabla \log \pi(a \mid s, \bar a)\, (Q(s, a, \bar a) - \langle Q \rangle_\pi - T \log \pi) \rangle_\pi $$

Yang et al. 2018, "Mean field multi-agent reinforcement learning", arXiv 1802.05438, algorithm 2: transitions
from a replay, a target critic, and an actor that, unlike the released code's, feels the field too. For discrete
actions the average over the actor's own action is taken exactly and not by one draw: the same gradient
without its noise. The last term makes the temperature mean what it means for every agent: the actor
descends the free energy <-Q> - T H, whose minimum is the Gibbs distribution of -Q at T.

For a Box the actor is a Gaussian carried into the Box, and the gradient goes through the critic.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.learning.agent import (
    Agent,
    Clip,
    Discount,
    Positive,
    Rate,
    Transition,
    actor_temperature,
    averaged,
    logits_as_energy,
    policy,
    pooled,
    told_of_weights,
    told_once,
    weighted,
)
from mfmarl.learning.gaussian import Squash, draw, log_density
from mfmarl.learning.networks import Network, descend, track
from mfmarl.learning.optimisers import LearnerConfig, make_optimiser, set_pace
from mfmarl.options import Bounds
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register


@dataclass(frozen=True)
class MFACConfig(LearnerConfig):
    """Options of mean-field actor-critic."""

    carry: Literal["felt", "caused"] = "felt"
    """The field a transition carries: the one felt when acting (what acting knows), or the one the step caused."""
    gamma: Discount = None
    """Discount per step; none: the environment's own (0 for a stage game, else 0.95)."""
    actor_rate: Rate | None = None
    """Learning rate of the actor (none: 0.001 with Adam, the optimiser's usual one with others)."""
    critic_rate: Rate | None = None
    """Learning rate of the critic (likewise)."""
    anneal: bool = True
    """Whether learning rates sink over the last quarter of the run, and as the temperature falls."""
    hidden: tuple[Positive, ...] = (64, 64)
    """Hidden layers, of the actor and of the critic."""
    batch_size: Positive = 256
    """Transitions per update and mind."""
    capacity: Positive = 65_536
    """Transitions kept for replay, per mind."""
    priority: Annotated[float, Bounds(0.0, 1.0)] = 0.0
    """Exponent alpha of prioritised replay: transitions are drawn by error^alpha (usual: 0.6); 0: uniformly."""
    correction: Annotated[float, Bounds(0.0, 1.0)] = 0.4
    """Exponent beta of the weights that correct for priorities, at first; it rises to 1 over the run."""
    warm_up: Positive = 256
    """Transitions gathered, per mind, before learning begins."""
    learn_every: Positive = 1
    """Environment steps between updates."""
    updates: Positive = 1
    """Updates each time."""
    target_rate: Annotated[float, Bounds(0.0, 1.0)] = 0.01
    """How far the target critic moves towards the online one with each update."""
    gradient_clip: Clip = 10.0
    """Largest norm of a mind's gradient, of the actor and of the critic each; 0: no limit."""
    remember: Positive = 4096
    """Of an exchangeable crowd, transitions kept from each step."""


@register("mfac", independent="iac")
class MFAC(Agent):
    """Mean-field actor-critic: a policy and action values given the mean action of the others."""

    Config = MFACConfig
    memory = "replay"
    divides = True

    def __init__(self, config: MFACConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        self.carries = config.carry
        self.key, self.learned = key.fold("noise"), 0
        size, hidden, actions = self.field_size, config.hidden, spec.num_actions
        if spec.discrete:
            self.actor = Network(spec, size, hidden, actions, minds, key.fold("actor"), out_scale=1e-3)
            self.critic = Network(spec, size, hidden, actions, minds, key.fold("critic"))
        else:
            self.squash = Squash(spec.action_space)  # type: ignore[arg-type]
            self.actor = Network(spec, size, hidden, 2 * actions, minds, key.fold("actor"), out_scale=1e-3)
            self.critic = Network(spec, size + actions, hidden, 1, minds, key.fold("critic"))
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.actor_weights, self.critic_weights = list(self.actor.parameters()), list(self.critic.parameters())
        noise = key.fold("weights")
        self.actor_optimiser = make_optimiser(config, self.actor_weights, config.actor_rate, noise.fold("actor"))
        self.critic_optimiser = make_optimiser(config, self.critic_weights, config.critic_rate, noise.fold("critic"))
        # As they were made: what an annealing run slows down.
        self.rates = [float(o.param_groups[0]["lr"]) for o in (self.actor_optimiser, self.critic_optimiser)]

    # ---------------------------------------------------------------------------------------- acting

    @property
    def temperature(self) -> float | Tensor:
        return actor_temperature(super().temperature)

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        if not self.spec.discrete:
            raise ConfigError("A Box of actions has no list of energies: mfac draws from a Gaussian there.")
        return logits_as_energy(self.actor(obs, field), self.temperature)

    def _gaussian(self, obs: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.actor(obs, field).chunk(2, dim=-1)
        return mean, spread.clamp(-5.0, 2.0)

    def choose(self, obs: Tensor, field: Tensor, legal: Tensor | None, ids: Tensor, key: Key) -> Tensor:
        if self.spec.discrete:
            return super().choose(obs, field, legal, ids, key)
        return self.squash(draw(*self._gaussian(obs, field), ids, key))

    # -------------------------------------------------------------------------------------- learning

    def learn(self, batch: Transition) -> dict[str, Tensor]:
        config: MFACConfig = self.config
        target = batch.reward
        if self.gamma:
            target = target + self.gamma * torch.where(batch.terminated, 0.0, self.mean_field_value(batch))
        if self.spec.discrete:
            q = self.critic(batch.obs, batch.field)
            chosen = q.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        else:
            q = chosen = self.critic(batch.obs, batch.field, batch.action).squeeze(-1)
        error = chosen - target
        loss = pooled(weighted(error.square(), batch.weight), batch.valid, batch.of)
        pace, clip = self.pace() if config.anneal else 1.0, config.gradient_clip
        for optimiser, rate in zip((self.actor_optimiser, self.critic_optimiser), self.rates, strict=True):
            set_pace(optimiser, pace * rate, config, self.progress)
        name = "mean-field actor-critic"
        norm = descend(
            loss, self.critic_weights, self.critic_optimiser, self.minds, clip, f"the critic of {name}", self.ranks
        )
        track(self.target, self.critic, config.target_rate)
        free, entropy = self.free_energy(batch, q.detach())
        free_loss = pooled(weighted(free, batch.weight), batch.valid, batch.of)
        # Through the critic, but not into it: the gradient of the actor's weights alone.
        actor_norm = descend(
            free_loss, self.actor_weights, self.actor_optimiser, self.minds, clip, f"the actor of {name}", self.ranks
        )
        entropy = pooled(entropy.detach(), batch.valid, batch.of) / self.minds
        self.adapt_temperature(entropy)
        self.learned += 1
        return {
            "loss": loss.detach() / self.minds,
            "free_energy": free_loss.detach() / self.minds,
            "entropy": entropy,
            "gradient_norm": told_once(norm.mean(), self.ranks),
            "actor_gradient_norm": told_once(actor_norm.mean(), self.ranks),
            "value": averaged(q.detach(), batch.of),
            **told_of_weights(batch, error),
        }

    @torch.no_grad()
    def mean_field_value(self, batch: Transition) -> Tensor:
        """v^MF [M, B] of what follows: the actor's average of the target's Q (for a Box, at one draw)."""
        obs, field = batch.next_obs, batch.next_field
        if self.spec.discrete:
            p, _ = policy(self.actor(obs, field), batch.next_legal)
            return (p * self.target(obs, field)).sum(-1)
        action = self.squash(draw(*self._gaussian(obs, field), _names(batch), self.key.fold("next", self.learned)))
        return self.target(obs, field, action).squeeze(-1)

    def free_energy(self, batch: Transition, q: Tensor) -> tuple[Tensor, Tensor]:
        """<-Q> - T H of the actor, and its entropy: [M, B] each, differentiable in the actor."""
        if self.spec.discrete:
            p, log_p = policy(self.actor(batch.obs, batch.field), batch.legal)
            entropy = -(p * log_p).sum(-1)
            energy = -(p * q).sum(-1)
        else:
            mean, log_std = self._gaussian(batch.obs, batch.field)
            u = draw(mean, log_std, _names(batch), self.key.fold("now", self.learned))
            entropy = self.squash.log_slope(u) - log_density(u, mean, log_std)
            energy = -self.critic(batch.obs, batch.field, self.squash(u)).squeeze(-1)
        return energy - self.temperature * entropy, entropy

    # ----------------------------------------------------------------------------------- checkpoints

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimiser, "critic": self.critic_optimiser}

    def get_extra_state(self) -> Tensor:
        """How often it has learned: names the noise of learning."""
        return torch.tensor(self.learned)

    def set_extra_state(self, state: Tensor) -> None:
        self.learned = int(state)


def _names(batch: Transition) -> Tensor:
    """A number for every row [M, B], the same whoever else learns beside it, and wherever."""
    if batch.number is not None:
        return batch.number
    return torch.arange(batch.obs.shape[1], device=batch.obs.device).expand(batch.obs.shape[0], -1)
