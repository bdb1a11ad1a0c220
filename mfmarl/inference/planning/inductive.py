r"""Inductive inference: from a goal backwards, which states it can still be reached from, and a price for the others.

$$ R^f(s', s) = [\max_u B^f(s' \mid s, u) > \theta], \qquad I^f_0 = H^f, \qquad
   I^f_{k+1}(s) = [\exists s' : R^f(s', s)\, I^f_k(s')] $$
$$ g_\tau \mathrel{+}= \sum_f \ln \epsilon \sum_s (1 - I^f_m(s))\, q^f_\tau(s), \qquad
   m = \max(\min\{k : I^f_k(s^*) = 1\} - 1,\ 0), \qquad s^* = \mathrm{argmax}\, q^f $$

(Friston et al. 2023, "Active inference and intentional behaviour", as pymdp 1.0.4 has it.) s* is where the agent most
probably is now, so that m counts from the beginning of a plan and not from the step that is weighed. A factor whose
goal cannot be reached within the depth adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel


class Inductive(NamedTuple):
    """Goals, and from where they can be reached."""

    reachable: tuple[Tensor, ...]
    """I^f [*p, depth, S_f] of 0 and 1: row k, whether k steps can lead from each state to the goal."""
    log_epsilon: float
    """What it costs, per step, to be where the goal is out of reach, nats."""

    def weights(self, believed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What each state of a plan adds to its value [*b, S_f], for an agent that believes [*b, S_f] now."""
        found = []
        for table, q in zip(self.reachable, believed, strict=True):
            batch = torch.broadcast_shapes(table.shape[:-2], q.shape[:-1])
            # Booleans' argmax is the first true one: the first of states that are as probable.
            here = (q == q.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1).expand(batch)
            table = table.expand(*batch, *table.shape[-2:])
            column = table.gather(-1, here[..., None, None].expand(*batch, table.shape[-2], 1)).squeeze(-1)
            row = (column.to(torch.uint8).argmax(-1) - 1).clamp(min=0)
            ahead = table.gather(-2, row[..., None, None].expand(*batch, 1, table.shape[-1])).squeeze(-2)
            found.append((column.amax(-1, keepdim=True) * (1 - ahead) * self.log_epsilon).to(q.dtype))
        return tuple(found)


def inductive(
    model: GenerativeModel,
    goals: Sequence[Tensor | None],
    depth: int,
    threshold: float = 0.1,
    epsilon: float = 1e-3,
) -> Inductive:
    """From where the goals can be reached: `goals` H^f [*p, S_f] are 1 at every state that is one, None: no goal.

    Transitions of probability `threshold` and less are not counted on; a factor that depends on others is taken to be
    led by whatever they do. Raises ConfigError for goals that do not fit the model, or no goal at all.
    """
    if depth < 1:
        raise ConfigError(f"Inductive inference needs a depth of at least 1, not {depth}.")
    if not 0 < epsilon < 1:
        raise ConfigError(f"epsilon is a probability between 0 and 1, not {epsilon}.")
    if len(goals) != len(model.sizes):
        raise ConfigError(f"{len(model.sizes)} factors need as many goals (None: no goal), not {len(goals)}.")
    tables = []
    for f, goal in enumerate(goals):
        size, name = model.sizes[f], model.factors[f]
        if goal is None:
            tables.append(torch.zeros(1, size, dtype=model.dtype, device=model.device).expand(depth, size))
            continue
        if goal.shape[-1] != size:
            raise ConfigError(f"The goal of factor {name!r} must say of {size} states whether they are it.")
        if not bool(((goal == 0) | (goal == 1)).all()):
            raise ConfigError(f"The goal of factor {name!r} must be 1 at the states that are it and 0 elsewhere.")
        leads = _leads(model, f, threshold)
        rows = [goal.to(leads)]
        for _ in range(depth - 1):
            rows.append(((leads * rows[-1].unsqueeze(-1)).sum(-2) > 0).to(leads))
        rows = list(torch.broadcast_tensors(*rows))
        tables.append(torch.stack(rows, -2))
    if all(not bool(table.any()) for table in tables):
        raise ConfigError("Inductive inference needs a goal: no state of any factor is one.")
    return Inductive(tuple(tables), math.log(epsilon))


def _leads(model: GenerativeModel, f: int, threshold: float) -> Tensor:
    """R^f [*p, S_f', S_f]: whether some action (and some states of other factors) leads from one to the other."""
    parents = model.B_factors[f]
    if f not in parents:
        raise ConfigError(
            f"The factor {model.factors[f]!r} does not depend on itself: no path leads from its states to a goal."
        )
    table = (model.B[f] > threshold).to(model.dtype)
    lead = table.ndim - 1 - len(parents) - len(model.B_controls[f])
    own = lead + 1 + parents.index(f)
    others = [axis for axis in range(lead + 1, table.ndim) if axis != own]
    return table.amax(others) if others else table
