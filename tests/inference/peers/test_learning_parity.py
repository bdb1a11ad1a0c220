"""Learning against pymdp 1.0.4, live, in float64: counts of A and B, what they tell, and how far they moved; to 1e-8.

Its zeros fill up (`zeros="filled"`), and it has neither forgetting nor counts of C, D and E. Its information on B has
the action of a factor's own control; with several controls it numbers their settings as we do, the last one fastest.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.inference import counts as learning
from mfmarl.inference.counts import Counts, begin, expected
from mfmarl.inference.files import from_lists, to_lists
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key
from tests.games.peers import ask
from tests.inference.test_model import columns, tangled

AGENTS, TIMES = 3, 6
NEEDS = ("pymdp", "jax")
BEFORE = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
import warnings
warnings.filterwarnings("ignore")
import jax.numpy as jnp
from jax import vmap
from pymdp import control, learning, maths
from pymdp.agent import Agent
def arrays(x):
    return [jnp.array(a, dtype=jnp.float64) for a in x]
"""
LEARNED = (
    BEFORE
    + """
lists = given["lists"]
batch = len(given["actions"])
def many(x):
    return [jnp.broadcast_to(a, (batch, *a.shape)) for a in arrays(x)]
agent = Agent(
    A=arrays(lists["A"]), B=arrays(lists["B"]), C=arrays(lists["C"]), D=arrays(lists["D"]),
    pA=arrays(given["pA"]), pB=arrays(given["pB"]),
    A_dependencies=lists["A_dependencies"], B_dependencies=lists["B_dependencies"],
    B_action_dependencies=lists["B_action_dependencies"], num_controls=lists["num_controls"],
    batch_size=batch, learn_A=True, learn_B=True, categorical_obs=given["soft"],
)
seen = [jnp.array(o) for o in given["seen"]]
after = agent.infer_parameters(
    arrays(given["q"]), seen, jnp.array(given["actions"]), beliefs_B=arrays(given["q"]),
    lr_pA=given["rate"], lr_pB=given["rate"],
)
answer = {name: [x.tolist() for x in getattr(after, name)] for name in ("pA", "pB", "A", "B")}
"""
)
TOLD = (
    BEFORE
    + """
lists = given["lists"]
pA, pB, A = arrays(given["pA"]), arrays(given["pB"]), arrays(lists["A"])
qs, before = arrays(given["q"]), arrays(given["before"])
def of_A(qs):
    qo = control.compute_expected_obs(qs, A, lists["A_dependencies"])
    return -control.calc_negative_pA_info_gain(pA, qo, qs, lists["A_dependencies"])
def of_B(qs, before, u):
    return -control.calc_negative_pB_info_gain(pB, qs, before, lists["B_dependencies"], u)
answer = {
    "A": vmap(of_A)(qs).tolist(),
    "B": vmap(of_B)(qs, before, jnp.array(given["actions"])).tolist(),
    "cost": float(sum(maths.dirichlet_kl_divergence(a, jnp.ones_like(a)) for a in pA + pB)),
}
"""
)


def plain() -> GenerativeModel:
    """Two factors with a control each, the second of which moves by the first too."""
    return from_lists(
        [columns(0, 4, 2, 3), columns(1, 2, 3)],
        [columns(2, 2, 2, 3), columns(3, 3, 3, 2, 2)],
        A_dependencies=[[0, 1], [1]],
        B_dependencies=[[0], [1, 0]],
    )


def started(model: GenerativeModel, seed: int = 0) -> Counts:
    counts = begin(model, "AB", scale=0.5, zeros="filled")
    return counts.map(lambda a: a + 3 * random.uniform(Key.of(seed), torch.arange(a.numel())).double().reshape(a.shape))


def lists(tables: Any) -> Any:
    return [x.tolist() for x in tables]


def settings(model: GenerativeModel, action: Tensor) -> Tensor:
    """pymdp's actions: one number for each factor."""
    own = [learning.setting_of_action(model, f)[action] for f in range(len(model.B))]
    return torch.stack(own, -1)


