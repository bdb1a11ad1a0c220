r"""The contract of an agent: an energy over actions, a temperature, and a way to learn.

$$ a \sim p_T(a) \propto e^{-E(a \mid o, m)/T} $$

with the observation o and the mean field m. One agent plays a run of slots (a team, or everyone), with
one mind for all of them or one mind each; rows are then [M, B, ...]: M minds, B rows each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.options import Bounds
from mfmarl.population.field import Field, default_field, parse_field
from mfmarl.population.known import Known
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.statmech import gibbs, importance
from mfmarl.statmech.annealing.schedule import Schedule, parse_schedule

_FEWEST = 16  # rows of which each one's energy has the bits that it has among many
_CHUNK = 1 << 14  # rows whose activations stay in the cache: twice as fast as a million rows in one go


@dataclass(frozen=True)
class AgentConfig:
    """Options that every agent has."""

    field: str = "auto"
    """What is felt of the others, e.g. `actions over neighbours`; `auto`: the mean action of the neighbours,
    or of the own team where there is no graph; `nothing`: an independent learner."""
    temperature: str = "1"
    """Temperature of acting: a number, a schedule such as `linear(1, 0.1)` or `geometric(1, 0.01)` (also logarithmic,
    cosine, cyclic, through), or `entropy(0.5)` (a target in nats)."""

    def __post_init__(self) -> None:
        parse_schedule(self.temperature)
        if self.field != "auto":
            parse_field(self.field)


# What a memory keeps of a transition's columns: not how it was drawn.
NOT_KEPT = ("valid", "weight", "place", "number", "of")


class Transition(NamedTuple):
    """What is remembered of agents' steps, by mind: [M, B, ...]. A transition closes when its agent is asked again."""

    obs: Tensor  # [M, B, *O]
    field: Tensor  # [M, B, F]: felt when acting, or caused by the step (the agent's choice)
    legal: Tensor | None  # [M, B, A]
    action: Tensor  # [M, B] or [M, B, D]
    reward: Tensor  # [M, B], summed until the agent is asked again
    next_obs: Tensor
    next_field: Tensor
    next_legal: Tensor | None
    terminated: Tensor  # [M, B] bool: nothing follows. A truncated episode is cut off, not terminated.
    valid: Tensor | None = None  # [M, B] bool; None: every row
    weight: Tensor | None = None  # [M, B]: what each row counts where some are drawn more often than others
    place: Tensor | None = None  # [M, B]: where such rows lie in the memory, which wants their new priorities
    # Of a batch that is divided over ranks, each of which has some rows of it, or none:
    number: Tensor | None = None  # [M, B]: which rows of the whole batch these are
    of: int | None = None  # how many there are in the whole batch; None: all are here


