r"""Gymnasium's frozen lake, where the goal and one of the holes may have changed places.

$$ r = \rho\,[\text{on the goal}], \qquad p(c_{t+1} \ne c_t) = \begin{cases} w & \text{out of the water, or off the goal} \\
   0 & \text{on the ice} \end{cases} $$

with the context c: whether goal and hole are swapped. It is seen only by landing on either; then the next trial begins at the
start. Maps, actions (left, down, right, up) and slipping are those of Gymnasium 1.4's FrozenLake; the swap is that of Sajid,
Ball, Parr and Friston 2021, "Active inference: demystified and compared", Neural Computation 33, 674-712, there between some
episodes on a lake of 3 x 3. An episode here holds many trials, so that what was seen in one is worth something in the next.
Every agent is on a lake of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import reachable
from mfmarl.inference.model import GenerativeModel
from mfmarl.options import Bounds, Count, Whole, check_numbers
from mfmarl.population import picture
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register

ACTIONS = ("left", "down", "right", "up")
NOTHING, GOAL, HOLE = range(3)
MAPS = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
}
_MOST_CELLS = 400


class State(NamedTuple):
    cell: Tensor  # [E, N] int64, row by row
    swapped: Tensor  # [E, N] int64: 1 where goal and hole have changed places
    clock: Tensor  # [E] int64: steps since the reset


@register("frozen_lake_swap")
@dataclass(frozen=True)
class FrozenLakeSwap(PopulationEnv):
    """Agents on a frozen lake each, whose goal and hole may have changed places since they last landed there."""

    num_agents: Count = 100
    """Number of agents, each on a lake of its own."""
    map: Literal["4x4", "8x8"] = "4x4"
    """Which of Gymnasium's lakes."""
    rows: tuple[str, ...] = ()
    """A lake of one's own, row by row: one `S` start, one `G` goal, `F` ice, `H` holes, at least one. Empty: the one named."""
    hole: Whole | None = None
    """The cell of the hole that swaps with the goal, counted row by row; none: the last row's first (12 and 59), or else the
    last."""
    success_rate: Annotated[float, Bounds(0, 1)] = 1 / 3
    """How often one goes where one wants, and else to either side: 1/3 as in Gymnasium, 1: it is not slippery."""
    swap: Annotated[float, Bounds(0, 1)] = 0.1
    """w: how often goal and hole change places between two trials."""
    swap_at: tuple[Whole, ...] = ()
    """Steps of the episode (1: the first) in which they also change places, on every lake. The model knows nothing of them."""
    believed_swap: Annotated[float, Bounds(0, 1)] | None = None
    """The w of the generative model that agents are given; none: the true one."""
    preference: Annotated[float, Bounds(0, 1e3)] = 1.0
    """Reward of landing on the goal; as a log-preference, nats."""
    horizon: Count | None = 100
    """Steps of an episode, which holds many trials; none: it never ends."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.map not in MAPS:
            raise ConfigError(f"There is no map {self.map!r}: choose one of {', '.join(MAPS)}, or give rows.")
        grid = self.grid
        if len({len(row) for row in grid}) != 1:
            raise ConfigError(f"All rows of a lake must be equally long, not {[len(row) for row in grid]}.")
        cells = "".join(grid)
        strange = set(cells) - set("SFHG")
        if strange or cells.count("S") != 1 or cells.count("G") != 1 or "H" not in cells or len(cells) > _MOST_CELLS:
            raise ConfigError(
                f"A lake has one S, one G, holes H and ice F, and at most {_MOST_CELLS} cells, not {'/'.join(grid)}."
            )
        if self.hole is not None and (self.hole >= len(cells) or cells[self.hole] != "H"):
            holes = [i for i, sign in enumerate(cells) if sign == "H"]
            raise ConfigError(f"hole = {self.hole} is no hole of this lake; its holes are the cells {holes}.")
        if any(step < 1 for step in self.swap_at):
            raise ConfigError(f"swap_at counts steps from 1, not {self.swap_at}.")

    @property
    def grid(self) -> tuple[str, ...]:
        return self.rows or MAPS[self.map]

    @property
    def cells(self) -> str:
        return "".join(self.grid)

    @property
    def goals(self) -> tuple[int, int]:
        """The cell of the goal in either context: where it is on the map, and the hole that swaps with it."""
        if self.hole is not None:
            return self.cells.index("G"), self.hole
        last = (len(self.grid) - 1) * len(self.grid[0])
        swapping = self.cells.find("H", last)
        return self.cells.index("G"), swapping if swapping >= 0 else self.cells.rindex("H")

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        return Spec(
            num_agents=self.num_agents,
            observation_space=Discrete(3 * len(self.cells)),
            action_space=Discrete(4),
            horizon=self.horizon,
            discount=0.98,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        swapped = random.integers(key.fold("swapped"), ids, 2)
        return State(torch.full_like(ids, self.cells.index("S")), swapped, torch.zeros_like(ids[:, 0]))

    def observe(self, state: State) -> Tensor:
        return 3 * state.cell + self._outcome(state.cell, state.swapped)

    def _outcome(self, cell: Tensor, swapped: Tensor) -> Tensor:
        return _outcomes(self.cells, self.goals).to(cell.device)[cell, swapped]

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        u = random.uniform(key.fold("slip"), ids)
        aside = torch.where(u < (1 + self.success_rate) / 2, 1, 3)  # a quarter turn one way or the other
        way = torch.where(u < self.success_rate, action, (action + aside) % 4)
        landed = self._outcome(state.cell, state.swapped) != NOTHING
        cell = torch.where(landed, self.cells.index("S"), _moves(self.grid).to(ids.device)[state.cell, way])
        swaps = landed & (random.uniform(key.fold("swap"), ids) < self.swap)
        clock = state.clock + 1
        if self.swap_at:
            due = (clock.unsqueeze(-1) == torch.tensor(self.swap_at, device=ids.device)).any(-1)
            swaps = swaps ^ due.unsqueeze(-1)
        swapped = torch.where(swaps, 1 - state.swapped, state.swapped)
        return State(cell, swapped, clock), self.preference * (self._outcome(cell, swapped) == GOAL).float()

    def hidden(self, state: State) -> tuple[Tensor, ...]:
        """What the model's factors truly are, int64 [E, N] each: the cell, and whether goal and hole are swapped."""
        return state.cell, state.swapped

    def measure(self, state: State) -> dict[str, Tensor]:
        """Shares of agents on the goal, in a hole, and on lakes whose goal and hole are swapped."""
        outcome = self._outcome(state.cell, state.swapped)
        found = {"goal": outcome == GOAL, "hole": outcome == HOLE, "swapped": state.swapped == 1}
        return {name: value.float().mean(-1) for name, value in found.items()}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The lakes of the first agents: holes in light blue, the goal in green, the hole it may swap with in red."""
        ice, agent, hole, goal, other = range(5)
        shown = min(self.num_agents, 9)
        each = torch.arange(shown)
        cells = torch.tensor([hole if sign == "H" else ice for sign in self.cells]).repeat(shown, 1)
        places, swapped = torch.tensor(self.goals), state.swapped[copy, :shown].cpu()
        cells[each, places[swapped]], cells[each, places[1 - swapped]] = goal, other
        cells[each, state.cell[copy, :shown].cpu()] = agent
        colours = picture.kinds("floor", "agent", "place", "good", "bad")
        return picture.tiles(cells.view(shown, len(self.grid), -1), colours)

    # ----------------------------------------------------------------------------------- what theory knows

    def generative_model(self, group: int = 0) -> GenerativeModel:
        """These rules, `swap_at` apart: factors cell and swapped; modalities cell and outcome; one control, the move."""
        return self._model(self.swap if self.believed_swap is None else self.believed_swap)

    def _model(self, swap: float) -> GenerativeModel:
        count = len(self.cells)
        whole = torch.eye(count, dtype=torch.float64)
        went = whole[_moves(self.grid)]  # [S, 4, S']
        aside = (1 - self.success_rate) / 2
        moved = self.success_rate * went + aside * (went.roll(-1, 1) + went.roll(1, 1))
        outcome = _outcomes(self.cells, self.goals)
        landed = outcome[:, 0] != NOTHING  # whether or not they are swapped, it is a landing
        moved[landed] = whole[self.cells.index("S")]
        context = torch.eye(2, dtype=torch.float64).unsqueeze(1).repeat(1, count, 1)  # [2', S, 2]
        context[:, landed] = torch.tensor([[1 - swap, swap], [swap, 1 - swap]], dtype=torch.float64).unsqueeze(1)
        return GenerativeModel(
            A=(whole, torch.eye(3, dtype=torch.float64)[outcome].movedim(-1, 0)),
            B=(moved.permute(2, 0, 1), context),
            C=(torch.zeros(count, dtype=torch.float64), torch.tensor([0, self.preference, 0], dtype=torch.float64)),
            D=(whole[self.cells.index("S")], torch.full((2,), 0.5, dtype=torch.float64)),
            A_factors=((0,), (0, 1)),
            B_factors=((0,), (0, 1)),
            B_controls=((0,), ()),
            modalities=("cell", "outcome"),
            factors=("cell", "swapped"),
            states=(tuple(str(i) for i in range(count)), ("as on the map", "swapped")),
        )

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """The most that can be earned in an episode by those who know w, by dynamic programming over all beliefs: there is
        one for every number of trials since goal or hole were last seen. Where they also swap at certain steps: nothing."""
        if self.horizon is None or self.swap_at:
            return {}
        most = _most(replace(self, num_agents=1), self.horizon)
        if temperature:
            most = most._replace(kind="bound")  # what warm agents earn is less
        found = {"reward": most}
        if self.preference:
            found["goal"] = most._replace(value=most.value / self.preference)
        return found


@lru_cache(16)
def _moves(grid: tuple[str, ...]) -> Tensor:
    """Where one gets from a cell by going left, down, right, up: int64 [S, 4]."""
    high, wide = len(grid), len(grid[0])
    cell = torch.arange(high * wide)
    row, column = cell // wide, cell % wide
    steps = ((0, -1), (1, 0), (0, 1), (-1, 0))
    return torch.stack([(row + y).clamp(0, high - 1) * wide + (column + x).clamp(0, wide - 1) for y, x in steps], -1)


@lru_cache(16)
def _outcomes(cells: str, goals: tuple[int, int]) -> Tensor:
    """What landing on a cell comes to, as on the map and swapped: int64 [S, 2]."""
    outcome = torch.tensor([HOLE if sign == "H" else NOTHING for sign in cells]).unsqueeze(-1).repeat(1, 2)
    for context in (0, 1):
        outcome[goals[context], context], outcome[goals[1 - context], context] = GOAL, HOLE
    return outcome


@lru_cache(32)
def _most(env: FrozenLakeSwap, steps: int) -> Known:
    return reachable.most(env._model(env.swap), steps, "the swaps")


parallel_env, env = faces(FrozenLakeSwap)
