"""Rules held against the generative model that an environment gives of itself: how often, and what never."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.inference import senses
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key


def _joint(factors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> Tensor:
    number = torch.zeros_like(factors[0])
    for x, size in zip(factors, sizes, strict=True):
        number = number * size + x
    return number


def _assert_drawn_from(count: Tensor, chance: Tensor, what: str) -> None:
    """Counts [rows, kinds] are draws from chances [rows, kinds]: never what cannot be, always what must be, else 5 sigma."""
    drawn = count.sum(-1, keepdim=True)
    assert not bool(((chance == 0) & (count > 0)).any()), f"{what}: something happened that cannot"
    error = (count - drawn * chance).abs()
    spread = (drawn * chance * (1 - chance)).sqrt()
    assert bool((error <= 5 * spread + 1e-6 * drawn).all()), (
        f"{what}: off by {(error / spread.clamp(min=1)).max():.1f} sigma"
    )


def assert_rules_are_the_model(env: Any, steps: int = 12, rounds: int = 3, crowds: int = 200, seed: int = 0) -> int:
    """Plays at random and compares; returns how many different (state, action) were seen."""
    model = env.generative_model()
    flat, space = model.joint(), env.spec().observation_space
    senses.check(model, space)
    states, actions = flat.num_states, flat.num_actions
    assert actions == env.spec().num_actions
    ids, key = agent_ids(crowds, env.num_agents), Key.of(seed)
    moved = torch.zeros(states * actions * states)
    begun = torch.zeros(states)
    count = math.prod(model.outcomes)
    shown = torch.zeros(count * states)

    def look(state: Any) -> Tensor:
        now = _joint(env.hidden(state), model.sizes)
        seen = senses.outcomes(model, space, env.observe(state))
        assert isinstance(seen, Tensor)
        shown.add_(torch.bincount((senses.number(model, seen) * states + now).flatten(), minlength=count * states))
        preferred = sum(c[seen[..., m]] for m, c in enumerate(model.C))
        assert isinstance(preferred, Tensor)
        paid.append(preferred.float())
        return now

    paid: list[Tensor] = []
    for round_ in range(rounds):
        state = env.reset(ids, key.fold("reset", round_))
        now = look(state)
        begun += torch.bincount(now.flatten(), minlength=states)
        for t in range(steps):
            action = random.integers(key.fold("act", round_, t), ids, actions)
            state, reward = env.step(state, action, ids, key.fold("step", round_, t))
            after = look(state)
            torch.testing.assert_close(reward, paid[-1])
            moved += torch.bincount(
                ((now * actions + action) * states + after).flatten(), minlength=states * actions * states
            )
            now = after
    _assert_drawn_from(begun.unsqueeze(0), flat.D[0].unsqueeze(0), "D")
    _assert_drawn_from(moved.view(-1, states), flat.B[0].permute(1, 2, 0).flatten(0, 1), "B")
    # Modalities together: given the state, what one shows tells nothing of another.
    together = torch.ones(1, states, dtype=torch.float64)
    for table in flat.A:
        together = (together.unsqueeze(1) * table).flatten(0, 1)
    _assert_drawn_from(shown.view(-1, states).T, together.T, "A")
    return int((moved.view(-1, states).sum(-1) > 0).sum())
