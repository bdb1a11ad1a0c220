"""SGLD: steps of 1,024 chains in a Gaussian of 100 dimensions, ours against blackjax's, jitted, in the same process.

    python scripts/bench/bench_optimisers.py [--rounds 5] [--steps 300] [--json]

Chain-steps per CPU-second, the median of interleaved rounds, and the ratio. Cases: one tensor [1024, 100] with an
analytic gradient (a diagonal precision, or a dense one), and our optimisers beside each other on the weights of a
network of eight tensors, as a share of what `torch.optim.SGD` and Adam take there. blackjax runs as a jitted `lax.scan`
over `vmap`; compiling is not counted. Without blackjax only our own numbers are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.optimisers.hamiltonian import SGHMC, Underdamped
from mfmarl.statmech.optimisers.langevin import SGLD, PreconditionedSGLD
from mfmarl.statmech.optimisers.noisy import NoisySGD

CHAINS, DIMENSION, LR = 1024, 100, 1e-2
Run = Callable[[], None]


def precision(dense: bool) -> torch.Tensor:
    scales = torch.linspace(0.5, 2.0, DIMENSION)
    if not dense:
        return torch.diag(scales)
    turn = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=torch.Generator().manual_seed(0))).Q
    p = turn @ torch.diag(scales) @ turn.mT
    return (p + p.mT) / 2


def ours(dense: bool, steps: int) -> tuple[Run, Callable[[], float]]:
    p = precision(dense)
    energy, diagonal = Gaussian(torch.zeros(DIMENSION), p), p.diagonal()
    x = nn.Parameter(torch.zeros(CHAINS, DIMENSION))
    optimizer = SGLD([x], LR, key=Key.of(1))

    def run() -> None:
        for _ in range(steps):
            here = x.detach()
            x.grad = energy.gradient(here) if dense else here * diagonal
            optimizer.step()

    return run, lambda: float((x.detach() @ p * x.detach()).sum(-1).mean())


def blackjax(dense: bool, steps: int) -> tuple[Run, Callable[[], float]] | None:
    try:
        import blackjax as peer
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    p = jnp.asarray(precision(dense).numpy())
    diagonal = jnp.diag(p)
    slope = (lambda x, _: -(x @ p)) if dense else (lambda x, _: -(x * diagonal))
    sgld = peer.sgld(slope)

    @jax.jit
    def many(key: Any, x: Any) -> Any:
        def one(x: Any, key: Any) -> tuple[Any, None]:
            keys = jax.random.split(key, CHAINS)
            return jax.vmap(lambda k, row: sgld.step(k, row, 0, LR))(keys, x), None

        return jax.lax.scan(one, x, jax.random.split(key, steps))[0]

    state = {"x": jnp.zeros((CHAINS, DIMENSION)), "key": jax.random.key(0)}

    def run() -> None:
        state["key"], now = jax.random.split(state["key"])
        state["x"] = many(now, state["x"]).block_until_ready()

    run()
    return run, lambda: float((state["x"] @ p * state["x"]).sum(-1).mean())


def network_steps(steps: int) -> dict[str, Run]:
    """Optimiser steps alone, on eight tensors of 35,000 weights with a gradient that stays."""
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "torch SGD": lambda p: torch.optim.SGD(p, 1e-3),
        "torch Adam": lambda p: torch.optim.Adam(p, 1e-3),
        "SGLD": lambda p: SGLD(p, 1e-3, key=Key.of(1)),
        "SGLD, T = 0": lambda p: SGLD(p, 1e-3, 0.0, key=Key.of(1)),
        "preconditioned SGLD": lambda p: PreconditionedSGLD(p, 1e-3, key=Key.of(1)),
        "SGHMC": lambda p: SGHMC(p, 1e-3, key=Key.of(1)),
        "underdamped": lambda p: Underdamped(p, 1e-3, key=Key.of(1)),
        "noisy SGD": lambda p: NoisySGD(p, 1e-3, key=Key.of(1), noise=1e-3),
    }

    def runner(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Run:
        params = [nn.Parameter(torch.zeros(s)) for s in ((64, 128), (128,), (128, 128), (128,), (128, 64), (64,), (64, 10), (10,))]  # fmt: skip
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = make(params)

        def run() -> None:
            for _ in range(steps):
                optimizer.step()

        return run

    return {name: runner(make) for name, make in makers.items()}


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median CPU-seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(seen) for name, seen in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for dense in (False, True):
        case = "dense precision" if dense else "diagonal precision"
        mine, peer = ours(dense, given.steps), blackjax(dense, given.steps)
        runs = {"mfmarl": mine[0], **({} if peer is None else {"blackjax": peer[0]})}
        seconds = interleaved(runs, given.rounds)
        rates = {name: CHAINS * given.steps / s for name, s in seconds.items()}
        # Both must sample the same law: 2 <H> = d, up to the bias of the step.
        rates["mfmarl 2<H>"] = mine[1]()
        if peer is not None:
            rates["blackjax 2<H>"], rates["ratio"] = peer[1](), rates["mfmarl"] / rates["blackjax"]
        found[case] = rates
    seconds = interleaved(network_steps(given.steps), given.rounds)
    found["microseconds a step, eight tensors"] = {name: s / given.steps * 1e6 for name, s in seconds.items()}
    if given.json:
        print(json.dumps(found, indent=1))
        return 0
    for case, rates in found.items():
        print(case)
        for name, value in rates.items():
            print(f"  {name:<22}{value:>16,.2f}")
    if "ratio" not in found["dense precision"]:
        print("blackjax is not installed here: no peer was timed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
