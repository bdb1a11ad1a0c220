"""Small models whose plans can be written out, and the writing out: one policy after the other, one state after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.random import Key


def columns(seed: int, *shape: int, axis: int = 0, sharp: float = 1.0) -> Tensor:
    """Random distributions along an axis: flat Dirichlet, sharper as `sharp` grows."""
    x = random.exponential(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape)).double() ** sharp
    return x / x.sum(axis, keepdim=True)


def beliefs(seed: int, batch: Sequence[int], sizes: Sequence[int]) -> tuple[Tensor, ...]:
    return tuple(columns(seed + f, *batch, size, axis=-1) for f, size in enumerate(sizes))


def entwined(seed: int = 0, lead: tuple[int, ...] = (), sharp: float = 1.0) -> GenerativeModel:
    """Three factors (the second moves by the first, the third by nobody's doing), two controls, three modalities."""
    axis = len(lead)

    def table(n: int, *shape: int) -> Tensor:
        return columns(100 * seed + n, *lead, *shape, axis=axis, sharp=sharp)

    return GenerativeModel(
        A=(table(0, 4, 2, 3), table(1, 2, 3), table(2, 3, 2, 2)),
        B=(table(3, 2, 2, 2), table(4, 3, 3, 2, 3, 2), table(5, 2, 2)),
        C=(table(6, 4).log(), table(7, 2).log(), table(8, 3).log() * 2),
        D=(columns(9, 2), columns(10, 3), columns(11, 2)),
        A_factors=((0, 1), (1,), (2, 0)),
        B_factors=((0,), (1, 0), (2,)),
        B_controls=((0,), (1, 0), ()),
    )


def apart(seed: int = 0, sharp: float = 1.0) -> GenerativeModel:
    """Two factors that each move by themselves, by a control each."""

    def table(n: int, *shape: int) -> Tensor:
        return columns(100 * seed + n, *shape, sharp=sharp)

    return GenerativeModel(
        A=(table(0, 3, 3, 2), table(1, 2, 2)),
        B=(table(2, 3, 3, 2), table(3, 2, 2, 3)),
        C=(table(4, 3).log(), table(5, 2).log()),
        D=(columns(6, 3), columns(7, 2)),
        A_factors=((0, 1), (1,)),
    )


def cue(validity: float = 0.95) -> GenerativeModel:
    """Two sides, hidden for good, and a place to wait or to look: looking shows the side, mostly."""
    look = torch.tensor([[0.5, validity], [0.5, 1 - validity]], dtype=torch.float64)
    A = torch.stack((look, look.flip(0)), 1)  # [outcome, side, place]
    where = torch.zeros(2, 2, 2, dtype=torch.float64)
    where[0, :, 0] = where[1, :, 1] = 1
    half = torch.full((2,), 0.5, dtype=torch.float64)
    return GenerativeModel(
        A=(A,),
        B=(torch.eye(2, dtype=torch.float64), where),
        C=(torch.zeros(2, dtype=torch.float64),),
        D=(half, torch.tensor([1.0, 0.0], dtype=torch.float64)),
        B_controls=((), (0,)),
    )


def t_maze(validity: float = 0.95, reward: float = 0.98) -> GenerativeModel:
    """A T-maze of five places (centre, left, right, cue, middle), two sides; pymdp's, with its doors."""
    doors = {(0, 3), (3, 0), (0, 4), (4, 0), (4, 1), (1, 4), (4, 2), (2, 4)}
    B = torch.zeros(5, 5, 5, dtype=torch.float64)
    for place in range(5):
        for action in range(5):
            B[action if (place, action) in doors else place, place, action] = 1
    found = torch.zeros(3, 5, 2, dtype=torch.float64)
    shown = torch.zeros(3, 5, 2, dtype=torch.float64)
    found[0, [0, 3, 4]] = 1
    shown[0, [0, 1, 2, 4]] = 1
    for side in range(2):
        found[1, 1 + side, side] = found[2, 2 - side, side] = reward
        found[0, 1:3, side] = 1 - reward
        shown[1 + side, 3, side], shown[2 - side, 3, side] = validity, 1 - validity
    eye = torch.eye(5, dtype=torch.float64)
    return GenerativeModel(
        A=(eye, found, shown),
        B=(B, torch.eye(2, dtype=torch.float64)),
        C=(eye[0] * 0, torch.tensor([0.0, 2.0, -4.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)),
        D=(eye[0], torch.full((2,), 0.5, dtype=torch.float64)),
        A_factors=((0,), (0, 1), (0, 1)),
        B_controls=((0,), ()),
    )


def grid(size: int = 4, slip: float = 0.1, seen: float = 0.8) -> GenerativeModel:
    """Places of a square, four moves and staying; what is seen is the place, or any."""
    S = size * size
    B = torch.zeros(S, S, 5, dtype=torch.float64)
    for place in range(S):
        row, column = divmod(place, size)
        for action, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))):
            inside = 0 <= row + down < size and 0 <= column + right < size
            B[place + size * down + right if inside else place, place, action] += 1 - slip
            B[place, place, action] += slip
    C = torch.zeros(S, dtype=torch.float64)
    C[S - 1] = 2
    A = seen * torch.eye(S, dtype=torch.float64) + (1 - seen) / S
    return GenerativeModel(A=(A,), B=(B,), C=(C,), D=(torch.full((S,), 1 / S, dtype=torch.float64),))


