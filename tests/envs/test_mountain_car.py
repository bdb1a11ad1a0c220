"""Mountain Car against Gymnasium's, and what it measures."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from mfmarl import random
from mfmarl.envs.mountain_car import FASTEST, LEFT, MountainCar, State
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key

THEIRS = {"continuous": "MountainCarContinuous-v0", "discrete": "MountainCar-v0"}


def push(actions: str, velocity: float, noise: np.random.Generator) -> np.ndarray:
    """Along the motion, with noise: it reaches both ends of the valley."""
    along = 1.0 if velocity >= 0 else -1.0
    if actions == "discrete":
        return np.array(noise.integers(0, 3) if noise.random() < 0.15 else along + 1, np.int64)
    return np.clip(np.array([along + noise.normal(0, 0.5)]), -1, 1).astype(np.float32)


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_every_step_is_gymnasiums(actions: Any) -> None:
    """300 steps from the same start: arrival in the same step, the reward to float32, positions as its own type has them.

    Gymnasium keeps float32 of the continuous car, float64 of the discrete one.
    """
    exact = {"continuous": 1e-5, "discrete": 1e-7}[actions]
    ours = MountainCar(actions=actions, reward="gymnasium", horizon=None)
    walls = arrivals = 0
    for seed in range(8):
        theirs: Any = gymnasium.make(THEIRS[actions], max_episode_steps=10_000)
        theirs.reset(seed=seed)
        ids = agent_ids(1, 1)
        state = ours.reset(ids, Key.of(0))
        start = [torch.tensor([[x]], dtype=state.position.dtype) for x in theirs.unwrapped.state]
        state = state._replace(position=start[0], velocity=start[1])
        noise = np.random.default_rng(seed)
        for _ in range(300):
            action = push(actions, float(state.velocity), noise)
            seen, reward, over, cut, _ = theirs.step(action if actions == "continuous" else int(action))
            played = torch.from_numpy(action).view(1, 1, *action.shape)
            state, paid = ours.step(state, played, ids, Key.of(1))
            np.testing.assert_allclose(ours.observe(state)[0, 0].numpy(), seen, atol=exact)
            assert float(paid) == pytest.approx(float(reward), rel=1e-6)
            assert not cut
            assert bool(ours.done(state)) == over
            walls += int(seen[0] <= LEFT)
            if over:
                arrivals += 1
                break
    assert walls > 0, "somebody has run into the wall on the left"
    assert arrivals > 2


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_one_step_is_gymnasiums_anywhere(actions: Any) -> None:
    """From 2,000 states of the whole phase space, edges included: to the last bits of float32."""
    ours = MountainCar(num_agents=2000, actions=actions, horizon=None)
    ids = agent_ids(1, 2000)
    state = ours.reset(ids, Key.of(0))
    unit = random.uniform(Key.of(1), ids, 3)
    position, velocity = LEFT + 1.8 * unit[..., 0], (2 * unit[..., 1] - 1) * FASTEST
    position[0, :50], velocity[0, 50:80] = LEFT, -FASTEST
    dtype = state.position.dtype
    state = state._replace(position=position.to(dtype), velocity=velocity.to(dtype))
    action = (2 * unit[..., 2:] - 1) if actions == "continuous" else (unit[..., 2] * 3).long()
    after, reward = ours.step(state, action, ids, Key.of(2))
    theirs: Any = gymnasium.make(THEIRS[actions]).unwrapped
    theirs.reset(seed=0)
    for n in range(2000):
        theirs.state = np.array([state.position[0, n], state.velocity[0, n]])
        if actions == "continuous":
            theirs.state = theirs.state.astype(np.float32)
        own = action[0, n].numpy() if actions == "continuous" else int(action[0, n])
        seen, _, over, _, _ = theirs.step(own)
        np.testing.assert_allclose(ours.observe(after)[0, n].numpy(), seen, atol=2e-7)
        assert bool(after.arrived[0, n]) == over
        assert float(reward[0, n]) == float(over)


def test_an_action_that_is_repeated_is_that_many_steps() -> None:
    ids = agent_ids(2, 3)
    slow, fast = MountainCar(3, repeat=5, reward="gymnasium"), MountainCar(3, reward="gymnasium")
    a = b = slow.reset(ids, Key.of(4))
    for t in range(40):
        action = random.uniform(Key.of(5).fold(t), ids, 1) * 2 - 1
        a, paid = slow.step(a, action, ids, Key.of(0))
        total = torch.zeros_like(paid)
        for _ in range(5):
            b, one = fast.step(b, action, ids, Key.of(0))
            total += one
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    torch.testing.assert_close(paid, total)


def test_full_throttle_does_not_climb_and_swinging_does() -> None:
    """The engine is too weak for the slope: pushing always to the right never arrives; pushing along the motion does."""
    simulation = Simulation(MountainCar(64, horizon=None), 1)
    for swing in (False, True):
        timestep = simulation.reset(Key.of(6))
        for _ in range(200):
            velocity = timestep.obs[..., 1:]
            push = torch.where(velocity >= 0, 1.0, -1.0) if swing else torch.ones_like(velocity)
            timestep = simulation.step(push)
            if bool(timestep.ended.all()):
                break
        assert float(simulation.measure()["arrived"]) == float(swing)
    assert bool(timestep.terminated.any()) and not bool(timestep.truncated.any())


def test_coverage_counts_cells_that_were_entered() -> None:
    rules = MountainCar(1, bins=10)
    ids = agent_ids(1, 1)
    state = rules.reset(ids, Key.of(0))
    assert float(rules.measure(state)["coverage"]) == pytest.approx(0.01)
    cells = {int(rules.cell(state.position, state.velocity))}
    for t in range(120):
        push = torch.full((1, 1, 1), 1.0 if t % 40 < 20 else -1.0)
        state, _ = rules.step(state, push, ids, Key.of(0))
        cells.add(int(rules.cell(state.position, state.velocity)))
    assert len(cells) > 5
    assert float(rules.measure(state)["coverage"]) == pytest.approx(len(cells) / 100)


def test_who_has_arrived_is_out_and_is_paid_once() -> None:
    rules = MountainCar(2)
    ids = agent_ids(1, 2)
    state = State(
        torch.tensor([[0.44, -0.5]]), torch.tensor([[0.05, 0.0]]), torch.zeros(1, 2, dtype=torch.bool),
        torch.zeros(1, 400, dtype=torch.bool),
    )  # fmt: skip
    paid = []
    for _ in range(3):
        state, reward = rules.step(state, torch.zeros(1, 2, 1), ids, Key.of(0))
        paid.append(reward.tolist())
    assert paid == [[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]
    assert rules.alive(state).tolist() == [[False, True]]
    assert not bool(rules.done(state))


def test_a_repeated_action_costs_nothing_after_the_arrival() -> None:
    """Four steps from the goal at full speed, in an action of ten: 100 less four times .1."""
    rules = MountainCar(1, repeat=10, reward="gymnasium")
    ids = agent_ids(1, 1)
    state = rules.reset(ids, Key.of(0))
    state = state._replace(position=torch.tensor([[0.2]]), velocity=torch.tensor([[FASTEST]]))
    state, reward = rules.step(state, torch.ones(1, 1, 1), ids, Key.of(0))
    assert bool(state.arrived.all())
    assert float(reward) == pytest.approx(100 - 0.1 * 4, abs=1e-5)
