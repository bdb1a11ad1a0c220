r"""Mean-field Q-learning, as a network or a table; without a field, independent Q-learning.

$$ y = r + \gamma\, v^{MF}(s'), \qquad
   v^{MF}(s') = \sum_a \pi_T(a \mid s', \bar a')\, Q_-(s', a, \bar a'), \qquad
   \pi_T = e^{Q/T} / Z $$

Yang et al. 2018, "Mean field multi-agent reinforcement learning", arXiv 1802.05438, equations 8-10. The value of
the next state is the Gibbs average at the temperature of acting and not a maximum; a terminal step is
learned from, with nothing after it; acting is a draw at the temperature. (The released code of the
paper takes the maximum, masks terminal steps out, and acts greedily.)
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import gymnasium
import torch
from torch import Tensor, nn

from mfmarl.errors import ConfigError
from mfmarl.learning.agent import (
    Agent,
    Clip,
    Discount,
    Positive,
    Rate,
    Transition,
    averaged,
    finite,
    forbid,
    pooled,
    told_of_weights,
    told_once,
    weighted,
)
from mfmarl.learning.networks import Network, descend, track
from mfmarl.learning.optimisers import LearnerConfig, make_optimiser, set_pace
from mfmarl.options import Bounds
from mfmarl.population.field import Actions
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech import gibbs

_SENT = 1 << 18  # values of a table up to which ranks send each other theirs in every step: 2 MB


@dataclass(frozen=True)
class MFQConfig(LearnerConfig):
    """Options of mean-field Q-learning."""

    values: Literal["network", "table"] = "network"
    """Action values as a neural network, or as a table over binned observations and fields."""
    carry: Literal["felt", "caused"] = "felt"
    """The field a transition carries: the one felt when acting (what acting knows), or the one the step caused."""
    gamma: Discount = None
    """Discount per step; none: the environment's own (0 for a stage game, else 0.95)."""
    learning_rate: Rate | None = None
    """Of a network (none: 0.001 with Adam, the optimiser's usual one with others); of a table, the share of the way
    to the target (none: 0.05)."""
    anneal: bool = True
    """Whether a network's learning rate sinks over the last quarter of the run, and as the temperature falls."""
    hidden: tuple[Positive, ...] = (64, 64)
    """Hidden layers of the network."""
    replicas: Annotated[int, Bounds(1, 1000)] = 1
    """Networks that learn the same from different beginnings and draws. Their mean acts; that they disagree is the
    agent's uncertainty."""
    channels: tuple[Positive, ...] = (32, 32)
    """Convolutions (3 x 3) that images pass before those; none: images are flattened, many times faster."""
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
    """How far the target network moves towards the online one with each update."""
    gradient_clip: Clip = 10.0
    """Largest norm of a mind's gradient; 0: no limit."""
    remember: Positive = 4096
    """Of an exchangeable crowd, transitions kept from each step."""
    bins: Annotated[int, Bounds(2, 1000)] = 5
    """Levels per column of observation and field, for a table."""


