r"""Every state of a small system, one after the other: the answers that all other methods are held against.

$$ Z = \sum_x e^{-\beta H(x)}, \quad F = -\tfrac1\beta \log Z, \quad U = \langle H \rangle, \quad
   S = \beta (U - F), \quad C = \beta^2 (\langle H^2 \rangle - \langle H \rangle^2), \quad
   F \to E_0 - T \log g \ \ (T \to 0) $$

States are numbered as itertools.product does: the last site varies fastest. They are visited in pieces, so memory
stays bounded; all is float64 and differentiable in the couplings (at finite beta). An `Ising` or `Potts` brings its
own alphabet, and its batch of disorder [*d] leads every answer; any other energy is asked for states [m, n] and may
answer [*d, m]. Pairwise spins are summed by halves: E(a, b) = E(a) + E(b) - a J b, one matrix product for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.energies.potts import Potts
from mfmarl.statmech.energies.spins import Ising

LARGEST = 1 << 25
"""As many states are visited at most: 25 spins, 15 three-state sites."""
_PIECE = 1 << 19  # energies held at a time, over all instances
_SAME_LEVEL = 1e-9  # relative: energies that differ by less are one level


@dataclass(frozen=True, eq=False)
class Space:
    """The states of `sites` sites that take any of `values` [q]."""

    sites: int
    values: Tensor

    def __post_init__(self) -> None:
        if self.sites < 1 or self.values.ndim != 1 or len(self.values) < 1:
            raise ConfigError("A space of states needs at least 1 site and at least 1 value.")
        if self.size > LARGEST:
            raise ConfigError(
                f"{len(self.values)}^{self.sites} states are too many to enumerate (at most {LARGEST}): "
                "use a transfer matrix, or sample."
            )

    @property
    def size(self) -> int:
        """q^n."""
        return len(self.values) ** self.sites

    def digits(self, start: int, stop: int) -> Tensor:
        """Which value each site takes, int64 [stop - start, n], of the states with these numbers."""
        number = torch.arange(start, stop).unsqueeze(-1)
        place = len(self.values) ** torch.arange(self.sites - 1, -1, -1)
        return number.div(place, rounding_mode="floor").remainder_(len(self.values))

    def states(self, start: int = 0, stop: int | None = None) -> Tensor:
        """[stop - start, n] in the dtype of the values; all of them by default."""
        return self.values[self.digits(start, self.size if stop is None else stop)]

    def number(self, states: Tensor) -> Tensor:
        """The numbers int64 [*b] of states [*b, n]."""
        digit = (states.unsqueeze(-1) == self.values.to(states.dtype)).to(torch.int8).argmax(-1)
        place = len(self.values) ** torch.arange(self.sites - 1, -1, -1)
        return (digit * place).sum(-1)


def spins(num_sites: int) -> Space:
    """-1 and +1, float64."""
    return Space(num_sites, torch.tensor([-1.0, 1.0], dtype=torch.float64))


def bits(num_sites: int) -> Space:
    """0 and 1, float64."""
    return Space(num_sites, torch.tensor([0.0, 1.0], dtype=torch.float64))


def colours(num_sites: int, num_states: int) -> Space:
    """0 .. q - 1, int64: the states of a Potts model."""
    return Space(num_sites, torch.arange(num_states))


def space_of(energy: Energy, space: Space | None = None) -> Space:
    """`space`, or that of an Ising or Potts system. Raises ConfigError where neither is known."""
    if space is not None:
        return space
    if isinstance(energy, Ising):
        return spins(energy.num_spins)
    if isinstance(energy, Potts):
        return colours(energy.num_sites, energy.num_states)
    raise ConfigError("Enumeration needs the space of the states: pass spins(n), bits(n) or colours(n, q).")


class Thermodynamics(NamedTuple):
    """Exact averages [*d], in nats and units of k_B = 1."""

    log_partition: Tensor
    free_energy: Tensor
    energy: Tensor
    entropy: Tensor
    heat_capacity: Tensor


class GroundStates(NamedTuple):
    """The lowest level [*d], how many states lie in it [*d], and the first of them [*d, n]."""

    energy: Tensor
    degeneracy: Tensor
    state: Tensor


def energies(energy: Energy, space: Space | None = None) -> Tensor:
    """The energy of every state, [*d, q^n]."""
    return torch.cat([piece for _, piece in _pieces(energy, space_of(energy, space))], -1)


def log_partition(energy: Energy, beta: float | Tensor, space: Space | None = None) -> Tensor:
    """log Z [*d]; `beta` is a number or broadcasts against [*d]. Infinite at beta = inf unless E_0 = 0."""
    ground, total, _ = _weighted(energy, beta, space, None)
    return total.log() - _times(beta, ground)


def thermodynamics(energy: Energy, beta: float | Tensor, space: Space | None = None) -> Thermodynamics:
    """log Z, F, U, S and C at beta; at beta = inf they are the limits: F = U = E_0, S = log g."""
    ground, total, sums = _weighted(energy, beta, space, _powers)
    beta = torch.as_tensor(beta, dtype=total.dtype)
    excess, square = (sums / total.unsqueeze(-1)).unbind(-1)
    spread = square - excess * excess
    cold = torch.isinf(beta)
    finite = torch.where(cold, torch.ones_like(beta), beta)
    entropy = total.log() + torch.where(cold, torch.zeros_like(excess), finite * excess)
    heat_capacity = torch.where(cold, torch.zeros_like(excess), finite * finite * spread)
    free = torch.where(beta == 0, -torch.inf, ground - total.log() / beta)
    return Thermodynamics(total.log() - _times(beta, ground), free, ground + excess, entropy, heat_capacity)


def probabilities(energy: Energy, beta: float | Tensor, space: Space | None = None) -> Tensor:
    """The Gibbs distribution over all states, [*d, q^n]; uniform over the ground states at beta = inf."""
    check.inverse_temperature(beta)
    levels = energies(energy, space)
    beta = beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.ndim else beta
    return torch.softmax(-_times(beta, levels - levels.amin(-1, keepdim=True)), -1)


def average(
    energy: Energy, beta: float | Tensor, observable: Callable[[Tensor], Tensor], space: Space | None = None
) -> Tensor:
    """<A> [*d, ...] of `observable`: states [m, n] -> [m, ...]."""

    def weigh(weight: Tensor, _: Tensor, states: Tensor) -> Tensor:
        return torch.tensordot(weight, observable(states).to(torch.float64), dims=([-1], [0]))

    _, total, sums = _weighted(energy, beta, space, weigh)
    return sums / total[(..., *([None] * (sums.ndim - total.ndim)))]


def moments(energy: Energy, beta: float | Tensor, space: Space | None = None) -> tuple[Tensor, Tensor]:
    """<x_i> [*d, n] and <x_i x_j> [*d, n, n]; for a Potts system the shares <delta(k_i, a)> [*d, n, q] of every
    colour, and the joint shares [*d, n, n, q, q].
    """
    known = space_of(energy, space)
    n, q = known.sites, len(known.values)
    potts = isinstance(energy, Potts)

    def observe(states: Tensor) -> Tensor:
        x = torch.nn.functional.one_hot(states, q).double().flatten(-2) if potts else states.double()
        return torch.cat([x, (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)], -1)

    both = average(energy, beta, observe, known)
    width = n * q if potts else n
    first, second = both[..., :width], both[..., width:].unflatten(-1, (width, width))
    if not potts:
        return first, second
    return first.unflatten(-1, (n, q)), second.unflatten(-1, (n, q)).unflatten(-3, (n, q)).transpose(-3, -2)


def density_of_states(energy: Energy, space: Space | None = None) -> tuple[Tensor, Tensor]:
    """The levels [L], rising, and how many states lie in each, int64 [L]: one instance, energies equal to 1e-9."""
    merged: dict[float, int] = {}
    scale = 0.0
    for _, piece in _pieces(energy, space_of(energy, space)):
        if piece.ndim != 1:
            raise ConfigError("A density of states is of one instance: levels differ between instances.")
        scale = max(scale, float(piece.abs().max()))
        level, count = torch.unique(piece.detach(), return_counts=True)
        for value, number in zip(level.tolist(), count.tolist(), strict=True):
            merged[value] = merged.get(value, 0) + number
    levels: list[float] = []
    counts: list[int] = []
    for value in sorted(merged):
        if levels and value - levels[-1] <= _SAME_LEVEL * max(scale, 1.0):
            counts[-1] += merged[value]
        else:
            levels.append(value)
            counts.append(merged[value])
    return torch.tensor(levels, dtype=torch.float64), torch.tensor(counts)


def ground_states(energy: Energy, space: Space | None = None) -> GroundStates:
    """The lowest energy of every instance, its degeneracy, and the first state that has it."""
    known = space_of(energy, space)
    best = count = first = None
    for start, piece in _pieces(energy, known):
        low, where = piece.detach().min(-1)
        near = _SAME_LEVEL * low.abs().clamp(min=1.0)
        number = (piece <= (low + near).unsqueeze(-1)).sum(-1)
        if best is None or count is None or first is None:
            best, count, first = low, number, where + start
            continue
        lower, tie = low < best - near, (low - best).abs() <= near
        count = torch.where(lower, number, count + torch.where(tie, number, torch.zeros_like(number)))
        first = torch.where(lower, where + start, first)
        best = torch.where(lower, low, best)
    assert best is not None and count is not None and first is not None
    place = len(known.values) ** torch.arange(known.sites - 1, -1, -1)
    digits = first.unsqueeze(-1).div(place, rounding_mode="floor").remainder(len(known.values))
    return GroundStates(best, count, known.values[digits])


def zero_temperature(ground: Tensor, degeneracy: Tensor, temperature: float | Tensor) -> Tensor:
    """F = E_0 - T log g: the free energy where only the lowest level counts (the saddle point), [*d]."""
    check.temperature(temperature)
    return ground - temperature * degeneracy.to(ground.dtype).log()


def _powers(weight: Tensor, above: Tensor, _: Tensor) -> Tensor:
    """Sums of weight x (E - E_0) and weight x (E - E_0)^2, [*d, 2]."""
    return torch.stack([(weight * above).sum(-1), (weight * above * above).sum(-1)], -1)


def _times(beta: float | Tensor, above: Tensor) -> Tensor:
    """beta x energy, where inf x 0 is 0."""
    # Not `where(above == 0)`: that would cut the ground state out of the derivatives.
    return (beta * above).nan_to_num(0.0, math.inf, -math.inf)


def _weighted(
    energy: Energy,
    beta: float | Tensor,
    space: Space | None,
    weigh: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(E_0 [*d], sum of the weights exp(-beta (E - E_0)) [*d], sum of what `weigh` makes of a piece [*d, ...]).

    `weigh` is given weights [*d, m], energies above E_0 [*d, m] and states [m, n].
    """
    check.inverse_temperature(beta)
    known = space_of(energy, space)
    # Two passes: the reference of the exponentials must be the true ground state, or the sums overflow.
    ground: Tensor | None = None
    for _, piece in _pieces(energy, known):
        low = piece.detach().amin(-1)
        ground = low if ground is None else torch.minimum(ground, low)
    assert ground is not None
    if isinstance(beta, Tensor) and beta.ndim:
        ground = ground.expand(torch.broadcast_shapes(ground.shape, beta.shape))
        beta = beta.unsqueeze(-1)
    total: Tensor | None = None
    sums: Tensor | None = None
    for start, piece in _pieces(energy, known):
        above = piece - ground.unsqueeze(-1)
        weight = torch.exp(-_times(beta, above))
        part = weight.sum(-1)
        total = part if total is None else total + part
        if weigh is not None:
            more = weigh(weight, above, known.states(start, start + piece.shape[-1]))
            sums = more if sums is None else sums + more
    assert total is not None
    return ground, total, total if sums is None else sums


