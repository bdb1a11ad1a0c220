"""Yaida's relation: exact second moments of a quadratic, torch's own optimiser, and a descent not yet at rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import stationarity
from mfmarl.statmech.sampling import noise
from tests.statistical import beyond, statistical


def exact_moments(k: float, spread: float, lr: float, momentum: float) -> np.ndarray:
    """Covariance of (theta, v) of v' = mu v + k theta + s xi, theta' = theta - lr v', by Lyapunov's equation."""
    a = np.array([[1 - lr * k, -lr * momentum], [k, momentum]])
    b = spread * np.array([-lr, 1.0])
    return linalg.solve_discrete_lyapunov(a, np.outer(b, b))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("lr", [0.05, 0.4])
def test_the_relation_holds_exactly_for_the_moments_of_a_quadratic(lr, momentum):
    sigma = exact_moments(1.3, 0.7, lr, momentum)
    force = 1.3 * sigma[0, 0]  # E[theta (k theta + noise)]
    assert force == pytest.approx((1 + momentum) * lr / 2 * sigma[1, 1], rel=1e-10)
    # The published closed form without momentum: Var theta = lr s^2/(k (2 - lr k)).
    if momentum == 0:
        assert sigma[0, 0] == pytest.approx(lr * 0.49 / (1.3 * (2 - lr * 1.3)), rel=1e-10)


def descend(optimizer_of, steps: int, warm_up: int) -> stationarity.Stationarity:
    """torch's SGD on 200 independent weights k theta^2/2 with noisy gradients, from theta = 3."""
    theta = torch.nn.Parameter(torch.full((200,), 3.0, dtype=torch.float64))
    optimizer = optimizer_of([theta])
    force, motion = [], []
    for step in range(warm_up + steps):
        optimizer.zero_grad()
        theta.grad = 1.3 * theta.detach() + 0.7 * noise.normal(Key.of(step), torch.tensor(0), 200, torch.float64)
        if step >= max(warm_up, 1):
            now = stationarity.sgd_balance(optimizer)
            force.append(now.force)
            motion.append(now.motion)
        optimizer.step()
    return stationarity.stationary(torch.stack(force), torch.stack(motion))


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.8, 0.0), (0.8, 0.2)])
@statistical(alpha=beyond(5, 20, samples=32), bugs=("wide-sampler-noise", "chain-mean-off"))
def test_torch_sgd_at_rest_obeys_the_relation(momentum, decay):
    found = descend(lambda p: torch.optim.SGD(p, lr=0.2, momentum=momentum, weight_decay=decay), 1500, 200)
    assert abs(found.z) < 5
    sigma = exact_moments(1.3 + decay, 0.7, 0.2, momentum)
    for side in (found.force, found.motion):
        assert abs(float(side.value) - 200 * (1.3 + decay) * sigma[0, 0]) < 5 * float(side.error)
        assert float(side.error) < 0.05 * float(side.value)


def test_a_descent_that_is_still_falling_breaks_it():
    theta, v, lr, sides = torch.full((200, 1), 3.0).double(), torch.zeros(200, 1).double(), 0.002, []
    for step in range(100):
        g = 1.3 * theta + 0.7 * noise.normal(Key.of(step), torch.arange(200), 1, torch.float64)
        v = 0.5 * v + g
        sides.append(stationarity.balance(theta, g, v, lr, 0.5))
        theta = theta - lr * v
    found = stationarity.stationary(*(torch.stack(side) for side in zip(*sides, strict=True)))
    assert found.z > 50 and float(found.force.value) > 10 * float(found.motion.value)


def test_weights_and_buffers_in_tensors_give_the_same_two_sides():
    theta, g, v = (noise.normal(Key.of(i), torch.arange(5), 4, torch.float64) for i in range(3))
    both = stationarity.balance(theta, g, v, 0.1, 0.5)
    assert both.force.shape == both.motion.shape == (5,)
    assert float(both.motion[2]) == pytest.approx(1.5 * 0.1 / 2 * float(v[2] @ v[2]))
    assert float(both.force[1]) == pytest.approx(float(theta[1] @ g[1]))


def test_what_it_does_not_hold_for_is_refused():
    theta = torch.nn.Parameter(torch.ones(2))
    theta.grad = torch.ones(2)
    with pytest.raises(ConfigError, match="no Nesterov"):
        stationarity.sgd_balance(torch.optim.SGD([theta], lr=0.1, momentum=0.5, nesterov=True))
    with pytest.raises(ConfigError, match="take a step"):
        stationarity.sgd_balance(torch.optim.SGD([theta], lr=0.1, momentum=0.5))
    assert math.isfinite(float(stationarity.sgd_balance(torch.optim.SGD([theta], lr=0.1)).force))
