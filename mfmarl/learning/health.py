"""Whether what has been learned is still made of sensible numbers: looked at with every report.

A loss or gradient that is not finite stops a run before any weight is touched (`networks.finite_step`). Here is what goes
wrong more slowly. An agent's rewards, none larger than r, can add up to r / (1 - gamma) and no more: values a thousand
times beyond that are worth nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mfmarl.errors import NumericFault
from mfmarl.learning.memory import Replay
from mfmarl.learning.players import Player

BEYOND = 1e3
"""Values so many times larger than what rewards can add up to have diverged; errors too, and losses as its square."""
HUGE = 1e12
"""A loss, gradient or value beyond this has diverged, where nothing is known of the rewards."""
DIVERGED = ("loss", "value", "gradient")
"""Alarms that mark a run as diverged; of the others it may be told that it has nothing left to learn."""
_LEAST_ENTROPY = 1e-6


def alarms(player: Player, row: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the numbers that learning told in this row: by name of the alarm, in words.

    `loss`, `value`, `gradient`: beyond all bounds, or not finite. `entropy`: a policy without any choice left at a
    temperature above 0.
    """
    agent, found = player.agent, {}
    reach = _reach(player)
    for what, names, bound in (
        ("loss", ("loss", "free_energy", "gain"), HUGE if reach is None else (BEYOND * reach) ** 2),
        ("value", ("value",), HUGE if reach is None else BEYOND * reach),
        ("gradient", ("gradient_norm", "actor_gradient_norm"), HUGE),
    ):
        for name in names:
            number = row.get(f"{player.name}/{name}", 0.0)
            if not abs(number) <= bound:
                found[what] = f"{name} = {number:.3g}, beyond {bound:.3g}"
    entropy = row.get(f"{player.name}/entropy", 1.0)
    if agent.spec.discrete and agent.spec.num_actions > 1 and agent.memory != "self":
        cold = agent.schedule.kind != "entropy" and agent.schedule.at(agent.progress) < _LEAST_ENTROPY
        if not entropy > _LEAST_ENTROPY and not cold:
            found["entropy"] = f"entropy = {entropy:.3g} nats at temperature {float(agent.temperature):.3g}"
    return found


def _reach(player: Player) -> float | None:
    """What the rewards that it remembers can add up to; None: it remembers none."""
    memory, agent = player.memory, player.agent
    if not isinstance(memory, Replay) or "reward" not in memory.ring:
        return None
    largest = float(memory.ring["reward"].abs().amax())
    if not agent.gamma < 1:
        return None
    return max(largest, 1e-3) / (1 - agent.gamma)


def demand_finite(player: Player, step: int) -> None:
    """Raises NumericFault where a weight, or a number of an optimiser, is not finite: such a state is not to be stored."""
    for what, tensors in (
        ("weights", dict(player.agent.state_dict())),
        *(
            (f"state of the optimiser {name!r}", _states(optimiser))
            for name, optimiser in player.agent.optimisers().items()
        ),
    ):
        values = [x for x in tensors.values() if isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel()]
        if not values or math.isfinite(float(torch.stack([x.sum() for x in values]).sum())):
            continue
        lost = [n for n, x in tensors.items() if isinstance(x, torch.Tensor) and not bool(torch.isfinite(x).all())]
        if lost:
            raise NumericFault(
                f"{player.name} has {what} that are not finite at step {step} ({lost[0]}): learning diverged; the last "
                "checkpoint is from before. Lower the learning rate or scale the rewards.",
                "nan-weights",
            )


def _states(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value
        for index, values in enumerate(optimiser.state.values())
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