def _pieces(energy: Energy, space: Space) -> Iterator[tuple[int, Tensor]]:
    """(number of the first state, energies [*d, m] float64) until all states are through."""
    if isinstance(energy, Ising) and len(space.values) == 2 and space.sites >= 2:
        yield from _halves(energy)
        return
    instances = 1
    if isinstance(energy, Ising):
        energy = Ising(energy.pairs, energy.couplings.unsqueeze(-2), energy.fields.unsqueeze(-2))
        instances = energy.couplings[..., 0, 0].numel() if len(energy.pairs) else energy.fields[..., 0, 0].numel()
    elif isinstance(energy, Potts):
        energy = Potts(energy.pairs, energy.couplings.unsqueeze(-2), energy.fields.unsqueeze(-3))
        instances = max(energy.couplings.shape[:-2].numel(), energy.fields.shape[:-3].numel())
    length = max(1, _PIECE // (8 * instances))
    for start in range(0, space.size, length):
        found = energy(space.states(start, min(start + length, space.size)))
        check.finite(found, "The energy of an enumerated state")
        yield start, found.double()


def _halves(system: Ising) -> Iterator[tuple[int, Tensor]]:
    """E(a, b) = E(a) + E(b) - a J_ab b over the first and the last half of the spins."""
    n = system.num_spins
    half = n // 2
    matrix, fields = system.matrix.double(), system.fields.double()
    shape = torch.broadcast_shapes(matrix.shape[:-2], fields.shape[:-1])
    matrix, fields = matrix.expand(*shape, n, n), fields.expand(*shape, n)
    left, right = spins(half).states(), spins(n - half).states()

    def own(states: Tensor, part: slice) -> Tensor:
        pull = states @ matrix[..., part, part]
        return -(pull * states).sum(-1) / 2 - (fields[..., None, part] * states).sum(-1)

    first, last = own(left, slice(0, half)), own(right, slice(half, n))
    across = left @ matrix[..., :half, half:]
    rows = max(1, _PIECE // (len(right) * max(1, shape.numel())))
    for row in range(0, len(left), rows):
        block = slice(row, row + rows)
        found = first[..., block, None] + last[..., None, :] - across[..., block, :] @ right.T
        yield row * len(right), found.flatten(-2)