# ------------------------------------------------------------------------------------------------ written out


def joint_table(model: GenerativeModel, m: int) -> list[list[float]]:
    """A^m as outcomes by joint states."""
    states = list(itertools.product(*map(range, model.sizes)))
    return [
        [float(model.A[m][(o, *(s[f] for f in model.A_factors[m]))]) for s in states] for o in range(model.outcomes[m])
    ]


def entropy(p: Sequence[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def worth(model: GenerativeModel, q: Sequence[float], t: int, objective: Objective) -> float:
    """g of a belief over joint states, by its definition."""
    tables = [joint_table(model, m) for m in range(len(model.A))]
    shown = [[sum(a * p for a, p in zip(row, q, strict=True)) for row in table] for table in tables]
    total = 0.0
    for m, Q in enumerate(shown):
        C = model.preferences(t)[m]
        liked = (C.log_softmax(-1) if objective.normalise else C).tolist()
        total += sum(p * c for p, c in zip(Q, liked, strict=True))
    if objective.state_information == "none":
        return total
    columns = [[[row[s] for row in table] for s in range(len(q))] for table in tables]
    known = sum(q[s] * sum(entropy(c[s]) for c in columns) for s in range(len(q)))
    if objective.state_information == "per_modality":
        return total + objective.state_weight * (sum(entropy(Q) for Q in shown) - known)
    together = [
        sum(q[s] * math.prod(table[o][s] for table, o in zip(tables, outcome, strict=True)) for s in range(len(q)))
        for outcome in itertools.product(*map(range, model.outcomes))
    ]
    return total + objective.state_weight * (entropy(together) - known)


def moved(model: GenerativeModel, q: list[list[float]], action: int) -> list[list[float]]:
    """Independent beliefs a step on, by their definition."""
    setting = list(itertools.product(*map(range, model.controls)))[action]
    found = []
    for f, parents in enumerate(model.B_factors):
        after = [0.0] * model.sizes[f]
        for s in itertools.product(*(range(model.sizes[g]) for g in parents)):
            p = math.prod(q[g][x] for g, x in zip(parents, s, strict=True))
            for x in range(model.sizes[f]):
                after[x] += p * float(model.B[f][(x, *s, *(setting[g] for g in model.B_controls[f]))])
        found.append(after)
    return found


def product(q: list[list[float]]) -> list[float]:
    return [math.prod(x) for x in itertools.product(*q)]


def policy_values(
    model: GenerativeModel, believed: Sequence[Tensor], depth: int, objective: Objective, t: int = 0
) -> Tensor:
    """g [B, U^L] of beliefs [B, S_f], every policy by itself."""
    rows = []
    for b in range(len(believed[0])):
        row = []
        for policy in itertools.product(range(model.num_actions), repeat=depth):
            q, total = [x[b].tolist() for x in believed], 0.0
            for step, action in enumerate(policy):
                q = moved(model, q, action)
                total += worth(model, product(q), t + step, objective)
            row.append(total)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)
