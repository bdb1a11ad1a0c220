r"""What sequences of actions are worth in an ensemble's imagination: preferences met, and things learned.

$$ -G(a_{1:H}) = \sum_{\tau=1}^H \gamma^{\tau-1}\, \tfrac1K \sum_k w_{k,\tau}
   \big( \hat r_{k,\tau} \ \text{or}\ \ln \tilde P(s_{k,\tau}) + \lambda\, I_\tau \big), \qquad
   w_{k,\tau} = \prod_{t < \tau} (1 - e_{k,t}) $$

Tschantz et al. 2020, arXiv 2002.12636, equations 6 to 9: the free energy of the expected future, extrinsic value plus the
information that a step's outcome (what is seen, and what is paid)
gives about them, without the ambiguity that Gaussian members of equal noise share. Each
member follows its own mean from the present state, so disagreement adds up along a plan. e is the chance that the episode
ends, after which nothing is earned or learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.inference.deep.ensemble import Ensemble
from mfmarl.inference.deep.information import How, parameter_information
from mfmarl.random import Key


@dataclass(frozen=True)
class Aim:
    """What a plan is for."""

    information: float = 1.0
    """lambda, the weight of information about the dynamics; 0: none."""
    discount: float = 1.0
    how: How = "moments"
    goal: tuple[float, ...] = ()
    """The preferred state; empty: the reward is what is preferred."""
    width: tuple[float, ...] = ()
    """The standard deviation of the preference in each column; 0: it does not matter."""


def log_preference(state: Tensor, goal: Tensor, width: Tensor) -> Tensor:
    """ln P~ [*b] of states [*b, S], up to its constant: a Gaussian about the goal [S] in the columns that matter."""
    matters = width > 0
    away = (state - goal) / torch.where(matters, width, 1.0)
    return -0.5 * torch.where(matters, away, 0.0).square().sum(-1)


@torch.no_grad()
def worth(ensemble: Ensemble, state: Tensor, actions: Tensor, aim: Aim, ids: Tensor, key: Key) -> Tensor:
    """-G [M, B, C] of sequences [M, B, C, H, D] from states [M, B, S]; `ids` [M, B] name the rows, for noise."""
    minds, rows, candidates, horizon = actions.shape[:4]
    members, columns = ensemble.members, ensemble.columns + 1  # the reward is an outcome as well
    steps = actions.flatten(1, 2)
    here = state.unsqueeze(2).expand(-1, -1, candidates, -1).flatten(1, 2).unsqueeze(1)
    goal, width = (torch.tensor(x, dtype=state.dtype, device=state.device) for x in (aim.goal, aim.width))
    total = torch.zeros((minds, rows * candidates), dtype=state.dtype, device=state.device)
    going: Tensor | float = 1.0
    for t in range(horizon):
        found = ensemble(here, steps[:, None, :, t])
        following = ensemble.follow(here, found)
        value = log_preference(following, goal, width) if aim.goal else found.reward
        if aim.information:
            noise = None
            if aim.how == "neighbours":
                drawn = random.normal(key.fold(t), ids, candidates * members * columns)
                noise = drawn.view(minds, rows * candidates, members, columns)
            mean, log_variance = (x.movedim(1, 2) for x in found.outcome)
            value = value + aim.information * parameter_information(mean, log_variance, aim.how, noise).unsqueeze(1)
        total += aim.discount**t * (going * value).mean(1)
        going = going * torch.sigmoid(-found.ending)
        here = following
    return total.view(minds, rows, candidates)
