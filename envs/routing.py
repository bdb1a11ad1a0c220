r"""Drivers who find their way through a network whose links take longer the more of them are on it, now.

$$ \tau_l(v) = \tau^0_l\, (1 + a_l\, v / V), \qquad r = -\text{time of arrival} $$

Who enters a link at time t is told by the mass v that is on it just then how long it takes; until then he waits, and
chooses again at its end. A state is a link and the time left on it, so the crowd enters by the dynamics alone.
Cabannes et al. 2022 (arXiv 2110.11943); `python_mfg_dynamic_routing` of OpenSpiel, whose Braess network this is: with
x = 3/4 of the drivers on A-B and as many on C-D every way takes 3.75, without the shortcut B-C 3.5, so that a road
more costs everyone time (Braess 1968). Times are counted in steps of `dt`: rounded down as in OpenSpiel, or fairly, so
that the mean is right and small changes of the crowd make small changes of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Kernel, Outcomes
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_WHOLE = 1e-9  # what a sum of shares may lose by rounding is not a step less


class Link(NamedTuple):
    """One road. It takes free (1 + crowding v) when a share v of all drivers is on it."""

    start: str
    end: str
    free: float
    crowding: float = 0.0


# The first link is where everyone starts, the last where they want to be.
_NETWORKS = {
    "braess": (
        Link("O", "A", 0.0),
        Link("A", "B", 1.0, 1.0),
        Link("A", "C", 2.0),
        Link("B", "C", 0.25),
        Link("B", "D", 2.0),
        Link("C", "D", 1.0, 1.0),
        Link("D", "E", 0.0),
    ),
    # Two ways of Pigou: one takes 2 whatever happens, the other from 1 to 2. Everyone takes the other.
    "pigou": (
        Link("O", "A", 0.0),
        Link("A", "B", 2.0),
        Link("A", "C", 1.0, 1.0),
        Link("B", "D", 0.0),
        Link("C", "D", 0.0),
        Link("D", "E", 0.0),
    ),
}


class _Layout(NamedTuple):
    """States: every link with every time left on it, and, last, arrived."""

    link: Tensor  # [S] the link one is on; L: arrived
    wait: Tensor  # [S] steps left on it
    onto: Tensor  # [S, A] the link one is on after the step; L: arrived
    base: Tensor  # [S, A] the state after the step, if the link entered took no time
    enters: Tensor  # [S, A] whether a link is entered
    legal: Tensor  # [S, A]


@register("routing")
@dataclass(frozen=True)
class Routing(MeanFieldGame):
    """Drivers on a network, who turn at every junction and are held up by each other."""

    horizon: Count | None = 100
    """Steps of time; who has not arrived by then pays one more."""
    network: Literal["braess", "pigou"] = "braess"
    """The roads."""
    shortcut: bool = True
    """Whether Braess's B-C is open: without it everyone is quicker."""
    dt: Annotated[float, Bounds(1e-4, 10)] = 0.05
    """Length of a step of time."""
    rounding: Literal["fair", "down"] = "fair"
    """Times in steps: fair (one more with the probability of the fraction) or down."""

    extended: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in _NETWORKS:
            raise ConfigError(f"There is no network {self.network!r}.{nearest(str(self.network), _NETWORKS)}")
        if self.horizon is None:
            raise ConfigError("Drivers arrive or do not within a time: give routing a horizon.")

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The roads, L of them."""
        closed = ("B", "C") if self.network == "braess" and not self.shortcut else ()
        return tuple(link for link in _NETWORKS[self.network] if (link.start, link.end) != closed)

    @cached_property
    def _most(self) -> list[int]:
        """The most steps that are left on each link after it was entered."""
        slowest = [link.free * (1 + link.crowding) / self.dt for link in self.links]
        return [max(0, int(x + 1 - 2 * _WHOLE) if self.rounding == "fair" else int(x + _WHOLE)) for x in slowest]

    @cached_property
    def _layout(self) -> _Layout:
        links, goal = self.links, len(self.links) - 1
        # The link of the goal is never waited on: entering it is arriving.
        first = [0]
        for most in self._most[:goal]:
            first.append(first[-1] + max(1, most))
        arrived = first[-1]
        rows = []
        for i, link in enumerate(links[:goal]):
            ways = [m for m, other in enumerate(links) if other.start == link.end]
            for wait in range(first[i + 1] - first[i]):
                here = first[i] + wait
                if wait:
                    rows.append((i, wait, [(i, here - 1, False)]))
                else:
                    rows.append((i, 0, [(m, first[m], m != goal) for m in ways]))
        rows.append((goal, 0, [(goal, arrived, False)]))
        width = max(len(ways) for _, _, ways in rows)
        filled = [[*ways, *[ways[0]] * (width - len(ways))] for _, _, ways in rows]
        return _Layout(
            torch.tensor([i for i, _, _ in rows]),
            torch.tensor([wait for _, wait, _ in rows]),
            torch.tensor([[m for m, _, _ in ways] for ways in filled]),
            torch.tensor([[there for _, there, _ in ways] for ways in filled]),
            torch.tensor([[enters for _, _, enters in ways] for ways in filled]),
            torch.tensor([[a < len(ways) for a in range(width)] for _, _, ways in rows]),
        )

    @property
    def num_states(self) -> int:
        return len(self._layout.link)

    @property
    def num_actions(self) -> int:
        return int(self._layout.onto.shape[1])

    def initial(self) -> Tensor:
        mu = torch.zeros(self.num_states, dtype=torch.float64)
        mu[0] = 1
        return mu

    def allowed(self) -> Tensor:
        return self._layout.legal

    def volumes(self, joint: Tensor) -> Tensor:
        """Share of drivers on each link right after they moved, [*b, G, L], of what they do [*b, G, S, A]."""
        onto = self._layout.onto.to(joint.device).flatten()
        return joint.new_zeros((*joint.shape[:-2], len(self.links))).index_add(-1, onto, joint.flatten(-2))

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        joint = crowd.joint
        layout = _Layout(*(x.to(joint.device) for x in self._layout))
        free = joint.new_tensor([link.free for link in self.links])
        crowding = joint.new_tensor([link.crowding for link in self.links])
        steps = free * (1 + crowding * self.volumes(joint)) / self.dt  # [*b, G, L]
        # The step in which one enters counts as one of them.
        whole = (steps + _WHOLE).floor()
        left = (whole.long() - 1).clamp(min=0)[..., layout.onto] * layout.enters
        if self.rounding == "down":
            return Outcomes((layout.base + left).unsqueeze(-1), torch.ones_like(left, dtype=joint.dtype).unsqueeze(-1))
        # A link that takes less than a step takes one.
        more = torch.where(steps >= 1, (steps - whole).clamp(min=0), 0.0)[..., layout.onto] * layout.enters
        later = torch.where(more > 0, left + 1, left)
        return Outcomes(layout.base.unsqueeze(-1) + torch.stack([left, later], -1), torch.stack([1 - more, more], -1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        on_the_way = self._layout.onto != len(self.links) - 1
        return -self.dt * on_the_way.to(crowd.mu)

    def terminal(self, crowd: Crowd) -> Tensor:
        on_the_way = self._layout.link != len(self.links) - 1
        return (-self.dt * on_the_way.to(crowd.mu)).expand(crowd.mu.shape)

    def coordinates(self) -> Tensor:
        link = torch.nn.functional.one_hot(self._layout.link, len(self.links)).float()
        wait = self._layout.wait / max(1, int(self._layout.wait.max()))
        return torch.cat([link, wait.unsqueeze(-1)], -1)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """`arrived`: the share that has; `waiting`: the share that is held on a link."""
        arrived = mu[..., 0, -1]
        held = (mu[..., 0, :] * (self._layout.wait > 0).to(mu)).sum(-1)
        return {"arrived": arrived, "waiting": held}

    @property
    def arrival(self) -> float:
        """When everyone arrives at the equilibrium of small steps: Wardrop's, for all the drivers set out at once."""
        if self.network == "pigou":
            return 2.0
        return 3.75 if self.shortcut else 3.5

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """The share of drivers on each link and at the goal, one bar each."""
        share = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0, 0].cpu()
        load = torch.zeros(len(self.links), dtype=share.dtype).index_add(0, self._layout.link, share)
        return picture.bars(load, picture.palette(len(load)))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        # At a temperature nobody knows it in closed form, and the fixed point takes minutes.
        assert self.horizon is not None
        if temperature > 0 or self.arrival > self.dt * (self.horizon - 1):
            return {}
        source = (
            "Wardrop equilibrium, small steps of time and infinitely many drivers (Braess 1968; Cabannes et al. 2022)"
        )
        return {"reward": Known(-self.arrival / self.horizon, source, "equilibrium")}


parallel_env, env = faces(Routing)
