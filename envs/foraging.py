r"""Foragers who look for a rich patch among several sites: it is hidden, it moves, and others may know where it is.

$$ P(\text{food} \mid \text{site } l) = f(x_l) \cdot \begin{cases} p_1 & l \text{ is the rich patch} \\ p_0 & \text{else} \end{cases},
   \qquad f(x) = 1, \ \min(1, c/x) \ \text{(congestion)}, \ \min(1, x/c) \ \text{(cooperation)} $$

with x_l the share of all that are at the site: food for a share c is divided among more, or it takes a share c to get it.
Every step the patch moves with a probability to another site. Food tells a little of where it is; a lookout, where
nothing is to be eaten, tells more: it shows the patch with probability `accuracy`, else any other site. So a step at the
lookout is worth its hunger only for what is learned, and to go where the others go is worth it if they know.
"""

from __future__ import annotations

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

Company = Literal["none", "congestion", "cooperation"]
_EXACT = 512  # others up to whom the yield is averaged over their numbers; beyond, their mean is as good


class State(NamedTuple):
    patch: Tensor  # [E] int64, the rich site
    place: Tensor  # [E, N] uint8, where everyone is: a site, or the lookout (the last number)
    food: Tensor  # [E, N] bool, who has eaten
    signal: Tensor  # [E, N] uint8, which site was shown; `sites` where none was


