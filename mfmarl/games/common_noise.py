r"""The tree of what everybody may come to know: common noise, or the state of a major agent.

With common noise z_t the crowd itself is random: mu_t depends on the whole past of z. Each past is a node; a node's
crowd is exact, and a policy has a row for each node, so that it may depend on all that has been seen (Carmona, Delarue
and Lacker 2016, Ann. Probab. 44, 3740; with a major agent Huang 2010, SIAM J. Control Optim. 48, 3318). Nodes grow as
Z^t: horizons are short, or shocks few (`support` says which states of z can follow which).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError

_NODES = 1 << 20


class Tree(NamedTuple):
    """Nodes level by level; policies, crowds and values of all nodes lie one after the other along their first axis."""

    common: tuple[Tensor, ...]  # [K_t] int64 for each time: z at the nodes
    parent: tuple[Tensor, ...]  # [K_t] int64 for each time: the node of the time before (of the first: -1)
    levels: tuple[slice, ...]  # where each time's nodes lie

    @property
    def nodes(self) -> int:
        return self.levels[-1].stop

    def to(self, device: torch.device) -> Tree:
        return Tree(tuple(z.to(device) for z in self.common), tuple(p.to(device) for p in self.parent), self.levels)


def grow(initial: Tensor, supports: Sequence[Tensor]) -> Tree:
    """The tree of a chain that starts by `initial` [Z] and moves from z to z' where
    `supports[t][z, z']` (bool `[Z, Z]`).

    Raises ConfigError beyond a million nodes.
    """
    common = [initial.nonzero().squeeze(-1)]
    parent = [torch.full_like(common[0], -1)]
    total = len(common[0])
    for t, support in enumerate(supports):
        node, after = support[common[-1]].nonzero(as_tuple=True)
        total += len(node)
        if total > _NODES:
            raise ConfigError(
                f"Common noise over {len(supports) + 1} steps has more than {_NODES} pasts (at step {t + 1} already); "
                "shorten the horizon, or let it strike at few times."
            )
        common.append(after)
        parent.append(node)
    levels, start = [], 0
    for z in common:
        levels.append(slice(start, start + len(z)))
        start += len(z)
    return Tree(tuple(common), tuple(parent), tuple(levels))


def to_parents(values: Tensor, parent: Tensor, count: int) -> Tensor:
    """Sums of children's values [K', ...] by parent: [count, ...]."""
    return values.new_zeros((count, *values.shape[1:])).index_add(0, parent, values)
