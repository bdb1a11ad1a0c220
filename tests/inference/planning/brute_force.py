"""Sophisticated inference as its definition reads: plain Python numbers, one outcome after the other. The truth of tiny models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective

Belief = list[list[float]]


def random_model(
    seed: int,
    sizes: Sequence[int] = (3,),
    outcomes: Sequence[int] = (2, 3),
    controls: int = 2,
    sharp: float = 2.0,
    habits: bool = False,
    lead: Sequence[int] = (),
    zeros: bool = False,
) -> GenerativeModel:
    """Random tables; every modality depends on all factors."""
    g = torch.Generator().manual_seed(seed)

    def columns(*shape: int, axis: int = 0) -> Tensor:
        x = (sharp * torch.randn(*lead, *shape, dtype=torch.float64, generator=g)).exp()
        if zeros:
            gone = torch.rand(*lead, *shape, generator=g) < 0.3
            gone.select(len(lead) + axis, 0).fill_(False)
            x = x.masked_fill(gone, 0.0)
        return x / x.sum(len(lead) + axis, keepdim=True)

    return GenerativeModel(
        A=tuple(columns(o, *sizes) for o in outcomes),
        B=tuple(columns(s, s, controls) for s in sizes),
        C=tuple(torch.randn(*lead, o, dtype=torch.float64, generator=g) for o in outcomes),
        D=tuple(columns(s) for s in sizes),
        E=columns(controls) if habits else None,
        B_controls=((0,),) * len(sizes),
        controls=(controls,),
    )


def beliefs(seed: int, batch: Sequence[int], sizes: Sequence[int]) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    found = []
    for s in sizes:
        x = torch.rand(*batch, s, dtype=torch.float64, generator=g) ** 2
        found.append(x / x.sum(-1, keepdim=True))
    return tuple(found)


class Truth:
    """One model without leading axes, all of its factors on one control; joint states are tuples."""

    def __init__(
        self, model: GenerativeModel, gamma: float, objective: Objective, backup: str, marginals: bool = True
    ) -> None:
        self.sizes, self.outcomes = model.sizes, model.outcomes
        self.A = [a.tolist() for a in model.A]
        self.B = [b.tolist() for b in model.B]
        self.C = [c.log_softmax(-1).tolist() if objective.normalise else c.tolist() for c in model.C]
        self.E = [1.0] * model.num_actions if model.E is None else model.E.tolist()
        self.gamma, self.objective, self.backup = gamma, objective, backup
        self.states = list(itertools.product(*[range(s) for s in self.sizes]))
        self.marginals = marginals  # factors are taken to be independent after each update

    def likelihood(self, m: int, o: int, state: tuple[int, ...]) -> float:
        table = self.A[m][o]
        for s in state:
            table = table[s]
        return float(table)

    def moved(self, q: Belief, u: int) -> Belief:
        return [
            [sum(self.B[f][s][r][u] * q[f][r] for r in range(size)) for s in range(size)]
            for f, size in enumerate(self.sizes)
        ]

    def joint(self, q: Belief) -> list[float]:
        return [math.prod(q[f][s] for f, s in enumerate(state)) for state in self.states]

    def one_step(self, ahead: list[float]) -> float:
        """g_1 of predicted joint beliefs."""
        pragmatic = information = ambiguity = 0.0
        for m, size in enumerate(self.outcomes):
            shown = [
                sum(p * self.likelihood(m, o, s) for p, s in zip(ahead, self.states, strict=True)) for o in range(size)
            ]
            pragmatic += sum(p * c for p, c in zip(shown, self.C[m], strict=True))
            information += _entropy(shown)
            ambiguity += sum(
                p * _entropy([self.likelihood(m, o, s) for o in range(size)])
                for p, s in zip(ahead, self.states, strict=True)
            )
        if self.objective.state_information == "joint":
            information = _entropy([p for p, _ in self.branches(ahead)])
        if self.objective.state_information == "none":
            return pragmatic
        return pragmatic + self.objective.state_weight * (information - ambiguity)

    def branches(self, ahead: list[float]) -> list[tuple[float, list[float]]]:
        """Probabilities of joint outcomes, and joint beliefs after them."""
        found = []
        for outcome in itertools.product(*[range(o) for o in self.outcomes]):
            both = [
                p * math.prod(self.likelihood(m, o, s) for m, o in enumerate(outcome))
                for p, s in zip(ahead, self.states, strict=True)
            ]
            if sum(both) > 0:
                found.append((sum(both), [x / sum(both) for x in both]))
        return found

    def values(self, q: Belief, depth: int) -> list[float]:
        """g_h of every action, habits left out."""
        found = []
        for u in range(len(self.E)):
            ahead = self.joint(self.moved(q, u))
            value = self.one_step(ahead)
            if depth > 1:
                value += sum(p * self.worth(self.split(after), depth - 1) for p, after in self.branches(ahead))
            found.append(value)
        return found

    def split(self, joint: list[float]) -> Belief:
        return [
            [sum(p for p, state in zip(joint, self.states, strict=True) if state[f] == s) for s in range(size)]
            for f, size in enumerate(self.sizes)
        ]

    def worth(self, q: Belief, depth: int) -> float:
        g = self.values(q, depth)
        if self.backup == "max":
            return max(g)
        weight = [e * math.exp(self.gamma * x) for e, x in zip(self.E, g, strict=True)]
        if self.backup == "free_energy":
            return math.log(sum(weight)) / self.gamma
        return sum(w * x for w, x in zip(weight, g, strict=True)) / sum(weight)

    def plan(self, q: Belief, depth: int) -> list[float]:
        """As `Plan.value`: habits included."""
        return [x + math.log(e) / self.gamma for x, e in zip(self.values(q, depth), self.E, strict=True)]


def _entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)
