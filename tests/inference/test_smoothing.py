"""Histories held against all of them enumerated: smoothed beliefs, pairs, evidence, draws and the likeliest one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import filtering, smoothing
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key
from tests.inference.test_model import columns, tangled
from tests.statistical import beyond, statistical

T = 4


def chain(states: int = 3, seed: int = 0, lead: tuple[int, ...] = ()) -> GenerativeModel:
    axis = len(lead)
    return GenerativeModel(
        A=(columns(seed, *lead, 4, states, axis=axis), columns(seed + 1, *lead, 2, states, axis=axis)),
        B=(columns(seed + 2, *lead, states, states, 2, axis=axis),),
        C=(torch.zeros(*lead, 4).double(), torch.zeros(*lead, 2).double()),
        D=(columns(seed + 3, *lead, states, axis=axis),),
    )


def shown(model: GenerativeModel, batch: tuple[int, ...], times: int = T, seed: int = 9) -> tuple[Tensor, Tensor]:
    """Observations [T, *b, M], some of which are missing, and actions [T - 1, *b]."""
    ids = torch.arange(math.prod(batch) * times).reshape(times, *batch)
    seen = torch.stack([random.integers(Key.of(seed + m), ids, o + 1) - 1 for m, o in enumerate(model.outcomes)], -1)
    return seen, random.integers(Key.of(seed + 50), ids[1:], model.num_actions)


def histories(model: GenerativeModel, seen: Tensor, actions: Tensor) -> list[tuple[tuple[tuple[int, ...], ...], float]]:
    """Every history of joint states of one agent, and its probability together with what was seen: in plain Python."""
    places = list(itertools.product(*[range(s) for s in model.sizes]))
    settings = model.settings().tolist()
    found = []
    for path in itertools.product(places, repeat=len(seen)):
        p = 1.0
        for t, s in enumerate(path):
            begins = t == 0 or int(actions[t - 1]) < 0
            for f in range(len(model.sizes)):
                if begins:
                    p *= float(model.D[f][s[f]])
                else:
                    before = [path[t - 1][g] for g in model.B_factors[f]]
                    controls = [settings[int(actions[t - 1])][g] for g in model.B_controls[f]]
                    p *= float(model.B[f][(s[f], *before, *controls)])
            for m, own in enumerate(model.A_factors):
                if int(seen[t, m]) >= 0:
                    p *= float(model.A[m][(int(seen[t, m]), *[s[f] for f in own])])
        found.append((path, p))
    return found


def row(model: GenerativeModel, n: int) -> GenerativeModel:
    """The model of one of several agents with tables of their own."""
    return model.map(lambda x: x[n])


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_smoothed_beliefs_are_sums_over_all_histories(own: bool, pairs: bool) -> None:
    model = chain(lead=(3,) if own else ())
    seen, actions = shown(model, (3,))
    actions[1, 2] = -1
    got = smoothing.smooth(model, seen, actions, pairs=pairs)
    for n in range(3):
        states, joint = torch.zeros(T, 3).double(), torch.zeros(T - 1, 3, 3).double()
        accuracy, complexity = 0.0, 0.0
        mine = row(model, n) if own else model
        every = histories(mine, seen[:, n], actions[:, n])
        before = dict(histories(mine, torch.full_like(seen[:, n], -1), actions[:, n]))
        total = sum(p for _, p in every)
        for path, p in every:
            for t in range(T):
                states[t, path[t][0]] += p / total
                if t:
                    joint[t - 1, path[t][0], path[t - 1][0]] += p / total
            accuracy += p / total * math.log(p / before[path])
            complexity += p / total * math.log(p / total / before[path])
        assert torch.allclose(got.states[:, n], states, atol=1e-10, rtol=0)
        if pairs:
            assert torch.allclose(got.pairs[:, n], joint, atol=1e-10, rtol=0)
        assert float(got.free_energy[n]) == pytest.approx(-math.log(total), abs=1e-10)
        assert float(got.accuracy[n]) == pytest.approx(accuracy, abs=1e-10)
        assert float(got.complexity[n]) == pytest.approx(complexity, abs=1e-10)


def test_joint_states_of_tangled_factors_are_smoothed_exactly() -> None:
    model = tangled(3)
    seen, actions = shown(model, (2,), times=3)
    got = smoothing.smooth(model.joint(), seen, actions)
    for n in range(2):
        states = torch.zeros(3, 6).double()
        for path, p in histories(model, seen[:, n], actions[:, n]):
            for t, (x, y) in enumerate(path):
                states[t, 3 * x + y] += p
        assert torch.allclose(got.states[:, n], states / states.sum(-1, keepdim=True), atol=1e-10, rtol=0)
        assert float(got.free_energy[n]) == pytest.approx(-math.log(float(states[0].sum())), abs=1e-10)


def test_the_free_energy_of_the_posterior_chain_is_the_surprise() -> None:
    # Theory note 3.2: F of the chain, from pairs alone, equals -ln p(o). Sharp tables, a thousand steps.
    model = chain(5, seed=20)
    sharp = [x.pow(6) / x.pow(6).sum(0) for x in model.B]
    model = GenerativeModel(A=model.A, B=tuple(sharp), C=model.C, D=model.D)
    seen, actions = shown(model, (), times=1000, seed=3)
    got = smoothing.smooth(model, seen, actions)
    steps = model.of_action(0, actions)
    kept = got.pairs > 0
    conditional = got.pairs / got.states[:-1].unsqueeze(-2)
    cost = (got.pairs * (conditional / steps).where(kept, 1.0).log()).sum()
    cost += (got.states[0] * (got.states[0] / model.D[0]).log()).sum()
    for x in filtering.log_likelihoods(model, seen):
        cost -= (got.states * x).sum()
    assert float(cost) == pytest.approx(float(got.free_energy), rel=1e-10)
    assert torch.allclose(got.pairs.sum(-2), got.states[:-1], atol=1e-12)
    assert torch.allclose(got.pairs.sum(-1), got.states[1:], atol=1e-12)


@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "steps-share-noise"))
def test_drawn_histories_have_the_posterior_probabilities() -> None:
    model = chain(lead=(2,))
    seen, actions = shown(model, (2,))
    actions[2, 1] = -1
    got = smoothing.smooth(model, seen, actions)
    draws = 200_000
    paths = smoothing.draw(model, got, actions, torch.arange(2), Key.of(4), draws)
    for n in range(2):
        code = sum(paths[t, n] * 3**t for t in range(T))
        count = torch.bincount(code, minlength=3**T).double() / draws
        every = histories(row(model, n), seen[:, n], actions[:, n])
        total = sum(p for _, p in every)
        for path, p in every:
            p = p / total
            there = float(count[sum(s[0] * 3**t for t, s in enumerate(path))])
            assert abs(there - p) < 5 * math.sqrt(p * (1 - p) / draws) + 1e-6


def test_a_drawn_history_is_the_same_however_many_others_are_drawn() -> None:
    model = chain()
    seen, actions = shown(model, (50,))
    ids = torch.arange(50)
    whole = smoothing.draw(model, smoothing.smooth(model, seen, actions), actions, ids, Key.of(1))
    part = smoothing.smooth(model, seen[:, 20:30], actions[:, 20:30])
    assert torch.equal(smoothing.draw(model, part, actions[:, 20:30], ids[20:30], Key.of(1)), whole[:, 20:30])
    assert len({tuple(x.tolist()) for x in whole.T}) > 10


def test_no_impossible_state_is_ever_drawn() -> None:
    model = chain()
    model = GenerativeModel(A=model.A, B=model.B, C=model.C, D=(torch.tensor([0.0, 1.0, 0.0]).double(),))
    seen, actions = shown(model, (1000,))
    got = smoothing.smooth(model, seen, actions)
    assert bool((smoothing.draw(model, got, actions, torch.arange(1000), Key.of(2))[0] == 1).all())


@pytest.mark.parametrize("own", [True, False])
def test_the_likeliest_history_is_the_best_of_all(own: bool) -> None:
    model = chain(lead=(5,) if own else ())
    seen, actions = shown(model, (5,))
    actions[0, 3] = -1
    found = smoothing.most_likely(model, seen, actions)
    for n in range(5):
        every = histories(row(model, n) if own else model, seen[:, n], actions[:, n])
        path, p = max(every, key=lambda x: x[1])
        assert found.states[:, n].tolist() == [s[0] for s in path]
        assert float(found.log_probability[n]) == pytest.approx(math.log(p), abs=1e-10)


def test_factors_apart_are_smoothed_as_alone() -> None:
    """Two worlds side by side, moved by the same actions."""
    left, right = chain(3, seed=1), chain(2, seed=40)
    both = GenerativeModel(
        A=(left.A[0], left.A[1], right.A[0], right.A[1]),
        B=(left.B[0], right.B[0]),
        C=(*left.C, *right.C),
        D=(left.D[0], right.D[0]),
        A_factors=((0,), (0,), (1,), (1,)),
        controls=(2,),
    )
    seen, actions = shown(both, (4,))
    believed, _ = filtering.follow(both, seen, actions)
    states, pairs = smoothing.of_factors(both, believed, actions)
    for f, world in enumerate((left, right)):
        exact = smoothing.smooth(world, seen[..., 2 * f : 2 * f + 2], actions)
        assert torch.allclose(states[f], exact.states, atol=1e-12)
        assert torch.allclose(pairs[f], exact.pairs, atol=1e-12)


def test_other_parents_are_averaged_over_what_is_believed_of_them() -> None:
    model = tangled(2)
    believed = (columns(70, 5, 2, axis=1), columns(71, 5, 3, axis=1))
    action = torch.tensor([0, 1, 2, 3, 5])
    for f in range(2):
        step = smoothing.of_own(model, f, believed, action)
        assert torch.allclose(step.sum(-2), torch.ones(5, model.sizes[f]).double())
        after = (step * believed[f].unsqueeze(-2)).sum(-1)
        assert torch.allclose(after, filtering.predict(model, believed, action)[f], atol=1e-14)


def test_what_cannot_have_been_seen_is_refused_and_not_smoothed_to_nan() -> None:
    model = chain()
    likelihood = model.A[0].clone()
    likelihood[2] = 0.0
    model = GenerativeModel(A=(likelihood / likelihood.sum(0), model.A[1]), B=model.B, C=model.C, D=model.D)
    seen = torch.zeros(T, 2, dtype=torch.int64)
    seen[2, 0] = 2
    actions = torch.zeros(T - 1, dtype=torch.int64)
    with pytest.raises(ConfigError, match="Outcome 2 of modality '0' is impossible"):
        smoothing.smooth(model, seen, actions)
    with pytest.raises(ConfigError, match="No history of states"):
        smoothing.most_likely(model, seen, actions)
    with pytest.raises(ConfigError, match=r"take model\.joint\(\)"):
        smoothing.smooth(tangled(), seen, actions)
