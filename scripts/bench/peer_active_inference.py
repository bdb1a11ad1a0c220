"""pymdp's rollouts on the worlds that bench_active_inference.py times: run by a Python that has inferactively-pymdp.

    .venv-peers/bin/python scripts/bench/peer_active_inference.py

Reads one request a line on standard input and answers with one line. {"world"} is answered with the model's tables;
{"world", "agents", "steps", "depth", "sweeps", "rounds"} with the CPU-seconds of a jitted rollout, the first time with
its compilation and the least of the warm ones. Single precision, one thread, pymdp's defaults but for the sweeps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from pymdp.agent import Agent
from pymdp.envs.grid_world import GridWorld
from pymdp.envs.rollout import rollout
from pymdp.envs.tmaze import TMaze


def world(name: str) -> tuple[Any, list[Any]]:
    """An environment of pymdp, and what is preferred there."""
    if name == "t_maze":
        env = TMaze(reward_probability=0.98, punishment_probability=0.98, cue_validity=0.95)
        return env, [jnp.zeros(5), jnp.array([0.0, 2.0, -4.0]), jnp.zeros(3)]
    env = GridWorld(shape=(7, 7), initial_position=(0, 0), success_prob=0.9)
    return env, [jnp.zeros(49).at[48].set(3.0)]


def tables(name: str) -> dict[str, Any]:
    env, C = world(name)
    return {
        "A": [np.asarray(a).tolist() for a in env.A],
        "B": [np.asarray(b).tolist() for b in env.B],
        "C": [np.asarray(c).tolist() for c in C],
        "D": [np.asarray(d).tolist() for d in env.D],
        "A_factors": env.A_dependencies,
        "B_factors": env.B_dependencies,
    }


def timed(request: dict[str, Any]) -> dict[str, float]:
    env, C = world(request["world"])
    agent = Agent(
        A=list(env.A),
        B=list(env.B),
        C=C,
        D=list(env.D),
        A_dependencies=env.A_dependencies,
        B_dependencies=env.B_dependencies,
        policy_len=request["depth"],
        gamma=4.0,
        num_iter=request["sweeps"],
        action_selection="stochastic",
        batch_size=request["agents"],
    )
    run = equinox.filter_jit(lambda key: rollout(agent, env, request["steps"] - 1, key)[1]["action"])
    spent = []
    for round_ in range(1 + request["rounds"]):
        started = time.process_time()
        run(jax.random.PRNGKey(round_)).block_until_ready()
        spent.append(time.process_time() - started)
    return {"first": spent[0], "warm": min(spent[1:])}


for line in sys.stdin:
    request = json.loads(line)
    answer = timed(request) if "agents" in request else tables(request["world"])
    print("ANSWER " + json.dumps(answer), flush=True)
