r"""Hunters of stags: together they catch one, alone none; a hare is sure. Two equilibria, and trust decides.

$$ r(\text{stag}) = b\, [\, n \ge M \,], \qquad r(\text{hare}) = c, \qquad 0 < c < b, \qquad n = \text{hunters of stags} $$

Rousseau's stag hunt with N players and a threshold M (Pacheco, Santos, Souza and Skyrms 2009, Proc. R. Soc. B 276, 315;
Skyrms 2004). All for the stag and all for hares are equilibria, the first the better for everyone; between them lies an
unstable mixed one, where P(Bin(N - 1, p) >= M - 1) = c / b. At a temperature the choice is p = 1/(1 + exp((c - b P)/T)).
Who hunts a hare does not see whether the others caught their stag: to know what the crowd is like, one must go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Discrete
from scipy import special
from scipy.optimize import brentq
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import crowd
from mfmarl.inference.model import GenerativeModel
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register

_HARE, _STAG = 0, 1


class State(NamedTuple):
    choice: Tensor  # [E, N] uint8, everyone's last quarry (before the first hunt: a draw)


@register("stag_hunt")
@dataclass(frozen=True)
class StagHunt(PopulationEnv):
    """Hunters who choose between a hare, which is sure, and a stag, which takes enough of them."""

    num_agents: Annotated[int, Bounds(2, 1 << 31)] = 100
    """Number of hunters."""
    needed: Annotated[float, Bounds(0, 1)] = 0.5
    """Share of all that it takes to catch the stag."""
    number: Annotated[int, Bounds(0, 1 << 31)] = 0
    """How many it takes, whatever the crowd's size; 0: the share counts."""
    stag: Annotated[float, Bounds(0, 1e6, open_low=True)] = 4.0
    """b, each one's part of the stag."""
    hare: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """c, what a hare is worth."""
    trust: Annotated[float, Bounds(0, 1)] = 0.5
    """Share that hunts the stag before the first hunt, each by a draw."""
    horizon: Count | None = 100
    """Hunts of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if self.num_agents < 2:
            raise ConfigError(f"A stag hunt takes at least 2 hunters, not {self.num_agents}.")
        if not (0 <= self.needed <= 1 and 0 <= self.trust <= 1):
            raise ConfigError(f"needed and trust are shares from 0 to 1, not {self.needed:g} and {self.trust:g}.")
        if not (math.isfinite(self.stag) and 0 < self.hare < self.stag):
            raise ConfigError(
                f"A hare must be worth more than nothing and less than a stag ({self.stag:g}), not {self.hare:g}."
            )
        if not 0 <= self.number <= self.num_agents:
            raise ConfigError(
                f"{self.number} of {self.num_agents} hunters cannot be needed: give number at most {self.num_agents}."
            )

    @property
    def threshold(self) -> int:
        """M, hunters that it takes: at least 2, or one alone would do."""
        return self.number or min(max(2, math.ceil(self.needed * self.num_agents - 1e-9)), self.num_agents)

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        # What one sees: a hare, a hunt that failed, a stag.
        return Spec(self.num_agents, Discrete(3), Discrete(2), self.horizon, discount=0.0)

    def reset(self, ids: Tensor, key: Key) -> State:
        return State((random.uniform(key.fold("choice"), ids) < self.trust).to(torch.uint8))

    def own_state(self) -> tuple[str, ...]:
        return ("choice",)

    def standing(self, state: State) -> Tensor:
        return state.choice.long()

    def _caught(self, choice: Tensor) -> Tensor:
        """Whether there are enough for the stag, [E, 1] bool."""
        return self.ranks.sum(choice.sum(1, keepdim=True, dtype=torch.int64)) >= self.threshold

    def observe(self, state: State) -> Tensor:
        return state.choice.long() * (1 + self._caught(state.choice).long())

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        state = State(action.to(torch.uint8))
        worth = torch.tensor([self.hare, 0.0, self.stag], device=action.device)
        return state, worth[self.observe(state)]

    def measure(self, state: State) -> dict[str, Tensor]:
        """`share` of those who hunt the stag, and whether it was `caught`."""
        share = self.ranks.sum(state.choice.sum(1, dtype=torch.int64)).double() / self.num_agents
        return {"share": share.float(), "caught": self._caught(state.choice).squeeze(-1).float()}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """Who hunts what, out of all."""
        return picture.crowd(state.choice[copy].cpu(), picture.palette(2))

    # ----------------------------------------------------------------------- what an agent may take it to be

    def crowd_model(self, theta: Tensor, group: int = 0) -> GenerativeModel:
        """The model of a hunter who believes in a crowd of shares theta [K, 2], the last factor; `seen` is what it gets."""
        enough = torch.as_tensor(self.success(theta[:, _STAG].double().numpy()))
        seen = torch.zeros(3, 2, len(theta), dtype=torch.float64)
        seen[0, _HARE] = 1
        seen[1, _STAG], seen[2, _STAG] = 1 - enough, enough
        choice = crowd.chooser(2)
        return GenerativeModel(
            A=(seen,),
            B=(*choice.B, crowd.persistence(theta.double())),
            C=(torch.tensor([self.hare, 0.0, self.stag], dtype=torch.float64),),
            D=(
                torch.tensor([1 - self.trust, self.trust], dtype=torch.float64),
                torch.full((len(theta),), 1 / len(theta), dtype=torch.float64),
            ),
            B_controls=((0,), ()),
            controls=(2,),
            modalities=("catch",),
            factors=("choice", "population"),
        )

    def generative_model(self, group: int = 0) -> GenerativeModel:
        return self.crowd_model(crowd.simplex(2, 9), group)

    # ----------------------------------------------------------------------------------- what theory knows

    def success(self, p: float | np.ndarray) -> np.ndarray:
        """P(the stag is caught | I go), each of the others going with probability p: P(Bin(N - 1, p) >= M - 1), exact."""
        others = special.bdtrc(self.threshold - 2, self.num_agents - 1, p) if self.threshold >= 2 else 1.0
        return np.asarray(others, dtype=np.float64) * np.ones_like(np.asarray(p, dtype=np.float64))

    def mixed(self) -> float | None:
        """The unstable equilibrium's share; None where one hunter is enough, and all always go."""
        if self.threshold < 2:
            return None
        return float(brentq(lambda p: float(self.success(p)) - self.hare / self.stag, 0.0, 1.0, xtol=1e-15))

    def settled(self, temperature: float = 0.0, start: float | None = None) -> float:
        """The share that a crowd of smooth learners settles at, who begin at `start` (default: `trust`) and choose by exp(r/T).

        The first p = 1/(1 + exp((c - b P(p))/T)) in the direction in which the crowd moves at first.
        """
        p = self.trust if start is None else start

        def pull(x: float) -> float:
            gap = self.stag * float(self.success(x)) - self.hare
            if temperature == 0:
                return float(np.sign(gap))
            return float(special.expit(gap / temperature)) - x

        if temperature == 0:
            return 1.0 if pull(p) > 0 else 0.0 if pull(p) < 0 else p
        if pull(p) == 0:
            return p
        ends = np.linspace(p, 1.0 if pull(p) > 0 else 0.0, 20_001)
        gaps = special.expit((self.stag * self.success(ends) - self.hare) / temperature) - ends
        turned = int(np.argmax(np.sign(gaps) != np.sign(gaps[0])))
        return float(brentq(pull, ends[turned - 1], ends[turned], xtol=1e-15)) if turned else float(ends[-1])

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Where learners from `trust` settle; at temperature 0 the reward's is the best equilibrium, all for the stag."""
        p = self.settled(temperature)
        source = f"logit equilibrium of N = {self.num_agents} reached from a share of {self.trust:g}, exact"
        if temperature == 0:
            source = f"pure equilibrium reached from a share of {self.trust:g}"
        all_of_them = special.bdtrc(self.threshold - 1, self.num_agents, p)
        found = {
            "share": Known(p, source, "equilibrium"),
            "caught": Known(float(all_of_them), source, "equilibrium"),
        }
        if temperature == 0:
            return {**found, "reward": Known(self.stag, "all hunt the stag: the better of two equilibria", "optimum")}
        paid = p * self.stag * float(self.success(p)) + (1 - p) * self.hare
        return {**found, "reward": Known(paid, source, "equilibrium")}


parallel_env, env = faces(StagHunt)