class Table(nn.Module):
    """Q over (cell of observation and field, action), [M, cells, A]: values start at zero."""

    varies: Tensor
    low: Tensor
    span: Tensor

    def __init__(self, spec: Spec, columns: int, bins: int, minds: int) -> None:
        super().__init__()
        space = spec.observation_space
        self.bins, self.classes = bins, int(getattr(space, "n", 0))
        self.columns = columns
        if isinstance(space, gymnasium.spaces.Box):
            low, high = torch.as_tensor(space.low).flatten(), torch.as_tensor(space.high).flatten()
            if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
                raise ConfigError("A table needs an observation space with finite bounds; use --values network.")
            varies = (high > low).nonzero().squeeze(-1)
            self.register_buffer("varies", varies)
            self.register_buffer("low", low[varies].float())
            self.register_buffer("span", (high - low)[varies].float())
            cells = bins ** (len(varies) + columns)
        else:
            cells = self.classes * bins**columns
        if cells * minds * spec.num_actions > 1 << 28:
            raise ConfigError(
                f"A table of {_told(cells)} cells for {minds} minds does not fit in memory: use --values network, "
                "fewer --bins, or a narrower field such as 'moments(1) over neighbours'."
            )
        self.value = nn.Parameter(torch.zeros(minds, cells, spec.num_actions), requires_grad=False)

    def cell(self, obs: Tensor, field: Tensor) -> Tensor:
        """The cell's number [M, B] of each row: columns rounded to the nearest of `bins` levels."""
        columns = [field[..., i] for i in range(self.columns)]
        number = torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device)
        if self.classes:
            number = obs.long()
        else:
            flat = obs.flatten(2)[..., self.varies]
            columns += list(((flat - self.low) / self.span).unbind(-1))
        for x in columns:
            number = number * self.bins + (x.clamp(0, 1) * (self.bins - 1)).round().long()
        return number

    def forward(self, obs: Tensor, field: Tensor) -> Tensor:
        cell = self.cell(obs, field)
        return self.value.gather(1, cell.unsqueeze(-1).expand(-1, -1, self.value.shape[-1]))

    def pull(
        self, cell: Tensor, action: Tensor, target: Tensor, weight: Tensor, rate: float, ranks: Ranks = ALONE
    ) -> Tensor:
        """Move each visited entry the share `rate` of the way to the mean of its targets, those on other ranks too.

        Returns the sum of all weights.
        """
        minds, cells, actions = self.value.shape
        first = torch.arange(minds, device=cell.device).unsqueeze(1) * (cells * actions)
        index = (first + cell * actions + action).flatten()
        flat = self.value.data.view(-1)
        # Of a large table only what was visited is touched.
        dense = len(flat) <= 4 * len(index) or ranks.count > 1
        where, place = (None, index) if dense else index.unique(return_inverse=True)
        old = flat if where is None else flat[where]
        total = torch.zeros_like(old).scatter_add_(0, place, (target * weight).flatten())
        count = torch.zeros_like(old).scatter_add_(0, place, weight.flatten())
        if ranks.count > 1:
            total, count = ranks.sum(torch.stack([total, count]), "gradients")
        new = old + torch.where(count > 0, rate * (total / count.clamp(min=1) - old), torch.zeros_like(old))
        if where is None:
            flat.copy_(new)
        else:
            flat[where] = new
        return count.sum()


def _told(count: int) -> str:
    """A count in words: of one with thousands of digits, only how many they are."""
    return str(count) if count < 10**15 else f"about 10^{math.floor(math.log10(count))}"


