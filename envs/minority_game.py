r"""The minority game: two sides, and those on the one with fewer win; what is known of the past is which sides won.

$$ A = \sum_i (2 a_i - 1), \qquad r_i = -(2 a_i - 1) \operatorname{sign} A \quad\text{or}\quad -(2 a_i - 1) A / N $$

Challet and Zhang 1997 (Physica A 246, 407). With `strategies` = 0 agents choose a side. Else they choose which of S seats
to sit in: each seat is a strategy, drawn at the beginning of an episode, that answers each of the P = 2^memory histories
with a side. The crowd's volatility sigma^2/N = <A^2>/N is 1 for coin-tossers. When each agent learns which of its own two
seats does better it falls below, to the value of replica theory at alpha = P/N of at least .3374 where histories are
drawn anew each round (Marsili, Challet and Zecchina 2000, Physica A 280, 522); agents who share one mind cannot: seats
are not exchangeable from one to the other, and they toss coins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Discrete
from scipy import special
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, nearest
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
from mfmarl.statmech.replicas.minority import critical_alpha, minority

_LOST, _EVEN, _WON = 0, 1, 2


class State(NamedTuple):
    choice: Tensor  # [E, N] uint8, the action in force
    side: Tensor  # [E, N] bool, the side that it led to
    history: Tensor  # [E] int64, the sides that won, the last one fastest
    seats: Tensor  # [E, N, S, P] bool, what each strategy answers; [E, N, 0, 0] without


@register("minority_game")
@dataclass(frozen=True)
class MinorityGame(PopulationEnv):
    """A crowd of whom those on the smaller side win, with a memory of which sides have won."""

    num_agents: Annotated[int, Bounds(1, 1 << 31)] = 101
    """Number of players; an odd number has always a minority."""
    payoff: Literal["sign", "linear"] = "sign"
    """Winners get 1 and losers -1; or all get -(their side) A/N."""
    memory: Annotated[int, Bounds(0, 16)] = 3
    """Rounds of which agents see who won."""
    strategies: Annotated[int, Bounds(0, 64)] = 0
    """S, seats that each player chooses from; 0: it chooses a side."""
    histories: Literal["real", "random"] = "real"
    """What is seen of the past: what happened, or drawn anew every round (as in the theory with strategies)."""
    horizon: Count | None = 100
    """Rounds of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")
        for name, known in {"payoff": ("sign", "linear"), "histories": ("real", "random")}.items():
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{name} cannot be {value!r}.{nearest(str(value), known)}")
        if not 0 <= self.memory <= 16:
            raise ConfigError(f"memory must be from 0 to 16 rounds, not {self.memory}.")
        if self.strategies == 1 or not 0 <= self.strategies <= 64:
            raise ConfigError(f"strategies must be 0 (choose a side) or 2 to 64, not {self.strategies}.")
        if self.strategies * self.num_histories * self.num_agents > 1 << 31:
            raise ConfigError(
                f"{self.num_agents} players with {self.strategies} strategies of {self.num_histories} histories do not fit "
                "in memory: give fewer of one of them."
            )

    @property
    def num_histories(self) -> int:
        """P."""
        return 1 << self.memory

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        # What one sees: lost, even or won, and the history.
        seen = Discrete(3 * self.num_histories)
        return Spec(self.num_agents, seen, Discrete(self.strategies or 2), self.horizon, discount=0.0)

    def reset(self, ids: Tensor, key: Key) -> State:
        copies, players = ids.shape
        history = random.integers(key.fold("history"), ids[:, 0] >> 32, self.num_histories)
        choice = random.integers(key.fold("choice"), ids, self.strategies or 2)
        seats = torch.zeros(copies, players, 0, 0, dtype=torch.bool, device=ids.device)
        if self.strategies:
            draws = self.strategies * self.num_histories
            seats = (random.bits(key.fold("seats"), ids, draws) < 0).view(copies, players, self.strategies, -1)
        return State(choice.to(torch.uint8), self._side(choice, history, seats), history, seats)

    def _side(self, choice: Tensor, history: Tensor, seats: Tensor) -> Tensor:
        """The side [E, N] that a choice leads to."""
        if not self.strategies:
            return choice == 1
        answers = seats.gather(-1, history.view(-1, 1, 1, 1).expand(*seats.shape[:3], 1)).squeeze(-1)
        return answers.gather(-1, choice.unsqueeze(-1)).squeeze(-1)

    def _surplus(self, side: Tensor) -> Tensor:
        """A [E] int64: how many more are on side 1."""
        return 2 * self.ranks.sum(side.sum(1, dtype=torch.int64)) - self.num_agents

    def own_state(self) -> tuple[str, ...]:
        return ("choice", "side", "seats")

    def standing(self, state: State) -> Tensor:
        return state.choice.long()

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        side = self._side(action, state.history, state.seats)
        surplus = self._surplus(side)
        # A tie is decided by a coin, as far as the history is concerned.
        names = ids[:, 0] >> 32
        won = torch.where(surplus == 0, random.integers(key.fold("tie"), names, 2), (surplus < 0).long())
        if self.histories == "random":
            history = random.integers(key.fold("history"), names, self.num_histories)
        else:
            history = (2 * state.history + won) % self.num_histories
        pull = surplus.sign().float() if self.payoff == "sign" else surplus.float() / self.num_agents
        reward = torch.where(side, -pull.unsqueeze(-1), pull.unsqueeze(-1))
        return State(action.to(torch.uint8), side, history, state.seats), reward

    def observe(self, state: State) -> Tensor:
        surplus = self._surplus(state.side).sign().unsqueeze(-1)
        result = torch.where(state.side, _EVEN - surplus, _EVEN + surplus)
        return result * self.num_histories + state.history.unsqueeze(-1)

    def measure(self, state: State) -> dict[str, Tensor]:
        """`attendance` of side 1, and `volatility`: A^2/N, whose mean is 1 for coin-tossers."""
        surplus = self._surplus(state.side).double()
        share = (1 + surplus / self.num_agents) / 2
        return {"attendance": share.float(), "volatility": (surplus**2 / self.num_agents).float()}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """Who is on which side, out of all."""
        return picture.crowd(state.side[copy].cpu(), picture.palette(2))

    # ----------------------------------------------------------------------- what an agent may take it to be

    def crowd_model(self, theta: Tensor, group: int = 0) -> GenerativeModel | None:
        """The model of a player who believes in a crowd of shares theta [K, 2], the last factor.

        None with strategies (sides cannot be told from seats) and where payoffs are linear (they are not what is seen).
        The winning side is predicted from the crowd as it was: a round behind.
        """
        if self.strategies or self.payoff != "sign":
            return None
        theta = theta.double()
        # By own choice: the others on my side are there with the shares of that side.
        chances = [self._result(theta[:, own].numpy()) for own in (0, 1)]
        result = torch.stack([torch.as_tensor(chance) for chance in chances], 1)
        points, histories = len(theta), self.num_histories
        # Side 1 wins where fewer than half of all N are on it.
        low = torch.as_tensor(self._side_one_wins(theta[:, 1].numpy()))
        moves = torch.zeros(histories, histories, points, dtype=torch.float64)
        for h in range(histories):
            if self.histories == "random":
                moves[:, h] = 1 / histories
            else:
                moves[(2 * h) % histories, h] += 1 - low
                moves[(2 * h + 1) % histories, h] += low
        choice = crowd.chooser(2)
        return GenerativeModel(
            A=(result, torch.eye(histories, dtype=torch.float64)),
            B=(*choice.B, moves, crowd.persistence(theta)),
            C=(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), torch.zeros(histories, dtype=torch.float64)),
            D=(
                *choice.D,
                torch.full((histories,), 1 / histories, dtype=torch.float64),
                torch.full((points,), 1 / points, dtype=torch.float64),
            ),
            A_factors=((0, 2), (1,)),
            B_factors=((0,), (1, 2), (2,)),
            B_controls=((0,), (), ()),
            controls=(2,),
            modalities=("result", "history"),
            factors=("choice", "history", "population"),
        )

    def _result(self, p: np.ndarray) -> np.ndarray:
        """P(lost, even, won) [3, K] on a side where each other one is with probability p [K]; exact."""
        n = self.num_agents
        # With me they are 1 + B: fewer than half if B < n/2 - 1, and even if B = n/2 - 1.
        win, upto = (_at_most(k, n - 1, p) for k in (math.ceil(n / 2 - 1) - 1, math.floor(n / 2 - 1)))
        return np.stack([1 - upto, upto - win, win])

    def _side_one_wins(self, p: np.ndarray) -> np.ndarray:
        """P(side 1 is the smaller, ties by a coin) of N independent players who are there with probability p [K]."""
        n = self.num_agents
        return (_at_most(math.ceil(n / 2) - 1, n, p) + _at_most(n // 2, n, p)) / 2

    def generative_model(self, group: int = 0) -> GenerativeModel | None:
        return self.crowd_model(crowd.simplex(2, 9), group)

    # ----------------------------------------------------------------------------------- what theory knows

    def coin_tossers_reward(self) -> float:
        """What coin-tossers get: -1/N, or -E|A|/N of the sign game; exact."""
        n = self.num_agents
        if self.payoff == "linear":
            return -1 / n
        # E|A| = n C(n - 1, floor(n/2)) / 2^(n - 1).
        half = n // 2
        log_ways = special.gammaln(n) - special.gammaln(half + 1) - special.gammaln(n - half)
        return -math.exp(log_ways - (n - 1) * math.log(2))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """The symmetric equilibrium, both sides equally likely, at any temperature; with two seats each the replica theory's."""
        source = "symmetric equilibrium: independent players, both sides equally likely; exact"
        tossed = {
            "attendance": Known(0.5, source, "equilibrium"),
            "volatility": Known(1.0, source, "equilibrium"),
            "reward": Known(self.coin_tossers_reward(), source, "equilibrium"),
        }
        alpha = self.num_histories / self.num_agents
        if self.strategies != 2 or self.payoff != "linear" or self.histories != "random":
            return tossed if not self.strategies else {"attendance": tossed["attendance"]}
        if temperature or alpha < critical_alpha():
            return {"attendance": tossed["attendance"]}
        source = f"replica theory of many agents who each learn their better seat, alpha = {alpha:.4g}"
        volatility = minority(alpha).volatility
        return {
            "attendance": tossed["attendance"],
            "volatility": Known(volatility, source, "law"),
            "reward": Known(-volatility / self.num_agents, source, "law"),
        }


def _at_most(k: int, n: int, p: np.ndarray) -> np.ndarray:
    """P(Bin(n, p) <= k) [K]."""
    return np.asarray(special.bdtr(k, n, p)) if k >= 0 else np.zeros_like(p)


parallel_env, env = faces(MinorityGame)
