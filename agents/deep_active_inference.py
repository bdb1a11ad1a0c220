r"""Deep active inference: a learned world, plans that meet preferences and find out, and a habit that remembers them.

$$ -G(\pi) = \sum_\tau E\big[\, r_\tau \ \text{or}\ \ln \tilde P(s_\tau)\, \big] + \lambda\, I(s_\tau; \theta), \qquad
   Q(\pi) \approx \arg\max_q E_q[-G], \qquad \phi \leftarrow \arg\min_\phi KL\big[ Q(a \mid s) \,\|\, \pi_\phi(a \mid s) \big] $$

Tschantz et al. 2020, arXiv 2002.12636: an ensemble of networks stands for beliefs over the dynamics' parameters theta, and
the cross-entropy method finds plans; the habit as Fountas et al. 2020, arXiv 2006.04176, section 2.4. What is seen is taken
as the state; a field that is felt belongs to it, so that an agent imagines its crowd as well.

In a Box of actions the first action of the plan is taken; a crowd, or whoever is told to, draws from the habit, a Gaussian.
Discrete actions are drawn from the Gibbs distribution of an energy, as everywhere here. With T the temperature,
the value of a first action is the free energy of the plans that go on from it, v(a) = T ln <exp(-G/T)>, and the energy is -v (acts =
plan) or the habit's, which is trained towards exp(v/T). Nothing is valued beyond the horizon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import gymnasium
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference.deep import cross_entropy
from mfmarl.inference.deep.cross_entropy import GaussianPlan, Search
from mfmarl.inference.deep.ensemble import Ensemble
from mfmarl.inference.deep.imagination import Aim, worth
from mfmarl.inference.deep.information import parameter_information
from mfmarl.learning.agent import (
    Agent,
    Clip,
    Discount,
    Positive,
    Rate,
    Transition,
    actor_temperature,
    forbid,
    logits_as_energy,
    policy,
    pooled,
)
from mfmarl.learning.networks import Network, descend
from mfmarl.learning.optimisers import LearnerConfig, make_optimiser, set_pace
from mfmarl.options import Amount, Bounds
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech import gibbs

_CROWD = 16  # slots beyond which planning for everyone every step costs more than it is worth
_AT_ONCE = 1 << 20  # numbers of the widest layer at a time, over minds and members: what stays in the cache
_NARROWEST = 0.05  # of a Box's half-width: a plan that the search has made sure of is still drawn from


@dataclass(frozen=True)
class DeepActiveInferenceConfig(LearnerConfig):
    """Options of deep active inference."""

    acts: Literal["auto", "plan", "habit"] = "auto"
    """By planning at every step or by the habit; auto: plans in a Box of actions with at most 16 agents, else habit."""
    information: Annotated[float, Bounds(0.0, 1e6)] = 1.0
    """lambda, the weight of information about the dynamics against reward; 0: without it."""
    how: Literal["moments", "neighbours"] = "moments"
    """Information by a Gaussian of the ensemble's moments (a bound), or by nearest neighbours of a sample of each member."""
    goal: tuple[Amount, ...] = ()
    """The state that is preferred, one number for each column of observation and field; none: the reward is preferred."""
    width: tuple[Amount, ...] = ()
    """Standard deviations of that preference, one for each column; 0: this column does not matter."""
    gamma: Discount = None
    """Discount per step of the plan; none: the environment's own (0 for a stage game, else 0.95)."""
    horizon: Positive = 15
    """Steps that are imagined."""
    candidates: Positive = 64
    """Plans drawn in each iteration of the search."""
    elites: Positive = 8
    """Plans it is refitted to."""
    iterations: Positive = 3
    """Iterations of the search."""
    members: Annotated[int, Bounds(2, 1000)] = 5
    """Networks of the ensemble."""
    hidden: tuple[Positive, ...] = (64, 64)
    """Hidden layers of each, and of the habit."""
    channels: tuple[Positive, ...] = (32, 32)
    """Convolutions (3 x 3) that images pass before the habit's hidden layers; the ensemble flattens them."""
    learning_rate: Rate | None = None
    """Of ensemble and habit (none: 0.001 with Adam, the optimiser's usual one with others)."""
    batch_size: Positive = 64
    """Transitions per update and member."""
    capacity: Positive = 65_536
    """Transitions kept for replay, per mind."""
    warm_up: Positive = 256
    """Transitions gathered, per mind, before learning begins; until then actions are uniform."""
    learn_every: Positive = 1
    """Environment steps between updates."""
    updates: Positive = 2
    """Updates each time."""
    habit_rows: Positive = 8
    """States of each update for which a plan is made, for the habit to learn from."""
    gradient_clip: Clip = 10.0
    """Largest norm of a member's gradient; 0: no limit."""
    remember: Positive = 4096
    """Of an exchangeable crowd, transitions kept from each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elites > self.candidates:
            raise ConfigError(
                f"elites = {self.elites} of candidates = {self.candidates}: there must be as many plans to choose from."
            )
        if len(self.goal) != len(self.width) or min(self.width, default=0.0) < 0:
            raise ConfigError(
                f"goal has {len(self.goal)} numbers and width {len(self.width)}: give both one for each column of the "
                "state, widths of at least 0 (0: it does not matter)."
            )
        if self.how == "neighbours" and self.information and self.members <= 3:
            raise ConfigError(f"Information by third neighbours needs more than 3 members, not {self.members}.")


@register("deep_active_inference")
class DeepActiveInference(Agent):
    """Deep active inference: plans in a learned world, for reward and for information, and makes them a habit."""

    Config = DeepActiveInferenceConfig
    memory = "replay"
    planned: Tensor
    least: Tensor
    most: Tensor
    middle: Tensor
    reach: Tensor

    def __init__(self, config: DeepActiveInferenceConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        self.replicas = config.members  # rows of its own for every member
        self.key = key.fold("plans")
        low, high = _bounds(spec, self.field_size)
        if config.goal and len(config.goal) != len(low):
            raise ConfigError(
                f"goal has {len(config.goal)} numbers, and the state {len(low)} columns: {len(low) - self.field_size} "
                f"of the observation and {self.field_size} of the field."
            )
        self.by_habit = config.acts == "habit" or (config.acts == "auto" and (spec.discrete or self.num_slots > _CROWD))
        # What comes after the step is worth nothing in a stage game: one step is the whole plan.
        self.horizon = config.horizon if self.gamma else 1
        self.search = Search(config.candidates, config.elites, config.iterations)
        actions = spec.num_actions
        self.ensemble = Ensemble(
            len(low), actions, config.hidden, config.members, minds, key.fold("ensemble"), low, high
        )
        self.weights = list(self.ensemble.parameters())
        self.optimiser = make_optimiser(config, self.weights, config.learning_rate, key.fold("ensemble weights"))
        self.rate = float(self.optimiser.param_groups[0]["lr"])
        if not spec.discrete:
            space = spec.action_space
            assert isinstance(space, gymnasium.spaces.Box)
            least, most = torch.as_tensor(space.low).float(), torch.as_tensor(space.high).float()
            bounded = torch.isfinite(least) & torch.isfinite(most)
            self.register_buffer("least", least, persistent=False)
            self.register_buffer("most", most, persistent=False)
            self.register_buffer("middle", torch.where(bounded, (least + most) / 2, 0.0), persistent=False)
            self.register_buffer("reach", torch.where(bounded, (most - least) / 2, 1.0), persistent=False)
        if self.by_habit:
            self.habit = Network(
                spec,
                self.field_size,
                config.hidden,
                actions if spec.discrete else 2 * actions,
                minds,
                key.fold("habit"),
                out_scale=1e-3,
                channels=config.channels,
            )
            self.habit_weights = list(self.habit.parameters())
            self.habit_optimiser = make_optimiser(
                config, self.habit_weights, config.learning_rate, key.fold("habit weights")
            )
        self.register_buffer("planned", torch.zeros((), dtype=torch.int64))  # updates that made plans, for their noise

    # ---------------------------------------------------------------------------------------- acting

    @property
    def temperature(self) -> float | Tensor:
        return actor_temperature(super().temperature)

    @property
    def aim(self) -> Aim:
        """What plans are for."""
        config: DeepActiveInferenceConfig = self.config
        return Aim(config.information, self.gamma, config.how, config.goal, config.width)

    def state(self, obs: Tensor, field: Tensor) -> Tensor:
        """What is imagined on: observation, flat or one-hot, and field, [M, B, S]."""
        if self.spec.observation_shape:
            flat = obs.flatten(2)
        else:
            flat = torch.nn.functional.one_hot(obs, int(self.spec.observation_space.n)).float()  # type: ignore[attr-defined]
        return torch.cat([flat, field], -1) if self.field_size else flat

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        if not self.spec.discrete:
            raise ConfigError("A Box of actions has no list of energies: deep active inference plans in it.")
        if self.by_habit:
            return logits_as_energy(self.habit(obs, field), self.temperature)
        if not int(self.ensemble.seen):
            return torch.zeros((*obs.shape[:2], self.spec.num_actions), device=obs.device)
        # The same candidates for every state, so that the energy is a function of the state.
        ids = torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device)
        return -self.first_values(self.state(obs, field), ids, self.key.fold("act"))

    def choose(self, obs: Tensor, field: Tensor, legal: Tensor | None, ids: Tensor, key: Key) -> Tensor:
        if self.spec.discrete:
            return super().choose(obs, field, legal, ids, key)
        if not int(self.ensemble.seen):
            noise = 2 * random.uniform(key.fold("any"), ids, self.spec.num_actions) - 1
            return self._inside(self.middle + self.reach * noise)
        if self.by_habit:
            mean, log_deviation = self._habit(obs, field)
            noise = random.normal(key.fold("habit"), ids, self.spec.num_actions)
            return self._inside(self.middle + self.reach * (mean + log_deviation.exp() * noise))
        return self._inside(self.plan(self.state(obs, field), ids, key.fold("plan")).mean[:, :, 0])

    def _inside(self, action: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(action, self.least), self.most)

    def _habit(self, obs: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation [M, B, D] of the habit, in units of the Box's half-widths about its middle."""
        mean, log_deviation = self.habit(obs, field).chunk(2, -1)
        return torch.tanh(mean), log_deviation.clamp(math.log(_NARROWEST), 1.0)

    # -------------------------------------------------------------------------------------- planning

    def plan(self, state: Tensor, ids: Tensor, key: Key) -> GaussianPlan:
        """Plans in the Box for states [M, B, S]."""

        def found(rows: slice) -> GaussianPlan:
            def score(sequence: Tensor) -> Tensor:
                unit = (sequence - self.middle) / self.reach.clamp(min=1e-12)
                return worth(self.ensemble, state[:, rows], unit, self.aim, ids[:, rows], key.fold("imagine"))

            return cross_entropy.continuous(score, self.least, self.most, self.horizon, self.search, ids[:, rows], key)

        parts = [found(rows) for rows in self._at_once(state.shape[1], self.search.candidates)]
        return GaussianPlan(*(torch.cat(values, 1) for values in zip(*parts, strict=True)))

    def first_values(self, state: Tensor, ids: Tensor, key: Key) -> Tensor:
        """v(a) [M, B, A]: the free energy at the temperature of the plans that begin with each action.

        The search says how they go on; as many as its elite are drawn, the same for every first action.
        """
        actions, ways = self.spec.num_actions, self.search.elites
        temperature = self.temperature

        def found(rows: slice) -> Tensor:
            here, names = state[:, rows], ids[:, rows]

            def score(sequence: Tensor) -> Tensor:
                vectors = torch.nn.functional.one_hot(sequence, actions).float()
                return worth(self.ensemble, here, vectors, self.aim, names, key.fold("imagine"))

            first = torch.arange(actions, device=state.device).view(-1, 1, 1)
            if self.horizon == 1:
                return score(first.expand(*names.shape, actions, 1, 1).squeeze(-1))
            p = cross_entropy.discrete(score, actions, self.horizon, self.search, names, key).probabilities
            rest = cross_entropy.draw(p[..., 1:, :], ways, names, key.fold("rest")).unsqueeze(2)
            shape = (*names.shape, actions, ways)
            sequence = torch.cat([first.expand(*shape, 1), rest.expand(*shape, self.horizon - 1)], -1)
            value = score(sequence.flatten(2, 3)).unflatten(2, (actions, ways))
            return -gibbs.free_energy(-value, temperature) - temperature * math.log(ways)

        parts = [found(rows) for rows in self._at_once(state.shape[1], max(self.search.candidates, ways * actions))]
        return torch.cat(parts, 1)

    def _at_once(self, rows: int, imagined: int) -> list[slice]:
        widest = max(2 * self.ensemble.columns + 3, *self.config.hidden, 1)
        step = max(1, _AT_ONCE // (self.minds * self.replicas * imagined * widest))
        return [slice(start, start + step) for start in range(0, max(rows, 1), step)]

    # -------------------------------------------------------------------------------------- learning

    def learn(self, batch: Transition) -> dict[str, Tensor]:
        config: DeepActiveInferenceConfig = self.config
        columns = batch._asdict()
        state, following = self.state(batch.obs, batch.field), self.state(batch.next_obs, batch.next_field)
        action = self._vector(batch.action)
        reward, ended = batch.reward, batch.terminated
        self.ensemble.note(state, following, reward, ended)
        # [M, K x B, ...] -> [M, K, B, ...]: every member learns from rows of its own.
        own = [x.unflatten(1, (self.replicas, -1)) for x in (state, action, following, reward, ended)]
        loss, numbers = self.ensemble.loss(*own)
        total = loss.mean(-1).sum()
        # Beliefs about the world go on being learned at full pace: only who acts on them has to come to rest.
        set_pace(self.optimiser, self.rate, config, self.progress)
        minds = self.minds * self.replicas
        name = "the ensemble of deep active inference"
        norm = descend(total, self.weights, self.optimiser, minds, config.gradient_clip, name)
        with torch.no_grad():
            found = self.ensemble(own[0][:, :1], own[1][:, :1])
            told = parameter_information(*(x.movedim(1, 2) for x in found.outcome))
        numbers |= {"loss": total.detach() / minds, "gradient_norm": norm.mean(), "information": told.mean()}
        if self.by_habit:
            rows = slice(0, config.habit_rows)
            few = Transition(**{n: None if x is None else x[:, rows] for n, x in columns.items()})  # type: ignore[arg-type]
            set_pace(self.habit_optimiser, self.rate * self.pace(), config, self.progress)
            numbers |= self._learn_habit(few, state[:, rows])
        return numbers

    def _vector(self, action: Tensor) -> Tensor:
        """Actions as the ensemble takes them: one-hot, or in units of the Box."""
        if self.spec.discrete:
            return torch.nn.functional.one_hot(action, self.spec.num_actions).float()
        return (action - self.middle) / self.reach.clamp(min=1e-12)

    def _learn_habit(self, rows: Transition, state: Tensor) -> dict[str, Tensor]:
        """One step of the habit towards what plans say of these rows: KL(plan || habit)."""
        key = self.key.fold("habit", int(self.planned))
        self.planned += 1
        # By row of the batch, the same for every mind: one does not know of the others.
        ids = torch.arange(state.shape[1], device=state.device).expand(state.shape[:2])
        if self.spec.discrete:
            temperature = self.temperature
            target = gibbs.probabilities(forbid(-self.first_values(state, ids, key), rows.legal), temperature)
            _, log_p = policy(self.habit(rows.obs, rows.field), rows.legal)
            gap = (torch.special.xlogy(target, target) - target * log_p).sum(-1)
            entropy = torch.special.entr(target).sum(-1).mean()
            self.adapt_temperature(entropy)
        else:
            plan = self.plan(state, ids, key)
            aim = (plan.mean[:, :, 0] - self.middle) / self.reach.clamp(min=1e-12)
            width = (plan.deviation[:, :, 0] / self.reach.clamp(min=1e-12)).clamp(min=_NARROWEST)
            mean, log_deviation = self._habit(rows.obs, rows.field)
            variance = (2 * log_deviation).exp()
            gap = (log_deviation - width.log() + (width.square() + (aim - mean).square()) / (2 * variance) - 0.5).sum(
                -1
            )
            entropy = (log_deviation + self.reach.clamp(min=1e-12).log()).sum(-1).mean().detach()
            entropy = entropy + 0.5 * math.log(2 * math.pi * math.e) * self.spec.num_actions
        loss = pooled(gap, None)
        name = "the habit of deep active inference"
        descend(loss, self.habit_weights, self.habit_optimiser, self.minds, self.config.gradient_clip, name)
        return {"habit_gap": loss.detach() / self.minds, "entropy": entropy}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        found = {"ensemble": self.optimiser}
        return {**found, "habit": self.habit_optimiser} if self.by_habit else found


def _bounds(spec: Spec, field: int) -> tuple[Tensor, Tensor]:
    """What a state can be, [S] each: the observation space's bounds, and none for the field's columns."""
    space = spec.observation_space
    if isinstance(space, gymnasium.spaces.Box):
        low, high = (torch.as_tensor(x).flatten().float() for x in (space.low, space.high))
    else:
        low, high = torch.zeros(int(space.n)), torch.ones(int(space.n))  # type: ignore[attr-defined]
    free = torch.full((field,), float("inf"))
    return torch.cat([low, -free]), torch.cat([high, free])
