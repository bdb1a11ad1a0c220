"""Sophisticated inference against pymdp 1.0.4, live: the same tree, and the same pruned tree, to 1e-8.

pymdp keeps probabilities of branches in float32 whatever it is told; the script lets it keep float64, or its own rounding
(6e-8) would be all that is compared. Its branches are joint outcomes weighed by the product of the modalities'
probabilities, which is `branching="independent_outcomes"`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import deepening
from mfmarl.inference.planning.deepening import Thresholds
from mfmarl.inference.planning.sophisticated import plan
from tests.games.peers import ask
from tests.inference.planning.brute_force import beliefs, random_model

SCRIPT = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
import types, warnings
import numpy
warnings.filterwarnings("ignore")
import jax.numpy as jnp
from pymdp.agent import Agent
from pymdp.planning import si
wide = types.SimpleNamespace(**vars(jnp))
wide.float32 = jnp.float64
si.jnp = wide
answer = []
for case in given:
    batch = len(case["q"][0])
    def many(x):
        return jnp.broadcast_to(jnp.array(x, dtype=jnp.float64), (batch, *jnp.array(x).shape))
    factors = len(case["B"])
    agent = Agent(
        A=[many(a) for a in case["A"]], B=[many(b) for b in case["B"]], C=[many(c) for c in case["C"]],
        D=[many(d) for d in case["D"]],
        B_action_dependencies=[[0]] * factors, num_controls=[case["controls"]], batch_size=batch, gamma=case["gamma"],
    )
    options = {**case["options"], "horizon": numpy.int32(case["options"]["horizon"])}  # else x64 does not type-check
    search = si.si_policy_search(gamma=case["gamma"], **options)
    qs = [jnp.array(q, dtype=jnp.float64)[:, None] for q in case["q"]]
    q_pi, info = search(agent, qs)
    tree = info["tree"]
    answer.append({"q_pi": q_pi.tolist(), "value": tree.neg_efe[:, 0, 0].tolist(), "nodes": tree.used.sum((1, 2)).tolist()})
"""
WHOLE = {
    "policy_prune_threshold": 0.0,
    "observation_prune_threshold": 1e-12,  # its logarithms have a floor, by which the impossible has probabilities
    "entropy_stop_threshold": -1.0,
    "max_branching": 16,
}


def case(model: GenerativeModel, q: tuple[Tensor, ...], gamma: float, options: dict[str, Any]) -> dict[str, Any]:
    tables = {name: [x.tolist() for x in getattr(model, name)] for name in ("A", "B", "C", "D")}
    return {**tables, "controls": model.num_actions, "q": [x.tolist() for x in q], "gamma": gamma, "options": options}


def maze() -> GenerativeModel:
    """The T-maze with a 95 % cue and 98 % rewards: places middle, left, right, cue; arms hold whoever enters."""
    place, side = 4, 2
    A0 = torch.eye(place, dtype=torch.float64).unsqueeze(-1).expand(place, place, side).clone()
    reward = torch.zeros(3, place, side, dtype=torch.float64)
    reward[0, [0, 3]] = 1
    for s in range(side):
        for arm in (1, 2):
            win = 0.98 if arm == s + 1 else 0.02
            reward[1, arm, s], reward[2, arm, s] = win, 1 - win
    hint = torch.zeros(3, place, side, dtype=torch.float64)
    hint[0, :3] = 1
    hint[1:, 3] = torch.tensor([[0.95, 0.05], [0.05, 0.95]], dtype=torch.float64)
    moves = torch.zeros(place, place, place, dtype=torch.float64)
    for u in range(place):
        for start in range(place):
            moves[start if start in (1, 2) else u, start, u] = 1
    stay = torch.eye(side, dtype=torch.float64).unsqueeze(-1).expand(side, side, place).clone()
    wanted = torch.tensor([0.0, 2.0, -3.0], dtype=torch.float64)
    return GenerativeModel(
        A=(A0, reward, hint),
        B=(moves, stay),
        C=(torch.zeros(place, dtype=torch.float64), wanted, torch.zeros(3, dtype=torch.float64)),
        D=(torch.eye(place, dtype=torch.float64)[0], torch.full((side,), 0.5, dtype=torch.float64)),
        B_controls=((0,), (0,)),
        controls=(place,),
    )