class Agent(nn.Module, ABC):
    """One kind of mind for the slots it is given.

    Subclasses set `Config`, implement `energy` (or `act`, for a Box), `learn`, and say by `memory` what they
    learn from. `minds` is 1 or the number of slots.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    needs_discrete: ClassVar[bool] = False
    memory: ClassVar[str] = "none"
    """`replay`: learns from a `Replay` of transitions; `rollout`: from the last steps in order (`Rollout`);
    `latest`: from each step as it happens; `none`: does not learn."""
    perceives: ClassVar[bool] = False
    """Whether it acts upon beliefs of its own, `perceive`, instead of upon what it sees."""
    carries: str = "felt"
    """Which field a transition carries: the one `felt` when acting, or the one the step `caused`."""
    divides: ClassVar[bool] = False
    """Whether it learns the same where its crowd is divided over `ranks`: each works out its share of every mean from
    the rows that it has (`pooled`, `averaged`), shares of gradients are added up, and all take the same step. The
    numbers that `learn` gives are shares too: what every rank knows whole is told by one (`told_once`)."""
    ranks: Ranks = ALONE
    """Who learns the rest of what this mind learns from."""
    log_temperature: Tensor

    def __init__(self, config: AgentConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__()
        self.config: Any = config
        self.spec, self.slots, self.minds = spec, slots, minds
        self.num_slots = slots.stop - slots.start
        if minds not in (1, self.num_slots):
            raise ConfigError(
                f"An agent has one mind for all or one for each of its {self.num_slots} slots, not {minds}."
            )
        if self.needs_discrete and not spec.discrete:
            raise ConfigError(
                f"{type(self).__name__} needs discrete actions, and this environment's are {spec.action_space}; try mfac or mfppo."
            )
        self.field: Field = default_field(spec) if config.field == "auto" else parse_field(config.field)
        self.field_size = self.field.size(spec)
        self.schedule: Schedule = parse_schedule(config.temperature)
        # Under a target entropy the temperature is found as learning goes; else it follows the schedule.
        self.register_buffer("log_temperature", torch.zeros(()))
        self.progress = 0.0

    # ---------------------------------------------------------------------------------------- acting

    @property
    def gamma(self) -> float:
        """The discount per step: the config's, or the environment's own where that is None."""
        chosen = getattr(self.config, "gamma", None)
        return self.spec.discount if chosen is None else float(chosen)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature now: a number, or a 0-dim tensor under a target entropy."""
        if self.schedule.kind == "entropy":
            return self.log_temperature.exp()
        return self.schedule.at(self.progress)

    def pace(self) -> float:
        """The share of its learning rate that an annealing agent uses now.

        It sinks to 0 over the last quarter of the run, or what is learned goes on trembling; and with the square root
        of a falling temperature, because a policy answers a change of energy by d log p = -dE/T: crowds of cold agents
        that learn fast all run to the same place, and back.
        """
        start = self.schedule.at(0.0)
        cold = min(1.0, self.schedule.at(self.progress) / start) if start > 0 else 1.0
        return max(1e-3, min(1.0, 4 - 4 * self.progress) * cold**0.5)

    def adapt_temperature(self, entropy: Tensor, rate: float = 0.01) -> None:
        """One step of dual ascent towards the target entropy: log T += rate (target - H), with this rank's share of H."""
        if self.schedule.kind == "entropy":
            with torch.no_grad():
                gap = self.schedule.start - self.ranks.sum(entropy.detach().mean(), "gradients")
                self.log_temperature.add_(rate * gap).clamp_(-18.0, 18.0)

    def perceive(
        self, carried: dict[str, Tensor], timestep: Timestep, field: Tensor, ids: Tensor, key: Key
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what its slots act upon, [E, n, *P]; what they carry to the next step, [E, n, ...] each), of one that `perceives`.

        Asked once of every timestep, before acting. `carried` is empty at the very first; where `timestep.step` is 0 an
        episode has begun, and nothing is to be remembered. What is acted upon stands for the observation ever after: in
        `energy`, and in what is learned from.
        """
        raise ConfigError(f"{type(self).__name__} perceives, and must say what: perceive(carried, timestep, ...).")

    @abstractmethod
    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """E(a | obs, field): [M, B, *O], [M, B, F] -> [M, B, A]."""

    def known_answers(self, temperature: float) -> dict[str, Known]:
        """What theory says of a population of this agent that acts at so high a temperature, where its law is another than
        that of agents who act by exp(Q / T): by the name of the measured number. Empty: the environment says it all.
        """
        return {}

    def replica_energies(self, obs: Tensor, field: Tensor) -> Tensor | None:
        """The energies [R, M, B, A] of each of an agent's replicas; None of one that has none."""
        return None

    @torch.no_grad()
    def act(self, timestep: Timestep, field: Tensor, ids: Tensor, key: Key) -> Tensor:
        """An action for every slot: [E, n] int64 (or [E, n, D]). `field` [E, n, F] and `ids` [E, n] are the slots' own."""
        obs = self.by_mind(timestep.obs[:, self.slots])
        felt = self.by_mind(field)
        legal = None if timestep.legal is None else self.by_mind(timestep.legal[:, self.slots])
        names = self.by_mind(ids)
        asked = self._asked(timestep)
        if asked is not None:
            obs, felt, names = (x.index_select(1, asked) for x in (obs, felt, names))
            legal = None if legal is None else legal.index_select(1, asked)
        chunks = self._chunks(obs.shape[1])
        parts = []
        for rows in chunks:
            seen, near, named = obs[:, rows], felt[:, rows], names[:, rows]
            allowed = None if legal is None else legal[:, rows]
            count = seen.shape[1]
            if count < _FEWEST and (self.ranks.count > 1 or len(chunks) > 1):
                # A product of few rows has other bits than one of many: a part of a crowd must act as in the whole one.
                seen, near, named = _lengthened(seen), _lengthened(near), _lengthened(named)
                allowed = None if allowed is None else _lengthened(allowed)
            parts.append(self.choose(seen, near, allowed, named, key)[:, :count])
        action = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if asked is not None:
            chosen, action = action, action.new_zeros(1, ids.numel(), *action.shape[2:])
            action[:, asked] = chosen
        return self.by_copy(action, ids.shape[0])

    def _asked(self, timestep: Timestep) -> Tensor | None:
        """The rows of those who are asked, where a large crowd with one mind has many who are not; they hold a zero."""
        acting = timestep.acting[:, self.slots]
        # On a GPU one would have to wait for the number of them.
        if self.minds > 1 or acting.numel() <= 2 * _CHUNK or acting.device.type != "cpu":
            return None
        if int(acting.count_nonzero()) > 0.8 * acting.numel():
            return None
        return acting.flatten().nonzero().squeeze(-1)

    def choose(self, obs: Tensor, field: Tensor, legal: Tensor | None, ids: Tensor, key: Key) -> Tensor:
        """One draw from the Gibbs distribution for each row: [M, B] int64."""
        energy = self.energy(obs, field)
        # A sum is not finite if a term is not: one cheap pass; the search runs only on a fault.
        if not math.isfinite(float(energy.detach().sum())):
            self._refuse_energy(energy, ids)
        return gibbs.sample(forbid(energy, legal), self.temperature, ids, key)

    def _refuse_energy(self, energy: Tensor, ids: Tensor) -> None:
        """Raises NumericFault for rows from which no action can be drawn: a draw from NaN would be action 0."""
        lost = torch.isnan(energy).any(-1) | (energy == -torch.inf).any(-1) | (energy == torch.inf).all(-1)
        if not bool(lost.any()):
            return  # what is never done has an infinite energy
        mind, row = lost.nonzero()[0].tolist()
        copy, slot = divmod(int(ids[mind, row]), 1 << 32)
        named = f"agent {self.spec.names[slot]} (slot {slot})" if self.ranks.count == 1 else f"the agent in slot {slot}"
        who = f"{named} of copy {copy}"
        raise NumericFault(
            f"{type(self).__name__} has energies {energy[mind, row].tolist()[:8]} for {who}: no action can be drawn from "
            "them. Its weights, or what it sees, are not finite: lower the learning rate or scale rewards and observations.",
            "nan-energy",
        )

    def _chunks(self, rows: int) -> list[slice]:
        step = max(1, _CHUNK // self.minds) if rows * self.minds > 2 * _CHUNK else max(rows, 1)
        return [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]

    # -------------------------------------------------------------------------------------- learning

    def value(self, obs: Tensor, field: Tensor) -> Tensor:
        """The value [M, B] of what is seen and felt; needed of agents that learn from a rollout."""
        raise ConfigError(
            f"{type(self).__name__} learns from a rollout and must say what a state is worth: value(obs, field)."
        )

    def learn(self, batch: Any) -> dict[str, Tensor]:
        """Improve from a batch of the agent's memory; returns numbers for the log (0-dim tensors).

        Rows that came with a `weight` are answered with their new `priority` [M, B], the size of their errors.
        """
        return {}

    def why_whole(self) -> str:
        """Why it cannot play in a population that is divided over ranks; empty: it can."""
        kind = type(self).__name__
        if self.perceives:
            return f"{kind} carries beliefs along"
        if not self.divides:
            return f"{kind} does not learn from parts of a crowd"
        if self.minds > 1:
            return "there is a mind for each agent (sharing = none)"
        if getattr(self.config, "replicas", 1) > 1:
            return f"{kind} has replicas = {self.config.replicas}"
        if getattr(self.config, "priority", 0.0):
            return f"{kind} draws by priority = {self.config.priority}"
        return ""

    # ---------------------------------------------------------------------------------------- layout

    def by_mind(self, x: Tensor) -> Tensor:
        """[E, n, ...] -> [M, B, ...]."""
        return x.flatten(0, 1).unsqueeze(0) if self.minds == 1 else x.transpose(0, 1)

    def by_copy(self, x: Tensor, copies: int) -> Tensor:
        """[M, B, ...] -> [E, n, ...], the inverse of `by_mind`."""
        return x.squeeze(0).unflatten(0, (copies, self.num_slots)) if self.minds == 1 else x.transpose(0, 1)

    # ----------------------------------------------------------------------------------- checkpoints

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimiser by name, so that a checkpoint is the whole agent."""
        return {}


def _lengthened(x: Tensor) -> Tensor:
    """Rows [M, B, ...] made `_FEWEST` by repeating the last; zeros where there is none."""
    minds, rows, *rest = x.shape
    more = x[:, -1:] if rows else x.new_zeros(minds, 1, *rest)
    return torch.cat([x, more.expand(minds, _FEWEST - rows, *rest)], 1)


def forbid(energy: Tensor, legal: Tensor | None) -> Tensor:
    """Infinite energy for what is not legal. Rows of the dead may have nothing legal: they keep their energies."""
    if legal is None:
        return energy
    any_legal = legal.any(-1, keepdim=True)
    return torch.where(
        legal | ~any_legal, energy, torch.full((), float("inf"), device=energy.device, dtype=energy.dtype)
    )


class NotFinite(NumericFault):
    """Something to be learned from is not a number: refused before anything is touched. `mind`: whose, of many."""

    def __init__(self, told: str, code: str, mind: int | None = None) -> None:
        super().__init__(
            f"The {told}: learning diverged. The weights are as before this step; lower the learning rate or scale the "
            "rewards.",
            code,
        )
        self.mind = mind


def finite(value: Tensor, told: str) -> None:
    """Refuse to learn from a 0-dim value that is not a number, before anything is touched by it. Raises NotFinite."""
    number = float(value)
    if not math.isfinite(number):
        raise NotFinite(f"{told} is {number}", "nan-loss")


def pooled(values: Tensor, valid: Tensor | None, of: int | None = None) -> Tensor:
    """The sum over minds of each mind's mean over its valid rows: [M, B] -> 0-dim.

    So a mind's gradient is that of its own mean loss, whether it learns alone or beside a thousand. Of a batch of `of`
    rows that is divided over ranks: this rank's share of it, such that shares add up.
    """
    if of is not None:
        return values.sum() / max(of, 1)
    if valid is None:
        return values.mean(1).sum()
    weight = valid.to(values.dtype)
    return ((values * weight).sum(1) / weight.sum(1).clamp(min=1)).sum()


def averaged(values: Tensor, of: int | None = None) -> Tensor:
    """The mean of values [M, B, ...]: 0-dim. Of a batch of `of` rows that is divided over ranks: this rank's share."""
    if of is None:
        return values.mean()
    minds, _, *rest = values.shape
    return values.sum() / max(of * minds * math.prod(rest), 1)


def told_once(number: Tensor, ranks: Ranks) -> Tensor:
    """A number for the log that all ranks know: the first tells it, and the others nothing, so that they add up."""
    return number if ranks.first else torch.zeros_like(number)


def policy(logits: Tensor, legal: Tensor | None) -> tuple[Tensor, Tensor]:
    """An actor's probabilities and their logarithms [..., A]; both 0 where it is not legal, so that products are."""
    if legal is None:
        log_p = gibbs.log_softmax(logits)
        return log_p.exp(), log_p
    allowed = legal | ~legal.any(-1, keepdim=True)
    log_p = gibbs.log_softmax(logits.masked_fill(~allowed, float("-inf")))
    return log_p.exp(), log_p.masked_fill(~allowed, 0.0)


def actor_temperature(temperature: float | Tensor) -> float | Tensor:
    """The temperature of an agent with an actor: never quite 0.

    At 0 an actor still draws from its logits, and only the wish for entropy is gone from what it learns: the
    plain policy gradient. A greedy actor could not be improved by its own experience.
    """
    return temperature.clamp(min=1e-6) if isinstance(temperature, Tensor) else max(temperature, 1e-6)


def logits_as_energy(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """E = -T logits: an actor's network gives the energy in units of the temperature.

    So the Gibbs distribution at T is the actor's own, and steps of learning are as large when it is cold as when it
    is hot. Descending <-Q> - T H, the energy arrives at -Q, up to a constant.
    """
    return -temperature * logits


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Losses [M, B] times what each row counts."""
    return values if weight is None else values * weight


def told_of_weights(batch: Transition, error: Tensor) -> dict[str, Tensor]:
    """For a batch drawn by priority: the new priorities, and the share of its rows that its weights make count."""
    if batch.weight is None:
        return {}
    share = importance.effective_sample_size(batch.weight.log()) / batch.weight.shape[-1]
    return {"priority": error.detach().abs(), "effective_sample_share": share.mean()}


# Types of options that agents share.
Rate = Annotated[float, Bounds(0.0, 10.0)]
Discount = Annotated[float, Bounds(0.0, 1.0)] | None
Positive = Annotated[int, Bounds(1, 1 << 40)]
Clip = Annotated[float, Bounds(0.0, 1e9)]
