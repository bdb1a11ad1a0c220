r"""A chain of cues on a grid: the first tells where the second is, the second where the reward is.

$$ p(\mathrm{cue}_1 = j \mid \text{at it}) = \begin{cases} v & j = c \\ (1 - v)/(J - 1) & j \ne c \end{cases}, \qquad
   p(\mathrm{cue}_2 = k \mid \text{at place } c) = \begin{cases} v & k = r \\ (1 - v)/(R - 1) & k \ne r \end{cases} $$

with c the one of J places that holds the second cue (the others hold nothing) and r the one of R cells that holds the
cheese (the others a shock). The task and its grid are those of pymdp's cue-chaining demonstration (Heins et al. 2022, J. Open
Source Software 7, 4098; `CueChainingEnv` in pymdp 1.0.4), except that here the cells of cheese and shock hold who enters, so
that there is no second try; with `absorbing = false` it is pymdp's. Every agent is on a grid of its own. On that grid who
reads both cues is at the cheese after 10 moves on average, and the best policy passes the first cue by: a walk past all
places of the second takes 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
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

ACTIONS = ("up", "down", "left", "right", "stay")
NOTHING, CHEESE, SHOCK = range(3)
_MOST_NUMBERED = 5000  # observations that are numbered; more of them are shown as one-hot vectors


class State(NamedTuple):
    cell: Tensor  # [E, N] int64, row by row
    context: Tensor  # [E, N] int64: which place holds the second cue
    bait: Tensor  # [E, N] int64: which cell holds the cheese
    first: Tensor  # [E, N] int64: what the first cue shows; 0: nothing is seen
    second: Tensor  # [E, N] int64: what the second cue shows
    outcome: Tensor  # [E, N] int64: nothing, cheese, shock


@register("cue_chain")
@dataclass(frozen=True)
class CueChain(PopulationEnv):
    """Agents on a grid each, who must read one cue to find another to find the cheese."""

    num_agents: Count = 100
    """Number of agents, each on a grid of its own."""
    rows: Annotated[int, Bounds(1, 100)] = 5
    """Rows of the grid. Cells are numbered row by row."""
    columns: Annotated[int, Bounds(1, 100)] = 7
    """Columns of the grid."""
    start: Whole = 0
    """Where agents begin."""
    first_cue: Whole = 14
    """The cell of the first cue."""
    second_cues: tuple[Whole, ...] = (2, 10, 24, 30)
    """Cells that may hold the second cue, at least one."""
    baits: tuple[Whole, ...] = (12, 26)
    """Cells of which one holds the cheese and the others a shock, at least two."""
    cue_reliability: Annotated[float, Bounds(0, 1)] = 1.0
    """v: how often either cue is right; a wrong one is any of the others."""
    cheese: Annotated[float, Bounds(-1e3, 1e3)] = 2.0
    """Reward of every step on the cheese; as a log-preference, nats."""
    shock: Annotated[float, Bounds(-1e3, 1e3)] = -4.0
    """Reward of every step on a shock."""
    absorbing: bool = True
    """Whether who has stepped on cheese or shock stays there."""
    horizon: Count = 15
    """Moves, after which the game is over."""

    def __post_init__(self) -> None:
        check_numbers(self)
        named = {"start": (self.start,), "first_cue": (self.first_cue,), "baits": self.baits}
        for name, cells in {**named, "second_cues": self.second_cues}.items():
            for cell in cells:
                if not 0 <= cell < self.num_cells:
                    raise ConfigError(
                        f"{name} names the cell {cell}, but a grid of {self.rows} x {self.columns} has the cells "
                        f"0..{self.num_cells - 1}, row by row."
                    )
        if not self.second_cues or len(set(self.second_cues)) != len(self.second_cues):
            raise ConfigError(f"second_cues must be different cells, at least one, not {self.second_cues}.")
        if len(self.baits) < 2 or len(set(self.baits)) != len(self.baits):
            raise ConfigError(f"baits must be different cells, at least two, not {self.baits}.")
        if self.start in self.baits and self.absorbing:
            raise ConfigError(f"start = {self.start} is one of the baits, which hold who is on them: begin elsewhere.")

    @property
    def num_cells(self) -> int:
        return self.rows * self.columns

    @property
    def sizes(self) -> tuple[int, ...]:
        """Outcomes of the modalities: cell, first cue, second cue, outcome."""
        return self.num_cells, 1 + len(self.second_cues), 1 + len(self.baits), 3

    @property
    def _numbered(self) -> bool:
        return math.prod(self.sizes) <= _MOST_NUMBERED

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        sizes = self.sizes
        count = math.prod(sizes)
        shown: Space[Any] = Discrete(count) if self._numbered else Box(0.0, 1.0, (sum(sizes),), np.float32)
        return Spec(
            num_agents=self.num_agents,
            observation_space=shown,
            action_space=Discrete(len(ACTIONS)),
            horizon=self.horizon,
            discount=1.0,
            ends=True,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        context = random.integers(key.fold("second cue"), ids, len(self.second_cues))
        bait = random.integers(key.fold("bait"), ids, len(self.baits))
        return self._look(torch.full_like(ids, self.start), context, bait, ids, key)

    def _look(self, cell: Tensor, context: Tensor, bait: Tensor, ids: Tensor, key: Key) -> State:
        """The state with what is seen of it now."""
        first = torch.where(
            cell == self.first_cue, 1 + self._told(context, len(self.second_cues), ids, key.fold("one")), 0
        )
        at = cell == torch.tensor(self.second_cues, device=ids.device)[context]
        second = torch.where(at, 1 + self._told(bait, len(self.baits), ids, key.fold("two")), 0)
        baits = torch.tensor(self.baits, device=ids.device)
        on = (cell.unsqueeze(-1) == baits).any(-1)
        outcome = torch.where(on, torch.where(cell == baits[bait], CHEESE, SHOCK), NOTHING)
        return State(cell, context, bait, first, second, outcome)

    def _told(self, truth: Tensor, count: int, ids: Tensor, key: Key) -> Tensor:
        """What a cue says of one of so many possibilities."""
        if count == 1:
            return truth
        right = random.uniform(key, ids) < self.cue_reliability
        return torch.where(right, truth, (truth + 1 + random.integers(key.fold("wrong"), ids, count - 1)) % count)

    def observe(self, state: State) -> Tensor:
        seen = (state.cell, state.first, state.second, state.outcome)
        if not self._numbered:
            one_hot = [torch.nn.functional.one_hot(x, size) for x, size in zip(seen, self.sizes, strict=True)]
            return torch.cat(one_hot, -1).float()
        number = torch.zeros_like(state.cell)
        for x, size in zip(seen, self.sizes, strict=True):
            number = number * size + x
        return number

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        cell = self._moves.to(ids.device)[state.cell, action]
        after = self._look(cell, state.context, state.bait, ids, key)
        return after, self.cheese * (after.outcome == CHEESE).float() + self.shock * (after.outcome == SHOCK).float()

    @property
    def _moves(self) -> Tensor:
        """Where one gets from a cell by an action: int64 [cells, 5]."""
        return _moves(self.rows, self.columns, self.baits if self.absorbing else ())

    def hidden(self, state: State) -> tuple[Tensor, ...]:
        """What the model's factors truly are, int64 [E, N] each: the cell, the place of the second cue, the cheese's."""
        return state.cell, state.context, state.bait

    def measure(self, state: State) -> dict[str, Tensor]:
        """Shares of agents on the cheese, on a shock, and that see either cue now."""
        found = {
            "cheese": state.outcome == CHEESE,
            "shock": state.outcome == SHOCK,
            "first_cue": state.first > 0,
            "second_cue": state.second > 0,
        }
        return {name: value.float().mean(-1) for name, value in found.items()}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The grids of the first agents: cues in yellow (where the second is) and light blue, cheese green, shocks red."""
        floor, agent, cheese, shock, cue, first, maybe = range(7)
        shown = min(self.num_agents, 9)
        cells, each = torch.full((shown, self.num_cells), floor), torch.arange(shown)
        cells[:, self.first_cue] = first
        cells[:, list(self.second_cues)] = maybe
        cells[each, torch.tensor(self.second_cues)[state.context[copy, :shown].cpu()]] = cue
        cells[:, list(self.baits)] = shock
        cells[each, torch.tensor(self.baits)[state.bait[copy, :shown].cpu()]] = cheese
        cells[each, state.cell[copy, :shown].cpu()] = agent
        colours = picture.kinds("floor", "agent", "good", "bad", "sign", "place", "other sign")
        return picture.tiles(cells.view(shown, self.rows, self.columns), colours)

    # ----------------------------------------------------------------------------------- what theory knows

    def generative_model(self, group: int = 0) -> GenerativeModel:
        """These rules: factors cell, place of the second cue, cheese; four modalities; one control, the move."""
        n, contexts, baits, _ = self.sizes
        contexts, baits = contexts - 1, baits - 1
        cell = torch.eye(n, dtype=torch.float64)
        first = torch.zeros(1 + contexts, n, contexts, dtype=torch.float64)
        first[0] = 1
        first[0, self.first_cue], first[1:, self.first_cue] = 0, _telling(contexts, self.cue_reliability)
        second = torch.zeros(1 + baits, n, contexts, baits, dtype=torch.float64)
        second[0] = 1
        for context, place in enumerate(self.second_cues):
            second[0, place, context], second[1:, place, context] = 0, _telling(baits, self.cue_reliability)
        outcome = torch.zeros(3, n, baits, dtype=torch.float64)
        outcome[NOTHING] = 1
        for bait, place in enumerate(self.baits):
            outcome[NOTHING, place], outcome[SHOCK, place] = 0, 1
            outcome[SHOCK, place, bait], outcome[CHEESE, place, bait] = 0, 1
        return GenerativeModel(
            A=(cell, first, second, outcome),
            B=(
                cell[self._moves].movedim(-1, 0),
                torch.eye(contexts, dtype=torch.float64),
                torch.eye(baits, dtype=torch.float64),
            ),
            C=(
                *[torch.zeros(size, dtype=torch.float64) for size in self.sizes[:3]],
                torch.tensor([0.0, self.cheese, self.shock], dtype=torch.float64),
            ),
            D=(
                cell[self.start],
                torch.full((contexts,), 1 / contexts, dtype=torch.float64),
                torch.full((baits,), 1 / baits, dtype=torch.float64),
            ),
            A_factors=((0,), (0, 1), (0, 1, 2), (0, 2)),
            B_controls=((0,), (), ()),
            modalities=("cell", "first cue", "second cue", "outcome"),
            factors=("cell", "second cue's place", "cheese"),
        )

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """The most that can be earned, by dynamic programming over all beliefs; where they are too many, a bound."""
        most = _most(replace(self, num_agents=1))
        if temperature:
            most = most._replace(kind="bound")  # what warm agents earn is less
        return {"reward": most}


def _telling(count: int, reliability: float) -> Tensor:
    """What a cue shows [count] of the truth [count]."""
    if count == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    wrong = (1 - reliability) / (count - 1)
    return torch.full((count, count), wrong, dtype=torch.float64).fill_diagonal_(reliability)


@lru_cache(8)
def _moves(rows: int, columns: int, holding: tuple[int, ...]) -> Tensor:
    cell = torch.arange(rows * columns)
    row, column = cell // columns, cell % columns
    steps = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
    moves = torch.stack(
        [(row + y).clamp(0, rows - 1) * columns + (column + x).clamp(0, columns - 1) for y, x in steps], -1
    )
    held = torch.zeros_like(cell, dtype=torch.bool)
    held[list(holding)] = True
    return torch.where(held.unsqueeze(-1), cell.unsqueeze(-1), moves)


@lru_cache(32)
def _most(env: CueChain) -> Known:
    return reachable.most(env.generative_model(), env.horizon, "the cue and the cheese")


parallel_env, env = faces(CueChain)
