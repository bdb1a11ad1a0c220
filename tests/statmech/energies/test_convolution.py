"""A convolution is the dense energy with tied couplings."""

from __future__ import annotations

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.energies.convolution import Convolution

KEY = Key.of(53)
SQUARE = torch.tensor([[0.2, 0.7, -0.4], [1.1, 0.0, 1.1], [-0.4, 0.7, 0.2]], dtype=torch.float64)
LINE = torch.tensor([0.3, -0.5, 0.0, -0.5, 0.3], dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "shape"), [(SQUARE, (4, 5)), (LINE, (7,)), (SQUARE.unsqueeze(0), (3, 4, 3))])
def test_it_is_the_dense_energy_with_tied_couplings(kernel: torch.Tensor, shape: tuple[int, ...]) -> None:
    energy = Convolution(kernel, shape, 0.3)
    dense = energy.ising()
    s = dense.random_states((6, 3), KEY)
    assert torch.allclose(energy(s), dense(s), rtol=0, atol=1e-10)
    assert torch.allclose(energy.local_field(s), dense.local_field(s), rtol=0, atol=1e-10)
    slope = torch.autograd.functional.jacobian(lambda x: energy(x).sum(), s)
    assert torch.allclose(energy.gradient(s), slope, atol=1e-10)
    # As many different couplings as the kernel has opposite pairs.
    assert len(torch.unique(dense.couplings)) == len(torch.unique(kernel[kernel != 0]))


def test_the_nearest_neighbour_kernel_is_the_lattice() -> None:
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64)
    energy, lattice = Convolution(cross, (4, 6), -0.2), spins.ising(graphs.torus(4, 6), 24, 1.0, -0.2)
    s = lattice.random_states((20,), KEY)
    assert torch.allclose(energy(s), lattice(s), atol=1e-10)


def test_a_shift_of_all_spins_changes_nothing_and_waves_are_eigenvectors() -> None:
    energy = Convolution(SQUARE, (5, 6))
    s = energy.ising().random_states((8,), KEY)
    moved = s.reshape(8, 5, 6).roll((2, 3), (1, 2)).reshape(8, 30)
    assert torch.allclose(energy(s), energy(moved), atol=1e-10)
    values = torch.linalg.eigvalsh(energy.ising().matrix)
    assert torch.allclose(values, energy.spectrum.flatten().sort().values, atol=1e-10)


def test_kernels_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="odd sides"):
        Convolution(torch.zeros(2, 3), (4, 4))
    with pytest.raises(ConfigError, match="reach round"):
        Convolution(SQUARE, (2, 4))
    with pytest.raises(ConfigError, match="opposite directions"):
        Convolution(torch.tensor([1.0, 0.0, 2.0]), (5,))
    with pytest.raises(ConfigError, match="middle"):
        Convolution(torch.tensor([1.0, 1.0, 1.0]), (5,))