def as_pymdp(model: GenerativeModel, q: tuple[Tensor, ...], depth: int, gamma: float) -> tuple[Tensor, Tensor]:
    found = plan(
        model,
        q,
        depth,
        gamma,
        Objective(normalise=False),
        "expectation",
        branching="independent_outcomes",
        method="parallel",
    ).value
    p = torch.softmax(gamma * found, -1)
    return p, (p * found).sum(-1)


@pytest.mark.verify
def test_the_whole_tree_is_pymdps() -> None:
    one = random_model(1, sizes=(3,), outcomes=(2, 2))
    three = random_model(2, sizes=(2, 3), outcomes=(2, 2), sharp=0.7)
    tmaze = maze()
    middle = (tmaze.D[0].expand(2, -1), torch.tensor([[0.5, 0.5], [0.8, 0.2]], dtype=torch.float64))
    asked = [
        (one, beliefs(3, (3,), one.sizes), 2, 1.7, 120),
        (three, beliefs(4, (2,), three.sizes), 2, 0.8, 120),
        (tmaze, middle, 2, 1.0, 120),
        (tmaze, middle, 3, 2.0, 800),
    ]
    given = [case(m, q, gamma, {**WHOLE, "horizon": depth, "max_nodes": nodes}) for m, q, depth, gamma, nodes in asked]
    answers = ask(SCRIPT, given, needs=("pymdp",))
    for (model, q, depth, gamma, nodes), answer in zip(asked, answers, strict=True):
        assert max(answer["nodes"]) < nodes - 1  # where it runs out of nodes it returns the tree of a smaller depth
        p, value = as_pymdp(model, q, depth, gamma)
        theirs = torch.tensor(answer["q_pi"], dtype=torch.float64)
        assert float((p - theirs).abs().max()) < 1e-8, (depth, p, theirs)
        assert float((value - torch.tensor(answer["value"], dtype=torch.float64)).abs().max()) < 1e-8


@pytest.mark.verify
def test_the_pruned_tree_is_pymdps() -> None:
    """Its own thresholds of 1/16, its penalty, and where it stops; and others, in the depth that they allow."""
    one = random_model(5, sizes=(4,), outcomes=(3, 2), controls=3, sharp=3.0)
    wanted = GenerativeModel(A=one.A, B=one.B, C=tuple(2 * c for c in one.C), D=one.D)
    tmaze = maze()
    middle = (tmaze.D[0].expand(3, -1), torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.99, 0.01]], dtype=torch.float64))
    settings: list[tuple[GenerativeModel, tuple[Tensor, ...], int, float, Thresholds, int]] = [
        (wanted, beliefs(6, (3,), one.sizes), 2, 1.5, Thresholds(), 300),
        (wanted, beliefs(7, (3,), one.sizes), 2, 0.6, Thresholds(0.2, 0.1, -1.0, 64.0), 300),
        (tmaze, middle, 3, 2.0, Thresholds(entropy=0.05), 400),
        (tmaze, middle, 3, 1.0, Thresholds(), 400),
    ]
    given = [
        case(
            model,
            q,
            gamma,
            {
                "horizon": depth,
                "max_nodes": nodes,
                "max_branching": 16,
                "policy_prune_threshold": drop.action,
                "observation_prune_threshold": drop.outcome,
                "entropy_stop_threshold": drop.entropy,
                "prune_penalty": drop.penalty,
            },
        )
        for model, q, depth, gamma, drop, nodes in settings
    ]
    answers = ask(SCRIPT, given, needs=("pymdp",))
    for (model, q, depth, gamma, drop, _), answer in zip(settings, answers, strict=True):
        found = deepening.plan(
            model, q, depth, gamma, Objective(normalise=False), thresholds=drop, method="parallel"
        ).value
        p = torch.softmax(gamma * found, -1)
        assert float((p - torch.tensor(answer["q_pi"], dtype=torch.float64)).abs().max()) < 1e-8, (depth, gamma, drop)
        value = torch.tensor(answer["value"], dtype=torch.float64)
        assert float(((p * found).sum(-1) - value).abs().max()) < 1e-8
