"""Messages over a window: free energy against its definition in plain sums, its descent, fixed points, and a moving lag."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference import filtering, message_passing, smoothing
from mfmarl.inference.model import GenerativeModel
from tests.inference.test_model import columns, tangled
from tests.inference.test_smoothing import chain, histories, row, shown


def definition(model: GenerativeModel, seen: Tensor, actions: Tensor, q: list[Tensor]) -> float:
    """F of independent beliefs q_f [T, S_f] of one agent: E_q[ln q - ln p(o, s)] over all joint histories."""
    total = 0.0
    for path, p in histories(model, seen, actions):
        weight = math.prod(float(q[f][t, s]) for t, place in enumerate(path) for f, s in enumerate(place))
        total += weight * (math.log(weight) - math.log(p))
    return total


@pytest.mark.parametrize("own", [False, True])
def test_free_energy_is_its_definition_over_all_histories(own: bool) -> None:
    world = tangled(7, (2,)) if own else tangled(7)
    world = world.map(lambda x: x.expand(2, *x.shape) if own and x.ndim == 1 else x)
    seen, actions = shown(world, (2,), times=3)
    actions[1, 1] = -1
    for rule, iterations in itertools.product(("variational", "marginal"), (1, 3)):
        got = message_passing.infer(world, seen, actions, rule, iterations=iterations, schedule="parallel")  # type: ignore[arg-type]
        for n in range(2):
            truth = definition(
                row(world, n) if own else world, seen[:, n], actions[:, n], [q[:, n] for q in got.factors]
            )
            assert float(got.free_energy[n]) == pytest.approx(truth, abs=1e-10)
            assert float(got.complexity[n] - got.accuracy[n]) == pytest.approx(truth, abs=1e-10)


def test_beliefs_settle_where_no_single_one_could_be_better() -> None:
    world = tangled(4)
    seen, actions = shown(world, (), times=3)
    got = message_passing.infer(world, seen, actions, tolerance=0.0, iterations=2000)
    for f, t in itertools.product(range(2), range(3)):
        # Coordinate ascent by the definition: ln q(s) = -F with all belief on s, up to a constant.
        logs = []
        for s in range(world.sizes[f]):
            point = [q.clone() for q in got.factors]
            point[f][t] = 1e-300
            point[f][t, s] = 1.0
            logs.append(-definition(world, seen, actions, point))
        assert torch.allclose(torch.softmax(torch.tensor(logs).double(), -1), got.factors[f][t], atol=1e-7)


@pytest.mark.parametrize("power", [1.0, 4.0, 16.0])
def test_sequential_messages_never_raise_free_energy_and_bound_the_surprise(power: float) -> None:
    agents = 300
    world = tangled(11, (agents,)).map(lambda x: x.expand(agents, *x.shape) if x.ndim == 1 else x)
    world = GenerativeModel(
        A=tuple(a.pow(power) / a.pow(power).sum(1, keepdim=True) for a in world.A),
        B=tuple(b.pow(power) / b.pow(power).sum(1, keepdim=True) for b in world.B),
        C=world.C, D=world.D, A_factors=world.A_factors, B_factors=world.B_factors, B_controls=world.B_controls,
    )  # fmt: skip
    seen, actions = shown(world, (agents,), times=5)
    last = torch.full((agents,), math.inf).double()
    for sweeps in range(1, 9):
        got = message_passing.infer(world, seen, actions, iterations=sweeps)
        assert bool((got.free_energy <= last + 1e-12 * (1 + got.free_energy.abs())).all())
        last = got.free_energy
    surprise = smoothing.smooth(world.joint(), seen, actions).free_energy
    assert bool((last >= surprise - 1e-10).all())


def test_parallel_messages_sometimes_end_higher() -> None:
    # As pymdp passes them: on sharp models the same sweeps cost more than one factor and half of the times at once.
    agents = 500
    world = tangled(11, (agents,)).map(lambda x: x.expand(agents, *x.shape) if x.ndim == 1 else x)
    world = GenerativeModel(
        A=tuple(a.pow(8) / a.pow(8).sum(1, keepdim=True) for a in world.A),
        B=tuple(b.pow(8) / b.pow(8).sum(1, keepdim=True) for b in world.B),
        C=world.C, D=world.D, A_factors=world.A_factors, B_factors=world.B_factors, B_controls=world.B_controls,
    )  # fmt: skip
    seen, actions = shown(world, (agents,), times=5)
    one = message_passing.infer(world, seen, actions, iterations=16)
    all_ = message_passing.infer(world, seen, actions, iterations=16, schedule="parallel")
    excess = all_.free_energy - one.free_energy
    assert float((excess > 1).double().mean()) > 0.1 and float(excess.mean()) > 1


def test_marginal_messages_do_not_minimise_free_energy() -> None:
    # Theory note 3.2 (its model M5): above that of variational messages, which is above the surprise.
    world = chain(3, seed=5)
    seen, actions = shown(world, (50,), times=6)
    variational = message_passing.infer(world, seen, actions)
    marginal = message_passing.infer(world, seen, actions, "marginal", iterations=64)
    exact = smoothing.smooth(world, seen, actions)
    assert bool((marginal.free_energy > variational.free_energy).all())
    assert bool((variational.free_energy > exact.free_energy).all())

    def error(q: Tensor) -> float:
        return float((q - exact.states).abs().mean())

    assert error(marginal.factors[0]) < 1.2 * error(variational.factors[0])


def test_one_time_is_one_mean_field_update() -> None:
    world = tangled(6)
    seen, actions = shown(world, (20,), times=1)
    got = message_passing.infer(world, seen, actions)
    step = filtering.update(world, world.D, seen[0], "sequential", tolerance=0.0, iterations=500)
    assert torch.allclose(got.free_energy, step.free_energy, atol=1e-9)
    parallel = message_passing.infer(world, seen, actions, schedule="parallel", iterations=7)
    step = filtering.update(world, world.D, seen[0], "parallel", iterations=7)
    for f in range(2):
        assert torch.allclose(parallel.factors[f][0], step.factors[f], atol=1e-14)


def test_where_states_do_not_depend_on_the_past_messages_are_exact() -> None:
    world = chain(4, seed=3)
    forgetful = world.B[0][:, :1].expand(4, 4, 2).contiguous()
    world = GenerativeModel(A=world.A, B=(forgetful,), C=world.C, D=world.D)
    seen, actions = shown(world, (10,))
    exact = smoothing.smooth(world, seen, actions)
    variational = message_passing.infer(world, seen, actions)
    assert torch.allclose(variational.factors[0], exact.states, atol=1e-10)
    assert torch.allclose(variational.free_energy, exact.free_energy, atol=1e-10)


def test_steps_that_have_not_been_cost_nothing_and_say_nothing() -> None:
    world = tangled(2)
    seen, actions = shown(world, (5,), times=3)
    padded = torch.cat((torch.full((4, 5, 3), -1), seen)), torch.cat((torch.full((4, 5), -1), actions))
    for rule in ("variational", "marginal"):
        plain = message_passing.infer(world, seen, actions, rule, schedule="parallel")  # type: ignore[arg-type]
        wide = message_passing.infer(world, *padded, rule, schedule="parallel")  # type: ignore[arg-type]
        for f in range(2):
            assert torch.allclose(wide.factors[f][4:], plain.factors[f], atol=1e-14)
            assert torch.allclose(wide.factors[f][:4], world.D[f].expand(4, 5, -1), atol=1e-14)
        assert torch.allclose(wide.free_energy, plain.free_energy, atol=1e-12)


def test_a_lag_of_one_step_is_the_filter() -> None:
    world = chain(3, seed=8)
    seen, actions = shown(world, (6,), times=7)
    actions[2, 4] = -1
    believed, cost = filtering.follow(world, seen, actions)
    lag = message_passing.begin(world, 1, (6,))
    for t in range(7):
        action = actions[t - 1] if t else torch.full((6,), -1)
        lag = message_passing.push(world, lag, action, seen[t])
        got = message_passing.infer_lag(world, lag)
        assert torch.allclose(got.factors[0][-1], believed[t][0], atol=1e-12)
        assert torch.allclose(got.free_energy, cost[t], atol=1e-12)


def test_a_lag_remembers_what_has_left_it() -> None:
    # The window's oldest step begins with what was filtered of all before it: with an exact smoother inside, what is
    # believed of the last W steps is what smoothing everything gives.
    world = chain(3, seed=8)
    seen, actions = shown(world, (6,), times=9)
    actions[4, 3] = -1
    lag = message_passing.begin(world, 4, (6,))
    for t in range(9):
        lag = message_passing.push(world, lag, actions[t - 1] if t else torch.full((6,), -1), seen[t])
        assert lag.seen.shape == (6, 4, 2) and lag.actions.shape == (6, 3)
    inside = smoothing.smooth(world, lag.seen.movedim(1, 0), lag.actions.movedim(1, 0), first=lag.first[0])
    assert torch.allclose(inside.states, smoothing.smooth(world, seen, actions).states[-4:], atol=1e-12)
    # And the messages in it are those over the same steps from that beginning.
    got = message_passing.infer_lag(world, lag)
    again = message_passing.infer(world, seen[-4:], actions[-3:], first=lag.first)
    assert torch.equal(got.factors[0], again.factors[0])


def test_agents_with_the_same_tables_believe_what_those_who_share_them_do() -> None:
    world = tangled(9)
    own = world.map(lambda x: x.expand(4, 1, *x.shape).contiguous())
    seen, actions = shown(world, (4, 3), times=4)
    for rule in ("variational", "marginal"):
        shared, apart = (message_passing.infer(w, seen, actions, rule) for w in (world, own))  # type: ignore[arg-type]
        for f in range(2):
            assert torch.allclose(shared.factors[f], apart.factors[f], atol=1e-13)
        assert torch.allclose(shared.free_energy, apart.free_energy, atol=1e-11)


def test_options_that_there_are_not_are_refused() -> None:
    world = tangled()
    seen, actions = shown(world, (2,), times=3)
    with pytest.raises(ConfigError, match="Did you mean 'marginal'"):
        message_passing.infer(world, seen, actions, "marginl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="marginal ones in parallel only"):
        message_passing.infer(world, seen, actions, "marginal", schedule="sequential")
    with pytest.raises(ConfigError, match="one action less"):
        message_passing.infer(world, seen, actions[:1])
    with pytest.raises(ConfigError, match=r"outside 0\.\.5"):
        message_passing.infer(world, seen, actions + 6)
    with pytest.raises(ConfigError, match="at least one is needed"):
        message_passing.begin(world, 0, (2,))
    with pytest.raises(ConfigError, match=r"step=0"):
        message_passing.infer(world, seen, actions, step=0.0)


@pytest.mark.parametrize("rule", ["variational", "marginal"])
def test_a_crowd_of_windows_is_inferred_as_its_parts_are(rule: message_passing.Rule) -> None:
    count = 12_000
    world = tangled(4)
    seen, actions = shown(world, (count,), times=3)
    first = (columns(70, count, 2, axis=1), columns(71, count, 3, axis=1))
    whole = message_passing.infer(world, seen, actions, rule, first=first)
    for here in (slice(0, 20), slice(4_840, 4_880), slice(11_980, 12_000)):
        part = message_passing.infer(world, seen[:, here], actions[:, here], rule, first=[q[here] for q in first])
        for f in range(2):
            assert torch.allclose(whole.factors[f][:, here], part.factors[f], atol=1e-12, rtol=0)
        for name in ("free_energy", "complexity", "accuracy"):
            assert torch.allclose(getattr(whole, name)[here], getattr(part, name), atol=1e-11, rtol=0)


@pytest.mark.parametrize("rule", ["variational", "marginal"])
def test_products_of_matrices_say_what_tables_of_each_one_say(rule: message_passing.Rule) -> None:
    # From a dozen states on, tables that all agents share are not looked up for each: tables of their own are.
    world = chain(15, seed=6)
    seen, actions = shown(world, (4, 6), times=5)
    actions[2, 1, 3] = -1
    own = world.map(lambda x: x.expand(4, 1, *x.shape).contiguous())
    for schedule in ("parallel", "sequential") if rule == "variational" else ("parallel",):
        shared, apart = (message_passing.infer(w, seen, actions, rule, schedule=schedule) for w in (world, own))  # type: ignore[arg-type]
        assert torch.allclose(shared.factors[0], apart.factors[0], atol=1e-10)
        assert torch.allclose(shared.free_energy, apart.free_energy, atol=1e-10)


def test_a_marginal_sweep_is_spms_formula() -> None:
    # Theory note 3.2: half of either side's message where there are both, ln D halved too, B normalised over its past.
    world = chain(3, seed=12)
    seen, actions = shown(world, (), times=4)
    q = torch.full((4, 3), 1 / 3).double()
    for sweeps in range(1, 4):
        after = torch.empty_like(q)
        for t in range(4):
            v = sum((x[t] for x in filtering.log_likelihoods(world, seen)), torch.zeros(3).double())
            past = world.D[0] if t == 0 else world.B[0][..., int(actions[t - 1])] @ q[t - 1]
            v = v + (0.5 if t < 3 else 1.0) * past.log()
            if t < 3:
                back = world.B[0][..., int(actions[t])]
                v = v + 0.5 * (q[t + 1] @ (back / back.sum(-1, keepdim=True))).log()
            after[t] = torch.softmax(v, -1)
        q = after
        got = message_passing.infer(world, seen, actions, "marginal", iterations=sweeps)
        assert torch.allclose(got.factors[0], q, atol=1e-14)
