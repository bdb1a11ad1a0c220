r"""Training any energy that is a torch module: contrast with chains that go on from step to step.

$$ \nabla_\theta \langle -\log p \rangle = \langle \nabla_\theta E \rangle_{\text{data}}
   - \langle \nabla_\theta E \rangle_{\text{model}} $$

The model's states come from a `Sweep` at beta = 1 (Langevin, Hamiltonian, ...) on chains that are kept; a share of
them begins anew at each step. A pull of the energies to 0 holds the constant that no data determine. Du and Mordatch
2019, "Implicit generation and modeling with energy-based models" (NeurIPS, arXiv 1903.08689), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.sampling.chains import Sweep, chain_ids


@dataclass(frozen=True)
class Contrast:
    """How an energy is trained."""

    steps: int = 1000
    batch_size: int = 128
    chains: int = 128
    sweeps: int = 10
    """Sweeps per update: more are less biased."""
    restart: float = 0.05
    """The share of the chains that begins anew, from noise, at each update; 1 is contrastive divergence from noise."""
    pull: float = 0.0
    """Weight of the mean squared energies, of data and chains."""
    report_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "chains", "sweeps", "report_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"The option {name} of a contrast must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.restart <= 1 or not self.pull >= 0:
            raise ConfigError("A contrast needs a share of restarts from 0 to 1 and a pull of at least 0.")


class Row(NamedTuple):
    """What training shows of itself, averaged since the last row; the chains are the last."""

    step: int
    data_energy: float
    chain_energy: float
    chains: Tensor
    """[m, n]."""


def train_energy(
    energy: nn.Module,
    data: Tensor,
    sweep: Sweep,
    optimiser: torch.optim.Optimizer,
    key: Key,
    options: Contrast | None = None,
    noise: Callable[[Tensor, Key], Tensor] | None = None,
) -> Iterator[Row]:
    """Fit `energy` ([*b, n] -> [*b]) to data [N, n], in place, by an optimiser of its parameters.

    `noise` (ids [m], key) -> states [m, n] is where chains begin (default: normal with the data's mean and
    deviation). Raises NumericFault when energies or chains are no longer finite: a step too large for the sweep.
    """
    options = Contrast() if options is None else options
    mean, deviation = data.mean(0), data.std(0)
    begin = noise or (lambda ids, where: mean + deviation * random.normal(where, ids, data.shape[1]).to(data.dtype))
    ids = chain_ids((options.chains,), data.device)
    chains = begin(ids, key.fold("begin"))
    sums = [0.0, 0.0]
    for step in range(1, options.steps + 1):
        here = key.fold("step", step)
        if options.restart:
            anew = random.uniform(here.fold("restart"), ids) < options.restart
            chains = torch.where(anew.unsqueeze(-1), begin(ids, here.fold("begin")), chains)
        for turn in range(options.sweeps):
            chains = sweep(chains, 1.0, ids, here.fold("sweep", turn)).detach()
        picked = random.integers(here.fold("batch"), torch.arange(options.batch_size, device=data.device), len(data))
        low, high = energy(data[picked]), energy(chains)
        loss = low.mean() - high.mean()
        if options.pull:
            loss = loss + options.pull * (low.square().mean() + high.square().mean())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        sums[0] += float(low.detach().mean())
        sums[1] += float(high.detach().mean())
        if step % options.report_every == 0 or step == options.steps:
            since = (step - 1) % options.report_every + 1
            row = Row(step, sums[0] / since, sums[1] / since, chains)
            if not bool(chains.isfinite().all()) or not math.isfinite(sums[0] + sums[1]):
                raise NumericFault(
                    f"Energies or chains were no longer finite before step {step}: take smaller steps, or a pull."
                )
            yield row
            sums = [0.0, 0.0]
