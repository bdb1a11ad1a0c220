r"""KL control: the analytic end of the ladder, solved as a linear problem and played by its Gibbs distribution.

$$ z_t(s) = e^{-q(s)/T} \sum_{s'} p(s'|s)\, z_{t+1}(s')^{\delta}, \qquad
   E_t(s, a) = \ell(s, a) - T \log h(a) + \delta \sum_{s'} P(s'|s, a)\, v_{t+1}(s'), \quad v = -T \log z $$

(Kappen 2005; Todorov 2006, 2009: `mfmarl.inference.linearly_solvable`.) The agent pays the costs l of what it does and T
times the relative entropy to its habits h, from which the passive dynamics p come. Where actions are certain to lead where
they lead that is linear in z, and the Gibbs distribution of E is optimal; where they are not, the problem is embedded in
one that is (Todorov 2009), and approximates. It is given the rules, and has no experience: a generative model whose
outcomes tell the state, or a mean-field game, in which the crowd that it meets is that of its own policy. There it
iterates, costs against crowd and crowd against costs, with every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games import exploitability
from mfmarl.games.flow import Flow, flow, times
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.sight import Sight
from mfmarl.inference import linearly_solvable, senses
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.planning import dynamic_programming
from mfmarl.learning.agent import Agent, AgentConfig, Discount, Positive, Transition, finite, forbid
from mfmarl.options import Bounds
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech import gibbs

_TABLE = 1 << 24  # entries of a table in time; games that are longer are played as if they had no end
_NEVER = 1e9  # stands for an infinite energy: what is stored is finite
_SETTLED = 1e-6  # change of a policy below which a crowd has come to rest: tables are float32
_NUMBERS = ("residual", "exploitability", "embedding_error")


@dataclass(frozen=True)
class KLControlConfig(AgentConfig):
    """Options of KL control."""

    field: str = "nothing"
    """It knows the crowd by its rules, and feels nothing."""
    temperature: str = "0.1"
    """What a nat of leaving its habits costs, in units of reward: a number above 0, a schedule, or `entropy(0.5)`."""
    habit: tuple[Annotated[float, Bounds(0.0, 1e12, open_low=True)], ...] = ()
    """Weights of the actions that make the passive dynamics; empty: all alike (or the generative model's own habits)."""
    ahead: Literal["auto", "horizon", "discounted", "average"] = "auto"
    """What lies ahead: the rest of the episode; all time, discounted; or the average cost per step. auto: the episode where
    it has a horizon, else discounted. A mean-field game has its own."""
    gamma: Discount = None
    """Discount per step where there is no end; none: the environment's own."""
    weight: Annotated[float, Bounds(0.0, 1.0, open_low=True)] = 0.2
    """In a mean-field game, the share of the way that energies go to their answer in an iteration."""
    iterations: Positive = 1
    """In a mean-field game, iterations with every step of the environment."""
    beforehand: Annotated[int, Bounds(0, 1 << 40)] = 100
    """In a mean-field game, iterations before the first step, unless it comes to rest earlier."""


@register("kl_control")
class KLControl(Agent):
    """Plays the optimum of a linearly solvable problem that it is given the rules of."""

    Config = KLControlConfig
    needs_discrete = True
    table: Tensor
    moves: Tensor
    paid: Tensor
    log_habit: Tensor
    iteration: Tensor
    numbers: Tensor

    def __init__(self, config: KLControlConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        if self.schedule.kind != "entropy" and min(self.schedule.at(0.0), self.schedule.at(1.0)) < 1e-6:
            raise ConfigError(
                "kl_control needs a temperature above 0, what a nat costs: a cold one is geometric(1, 0.01)."
            )
        if config.habit and len(config.habit) != spec.num_actions:
            raise ConfigError(f"A habit weighs {spec.num_actions} actions, not {len(config.habit)}.")
        if self.schedule.kind == "entropy":
            self.memory = "latest"  # type: ignore[misc]
        self.game = spec.rules if isinstance(spec.rules, MeanFieldGame) else None
        self._solved: tuple[float, Tensor] | None = None
        if self.game is None:
            self._begin_model(_given(spec, slots))
        else:
            self._begin_game(self.game)

    # -------------------------------------------------------------------------------- of a generative model

    def _begin_model(self, model: GenerativeModel) -> None:
        spec, config = self.spec, self.config
        senses.check(model, spec.observation_space)
        if model.num_actions != spec.num_actions:
            raise ConfigError(f"The model has {model.num_actions} actions and the environment {spec.num_actions}.")
        if not dynamic_programming.fully_observed(model):
            raise ConfigError(
                "kl_control must see which state it is in, and this model's outcomes do not tell: use active_inference."
            )
        if model.timed:
            raise ConfigError("kl_control's costs do not change in time, and this model's preferences do.")
        self.flat = model.joint()
        self.perceives = True  # type: ignore[misc]
        horizon = spec.horizon
        fits = horizon is not None and horizon * model.num_states * model.num_actions <= _TABLE
        self.ahead = ("horizon" if fits else "discounted") if config.ahead == "auto" else config.ahead
        if self.ahead == "horizon" and not fits:
            raise ConfigError("There is no horizon, or one too long for a table: use --ahead discounted.")
        if self.ahead == "discounted" and not self.gamma < 1:
            raise ConfigError("Without an end a discount lies below 1: set gamma, or --ahead average.")
        moves = dynamic_programming.transitions(self.flat)
        wanted = sum(c @ a for a, c in zip(self.flat.A, self.flat.C, strict=True))
        habit = self.flat.E if self.flat.E is not None and not config.habit else None
        self.register_buffer("moves", moves, persistent=False)
        self.register_buffer("paid", -(moves @ torch.as_tensor(wanted)), persistent=False)
        self.register_buffer("log_habit", self._log_habit(habit), persistent=False)
        self._prepare(moves)

    def _log_habit(self, given: Tensor | None) -> Tensor:
        weights = given if given is not None else torch.tensor(self.config.habit or (1.0,) * self.spec.num_actions)
        return (weights.double() / weights.double().sum()).log()

    def _prepare(self, moves: Tensor) -> None:
        """What does not change with costs."""
        self.certain = linearly_solvable.certain(moves)
        self.inverse = None if self.certain else torch.linalg.pinv(moves)

    def _linear(self, charged: Tensor, moves: Tensor, temperature: float) -> linearly_solvable.Embedded:
        if self.certain:
            return linearly_solvable.tilt(charged, moves, temperature)
        # What must not be done is no constraint: in its place stands what may be.
        allowed = charged.isfinite()
        other = allowed.to(torch.int8).argmax(-1, keepdim=True)
        instead = moves.gather(-2, other.unsqueeze(-1).expand(*other.shape, moves.shape[-1]))
        moves = torch.where(allowed.unsqueeze(-1), moves, instead)
        charged = torch.where(allowed, charged, charged.gather(-1, other))
        inverse = self.inverse if bool(allowed.all()) else None
        if inverse is not None:
            inverse = inverse.to(moves.device)
        return linearly_solvable.embed(charged, moves, temperature, inverse)

    def _solve_model(self, temperature: float) -> Tensor:
        """E [T, S, A] of the states of the model; T is 1 where there is no end."""
        charged = self.paid - temperature * self.log_habit
        linear = self._linear(charged, self.moves, temperature)
        if self.ahead == "average":
            value = linearly_solvable.average_cost(linear.cost, linear.passive, temperature).value
            return linearly_solvable.energies(charged, self.moves, value).unsqueeze(0)
        if self.ahead == "discounted":
            value = linearly_solvable.discounted(linear.cost, linear.passive, temperature, self.gamma).value
            return linearly_solvable.energies(charged, self.moves, value, self.gamma).unsqueeze(0)
        steps = self.spec.horizon or 1
        values = linearly_solvable.finite_horizon(linear.cost, linear.passive, steps, temperature).value[1:]
        return linearly_solvable.energies(charged, self.moves, values)

    def perceive(
        self, carried: dict[str, Tensor], timestep: Timestep, field: Tensor, ids: Tensor, key: Key
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Its state and the time, [E, n, 2]; in a game, its group beside what it sees."""
        obs = timestep.obs[:, self.slots]
        if self.game is not None:
            group = self.spec.group[self.slots].to(obs).view(1, -1, 1).expand(*obs.shape[:2], 1)
            return torch.cat([obs, group], -1), {}
        state = self._state(obs)
        when = timestep.step.to(state).view(-1, 1).expand(state.shape)
        return torch.stack([state, when], -1).to(torch.float32), {}  # whole numbers below 2^24

    def _state(self, obs: Tensor) -> Tensor:
        """The state that shows this, int64."""
        seen = senses.outcomes(self.flat, self.spec.observation_space, obs)
        likely: Tensor | None = None
        for m, a in enumerate(self.flat.A):
            told = a.to(obs.device)
            own = told[seen[..., m]] if isinstance(seen, Tensor) else seen[m] @ told
            likely = own if likely is None else likely * own
        assert likely is not None
        return likely.argmax(-1)

    # ------------------------------------------------------------------------------------ of a mean-field game

    def _begin_game(self, game: MeanFieldGame) -> None:
        if game.tree is not None:
            raise ConfigError(
                f"{type(game).__name__} has common noise, and what is seen does not tell which past the crowd has had: "
                "kl_control plays games without it."
            )
        if game.horizon is None and self.config.ahead == "average":
            raise ConfigError("A mean-field game without a horizon is discounted: leave --ahead as it is.")
        self.memory = "latest"  # type: ignore[misc]
        groups = self.spec.group[self.slots].unique().tolist()
        self.group: int = groups[0]
        # What is seen does not tell the group: a mind of several is told it beside what it sees.
        self.perceives = len(groups) > 1  # type: ignore[misc]
        legal = game.legal_mask()
        shape = (game.num_groups, game.num_states, game.num_actions)
        log_habit = self._log_habit(None).expand(shape)
        if legal is not None:
            log_habit = (log_habit.exp() * legal).log()
            log_habit = log_habit - log_habit.logsumexp(-1, keepdim=True)
        self.register_buffer("log_habit", log_habit.clone(), persistent=False)
        self.sight = Sight(game)
        start = -log_habit * self._now()
        self.register_buffer("table", _stored(start.expand(times(game), *shape)))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("numbers", torch.zeros(len(_NUMBERS)))
        for _ in range(self.config.beforehand):
            if self._iterate() <= _SETTLED:
                break

    def _answer(self, path: Flow, temperature: float) -> tuple[Tensor, float]:
        """E [T, G, S, A] of one agent in this crowd, and the largest error of its embedding."""
        game = self.game
        assert game is not None
        found: list[Tensor] = []
        worst = 0.0
        ahead = torch.zeros_like(path.mu[0]) if path.terminal is None else -path.terminal
        for t in range(len(path.rewards) - 1, -1, -1):
            moves = path.kernels[t].dense().to(path.mu).expand(*self.log_habit.shape, game.num_states)
            if self._kernel is not path.kernels[t]:
                self._kernel = path.kernels[t]
                self._prepare(moves)
            charged = -path.rewards[t] - temperature * self.log_habit.to(path.mu)
            linear = self._linear(charged, moves, temperature)
            worst = max(worst, float(linear.residual.max()))
            if game.horizon is None:
                ahead = linearly_solvable.discounted(linear.cost, linear.passive, temperature, game.discount).value
            found.append(linearly_solvable.energies(charged.clamp(max=_NEVER), moves, ahead, game.discount))
            if game.horizon is not None:
                log_z = -ahead / temperature
                log_z = linearly_solvable.backward(linear.cost, linear.passive, log_z, temperature, game.discount)
                ahead = -temperature * log_z
        return torch.stack(found[::-1]), worst

    _kernel: object = None

    @torch.no_grad()
    def _iterate(self) -> float:
        """Energies go a part of the way to their answer; returns by how much the policy is off it."""
        game, temperature = self.game, self._now()
        assert game is not None
        energy = self.table.double()
        policy = self._policy(energy, temperature)
        path = flow(game, policy)
        answer, worst = self._answer(path, temperature)
        residual = (self._policy(answer, temperature) - policy).abs().max()
        finite(residual, "residual of kl_control")
        self.table.copy_(_stored(energy + self.config.weight * (answer - energy)))
        self.iteration += 1
        self.numbers[0], self.numbers[1] = residual, exploitability.of_flow(game, path).exploitability
        self.numbers[2] = worst
        return float(residual)

    def _policy(self, energy: Tensor, temperature: float) -> Tensor:
        legal = self.log_habit > -torch.inf
        return gibbs.probabilities(energy.masked_fill(~legal, torch.inf), temperature)

    # ----------------------------------------------------------------------------------------------- as an agent

    def _now(self) -> float:
        return max(float(self.temperature), 1e-6)

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """E(a): what is paid, less T log h, and what lies ahead: [M, B, A]."""
        if self.game is not None:
            group = obs[..., -1].round().long() if self.perceives else self.group
            number = self.sight(obs)
            states = self.table.shape[2]
            return self.table[number.div(states, rounding_mode="floor"), group, number % states]
        temperature = self._now()
        if self._solved is None or self._solved[0] != temperature or self._solved[1].device != obs.device:
            table = self._solve_model(temperature)
            # Long episodes cost much, whatever is done: in float32 only differences would be left.
            self._solved = (temperature, _stored(table - table.amin((-1, -2), keepdim=True)))
        table = self._solved[1]
        cell = obs.round().long()
        return table[cell[..., 1].clamp(min=0, max=len(table) - 1), cell[..., 0]]

    @torch.no_grad()
    def learn(self, batch: Transition) -> dict[str, Tensor]:
        """Iterations against the crowd of its own policy; what happened in the `batch` is of no interest."""
        numbers: dict[str, Tensor] = {}
        if self.game is not None:
            for _ in range(self.config.iterations):
                self._iterate()
            numbers = {name: self.numbers[i].clone() for i, name in enumerate(_NUMBERS)}
        if self.schedule.kind == "entropy":
            energy = forbid(self.energy(batch.obs, batch.field), batch.legal)
            entropy = gibbs.entropy(energy, self.temperature).mean()
            self.adapt_temperature(entropy)
            numbers["entropy"] = entropy
        return numbers


def _stored(energy: Tensor) -> Tensor:
    return energy.clamp(max=_NEVER).to(torch.float32)


def _given(spec: Spec, slots: slice) -> GenerativeModel:
    group = next(i for i, s in enumerate(spec.group_slices.values()) if s.start <= slots.start < s.stop)
    model = None if spec.rules is None else spec.rules.generative_model(group)
    if model is None:
        raise ConfigError(
            "kl_control is given the rules: a mean-field game, or an environment with a generative model; this one is "
            "neither, so try mfq."
        )
    if not isinstance(model, GenerativeModel):
        raise ConfigError(f"A generative model was expected of this environment, not {type(model).__name__}.")
    return model
