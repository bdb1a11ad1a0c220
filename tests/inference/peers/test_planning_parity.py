"""Open-loop plans against pymdp 1.0.4, live, in float64: values, posteriors and every term, to 1e-8.

pymdp adds up preferences as they are (`normalise=False`), information by modalities, that of parameters as "pymdp" has
it, and has no information on what nobody learns. Models: its T-maze, a grid with walls of its own edges, random ones of
several factors that move by each other and by several controls, with preferences of each time, habits, counts and goals.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.inference.counts import Counts, begin
from mfmarl.inference.expected_free_energy import of_beliefs
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning.inductive import inductive
from mfmarl.inference.planning.open_loop import plan
from mfmarl.inference.policies import log_actions
from tests.games.peers import ask
from tests.inference.planning.small_models import apart, beliefs, columns, entwined, grid, t_maze

pytestmark = pytest.mark.verify
CLOSE = 1e-8
GAMMA = 1.7

SCRIPT = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"
import warnings
warnings.filterwarnings("ignore")
import jax.numpy as jnp
from jax import vmap
from pymdp import control
from pymdp.agent import Agent
answer = []
for case in given:
    batch = len(case["q"][0])
    def many(x):
        x = jnp.array(x, dtype=jnp.float64)
        return jnp.broadcast_to(x, (batch, *x.shape))
    def all_of(name):
        return None if case[name] is None else [many(x) for x in case[name]]
    agent = Agent(
        A=all_of("A"), B=all_of("B"), C=all_of("C"), D=all_of("D"), E=None if case["E"] is None else many(case["E"]),
        pA=all_of("pA"), pB=all_of("pB"), H=all_of("H"),
        A_dependencies=case["A_factors"], B_dependencies=case["B_factors"], B_action_dependencies=case["B_controls"],
        num_controls=case["controls"], batch_size=batch, policy_len=case["depth"], gamma=case["gamma"],
        use_states_info_gain=case["information"], use_param_info_gain=case["novelty"],
        use_inductive=case["H"] is not None, inductive_depth=case["reach"], inductive_threshold=0.4,
        sampling_mode=case["sampling"],
    )
    qs = [jnp.array(q, dtype=jnp.float64)[:, None] for q in case["q"]]
    q_pi, neg_efe = agent.infer_policies(qs)
    found = {"q_pi": q_pi.tolist(), "value": neg_efe.tolist()}
    now = [q[0, 0] for q in qs]
    A, C = [a[0] for a in agent.A], [c[0] for c in agent.C]
    policy = agent.policies.policy_arr[case["which"]]
    after = control.compute_expected_state(now, [b[0] for b in agent.B], policy[0], agent.B_dependencies)
    qo = control.compute_expected_obs(after, A, agent.A_dependencies)
    found["after"] = [x.tolist() for x in after]
    found["information"] = float(control.compute_info_gain(after, qo, A, agent.A_dependencies))
    found["utility"] = float(control.compute_expected_utility(qo, C, 0))
    if case["novelty"]:
        pA, pB = [a[0] for a in agent.pA], [b[0] for b in agent.pB]
        found["of_A"] = -float(control.calc_negative_pA_info_gain(pA, qo, after, agent.A_dependencies))
        found["of_B"] = -float(control.calc_negative_pB_info_gain(pB, after, now, agent.B_dependencies, policy[0]))
    if case["sampling"] == "marginal":
        found["marginals"] = [
            x.tolist() for x in control.get_marginals(q_pi[0], agent.policies.policy_arr, agent.num_controls)
        ]
    if case["H"] is not None:
        found["I"] = [x[0].tolist() for x in agent.I]
    answer.append(found)
"""


def case(
    name: str,
    model: GenerativeModel,
    depth: int,
    *,
    E: Tensor | None = None,
    information: bool = True,
    novelty: bool = False,
    goals: list[Tensor] | None = None,
    reach: int = 1,
    marginal: bool = False,
) -> tuple[str, GenerativeModel, dict[str, Any]]:
    counts = begin(model, "AB", 3.0) if novelty else None
    if counts is not None:  # uneven, or every column would have as much to tell
        counts = counts.map(lambda x: x + 2 * columns(77, *x.shape))
    said = {
        "A": lists(model.A),
        "B": lists(model.B),
        "C": lists(model.C),
        "D": lists(model.D),
        "E": None if E is None else E.tolist(),
        "pA": None if counts is None else lists(counts.A or ()),
        "pB": None if counts is None else lists(counts.B or ()),
        "H": None if goals is None else lists(goals),
        "q": lists(beliefs(60, (4,), model.sizes)),
        "A_factors": [list(x) for x in model.A_factors],
        "B_factors": [list(x) for x in model.B_factors],
        # Without them pymdp has a control for each factor, and only then marginals.
        "B_controls": None if marginal else [list(x) for x in model.B_controls],
        "controls": list(model.controls),
        "depth": depth,
        "gamma": GAMMA,
        "information": information,
        "novelty": novelty,
        "reach": reach,
        "which": min(7, model.num_actions**depth - 1),
        "sampling": "marginal" if marginal else "full",
    }
    settled = model if E is None else replace(model, E=E)
    return name, settled, said | {"our_counts": counts, "our_goals": goals}


def lists(tables: Any) -> list[Any]:
    return [x.tolist() for x in tables]


