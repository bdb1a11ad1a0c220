r"""A T-maze: the reward lies in one of two arms, a cue tells in which, and there is no time for a second try.

$$ p(\mathrm{win} \mid \mathrm{arm}) = \begin{cases} a & \text{the baited arm} \\ 1 - a & \text{the other} \end{cases}, \qquad
   p(\mathrm{cue\ points\ to\ it}) = v, \qquad I(\mathrm{cue}; \mathrm{side}) = \ln 2 - H_2(v) $$

Friston et al. 2017, "Active inference: a process theory", Neural Computation 29, 1-49, section 4. Four places, each one move
from each (`open`), as there; or corridors with a place in the middle (`corridor`), as pymdp's `TMaze` has them. The cue is
right with 95 % as in pymdp 1.0.4 (98 % in the paper), and arms hold who enters, as in the paper (not in pymdp).
Every agent is in a maze of its own. Whoever looks wins with w = a v + (1 - a)(1 - v), whoever does not with 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.inference import reachable
from mfmarl.inference.model import GenerativeModel
from mfmarl.options import Bounds, Count, check_numbers
from mfmarl.population import picture
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register

CENTRE, LEFT, RIGHT, CUE, MIDDLE = range(5)
PLACES = ("centre", "left arm", "right arm", "cue", "middle")
NOTHING, WIN, LOSS = range(3)
_DOORS = {(CENTRE, CUE), (CENTRE, MIDDLE), (MIDDLE, LEFT), (MIDDLE, RIGHT)}
# Where the places lie in a picture of 4 x 5 cells: row, column.
_LIES = {CENTRE: (2, 2), LEFT: (1, 1), RIGHT: (1, 3), CUE: (3, 2), MIDDLE: (1, 2)}


class State(NamedTuple):
    place: Tensor  # [E, N] int64
    side: Tensor  # [E, N] int64: 0, the reward is in the left arm; 1, in the right one
    outcome: Tensor  # [E, N] int64: nothing, win, loss
    cue: Tensor  # [E, N] int64: 0, none is seen; 1, it points left; 2, right
    looked: Tensor  # [E, N] bool: whether the cue has been seen


@register("t_maze")
@dataclass(frozen=True)
class TMaze(PopulationEnv):
    """Agents in a T-maze each, who may look at a cue before they choose an arm."""

    num_agents: Count = 100
    """Number of agents, each in a maze of its own."""
    layout: Literal["open", "corridor"] = "open"
    """`open`: four places, each one move from each; `corridor`: to an arm one walks by a fifth place, the middle."""
    cue_reliability: Annotated[float, Bounds(0, 1)] = 0.95
    """v: how often the cue points to the baited arm."""
    reward_probability: Annotated[float, Bounds(0, 1)] = 1.0
    """a: how often the baited arm wins and the other one loses, drawn anew with every step there."""
    preference: Annotated[float, Bounds(0, 1e3)] = 3.0
    """Reward of a win, and minus that of a loss; as log-preferences, nats."""
    absorbing: bool = True
    """Whether who has entered an arm stays there."""
    horizon: Count = 2
    """Moves, after which the game is over; by corridors the cue and then an arm are 4 moves away."""

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def num_places(self) -> int:
        return 4 if self.layout == "open" else 5

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        return Spec(
            num_agents=self.num_agents,
            observation_space=Discrete(self.num_places * 9),
            action_space=Discrete(self.num_places),
            horizon=self.horizon,
            discount=1.0,
            ends=True,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        nowhere = torch.zeros_like(ids)
        side = random.integers(key.fold("side"), ids, 2)
        return State(nowhere, side, nowhere, nowhere, torch.zeros_like(ids, dtype=torch.bool))

    def observe(self, state: State) -> Tensor:
        return (state.place * 3 + state.outcome) * 3 + state.cue

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        place = self._moves.to(ids.device)[state.place, action]
        in_arm, baited = (place == LEFT) | (place == RIGHT), place - LEFT == state.side
        as_usual = random.uniform(key.fold("outcome"), ids) < self.reward_probability
        outcome = torch.where(in_arm, torch.where(baited == as_usual, WIN, LOSS), NOTHING)
        truly = random.uniform(key.fold("cue"), ids) < self.cue_reliability
        cue = torch.where(place == CUE, torch.where(truly, state.side, 1 - state.side) + 1, 0)
        reward = self.preference * ((outcome == WIN).float() - (outcome == LOSS).float())
        return State(place, state.side, outcome, cue, state.looked | (place == CUE)), reward

    @property
    def _moves(self) -> Tensor:
        """Where one gets from a place by an action, the place that one wants to go to: int64 [P, P]."""
        return _moves(self.num_places, self.layout == "corridor", self.absorbing)

    def hidden(self, state: State) -> tuple[Tensor, ...]:
        """What the model's factors truly are, int64 [E, N] each: the place, and the side of the reward."""
        return state.place, state.side

    def measure(self, state: State) -> dict[str, Tensor]:
        """Shares of agents that see a win now, that see a loss, and that have looked at the cue."""
        found = {"won": state.outcome == WIN, "lost": state.outcome == LOSS, "looked": state.looked}
        return {name: value.float().mean(-1) for name, value in found.items()}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The mazes of the first agents: bait in green, what is not baited in red, the cue in yellow, the agent in blue."""
        wall, floor, agent, bait, empty, cue = range(6)
        shown = min(self.num_agents, 16)
        cells = torch.full((shown, 5, 5), wall)
        for place in range(self.num_places):
            cells[(slice(None), *_LIES[place])] = floor
        cells[(slice(None), *_LIES[MIDDLE])] = floor
        cells[(slice(None), *_LIES[CUE])] = cue
        side = state.side[copy, :shown].cpu()
        cells[(slice(None), *_LIES[LEFT])] = torch.where(side == 0, bait, empty)
        cells[(slice(None), *_LIES[RIGHT])] = torch.where(side == 1, bait, empty)
        lies = torch.tensor([_LIES[place] for place in range(self.num_places)])[state.place[copy, :shown].cpu()]
        cells[torch.arange(shown), lies[:, 0], lies[:, 1]] = agent
        return picture.tiles(cells, picture.kinds("wall", "floor", "agent", "good", "bad", "sign"))

    # ----------------------------------------------------------------------------------- what theory knows

    def generative_model(self, group: int = 0) -> GenerativeModel:
        """These rules: factors place and side; modalities place, outcome, cue; one control, where to go."""
        n, v, a = self.num_places, self.cue_reliability, self.reward_probability
        outcome, cue = torch.zeros(3, n, 2, dtype=torch.float64), torch.zeros(3, n, 2, dtype=torch.float64)
        outcome[NOTHING], cue[0] = 1, 1
        for side, arm, other in ((0, LEFT, RIGHT), (1, RIGHT, LEFT)):
            outcome[:, arm, side] = torch.tensor([0, a, 1 - a], dtype=torch.float64)
            outcome[:, other, side] = torch.tensor([0, 1 - a, a], dtype=torch.float64)
            cue[:, CUE, side] = torch.tensor([0, 1 - v, 1 - v], dtype=torch.float64)
            cue[1 + side, CUE, side] = v
        whole = torch.eye(n, dtype=torch.float64)
        return GenerativeModel(
            A=(whole, outcome, cue),
            B=(whole[self._moves].movedim(-1, 0), torch.eye(2, dtype=torch.float64)),
            C=(
                torch.zeros(n, dtype=torch.float64),
                self.preference * torch.tensor([0, 1, -1], dtype=torch.float64),
                torch.zeros(3, dtype=torch.float64),
            ),
            D=(whole[CENTRE], torch.full((2,), 0.5, dtype=torch.float64)),
            A_factors=((0,), (0, 1), (0, 1)),
            B_controls=((0,), ()),
            modalities=("place", "outcome", "cue"),
            factors=("place", "side"),
            states=(PLACES[:n], ("left", "right")),
        )

    def value_of_cue(self) -> float:
        """ln 2 - H_2(v), nats: what one look tells about the side; 0.494632 at 95 %."""
        v = self.cue_reliability
        return math.log(2) + sum(p * math.log(p) for p in (v, 1 - v) if p > 0)

    def chance(self, looks: bool = True) -> float:
        """The probability of a win in the arm that one chooses best: after a look, or without."""
        v, a = (
            max(self.cue_reliability, 1 - self.cue_reliability),
            max(self.reward_probability, 1 - self.reward_probability),
        )
        return a * v + (1 - a) * (1 - v) if looks else 0.5

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """The most that can be earned, by exact enumeration of all beliefs; open and absorbing, how it is won."""
        most = _most(replace(self, num_agents=1))
        if temperature:
            most = most._replace(kind="bound")  # what warm agents earn is less
        known = {"reward": most}
        stay = (self.horizon - 1) / self.horizon
        once = stay * self.preference * (2 * self.chance() - 1)
        # With time enough it pays to look again; then, or where arms can be left, there is no such simple law.
        simple = self.layout == "open" and self.absorbing and once > 0 and abs(most.value - once) < 1e-9
        if simple and most.kind == "optimum":
            source = "look first, then stay in the arm that the cue points to: wins with w = a v + (1 - a)(1 - v) there"
            known["won"] = Known(stay * self.chance(), source, "optimum")
            known["looked"] = Known(1.0, source, "optimum")
        return known


@lru_cache(8)
def _moves(places: int, corridors: bool, absorbing: bool) -> Tensor:
    moves = torch.arange(places).expand(places, places).clone()
    for start in range(places):
        for end in range(places):
            closed = corridors and not {(start, end), (end, start)} & _DOORS
            if closed or (absorbing and start in (LEFT, RIGHT)):
                moves[start, end] = start
    return moves


@lru_cache(32)
def _most(env: TMaze) -> Known:
    return reachable.most(env.generative_model(), env.horizon, "the side")


parallel_env, env = faces(TMaze)
