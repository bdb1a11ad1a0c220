"""How fast a restricted Boltzmann machine learns, beside scikit-learn's and thrml's. CPU-seconds of one process.

    python scripts/bench/bench_machines.py            ours, and whichever peers can be imported
    python scripts/bench/bench_machines.py --no-thrml  without thrml, which takes a minute to set up

784 visible and 256 hidden units, minibatches of 100 rows, one step of block Gibbs per update. Ours and scikit-learn's
`BernoulliRBM` are timed over a whole epoch of `fit` (50 minibatches, shuffling and all; ours with momentum), float32
and float64; thrml's `estimate_kl_grad` (spins -1 and +1, one persistent step of 100 chains) per gradient, after it is
compiled. Rounds are interleaved, and the median is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from mfmarl import random
from mfmarl.random import Key
from mfmarl.statmech.energy_learning.training import Training, initial_rbm, train_rbm

VISIBLE, HIDDEN, BATCH, UPDATES = 784, 256, 100, 50
Epoch = Callable[[], float]
"""Runs some updates; returns CPU-seconds per update."""


def rows(dtype: torch.dtype) -> torch.Tensor:
    return (random.uniform(Key.of(1), torch.arange(BATCH * UPDATES), VISIBLE) < 0.2).to(dtype)


def ours(method: str, dtype: torch.dtype) -> Epoch:
    data = rows(dtype)
    start = initial_rbm(data, HIDDEN, Key.of(2))
    options = Training(epochs=1, batch_size=BATCH, chains=BATCH, learning_rate=0.01, method=method)  # type: ignore[arg-type]

    def epoch() -> float:
        begun = time.process_time()
        for _ in train_rbm(start, data, Key.of(3), options):
            pass
        return (time.process_time() - begun) / UPDATES

    return epoch


def scikit_learn(dtype: torch.dtype) -> Epoch:
    from sklearn.neural_network import BernoulliRBM

    data = rows(dtype).numpy()

    def epoch() -> float:
        machine = BernoulliRBM(HIDDEN, learning_rate=0.01, batch_size=BATCH, n_iter=1, random_state=0)
        begun = time.process_time()
        machine.fit(data)
        return (time.process_time() - begun) / UPDATES

    return epoch


def thrml() -> Epoch:
    # By name: peers are not among the packages that types are checked with.
    equinox, jax, jnp, package, models = (
        import_module(name) for name in ("equinox", "jax", "jax.numpy", "thrml", "thrml.models")
    )
    Block, SpinNode = package.Block, package.SpinNode
    visible, hidden = [SpinNode() for _ in range(VISIBLE)], [SpinNode() for _ in range(HIDDEN)]
    edges = [(v, h) for v in visible for h in hidden]
    weights = jnp.asarray(random.normal(Key.of(2), torch.arange(len(edges))).numpy() * 0.01)
    nodes = [*visible, *hidden]
    model = models.IsingEBM(nodes, edges, jnp.zeros(len(nodes)), weights, jnp.array(1.0))
    once = package.SamplingSchedule(1, 1, 1)
    spec = models.IsingTrainingSpec(
        model, [Block(visible)], [], [Block(hidden)], [Block(hidden), Block(visible)], once, once
    )  # fmt: skip
    data = jnp.asarray(rows(torch.float32)[:BATCH].bool().numpy())
    up, down = jnp.zeros((1, BATCH, HIDDEN), bool), [jnp.zeros((BATCH, HIDDEN), bool), data]

    @equinox.filter_jit
    def gradient(key: Any, spec: Any) -> Any:
        return models.estimate_kl_grad(key, spec, nodes, edges, [data], [], [up], down)[:2]

    jax.block_until_ready(gradient(jax.random.key(0), spec))
    turn = 0

    def epoch() -> float:
        nonlocal turn
        turn += 1
        begun = time.process_time()
        jax.block_until_ready(gradient(jax.random.key(turn), spec))
        return time.process_time() - begun

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each is run (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    parser.add_argument("--no-thrml", action="store_true", help="leave thrml out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    players: dict[str, Epoch] = {}
    for dtype in (torch.float32, torch.float64):
        for method in ("cd", "persistent"):
            players[f"mfmarl, {method}, {str(dtype)[6:]}"] = ours(method, dtype)
        try:
            players[f"scikit-learn, persistent, {str(dtype)[6:]}"] = scikit_learn(dtype)
        except ImportError:
            print("scikit-learn cannot be imported: left out.", file=sys.stderr)
    if not given.no_thrml:
        try:
            players["thrml, persistent, float32"] = thrml()
        except ImportError:
            print("thrml cannot be imported: left out.", file=sys.stderr)
    took: dict[str, list[float]] = {name: [] for name in players}
    for player in players.values():
        player()
    for _ in range(given.rounds):
        for name, player in players.items():
            took[name].append(player())
    median = {name: statistics.median(values) for name, values in took.items()}
    peers = [name for name in median if "mfmarl" not in name]
    ratios = {
        f"{mine} / {peer}": median[peer] / median[mine]
        for mine in median
        if "mfmarl" in mine
        for peer in peers
        if mine.split(", ")[1] == "persistent" and (mine.split(", ")[2] == peer.split(", ")[2])
    }
    if given.json:
        print(json.dumps({"seconds_per_update": median, "times_as_fast": ratios}))
        return
    print(f"RBM {VISIBLE} x {HIDDEN}, {BATCH} rows an update, one step: medians of {given.rounds}, CPU-seconds")
    for name, seconds in median.items():
        print(f"{name:<40}{1e3 * seconds:10.2f} ms an update{1 / seconds:10.1f} a second")
    for name, ratio in ratios.items():
        print(f"{name:<70}{ratio:8.2f} times as fast")


if __name__ == "__main__":
    main()
