"""What torch.compile would give the acting network, beside eager torch: a chunk of 16,384 rows, in turns.

    python scripts/bench/bench_compile.py

The reason why a run has no such option: on a processor the products of a 64-64 network are the same calls either way.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mfmarl import random
from mfmarl.learning.networks import Network
from mfmarl.population.spec import Spec
from mfmarl.random import Key

torch.set_num_threads(1)
ROWS, TIMES = 1 << 14, 40


def main() -> None:
    network = Network(Spec(4, Box(-1, 1, (1,), np.float32), Discrete(2)), 2, (64, 64), 2, 1, Key.of(0))
    ids = torch.arange(ROWS).unsqueeze(0)
    obs, field = random.uniform(Key.of(1), ids, 1), random.uniform(Key.of(2), ids, 2)
    with torch.no_grad():
        begun, cpu = time.perf_counter(), time.process_time()
        compiled = torch.compile(network, dynamic=False)
        same = all(torch.equal(compiled(obs, field), network(obs, field)) for _ in range(2))
        print(
            f"compiling: {time.perf_counter() - begun:.1f} s, {time.process_time() - cpu:.1f} CPU-s here; bits {'equal' if same else 'differ'}"
        )
        for _ in range(5):
            speeds = []
            for act in (network, compiled):
                cpu = time.process_time()
                for _ in range(TIMES):
                    act(obs, field)
                speeds.append(TIMES * ROWS / (time.process_time() - cpu) / 1e6)
            print(
                f"  eager {speeds[0]:.2f}, compiled {speeds[1]:.2f} million rows/CPU-s: {speeds[1] / speeds[0]:.2f} x"
            )


if __name__ == "__main__":
    main()
