r"""Mean-field proximal policy optimisation; without a field, independent PPO.

$$ J = \Big\langle \min\big(\rho\, A,\ \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\, A\big)
      + T\, H(\pi(\cdot \mid s, \bar a)) \Big\rangle, \qquad \rho = \pi / \pi_{old} $$

Schulman et al. 2017, arXiv 1707.06347, equation 7, with advantages by generalised estimation (arXiv 1506.02438) and
a policy and value that feel the mean field. J is divided as a whole by the advantages' spread, entropy included:
dividing the advantages alone, as is usual, would change what the temperature means. So in a game without
state the policy arrives at the Gibbs distribution exp(A/T), as the other agents do.

The value network predicts returns in units of their running mean and spread, and is corrected whenever those
move, so that its predictions do not (van Hasselt et al. 2016, arXiv 1602.07714). For a Box the policy is a
Gaussian carried into it, with a spread that does not depend on what is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.learning.agent import (
    Agent,
    Clip,
    Discount,
    Positive,
    Rate,
    actor_temperature,
    finite,
    logits_as_energy,
    policy,
    pooled,
    told_once,
)
from mfmarl.learning.gaussian import Squash, draw, log_density
from mfmarl.learning.memory import advantages, either
from mfmarl.learning.networks import Activation, Network, clip_gradients, find_gradients, finite_step
from mfmarl.learning.optimisers import LearnerConfig, make_optimiser, set_pace
from mfmarl.options import Bounds
from mfmarl.population.ranks import Ranks
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech import importance

_NAME = "proximal policy optimisation"


@dataclass(frozen=True)
class MFPPOConfig(LearnerConfig):
    """Options of mean-field proximal policy optimisation."""

    gamma: Discount = None
    """Discount per step; none: the environment's own (0 for a stage game, else 0.95)."""
    lam: Annotated[float, Bounds(0.0, 1.0)] = 0.95
    """Lambda of the generalised advantages."""
    rollout: Positive = 16
    """Environment steps between updates."""
    epochs: Positive = 4
    """Passes over each rollout."""
    minibatches: Positive = 4
    """Parts of the rollout, one update each."""
    learning_rate: Rate | None = None
    """Of policy and value (none: 0.001 with Adam, the optimiser's usual one with others)."""
    anneal: bool = True
    """Whether learning rates sink over the last quarter of the run, and as the temperature falls."""
    clip: Annotated[float, Bounds(0.0, 10.0, open_low=True)] = 0.2
    """How far the ratio of probabilities may move before its gradient stops."""
    hidden: tuple[Positive, ...] = (64, 64)
    """Hidden layers, of the policy and of the value."""
    activation: Activation = "relu"
    """Between the layers."""
    gradient_clip: Clip = 0.5
    """Largest norm of a mind's gradient, of policy and value each; 0: no limit."""
    remember: Annotated[int, Bounds(0, 1 << 40)] = 4096
    """Of an exchangeable crowd (agents times copies), those who are learned from; 0: all."""


