r"""What a step tells about the dynamics: the mutual information between what follows and which member is right.

$$ I(s'; \theta \mid s, a) = H\Big[\tfrac1K \sum_k N(\mu_k, \Sigma_k)\Big] - \tfrac1K \sum_k H[N(\mu_k, \Sigma_k)] $$

The entropy of a mixture of Gaussians has no closed form. Two answers:

| `how` | mixture entropy | against the truth |
|---|---|---|
| `moments` | the Gaussian of the same mean and covariance, 1/2 ln det 2 pi e (mean Sigma + Cov mu) | never below; equal as members agree |
| `neighbours` | Kozachenko and Leonenko's on one sample of each member, by k-th neighbours | noisy; its bias falls with K |

K equal members cannot tell more than ln K. `moments` is not cut there: members are samples of a posterior, and the
bound goes on to order what lies beyond. Tschantz et al. 2020 (arXiv 2002.12636, appendix) have the neighbours. Their
released code counts a sample as its own first neighbour, so that its k = 3 is the second, but keeps the constants of the
third, and multiplies by the weight of exploration twice: its bonus is (weight)^2 times one that is off by a constant. Here a
neighbour is another sample, and a weight is applied once.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError

How = Literal["moments", "neighbours"]
_LN_2PIE = math.log(2 * math.pi * math.e)


def parameter_information(
    mean: Tensor, log_variance: Tensor, how: How = "moments", noise: Tensor | None = None, neighbour: int = 3
) -> Tensor:
    """I(s'; member) [*b] in nats, of members' Gaussians of mean and log-variance [*b, K, S].

    Units of the columns do not matter. `neighbours` needs standard normal `noise` [*b, K, S] and more than `neighbour` members.
    """
    members = 0.5 * (_LN_2PIE * mean.shape[-1] + log_variance.sum(-1)).mean(-1)
    if how == "moments":
        return (gaussian_bound(mean, log_variance) - members).clamp(min=0)
    if noise is None:
        raise ConfigError("Information by neighbours draws a sample of each member: give it noise.")
    samples = mean + torch.exp(0.5 * log_variance) * noise
    return neighbour_entropy(samples, neighbour) - members


def gaussian_bound(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The entropy [*b] of the Gaussian with the moments of the mixture: at least the mixture's."""
    members, columns = mean.shape[-2:]
    noise = log_variance.exp().mean(-2)
    away = mean - mean.mean(-2, keepdim=True)
    log_det = noise.log().sum(-1)
    if columns == 1:
        extra = torch.log1p((away.square().mean(-2) / noise).squeeze(-1))
    else:
        # In units of the noise det(1 + X'X/K) = det(1 + XX'/K): the smaller of the two, S x S or K x K.
        x = away / noise.unsqueeze(-2).sqrt()
        gram = x.transpose(-1, -2) @ x if columns <= members else x @ x.transpose(-1, -2)
        gram = gram / members
        if gram.shape[-1] == 2:
            a, b, c = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
            extra = torch.log1p(a + c + (a * c - b * b).clamp(min=0))
        else:
            one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
            extra = 2 * torch.linalg.cholesky(gram + one).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (_LN_2PIE * columns + log_det + extra)


def neighbour_entropy(samples: Tensor, neighbour: int = 3) -> Tensor:
    r"""Kozachenko and Leonenko's entropy [*b] of samples [*b, K, S], by the distance eps to the k-th other sample.

    $$ \psi(K) - \psi(k) + \ln V_S + \frac SK \sum_i \ln \epsilon_i $$
    """
    members, columns = samples.shape[-2:]
    if not 1 <= neighbour < members:
        raise ConfigError(
            f"The {neighbour}. neighbour of one of {members} samples is none: use more members, or how = moments."
        )
    apart = (samples.unsqueeze(-2) - samples.unsqueeze(-3)).square().sum(-1)
    itself = torch.eye(members, dtype=torch.bool, device=samples.device)
    apart = apart.masked_fill(itself, float("inf"))
    distance = apart.kthvalue(neighbour, dim=-1).values.clamp(min=1e-30).sqrt()
    ball = columns / 2 * math.log(math.pi) - math.lgamma(columns / 2 + 1)
    psi = torch.special.digamma(torch.tensor([members, neighbour], dtype=torch.float64)).tolist()
    return psi[0] - psi[1] + ball + columns * distance.log().mean(-1)
