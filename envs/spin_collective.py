r"""Inference units on a graph: each sees what its neighbours do and would rather agree with them.

$$ r_i = \sigma_i \Big( w \sum_{j \in N(i)} \sigma_j + h \Big), \qquad \sigma_i = \pm 1 $$

which are the log-preferences of what it sees, so that acting by expected free energy at precision gamma = 1/T is

$$ P(\sigma_i = +1) = \mathrm{logistic}\, \tfrac{2}{T} \big( h + w \textstyle\sum_j \sigma_j \big) $$

and at T = 1 a sample of its posterior of a hidden cause that each neighbour tells of with reliability logistic(2 w): a
heat bath (`mfmarl.inference.collective`; Heins et al. 2022, arXiv 2208.00288). The rewards and moves are those of the
`ising` environment at lambda = 2 w; here a spin is shown outcomes of a generative model, and given that model.

**Who acts when is part of it.** One at a time (`sequential`), or colour by colour (`checkerboard`), the collective obeys
Boltzmann's law at T, whatever the graph; all at once (`synchronous`) Peretto's, in which neighbours answer the last
step; `partial` lies between: the smaller the share, the nearer to Boltzmann.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from mfmarl.envs.ising import Ising, State
from mfmarl.errors import ConfigError
from mfmarl.inference import collective
from mfmarl.inference.model import GenerativeModel
from mfmarl.options import Bounds, Count, Seed, Share
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.graph import Graph
from mfmarl.population.known import Known
from mfmarl.population.named_graph import GraphName
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech.exact import enumeration

_DISCRETE = 5000  # outcomes up to which they are shown as one number
_MOST = 512  # neighbours: beyond, somebody's model would hold millions of numbers
_ENUMERATED = 16  # agents whose law is summed over all states
_KERNEL = 8  # agents whose law is that of a kernel
_TURNS = 1e-9  # chance that the neighbours are found anyhow: an observation is never impossible


@register("spin_collective")
@dataclass(frozen=True)
class SpinCollective(PopulationEnv):
    """Inference units that see their neighbours' actions and prefer to agree: their law is Boltzmann's, or Peretto's."""

    num_agents: Annotated[int, Bounds(1, 1 << 31)] = 100
    """Number of agents."""
    graph: GraphName | Graph = "torus"
    """Who sees whom; in Python also a `Graph` or a networkx graph of num_agents nodes."""
    shape: tuple[Count, ...] = ()
    """Sides of the torus, such as 20,20; empty: from num_agents and dimension."""
    dimension: Annotated[int, Bounds(1, 16)] = 2
    """Axes of a torus without a shape."""
    degree: Annotated[int, Bounds(1, 1 << 20)] = 4
    """Neighbours of each on the random regular graph; their mean on the small world."""
    rewiring: Share = 0.1
    """Share of links rewired on the small world."""
    graph_seed: Seed = 0
    """Which of the random graphs."""
    coupling: Annotated[float, Bounds(-1e6, 1e6)] = 0.3
    """w, nats per agreeing neighbour; on the complete graph of all neighbours together; negative: rather to differ."""
    reliability: Annotated[float, Bounds(0.0, 1.0, open_low=True, open_high=True)] | None = None
    """Instead of the coupling, how often a neighbour's action is right: w = logit(reliability)/2."""
    bias: Annotated[float, Bounds(-1e6, 1e6)] = 0.0
    """h, nats for acting +1."""
    order: Literal["sequential", "checkerboard", "synchronous", "partial"] = "sequential"
    """Who acts in a step: one random agent, the graph's colours in turn, all, or each with `participation`."""
    participation: Annotated[float, Bounds(0, 1, open_low=True)] = 0.5
    """Probability that an agent acts in a step, for order `partial`."""
    start: Literal["random", "ordered"] = "random"
    """First actions: independent and uniform, or all +1."""
    horizon: Count | None = None
    """Steps of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if self.widest > _MOST:
            raise ConfigError(
                f"An agent with {self.widest} neighbours would have a model of {2 * self.widest + 1} states for them, and "
                f"{_MOST} is the most: take a sparser graph, or ising with mean_field agents for such crowds."
            )

    @cached_property
    def spins(self) -> Ising:
        """The same moves and rewards without a model."""
        spins = Ising(
            num_agents=self.num_agents, graph=self.graph, shape=self.shape, dimension=self.dimension, degree=self.degree,
            rewiring=self.rewiring, graph_seed=self.graph_seed, coupling=2 * self.w, field=self.bias, order=self.order,
            participation=self.participation, start=self.start, horizon=self.horizon,
        )  # fmt: skip
        return spins if self.here is None else spins.divided(self.ranks, self.here, self.near)

    @property
    def w(self) -> float:
        """The coupling, said or by reliability."""
        return self.coupling if self.reliability is None else float(collective.coupling_of(self.reliability))

    @property
    def strength(self) -> float:
        """Nats for each neighbour that agrees more."""
        return self.w / max(self.num_agents - 1, 1) if self.spins.links is None else self.w

    @cached_property
    def widest(self) -> int:
        """K, the most neighbours of anybody."""
        links = self.spins.links
        return self.num_agents - 1 if links is None else links.max_degree

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Of the sum of the neighbours' actions, -K..K; of one's own action times that; of one's own action."""
        return 2 * self.widest + 1, 2 * self.widest + 1, 2

    @property
    def aec_order(self) -> Literal["simultaneous", "sequential"]:  # type: ignore[override]
        return self.spins.aec_order

    def spec(self) -> Spec:
        sizes = self.outcomes
        discrete = math.prod(sizes) <= _DISCRETE
        return Spec(
            num_agents=self.num_agents,
            observation_space=Discrete(math.prod(sizes)) if discrete else Box(0.0, 1.0, (sum(sizes),), np.float32),
            action_space=Discrete(2),
            horizon=self.horizon,
            graph=self.spins.links,
            discount=0.0,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        return self.spins.reset(ids, key)

    def own_state(self) -> tuple[str, ...]:
        return self.spins.own_state()

    def acting(self, state: State) -> Tensor | None:
        return self.spins.acting(state)

    def standing(self, state: State) -> Tensor:
        return self.spins.standing(state)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        return self.spins.step(state, action, ids, key)

    def observe(self, state: State) -> Tensor:
        own = 2 * state.spin.long() - 1
        agreement = self.spins.agreement(state.spin).long()
        k, (a, b, c) = self.widest, self.outcomes
        seen = torch.stack([own * agreement + k, agreement + k, state.spin.long()], -1)
        if a * b * c <= _DISCRETE:
            return (seen[..., 0] * b + seen[..., 1]) * c + seen[..., 2]
        one_hot = torch.nn.functional.one_hot
        return torch.cat([one_hot(seen[..., m], size) for m, size in enumerate((a, b, c))], -1).to(torch.float32)

    def generative_model(self, group: int = 0) -> GenerativeModel:
        """What one agent takes its world to be: neighbours who stay as they are, and an action that is its own.

        Its neighbours' sum tells their state, and its product with the own action, `agreement`, is what is preferred: an
        action decides it for as long as the neighbours stand. The sum is all that matters of them, so that the model has
        the same form for agents of any number of neighbours.
        """
        k = self.widest
        sums = torch.arange(-k, k + 1, dtype=torch.float64)
        seen = torch.eye(2 * k + 1, dtype=torch.float64)
        own = torch.eye(2, dtype=torch.float64)
        agreement = torch.stack([seen.flip(0), seen], -1)  # of -1 and +1: [outcome, sum, own]
        stay = (1 - _TURNS) * seen + _TURNS / (2 * k + 1)
        set_to = own.unsqueeze(1).expand(2, 2, 2)  # [next, now, action]
        return GenerativeModel(
            A=(seen, agreement, own),
            B=(stay, set_to.contiguous()),
            C=(torch.zeros_like(sums), self.strength * sums, torch.tensor([-self.bias, self.bias]).double()),
            D=(torch.full_like(sums, 1 / len(sums)), torch.full((2,), 0.5).double()),
            A_factors=((0,), (0, 1), (1,)),
            B_factors=((0,), (1,)),
            B_controls=((), (0,)),
            modalities=("neighbours", "agreement", "own"),
            factors=("neighbours", "own"),
        )

    def measure(self, state: State) -> dict[str, Tensor]:
        """|m|, m, the energy -sum_<ij> w s_i s_j / N - h m, and the staggered |m| of an even torus."""
        return self.spins.measure(state)

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The lattice, or the actions sorted."""
        return self.spins.render(state, copy)

    # ----------------------------------------------------------------------------------- what theory knows

    def couplings(self) -> tuple[Tensor, Tensor]:
        """w [N, N] and h [N] of `mfmarl.inference.collective`."""
        n, links = self.num_agents, self.spins.links
        w = torch.zeros(n, n, dtype=torch.float64)
        if links is None:
            w += self.strength
            w.fill_diagonal_(0.0)
        else:
            source, target = links.links().unbind(-1)
            w[source, target] = self.strength
        return w, torch.full((n,), self.bias, dtype=torch.float64)

    def law(self, temperature: float) -> Tensor | None:
        """The stationary law [2^N] of a small collective at temperature 1/gamma; None of a large one."""
        (w, h), n = self.couplings(), self.num_agents
        if torch.equal(w, w.mT) and self.order != "partial":
            known = collective.peretto if self.order == "synchronous" else collective.boltzmann
            return known(w, h, 1 / temperature) if n <= _ENUMERATED else None
        if n > _KERNEL or self.order == "checkerboard":  # directed, a checkerboard's law depends on whose turn it is
            return None
        up = collective.choices(w, h, 1 / temperature)
        if self.order == "sequential":
            return collective.stationary(collective.random_scan(up))
        return collective.stationary(collective.parallel(up, self.participation if self.order == "partial" else 1.0))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Exact at this N: of up to 16 agents by enumeration, on the complete graph of any number; else what is known of
        heat baths (`ising`)."""
        if temperature <= 0:
            return self.spins.reference(0.0)
        n = self.num_agents
        name = {"synchronous": "Peretto's law", "partial": "exact kernel"}.get(self.order, "Boltzmann's law")
        if n <= _ENUMERATED and (law := self.law(temperature)) is not None:
            w, _ = self.couplings()
            states = enumeration.spins(n).states()
            m = states.mean(-1)
            bonds = ((states @ w.mT) * states).sum(-1) / n
            source = f"{name}, all 2^{n} states"
            found = {"absolute": m.abs(), "m": m, "bonds": bonds}
            absolute, mean, bond = (float(law @ x) for x in found.values())
        elif self.spins.links is None and self.order != "partial":
            mean, absolute, square = collective.complete_moments(
                n, self.w / temperature, self.bias / temperature, self.order == "synchronous"
            )
            bond = self.strength * (n * square - 1)
            source = f"{name} of the complete graph, summed over the magnetisations of N = {n}"
        elif self.order in ("sequential", "checkerboard"):
            return self.spins.reference(temperature)
        else:
            return {}
        values = {
            "magnetisation": absolute,
            "magnetisation/signed": mean,
            "energy": -bond / 2 - self.bias * mean,
            "reward": bond + self.bias * mean,
        }
        return {key: Known(value, source) for key, value in values.items()}


parallel_env, env = faces(SpinCollective)
