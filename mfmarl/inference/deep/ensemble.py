r"""An ensemble of networks that predict what follows: samples of a posterior over dynamics.

$$ p_k(s' \mid s, a) = N\big(s' ;\, s + \Delta\, \mu_k(s, a),\ \mathrm{diag}(\Delta^2 \sigma_k^2(s, a))\big), \qquad
   \mathcal L_k = \tfrac12 \sum_i \Big( \frac{(\delta_i - \mu_{k,i})^2}{\bar\sigma_{k,i}}
   + \frac{\overline{(\delta_i - \mu_{k,i})^2}}{\sigma_{k,i}^2} + \ln \sigma_{k,i}^2 \Big)
   + \tfrac12 (\rho - \hat\rho_k)^2 - \ln p_k(e) $$

delta = (s' - s)/Delta is the change in units of its own size, rho the reward likewise (its noise is learned as well), e
whether the step ended the agent's episode; what is barred is held fixed. Noise is learned by likelihood, means are weighed
by 1/sigma instead of 1/sigma^2 (beta-NLL at one half: Seitzer et al. 2022, arXiv 2203.09168), the reward not at all: else
columns that are known to four digits leave nothing of the gradient to the end of the episode, and a rare reward passes for
noise. Members begin with other weights and learn from other draws of what is remembered, each by maximum
likelihood: their disagreement is what is not known about the dynamics (Lakshminarayanan et al. 2017, arXiv 1612.01474;
Chua et al. 2018, arXiv 1805.12114; as active inference's beliefs over parameters: Tschantz et al. 2020, arXiv 2002.12636).
Every mind has an ensemble of its own: M minds of K members are one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.random import Key

# In units of the changes: what is surer than e^-4 of its own size is sure, and noise is never much above it.
_LEAST, _MOST = -8.0, 1.0
_FAR = 10.0  # standard deviations beyond which nothing is imagined where the space has no bounds
_SLOWEST = 1e-3  # the least share of a new batch in the running moments


class Prediction(NamedTuple):
    """What every member predicts, [M, K, B, ...]."""

    change: Tensor  # [M, K, B, S], the mean change of the state in units of its size
    log_variance: Tensor  # [M, K, B, S], in the same units
    reward: Tensor  # [M, K, B], the mean
    outcome: tuple[Tensor, Tensor]  # mean and log-variance [M, K, B, S + 1] of all that is seen: changes and reward
    ending: Tensor  # [M, K, B], the logit of the episode's end


class Ensemble(nn.Module):
    """K members for each of M minds, on states of S columns and actions of D.

    `low` and `high` [S] bound what can be imagined (infinite: ten standard deviations of what has been seen).
    """

    centre: Tensor
    spread: Tensor
    step: Tensor
    reward_centre: Tensor
    reward_spread: Tensor
    seen: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        columns: int,
        actions: int,
        hidden: Sequence[int],
        members: int,
        minds: int,
        key: Key,
        low: Tensor,
        high: Tensor,
    ) -> None:
        super().__init__()
        self.columns, self.members, self.minds = columns, members, minds
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise((columns + actions, *hidden, 2 * columns + 3))):
            generator = random.generator(key.fold(layer))
            bound = 1 / math.sqrt(inputs)
            for store, rows in ((self.weights, inputs), (self.biases, 1)):
                store.append(
                    nn.Parameter((torch.rand(minds, members, rows, outputs, generator=generator) * 2 - 1) * bound)
                )
        self.register_buffer("centre", torch.zeros(minds, 1, columns))
        self.register_buffer("spread", torch.ones(minds, 1, columns))
        self.register_buffer("step", torch.ones(minds, 1, columns))  # the size of changes
        self.register_buffer("reward_centre", torch.zeros(minds, 1))
        self.register_buffer("reward_spread", torch.ones(minds, 1))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def _run(self, state: Tensor, action: Tensor) -> Tensor:
        """[M, K, B, S] (or [M, 1, B, S]) and actions likewise -> [M, K, B, 2 S + 3]."""
        x = (state - self.centre.unsqueeze(1)) / self.spread.unsqueeze(1)
        x = torch.cat([x, action.expand(-1, x.shape[1], -1, -1)], -1)
        x = x.clamp(-2 * _FAR, 2 * _FAR).expand(-1, self.members, -1, -1).flatten(0, 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias.flatten(0, 1), x, weight.flatten(0, 1))
            if layer < len(self.weights) - 1:
                x = nn.functional.silu(x)
        return x.unflatten(0, (self.minds, self.members))

    def forward(self, state: Tensor, action: Tensor) -> Prediction:
        """What follows: `state` [M, K, B, S], every member its own, or [M, 1, B, S], the same for all; `action` likewise, or the same."""
        mean, spread, ending = self._run(state, action).split((self.columns + 1, self.columns + 1, 1), -1)
        # Bounded softly on both sides: gradients do not stop at a bound (Chua et al. 2018, appendix A.1).
        log_variance = _MOST - nn.functional.softplus(_MOST - spread)
        log_variance = _LEAST + nn.functional.softplus(log_variance - _LEAST)
        reward = self.reward_centre.unsqueeze(1) + self.reward_spread.unsqueeze(1) * mean[..., -1]
        return Prediction(mean[..., :-1], log_variance[..., :-1], reward, (mean, log_variance), ending.squeeze(-1))

    def follow(self, state: Tensor, prediction: Prediction) -> Tensor:
        """The mean of the next state of each member, [M, K, B, S], within what can be."""
        following = state + self.step.unsqueeze(1) * prediction.change
        far = _FAR * self.spread
        low = torch.where(torch.isfinite(self.low), self.low, self.centre - far).unsqueeze(1)
        high = torch.where(torch.isfinite(self.high), self.high, self.centre + far).unsqueeze(1)
        return torch.minimum(torch.maximum(following, low), high)

    @torch.no_grad()
    def note(self, state: Tensor, following: Tensor, reward: Tensor, ended: Tensor) -> None:
        """Move the units towards those of a batch: states [M, B, S], rewards [M, B]. What is imagined moves with them."""
        self.seen += 1
        rate = self.seen.reciprocal().clamp(min=_SLOWEST)
        for centre, spread, values in (
            (self.centre, self.spread, state),
            (self.reward_centre, self.reward_spread, reward),
        ):
            mean = values.mean(1, keepdim=True)
            variance = (values - mean).square().mean(1, keepdim=True)
            new = torch.lerp(centre, mean, rate)
            # A first batch stands alone: the spread that was there before it was nobody's.
            second = torch.lerp(spread.square() + centre.square(), variance + mean.square(), rate)
            spread.copy_((second - new.square()).clamp(min=1e-8).sqrt())
            centre.copy_(new)
        size = torch.where(ended.unsqueeze(-1), 0.0, following - state).square().mean(1, keepdim=True)
        self.step.copy_(torch.lerp(self.step.square(), size, rate).clamp(min=1e-12).sqrt())

    def loss(
        self, state: Tensor, action: Tensor, following: Tensor, reward: Tensor, ended: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(negative log-likelihood [M, K, B] of rows [M, K, B, ...], every member its own; its parts, averaged).

        What followed an end is not learned from: the dead see nothing.
        """
        found = self(state, action)
        change = torch.where(ended.unsqueeze(-1), found.change, (following - state) / self.step.unsqueeze(1))
        error = (change - found.change).square()
        spread = error.detach() * torch.exp(-found.log_variance) + found.log_variance
        dynamics = 0.5 * (error * torch.exp(-0.5 * found.log_variance.detach()) + spread).sum(-1)
        dynamics = torch.where(ended, torch.zeros_like(dynamics), dynamics)
        means, spreads = found.outcome
        missed = (reward - self.reward_centre.unsqueeze(1)) / self.reward_spread.unsqueeze(1) - means[..., -1]
        noise = spreads[..., -1]
        pay = 0.5 * (missed.square() + missed.detach().square() * torch.exp(-noise) + noise)
        end = nn.functional.binary_cross_entropy_with_logits(found.ending, ended.to(error.dtype), reduction="none")
        parts = {
            "prediction_error": error.detach().mean().sqrt(),
            "reward_error": (reward - found.reward).detach().square().mean().sqrt(),
        }
        return dynamics + pay + end, parts