def near(mine: Any, theirs: Any) -> None:
    for one, other in zip(mine, theirs, strict=True):
        difference = (one - torch.tensor(other, dtype=torch.float64)).abs().max()
        assert float(difference) < 1e-8


@pytest.mark.verify
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["plain", "tangled"])
def test_counts_of_whole_histories_are_pymdps(name: str, soft: bool) -> None:
    """Agents who each count for themselves, several times at once, as `Agent.infer_parameters` does."""
    model = plain() if name == "plain" else tangled()
    start = started(model)
    q = tuple(columns(10 + f, AGENTS, TIMES, s, axis=2) for f, s in enumerate(model.sizes))
    action = random.integers(Key.of(5), torch.arange(AGENTS * (TIMES - 1)).view(AGENTS, -1), model.num_actions)
    seen: Any = torch.stack(
        [
            random.integers(Key.of(m), torch.arange(AGENTS * TIMES).view(AGENTS, -1), n)
            for m, n in enumerate(model.outcomes)
        ],
        -1,
    )
    told = [columns(20 + m, AGENTS, TIMES, n, axis=2) for m, n in enumerate(model.outcomes)]
    own = start.map(lambda a: a.expand(AGENTS, 1, *a.shape).clone())
    mine = learning.learn_A(model, own, told if soft else seen, q, rate=0.6)
    before, after = [x[:, :-1] for x in q], [x[:, 1:] for x in q]
    mine = learning.learn_B(model, mine, before, action, after, rate=0.6)
    assert start.A is not None and start.B is not None and mine.A is not None and mine.B is not None
    given = {name: lists(x) if name in "ABCD" else x for name, x in to_lists(model).items()}
    theirs = ask(
        LEARNED,
        {
            "lists": {**given, "E": None},
            "pA": lists(start.A),
            "pB": lists(start.B),
            "q": lists(q),
            "seen": lists(told if soft else seen.unbind(-1)),
            "actions": settings(model, action).tolist(),
            "soft": soft,
            "rate": 0.6,
        },
        needs=NEEDS,
    )
    near([a.squeeze(1) for a in mine.A if a is not None], theirs["pA"])
    flat = [
        b.squeeze(1) if n < 2 else b.squeeze(1).flatten(-n)
        for b, n in zip(mine.B, map(len, model.B_controls), strict=True)
    ]  # type: ignore[union-attr]
    near(flat, theirs["pB"])
    mean = expected(model, mine)
    near([a.squeeze(1) for a in mean.A], theirs["A"])
    means = [
        b.squeeze(1) if n < 2 else b.squeeze(1).flatten(-n)
        for b, n in zip(mean.B, map(len, model.B_controls), strict=True)
    ]
    near(means, theirs["B"])


@pytest.mark.verify
def test_what_counts_tell_and_cost_is_pymdps() -> None:
    model = plain()
    counts = started(model, 1)
    mean = expected(model, counts)
    before = tuple(columns(10 + f, 50, s, axis=1) for f, s in enumerate(model.sizes))
    q = tuple(columns(30 + f, 50, s, axis=1) for f, s in enumerate(model.sizes))
    action = random.integers(Key.of(5), torch.arange(50), model.num_actions)
    given = {name: lists(x) if name in "ABCD" else x for name, x in to_lists(mean).items()}
    assert counts.A is not None and counts.B is not None
    theirs = ask(
        TOLD,
        {
            "lists": given,
            "pA": lists(counts.A),
            "pB": lists(counts.B),
            "q": lists(q),
            "before": lists(before),
            "actions": settings(model, action).tolist(),
        },
        needs=NEEDS,
    )
    near([learning.information_A(mean, counts, q, "pymdp")], [theirs["A"]])
    near([learning.information_B(mean, counts, before, action, q, "pymdp")], [theirs["B"]])
    ones = counts.map(torch.ones_like)
    assert float(learning.parameter_cost(model, counts, ones)) == pytest.approx(theirs["cost"], abs=1e-8)
