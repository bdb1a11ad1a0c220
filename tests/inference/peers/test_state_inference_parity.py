"""State inference against pymdp 1.0.4, live in float64: beliefs, free energies and their parts, all to 1e-8.

Ours take pymdp's floor under logarithms (float64's epsilon), its parallel sweeps and as many of them. Where a smoother
divides by predictions that are zero, the two differ by what they take for 0/0; such steps have no weight.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.t_maze import TMaze
from mfmarl.inference import dirichlet, filtering, message_passing, smoothing
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key
from tests.games.peers import ask
from tests.inference.test_model import columns

pytestmark = pytest.mark.verify

FLOOR = 2.220446049250313e-16
BAR = 1e-8
TIMES, AGENTS = 5, 12
VALID = torch.tensor([5, 3, 1, 4, 5, 2] * 2)  # steps of the window that each agent has lived through

SCRIPT = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
import warnings
warnings.filterwarnings("ignore")
import jax, jax.numpy as jnp
from pymdp import algos, inference, maths
answer = {}
for name, case in given.items():
    A = [jnp.array(a) for a in case["A"]]
    B = [jnp.array(b) for b in case["B"]]
    D = [jnp.array(d) for d in case["D"]]
    seen = [jnp.moveaxis(jnp.array(w), 1, 0) for w in case["seen"]]   # [n, T, O_m]
    past = jnp.moveaxis(jnp.array(case["past"]), 1, 0)                # [n, T - 1, F]
    filtered = [jnp.moveaxis(jnp.array(q), 1, 0) for q in case["filtered"]]
    deps = dict(A_dependencies=case["A_factors"], B_dependencies=case["B_factors"])
    def all_of(w, u, valid, q):
        found = {}
        o = [x[0] for x in w]
        fpi = algos.run_factorized_fpi(A, o, D, case["A_factors"], num_iter=16)
        cost, _, parts = maths.calc_vfe(fpi, D, obs=o, A=A, A_dependencies=case["A_factors"], return_decomposition=True)
        found["fpi"] = fpi, cost, parts["neg_entropy_t"] + parts["prior_cross_entropy_t"], parts["accuracy_t"]
        steps = inference._condition_transitions_on_actions(B, u)
        for method, run in (("vmp", algos.run_vmp), ("mmp", algos.run_mmp)):
            qs, info = inference.update_posterior_states(
                A, B, w, u, prior=D, num_iter=8, method=method, valid_steps=valid, return_info=True, **deps
            )
            found[method] = qs, info["vfe"], info["vfe_components"]["accuracy_t"].sum()
            found["damped " + method] = run(A, steps, w, D, case["A_factors"], case["B_factors"], num_iter=5, tau=0.5)
        if case["chains"]:
            found["ovf"] = inference.smoothing_ovf(q, B, u)
        if len(B) == 1:
            smoothed, pairs = inference.smoothing_exact(q, B, u)
            total = maths.calc_vfe(smoothed, D, obs=w, A=A, B=B, past_actions=u, joint_qs=pairs)[1]
            found["exact"] = smoothed, pairs, total, algos.run_exact_single_factor_hmm_scan(w, A, B, D, u)[0]
        return found
    found = jax.jit(jax.vmap(all_of))(seen, past, jnp.array(case["valid"]), filtered)
    answer[name] = jax.tree_util.tree_map(lambda x: x.tolist(), found)
q, p = (jnp.array(x) for x in given["single"]["counts"])
answer["price"] = float(maths.dirichlet_kl_divergence(q, p))
"""


def several() -> GenerativeModel:
    """Three factors, two of which move by another one too, two controls; four modalities of one to three factors."""
    return GenerativeModel(
        A=(columns(0, 4, 3, 2), columns(1, 3, 4), columns(2, 5, 2, 4, 3), columns(3, 2, 2)),
        B=(columns(4, 3, 3, 2, 2), columns(5, 2, 2), columns(6, 4, 4, 3, 3)),
        C=tuple(torch.zeros(n).double() for n in (4, 3, 5, 2)),
        D=(columns(7, 3), columns(8, 2), columns(9, 4)),
        A_factors=((0, 1), (2,), (1, 2, 0), (1,)),
        B_factors=((0, 1), (1,), (2, 0)),
        B_controls=((0,), (), (1,)),
        controls=(2, 3),
    )


