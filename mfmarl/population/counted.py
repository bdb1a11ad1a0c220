r"""The mean of a class over everyone else, from counts: everybody of one class and group feels the same.

$$ m^j_c = \frac{n_c - [c_j = c]}{n - 1} $$

So a table with a row for each class is all there is to divide, and agents look their rows up: O(N) additions and O(N F)
copies, no plane per class. Quotients are those of `mfmarl.population.field`, bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mfmarl.population import compiled
from mfmarl.population.spec import Spec


class Coded(Protocol):
    """Everybody's code: class, group and life in one number; one of `groups` x (count + 1), the last for no class."""

    def counts(self) -> Tensor:
        """How many have each code: int64 [E, groups, count + 1]."""

    def look_up(self, rows: Tensor, first: int, last: int) -> Tensor:
        """[E, last - first, F] of what each code is given in rows [E, codes, F]; zeros for the dead."""


class Codes:
    """In torch, int64. See `compiled.Codes`."""

    def __init__(self, classes: Tensor, alive: Tensor | None, count: int, ends: list[int]) -> None:
        self.count, self.groups = count, len(ends)
        code = torch.where((classes >= 0) & (classes < count), classes, count)
        for group in range(1, len(ends)):
            code[:, ends[group - 1] : ends[group]] += group * (count + 1)
        self.dead = self.groups * (count + 1)
        if alive is not None:
            code.masked_fill_(~alive, self.dead)
        # Copies apart: each has codes of its own.
        self.code = code.add_(torch.arange(len(code), device=code.device).unsqueeze(-1), alpha=self.dead + 1)

    def counts(self) -> Tensor:
        copies = len(self.code)
        found = torch.bincount(self.code.flatten(), minlength=copies * (self.dead + 1)).view(copies, -1)
        return found[:, : self.dead].unflatten(1, (self.groups, self.count + 1))

    def look_up(self, rows: Tensor, first: int, last: int) -> Tensor:
        table = torch.nn.functional.pad(rows, (0, 0, 0, 1)).flatten(0, 1)
        code = self.code[:, first:last]
        return table.index_select(0, code.reshape(-1)).view(*code.shape, table.shape[-1])


def fits(spec: Spec, count: int, device: torch.device) -> bool:
    """Whether counting is the shorter way: on the CPU, with more agents than rows of the table.

    Every rank of a divided population finds the same.
    """
    codes = len(spec.groups) * (count + 1)
    return device.type == "cpu" and compiled.Codes.hold(codes) and (spec.whole or spec).num_agents >= 2 * codes


def everyone(
    classes: Tensor, count: int, alive: Tensor | None, spec: Spec, same: bool, typed: bool, first: int, last: int
) -> Tensor:
    """Means of classes [E, N] (`count` of them; any other number is none) over all others, [E, last - first, F].

    `same`: over the own group alone. `typed`: for each group apart, side by side. `alive` None: everyone lives.
    """
    ends = [part.stop for part in spec.group_slices.values()] if same or typed else [spec.num_agents]
    elements = len(classes) * spec.num_agents
    make = compiled.Codes if compiled.chosen(elements, classes.device) else Codes
    codes: Coded = make(classes, alive, count, ends)
    counts = spec.ranks.sum(codes.counts())
    groups = len(ends)
    # Of one in group g and class c, [E, g, c, k, C]: how many others of group k have class C, and how many these are.
    seen = torch.eye(groups, dtype=torch.int64) if same else torch.ones(groups, groups, dtype=torch.int64)
    others = counts[:, None, None] * seen.view(groups, 1, groups, 1)
    own = torch.eye(groups * (count + 1), dtype=torch.int64).view(groups, count + 1, groups, count + 1)
    others = others - own
    mean = others[..., :count].to(torch.float32) / others.sum(-1, keepdim=True).to(torch.float32).clamp(min=1)
    # A code that nobody has is nobody's row: it may hold anything.
    mean = mean.flatten(3) if typed else mean.diagonal(dim1=1, dim2=3).movedim(-1, 1) if groups > 1 else mean.squeeze(3)
    return codes.look_up(mean.flatten(1, 2), first, last)