@register("mfq", independent="iql")
class MFQ(Agent):
    """Mean-field Q-learning: action values given the mean action of the others."""

    Config = MFQConfig
    memory = "replay"  # of a network; a table learns from the latest step
    needs_discrete = True
    divides = True

    def __init__(self, config: MFQConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        self.carries = config.carry
        self.tabular = config.values == "table"
        self.replicas = config.replicas
        self.values: nn.Module
        if self.tabular:
            for option in ("optimiser", "replicas", "priority"):
                if getattr(config, option) != getattr(MFQConfig, option):
                    raise ConfigError(f"A table has no {option} = {getattr(config, option)}: use values = network.")
            self.learning_rate = 0.05 if config.learning_rate is None else config.learning_rate
            # One-hot means add up to one: the first column is known from the others.
            self.columns = self.field_size - 1 if isinstance(self.field.of, Actions) else self.field_size
            self.columns = max(self.columns, 0)
            self.values = Table(spec, self.columns, config.bins, minds)
            self.memory = "latest"  # type: ignore[misc]
        else:
            self.values = Network(
                spec,
                self.field_size,
                config.hidden,
                spec.num_actions,
                minds * self.replicas,
                key.fold("values"),
                channels=config.channels,
            )
            self.target = deepcopy(self.values).requires_grad_(False)
            self.weights = list(self.values.parameters())
            self.optimiser = make_optimiser(config, self.weights, config.learning_rate, key.fold("weights"))
            self.learning_rate = float(self.optimiser.param_groups[0]["lr"])

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return self.learning_rate * (self.pace() if self.config.anneal and not self.tabular else 1.0)

    def _evaluate(self, values: nn.Module, obs: Tensor, field: Tensor) -> Tensor:
        felt = field[..., self.field_size - self.columns :] if self.tabular else field
        q: Tensor = values(obs, felt)
        return q

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """E = -Q, the mean over replicas."""
        if self.replicas > 1:
            return self.replica_energies(obs, field).mean(0)
        return -self._evaluate(self.values, obs, field)

    def replica_energies(self, obs: Tensor, field: Tensor) -> Tensor:
        """-Q of each replica, [R, M, B, A]."""
        replicas = self.replicas
        every = [x.repeat_interleave(replicas, 0) if replicas > 1 else x for x in (obs, field)]
        return -self._evaluate(self.values, *every).unflatten(0, (-1, replicas)).transpose(0, 1)

    def _shared_out(self, batch: Transition) -> Transition:
        """[M, R x B, ...] -> [M x R, B, ...]: every replica learns from rows of its own, as a mind beside others."""
        replicas = self.replicas
        columns = {
            name: None if x is None else x.unflatten(1, (replicas, -1)).flatten(0, 1)
            for name, x in batch._asdict().items()
        }
        return Transition(**columns)  # type: ignore[arg-type]

    @torch.no_grad()
    def mean_field_value(self, obs: Tensor, field: Tensor, legal: Tensor | None) -> Tensor:
        """v^MF [M, B]: the Gibbs average of the target's Q at the temperature of acting."""
        q = self._evaluate(self.values if self.tabular else self.target, obs, field)
        return -gibbs.mean_energy(forbid(-q, legal), self.temperature)

    def learn(self, batch: Transition) -> dict[str, Tensor]:
        config: MFQConfig = self.config
        drawn = batch
        if self.replicas > 1:
            batch = self._shared_out(batch)
        if self.gamma:
            value = self.mean_field_value(batch.next_obs, batch.next_field, batch.next_legal)
            target = batch.reward + self.gamma * torch.where(batch.terminated, 0.0, value)
        else:
            target = batch.reward
        if self.tabular:
            return self._learn_table(batch, target)
        q = self._evaluate(self.values, batch.obs, batch.field)
        error = q.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1) - target
        loss = pooled(weighted(error.square(), batch.weight), batch.valid, batch.of)
        minds = self.minds * self.replicas
        set_pace(self.optimiser, self.rate, config, self.progress)
        name = "mean-field Q-learning"
        norm = descend(loss, self.weights, self.optimiser, minds, config.gradient_clip, name, self.ranks)
        track(self.target, self.values, config.target_rate)
        entropy = averaged(gibbs.entropy(forbid(-q.detach(), batch.legal), self.temperature), batch.of)
        self.adapt_temperature(entropy)
        return {
            "loss": loss.detach() / minds,
            "entropy": entropy,
            "gradient_norm": told_once(norm.mean(), self.ranks),
            "value": averaged(q.detach(), batch.of),
            **told_of_weights(drawn, error.view(self.minds, -1)),
        }

    def _learn_table(self, batch: Transition, target: Tensor) -> dict[str, Tensor]:
        table: Table = self.values  # type: ignore[assignment]
        cell = table.cell(batch.obs, batch.field[..., self.field_size - self.columns :])
        q = table(batch.obs, batch.field[..., self.field_size - self.columns :])
        weight = torch.ones_like(target) if batch.valid is None else batch.valid.to(target.dtype)
        action = batch.action.clamp(min=0)  # rows that are not valid may hold -1
        error = q.gather(-1, action.unsqueeze(-1)).squeeze(-1) - target
        squares = (error.square() * weight).sum()
        finite(squares, "squared error of a table")
        share = table.pull(cell, action, target, weight, self.rate, self.ranks).clamp(min=1)
        entropy = (gibbs.entropy(forbid(-q, batch.legal), self.temperature) * weight).sum() / share
        self.adapt_temperature(entropy)
        return {
            "loss": squares / share,
            "entropy": entropy,
            "value": (q.mean(-1) * weight).sum() / share,
        }

    def why_whole(self) -> str:
        if isinstance(self.values, Table) and self.values.value.numel() > _SENT:
            return f"a table of {self.values.value.numel():,} values is too large to be sent in every step"
        return super().why_whole()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {} if self.tabular else {"values": self.optimiser}