def apart() -> GenerativeModel:
    """Two factors that move by themselves, sharp, seen together."""
    a, b = columns(20, 4, 3, 2).pow(3), columns(21, 3, 3).pow(3)
    left, right = columns(22, 3, 3, 2).pow(3), columns(23, 2, 2, 3).pow(3)
    return GenerativeModel(
        A=(a / a.sum(0), b / b.sum(0)),
        B=(left / left.sum(0), right / right.sum(0)),
        C=(torch.zeros(4).double(), torch.zeros(3).double()),
        D=(columns(24, 3), columns(25, 2)),
        A_factors=((0, 1), (0,)),
    )


def single() -> GenerativeModel:
    return GenerativeModel(
        A=(columns(30, 4, 6), columns(31, 3, 6)),
        B=(columns(32, 6, 6, 3),),
        C=(torch.zeros(4).double(), torch.zeros(3).double()),
        D=(columns(33, 6),),
    )


def world(name: str) -> GenerativeModel:
    if name == "t_maze":
        return TMaze().generative_model()
    return {"several": several, "apart": apart, "single": single}[name]()


def played(model: GenerativeModel) -> tuple[list[Tensor], Tensor]:
    """What agents see who live in the model, as weights [T, n, O_m], and what they do [T - 1, n]. Half of them see
    clearly, and half uncertainly."""
    ids = torch.arange(AGENTS)
    key = Key.of(3)
    actions = random.integers(key.fold("act"), ids, model.num_actions, TIMES - 1).T
    state = [_pick(d.expand(AGENTS, -1), key.fold("begin", f), ids) for f, d in enumerate(model.D)]
    seen: list[list[Tensor]] = [[] for _ in model.A]
    for t in range(TIMES):
        if t:
            tables = [model.of_action(f, actions[t - 1]) for f in range(len(state))]
            rows = [
                x.movedim(1, -1)[(ids, *[state[g] for g in own])]
                for x, own in zip(tables, model.B_factors, strict=True)
            ]
            state = [_pick(x, key.fold("move", t, f), ids) for f, x in enumerate(rows)]
        for m, (a, own) in enumerate(zip(model.A, model.A_factors, strict=True)):
            shown = _pick(a.movedim(0, -1)[tuple(state[f] for f in own)], key.fold("see", t, m), ids)
            weight = torch.nn.functional.one_hot(shown, a.shape[0]).double()
            noise = random.exponential(key.fold("blur", t, m), ids, a.shape[0]).double()
            blurred = 0.7 * weight + 0.3 * noise / noise.sum(-1, keepdim=True)
            seen[m].append(torch.where((ids < AGENTS // 2).unsqueeze(-1), weight, blurred))
    return [torch.stack(x) for x in seen], actions


def _pick(p: Tensor, key: Key, ids: Tensor) -> Tensor:
    return (p.cumsum(-1) < random.uniform(key, ids).double().unsqueeze(-1) * p.sum(-1, keepdim=True)).sum(-1)


def given(name: str) -> dict[str, Any]:
    model = world(name)
    seen, actions = played(model)
    settings = model.settings()[actions]
    past = torch.stack([settings[..., own[0]] if own else torch.zeros_like(actions) for own in model.B_controls], -1)
    believed, _ = filtering.follow(model, seen, actions, "parallel", floor=FLOOR, check=False)
    case = {
        "A": [a.tolist() for a in model.A],
        "B": [(b if own else b.unsqueeze(-1)).tolist() for b, own in zip(model.B, model.B_controls, strict=True)],
        "D": [d.tolist() for d in model.D],
        "A_factors": model.A_factors,
        "B_factors": model.B_factors,
        "seen": [w.tolist() for w in seen],
        "past": past.tolist(),
        "valid": VALID.tolist(),
        "chains": name != "several",
        "filtered": [torch.stack([q[f] for q in believed]).tolist() for f in range(len(model.D))],
    }
    if name == "single":
        case["counts"] = [x.tolist() for x in _counts()]
    return case


NAMES = ("several", "apart", "single", "t_maze")


def theirs() -> dict[str, Any]:
    found: dict[str, Any] = ask(SCRIPT, {name: given(name) for name in NAMES}, needs=("pymdp",))
    return found


def _counts() -> tuple[Tensor, Tensor]:
    before = 3 * columns(50, 4, 3, 2)
    return before + columns(51, 4, 3, 2), before


def agree(ours: Tensor, them: Any) -> None:
    other = torch.tensor(them, dtype=torch.float64)
    assert ours.shape == other.shape
    assert float((ours - other).abs().max()) < BAR


@pytest.mark.parametrize("name", NAMES)
def test_one_update_by_parallel_sweeps(name: str) -> None:
    found = theirs()[name]["fpi"]
    model = world(name)
    seen, _ = played(model)
    step = filtering.update(model, model.D, [w[0] for w in seen], "parallel", floor=FLOOR)
    for f, q in enumerate(found[0]):
        agree(step.factors[f], q)
    agree(step.free_energy, found[1])
    agree(step.complexity, found[2])
    agree(step.accuracy, found[3])
    if len(model.D) == 1:  # theirs is one pass then, and so exact
        exact = filtering.update(model, model.D, [w[0] for w in seen], floor=FLOOR)
        agree(exact.factors[0], found[0][0])
        agree(exact.free_energy, found[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rule", "theirs_is"), [("variational", "vmp"), ("marginal", "mmp")])
def test_messages_over_a_window(name: str, rule: message_passing.Rule, theirs_is: str) -> None:
    found = theirs()[name][theirs_is]
    model = world(name)
    seen, actions = played(model)
    # Some have lived through so many last steps only: nothing was seen before, and no way leads from there.
    absent = torch.arange(TIMES).unsqueeze(-1) < TIMES - VALID
    seen = [torch.where(absent.unsqueeze(-1), 0.0, w) for w in seen]
    actions = torch.where(absent[:-1], -1, actions)
    got = message_passing.infer(model, seen, actions, rule, schedule="parallel", iterations=8, floor=FLOOR)
    for f, q in enumerate(found[0]):
        agree(got.factors[f].movedim(0, 1), q)
    agree(got.free_energy, found[1])
    agree(got.accuracy, found[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rule", "theirs_is"), [("variational", "damped vmp"), ("marginal", "damped mmp")])
def test_messages_that_go_half_of_the_way(name: str, rule: message_passing.Rule, theirs_is: str) -> None:
    model = world(name)
    seen, actions = played(model)
    got = message_passing.infer(model, seen, actions, rule, schedule="parallel", iterations=5, step=0.5, floor=FLOOR)
    for f, q in enumerate(theirs()[name][theirs_is]):
        agree(got.factors[f].movedim(0, 1), q)


@pytest.mark.parametrize("name", ["apart", "single", "t_maze"])
def test_smoothing_of_factors_that_were_filtered_apart(name: str) -> None:
    found = theirs()[name]["ovf"]
    model = world(name)
    seen, actions = played(model)
    believed, _ = filtering.follow(model, seen, actions, "parallel", floor=FLOOR, check=False)
    states, pairs = smoothing.of_factors(model, believed, actions)
    for f in range(len(model.D)):
        agree(states[f].movedim(0, 1), found[0][f])
        agree(pairs[f].movedim(0, 1), found[1][f])


def test_smoothing_of_one_factor() -> None:
    found = theirs()["single"]["exact"]
    model = single()
    seen, actions = played(model)
    got = smoothing.smooth(model, seen, actions, floor=FLOOR)
    agree(got.states.movedim(0, 1), found[0][0])
    agree(got.pairs.movedim(0, 1), found[1][0])
    agree(got.free_energy, found[2])
    agree(-got.free_energy, found[3])


def test_the_price_of_counts() -> None:
    after, before = _counts()
    assert abs(float(dirichlet.divergence(after, before, 0).sum()) - theirs()["price"]) < BAR
