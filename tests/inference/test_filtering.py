"""Beliefs in time: the forward algorithm, sums over all histories, and the price of forgetting correlations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import filtering
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key
from tests.inference.test_model import columns, tangled


def positive(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape)).reshape(shape)
    return random.exponential(Key.of(seed), ids).double()


def model(
    sizes: tuple[int, ...], outcomes: tuple[int, ...] = (4, 3), actions: int = 2, seed: int = 0
) -> GenerativeModel:
    a = [positive(seed + m, count, *sizes) for m, count in enumerate(outcomes)]
    b = [positive(seed + 10 + f, size, size, actions) for f, size in enumerate(sizes)]
    d = [positive(seed + 20 + f, size) for f, size in enumerate(sizes)]
    return GenerativeModel(
        A=tuple(x / x.sum(0) for x in a),
        B=tuple(x / x.sum(0) for x in b),
        C=tuple(torch.zeros(count).double() for count in outcomes),
        D=tuple(x / x.sum() for x in d),
        controls=(actions,),
    )


OBSERVED = torch.tensor([[[0, 1], [3, 2]], [[2, 0], [0, 0]], [[1, 1], [2, 2]], [[3, 0], [1, 1]]])  # [T, b, M]
ACTIONS = torch.tensor([[0, 1], [1, 1], [0, 0]])


def test_one_factor_is_filtered_as_sums_over_all_histories_say() -> None:
    world = model((3,))
    believed, cost = filtering.follow(world, OBSERVED, ACTIONS)
    for b in range(2):
        last, total = torch.zeros(3).double(), 0.0
        for history in itertools.product(range(3), repeat=4):
            p = float(world.D[0][history[0]])
            for t, s in enumerate(history):
                for m in range(2):
                    p *= float(world.A[m][OBSERVED[t, b, m], s])
                if t:
                    p *= float(world.B[0][s, history[t - 1], ACTIONS[t - 1, b]])
            last[history[-1]] += p
            total += p
        assert torch.allclose(believed[-1][0][b], last / total, atol=1e-12)
        # Surprises add up to that of everything seen.
        assert float(cost[:, b].sum()) == pytest.approx(-math.log(total), abs=1e-12)


def test_factors_that_share_no_modality_are_filtered_each_for_itself() -> None:
    left, right = model((2,), (4,), seed=1), model((3,), (3,), seed=5)
    both = GenerativeModel(
        A=(left.A[0].unsqueeze(-1).expand(4, 2, 3), right.A[0].unsqueeze(1).expand(3, 2, 3)),
        B=(left.B[0], right.B[0]),
        C=(left.C[0], right.C[0]),
        D=(left.D[0], right.D[0]),
        controls=(2,),
    )
    for method in ("exact", "sequential"):
        believed, cost = filtering.follow(both, OBSERVED, ACTIONS, method)
        alone = [filtering.follow(w, OBSERVED[..., m : m + 1], ACTIONS) for m, w in enumerate((left, right))]
        for f in range(2):
            assert torch.allclose(believed[-1][f], alone[f][0][-1][0], atol=1e-7)
        assert torch.allclose(cost, alone[0][1] + alone[1][1], atol=1e-7)


def test_mean_field_pays_for_what_it_cannot_say() -> None:
    world = model((2, 3))
    step, bound = (filtering.update(world, world.D, OBSERVED[0], m) for m in ("exact", "sequential"))
    assert bool((bound.free_energy >= step.free_energy - 1e-12).all())
    assert float((bound.free_energy - step.free_energy).max()) > 1e-4
    for q in (*step.factors, *bound.factors):
        assert torch.allclose(q.sum(-1), torch.ones(2).double())


def test_an_agent_believes_the_same_however_many_others_there_are() -> None:
    world = model((2, 3))
    many, _ = filtering.follow(world, OBSERVED, ACTIONS, "sequential")
    one, _ = filtering.follow(world, OBSERVED[:, :1], ACTIONS[:, :1], "sequential")
    # Coordinate ascent goes on until the slowest belief has settled: equal to its tolerance.
    assert torch.allclose(many[-1][1][:1], one[-1][1], atol=1e-6)


def test_what_does_not_fit_the_model_is_refused() -> None:
    world = model((2, 3))
    with pytest.raises(ConfigError, match=r"outside 0\.\.1"):
        filtering.predict(world, world.D, torch.tensor([2]))
    with pytest.raises(ConfigError, match="one action less"):
        filtering.follow(world, OBSERVED, ACTIONS[:1])
    with pytest.raises(ConfigError, match="Did you mean 'parallel'"):
        filtering.update(world, world.D, OBSERVED[0], "paralel")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- against enumeration


def sums(world: GenerativeModel, expected: list[Tensor], seen: list[Tensor]) -> tuple[Tensor, float, float]:
    """Of one agent, in plain Python: the joint posterior, ln p(o), and the expected log-likelihood under it. `seen`: a
    factor of the likelihood for every outcome of every modality."""
    joint = torch.zeros(world.sizes, dtype=torch.float64)
    like = torch.zeros(world.sizes, dtype=torch.float64)
    for s in itertools.product(*[range(n) for n in world.sizes]):
        p, log = 1.0, 0.0
        for f in range(len(s)):
            p *= float(expected[f][s[f]])
        for m, own in enumerate(world.A_factors):
            weights = [float(world.A[m][(o, *[s[f] for f in own])]) * float(w) for o, w in enumerate(seen[m])]
            log += math.log(sum(weights)) if float(seen[m].sum()) else 0.0
        joint[s], like[s] = p * math.exp(log), log
    total = float(joint.sum())
    return joint / total, math.log(total), float((joint / total * like).sum())


def row(world: GenerativeModel, n: int) -> GenerativeModel:
    return world.map(lambda x: x[n] if x.ndim and len(x) == 5 else x)


def led(seed: int = 0) -> GenerativeModel:
    """The tangled model, with tables of its own for each of five agents."""
    return tangled(seed, (5,))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", ["outcomes", "weights"])
def test_exact_beliefs_are_bayes_rule_over_all_joint_states(own: bool, kind: str) -> None:
    world = led(3) if own else tangled(3)
    expected = [columns(60 + f, 5, s, axis=1) for f, s in enumerate(world.sizes)]
    ids = torch.arange(5)
    outcomes = torch.stack([random.integers(Key.of(8 + m), ids, o + 1) - 1 for m, o in enumerate(world.outcomes)], -1)
    assert bool((outcomes == -1).any()) and bool((outcomes >= 0).any())
    hot = [torch.nn.functional.one_hot(outcomes[:, m] + 1, o + 1)[:, 1:] for m, o in enumerate(world.outcomes)]
    weights = (
        [w.double() for w in hot] if kind == "outcomes" else [positive(3 + m, *w.shape) for m, w in enumerate(hot)]
    )
    seen = outcomes if kind == "outcomes" else weights
    step = filtering.update(world, expected, seen, soft="uncertain")
    for n in range(5):
        joint, evidence, accuracy = sums(row(world, n), [x[n] for x in expected], [w[n] for w in weights])
        assert torch.allclose(step.factors[0][n], joint.sum(1), atol=1e-10, rtol=0)
        assert torch.allclose(step.factors[1][n], joint.sum(0), atol=1e-10, rtol=0)
        assert float(step.free_energy[n]) == pytest.approx(-evidence, abs=1e-10)
        assert float(step.accuracy[n]) == pytest.approx(accuracy, abs=1e-10)
        assert float(step.complexity[n]) == pytest.approx(accuracy - evidence, abs=1e-10)


def test_the_joint_model_gives_the_same_beliefs_and_evidence() -> None:
    world = tangled(5)
    seen = torch.tensor([[1, 0, 2], [3, 1, -1], [-1, -1, -1]])
    step, joint = filtering.update(world, world.D, seen), filtering.update(world.joint(), world.joint().D, seen)
    q = joint.factors[0].unflatten(-1, world.sizes)
    assert torch.allclose(q.sum(-1), step.factors[0]) and torch.allclose(q.sum(-2), step.factors[1])
    for name in ("free_energy", "complexity", "accuracy"):
        assert torch.allclose(getattr(step, name), getattr(joint, name), atol=1e-12)
    # Nothing seen is nothing learned.
    assert torch.allclose(step.factors[0][2], world.D[0]) and float(step.free_energy[2]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("own", [False, True])
def test_predictions_are_sums_over_parents(own: bool) -> None:
    world = led(1) if own else tangled(1)
    believed = [columns(60 + f, 5, s, axis=1) for f, s in enumerate(world.sizes)]
    action = torch.tensor([0, 5, 3, 1, 4])
    got = filtering.predict(world, believed, action)
    settings = world.settings().tolist()
    for n in range(5):
        mine = row(world, n)
        a, b = settings[int(action[n])]
        first = sum(mine.B[0][:, x, a] * believed[0][n, x] for x in range(2))
        second = sum(
            mine.B[1][:, y, x, b, a] * believed[0][n, x] * believed[1][n, y] for x in range(2) for y in range(3)
        )
        assert torch.allclose(got[0][n], first, atol=1e-14) and torch.allclose(got[1][n], second, atol=1e-14)


@pytest.mark.parametrize(("shape", "lead"), [((1000,), ()), ((3,), ()), ((4, 250), ()), ((4, 250), (4, 1))])
def test_predictions_are_the_same_whichever_way_they_are_added_up(
    shape: tuple[int, ...], lead: tuple[int, ...]
) -> None:
    world = tangled(2, lead)
    believed = [columns(60 + f, *shape, s, axis=len(shape)) for f, s in enumerate(world.sizes)]
    action = random.integers(Key.of(1), torch.arange(math.prod(shape)).reshape(shape), 6)
    got = filtering.predict(world, believed, action)
    q = believed
    first = torch.einsum("...yx,...x->...y", world.of_action(0, action), q[0])
    second = torch.einsum("...zyx,...y,...x->...z", world.of_action(1, action), q[1], q[0])
    assert torch.allclose(got[0], first, atol=1e-14) and torch.allclose(got[1], second, atol=1e-14)
    # What is moved there is carried back by the transpose.
    w = columns(90, *shape, 2, axis=len(shape))
    back = filtering.carried_back(world, 0, w, action)
    assert torch.allclose((back * q[0]).sum(-1), (got[0] * w).sum(-1), atol=1e-14)


# --------------------------------------------------------------------------------------------- mean field


def sharp(
    power: float, models: int, seed: int = 0, sizes: tuple[int, ...] = (3, 3), outcomes: int = 4
) -> GenerativeModel:
    """So many random models, one for each belief: Dirichlet(1) columns, raised to a power."""
    n = models
    a = columns(seed, n, outcomes, *sizes, axis=1).pow(power)
    return GenerativeModel(
        A=(a / a.sum(1, keepdim=True), columns(seed + 1, n, 3, sizes[0], axis=1)),
        B=tuple(columns(seed + 2 + f, s, s) for f, s in enumerate(sizes)),
        C=(torch.zeros(outcomes).double(), torch.zeros(3).double()),
        D=tuple(columns(seed + 10 + f, n, s, axis=1) for f, s in enumerate(sizes)),
        A_factors=(tuple(range(len(sizes))), (0,)),
        B_controls=((),) * len(sizes),
        controls=(1,),
    )


def outcomes_of(world: GenerativeModel, models: int, seed: int = 77) -> Tensor:
    ids = torch.arange(models)
    return torch.stack([random.integers(Key.of(seed + m), ids, o) for m, o in enumerate(world.outcomes)], -1)


@pytest.mark.parametrize("power", [1.0, 4.0, 16.0, 64.0])
@pytest.mark.parametrize("sizes", [(3, 3), (2, 3, 2)])
def test_sweeps_one_factor_after_the_other_never_raise_free_energy(power: float, sizes: tuple[int, ...]) -> None:
    models = 2000
    world = sharp(power, models, sizes=sizes)
    seen = outcomes_of(world, models)
    last = filtering.free_energy(world, world.D, seen, world.D).free_energy
    for sweeps in range(1, 12):
        step = filtering.update(world, world.D, seen, "sequential", iterations=sweeps, check=False)
        slack = 1e-12 * (1 + last.abs())
        assert bool((step.free_energy <= last + slack).all())
        last = step.free_energy
    exact = filtering.update(world, world.D, seen)
    assert bool((last >= exact.free_energy - 1e-10).all())


def test_mean_field_is_a_fixed_point_and_its_free_energy_that_of_its_beliefs() -> None:
    world = sharp(2.0, 500)
    seen = outcomes_of(world, 500)
    logs = filtering.log_likelihoods(world, seen)
    for method in ("sequential", "damped"):
        step = filtering.update(world, world.D, seen, method, tolerance=0.0, iterations=3000)
        q0, q1 = step.factors
        v0 = world.D[0].log() + (logs[0] * q1.unsqueeze(1)).sum(2) + logs[1]
        v1 = world.D[1].log() + (logs[0] * q0.unsqueeze(2)).sum(1)
        assert float((torch.softmax(v0, -1) - q0).abs().max()) < 1e-7
        assert float((torch.softmax(v1, -1) - q1).abs().max()) < 1e-7
        again = filtering.free_energy(world, world.D, seen, step.factors)
        for name in ("free_energy", "complexity", "accuracy"):
            assert torch.allclose(getattr(step, name), getattr(again, name), atol=1e-11)
        energy, entropy = filtering.energy_and_entropy(world, world.D, seen, step.factors)
        assert torch.allclose(energy - entropy, step.free_energy, atol=1e-11)
        assert torch.allclose(entropy, -sum((q * q.log()).sum(-1) for q in step.factors), atol=1e-12)


def test_where_no_modality_ties_factors_together_one_sweep_is_exact() -> None:
    left, right = model((2,), (4,), seed=1), model((3,), (3,), seed=5)
    both = GenerativeModel(
        A=(left.A[0], right.A[0]), B=(left.B[0], right.B[0]), C=(left.C[0], right.C[0]), D=(left.D[0], right.D[0]),
        A_factors=((0,), (1,)), controls=(2,),
    )  # fmt: skip
    exact, bound = (
        filtering.update(both, both.D, OBSERVED[0], m, iterations=n) for m, n in (("exact", 1), ("parallel", 1))
    )
    for f in range(2):
        assert torch.allclose(exact.factors[f], bound.factors[f], atol=1e-14)
    assert torch.allclose(exact.free_energy, bound.free_energy, atol=1e-14)


def test_a_settled_belief_does_not_wait_for_the_others() -> None:
    world = sharp(16.0, 200)
    seen = outcomes_of(world, 200)
    whole = filtering.update(world, world.D, seen, "sequential")
    part = filtering.update(
        world.map(lambda x: x[50:60] if len(x) == 200 else x),
        tuple(d[50:60] for d in world.D),
        seen[50:60],
        "sequential",
    )
    for f in range(2):
        assert torch.allclose(whole.factors[f][50:60], part.factors[f], atol=1e-13, rtol=0)


@pytest.mark.verify
@pytest.mark.parametrize(("power", "unsettled", "worse"), [(1.0, 0.049, 0.013), (4.0, 0.20, 0.17), (16.0, 0.32, 0.32)])
def test_how_often_parallel_sweeps_fail(power: float, unsettled: float, worse: float) -> None:
    """Theory note 3.2: two factors of three states, 2000 models, 16 sweeps: the share whose beliefs still move, and the
    share whose free energy ends above that of sequential sweeps. Five standard errors of both counts.

    The note leaves open how many outcomes there were and what counts as moving. Here: pymdp's floor, one modality of five
    outcomes, drawn from the model; beliefs that move by 3e-4, free energies 1e-4 above.
    """
    models, pymdp = 10_000, 2.220446049250313e-16
    ids = torch.arange(models)
    a = columns(5, models, 5, 3, 3, axis=1).pow(power)
    a = a / a.sum(1, keepdim=True)
    world = GenerativeModel(
        A=(a,),
        B=(columns(1, 3, 3), columns(2, 3, 3)),
        C=(torch.zeros(5).double(),),
        D=(columns(6, models, 3, axis=1), columns(7, models, 3, axis=1)),
        B_controls=((), ()),
        controls=(1,),
    )
    noise = random.uniform(Key.of(3), ids, 3).double()
    place = [(d.cumsum(-1) < noise[:, f, None]).sum(-1) for f, d in enumerate(world.D)]
    seen = (a[ids, :, place[0], place[1]].cumsum(-1) < noise[:, 2, None]).sum(-1, keepdim=True)
    parallel, further = (
        filtering.update(world, world.D, seen, "parallel", iterations=n, floor=pymdp) for n in (16, 17)
    )
    sequential = filtering.update(world, world.D, seen, "sequential", floor=pymdp)
    moving = torch.stack([(x - y).abs().amax(-1) for x, y in zip(parallel.factors, further.factors, strict=True)])
    for share, known in (
        (float((moving.amax(0) > 3e-4).double().mean()), unsettled),
        (float((parallel.free_energy > sequential.free_energy + 1e-4).double().mean()), worse),
    ):
        assert abs(share - known) < 5 * math.sqrt(known * (1 - known) * (1 / 2000 + 1 / models)), (power, share, known)


# ----------------------------------------------------------------------------------------- what may be shown


def test_weights_of_outcomes_are_taken_in_either_way() -> None:
    world = model((3,), (4,))
    w = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).double()
    (average,), (uncertain,) = (filtering.log_likelihoods(world, [w], soft) for soft in ("average", "uncertain"))
    assert torch.allclose(average[0], 0.5 * world.A[0][0].log() + 0.3 * world.A[0][1].log() + 0.2 * world.A[0][2].log())
    assert torch.allclose(uncertain[0], (w[0] @ world.A[0]).log())
    for x in (average, uncertain):
        assert torch.allclose(x[1], world.A[0][2].log()) and bool((x[2] == 0).all())
    for soft in ("average", "uncertain"):
        like = filtering.likelihoods(world, [w], soft)[0]
        assert torch.allclose(like.log(), filtering.log_likelihoods(world, [w], soft)[0], atol=1e-14)
        for method in ("exact", "sequential"):
            step = filtering.update(world, world.D, [w], method, soft=soft)
            expected = like * world.D[0]
            assert torch.allclose(step.factors[0], expected / expected.sum(-1, keepdim=True), atol=1e-12)
            assert torch.allclose(step.free_energy, -expected.sum(-1).log(), atol=1e-12)


def blind_spot() -> GenerativeModel:
    """Its outcome "cat" shows in the second state alone, its outcome "dog" never."""
    return GenerativeModel(
        A=(torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]]).double(), columns(1, 2, 2)),
        B=(torch.eye(2).double().unsqueeze(-1),),
        C=(torch.zeros(3).double(), torch.zeros(2).double()),
        D=(torch.tensor([0.5, 0.5]).double(),),
        modalities=("animal", "noise"),
    )


@pytest.mark.parametrize("method", ["exact", "sequential", "damped", "parallel"])
def test_what_is_impossible_is_named_with_its_remedy(method: filtering.Method) -> None:
    world = blind_spot()
    with pytest.raises(
        ConfigError, match=r"Outcome 2 of modality 'animal' is impossible.*belief \[1\], 1 in all.*floor"
    ):
        filtering.update(world, world.D, torch.tensor([[0, 0], [2, 0]]), method)
    with pytest.raises(ConfigError, match=r"Outcome 1 of modality 'animal'"):
        filtering.update(world, (torch.tensor([1.0, 0.0]).double(),), torch.tensor([[1, 0]]), method)
    with pytest.raises(ConfigError, match="NaN"):
        filtering.update(world, (torch.tensor([math.nan, 0.0]).double(),), torch.tensor([[1, 0]]), method)


def test_unchecked_nothing_becomes_nan() -> None:
    world = blind_spot()
    step = filtering.update(world, world.D, torch.tensor([[0, 0], [2, 0], [2, -1]]), check=False)
    assert bool(step.factors[0].isfinite().all()) and step.free_energy.isinf().tolist() == [False, True, True]
    # The impossible modality says nothing, the other one does.
    other = filtering.update(world, world.D, torch.tensor([-1, 0]))
    assert torch.allclose(step.factors[0][1], other.factors[0]) and torch.allclose(step.factors[0][2], world.D[0])


def test_outcomes_and_weights_that_do_not_fit_are_refused() -> None:
    world = blind_spot()
    with pytest.raises(ConfigError, match=r"Outcome 3 of modality 'animal' lies outside 0\.\.2"):
        filtering.update(world, world.D, torch.tensor([[3, 0]]))
    with pytest.raises(ConfigError, match=r"Outcome -2 of modality 'noise' lies outside 0\.\.1"):
        filtering.update(world, world.D, torch.tensor([[0, -2]]))
    with pytest.raises(ConfigError, match=r"2 modalities need observations int64 \[\*b, 2\]"):
        filtering.update(world, world.D, torch.tensor([[0, 0, 1]]))
    with pytest.raises(ConfigError, match=r"weights of \[3, 2\] outcomes"):
        filtering.update(world, world.D, [torch.ones(2), torch.ones(2)])
    with pytest.raises(ConfigError, match="not negative"):
        filtering.update(world, world.D, [torch.tensor([1.0, -1, 0]).double(), torch.ones(2).double()])
    with pytest.raises(ConfigError, match="Beliefs must be of factors of"):
        filtering.update(world, (torch.ones(3) / 3,), torch.tensor([[0, 0]]))
    with pytest.raises(ConfigError, match="Did you mean 'average'"):
        filtering.update(world, world.D, [torch.ones(3).double(), torch.ones(2).double()], soft="averag")  # type: ignore[arg-type]


def test_a_new_episode_begins_where_the_action_says_so() -> None:
    world = model((3,))
    actions = ACTIONS.clone()
    actions[1, 0] = -1
    believed, cost = filtering.follow(world, OBSERVED, actions)
    anew, cost_anew = filtering.follow(world, OBSERVED[2:, :1], ACTIONS[2:, :1])
    assert torch.equal(believed[3][0][:1], anew[1][0]) and torch.equal(cost[2:, :1], cost_anew)
    assert torch.equal(believed[3][0][1:], filtering.follow(world, OBSERVED, ACTIONS)[0][3][0][1:])


@pytest.mark.parametrize("method", ["exact", "sequential"])
def test_a_crowd_is_updated_as_its_parts_are(method: filtering.Method) -> None:
    # Large crowds go piece by piece, so that numbers stay in the cache.
    count = 40_000
    world = tangled(4)
    expected = [columns(60 + f, count, s, axis=1) for f, s in enumerate(world.sizes)]
    seen = outcomes_of(world, count)
    whole = filtering.update(world, expected, seen, method)
    for here in (slice(0, 50), slice(16_350, 16_420), slice(39_950, 40_000)):
        part = filtering.update(world, [q[here] for q in expected], seen[here], method)
        for f in range(2):
            assert torch.allclose(whole.factors[f][here], part.factors[f], atol=1e-12, rtol=0)
        for name in ("free_energy", "complexity", "accuracy"):
            assert torch.allclose(getattr(whole, name)[here], getattr(part, name), atol=1e-11, rtol=0)
    # So are the agents of several minds.
    shaped = filtering.update(
        world, [q.unflatten(0, (4, -1)) for q in expected], seen.unflatten(0, (4, -1)), method, terms=False
    )
    assert torch.equal(shaped.factors[1].flatten(0, 1), whole.factors[1]) and shaped.free_energy.shape == (4, 10_000)
    # And what is impossible is named with its place in the whole crowd.
    maze, before = blind_spot(), torch.tensor([0.5, 0.5]).double().expand(count, 2)
    shown = torch.zeros(count, 2, dtype=torch.int64)
    shown[33_333, 0] = 2
    with pytest.raises(ConfigError, match=r"belief \[33333\], 1 in all"):
        filtering.update(maze, (before,), shown, method)


def test_many_modalities_do_not_underflow() -> None:
    # 60 modalities that each say 1e-8 in float32: their product is 1e-480.
    rare = torch.full((2, 2), 1.0)
    rare[0] = torch.tensor([1e-8, 2e-8])
    rare[1] = 1 - rare[0]
    world = GenerativeModel(
        A=(rare,) * 60, B=(torch.eye(2).unsqueeze(-1),), C=(torch.zeros(2),) * 60, D=(torch.ones(2) / 2,)
    )
    step = filtering.update(world, world.D, torch.zeros(60, dtype=torch.int64))
    assert float(step.factors[0][1]) == pytest.approx(1 / (1 + 2.0**-60))
    truth = -60 * math.log(1e-8) - math.log(0.5 * (1 + 2.0**60))
    assert float(step.free_energy) == pytest.approx(truth, rel=1e-5)
    assert float(step.complexity) == pytest.approx(math.log(2), rel=1e-3)