def cases() -> list[tuple[str, GenerativeModel, dict[str, Any]]]:
    two = apart(1)
    timed = replace(two, C=tuple(torch.stack((c, -c, 2 * c)) for c in two.C), timed=True)
    found = [
        case("T-maze", t_maze(), 2),
        case("T-maze, three steps, habits", t_maze(), 3, E=columns(30, 125)),
        case("T-maze, counts", t_maze(), 2, novelty=True),
        case("grid", grid(), 3),
        case("grid, goal", grid(), 2, goals=[torch.eye(16, dtype=torch.float64)[15]], reach=6),
        case("grid, utility", grid(), 2, information=False),
        case("two factors of their own, marginals", two, 2, marginal=True),
        case("times", timed, 3),
        case(
            "two goals",
            two,
            2,
            goals=[torch.tensor([0.0, 0, 1]).double(), torch.tensor([1.0, 0]).double()],
            reach=3,
        ),
    ]
    for seed in range(6):
        model = entwined(seed, sharp=1 + seed % 3)
        found.append(case(f"entwined {seed}", model, 2))
        found.append(case(f"entwined {seed}, counts, habits", model, 2, E=columns(seed, 36), novelty=True))
    return found


@pytest.fixture(scope="module")
def both() -> list[tuple[str, GenerativeModel, dict[str, Any], dict[str, Any]]]:
    asked = cases()
    given = [{k: v for k, v in said.items() if not k.startswith("our_")} for _, _, said in asked]
    answers = ask(SCRIPT, given, ("pymdp",))
    return [(*ours, theirs) for ours, theirs in zip(asked, answers, strict=True)]


def tensor(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def asked_of(said: dict[str, Any]) -> tuple[Objective, Counts | None]:
    objective = Objective(
        "per_modality" if said["information"] else "none",
        "pymdp" if said["novelty"] else "none",
        normalise=False,
    )
    return objective, said["our_counts"]


Both = list[tuple[str, GenerativeModel, dict[str, Any], dict[str, Any]]]


def test_values_and_posteriors_of_policies_are_pymdps(both: Both) -> None:
    worst = 0.0
    for name, model, said, theirs in both:
        objective, counts = asked_of(said)
        goals = said["our_goals"]
        led = None if goals is None else inductive(model, goals, said["reach"], threshold=0.4)
        believed = tuple(map(tensor, said["q"]))
        for how in ("tree", "auto"):
            found = plan(model, believed, said["depth"], GAMMA, objective, counts, led, how=how)  # type: ignore[arg-type]
            assert found.policies is not None
            apart_ = float((found.policies.flatten(1).exp() - tensor(theirs["q_pi"])).abs().max())
            value = GAMMA * tensor(theirs["value"])
            if model.E is not None:
                value = value + model.E.log()
            U = model.num_actions
            of_first = value.unflatten(-1, (U, -1)).logsumexp(-1) / GAMMA
            apart_ = max(apart_, float((found.value - of_first).abs().max()))
            assert apart_ < CLOSE, f"{name}, {how}: {apart_}"
            worst = max(worst, apart_)
    print(f"largest difference of values and posteriors: {worst:.1e}")


def test_every_term_is_pymdps(both: Both) -> None:
    worst = 0.0
    for name, model, said, theirs in both:
        objective, counts = asked_of(said)
        objective = replace(objective, state_information="per_modality")
        U = model.num_actions
        action = torch.tensor(said["which"] // U ** (said["depth"] - 1))
        now = tuple(tensor(q[0]) for q in said["q"])
        after = tuple(map(tensor, theirs["after"]))
        found = of_beliefs(model, after, 0, objective, counts, now, action)
        pieces = {"information": found.state_information, "utility": found.pragmatic}
        if counts is not None:
            for letter in "AB":
                only = replace(counts, **{"A" if letter == "B" else "B": None})
                pieces[f"of_{letter}"] = of_beliefs(model, after, 0, objective, only, now, action).parameter_information
        for piece, ours in pieces.items():
            difference = abs(float(ours) - theirs[piece])
            assert difference < CLOSE, f"{name}, {piece}: {difference}"
            worst = max(worst, difference)
    print(f"largest difference of terms: {worst:.1e}")


def test_states_from_which_goals_can_be_reached_are_pymdps(both: Both) -> None:
    asked = 0
    for name, model, said, theirs in both:
        if said["our_goals"] is not None:
            found = inductive(model, said["our_goals"], said["reach"], threshold=0.4)
            for ours, other in zip(found.reachable, theirs["I"], strict=True):
                assert torch.equal(ours, tensor(other)), name
            asked += 1
    assert asked == 2


def test_marginals_of_controls_are_pymdps(both: Both) -> None:
    ((_, model, said, theirs),) = [x for x in both if x[2]["sampling"] == "marginal"]
    objective, _ = asked_of(said)
    found = plan(model, tuple(map(tensor, said["q"])), said["depth"], GAMMA, objective)
    assert found.policies is not None
    ours = (
        log_actions(found.policies, said["depth"], "marginal", 1.0, model.controls)
        .exp()[0]
        .unflatten(-1, model.controls)
    )
    for g, other in enumerate(theirs["marginals"]):
        own = ours.sum([h for h in range(len(model.controls)) if h != g])
        assert float((own - tensor(other)).abs().max()) < CLOSE
