r"""Active inference in a crowd that is believed in: a hidden population factor, of which the mean field is the evidence.

$$ q(m) \propto e^{\kappa \sum_a f_a \ln \theta_{ma}} \sum_{m'} B(m \mid m')\, q_-(m'), \qquad
   a \sim e^{g(a)/T} / Z, \qquad g(a) = \langle r \rangle + c\, I(r; m \mid a, f) + c'\, I(r; \text{payoffs} \mid a) $$

An agent feels the shares f in which kappa others act (k of them, `actions over sampled(k)`; or everyone) and believes in
a crowd that is at one of K points theta_m of the simplex, which moves by B, learned by Dirichlet counts that forget.
Where the environment says what its world is like (`crowd_model`), the crowd is one more factor of that model, and actions
are weighed by expected free energy some steps ahead. How the crowd moves may depend there on a hidden state w that nobody
moves, B(m' | m, w): the crowd then tells of w, by the mean-field message E_q ln B(m' | m, w), to agents who have learned
how crowds behave. Elsewhere the reward is a modality that is learned: counts of
(level of reward | what is seen, action, crowd), weighed one step ahead. The information on m is social curiosity, that on
the payoffs the wish to try what is not known. Cost and memory of an agent do not depend on how many others there are.

Its twin without a field, `independent_inference`, is told nothing of the crowd.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import gymnasium
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference import crowd, filtering, reward_modality, senses
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import open_loop, sophisticated
from mfmarl.inference.reward_modality import Rewards
from mfmarl.learning.agent import Agent, AgentConfig, Positive, Transition, finite, forbid
from mfmarl.options import Bounds
from mfmarl.population.field import Actions, Neighbours, Sampled, States
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech import gibbs

_ROWS = 1024  # agents from whom the entropy of acting is reported


@dataclass(frozen=True)
class MeanFieldInferenceConfig(AgentConfig):
    """Options of inference in a crowd."""

    field: str = "auto"
    """What is felt of the others and taken as a sample of the crowd: `actions over sampled(8)`, `actions over everyone`;
    `auto`: the neighbours' actions, or the own team's; `nothing`: the crowd is not seen."""
    temperature: str = "0.0625"
    """1/gamma, in units of reward: a number, a schedule such as `geometric(1, 0.01)`, or `entropy(0.5)`."""
    model: Literal["auto", "given", "learned"] = "auto"
    """What an agent knows of its world: what the environment tells (given), or nothing but what it has been paid
    (learned); auto: given where there is something."""
    points: Annotated[int, Bounds(1, 10_000)] = 15
    """K, states that the crowd may be in: points spread over the shares of actions (at least one for each action)."""
    peers: Annotated[float, Bounds(0, 1e9)] = 0.0
    """kappa, how many others what is felt counts for; 0: as many as are felt, but no more than K points can tell apart."""
    stay: Annotated[float, Bounds(0.0, 1.0)] = 0.9
    """How persistent the crowd is held to be before that is learned: the chance that it stays as it is for a step."""
    learn_crowd: bool = True
    """Whether how the crowd moves is learned."""
    state_information: Literal["auto", "joint", "per_modality", "none"] = "auto"
    """What an action is expected to tell of hidden states, the crowd among them: beyond what is felt of the crowd anyhow
    (joint), as if nothing were felt (per_modality: counts twice what is), or nothing. auto: joint where payoffs are
    learned, per modality in a given model (joint outcomes are many)."""
    curiosity: Annotated[float, Bounds(0.0, 1e6)] | None = None
    """What a nat of that is worth, in units of reward; none: 1 in a given model, whose preferences are nats, and the
    temperature where payoffs are learned, whose scale is the environment's (log-preferences are then reward / T)."""
    novelty: Annotated[float, Bounds(0.0, 1e6)] | None = None
    """What a nat is worth that an action tells of payoffs that are learned; none: the temperature, 0: tries nothing for
    its own sake."""
    social: bool = True
    """Whether, in a given model, how the crowd moves is believed to depend on the first state that nobody moves, so that
    the crowd tells of it (where that is learned)."""
    planning: Literal["open_loop", "sophisticated"] = "open_loop"
    """How actions ahead are weighed in a given model: as sequences, or heeding what will be seen."""
    depth: Positive = 1
    """Actions ahead, in a given model."""
    rate: Annotated[float, Bounds(0.0, 1e6)] = 1.0
    """Counts of the crowd's moves that a step adds (the mean of a mind's agents: they all see the same crowd)."""
    forgetting: Annotated[float, Bounds(0.0, 1.0)] = 0.02
    """The share of what was counted that is forgotten with every step."""
    prior: Annotated[float, Bounds(0.0, 1e9, open_low=True)] = 1.0
    """Counts that every column stands for before anything was learned."""
    levels: Annotated[int, Bounds(2, 1000)] = 11
    """Levels of reward that are told apart, where payoffs are learned; they spread over what has been paid."""
    context: Annotated[int, Bounds(0, 1 << 20)] = 256
    """Different observations that learned payoffs are told apart by, at most; where there are more: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "learned" and self.depth > 1:
            raise ConfigError(f"Learned payoffs are weighed one step ahead: depth = {self.depth} needs model = given.")


@register("mean_field_inference", independent="independent_inference")
class MeanFieldInference(Agent):
    """Believes in a crowd, sees it in the mean field, and acts by expected free energy."""

    Config = MeanFieldInferenceConfig
    memory = "latest"
    needs_discrete = True
    perceives = True
    theta: Tensor
    held: Tensor
    moves: Tensor
    evidence: Tensor
    span: Tensor
    felt: Tensor
    shown: GenerativeModel
    """The given model, before anything was put to it."""

    def __init__(self, config: MeanFieldInferenceConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        told = self._told(spec, slots)
        theta = self._points(spec, told is not None)
        self.register_buffer("theta", theta.float())
        self.kappa = self._kappa(spec)
        self.given: GenerativeModel | None = None
        if told is not None:
            self.given = told.crowd_model(theta, int(spec.group[slots.start]))
        if self.given is not None:
            self.given = self.given.to(dtype=torch.float32)
            senses.check(self.given, spec.observation_space)
            # How persistent the crowd is, is this agent's belief.
            stays = crowd.persistence(theta, config.stay).float()
            self.given = self.given.trusted(B=(*self.given.B[:-1], stays))
            self.shown = self.given
        elif config.model == "given":
            raise ConfigError(
                f"{type(told).__name__} with these options has no model of a crowd to give: use model = learned."
            )
        points = len(theta)
        # The hidden state on which the crowd's moves may depend: the first that nobody moves.
        self.world: int | None = None
        if self.given is not None:
            last = len(self.given.sizes) - 1
            free = [f for f, own in enumerate(self.given.B_controls) if not own and f != last]
            if free and config.social and config.learn_crowd and not self.field.is_nothing:
                self.world = free[0]
                table = self.given.B[last].unsqueeze(-1).expand(-1, -1, self.given.sizes[free[0]]).contiguous()
                self.given = replace(
                    self.given,
                    B=(*self.given.B[:-1], table),
                    B_factors=(*self.given.B_factors[:-1], (last, free[0])),
                )
        worlds = 1 if self.given is None or self.world is None else self.given.sizes[self.world]
        # What will be felt of a crowd, as which of the points it looks like: [K, K], columns of chances.
        alike = crowd.log_likelihood(theta, self.kappa * theta)  # [felt, m]
        self.register_buffer("felt", gibbs.softmax(alike.mT).mT.float(), persistent=False)
        self.about: Literal["auto", "joint", "per_modality", "none"] = config.state_information
        if self.about == "auto":
            self.about = "joint" if self.given is None else "per_modality"
        if config.curiosity == 0:
            self.about = "none"
        if self.given is not None and self.about == "joint" and not self.field.is_nothing:
            self.given = self._feeling(self.given)
        # Counts of how the crowd moves [M, K, K, W]: those held beforehand, and what is learned.
        held = (crowd.persistence(theta, config.stay).float() * config.prior).unsqueeze(-1).repeat(1, 1, worlds)
        self.register_buffer("held", held, persistent=False)
        self.register_buffer("moves", torch.zeros(minds, points, points, worlds))
        self.contexts = 1 if self.given is not None else self._contexts(spec, points, minds)
        begun = reward_modality.begin(
            minds, self.contexts, spec.num_actions, config.levels if self.given is None else 2, points, config.prior
        )
        empty = self.given is not None
        self.register_buffer("evidence", begun.evidence[:, :0] if empty else begun.evidence)
        self.register_buffer("span", begun.span)

    # --------------------------------------------------------------------------------- what it is made for

    def _told(self, spec: Spec, slots: slice) -> Any:
        """The rules, if they tell an agent of what world and crowd it is one; None where payoffs are learned."""
        config: MeanFieldInferenceConfig = self.config
        rules = spec.rules
        able = hasattr(rules, "crowd_model") and isinstance(self.field.of, Actions) | self.field.is_nothing
        if config.model == "given" and not able:
            raise ConfigError(
                "model = given needs an environment that says what its crowd means (crowd_model), such as stag_hunt, and a "
                "field of actions; use model = learned."
            )
        if config.model == "learned" or not able:
            return None
        told = rules.crowd_model(crowd.simplex(spec.num_actions, 1), int(spec.group[slots.start])) is not None
        return rules if told or config.model == "given" else None

    def _points(self, spec: Spec, given: bool) -> Tensor:
        """theta [K, F]."""
        of = self.field.of
        if self.field.is_nothing:
            return crowd.simplex(spec.num_actions, self.config.points if given else 1)
        shares = isinstance(of, Actions) or (isinstance(of, States) and not spec.observation_shape)
        if not shares or (self.field.typed and len(spec.groups) > 1):
            raise ConfigError(
                f"A crowd is believed in by its shares of actions, or of the classes of a Discrete observation, not by "
                f"'{self.field}': write for example 'actions over sampled(8)'."
            )
        if self.field_size > 512:
            raise ConfigError(
                f"Shares of {self.field_size} classes are too many to believe in: feel 'actions' instead."
            )
        return crowd.simplex(self.field_size, self.config.points)

    def _feeling(self, given: GenerativeModel) -> GenerativeModel:
        """The given model with one modality more: what is felt of the crowd, as which of its points it looks like."""
        last = len(given.sizes) - 1
        return replace(
            given,
            A=(*given.A, self.felt),
            C=(*given.C, torch.zeros(len(self.felt))),
            A_factors=(*given.A_factors, (last,)),
            modalities=(*given.modalities, "felt"),
        )

    def _kappa(self, spec: Spec) -> float:
        """How many peers what is felt counts for."""
        if self.config.peers:
            return float(self.config.peers)
        # The points are 1/(n + F/2) apart: samples of more than its square tell only which is nearest.
        parts = self.theta.amin().clamp(min=1e-6)
        most = float((0.5 / parts) ** 2)
        over = self.field.over
        if isinstance(over, Sampled):
            return min(float(over.k), most)
        if isinstance(over, Neighbours) and spec.graph is not None:
            return min(max(1.0, float(spec.graph.degree.float().mean())), most)
        return min(float(max(1, spec.num_agents - 1)), most)

    def _contexts(self, spec: Spec, points: int, minds: int) -> int:
        """X: different observations that are told apart."""
        space, most = spec.observation_space, int(self.config.context)
        self.varies: Tensor | None = None
        if isinstance(space, gymnasium.spaces.Discrete):
            count = int(space.n)
        else:
            assert isinstance(space, gymnasium.spaces.Box)
            low, high = torch.as_tensor(space.low).flatten(), torch.as_tensor(space.high).flatten()
            varies = (high > low).nonzero().squeeze(-1)
            finite = bool(torch.isfinite(low).all() & torch.isfinite(high).all())
            count = 3 ** len(varies) if finite and len(varies) < 12 else most + 1
            self.varies, self.low, self.width = varies, low[varies].float(), (high - low)[varies].float()
        size = count * spec.num_actions * points * self.config.levels * minds
        return count if count <= most and size <= 1 << 28 else 1

    def _context(self, obs: Tensor) -> Tensor:
        """The number of what is seen, int64 [E, n]: a class, or three levels of every column."""
        if self.contexts == 1:
            return torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device)
        if self.varies is None:
            return obs
        columns = (obs.flatten(2)[..., self.varies.to(obs.device)] - self.low.to(obs)) / self.width.to(obs)
        number = torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device)
        for column in columns.unbind(-1):
            number = number * 3 + (column.clamp(0, 1) * 2).round().long()
        return number

    # --------------------------------------------------------------------------------------- what it knows

    @property
    def rewards(self) -> Rewards:
        """What has been counted of payoffs."""
        return Rewards(self.evidence, self.span, self.config.prior)

    def transitions(self) -> Tensor:
        """B [M, K, K, W]: how the crowd is believed to move, in every state of the world that it depends on."""
        counts = self.held + self.moves
        return counts / counts.sum(1, keepdim=True)

    def model(self) -> GenerativeModel:
        """The given model with the crowd's moves as they are believed now."""
        assert self.given is not None
        given = self.given if self.given.device == self.theta.device else self.given.to(self.theta.device)
        self.given = given
        if not self.config.learn_crowd:
            return given
        moves = self.transitions()
        moves = moves.squeeze(-1) if self.world is None else moves
        return given.trusted(B=(*given.B[:-1], moves[0] if self.minds == 1 else moves.unsqueeze(1)))

    # ------------------------------------------------------------------------------------------- beliefs

    @torch.no_grad()
    def perceive(
        self, carried: dict[str, Tensor], timestep: Timestep, field: Tensor, ids: Tensor, key: Key
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Packed beliefs [E, n, P] to act upon: what is seen or believed of the own state, of the crowd, and was of it."""
        action = timestep.action[:, self.slots].clamp(min=0)
        fresh = (timestep.step == 0).view(-1, 1, 1)
        told = self.by_mind(self._of_crowd(field))
        started = bool(fresh.all()) or not carried
        if self.given is None:
            q, context = self._believe(carried, timestep, told, action, fresh, started)
            parts = [context.unsqueeze(-1).to(q.dtype)]
            remembered = {"crowd": q, "context": context}
        else:
            factors = self._infer(carried, timestep, told, action, fresh, started)
            q, parts = factors[-1], list(factors[:-1])
            remembered = {f"factor{i}": x for i, x in enumerate(factors)} | {"crowd": q}
        before = torch.zeros_like(q) if started else torch.where(fresh, 0.0, carried["crowd"])
        return torch.cat([*parts, q, before], -1), remembered

    def _later(self, q: Tensor) -> Tensor:
        """The crowd as it is expected after a step, [M, B, K]."""
        return q @ self.transitions().squeeze(-1).transpose(-1, -2)

    def _of_crowd(self, field: Tensor) -> Tensor:
        """ln p(what is felt | m) [E, n, K]; 0 where nothing is."""
        if self.field.is_nothing:
            return field.new_zeros(*field.shape[:2], len(self.theta))
        return crowd.log_likelihood(self.theta, self.kappa * field)

    def _believe(
        self, carried: dict[str, Tensor], timestep: Timestep, told: Tensor, action: Tensor, fresh: Tensor, started: bool
    ) -> tuple[Tensor, Tensor]:
        """(q(m) [E, n, K], context [E, n]) of agents who know no model."""
        copies = len(timestep.step)
        context = self._context(timestep.obs[:, self.slots])
        log_q = told
        if not started:
            expected = self._later(self.by_mind(carried["crowd"]))
            # What was paid tells of the crowd too, who made it.
            paid = self.by_mind(timestep.reward[:, self.slots])
            earlier, did = self.by_mind(carried["context"]), self.by_mind(action)
            asked = self.by_mind(timestep.alive[:, self.slots]).unsqueeze(-1)
            seen = reward_modality.log_likelihood(self.rewards, earlier, did, paid)
            known = self.rewards.known.view(-1, 1, 1) & asked
            later = expected.clamp(min=1e-30).log() + torch.where(known, seen, 0.0)
            log_q = told + torch.where(self.by_mind(fresh.expand(-1, self.num_slots, 1)), 0.0, later)
        return self.by_copy(gibbs.softmax(log_q), copies), context

    def _infer(
        self, carried: dict[str, Tensor], timestep: Timestep, told: Tensor, action: Tensor, fresh: Tensor, started: bool
    ) -> list[Tensor]:
        """q_f [E, n, S_f] of every factor of the given model, the crowd last."""
        model, copies = self.model(), len(timestep.step)
        begin = [d.expand(copies, self.num_slots, -1) for d in model.D]
        expected = begin
        if not started:
            before = [self.by_mind(carried[f"factor{i}"]) for i in range(len(begin))]
            moved = filtering.predict(model, before, self.by_mind(action), check=False)
            expected = [torch.where(fresh, d, self.by_copy(x, copies)) for d, x in zip(begin, moved, strict=True)]
        by_mind = [self.by_mind(x) for x in expected]
        # The crowd as it is felt first, then the rest: both are evidence of the same moment.
        by_mind[-1] = gibbs.softmax(by_mind[-1].clamp(min=1e-30).log() + told)
        if self.world is not None and not started:
            told_of_world = self._of_world(by_mind[-1], self.by_mind(carried["crowd"]))
            told_of_world = torch.where(self.by_mind(fresh.expand(-1, self.num_slots, 1)), 0.0, told_of_world)
            by_mind[self.world] = gibbs.softmax(by_mind[self.world].clamp(min=1e-30).log() + told_of_world)
        obs = timestep.obs[:, self.slots]
        seen = senses.outcomes(self.shown, self.spec.observation_space, obs)
        if isinstance(seen, Tensor):
            extra = len(model.A) - len(self.shown.A)  # what is felt has been believed already
            seen = self.by_mind(torch.nn.functional.pad(seen, (0, extra), value=-1))
        else:
            seen = tuple(self.by_mind(x) for x in seen)
            seen += tuple(seen[0].new_ones(a.shape[0]) for a in model.A[len(seen) :])
        found = filtering.update(model, by_mind, seen, "exact", check=False, terms=False).factors
        return [self.by_copy(x, copies) for x in found]

    def _of_world(self, q: Tensor, before: Tensor) -> Tensor:
        """E_q ln B(m' | m, w) [M, B, W]: what the crowd, now q and before that `before` [M, B, K], tells of the world."""
        log_moves = self.transitions().log()
        # [M, B, K] x [M, K, K W], then weighed by where it came from.
        each = (q @ log_moves.flatten(2)).unflatten(-1, log_moves.shape[2:])
        return (each * before.unsqueeze(-1)).sum(-2)

    # --------------------------------------------------------------------------------------------- acting

    def _unpack(self, obs: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """(own parts, the crowd's belief [M, B, K], the one before)."""
        points = len(self.theta)
        sizes = [1] if self.given is None else list(self.given.sizes[:-1])
        *own, q, before = obs.split([*sizes, points, points], -1)
        return own, q, before

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """E = -g [M, B, A], of beliefs."""
        config: MeanFieldInferenceConfig = self.config
        own, q, _ = self._unpack(obs)
        if self.given is None:
            # What will be paid is decided by the crowd as it will be.
            later = self._later(q)
            found = reward_modality.worth(
                self.rewards, own[0].squeeze(-1).long(), later, self.about != "none", config.novelty != 0,
                self.felt if self.about == "joint" else None,
            )  # fmt: skip
            nat = self.temperature
            curiosity = nat if config.curiosity is None else config.curiosity
            novelty = nat if config.novelty is None else config.novelty
            return -(found.reward + curiosity * found.of_crowd + novelty * found.of_payoffs)
        assert self.about != "auto"
        weight = 1.0 if config.curiosity is None else config.curiosity
        objective = Objective(self.about, state_weight=weight, normalise=False)
        temperature = self.temperature
        gamma = 1 / temperature.clamp(min=1e-6) if isinstance(temperature, Tensor) else 1 / max(temperature, 1e-6)
        believed = [*own, q]
        if config.planning == "sophisticated":
            return -sophisticated.plan(self.model(), believed, config.depth, gamma, objective).value
        return -open_loop.plan(
            self.model(), believed, config.depth, gamma, objective, details=False,
            how="tree" if config.learn_crowd else "auto",
        ).value  # fmt: skip

    # ------------------------------------------------------------------------------------------- learning

    @torch.no_grad()
    def learn(self, batch: Transition) -> dict[str, Tensor]:
        config: MeanFieldInferenceConfig = self.config
        own, _, _ = self._unpack(batch.obs)
        later, q, before = self._unpack(batch.next_obs)
        finite(q.sum(), "belief about the crowd")
        weight = torch.ones_like(batch.reward) if batch.valid is None else batch.valid.to(batch.reward.dtype)
        numbers = {}
        if config.learn_crowd:
            if self.world is not None:
                before = (before.unsqueeze(-1) * later[self.world].unsqueeze(-2)).flatten(-2)
            pairs = ((q * weight.unsqueeze(-1)).transpose(-1, -2) @ before).view(self.moves.shape)
            share = pairs / weight.sum(1).clamp(min=1).view(-1, 1, 1, 1)
            self.moves.mul_(1 - config.forgetting).add_(config.rate * share)
        action = batch.action.clamp(min=0)
        if self.given is None:
            context = own[0].squeeze(-1).long()
            found = reward_modality.learned(self.rewards, context, action, batch.reward, q, weight, config.forgetting)
            self.evidence, self.span = found.evidence, found.span
        rows = slice(0, _ROWS)
        energy = forbid(
            self.energy(batch.obs[:, rows], batch.field[:, rows]), None if batch.legal is None else batch.legal[:, rows]
        )
        share = weight[:, rows].sum().clamp(min=1)
        entropy = (gibbs.entropy(energy, self.temperature) * weight[:, rows]).sum() / share
        self.adapt_temperature(entropy)
        numbers["entropy"] = entropy
        known = -torch.special.xlogy(q, q).sum(-1)
        numbers["crowd_entropy"] = (known * weight).sum() / weight.sum().clamp(min=1)
        return numbers
