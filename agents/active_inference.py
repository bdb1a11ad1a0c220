r"""Active inference: beliefs by Bayes' rule, actions by expected free energy, in a model given or learned.

$$ q(s) \propto p(o \mid s)\, p(s), \qquad a \sim e^{\gamma\, g(a \mid q)} / Z, \qquad
   g = \text{pragmatic} + \text{state information} + \text{parameter information}, \qquad E = -g,\ T = 1/\gamma $$

Friston et al. 2017, "Active inference: a process theory" (Neural Computation 29, 1); Da Costa et al. 2020. The model is
the environment's (`generative_model`), a file's, or learned from nothing; its tables may be refined by Dirichlet counts.
Beliefs are carried through the episode by every agent of every copy; what is learned is shared by a mind's agents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference import counts as dirichlet
from mfmarl.inference import files, filtering, reachable, senses
from mfmarl.inference.counts import Counts
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective, ParameterInformation, Plan, StateInformation
from mfmarl.inference.planning import dynamic_programming, open_loop, search, sophisticated
from mfmarl.inference.planning.sophisticated import gathered
from mfmarl.inference.unknown import level, unknown
from mfmarl.learning.agent import Agent, AgentConfig, Positive, Transition
from mfmarl.options import Amount, Bounds
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech import gibbs

_GRAINS = 2.0**20
_JOINT = 512  # joint states up to which beliefs are kept over all of them


@dataclass(frozen=True)
class ActiveInferenceConfig(AgentConfig):
    """Options of active inference."""

    field: str = "nothing"
    """What is felt of the others; this agent believes in its own model only, so nothing."""
    temperature: str = "0.0625"
    """1/gamma, nats: gamma = 16 is usual. A number, a schedule such as `geometric(1, 0.01)`, or `entropy(0.5)`."""
    model: str = ""
    """Its generative model: the environment's (empty), `learned` from observations and rewards alone, or a file's path."""
    inference: Literal["auto", "exact", "sequential", "damped", "parallel"] = "auto"
    """Beliefs over joint states (exact), or of independent factors by mean field; auto: exact up to 512 joint states."""
    planning: Literal["open_loop", "sophisticated", "dynamic_programming", "search"] = "sophisticated"
    """How actions ahead are weighed: sequences of actions; choices that heed what will be seen; values of states, for
    many steps where states are seen; or by sampling, for many steps where they are not."""
    depth: Positive = 3
    """Actions ahead."""
    beyond: Annotated[int, Bounds(0, 100_000)] = 0
    """Steps after these that count for what they are worth to who knows the state by then, where choices heed what will
    be seen: for goals farther off than a tree reaches."""
    backup: Literal["free_energy", "expectation", "max"] = "free_energy"
    """What later choices are worth to earlier ones (not of open loop): at the temperature, on average, or at best."""
    state_information: StateInformation = "per_modality"
    """Whether what is seen is worth what it tells of hidden states: per modality, jointly, or none."""
    parameter_information: ParameterInformation = "none"
    """Whether it is worth what it tells of the tables that are learned: exactly, or as pymdp or SPM have it."""
    discount: Annotated[float, Bounds(0.0, 1.0)] = 1.0
    """What a later step counts, for each step that it is later (not of open loop, nor of search)."""
    alpha: Annotated[float, Bounds(0.0, 1e6, open_low=True)] = 1.0
    """Precision of acting: probabilities to this power."""
    learn: str = ""
    """Tables that are learned, letters of ABDE; empty: none (AB where the model is learned)."""
    scale: Annotated[float, Bounds(0.0, 1e9)] = 1.0
    """Counts that each column of the model stands for before anything was learned."""
    rate: Annotated[float, Bounds(0.0, 1e6)] = 1.0
    """Counts that one step adds."""
    forgetting: Annotated[float, Bounds(0.0, 1.0)] = 0.0
    """The share of what was learned that is forgotten with every step."""
    reward_levels: Annotated[int, Bounds(2, 1000)] = 11
    """Levels of reward that are told apart, where the model is learned."""
    reward_range: tuple[Amount, Amount] = (-1.0, 1.0)
    """Least and highest reward, where the model is learned."""
    simulations: Positive = 64
    """Simulations of a search."""
    budget: Annotated[int, Bounds(1, 1 << 50)] = 1 << 28
    """Bytes that planning may take at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown_letters = sorted(set(self.learn) - set("ABDE"))
        if unknown_letters:
            raise ConfigError(f"learn is some letters of ABDE, not {self.learn!r}.")
        if self.parameter_information != "none" and not (self.learn or self.model == "learned"):
            raise ConfigError(
                f"parameter_information = {self.parameter_information} needs tables that are learned: set learn, such as AB."
            )
        if not self.reward_range[0] < self.reward_range[1]:
            raise ConfigError(f"reward_range must be a lower and a higher reward, not {self.reward_range}.")


