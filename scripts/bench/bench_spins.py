"""Spin updates per CPU-second: torch, compiled, dwave-samplers and thrml, in turn, in one process.

    python scripts/bench/bench_spins.py [--rounds 3] [--json]

Each way runs sweeps at one temperature twice, with few sweeps and with many: the difference is free of compilation and
of setting up. Medians over the rounds. A peer that cannot be imported is left out, and said so. dwave-samplers is
called at its C++ loop and updates by Metropolis, thrml by heat bath; ours by both, heat bath here. thrml has one Python object per spin: its lattice is 256 x 256 where ours is
1024 x 1024.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import Ising, edwards_anderson, ising, sherrington_kirkpatrick
from mfmarl.statmech.sampling import checkerboard, compiled, single_spin
from mfmarl.statmech.sampling.chains import Sweep, chain_ids

Run = Callable[[int], Any]
"""Does this many sweeps."""
Way = tuple[Run, int, int]
"""A run, the spins that one sweep updates, and the sweeps that take some tenths of a second."""


def torch_way(sweep: Sweep, system: Ising, beta: float, batch: tuple[int, ...], sweeps: int) -> Way:
    start = system.random_states(batch, Key.of(0)).to(torch.int8)
    ids = chain_ids(batch)

    def run(count: int) -> None:
        s = start
        for step in range(count):
            s = sweep(s, beta, ids, Key.of(1).fold(step))

    return run, start.numel(), sweeps


def graph_way(system: Ising, beta: float, chains: int, sweeps: int, packed: bool = False) -> Way:
    start = system.random_states((chains,), Key.of(0)).to(torch.int8)
    kernel = compiled.packed_sweeps if packed else compiled.graph_sweeps
    return lambda count: kernel(system, start, torch.full((count,), beta), Key.of(1)), start.numel(), sweeps


def torus_way(side: int, beta: float, sweeps: int) -> Way:
    start = ising(graphs.torus(side, side), side * side).random_states((), Key.of(0)).to(torch.int8)
    start = start.reshape(side, side)
    return lambda count: compiled.torus_sweeps(start, beta, count, Key.of(1)), start.numel(), sweeps


def dwave_way(system: Ising, beta: float, reads: int, sweeps: int) -> Way | None:
    try:
        from dwave.samplers.sa.simulated_annealing import simulated_annealing
    except ImportError:
        return None
    first, second = (end.astype(np.int32) for end in system.pairs.numpy().T)
    start = system.random_states((reads,), Key.of(0)).to(torch.int8).numpy()

    def run(count: int) -> None:
        # Its energy has the other sign, and it moves the states that it is given.
        simulated_annealing(
            reads,
            -system.fields.numpy(),
            first,
            second,
            -system.couplings.numpy(),
            count,
            np.array([beta]),
            1,
            start.copy(),
            False,
            "Metropolis",
            None,
        )

    return run, reads * system.num_spins, sweeps


def thrml_way(system: Ising, beta: float, chains: int, sweeps: int) -> Way | None:
    try:
        import jax
        import jax.numpy as jnp
        from thrml import Block, SamplingSchedule, SpinNode, sample_states
        from thrml.models.ising import IsingEBM, IsingSamplingProgram, hinton_init
    except ImportError:
        return None
    nodes = [SpinNode() for _ in range(system.num_spins)]
    edges = [(nodes[i], nodes[j]) for i, j in system.pairs.tolist()]
    model = IsingEBM(
        nodes,
        edges,
        jnp.asarray(system.fields.numpy(), jnp.float32),
        jnp.asarray(system.couplings.numpy(), jnp.float32),
        jnp.float32(beta),
    )
    colours = system.colours.tolist()
    blocks = [Block([n for n, c in zip(nodes, colours, strict=True) if c == k]) for k in range(max(colours) + 1)]
    program = IsingSamplingProgram(model, blocks, [])
    starts = hinton_init(jax.random.key(0), model, blocks, (chains,))
    keys = jax.random.split(jax.random.key(1), chains)
    made: dict[int, Any] = {}

    def run(count: int) -> None:
        if count not in made:
            schedule = SamplingSchedule(0, 1, count) if count == 1 else SamplingSchedule(count - 1, 1, 1)
            made[count] = jax.jit(
                jax.vmap(lambda key, start: sample_states(key, program, schedule, start, [], [Block(nodes[:1])]))
            )
        jax.block_until_ready(made[count](keys, starts))

    return run, chains * system.num_spins, sweeps


def cases(key: Key) -> dict[str, dict[str, Way | None]]:
    """The ways of each case; None where the peer is missing."""
    lattice = {side: ising(graphs.torus(side, side), side * side) for side in (16, 256, 1024)}
    glass2, glass3 = edwards_anderson((32, 32), key), edwards_anderson((10, 10, 10), key)
    dense = sherrington_kirkpatrick(1000, key)
    big, small = (checkerboard.torus_sweep((side, side)) for side in (1024, 16))
    return {
        "lattice 1024 x 1024, beta .44": {
            "torch, any graph": torch_way(single_spin.heat_bath(lattice[1024]), lattice[1024], 0.44, (), 3),
            "torch, checkerboard": torch_way(big, lattice[1024], 0.44, (), 20),
            "compiled, packed": torus_way(1024, 0.44, 800),
            "dwave-samplers": dwave_way(lattice[1024], 0.44, 1, 30),
            "thrml": thrml_way(lattice[256], 0.44, 1, 60),
        },
        "4,096 lattices 16 x 16, beta .44": {
            "torch, any graph": torch_way(single_spin.heat_bath(lattice[16]), lattice[16], 0.44, (4096,), 3),
            "torch, checkerboard": torch_way(small, lattice[16], 0.44, (4096,), 20),
            "compiled, packed": graph_way(lattice[16], 0.44, 4096, 500, packed=True),
            "compiled, any graph": graph_way(lattice[16], 0.44, 4096, 200),
            "dwave-samplers": dwave_way(lattice[16], 0.44, 4096, 12),
            "thrml": thrml_way(lattice[16], 0.44, 4096, 12),
        },
        "glass 32 x 32, Gaussian, 1 chain, beta 1": {
            "compiled, any graph": graph_way(glass2, 1.0, 1, 20_000),
            "dwave-samplers": dwave_way(glass2, 1.0, 1, 10_000),
        },
        "glass 32 x 32, Gaussian, 1,024 chains, beta 1": {
            "torch, any graph": torch_way(single_spin.heat_bath(glass2), glass2, 1.0, (1024,), 3),
            "compiled, any graph": graph_way(glass2, 1.0, 1024, 200),
            "dwave-samplers": dwave_way(glass2, 1.0, 1024, 10),
            "thrml": thrml_way(glass2, 1.0, 1024, 10),
        },
        "glass 10 x 10 x 10, Gaussian, 1 chain, beta 1": {
            "compiled, any graph": graph_way(glass3, 1.0, 1, 20_000),
            "dwave-samplers": dwave_way(glass3, 1.0, 1, 10_000),
        },
        "glass 10 x 10 x 10, Gaussian, 1,024 chains, beta 1": {
            "compiled, any graph": graph_way(glass3, 1.0, 1024, 200),
            "dwave-samplers": dwave_way(glass3, 1.0, 1024, 10),
        },
        "everyone, 1,000 spins, 1 chain, beta .5": {
            "compiled, any graph": graph_way(dense, 0.5, 1, 5000),
            "dwave-samplers": dwave_way(dense, 0.5, 1, 2000),
        },
        "everyone, 1,000 spins, 1 chain, beta 2": {
            "compiled, any graph": graph_way(dense, 2.0, 1, 10_000),
            "dwave-samplers": dwave_way(dense, 2.0, 1, 5000),
        },
    }


def measure(way: Way) -> float:
    run, spins, sweeps = way
    few = max(1, sweeps // 10)
    spent = []
    for count in (few, sweeps):
        start = time.process_time()
        run(count)
        spent.append(time.process_time() - start)
    return spins * (sweeps - few) / max(spent[1] - spent[0], 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each way is run (default 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for case, ways in cases(Key.of(0)).items():
        missing = [name for name, way in ways.items() if way is None]
        print(f"{case} ..." + (f" without {', '.join(missing)}" if missing else ""), file=sys.stderr)
        there = {name: way for name, way in ways.items() if way is not None}
        for way in there.values():
            measure(way)  # compile
        found: dict[str, list[float]] = {name: [] for name in there}
        for _ in range(given.rounds):
            for name, way in there.items():
                found[name].append(measure(way))
        rows[case] = {name: statistics.median(values) for name, values in found.items()}
    if given.json:
        print(json.dumps({"updates_per_cpu_second": rows}))
        return
    for case, row in rows.items():
        print(f"\n{case}\n{'':24}{'million updates/CPU-s':>22}{'x dwave-samplers':>18}{'x thrml':>10}")
        for name, value in row.items():
            ratios = [f"{value / row[peer]:.1f}" if peer in row else "" for peer in ("dwave-samplers", "thrml")]
            print(f"{name:24}{value / 1e6:22,.1f}{ratios[0]:>18}{ratios[1]:>10}")


if __name__ == "__main__":
    main()