@register("foraging")
@dataclass(frozen=True)
class Foraging(PopulationEnv):
    """Foragers who look for the rich one of several sites, each with its own glimpses, together or in each other's way."""

    num_agents: Annotated[int, Bounds(1, 1 << 31)] = 100
    """Number of foragers."""
    sites: Annotated[int, Bounds(2, 32)] = 4
    """Sites, one of which is the rich patch."""
    rich: Annotated[float, Bounds(0, 1)] = 0.9
    """p_1, the chance of food at the patch."""
    poor: Annotated[float, Bounds(0, 1)] = 0.1
    """p_0, the chance elsewhere."""
    company: Company = "none"
    """What others at the same site do: nothing, divide the food, or help to get it."""
    capacity: Annotated[float, Bounds(0, 1, open_low=True)] = 0.5
    """c, the share of all that a site feeds (congestion), or that it takes (cooperation)."""
    move: Annotated[float, Bounds(0, 1)] = 0.05
    """The chance that the patch moves in a step."""
    lookout: bool = True
    """Whether glimpses are had at a lookout only, one more place to go; false: everywhere, in every step."""
    accuracy: Annotated[float, Bounds(0, 1)] = 0.8
    """The chance that a glimpse is of the patch."""
    horizon: Count | None = 100
    """Steps of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")
        if not 2 <= self.sites <= 32:
            raise ConfigError(f"There must be from 2 to 32 sites, not {self.sites}.")
        for name in ("rich", "poor", "move", "accuracy"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name} must be a probability, not {value:g}.")
        if self.poor > self.rich:
            raise ConfigError(
                f"A poor site (poor = {self.poor:g}) must not feed better than the rich one ({self.rich:g})."
            )
        if self.company not in ("none", "congestion", "cooperation"):
            raise ConfigError(
                f"company cannot be {self.company!r}.{nearest(str(self.company), ('none', 'congestion', 'cooperation'))}"
            )
        if not 0 < self.capacity <= 1:
            raise ConfigError(f"capacity must be a share above 0 and at most 1, not {self.capacity:g}.")

    @property
    def places(self) -> int:
        """L: the sites, and the lookout if there is one."""
        return self.sites + self.lookout

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        # What one sees: where one is, whether there was food, and which site was shown (or none).
        seen = Discrete(self.places * 2 * (self.sites + 1))
        return Spec(self.num_agents, seen, Discrete(self.places), self.horizon, discount=0.9)

    def reset(self, ids: Tensor, key: Key) -> State:
        patch = random.integers(key.fold("patch"), ids[:, 0] >> 32, self.sites)
        place = random.integers(key.fold("place"), ids, self.places)
        return self._found(patch, place, ids, key)

    def _found(self, patch: Tensor, place: Tensor, ids: Tensor, key: Key) -> State:
        """What everyone finds at its place [E, N] while the patch is there [E]."""
        here = place == patch.unsqueeze(-1)
        counts = self.ranks.sum(torch.stack([(place == site).sum(1) for site in range(self.places)], 1))
        chance = torch.where(here, self.rich, self.poor) * self._help(counts / self.num_agents).float().gather(1, place)
        food = (random.uniform(key.fold("food"), ids) < chance) & (place < self.sites)
        # Another site than the patch: 1..K-1 further round.
        other = (patch.unsqueeze(-1) + 1 + random.integers(key.fold("other"), ids, self.sites - 1)) % self.sites
        right = random.uniform(key.fold("right"), ids) < self.accuracy
        signal = torch.where(right, patch.unsqueeze(-1), other)
        if self.lookout:
            signal = torch.where(place == self.sites, signal, self.sites)
        return State(patch, place.to(torch.uint8), food, signal.to(torch.uint8))

    def _share(self, which: Tensor) -> Tensor:
        """The share of all agents [E] of whom it is true."""
        return (self.ranks.sum(which.sum(1)).double() / self.num_agents).float()

    def _help(self, share: Tensor) -> Tensor:
        """f of the share at a place: [...]."""
        if self.company == "congestion":
            return (self.capacity / share.clamp(min=1e-12)).clamp(max=1)
        if self.company == "cooperation":
            return (share / self.capacity).clamp(max=1)
        return torch.ones_like(share)

    def own_state(self) -> tuple[str, ...]:
        return ("place", "food", "signal")

    def standing(self, state: State) -> Tensor:
        return state.place.long()

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        # The patch moves, and then everyone is where it has gone.
        names = ids[:, 0] >> 32
        moves = random.uniform(key.fold("move"), names) < self.move
        other = (state.patch + 1 + random.integers(key.fold("where"), names, self.sites - 1)) % self.sites
        state = self._found(torch.where(moves, other, state.patch), action, ids, key)
        return state, state.food.float()

    def observe(self, state: State) -> Tensor:
        return (state.place.long() * 2 + state.food) * (self.sites + 1) + state.signal

    def measure(self, state: State) -> dict[str, Tensor]:
        """`at_patch`, `at_lookout`: the shares that are there; `food`: the share that has eaten."""
        return {
            "at_patch": self._share(state.place == state.patch.unsqueeze(-1)),
            "at_lookout": self._share(state.place == self.sites),
            "food": self._share(state.food),
        }

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The share at every place, one bar each, and a thin bar over the patch's."""
        share = torch.stack([(state.place[copy] == site).float().mean() for site in range(self.places)])
        drawn = picture.bars(share, picture.palette(self.places))
        width = drawn.shape[1]
        patch = int(state.patch[copy])
        drawn[:6, patch * width // self.places : (patch + 1) * width // self.places] = 0
        return drawn

    # ----------------------------------------------------------------------- what an agent may take it to be

    def crowd_model(self, theta: Tensor, group: int = 0) -> GenerativeModel:
        """The model of a forager who believes in a crowd of shares theta [K, L], the last factor.

        Exact for the patch, the glimpses and the food; the crowd is believed to stay as it is, mostly, whatever it knows.
        """
        theta, sites, places = theta.double(), self.sites, self.places
        help_ = torch.stack([self._expected_help(theta[:, place]) for place in range(places)])  # [L, K]
        base = torch.full((sites, places), self.poor, dtype=torch.float64)
        base[torch.arange(sites), torch.arange(sites)] = self.rich
        base[:, sites:] = 0
        eaten = base.unsqueeze(-1) * help_  # [patch, place, crowd]
        wrong = (1 - self.accuracy) / (sites - 1)
        shown = torch.full((sites, sites), wrong, dtype=torch.float64).fill_diagonal_(self.accuracy)
        glimpse = torch.zeros(sites + 1, sites, places, dtype=torch.float64)
        if self.lookout:
            glimpse[sites, :, :sites] = 1
            glimpse[:sites, :, sites] = shown
        else:
            glimpse[:sites] = shown.unsqueeze(-1)
        stays = torch.full((sites, sites), self.move / (sites - 1), dtype=torch.float64).fill_diagonal_(1 - self.move)
        own = crowd.chooser(places)
        food = torch.stack([1 - eaten, eaten])
        parents: tuple[int, ...] = (0, 1, 2)
        if self.company == "none":
            food, parents = food[..., 0], (0, 1)  # the crowd does nothing to it
        return GenerativeModel(
            A=(*own.A, food, glimpse),
            B=(stays, *own.B, crowd.persistence(theta)),
            C=(
                torch.zeros(places, dtype=torch.float64),
                torch.tensor([0.0, 1.0], dtype=torch.float64),
                torch.zeros(sites + 1, dtype=torch.float64),
            ),
            D=(
                torch.full((sites,), 1 / sites, dtype=torch.float64),
                *own.D,
                torch.full((len(theta),), 1 / len(theta), dtype=torch.float64),
            ),
            A_factors=((1,), parents, (0, 1)),
            B_controls=((), (0,), ()),
            controls=(places,),
            modalities=("place", "food", "glimpse"),
            factors=("patch", "place", "population"),
        )

    def _expected_help(self, share: Tensor) -> Tensor:
        """E[f((1 + B) / N)] [K] for me among others who each come with these probabilities [K]; their mean where they are many."""
        n = self.num_agents
        if self.company == "none" or n > _EXACT:
            return self._help((1 + (n - 1) * share) / n)
        number = np.arange(n)
        p = share.numpy()[:, None]
        law = np.exp(special.gammaln(n) - special.gammaln(number + 1) - special.gammaln(n - number)) * (
            p**number * (1 - p) ** (n - 1 - number)
        )
        return torch.as_tensor(law @ self._help(torch.as_tensor((1 + number) / n)).numpy())

    def generative_model(self, group: int = 0) -> GenerativeModel:
        points = 1 if self.company == "none" else 2 * self.places
        return self.crowd_model(crowd.simplex(self.places, points), group)

    # ----------------------------------------------------------------------------------- what theory knows

    def informed_reward(self) -> float:
        """The most food per forager and step of a crowd that knows where the patch is."""
        if self.company != "congestion":
            return self.rich
        there = self.capacity
        elsewhere = min(1 - there, self.capacity * (self.sites - 1))
        return self.rich * there + self.poor * elsewhere

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Bounds, which a crowd that knew the patch would reach."""
        source = "a crowd that knows where the patch is, divided as is best"
        return {
            "reward": Known(self.informed_reward(), source, "bound"),
            "food": Known(self.informed_reward(), source, "bound"),
        }


parallel_env, env = faces(Foraging)
