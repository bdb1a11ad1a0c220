r"""A mean-field game's own promises: distributions are distributions, and N agents move as the crowd's flow says.

After one step from states s_i with actions a_i, the agents found in s' are a sum of independent draws of mean
m = sum_i P(s' | s_i, a_i) and variance v <= m, so by Bernstein's inequality

$$ P(|X - m| \ge t) \le 2 \exp\left(-\frac{t^2}{2 (v + t/3)}\right). $$

What is less likely than `ALARM` over all cells is a fault: right rules are accused once in a thousand million checks.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key
from mfmarl.testing.notes import Notes

ALARM = 1e-9
"""The probability that right rules are accused."""
AGENTS = 20_000
COPIES = 8
_LARGE = 1 << 24  # entries of a joint distribution beyond which the crowd is not held against its agents


def check_laws(game: MeanFieldGame, notes: Notes) -> bool:
    """Notes what is wrong with the game's distributions and rewards; whether nothing is."""
    if not _distributed(game, notes):
        return False
    mu = game.initial().to(torch.float64).expand(game.num_groups, game.num_states)
    for name, crowd in (("the first crowd", mu), ("an even crowd", torch.full_like(mu, 1 / game.num_states))):
        if not _lawful(game, crowd, name, notes):
            return False
    return True


def _distributed(game: MeanFieldGame, notes: Notes) -> bool:
    first = notes.ask("initial", game.initial)
    total = first.to(torch.float64).sum(-1)
    if first.shape[-1] != game.num_states or bool((first < 0).any()) or bool(((total - 1).abs() > 1e-6).any()):
        notes.error(
            "initial-distribution",
            f"initial() is {list(first.shape)} with {float(total.flatten()[0]):.6g} in all; expected a distribution over "
            f"{game.num_states} states.",
        )
        return False
    mask = notes.ask("allowed", game.allowed)
    if mask is not None:
        stuck = ~mask.expand(game.num_groups, game.num_states, game.num_actions).any(-1)
        if bool(stuck.any()):
            notes.error("no-legal-action", f"allowed() leaves no action in state {int(stuck.nonzero()[0, -1])}.")
            return False
    return True


def _crowd(game: MeanFieldGame, mu: Tensor) -> Crowd:
    """A crowd of one copy [1, G, S] that chooses evenly, and its common noise."""
    joint = (mu.unsqueeze(-1) / game.num_actions).expand(*mu.shape, game.num_actions).unsqueeze(0)
    common = torch.zeros(1, 1, 1, dtype=torch.int64) if game.common_states > 1 else None
    return Crowd(mu.unsqueeze(0), counted=joint if game.extended else None, common=common)


def _lawful(game: MeanFieldGame, mu: Tensor, name: str, notes: Notes) -> bool:
    crowd = _crowd(game, mu)
    times = (0, (game.horizon or 1) - 1) if game.time_dependent else (0,)
    for t in times:
        kernel = notes.ask("outcomes", partial(game.outcomes, t, crowd))
        if isinstance(kernel, Outcomes):
            low, high = int(kernel.successor.min()), int(kernel.successor.max())
            if low < 0 or high >= game.num_states:
                notes.error(
                    "successor-outside",
                    f"outcomes() leads to state {low if low < 0 else high} at t = {t}; states are 0 to {game.num_states - 1}.",
                )
                return False
        total = kernel.total()
        bad = ~((total - 1).abs() <= 1e-6)
        if bool(bad.any()):
            place = bad.nonzero()[0].tolist()
            notes.error(
                "kernel-not-a-distribution",
                f"The probabilities of state {place[-2]}, action {place[-1]} at t = {t} for {name} add up to "
                f"{float(total[tuple(place)]):.6g} (-1: one is negative).",
            )
            return False
        rewards = notes.ask("rewards", partial(game.rewards, t, crowd))
        shape = (1, game.num_groups, game.num_states, game.num_actions)
        try:
            rewards.expand(shape)
        except RuntimeError:
            notes.error("rewards-shape", f"rewards() is {list(rewards.shape)} at t = {t}; expected {list(shape)}.")
            return False
        if not bool(rewards.isfinite().all()):
            place = (~rewards.isfinite()).nonzero()[0].tolist()
            notes.error("rewards-not-finite", f"rewards() of {name} is not finite at {place} at t = {t}.")
            return False
    return True


def check_moves(game: MeanFieldGame, notes: Notes, key: Key) -> None:
    """Agents who choose at random are counted after one step, and held against what the kernel says of them."""
    if "num_agents" in {field.name for field in fields(game)} and game.num_agents < AGENTS:
        bigger = notes.ask("its options", lambda: _with_agents(game))
        game = bigger if bigger is not None else game
    if COPIES * game.num_groups * game.num_states * game.num_actions > _LARGE or game.num_agents > 10 * AGENTS:
        return
    ids = agent_ids(COPIES, game.num_agents)
    state = notes.ask("reset", lambda: game.reset(ids, key))
    spec = game.spec()
    noise = random.uniform(key.fold("choice"), ids, spec.num_actions)
    legal = game.legal(state)
    action = (noise if legal is None else torch.where(legal, noise, -1.0)).argmax(-1)
    crowd = game.crowd(state, action)
    group = game._group
    cell = group * game.num_states + state.state
    size = game.num_groups * game.num_states
    joint = _counts(cell * game.num_actions + action, size * game.num_actions)
    joint = joint.view(COPIES, game.num_groups, game.num_states, game.num_actions)
    expected = notes.ask("outcomes", lambda: game.kernel(0, crowd).carry(joint)).flatten(1).sum(0)
    after, _ = notes.ask("step", lambda: game.step(state, action, ids, key.fold("step")))
    found = _counts(group * game.num_states + after.state, size).sum(0)
    impossible = (expected < 1e-9) & (found > 0)
    if bool(impossible.any()):
        where = int(impossible.nonzero()[0])
        notes.error(
            "successor-impossible",
            f"step() brought {int(found[where])} agents to state {where % game.num_states}, where outcomes() leads "
            "nobody.",
        )
        return
    off = (found - expected).abs()
    log_chance = math.log(2 * found.numel()) - off.square() / (2 * (expected + off / 3)).clamp(min=1e-12)
    worst = int(log_chance.argmin())
    if float(log_chance[worst]) < math.log(ALARM):
        notes.error(
            "crowd-differs",
            f"Of {COPIES} x {game.num_agents} agents {int(found[worst])} came to state {worst % game.num_states} in a step, "
            f"where outcomes() says {float(expected[worst]):.1f}: such a difference has probability below {ALARM:g}.",
        )


def _with_agents(game: MeanFieldGame) -> MeanFieldGame | None:
    """The game with more agents, whose counts tell more; None where they follow from other options."""
    try:
        return replace(game, num_agents=AGENTS)
    except Exception:  # noqa: BLE001 - the game as it is will do
        return None


def _counts(index: Tensor, size: int) -> Tensor:
    """How often each number below `size` occurs in each row: float64 [E, size]."""
    offset = torch.arange(len(index)).unsqueeze(-1) * size
    return torch.bincount((index + offset).flatten(), minlength=len(index) * size).view(len(index), size).double()
