r"""Spins that are paid for agreeing with their neighbours: the Ising and Potts models as games.

$$ r_i = h\, a_i + \tfrac{\lambda}{2}\, a_i \sum_{k \in N(i)} a_k \quad (q = 2,\ a = \pm 1), \qquad
   r_i = h\, \delta(a_i, q-1) + \tfrac{\lambda}{2} \sum_{k \in N(i)} \delta(a_i, a_k) \quad (q > 2) $$

(Yang et al. 2018, arXiv 1802.05438), on the new configuration and only for those who moved; on the complete
graph lambda/(N-1) stands for lambda. Moving one at a time with probability ~ exp(r/tau) is the heat bath of
H = -(lambda/2) sum_<ij> a_i a_j - h sum_i a_i at temperature tau, that is T = 2 tau/lambda in units of the coupling
J = lambda/2. So the square lattice orders below tau_c = lambda/ln(1 + sqrt 2) = 1.134593 lambda (Onsager 1944), and
Potts spins below lambda/(2 ln(1 + sqrt q)). Per spin, the stationary reward is twice the bonds' energy: -lambda u(T).

**Who moves when is part of the game.** `checkerboard` and `sequential` have this stationary law. When all move at
once (`synchronous`), the neighbours' last actions tell of their next ones only through the mean, so learners settle
at the mean-field law m = tanh((lambda z m + 2 h)/(2 tau)) with z neighbours each: tau_c = z lambda/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, nearest
from mfmarl.options import Bounds, Count, Seed, Share
from mfmarl.population import compiled, picture
from mfmarl.population.environment import PopulationEnv, copy_ids
from mfmarl.population.graph import Graph
from mfmarl.population.known import Known
from mfmarl.population.named_graph import GraphName, named_graph, torus_sides
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech.exact import ising as ising_exact


class State(NamedTuple):
    spin: Tensor  # [E, N] int8, action numbers
    turn: Tensor  # whose: a colour [E] (checkerboard), an agent [E] (sequential), agents [E, N] bool (partial)


@register("ising")
@dataclass(frozen=True)
class Ising(PopulationEnv):
    """Ising and Potts spins, paid for agreeing with their neighbours, on any graph and in any order of moves."""

    num_agents: Count = 400
    """Number of spins. On a torus: the sites of a nearly square (cubic, ...) lattice."""
    graph: GraphName | Graph = "torus"
    """Who is whose neighbour; in Python also a `Graph` or a networkx graph of num_agents nodes."""
    shape: tuple[Count, ...] = ()
    """Sides of the torus, such as 20,20; empty: from num_agents and dimension."""
    dimension: Annotated[int, Bounds(1, 16)] = 2
    """Axes of a torus without a shape."""
    degree: Annotated[int, Bounds(1, 1 << 20)] = 4
    """Neighbours of each spin on the random regular graph; their mean on the small world."""
    rewiring: Share = 0.1
    """Share of links rewired on the small world."""
    graph_seed: Seed = 0
    """Which of the random graphs."""
    coupling: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    """lambda; negative: paid for differing."""
    field: Annotated[float, Bounds(-1e6, 1e6)] = 0.0
    """h, paid for the last state (up)."""
    states: Annotated[int, Bounds(2, 127)] = 2
    """q: 2 for Ising spins, -1 and +1 as actions 0 and 1; more for Potts."""
    order: Literal["checkerboard", "sequential", "synchronous", "partial"] = "checkerboard"
    """Who moves in a step: the graph's colours in turn, one random agent, all, or each with `participation`."""
    participation: Annotated[float, Bounds(0, 1, open_low=True)] = 0.5
    """Probability that an agent moves in a step, for order `partial`."""
    start: Literal["random", "ordered"] = "random"
    """First configuration: independent and uniform, or all in the last state."""
    sight: Literal["own", "neighbours", "nothing"] = "own"
    """What a spin sees: itself, itself and its neighbours' mean, or a constant. What they do is the field's business."""
    horizon: Count | None = None
    """Steps of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if hasattr(self.graph, "nodes"):
            object.__setattr__(self, "graph", Graph.from_networkx(self.graph))
        choices = {"order": ("checkerboard", "sequential", "synchronous", "partial"), "start": ("random", "ordered")}
        for name, known in {**choices, "sight": ("own", "neighbours", "nothing")}.items():
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{name} cannot be {value!r}.{nearest(str(value), known)}")
        if self.num_agents < 1:
            raise ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")
        if not 2 <= self.states <= 127:
            raise ConfigError(f"states must be from 2 to 127, not {self.states}.")
        if not 0 < self.participation <= 1:
            raise ConfigError(f"participation must be above 0 and at most 1, not {self.participation:g}.")
        if not (math.isfinite(self.coupling) and math.isfinite(self.field)):
            raise ConfigError(f"coupling and field must be finite, not {self.coupling:g} and {self.field:g}.")
        if self.shape and self.graph != "torus":
            raise ConfigError(f"A shape is for graph='torus', not {self.graph!r}.")
        _ = self.links  # a graph that cannot be is refused here

    @property
    def aec_order(self) -> Literal["simultaneous", "sequential"]:  # type: ignore[override]
        """Simultaneous moves played one by one are another game (a sweep of heat baths); the other orders say who moves."""
        return "sequential" if self.order == "synchronous" else "simultaneous"

    @cached_property
    def sides(self) -> tuple[int, ...]:
        """The torus's shape; empty on other graphs."""
        return torus_sides(self.num_agents, self.dimension, self.shape) if self.graph == "torus" else ()

    @cached_property
    def links(self) -> Graph | None:
        """The graph; None for the complete one, whose sums are the total less oneself."""
        if isinstance(self.graph, str):
            return named_graph(self.graph, self.num_agents, self.sides, self.degree, self.rewiring, self.graph_seed)
        if self.graph.num_agents != self.num_agents:
            raise ConfigError(f"The graph has {self.graph.num_agents} nodes: give num_agents={self.graph.num_agents}.")
        return self.graph

    @cached_property
    def colours(self) -> Tensor:
        """A proper colouring [N], on the CPU: neighbours never move together in checkerboard order."""
        return torch.arange(self.num_agents) if self.links is None else self.links.colouring()

    @cached_property
    def _placed(self) -> dict[torch.device, tuple[Graph | None, Tensor, int]]:
        return {}

    def _on(self, device: torch.device) -> tuple[Graph | None, Tensor, int]:
        """Graph, colours and number of colours, moved to the device once."""
        if device not in self._placed:
            colours = self.colours if self.order == "checkerboard" else torch.zeros(0, dtype=torch.long)
            many = int(colours.max()) + 1 if colours.numel() else 0
            colours = self.mine(colours) if many else colours
            graph = self.links if self.near is None else self.near
            self._placed[device] = None if graph is None else graph.to(device), colours.to(device), many
        return self._placed[device]

    def spec(self) -> Spec:
        columns = 1 if self.states == 2 else self.states
        width = {"own": columns, "neighbours": 2 * columns, "nothing": 1}[self.sight]
        return Spec(
            num_agents=self.num_agents,
            observation_space=Box(-1.0, 1.0, (width,), np.float32),
            action_space=Discrete(self.states),
            horizon=self.horizon,
            graph=self.links,
            discount=0.0,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        if self.start == "ordered":
            spin = torch.full(ids.shape, self.states - 1, dtype=torch.int8, device=ids.device)
        else:
            spin = random.integers(key.fold("spins"), ids, self.states).to(torch.int8)
        return State(spin, self._turn(torch.full_like(ids[:, 0], -1), ids, key))

    def _turn(self, last: Tensor, ids: Tensor, key: Key) -> Tensor:
        if self.order == "checkerboard":
            return (last + 1) % self._on(ids.device)[2]
        if self.order == "sequential":
            return random.integers(key.fold("turn"), copy_ids(ids), self.num_agents)
        if self.order == "partial":
            return random.uniform(key.fold("turn"), ids) < self.participation
        return last

    def acting(self, state: State) -> Tensor | None:
        if self.order == "checkerboard":
            return self._on(state.turn.device)[1] == state.turn.unsqueeze(-1)
        if self.order == "sequential":
            return self.mine(torch.arange(self.num_agents, device=state.turn.device)) == state.turn.unsqueeze(-1)
        return state.turn if self.order == "partial" else None

    def own_state(self) -> tuple[str, ...]:
        return ("spin", "turn") if self.order == "partial" else ("spin",)

    def standing(self, state: State) -> Tensor:
        return state.spin.long()

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        spin = action.to(torch.int8)
        strength = self.coupling / 2 / (max(self.num_agents - 1, 1) if self.links is None else 1)
        reward = self.agreement(spin).to(torch.float32).mul_(strength)
        if self.field:
            reward += self.field * self._features(spin)[..., -1]
        acting = self.acting(state)
        if acting is not None:
            reward *= acting
        return State(spin, self._turn(state.turn, ids, key)), reward

    def observe(self, state: State) -> Tensor:
        if self.sight == "nothing":
            return torch.ones((*state.spin.shape, 1), device=state.spin.device)
        own = self._features(state.spin)
        if self.sight == "own":
            return own.to(torch.float32)
        if self.links is None:
            count = torch.tensor(max(self.num_agents - 1, 1), device=own.device)
        else:
            count = self._on(own.device)[0].degree.clamp(min=1)  # type: ignore[union-attr]
        return torch.cat([own, self._sum(own) / count.view(-1, 1)], dim=-1)

    def agreement(self, spin: Tensor) -> Tensor:
        """a_i sum_k a_k, or for Potts the number of neighbours in the same state: whole numbers [E, N]."""
        graph = self._on(spin.device)[0]
        if graph is not None and compiled.chosen(len(spin) * self.num_agents, spin.device):
            same = compiled.alike(spin, graph)
            return same if self.states > 2 else 2 * same.to(torch.int32) - graph.degree
        if self.states == 2:
            sign = 2 * spin - 1
            return sign * self._sum(sign)
        here = [(spin == k).to(torch.int8) for k in range(self.states)]
        return torch.stack([own * self._sum(own) for own in here]).sum(0, dtype=torch.int32)

    def _sum(self, x: Tensor) -> Tensor:
        graph = self._on(x.device)[0]
        if graph is None:
            return (self.ranks.sum(x.sum(1, keepdim=True, dtype=torch.int32)) - x).to(torch.int32)
        # int8 holds sums over up to 127 neighbours.
        return graph.neighbour_sum(x if self._widest < 128 else x.to(torch.int32))

    @cached_property
    def _widest(self) -> int:
        return 0 if self.links is None else int(self.links.degree.max())

    def _features(self, spin: Tensor) -> Tensor:
        """Spins as columns [E, N, 1 or q] int8: -1 and +1, or one-hot."""
        if self.states == 2:
            return (2 * spin - 1).unsqueeze(-1)
        return (spin.unsqueeze(-1) == torch.arange(self.states, device=spin.device)).to(torch.int8)

    @cached_property
    def _mean_degree(self) -> float:
        """Neighbours per spin, weighted: 1 on the complete graph, where each of N - 1 counts 1/(N - 1)."""
        return float(self.num_agents > 1) if self.links is None else float(self.links.degree.double().mean())

    @property
    def _bipartite(self) -> bool:
        return bool(self.sides) and all(side % 2 == 0 for side in self.sides)

    def measure(self, state: State) -> dict[str, Tensor]:
        """|m| (Potts: (q max_k n_k/N - 1)/(q - 1)), m, the energy H/N, and the staggered |m| of an even torus."""
        spin, n, q = state.spin, self.num_agents, self.states
        features = self._features(spin)
        total = self.ranks.sum
        counts = total(features.sum(1, dtype=torch.int64)).to(torch.float64) / n
        bonds = total(self.agreement(spin).sum(1, dtype=torch.int64)).to(torch.float64)
        strength = self.coupling / 2 / (max(n - 1, 1) if self.links is None else 1)
        found = {"energy": -strength * bonds / 2 / n - self.field * counts[:, -1]}
        if q > 2:
            found["magnetisation"] = (q * counts.amax(-1) - 1) / (q - 1)
        else:
            found["magnetisation"], found["magnetisation/signed"] = counts[:, 0].abs(), counts[:, 0]
            if self._bipartite:
                parity = 1 - 2 * self._parity.to(spin.device)
                odd = total((features[..., 0] * parity).sum(1, dtype=torch.int64))
                found["staggered"] = odd.abs().to(torch.float64) / n
        return {name: value.to(torch.float32) for name, value in found.items()}

    @cached_property
    def _parity(self) -> Tensor:
        assert self.links is not None
        return self.mine(self.links.colouring().to(torch.int8))

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The lattice (of three or more dimensions: its first layer); without one, the spins sorted by state."""
        spin, colours = state.spin[copy].cpu(), picture.palette(self.states)
        if not self.sides:
            return picture.crowd(spin, colours)
        *_, height, width = (1, *self.sides)
        layer = spin[: height * width].view(height, width)
        return picture.mosaic(layer.expand(max(height, width // 16), width) if height == 1 else layer, colours)

    # ----------------------------------------------------------------------------------- what theory knows

    def critical_temperature(self) -> float | None:
        """The agents' temperature below which an infinite population orders without a field; None where not known."""
        half, heat_bath = self.coupling / 2, self.order in ("checkerboard", "sequential")
        if self.coupling <= 0 or self.order == "partial":
            return None
        if not heat_bath or self.graph == "complete":
            return half * self._mean_degree if self.states == 2 else None
        if len(self.sides) == 2:
            # s s' = 2 delta - 1: Ising spins are Potts spins of twice the coupling.
            return half * ising_exact.potts_critical_temperature(self.states) * (2 if self.states == 2 else 1)
        if self.graph == "random_regular" and self.states == 2:
            return half * ising_exact.bethe_critical_temperature(self.degree)
        return None

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Known answers at the agents' temperature tau: the ground state at 0, else the order's stationary law.

        Heat bath (checkerboard, sequential): exact energies of a torus (Kaufman; a ring by transfer matrix), |m| where
        it is known, Curie-Weiss at this N, Bethe. Synchronous: the mean-field law, which is that of learners; choices
        that know the neighbours' next actions do not exist, and a fixed policy heedful of their last ones obeys another
        law (two interleaved lattices that do not meet).
        """
        if temperature == 0:
            return self._ground_state()
        if self.order == "synchronous":
            return self._mean_field(
                temperature, "mean-field law of simultaneous learners, m = tanh((z lambda m + 2h)/2tau)"
            )
        if self.order == "partial":
            return {}
        if self.graph == "complete" and self.states > 2:
            return self._mean_field(temperature, "mean field of the complete graph, exact as N grows (Wu 1982)")
        return self._heat_bath(temperature) if self.states == 2 else {}

    def reference_independent(self, temperature: float = 0.0) -> dict[str, Known]:
        """The mean-field law, in every order of moves: who knows only the average of its neighbours leans on that.

        A shared mind that sees at most its own spin earns lambda/2 a <sum of neighbours>, so its spins are independent
        given m: exactly naive mean field. It orders up to tau = z lambda / 2, where the lattice is long disordered.
        """
        if temperature == 0 or self.sight == "neighbours":
            return self.reference(temperature)
        source = "mean-field law of learners that do not feel their neighbours, m = tanh((z lambda m + 2h)/2tau)"
        if self.states > 2:
            return self._mean_field(temperature, source)
        # Also of an antiferromagnet: nobody knows on which of its two lattices it stands.
        known = self._independent_spins(temperature, source)
        if self._bipartite and self.field == 0 and self.coupling < 0:
            known["staggered"] = known["magnetisation"]  # both of spins that nothing aligns
        return known

    def fluctuations(self, temperature: float, independent: bool = False) -> dict[str, Known]:
        """Exact standard deviations over copies of what is measured at one moment, at this N, where they are known.

        `independent`: of agents that feel no field, whose spins are independent of each other. Else of the heat bath:
        the magnetisation of the complete graph; the energy of a ring or torus without a field, from its specific heat.
        """
        if self.states > 2 or temperature <= 0:
            return {}
        if independent and self.sight != "neighbours":
            return self._spread_of_independent(temperature)
        if self.order not in ("checkerboard", "sequential"):
            return {}
        n, half = self.num_agents, self.coupling / 2
        if self.graph == "complete" or self.coupling == 0:
            pull = 0.0 if n == 1 else half * n / (n - 1)
            found = ising_exact.curie_weiss_finite(n, temperature, self.field, pull)
            square = 1 / n + (1 - 1 / n) * found.correlation
            known = {"magnetisation": square - found.absolute**2}
            if self.field or pull < temperature:  # else a copy stays on the side that it is on
                known["magnetisation/signed"] = square - found.magnetisation**2
            return _spreads(known, f"Curie-Weiss, exact sum over the magnetisations of N = {n}")
        if self.field or len(self.sides) not in (1, 2) or (self.coupling < 0 and not self._bipartite):
            return {}

        def energy(t: float) -> float:
            if len(self.sides) == 1:
                return -ising_exact.ring(n, t).correlation
            return ising_exact.torus_energy((self.sides[0], self.sides[1]), t)

        t = temperature / abs(half)
        step = 1e-4 * t
        heat = (energy(t + step) - energy(t - step)) / (2 * step)
        return _spreads({"energy": half**2 * t**2 * heat / n}, "specific heat of the finite torus: T^2 du/dT / N")

    def _spread_of_independent(self, temperature: float) -> dict[str, Known]:
        """Of independent spins, each of mean m: bonds with a spin in common hang together where m is not 0."""
        source = "independent spins of the mean-field law"
        m = ising_exact.curie_weiss(temperature, self.field, self.coupling * self._mean_degree / 2)
        n, h, alone = self.num_agents, self.field, 1 - m * m
        degree = torch.full((n,), n - 1) if self.links is None else self.links.degree
        ends = degree.to(torch.float64)
        bonds, joints = float(ends.sum()) / 2, float((ends * (ends - 1)).sum())
        strength = self.coupling / 2 / (max(n - 1, 1) if self.links is None else 1)
        pairs = bonds * (1 - m**4) + joints * m**2 * alone
        energy = strength**2 * pairs + 4 * strength * h * bonds * m * alone + h**2 * n * alone
        bias = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, m)))
        absolute = ising_exact.curie_weiss_finite(n, 1.0, bias, 0.0).absolute
        known = {
            "magnetisation": m**2 + alone / n - absolute**2,
            "magnetisation/signed": alone / n,
            "energy": energy / n**2,
        }
        return _spreads(known, source)

    def _known(self, moments: ising_exact.Moments, source: str) -> dict[str, Known]:
        """From moments of Ising spins to the measured names; what is NaN is not known."""
        bond, z = self.coupling / 2 * moments.correlation, self._mean_degree
        values = {
            "magnetisation": moments.absolute,
            "energy": -bond * z / 2 - self.field * moments.magnetisation,
            "reward": bond * z + self.field * moments.magnetisation,
        }
        if self.field:
            values["magnetisation/signed"] = moments.magnetisation
        return {name: Known(value, source) for name, value in values.items() if not math.isnan(value)}

    def _heat_bath(self, temperature: float) -> dict[str, Known]:
        n, half, h = self.num_agents, self.coupling / 2, self.field
        if self.coupling == 0 or self.graph == "complete":
            scale = 0.0 if n == 1 else half * n / (n - 1)
            moments = ising_exact.curie_weiss_finite(n, temperature, h, scale)
            return self._known(moments, f"Curie-Weiss, exact sum over the magnetisations of N = {n}")
        t, b = temperature / abs(half), h / abs(half)
        if self.coupling < 0 and not (self._bipartite and h == 0):
            return {}
        if len(self.sides) == 1 and self.coupling > 0:
            return self._known(ising_exact.ring(n, t, b), f"transfer matrix of the ring of {n}")
        if len(self.sides) == 2 and h == 0:
            # Turning every other spin over makes an antiferromagnet of an even torus: same energy, staggered order.
            sides = (self.sides[0], self.sides[1])
            bonds = -ising_exact.torus_energy(sides, t) / 2 * math.copysign(1, half)
            moments = ising_exact.Moments(0.0, math.nan, bonds)
            known = self._known(moments, f"Kaufman 1949 (Phys. Rev. 76, 1232), exact on {sides[0]} x {sides[1]}")
            order = ising_exact.torus_magnetisation(sides, t)
            if order is not None:
                known["magnetisation" if self.coupling > 0 else "staggered"] = Known(*order)
            return known
        if self.graph == "random_regular" and self.coupling > 0:
            moments = ising_exact.bethe(self.degree, t, b)
            if moments.absolute == 0:  # at finite N it is not
                moments = moments._replace(absolute=math.nan)
            return self._known(moments, "Bethe lattice, exact for random regular graphs as N grows")
        return {}

    def _independent_spins(self, temperature: float, source: str) -> dict[str, Known]:
        m = ising_exact.curie_weiss(temperature, self.field, self.coupling * self._mean_degree / 2)
        # <|m|> of finitely many spins, each of mean m.
        bias = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, m)))
        absolute = ising_exact.curie_weiss_finite(self.num_agents, 1.0, bias, 0.0).absolute
        return self._known(ising_exact.Moments(m, absolute, m * m), source)

    def _mean_field(self, temperature: float, source: str) -> dict[str, Known]:
        q, z, h = self.states, self._mean_degree, self.field
        if self.coupling < 0 or (q > 2 and h != 0):
            return {}
        if q == 2:
            return self._independent_spins(temperature, source)
        pull = self.coupling * z / (2 * temperature)
        ordered = (
            self.start == "ordered" or pull > q
        )  # else the uniform branch is stable, and a random start lies on it
        shares = ising_exact.potts_mean_field(q, pull, None if ordered else np.full(q, 1 / q))
        same = float(shares @ shares)
        m = (q * float(shares.max()) - 1) / (q - 1)
        values = {"reward": self.coupling / 2 * z * same, "energy": -self.coupling / 4 * z * same}
        return {k: Known(v, source) for k, v in (values | ({"magnetisation": m} if m > 1e-9 else {})).items()}

    def _ground_state(self) -> dict[str, Known]:
        bond, h, source = abs(self.coupling) / 2 * self._mean_degree, self.field, "ground state"
        if self.coupling >= 0:
            paid = abs(h) if self.states == 2 else max(h, 0.0)
            values = {"reward": bond + paid, "energy": -bond / 2 - paid}
            values |= {"magnetisation": 1.0} if self.coupling or h else {}
        elif self.states == 2 and self._bipartite and h == 0:
            values = {"reward": bond, "energy": -bond / 2, "staggered": 1.0}
        else:
            return {}
        return {name: Known(value, source, "optimum") for name, value in values.items()}


def _spreads(variances: dict[str, float], source: str) -> dict[str, Known]:
    # Below 0 by rounding, where nothing fluctuates.
    return {n: Known(math.sqrt(max(0.0, v)), source) for n, v in variances.items() if math.isfinite(v)}


parallel_env, env = faces(Ising)
