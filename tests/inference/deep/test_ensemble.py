"""Ensembles of dynamics: one product for many minds, maximum likelihood, and what is imagined from them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.inference.deep.ensemble import Ensemble
from mfmarl.inference.deep.imagination import Aim, log_preference, worth
from mfmarl.inference.deep.information import parameter_information
from mfmarl.random import Key

MINDS, MEMBERS, COLUMNS, ACTIONS = 2, 3, 2, 1


def made(minds: int = MINDS, low: float = -math.inf, members: int = MEMBERS, hidden: Any = (8, 8)) -> Ensemble:
    bound = torch.full((COLUMNS,), -low)
    return Ensemble(COLUMNS, ACTIONS, hidden, members, minds, Key.of(1), -bound, bound)


def rows(shape: tuple[int, ...], seed: int) -> Tensor:
    return random.normal(Key.of(seed), torch.arange(math.prod(shape))).view(shape)


def test_every_member_of_every_mind_is_its_own_network() -> None:
    """The batched product against one small network after the other, by hand."""
    ensemble = made()
    ensemble.note(
        rows((MINDS, 50, 2), 2) * 3 + 1,
        rows((MINDS, 50, 2), 3),
        rows((MINDS, 50), 4),
        torch.zeros(MINDS, 50, dtype=torch.bool),
    )
    state, action = rows((MINDS, MEMBERS, 6, 2), 5), rows((MINDS, 1, 6, 1), 6)
    found = ensemble(state, action)
    for m in range(MINDS):
        for k in range(MEMBERS):
            x = torch.cat([(state[m, k] - ensemble.centre[m]) / ensemble.spread[m], action[m, 0]], -1)
            for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
                x = x @ weight[m, k] + bias[m, k]
                x = torch.nn.functional.silu(x) if layer < 2 else x
            torch.testing.assert_close(found.change[m, k], x[:, :2])
            torch.testing.assert_close(found.ending[m, k], x[:, 6])
            reward = ensemble.reward_centre[m] + ensemble.reward_spread[m] * x[:, 2]
            torch.testing.assert_close(found.reward[m, k], reward)
    assert bool((found.log_variance > -8).all() & (found.log_variance < 1.001).all())


def world(state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """A damped swing with noise of deviation .05 in the second column alone."""
    position, speed = state[..., 0], state[..., 1]
    pushed = 0.9 * speed - 0.3 * position + 0.5 * action[..., 0] + 0.05 * noise
    return torch.stack([position + 0.2 * speed, pushed], -1)


def trained(minds: int = 1, steps: int = 400) -> Ensemble:
    ensemble = made(minds, members=4, hidden=(24,))
    optimiser = torch.optim.Adam(ensemble.parameters(), 5e-3)
    for step in range(steps):
        if step == steps * 3 // 4:
            optimiser.param_groups[0]["lr"] = 1e-3
        state, action = rows((minds, 4, 64, 2), 10 + 3 * step), rows((minds, 4, 64, 1), 11 + 3 * step).clamp(-1, 1)
        following = world(state, action, rows((minds, 4, 64), 12 + 3 * step))
        reward, ended = 2.0 * state[..., 0] - 1.0, state[..., 0] > 1.2
        flat = [x.flatten(1, 2) for x in (state, following, reward, ended)]
        ensemble.note(*flat)
        loss, _ = ensemble.loss(state, action, following, reward, ended)
        optimiser.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return ensemble


def test_it_learns_means_noise_rewards_and_ends_by_maximum_likelihood() -> None:
    """And what it has not seen it does not agree about: far from the data a step tells many times as much."""
    ensemble = trained()
    state, action = rows((1, 1, 500, 2), 7).clamp(-1.1, 1.1), rows((1, 1, 500, 1), 8).clamp(-1, 1)
    with torch.no_grad():
        found = ensemble(state, action)
        following = ensemble.follow(state, found)
        exact = world(state, action, torch.zeros(()))
        assert float((following.mean(1) - exact[:, 0]).abs().mean()) < 0.02
        noise = (0.5 * found.log_variance).exp() * ensemble.step.unsqueeze(1)
        assert 0.035 < float(noise[..., 1].median()) < 0.07, "the true deviation is .05"
        assert float(noise[..., 0].median()) < 0.015, "and there is none in the other column"
        assert float((found.reward - (2 * state[..., 0] - 1)).abs().mean()) < 0.1
        sure = (state[..., 0] - 1.2).abs() > 0.3
        ends = (found.ending.mean(1) > 0) == (state[:, 0, :, 0] > 1.2)
        assert float(ends[sure[:, 0]].float().mean()) > 0.98

        def told(state: Tensor) -> float:
            one = ensemble(state, action)
            return float(parameter_information(*(x.movedim(1, 2) for x in one.outcome)).mean())

        assert told(state * 4 + 6) > 5 * told(state)


def test_what_followed_an_end_is_not_learned_from() -> None:
    """Whatever the dead seem to see: the same loss, gradients and units."""
    ended = torch.zeros(MINDS, 40, dtype=torch.bool)
    ended[:, ::3] = True
    results = []
    for poison in (0.0, 1e6):
        ensemble = made()
        state, action, reward = rows((MINDS, 40, 2), 20), rows((MINDS, 40, 1), 21), rows((MINDS, 40), 22)
        following = torch.where(ended.unsqueeze(-1), poison, state + 0.1)
        ensemble.note(state, following, reward, ended)
        every = [x.unsqueeze(1).expand(-1, MEMBERS, *x.shape[1:]) for x in (state, action, following, reward, ended)]
        loss, _ = ensemble.loss(*every)
        results.append([loss.detach(), ensemble.step, *torch.autograd.grad(loss.sum(), list(ensemble.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert float(results[0][2].abs().max()) > 0
    # Where everybody's episode ended, neither changes nor their noise are learned at all; rewards and ends are.
    ensemble = made()
    every = [x.unsqueeze(1).expand(-1, MEMBERS, *x.shape[1:]) for x in (state, action, state, reward, ended | True)]
    ensemble.loss(*every)[0].sum().backward()  # type: ignore[no-untyped-call]
    last = ensemble.biases[-1].grad
    assert last is not None
    assert last[..., [0, 1, 3, 4]].abs().max() == 0
    assert last[..., [2, 5, 6]].abs().min() > 0


def test_the_first_units_are_those_of_the_first_batch() -> None:
    ensemble = made()
    state, following, reward = (
        rows((MINDS, 300, 2), 30) * 5 + 2,
        rows((MINDS, 300, 2), 31),
        rows((MINDS, 300), 32) * 0.01,
    )
    ensemble.note(state, following, reward, torch.zeros(MINDS, 300, dtype=torch.bool))
    torch.testing.assert_close(ensemble.centre, state.mean(1, keepdim=True))
    torch.testing.assert_close(ensemble.spread, state.std(1, correction=0, keepdim=True))
    torch.testing.assert_close(ensemble.step, (following - state).square().mean(1, keepdim=True).sqrt())
    torch.testing.assert_close(ensemble.reward_spread, reward.std(1, correction=0, keepdim=True))


def test_nothing_is_imagined_outside_what_can_be() -> None:
    for ensemble, edge in ((made(low=-1.5), 1.5), (made(), 10.0)):
        with torch.no_grad():
            for weight in ensemble.parameters():
                weight.mul_(1e3)
        state = torch.zeros(MINDS, MEMBERS, 9, 2)
        for _ in range(20):
            state = ensemble.follow(state, ensemble(state, torch.ones(MINDS, 1, 9, 1))).detach()
        assert bool(torch.isfinite(state).all())
        assert float(state.abs().max()) == edge


def test_what_a_plan_is_worth_is_the_sum_of_what_each_step_is() -> None:
    """Against the same sum in plain loops: rewards, information, discount, and the chance to be there at all."""
    ensemble = made()
    state, actions = rows((MINDS, 3, 2), 40), rows((MINDS, 3, 4, 5, 1), 41)
    ids = torch.arange(6).view(2, 3)
    for aim in (Aim(0.0, 1.0), Aim(0.7, 0.9), Aim(0.7, 0.9, goal=(0.5, 0.0), width=(0.2, 0.0))):
        found = worth(ensemble, state, actions, aim, ids, Key.of(0))
        for row in range(3):
            for candidate in range(4):
                here = state[:, row].view(MINDS, 1, 1, 2).expand(-1, MEMBERS, -1, -1)
                total, going = torch.zeros(MINDS), torch.ones(MINDS, MEMBERS)
                for t in range(5):
                    step = ensemble(here, actions[:, row, candidate, t].view(MINDS, 1, 1, 1))
                    here = ensemble.follow(here, step)
                    told = parameter_information(*(x[:, :, 0] for x in step.outcome))
                    met = -0.5 * ((here[:, :, 0, 0] - 0.5) / 0.2) ** 2 if aim.goal else step.reward[:, :, 0]
                    total = total + aim.discount**t * (going * (met + aim.information * told.unsqueeze(1))).mean(1)
                    going = going * (1 - torch.sigmoid(step.ending[:, :, 0]))
                torch.testing.assert_close(found[:, row, candidate], total, rtol=1e-4, atol=1e-5)


def test_a_column_of_no_width_does_not_matter() -> None:
    state = torch.tensor([[1.0, 7.0], [3.0, -7.0]])
    goal, width = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])
    assert log_preference(state, goal, width).tolist() == [0.0, -0.5]
