"""Hamiltonian Monte Carlo and Langevin steps of many chains, beside blackjax (jitted) in the same run.

    python scripts/bench/bench_hamiltonian.py [--chains 1024] [--rounds 5] [--ess] [--json]

A Gaussian of 100 variables, with a dense precision matrix (analytic gradient here, blackjax's own by jax.grad) and with
a diagonal one; float32. A trajectory is 20 leapfrogs; SGLD is the unadjusted Langevin step with the full gradient.
Millions of steps of one chain per CPU-second of one core, ours and theirs in turns, the median of the rounds.
`--ess`: effective samples per 1,000 gradients on ill-conditioned Gaussians, ours tuned by `tuning.warm_up`, theirs NUTS
with window adaptation. Without blackjax only our own figures are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import torch
from torch import Tensor

from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.sampling import diagnostics, hamiltonian, langevin, tuning
from mfmarl.statmech.sampling.chains import chain_ids

try:
    import blackjax
    import jax
    import jax.numpy as jnp
except ImportError:
    blackjax = None

N, LEAPS, SWEEPS, STEPS = 100, 20, 10, 200


class Diagonal:
    """sum k_i x_i^2/2, with its gradient: what a user writes."""

    def __init__(self, stiffness: Tensor) -> None:
        self.stiffness = stiffness

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * (x * x * self.stiffness).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return x * self.stiffness


def precision() -> np.ndarray:
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
    matrix = basis @ np.diag(np.linspace(1, 10, N)) @ basis.T
    return (matrix + matrix.T) / 2


def ours(chains: int) -> dict[str, Callable[[], float]]:
    """Each runs once and returns how many steps of one chain it made."""
    energies = {
        "dense": Gaussian(torch.zeros(N), torch.from_numpy(precision()).float()),
        "diagonal": Diagonal(torch.linspace(1, 10, N)),
    }
    ids = chain_ids((chains,))
    cases: dict[str, Callable[[], float]] = {}
    for name, energy in energies.items():
        x = torch.from_numpy(np.random.default_rng(1).normal(size=(chains, N))).float()

        def trajectories(energy: Any = energy, x: Tensor = x) -> float:
            sweep = hamiltonian.hmc(energy, 0.1, LEAPS)
            for i in range(SWEEPS):
                x = sweep(x, 1.0, ids, Key.of(i))
            return float(SWEEPS * LEAPS * chains)

        def descent(energy: Any = energy, x: Tensor = x) -> float:
            sweep = langevin.ula(energy, 0.01)
            for i in range(STEPS):
                x = sweep(x, 1.0, ids, Key.of(i))
            return float(STEPS * chains)

        cases[f"leapfrogs, {name}"], cases[f"SGLD, {name}"] = trajectories, descent
    return cases


def theirs(chains: int) -> dict[str, Callable[[], float]]:
    matrix, stiffness = jnp.asarray(precision(), jnp.float32), jnp.linspace(1, 10, N)
    densities = {
        "dense": lambda x: -0.5 * x @ (matrix @ x),
        "diagonal": lambda x: -0.5 * (x * x * stiffness).sum(),
    }
    start = jnp.asarray(np.random.default_rng(1).normal(size=(chains, N)), jnp.float32)
    cases: dict[str, Callable[[], float]] = {}
    for name, density in densities.items():
        algorithm = blackjax.hmc(density, 0.1, jnp.ones(N), LEAPS)
        state = jax.vmap(algorithm.init)(start)

        @jax.jit
        def run(state: Any, key: Any, algorithm: Any = algorithm) -> Any:
            def body(s: Any, k: Any) -> Any:
                return jax.vmap(algorithm.step)(jax.random.split(k, chains), s)[0], None

            return jax.lax.scan(body, state, jax.random.split(key, SWEEPS))[0]

        def trajectories(run: Any = run, state: Any = state) -> float:
            run(state, jax.random.PRNGKey(0)).position.block_until_ready()
            return float(SWEEPS * LEAPS * chains)

        sgld = blackjax.sgld(lambda x, _, density=density: jax.grad(density)(x))

        @jax.jit
        def descend(x: Any, key: Any, sgld: Any = sgld) -> Any:
            def body(x: Any, k: Any) -> Any:
                step = jax.vmap(lambda kk, xx: sgld.step(kk, xx, 0.0, 0.01))
                return step(jax.random.split(k, chains), x), None

            return jax.lax.scan(body, x, jax.random.split(key, STEPS))[0]

        def descent(descend: Any = descend) -> float:
            descend(start, jax.random.PRNGKey(0)).block_until_ready()
            return float(STEPS * chains)

        cases[f"leapfrogs, {name}"], cases[f"SGLD, {name}"] = trajectories, descent
    return cases


def speed(chains: int, rounds: int) -> dict[str, dict[str, float]]:
    """Millions a CPU-second, in turns."""
    sides = {"mfmarl": ours(chains), **({"blackjax": theirs(chains)} if blackjax else {})}
    rows = {}
    for case in sides["mfmarl"]:
        found: dict[str, list[float]] = {side: [] for side in sides}
        for side in sides.values():
            side[case]()
        for _ in range(rounds):
            for name, side in sides.items():
                start = time.process_time()
                steps = side[case]()
                found[name].append(steps / (time.process_time() - start) / 1e6)
        rows[case] = {name: statistics.median(values) for name, values in found.items()}
    return rows


def ill_conditioned(rotated: bool) -> np.ndarray:
    """Precision of standard deviations .03 to 1, along the axes or along none."""
    scales = np.logspace(3, 0, N)
    if not rotated:
        return np.diag(scales)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
    matrix = basis @ np.diag(scales) @ basis.T
    return (matrix + matrix.T) / 2


def judged(seen: Tensor, gradients: float) -> dict[str, float]:
    bulk = float(diagnostics.effective_sample_size(seen, observables=1).min())
    square = float(diagnostics.effective_sample_size(seen**2, "mean", observables=1).min())
    return {"bulk": 1e3 * bulk / gradients, "squares": 1e3 * square / gradients}


def ess_ours(matrix: np.ndarray, mass: tuning.Mass, chains: int = 4, steps: int = 1000) -> dict[str, float]:
    energy = Gaussian(torch.zeros(N), torch.from_numpy(matrix).float())
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(chains, N))).float()
    x, tuned = tuning.warm_up(energy, x, 1.0, Key.of(1), steps, mass=mass)
    gradients = 0

    def counted(y: Tensor) -> Tensor:
        nonlocal gradients
        gradients += chains
        return energy.gradient(y)

    class Counting:
        gradient = staticmethod(counted)

        def __call__(self, y: Tensor) -> Tensor:
            return energy(y)

    _, seen, _ = hamiltonian.sample(Counting(), tuned, x, 1.0, Key.of(2), steps)
    return judged(seen, gradients)


def ess_theirs(matrix: np.ndarray, mass: tuning.Mass, chains: int = 4, steps: int = 1000) -> dict[str, float]:
    p = jnp.asarray(matrix, jnp.float32)

    def density(x: Any) -> Any:
        return -0.5 * x @ (p @ x)

    adaptation = blackjax.window_adaptation(blackjax.nuts, density, is_mass_matrix_diagonal=mass == "diagonal")

    @jax.jit
    def go(key: Any) -> Any:
        one, two, three = jax.random.split(key, 3)
        (state, parameters), _ = adaptation.run(one, jax.random.normal(two, (N,)), num_steps=steps)
        step = blackjax.nuts(density, **parameters).step

        def body(s: Any, k: Any) -> Any:
            s, info = step(k, s)
            return s, (s.position, info.num_integration_steps)

        return jax.lax.scan(body, state, jax.random.split(three, steps))[1]

    found = [go(jax.random.PRNGKey(i)) for i in range(chains)]
    seen = torch.from_numpy(np.stack([np.asarray(x) for x, _ in found], 1))
    return judged(seen, float(sum(np.asarray(count).sum() for _, count in found)))


def efficiency() -> dict[str, dict[str, dict[str, float]]]:
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for rotated in (False, True):
        for mass in ("diagonal", "dense"):
            matrix = ill_conditioned(rotated)
            row = {"mfmarl": ess_ours(matrix, mass), **({"blackjax": ess_theirs(matrix, mass)} if blackjax else {})}
            rows[f"{'rotated' if rotated else 'along the axes'}, {mass} masses"] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1024, help="side by side (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="times each is run (default 5)")
    parser.add_argument("--ess", action="store_true", help="effective samples per gradient as well, about a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = speed(given.chains, given.rounds)
    ess = efficiency() if given.ess else {}
    if given.json:
        print(json.dumps({"million_per_cpu_second": rows, "ess_per_1000_gradients": ess}))
        return
    if not blackjax:
        print("blackjax is not installed: our own figures only.")
    print(f"{f'million a CPU-second, {given.chains} chains of {N}':40}{'mfmarl':>10}{'blackjax':>10}{'ratio':>8}")
    for case, row in rows.items():
        peer = row.get("blackjax", float("nan"))
        print(f"{case:40}{row['mfmarl']:10.2f}{peer:10.2f}{row['mfmarl'] / peer:8.2f}")
    if ess:
        print(f"\n{'effective samples per 1,000 gradients':40}{'mfmarl HMC':>18}{'blackjax NUTS':>18}")
        print(f"{'least of 100 variables':40}" + f"{'x':>9}{'x^2':>9}" * 2)
    for case, both in ess.items():
        cells = [
            both.get(side, {}).get(k, float("nan")) for side in ("mfmarl", "blackjax") for k in ("bulk", "squares")
        ]
        print(f"{case:40}" + "".join(f"{cell:9.1f}" for cell in cells))


if __name__ == "__main__":
    main()
