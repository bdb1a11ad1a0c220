"""What a run is said to take in memory, held against what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURE = """
import sys, threading, time
import psutil
from mfmarl.learning.build import build
from mfmarl.learning.footprint import estimate
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions

name, agent = sys.argv[1:]

def config(agents):
    options = RunOptions(steps=5, copies=1, evaluation_copies=0, exploitability="off")
    return RunConfig(Choice(name, {"num_agents": agents}), {"all": Choice(agent)}, options)

def play(agents):
    training = build(config(agents)).training
    for _ in range(5):
        training.step()
    return training.episode.env.spec

play(100)
process, peak, done = psutil.Process(), 0, threading.Event()
before = process.memory_info().rss

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, process.memory_info().rss)

thread = threading.Thread(target=watch)
thread.start()
spec = play(300_000)
done.set()
thread.join()
print(estimate(config(300_000), spec).total / (peak - before))
"""


@pytest.mark.verify
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is fitted to Linux' allocator")
@pytest.mark.parametrize(
    ("environment", "agent"),
    [
        ("beach_bar", "mfq"),
        ("susceptible_infected", "mfppo"),
        ("congestion", "mfq"),
        ("ising", "mfq"),
        ("flocking", "mfppo"),
    ],
)
def test_the_estimate_is_what_a_large_population_takes(environment: str, agent: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, environment, agent], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 0.7 < float(done.stdout) < 1.4
