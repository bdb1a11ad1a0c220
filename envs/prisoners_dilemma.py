r"""A prisoner's dilemma played by a crowd: everyone chooses once, and meets some of the others.

$$ r_i = \frac1k \sum_{j \text{ met}} u(a_i, a_j), \qquad u = \begin{pmatrix} P & T \\ S & R \end{pmatrix}, \quad T > R > P > S $$

(rows: defect, cooperate.) Defection is better whatever the others do, so that all defect in the only equilibrium, and all
would be better off had they cooperated. With T = b, R = b - c, P = 0, S = -c it is the donation game, hence a linear public
good: each gives c for what is worth b to those who meet him. At a temperature the logit equilibrium is exact at every N,
because payoffs are linear in what others do: p = 1/(1 + exp((p (T - R) + (1 - p)(P - S))/temperature)).
Agents see what they did and how many of the k that they met cooperated: counts of sampled peers, the mean field's evidence.
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
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register

_COOPERATE = 1


class State(NamedTuple):
    choice: Tensor  # [E, N] uint8, everyone's last choice: 0 defect, 1 cooperate (before the first round: a draw)
    met: Tensor  # [E, N] uint8, how many of those met cooperated


@register("prisoners_dilemma")
@dataclass(frozen=True)
class PrisonersDilemma(PopulationEnv):
    """A crowd of prisoners, each of whom does better by defecting, whatever the others do."""

    num_agents: Annotated[int, Bounds(2, 1 << 31)] = 100
    """Number of players."""
    temptation: Amount = 5.0
    """T, of a defector who meets a cooperator."""
    reward: Amount = 3.0
    """R, of two cooperators."""
    punishment: Amount = 1.0
    """P, of two defectors."""
    sucker: Amount = 0.0
    """S, of a cooperator who meets a defector."""
    meetings: Annotated[int, Bounds(0, 127)] = 4
    """k, others met in a round, drawn anew with replacement; 0: everyone meets everyone, and sees only what it did."""
    horizon: Count | None = 100
    """Rounds of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if self.num_agents < 2:
            raise ConfigError(f"A dilemma takes at least 2 players, not {self.num_agents}.")
        if not 0 <= self.meetings <= 127:
            raise ConfigError(f"meetings must be from 0 to 127, not {self.meetings}.")
        order = (self.temptation, self.reward, self.punishment, self.sucker)
        if not all(map(math.isfinite, order)) or not order[0] > order[1] > order[2] > order[3]:
            raise ConfigError(
                "A prisoner's dilemma needs temptation > reward > punishment > sucker, not "
                f"{', '.join(f'{x:g}' for x in order)}; for another order try stag_hunt."
            )

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        seen = 2 * (self.meetings + 1) if self.meetings else 2
        return Spec(self.num_agents, Discrete(seen), Discrete(2), self.horizon, discount=0.0)

    def reset(self, ids: Tensor, key: Key) -> State:
        choice = random.integers(key.fold("choice"), ids, 2)
        return State(choice.to(torch.uint8), self._meet(choice, ids, key).to(torch.uint8))

    def _meet(self, choice: Tensor, ids: Tensor, key: Key) -> Tensor:
        """Cooperators among those met, [E, N] int64."""
        # Whoever is met is a uniform draw among the others: a cooperator with the chance that their number gives.
        others = self.ranks.sum(choice.sum(1, keepdim=True)) - choice
        met = torch.zeros_like(choice)
        for draw in range(self.meetings):
            met += random.integers(key.fold("met", draw), ids, self.num_agents - 1) < others
        return met

    def own_state(self) -> tuple[str, ...]:
        return ("choice", "met")

    def standing(self, state: State) -> Tensor:
        return state.choice.long()

    def observe(self, state: State) -> Tensor:
        own = state.choice.long()
        return own * (self.meetings + 1) + state.met if self.meetings else own

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        met = self._meet(action, ids, key)
        if self.meetings:
            share = met.to(torch.float64) / self.meetings
        else:
            share = (self.ranks.sum(action.sum(1, keepdim=True)) - action).to(torch.float64) / (self.num_agents - 1)
        paid = torch.where(action == _COOPERATE, self._paid(share, 1), self._paid(share, 0))
        return State(action.to(torch.uint8), met.to(torch.uint8)), paid.to(torch.float32)

    def _paid(self, share: Tensor, own: int) -> Tensor:
        good, bad = (self.reward, self.sucker) if own else (self.temptation, self.punishment)
        return share * good + (1 - share) * bad

    def measure(self, state: State) -> dict[str, Tensor]:
        """`cooperation`: the share that cooperated, and `welfare`: what a round of these choices pays on average."""
        n = self.num_agents
        p = self.ranks.sum(state.choice.sum(1, dtype=torch.int64)).double() / n
        # Of pairs of different players: n p of them cooperate.
        both = p * (n * p - 1) / (n - 1)
        none = (1 - p) * (n * (1 - p) - 1) / (n - 1)
        mixed = (1 - both - none) / 2
        welfare = both * self.reward + none * self.punishment + mixed * (self.temptation + self.sucker)
        return {"cooperation": p.to(torch.float32), "welfare": welfare.to(torch.float32)}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """Who cooperates, out of all."""
        return picture.crowd(state.choice[copy].cpu(), picture.palette(2))

    # ----------------------------------------------------------------------- what an agent may take it to be

    def payoffs(self) -> Tensor:
        """What a round pays [2, k + 1] by own choice and how many of the k met cooperate."""
        share = torch.arange(self.meetings + 1, dtype=torch.float64) / max(self.meetings, 1)
        return torch.stack([self._paid(share, 0), self._paid(share, 1)])

    def crowd_model(self, theta: Tensor, group: int = 0) -> GenerativeModel | None:
        """The model of a player who believes in a crowd of shares theta [K, 2], the last factor; None: nobody is met."""
        return crowd.stage_game(self.payoffs(), theta.double(), self.meetings) if self.meetings else None

    def generative_model(self, group: int = 0) -> GenerativeModel | None:
        return self.crowd_model(crowd.simplex(2, 9), group)

    # ----------------------------------------------------------------------------------- what theory knows

    def cooperation(self, temperature: float = 0.0) -> float:
        """The symmetric logit equilibrium's share of cooperators (the largest, where there are more); 0 at temperature 0."""
        if temperature == 0:
            return 0.0

        def off(p: float | np.ndarray) -> np.ndarray:
            lost = p * (self.temptation - self.reward) + (1 - p) * (self.punishment - self.sucker)
            return np.asarray(special.expit(-lost / temperature) - p)

        grid = np.linspace(1.0, 0.0, 10_001)
        first = int(np.argmax(off(grid) >= 0))
        return float(brentq(lambda p: float(off(p)), grid[first], grid[first - 1], xtol=1e-15)) if first else 1.0

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        p = self.cooperation(temperature)
        source = (
            "all defect: dominant" if temperature == 0 else "logit equilibrium, exact at every N: payoffs are linear"
        )
        paid = p * (p * self.reward + (1 - p) * self.sucker) + (1 - p) * (
            p * self.temptation + (1 - p) * self.punishment
        )
        found = {"cooperation": p, "welfare": paid, "reward": paid}
        return {name: Known(value, source, "equilibrium") for name, value in found.items()}


parallel_env, env = faces(PrisonersDilemma)
