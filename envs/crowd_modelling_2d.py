r"""A crowd in a plane with walls: four rooms, a maze, obstacles, a torus, or a map of one's own.

$$ r_t(s, a; \mu) = -c \log(\mu_t(s) + \epsilon) \;\Big[ + 2 - \tfrac{2}{n} \lVert s - m \rVert_1
   - \tfrac{1}{n} \lVert a \rVert_1 \Big] $$

One steps to a free neighbour or stays, and then, with probability `noise`, is pushed to one of the free neighbours or
nowhere, all alike. Without the bracket (`goal`) the crowd only wants to be spread: exploration by entropy. Perrin et
al. 2020 (arXiv 2007.03458), section 5.3; Perolat et al. 2021 (arXiv 2103.00623), section 5.2;
`mfg_crowd_modelling_2d` of OpenSpiel, whose four rooms and maze these are. A move is paid for when it is made. A
potential game with one equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Kernel, Moves, Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_MATRIX = 1 << 17  # entries of a matrix [S, A, S] up to which one product is fastest
_STEPS = torch.tensor([[-1, 0], [0, -1], [0, 0], [0, 1], [1, 0]])  # up, left, stay, right, down
_STAY = 2

MAPS = {
    "four_rooms": (
        "#############",
        "#s    #     #",
        "#     #     #",
        "#           #",
        "#     #     #",
        "#     #     #",
        "### ##### ###",
        "#     #     #",
        "#     #     #",
        "#           #",
        "#     #     #",
        "#     #     #",
        "#############",
    ),
    "maze": (
        "######################",
        "#s     #     #     # #",
        "#      #     #     # #",
        "######    #  # ##  # #",
        "#         #  # #   # #",
        "#         #  # ### # #",
        "#  ########  #   #   #",
        "#    # # #  ##   #   #",
        "#    # # #     # # ###",
        "#    # # #     # # # #",
        "###### # ####### # # #",
        "#  #         #   # # #",
        "#  # ## ###  #   # # #",
        "## # #    #  ##### # #",
        "## # # #  #      # # #",
        "#    # ####        # #",
        "# ####  # ########   #",
        "#       #  #   # ### #",
        "#  #  # #  # # #   # #",
        "# ##### #    # #     #",
        "#            #       #",
        "######################",
    ),
    "obstacles": (
        "###########",
        "#s        #",
        "#  ##     #",
        "#  ##  #  #",
        "#      #  #",
        "#   #     #",
        "#  ###    #",
        "#   #  ## #",
        "#      ## #",
        "#         #",
        "###########",
    ),
}


@register("crowd_modelling_2d")
@dataclass(frozen=True)
class CrowdModelling2d(MeanFieldGame):
    """A crowd that spreads through rooms, a maze or round obstacles."""

    horizon: Count | None = 40
    """Number of decisions."""
    map: str = "four_rooms"
    """four_rooms, maze, obstacles, torus; or rows of one's own between slashes: # is wall, s a start (none: all start)."""
    size: Annotated[int, Bounds(3, 1 << 14)] = 10
    """Cells along each side of the torus; maps have their own size."""
    goal: bool = False
    """Whether being near the middle is paid, and moves cost."""
    noise: Annotated[float, Bounds(0, 1)] = 1.0
    """Probability of a push."""
    aversion: Annotated[float, Bounds(0, 1e6)] = 1.0
    """c, weight of -log mu."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-25
    """Added to shares before the logarithm."""

    crowd_moves = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.map != "torus" and self.map not in MAPS and "/" not in self.map:
            raise ConfigError(
                f"There is no map {self.map!r}.{nearest(self.map, [*MAPS, 'torus'])} "
                "Rows of one's own are separated by slashes, like '####/#s #/####'."
            )
        rows = self._rows
        if len({len(row) for row in rows}) > 1:
            raise ConfigError(f"The rows of a map are equally long, not {', '.join(str(len(row)) for row in rows)}.")
        if set("".join(rows)) - set("# .s"):
            raise ConfigError(
                f"A map is made of '#', ' ', '.' and 's', not of {min(set(''.join(rows)) - set('# .s'))!r}."
            )
        if bool(self.walls.all()):
            raise ConfigError("The map is all wall: leave a cell free.")

    @cached_property
    def _rows(self) -> tuple[str, ...]:
        if self.map == "torus":
            return (" " * self.size,) * self.size
        return MAPS.get(self.map) or tuple(self.map.split("/"))

    @cached_property
    def walls(self) -> Tensor:
        """Which cells are walls, bool [H, W]."""
        return torch.tensor([[cell == "#" for cell in row] for row in self._rows])

    @cached_property
    def cells(self) -> Tensor:
        """Row and column of every state, int64 [S, 2]."""
        return (~self.walls).nonzero()

    @cached_property
    def _neighbours(self) -> tuple[Tensor, Tensor]:
        """Where every step leads (who would enter a wall stays), int64 [S, A]; and whether it is free, bool."""
        walls = self.walls.flatten()
        shape = (self.walls.shape[0], self.walls.shape[1])
        state = (~walls).cumsum(0) - 1  # a cell's number among the free ones
        there = grid_moves(shape, _STEPS, torus=True)[~walls]
        stayed = grid_moves(shape, _STEPS, torus=True, walls=walls)[~walls]
        return state[stayed], ~walls[there]

    @property
    def num_states(self) -> int:
        return len(self.cells)

    @property
    def num_actions(self) -> int:
        return len(_STEPS)

    def initial(self) -> Tensor:
        starts = torch.tensor([[cell == "s" for cell in row] for row in self._rows])[~self.walls].double()
        weight = starts if bool(starts.any()) else torch.ones_like(starts)
        return weight / weight.sum()

    def allowed(self) -> Tensor:
        return self._neighbours[1]

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        there, free = (x.to(crowd.mu.device) for x in self._neighbours)
        push = self.noise * free.double() / free.sum(-1, keepdim=True)
        push[:, _STAY] += 1 - self.noise
        push = push.to(crowd.mu)
        if self.num_states**2 * self.num_actions > _MATRIX:
            return Moves(there, there, push)
        return Outcomes(there[there], push[there])

    @cached_property
    def nearness(self) -> Tensor:
        """What a cell itself is worth, float64 [S]."""
        if not self.goal:
            return torch.zeros(self.num_states, dtype=torch.float64)
        size = torch.tensor(self.walls.shape)
        return 2 - (2 * (self.cells - size // 2).abs().double() / size).sum(-1)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        crowded = (crowd.mu + self.floor).log()
        return (self.nearness.to(crowd.mu) - self.aversion * crowded).unsqueeze(-1)

    def effort(self) -> Tensor | None:
        if not self.goal:
            return None
        return (_STEPS.abs().double() / torch.tensor(self.walls.shape)).sum(-1).expand(self.num_states, -1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        mu = crowd.mu
        # d/dmu [(mu + e) log(mu + e) - mu] = log(mu + e).
        crowded = (mu + self.floor) * (mu + self.floor).log() - mu
        return (self.nearness.to(mu) * mu - self.aversion * crowded).sum((-2, -1))

    def coordinates(self) -> Tensor:
        return self.cells / (torch.tensor(self.walls.shape) - 1) * 2 - 1

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """`spread`: the entropy in units of log S; `reach`: the mean distance from the start, in cells of the longer side."""
        found = super().measures(mu)
        start = self.initial().to(mu)
        cells = self.cells.to(mu)
        away = (cells - start @ cells).abs().amax(-1) / max(self.walls.shape)
        return {"spread": found["spread"], "reach": (mu[..., 0, :] * away).sum(-1)}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """The crowd from white (nobody) to blue (the fullest cell); walls are dark."""
        share = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0, 0].cpu()
        return self.picture_of(share)

    def picture_of(self, mu: Tensor) -> Tensor:
        """A distribution [S] over the cells, uint8 [H, W, 3]."""
        shades = 64
        level = (mu / mu.max()).sqrt()  # the eye sees small shares better so
        cells = torch.full(self.walls.shape, shades, dtype=torch.int64)
        cells[~self.walls] = (level * (shades - 1)).round().long()
        mix = torch.linspace(0, 1, shades).unsqueeze(-1)
        blue, white = picture.palette(1).float(), torch.tensor([picture.BACKGROUND]).float()
        ramp = (white + mix * (blue - white)).round().to(torch.uint8)
        return picture.mosaic(cells, torch.cat([ramp, torch.tensor([[60, 60, 60]], dtype=torch.uint8)]))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(CrowdModelling2d)
