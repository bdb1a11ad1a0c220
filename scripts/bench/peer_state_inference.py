"""pymdp's belief updates on the models that bench_state_inference.py sends: run by a Python that has inferactively-pymdp.

    .venv-peers/bin/python scripts/bench/peer_state_inference.py

Reads one request a line on standard input, tables as lists and observations [n, M] ([n, T, M] of windows), and answers with one line: CPU-seconds
of one jitted update of all agents, the first with its compilation and the least of the warm ones. "agent": as
`Agent.infer_states` has it, with tables of each agent's own; "shared": its inner function, mapped over agents that share
their tables. Single precision, one thread.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import equinox
import jax
import jax.numpy as jnp
from pymdp import inference
from pymdp.agent import Agent


def update(request: dict[str, Any]) -> Callable[[], Any]:
    A, B, D = ([jnp.array(x, dtype=jnp.float32) for x in request[name]] for name in "ABD")
    seen = jnp.array(request["seen"])
    agents = len(seen)
    prior = [jnp.array(q, dtype=jnp.float32) for q in request["expected"]]
    deps = {"A_dependencies": request["A_factors"], "B_dependencies": request["B_factors"]}
    if request["tables"] == "agent":
        agent = Agent(
            A=A, B=B, D=D, batch_size=agents, num_iter=request["sweeps"], inference_algo=request["method"], **deps
        )
        run = equinox.filter_jit(lambda agent, o, p: agent.infer_states(o, empirical_prior=p))
        shown = [seen[:, m, None] for m in range(seen.shape[1])]
        return lambda: run(agent, shown, prior)

    if request["method"] in ("vmp", "mmp"):
        past = jnp.array(request["past"])

        def window(o: Any, u: Any, p: Any) -> Any:
            hot = [jax.nn.one_hot(o[:, m], a.shape[0]) for m, a in enumerate(A)]
            return inference.update_posterior_states(
                A, B, hot, u, prior=p, num_iter=request["sweeps"], method=request["method"], **deps
            )

        windows = jax.jit(jax.vmap(window))
        return lambda: windows(seen, past, prior)

    def one(o: Any, p: Any) -> Any:
        hot = [jax.nn.one_hot(o[m], a.shape[0])[None] for m, a in enumerate(A)]
        return inference.update_posterior_states(
            A, B, hot, None, prior=p, num_iter=request["sweeps"], method=request["method"], **deps
        )

    mapped = jax.jit(jax.vmap(one))
    return lambda: mapped(seen, prior)


for line in sys.stdin:
    request = json.loads(line)
    run = update(request)
    spent = []
    for _ in range(1 + request["rounds"]):
        started = time.process_time()
        found = run()
        jax.block_until_ready(found)
        spent.append(time.process_time() - started)
    beliefs = [q[:100].tolist() if q.shape[1] > 1 else q[:100, 0].tolist() for q in found]
    print("ANSWER " + json.dumps({"first": spent[0], "warm": min(spent[1:]), "beliefs": beliefs}), flush=True)