@register("active_inference")
class ActiveInference(Agent):
    """Acts upon beliefs in a generative model, by expected free energy."""

    Config = ActiveInferenceConfig
    needs_discrete = True
    perceives = True

    def __init__(self, config: ActiveInferenceConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        self.key = key
        self.learned = config.model == "learned"
        self.levels = torch.linspace(*config.reward_range, config.reward_levels)
        given = self._given_model(spec, slots).to(dtype=torch.float32)
        if given.num_actions != spec.num_actions:
            raise ConfigError(
                f"The model has {given.num_actions} actions (settings of all controls) and the environment {spec.num_actions}."
            )
        self.exact = config.inference == "exact" or (config.inference == "auto" and given.num_states <= _JOINT)
        self.learns = config.learn or ("AB" if self.learned else "")
        # What there is to be learned of tables is said of factors, whose beliefs are then kept apart.
        self.joint = self.exact and (config.parameter_information == "none" or len(given.sizes) == 1)
        self.objective = Objective(config.state_information, config.parameter_information)
        if self.learns:
            self.memory = "latest"  # type: ignore[misc]
            start = dirichlet.begin(given, self.learns, config.scale, lead=() if minds == 1 else (minds, 1))
            if self.learned:
                # What is known for certain is not counted.
                start = _without(start, A=0, B=1)
            self._keep("count", start)
            self._keep("start", start)
            given = given if minds == 1 else _led(given, minds)
        self.given = given
        self._made: tuple[GenerativeModel, GenerativeModel, Counts | None] | None = None
        self._table: tuple[GenerativeModel, float, dynamic_programming.Tables] | None = None
        self.register_load_state_dict_post_hook(lambda *_: self._forget_made())

    def _given_model(self, spec: Spec, slots: slice) -> GenerativeModel:
        if self.learned:
            return unknown(spec.observation_space, spec.num_actions, self.levels)
        if self.config.model:
            model = files.load(Path(self.config.model)).model
        else:
            group = next(i for i, s in enumerate(spec.group_slices.values()) if s.start <= slots.start < s.stop)
            given: GenerativeModel | None = None if spec.rules is None else spec.rules.generative_model(group)
            if given is None:
                raise ConfigError(
                    "This environment gives no generative model to act by: write --model learned to learn one of its "
                    "observations and rewards, or the path of a model file."
                )
            model = given
        senses.check(model, spec.observation_space)
        if not self.config.learn:  # what is out of reach now may be found to be within it
            reachable.check_preferences(model)
        return model

    # ------------------------------------------------------------------------------------------- the model

    def _keep(self, name: str, counts: Counts) -> None:
        for letter in counts.learned:
            tables = getattr(counts, letter)
            for i, table in enumerate((tables,) if letter == "E" else tables):
                if table is not None:
                    self.register_buffer(f"{name}_{letter}_{i}", table.clone(), persistent=name == "count")
        self._layout = counts

    def _kept(self, name: str) -> Counts:
        found: dict[str, Any] = {}
        for letter in self._layout.learned:
            tables = getattr(self._layout, letter)
            every = [
                None if t is None else getattr(self, f"{name}_{letter}_{i}")
                for i, t in enumerate((tables,) if letter == "E" else tables)
            ]
            found[letter] = every[0] if letter == "E" else tuple(every)
        return Counts(**dict.fromkeys("ABCDE") | found, zeros=self._layout.zeros)

    def _forget_made(self) -> None:
        self._made = None

    @property
    def counts(self) -> Counts:
        """What has been counted so far, tables by factors [M, 1, ...] (or shared by all)."""
        return self._kept("count")

    @property
    def models(self) -> tuple[GenerativeModel, GenerativeModel, Counts | None]:
        """(by factors, as beliefs are kept, counts by factors) as learned so far, on the agent's device."""
        device = self.log_temperature.device
        if self._made is None or self._made[0].device != device:
            base = self.given.to(device)
            counts = self.counts if self.learns else None
            if counts is not None:
                base = dirichlet.expected(base, counts)
            self._made = base, base.joint() if self.joint else base, counts
        return self._made

    # --------------------------------------------------------------------------------------------- beliefs

    def perceive(
        self, carried: dict[str, Tensor], timestep: Timestep, field: Tensor, ids: Tensor, key: Key
    ) -> tuple[Tensor, dict[str, Tensor]]:
        _, model, _ = self.models
        slots, copies = self.slots, ids.shape[0]
        seen = self._outcomes(timestep)
        if carried:
            begun = (timestep.step == 0).unsqueeze(-1)
            action = self.by_mind(torch.where(begun, -1, timestep.action[:, slots]))
            believed = [self.by_mind(carried[f"belief_{f}"]) for f in range(len(model.sizes))]
            expected = filtering.expect(model, believed, action)
        else:
            rows = self.by_mind(ids).shape
            expected = tuple(d.expand(*rows, d.shape[-1]) for d in model.D)
        chosen: Literal["auto", "exact", "sequential", "damped", "parallel"] = self.config.inference
        method: filtering.Method = "exact" if self.exact else "sequential" if chosen == "auto" else chosen
        step = filtering.update(model, expected, seen, method, check=False, terms=False)
        lost = ~step.free_energy.isfinite() & self.by_mind(timestep.alive[:, slots])
        if bool(lost.any()):
            filtering.update(model, expected, _only(seen, lost), method)  # says what is impossible
        carried = {f"belief_{f}": self.by_copy(q, copies) for f, q in enumerate(step.factors)}
        columns = list(carried.values())
        if self.learns:
            told = [seen.to(torch.float32)] if isinstance(seen, Tensor) else list(seen)
            begun = (timestep.step == 0).view(-1, 1, 1).expand(copies, ids.shape[1], 1)
            columns += [self.by_copy(x, copies) for x in told] + [begun.to(torch.float32)]
        return torch.cat(columns, -1), carried

    def _outcomes(self, timestep: Timestep) -> Tensor | tuple[Tensor, ...]:
        obs = self.by_mind(timestep.obs[:, self.slots])
        if not self.learned:
            return senses.outcomes(self.given, self.spec.observation_space, obs)
        paid = level(self.by_mind(timestep.reward[:, self.slots]), self.levels.to(obs.device))
        # Nothing is paid before the first step.
        begun = self.by_mind((timestep.step == 0).unsqueeze(-1).expand(-1, self.num_slots))
        return torch.stack([obs, torch.where(begun, -1, paid)], -1)

    def _unpacked(self, obs: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """(beliefs [M, B, S_f], the columns behind them) of what `perceive` made."""
        _, model, _ = self.models
        sizes = list(model.sizes)
        parts = obs.split([*sizes, obs.shape[-1] - sum(sizes)], -1)
        return parts[: len(sizes)], list(parts[len(sizes) :])

    # ---------------------------------------------------------------------------------------------- acting

    def plan(self, believed: tuple[Tensor, ...], key: Key | None = None) -> Plan:
        """What planning finds for beliefs [M, B, S_f]: see `Plan`."""
        config: ActiveInferenceConfig = self.config
        _, model, counts = self.models
        told = counts if config.parameter_information != "none" else None
        gamma = 1 / max(float(self.temperature), 1e-6)
        if config.planning == "open_loop":
            return open_loop.plan(
                model,
                believed,
                config.depth,
                gamma,
                self.objective,
                counts=told,
                budget=config.budget,
                details=False,
                # What pays once for a model does not for one that is new at every step.
                how="tree" if self.learns else "auto",
            )
        if config.planning == "sophisticated":
            far = self._values_of_states(model, gamma, config.beyond).state[0] if config.beyond else None
            return sophisticated.plan(
                model,
                believed,
                config.depth,
                gamma,
                self.objective,
                config.backup,
                counts=told,
                budget=config.budget,
                beyond=far,
                discount=config.discount,
            )
        if config.planning == "dynamic_programming":
            known = self._values_of_states(model, gamma, config.depth)
            return dynamic_programming.plan(
                model, believed, config.depth, gamma, self.objective, config.backup, known=known, look=True
            )
        return search.plan(
            model,
            believed,
            config.depth,
            gamma,
            self.objective,
            config.backup,
            key=key or self.key.fold("search"),
            simulations=config.simulations,
            budget=config.budget,
        )

    def _values_of_states(self, model: GenerativeModel, gamma: float, steps: int) -> dynamic_programming.Tables:
        """The table of values, made anew only when model or temperature have changed."""
        config: ActiveInferenceConfig = self.config
        if self._table is None or self._table[0] is not model or self._table[1] != gamma:
            found = dynamic_programming.tables(
                model.joint(), steps, gamma, self.objective, config.backup, discount=config.discount
            )
            self._table = model, gamma, found
        return self._table[2]

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """E = -alpha g: [M, B, A]."""
        believed, _ = self._unpacked(obs)
        # Many agents believe the same: each belief is planned from once. Rid of the last bits, so that whose copy of it is
        # taken makes no difference.
        believed = tuple((q * _GRAINS).round() / _GRAINS for q in believed)
        every = torch.ones(believed[0].shape[:2], dtype=torch.bool, device=obs.device)
        different, place = gathered(believed, every, True)
        value = self.plan(different).value
        return -self.config.alpha * value.gather(1, place.unsqueeze(-1).expand(*place.shape, value.shape[-1]))

    # -------------------------------------------------------------------------------------------- learning

    @torch.no_grad()
    def learn(self, batch: Transition) -> dict[str, Tensor]:
        config: ActiveInferenceConfig = self.config
        base, _, counts = self.models
        assert counts is not None
        before, then = self._unpacked(batch.obs)
        after, now = self._unpacked(batch.next_obs)
        before, after = self._by_factor(base, before), self._by_factor(base, after)
        weight = torch.ones_like(batch.reward) if batch.valid is None else batch.valid.to(batch.reward.dtype)
        begun = weight * then[0][..., -1]
        new = dirichlet.forget(counts, config.forgetting, self._kept("start"))
        new = dirichlet.learn_A(base, new, self._seen(then[0]), before, config.rate, begun, check=False)
        new = dirichlet.learn_A(base, new, self._seen(now[0]), after, config.rate, weight, check=False)
        action = batch.action.clamp(min=0)
        new = dirichlet.learn_B(base, new, before, action, after, config.rate, weight, joint=True, check=False)
        new = dirichlet.learn_D(base, new, before, config.rate, begun)
        new = dirichlet.learn_E(new, torch.where(weight > 0, action, -1), config.rate)
        for letter in new.learned:
            tables = getattr(new, letter)
            for i, table in enumerate((tables,) if letter == "E" else tables):
                if table is not None:
                    getattr(self, f"count_{letter}_{i}").copy_(table)
        self._forget_made()
        moved = dirichlet.parameter_cost(base, new, counts)
        numbers = {"learned": moved.mean()}
        if self.schedule.kind == "entropy":
            entropy = gibbs.entropy(self.energy(batch.obs, batch.field), self.temperature).mean()
            self.adapt_temperature(entropy)
            numbers["entropy"] = entropy
        return numbers

    def _seen(self, columns: Tensor) -> Tensor | tuple[Tensor, ...]:
        told = columns[..., :-1]
        if self.learned or isinstance(self.spec.observation_space, gymnasium.spaces.Discrete):
            return told.long()
        return tuple(told.split(list(self.given.outcomes), -1))

    def _by_factor(self, base: GenerativeModel, believed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Marginals of every factor, of beliefs over joint states."""
        if not self.joint or len(base.sizes) == 1:
            return believed
        joint = believed[0].unflatten(-1, base.sizes)
        axes = range(-len(base.sizes), 0)
        return tuple(joint.sum([a for a in axes if a != f - len(base.sizes)]) for f in range(len(base.sizes)))


@dataclass(frozen=True)
class BeliefPlannerConfig(ActiveInferenceConfig):
    """Options of a planner over beliefs."""

    backup: Literal["free_energy", "expectation", "max"] = "max"
    """What later choices are worth to earlier ones."""
    discount: Annotated[float, Bounds(0.0, 1.0)] = 0.99
    """What a later step counts, for each step that it is later: below 1, or what can wait for ever is put off."""
    state_information: StateInformation = "none"
    """Whether what is seen is worth what it tells of hidden states: not in itself."""


@register("belief_planner")
class BeliefPlanner(ActiveInference):
    """Plans over beliefs for reward alone, in the same model as active inference: what the model by itself is worth."""

    Config = BeliefPlannerConfig


def _only(seen: Tensor | tuple[Tensor, ...], rows: Tensor) -> Tensor | tuple[Tensor, ...]:
    """What was seen in these rows [M, B]; elsewhere nothing."""
    if isinstance(seen, Tensor):
        return torch.where(rows.unsqueeze(-1), seen, -1)
    return tuple(torch.where(rows.unsqueeze(-1), x, 0.0) for x in seen)


def _without(counts: Counts, A: int, B: int) -> Counts:
    """Counts of one likelihood and one transition less."""

    def but(tables: Any, i: int) -> Any:
        return None if tables is None else tuple(None if k == i else x for k, x in enumerate(tables))

    return replace(counts, A=but(counts.A, A), B=but(counts.B, B))


def _led(model: GenerativeModel, minds: int) -> GenerativeModel:
    """Tables with a leading [minds, 1], for those that come to differ."""
    return model.map(lambda x: x.expand(minds, 1, *x.shape))
