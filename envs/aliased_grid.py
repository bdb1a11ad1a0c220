r"""A maze in which many places look alike: one starts somewhere, and sees only the walls around.

$$ r = \rho\,[\text{on the goal}], \qquad p(\text{where one is set down again} \mid \text{on the goal}) = \mathrm{uniform}, \qquad
   p(\text{as one wanted}) = 1 - \epsilon, \quad p(\text{to either side}) = \epsilon / 2 $$

The default is the cheese maze (McCallum 1992; Cassandra, Kaelbling and Littman 1994): 11 cells, 7 of them told apart at most.
Who runs into a wall stays. Who finds the goal is set down somewhere in the next step and does not know where. Memory pays:
what one sees on the way tells where one began. Every agent is in a maze of its own.
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
from mfmarl.options import Bounds, Count, check_numbers
from mfmarl.population import picture
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register

ACTIONS = ("up", "down", "left", "right")
_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))
_SIDES = ((2, 3), (2, 3), (0, 1), (0, 1))
MAPS = {
    "cheese": (".....", ".#.#.", ".#G#."),
    "rooms": (".....#.....", ".....#.....", "...........", ".....#.....", "##.#####.##", ".....#.....", "..........G"),
}
_MOST_CELLS = 1000


class State(NamedTuple):
    cell: Tensor  # [E, N] int64: number of the floor's cell, row by row
    symbol: Tensor  # [E, N] int64: what is seen of it


class _Floor(NamedTuple):
    """What a map comes to."""

    lies: Tensor  # [S, 2]: row and column of every cell of the floor
    moves: Tensor  # [S, 4]: where one gets
    symbol: Tensor  # [S]: what it looks like
    symbols: int
    goal: Tensor  # [S] bool
    starts: Tensor  # [starts]: cells


@register("aliased_grid")
@dataclass(frozen=True)
class AliasedGrid(PopulationEnv):
    """Agents in a maze each, who see only what many places look like and start they know not where."""

    num_agents: Count = 100
    """Number of agents, each in a maze of its own."""
    map: Literal["cheese", "rooms"] = "cheese"
    """`cheese`: McCallum's maze of 11 cells; `rooms`: four rooms of 65 cells."""
    rows: tuple[str, ...] = ()
    """A map of one's own, row by row: `#` wall, `.` floor, `G` goal, `S` where agents may start (none: anywhere but on the
    goal), any other sign: floor that shows this sign. Empty: the map named."""
    symbols: Literal["walls", "signs"] = "walls"
    """What a cell shows: on which of its four sides there are walls, or the map's own sign."""
    slip: Annotated[float, Bounds(0, 1)] = 0.0
    """How often one goes to a side instead, each with half of it."""
    misread: Annotated[float, Bounds(0, 1)] = 0.0
    """How often a cell shows any of the other symbols instead of its own."""
    preference: Annotated[float, Bounds(0, 1e3)] = 1.0
    """Reward of finding the goal; as a log-preference, nats."""
    horizon: Count | None = 50
    """Steps of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.map not in MAPS:
            raise ConfigError(f"There is no map {self.map!r}: choose one of {', '.join(MAPS)}, or give rows.")
        grid = self.grid
        if len({len(row) for row in grid}) != 1:
            raise ConfigError(f"All rows of a map must be equally long, not {[len(row) for row in grid]}.")
        cells = [sign for row in grid for sign in row if sign != "#"]
        if not 2 <= len(cells) <= _MOST_CELLS:
            raise ConfigError(f"A map must have 2 to {_MOST_CELLS} cells that are not walls, not {len(cells)}.")
        if "G" not in cells or not set(cells) - {"G"}:
            raise ConfigError("A map needs a goal, G, and a cell that is none.")

    @property
    def grid(self) -> tuple[str, ...]:
        return self.rows or MAPS[self.map]

    @property
    def floor(self) -> _Floor:
        return _floor(self.grid, self.symbols)

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        return Spec(
            num_agents=self.num_agents,
            observation_space=Discrete(2 * self.floor.symbols),
            action_space=Discrete(4),
            horizon=self.horizon,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        return self._look(self._set_down(ids, key.fold("start")), ids, key)

    def _set_down(self, ids: Tensor, key: Key) -> Tensor:
        starts = self.floor.starts.to(ids.device)
        return starts[random.integers(key, ids, len(starts))]

    def _look(self, cell: Tensor, ids: Tensor, key: Key) -> State:
        floor = self.floor
        symbol = floor.symbol.to(ids.device)[cell]
        if self.misread and floor.symbols > 1:
            wrong = random.uniform(key.fold("misread"), ids) < self.misread
            other = (symbol + 1 + random.integers(key.fold("other"), ids, floor.symbols - 1)) % floor.symbols
            symbol = torch.where(wrong, other, symbol)
        return State(cell, symbol)

    def observe(self, state: State) -> Tensor:
        return 2 * state.symbol + self._on_goal(state.cell).long()

    def _on_goal(self, cell: Tensor) -> Tensor:
        return self.floor.goal.to(cell.device)[cell]

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        way = action
        if self.slip:
            u = random.uniform(key.fold("slip"), ids)
            sides = torch.tensor(_SIDES, device=ids.device)[action]
            way = torch.where(u < self.slip, torch.where(u < self.slip / 2, sides[..., 0], sides[..., 1]), action)
        gone = self.floor.moves.to(ids.device)[state.cell, way]
        cell = torch.where(self._on_goal(state.cell), self._set_down(ids, key.fold("start")), gone)
        return self._look(cell, ids, key), self.preference * self._on_goal(cell).float()

    def hidden(self, state: State) -> tuple[Tensor, ...]:
        """What the model's factors truly are, int64 [E, N] each: the cell."""
        return (state.cell,)

    def measure(self, state: State) -> dict[str, Tensor]:
        """Share of agents that are on the goal."""
        return {"goal": self._on_goal(state.cell).float().mean(-1)}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The mazes of the first agents: the goal in green, the agent in blue."""
        wall, plain, agent, goal = range(4)
        floor = self.floor
        shown = min(self.num_agents, 16)
        cells = torch.full((shown, len(self.grid) + 2, len(self.grid[0]) + 2), wall)
        lies = floor.lies + 1
        cells[:, lies[:, 0], lies[:, 1]] = torch.where(floor.goal, goal, plain)
        at = lies[state.cell[copy, :shown].cpu()]
        cells[torch.arange(shown), at[:, 0], at[:, 1]] = agent
        return picture.tiles(cells, picture.kinds("wall", "floor", "agent", "good"))

    # ----------------------------------------------------------------------------------- what theory knows

    def generative_model(self, group: int = 0) -> GenerativeModel:
        """These rules: one factor, the cell; modalities symbol and goal; one control, the move."""
        floor = self.floor
        cells = len(floor.moves)
        first = torch.zeros(cells, dtype=torch.float64)
        first[floor.starts] = 1 / len(floor.starts)
        went = torch.eye(cells, dtype=torch.float64)[floor.moves]  # [S, 4, S']
        sides = torch.tensor(_SIDES)
        moved = (1 - self.slip) * went + self.slip / 2 * (went[:, sides[:, 0]] + went[:, sides[:, 1]])
        moved[floor.goal] = first
        shows = torch.eye(floor.symbols, dtype=torch.float64)[floor.symbol].T
        if floor.symbols > 1:
            shows = (1 - self.misread) * shows + self.misread / (floor.symbols - 1) * (1 - shows)
        goal = torch.stack([~floor.goal, floor.goal]).to(torch.float64)
        return GenerativeModel(
            A=(shows, goal),
            B=(moved.permute(2, 0, 1),),
            C=(
                torch.zeros(floor.symbols, dtype=torch.float64),
                torch.tensor([0, self.preference], dtype=torch.float64),
            ),
            D=(first,),
            modalities=("symbol", "goal"),
            factors=("cell",),
        )

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """The most that can be earned in an episode, by dynamic programming over all beliefs; where they are too many (as
        where one slips or misreads), what one would earn who saw the cell: a bound."""
        if self.horizon is None:
            return {}
        most = _most(replace(self, num_agents=1), self.horizon)
        if temperature:
            most = most._replace(kind="bound")  # what warm agents earn is less
        found = {"reward": most}
        if self.preference:
            found["goal"] = most._replace(value=most.value / self.preference)
        return found


@lru_cache(16)
def _floor(grid: tuple[str, ...], symbols: str) -> _Floor:
    lies = [(y, x) for y, row in enumerate(grid) for x, sign in enumerate(row) if sign != "#"]
    number = {place: i for i, place in enumerate(lies)}
    around = [[(y + dy, x + dx) for dy, dx in _STEPS] for y, x in lies]
    moves = [[number.get(place, here) for place in places] for here, places in enumerate(around)]
    signs = [grid[y][x] for y, x in lies]
    if symbols == "walls":
        looks = ["".join("#" if place not in number else "." for place in places) for places in around]
    else:
        looks = ["." if sign in "GS" else sign for sign in signs]
    kinds = sorted(set(looks))
    marked = [i for i, sign in enumerate(signs) if sign == "S"]
    return _Floor(
        lies=torch.tensor(lies),
        moves=torch.tensor(moves),
        symbol=torch.tensor([kinds.index(look) for look in looks]),
        symbols=len(kinds),
        goal=torch.tensor([sign == "G" for sign in signs]),
        starts=torch.tensor(marked or [i for i, sign in enumerate(signs) if sign != "G"]),
    )


@lru_cache(32)
def _most(env: AliasedGrid, steps: int) -> Known:
    return reachable.most(env.generative_model(), steps, "the cell")


parallel_env, env = faces(AliasedGrid)