@register("mfppo", independent="ippo")
class MFPPO(Agent):
    """Mean-field PPO: a clipped policy gradient on rollouts, given the mean action of the others."""

    Config = MFPPOConfig
    memory = "rollout"
    divides = True
    centre: Tensor
    spread: Tensor
    seen: Tensor

    def __init__(self, config: MFPPOConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        size, hidden, actions = self.field_size, config.hidden, spec.num_actions
        if not spec.discrete:
            self.squash = Squash(spec.action_space)  # type: ignore[arg-type]
            self.log_std = nn.Parameter(torch.full((minds, 1, actions), -0.5))
        self.policy = Network(spec, size, hidden, actions, minds, key.fold("policy"), config.activation, out_scale=1e-3)
        self.worth = Network(spec, size, hidden, 1, minds, key.fold("value"), config.activation)
        self.value_weights, self.policy_weights = list(self.worth.parameters()), list(self.policy.parameters())
        weights = [*self.policy_weights, *self.value_weights]
        self.optimiser = make_optimiser(config, weights, config.learning_rate, key.fold("weights"))
        if not spec.discrete:
            # One number per dimension has further to go than the many weights of a network.
            self.policy_weights.append(self.log_std)
            self.optimiser.add_param_group({"params": [self.log_std], "lr": 10 * self.optimiser.param_groups[0]["lr"]})
        self.rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.register_buffer("centre", torch.zeros(minds, 1))  # of the returns
        self.register_buffer("spread", torch.ones(minds, 1))
        self.register_buffer("seen", torch.zeros(()))

    # ---------------------------------------------------------------------------------------- acting

    @property
    def temperature(self) -> float | Tensor:
        return actor_temperature(super().temperature)

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        if not self.spec.discrete:
            raise ConfigError("A Box of actions has no list of energies: mfppo draws from a Gaussian there.")
        return logits_as_energy(self.policy(obs, field), self.temperature)

    def choose(self, obs: Tensor, field: Tensor, legal: Tensor | None, ids: Tensor, key: Key) -> Tensor:
        if self.spec.discrete:
            return super().choose(obs, field, legal, ids, key)
        mean = self.policy(obs, field)
        return self.squash(draw(mean, self.log_std.expand_as(mean), ids, key))

    @torch.no_grad()
    def value(self, obs: Tensor, field: Tensor) -> Tensor:
        parts = [self.worth(obs[:, rows], field[:, rows]) for rows in self._chunks(obs.shape[1])]
        return self.centre + self.spread * torch.cat(parts, 1).squeeze(-1)

    # -------------------------------------------------------------------------------------- learning

    def _judge(self, rows: dict[str, Tensor], key: Key) -> tuple[Tensor, Tensor]:
        """Log-probability of the action taken, and the entropy of the policy: [M, B] each."""
        out = self.policy(rows["obs"], rows["field"])
        if self.spec.discrete:
            p, log_p = policy(out, rows.get("legal"))
            chosen = log_p.gather(-1, rows["action"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
            return chosen, -(p * log_p).sum(-1)
        log_std = self.log_std.expand_as(out)
        chosen = log_density(rows["u"], out, log_std)  # the slope of the map cancels in the ratio
        names = rows["number"] if "number" in rows else torch.arange(out.shape[1], device=out.device)
        names = names.expand(out.shape[:2])
        u = draw(out, log_std, names, key)
        return chosen, self.squash.log_slope(u) - log_density(u, out, log_std)

    def learn(self, batch: tuple[dict[str, Tensor], Key]) -> dict[str, Tensor]:
        config: MFPPOConfig = self.config
        steps, key = batch
        length = len(steps["reward"])
        # Of a crowd that is divided: which of so many rows of a step are here.
        number, of = steps.pop("number", None), int(steps.pop("of", torch.tensor(0)))
        last_value = self.value(steps.pop("last_obs"), steps.pop("last_field"))
        # [T, M, B, ...] -> [M, T x B, ...]: a row is one agent's step.
        rows = {name: x.transpose(0, 1).flatten(1, 2) for name, x in steps.items()}
        worth = self.value(rows["obs"], rows["field"])
        by_step = worth.unflatten(1, (length, -1)).transpose(0, 1)
        advantage, returns = advantages(
            steps["reward"], by_step, last_value, steps["acting"], steps["ended"], steps["bootstrap"],
            self.gamma, config.lam,
        )  # fmt: skip
        acting = rows.pop("acting")
        everyone = not self.ranks.agree(not bool(acting.all()))
        if not self.spec.discrete:
            rows["u"] = self.squash.inverse(rows["action"].nan_to_num())
        rows = {name: rows[name] for name in ("obs", "field", "legal", "action", "u") if name in rows}
        rows["advantage"] = advantage.transpose(0, 1).flatten(1, 2)
        rows["returns"] = returns.transpose(0, 1).flatten(1, 2)
        rows["acting"] = acting
        place = None if number is None else _places(length, number, of)
        if self.minds == 1 and not everyone:
            if place is not None:
                place = _asked_places(place, acting[0], self.ranks)
            asked = acting[0].nonzero().squeeze(-1)
            rows = {name: x.index_select(1, asked) for name, x in rows.items()}
            everyone = True
        here = rows["advantage"].shape[1]
        count = here if place is None else len(place)
        if count == 0:
            return {}
        weight = None if everyone else rows["acting"]
        self._rescale(rows["returns"], weight)
        mean, deviation = _moments(rows["advantage"], weight, self.ranks)
        temperature = self.temperature
        scale = deviation + temperature + 1e-8
        rows["advantage"] = (rows["advantage"] - mean) / scale
        rows["returns"] = (rows["returns"] - self.centre) / self.spread
        with torch.no_grad():
            parts = [self._judge({n: x[:, part] for n, x in rows.items()}, key)[0] for part in self._chunks(here)]
            rows["log_p"] = torch.cat(parts, 1)
        numbers: dict[str, list[Tensor]] = {}
        set_pace(self.optimiser, 0.0, config, self.progress)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.pace() if config.anneal else rate
        for epoch in range(config.epochs):
            order = torch.randperm(count, generator=random.generator(key.fold("order", epoch))).to(worth.device)
            for part in order.chunk(min(config.minibatches, count)):
                some, now = part, key.fold("now", epoch)
                if place is not None:
                    inside = place[part] >= 0
                    some = place[part[inside]]
                minibatch = {name: x.index_select(1, some) for name, x in rows.items()}
                if place is not None:
                    minibatch["number"] = inside.nonzero().T
                mask = None if everyone else minibatch["acting"]
                whole = None if place is None else len(part)
                for name, value in self._update(minibatch, mask, temperature / scale, now, whole).items():
                    numbers.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in numbers.items()}
        # As often as the others, who adapt with each of their updates.
        self.adapt_temperature(means["entropy"], 0.01 * len(numbers["entropy"]))
        return means

    def _update(
        self, rows: dict[str, Tensor], mask: Tensor | None, cold: Tensor, key: Key, of: int | None
    ) -> dict[str, Tensor]:
        config: MFPPOConfig = self.config
        log_p, entropy = self._judge(rows, key)
        change = log_p - rows["log_p"]
        ratio, advantage = change.exp(), rows["advantage"]
        clipped = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
        gain = pooled(clipped + cold * entropy, mask, of)
        error = pooled((self.worth(rows["obs"], rows["field"]).squeeze(-1) - rows["returns"]).square(), mask, of)
        loss = 0.5 * error - gain
        weights = [*self.policy_weights, *self.value_weights]
        weighed = None if of is None else torch.stack([ratio.detach().sum(), ratio.detach().square().sum()])
        whole, weighed = find_gradients(loss, weights, self.ranks, weighed)
        norm = clip_gradients(self.policy_weights, self.minds, config.gradient_clip)
        of_values = clip_gradients(self.value_weights, self.minds, config.gradient_clip)
        finite_step(whole, norm + of_values, _NAME)
        self.optimiser.step()
        if not self.spec.discrete:
            with torch.no_grad():
                self.log_std.clamp_(-5.0, 2.0)
        with torch.no_grad():
            divergence = pooled(ratio - 1 - change, mask, of)
            if weighed is not None and of is not None:
                share = told_once(weighed[0].square() / weighed[1] / of, self.ranks)
            else:
                log_weight = change if mask is None else change.masked_fill(~mask, float("-inf"))
                rows_left = change.shape[1] if mask is None else mask.sum(1).clamp(min=1)
                share = importance.effective_sample_size(log_weight) / rows_left
        minds = self.minds
        return {
            "loss": error.detach() / minds,
            "gain": gain.detach() / minds,
            "entropy": pooled(entropy.detach(), mask, of) / minds,
            "divergence": divergence / minds,
            "effective_sample_share": share.nan_to_num(0.0).mean(),
            "gradient_norm": told_once(norm.mean(), self.ranks),
        }

    @torch.no_grad()
    def _rescale(self, returns: Tensor, weight: Tensor | None) -> None:
        """Move the returns' mean and spread towards this rollout's, and the last layer so that values stay."""
        self.seen += 1
        rate = self.seen.reciprocal().clamp(min=0.1)
        mean, deviation = _moments(returns, weight, self.ranks)
        second = torch.lerp(self.spread.square() + self.centre.square(), deviation.square() + mean.square(), rate)
        centre = torch.lerp(self.centre, mean, rate)
        spread = (second - centre.square()).clamp(min=1e-6).sqrt()
        # Before the last layer is rescaled by them.
        finite((centre + spread).sum(), f"spread of the returns of {_NAME}")
        out = self.worth.out
        share = (self.spread / spread).unsqueeze(-1)
        out.weight.mul_(share)
        out.bias.mul_(share).add_(((self.centre - centre) / spread).unsqueeze(-1))
        self.centre.copy_(centre)
        self.spread.copy_(spread)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"all": self.optimiser}


def _moments(x: Tensor, weight: Tensor | None, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Each mind's mean and standard deviation over its (valid) rows on all ranks: [M, B] -> [M, 1] each."""
    wide = x.double()
    w = torch.ones_like(wide) if weight is None else weight.double()
    count, total = ranks.sum(torch.stack([w.sum(1, keepdim=True), (wide * w).sum(1, keepdim=True)]), "moments")
    mean = total / count.clamp(min=1)
    squares = ranks.sum(((wide - mean).square() * w).sum(1, keepdim=True), "moments")
    return mean.to(x.dtype), (squares / count.clamp(min=1)).sqrt().to(x.dtype)


def _places(length: int, number: Tensor, of: int) -> Tensor:
    """Where each of the length x of rows of a whole rollout lies among those here, step by step; -1: elsewhere."""
    place = torch.full((length, of), -1, dtype=torch.int64, device=number.device)
    place[:, number] = torch.arange(length * len(number), device=number.device).view(length, -1)
    return place.flatten()


def _asked_places(place: Tensor, acting: Tensor, ranks: Ranks) -> Tensor:
    """Of those rows of the whole rollout alone whose agents acted, where they lie among the ones here."""
    here = place >= 0
    asked = torch.zeros_like(here)
    asked[here] = acting[place[here]]
    rank = acting.long().cumsum(0) - 1
    place = place.clone()
    place[here] = rank[place[here]]
    return place[either(asked, ranks)]
