r"""Entropy and mutual information from samples, in nats, with what each is known to get wrong.

From counts n_k of N samples over K bins:

| estimator | bias | use |
|---|---|---|
| `plug_in` | -(K - 1)/(2N) + O(1/N^2) | N >> K only |
| `miller_madow` | O(1/N^2) once every bin has been seen | N > K |
| `grassberger` | far below 1/N for N > K; needs no K | the default |
| `chao_shen` | small even when most bins are unseen; noisier | N < K |

Plug-in mutual information is too large by (K_x - 1)(K_y - 1)/(2N): independent variables seem related.
From continuous samples: nearest neighbours. Their bias falls as N^(-2/d) or slower, and grows with k; KSG's cancels
between its terms, and vanishes for independent variables.
Miller 1955; Grassberger 2003, arXiv physics/0307138, eq. 28; Chao and Shen 2003, Env. Ecol. Stat. 10; Kozachenko and
Leonenko 1987; Kraskov, Stoegbauer and Grassberger 2004, Phys. Rev. E 69, 066138, eqs. 8 and 20.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault


def plug_in(counts: Tensor) -> Tensor:
    """The entropy [*b] of the frequencies of counts [*b, K]: too small by about (K - 1)/(2N)."""
    counts = _counts(counts)
    return torch.special.entr(counts / counts.sum(-1, keepdim=True)).sum(-1)


def miller_madow(counts: Tensor) -> Tensor:
    """Plug-in plus (bins seen - 1)/(2N), [*b]."""
    return plug_in(counts) + ((counts > 0).sum(-1) - 1) / (2 * counts.sum(-1).double())


def grassberger(counts: Tensor) -> Tensor:
    r"""[*b] from counts [*b, K].

    $$ \psi(N) - \frac1N \sum_k n_k G(n_k), \qquad
       G(n) = \psi(n) + \tfrac{(-1)^n}{2} \big( \psi(\tfrac{n+1}{2}) - \psi(\tfrac n2) \big) $$

    The paper has log N, for a number of samples that is itself random (Poisson). For a given N that is 1/(2N) too
    large, to first order: psi(N) is what takes it away.
    """
    counts = _counts(counts)
    n = counts.clamp(min=1)
    sign = 1 - 2 * (n % 2)
    g = torch.special.digamma(n) + sign / 2 * (torch.special.digamma((n + 1) / 2) - torch.special.digamma(n / 2))
    total = counts.sum(-1)
    return torch.special.digamma(total) - (counts * g).sum(-1) / total


def chao_shen(counts: Tensor) -> Tensor:
    """[*b] from counts [*b, K]: frequencies shrunk by the share of mass seen, each weighted by its chance to be seen.

    The share of mass seen is Good's 1 - (bins seen once)/N; where all were seen once it is 1/N, not 0.
    """
    counts = _counts(counts)
    total = counts.sum(-1, keepdim=True)
    once = (counts == 1).sum(-1, keepdim=True).double()
    once = torch.minimum(once, (total - 1).clamp(min=0))
    p = (1 - once / total) * counts / total
    seen = -torch.expm1(total * torch.log1p(-p))
    return torch.where(counts > 0, torch.special.entr(p) / seen, torch.zeros_like(p)).sum(-1)


def plug_in_mutual_information(counts: Tensor) -> Tensor:
    """[*b] from joint counts [*b, X, Y]: too large by about (X - 1)(Y - 1)/(2N)."""
    return plug_in(counts.sum(-1)) + plug_in(counts.sum(-2)) - plug_in(counts.flatten(-2))


def corrected_mutual_information(counts: Tensor) -> Tensor:
    """[*b] from joint counts [*b, X, Y] by Miller and Madow's corrections; may fall below 0 for the independent."""
    return miller_madow(counts.sum(-1)) + miller_madow(counts.sum(-2)) - miller_madow(counts.flatten(-2))


def kozachenko_leonenko(samples: Tensor, k: int = 3) -> Tensor:
    r"""Differential entropy (0-dim float64) of samples [n, d] from the distances eps_i to their k-th neighbours.

    $$ \psi(n) - \psi(k) + \log V_d + \frac dn \sum_i \log \epsilon_i $$

    V_d is the unit ball's volume. Raises NumericFault where samples repeat: a density has no atoms.
    """
    from scipy.spatial import cKDTree

    n, d = _continuous(samples, k)
    points = samples.detach().double().cpu().numpy()
    distance = torch.from_numpy(cKDTree(points).query(points, k=[k + 1])[0])
    if bool((distance == 0).any()):
        raise NumericFault(f"{int((distance == 0).sum())} samples repeat more than {k} times: they have no density.")
    ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    psi = torch.special.digamma(torch.tensor([n, k], dtype=torch.float64))
    return psi[0] - psi[1] + ball + d * distance.log().mean()


def ksg_mutual_information(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    r"""I(X; Y) (0-dim float64) of paired samples [n, d] and [n, e], by the first estimator of Kraskov et al.

    $$ \psi(k) + \psi(n) - \langle \psi(n_x + 1) + \psi(n_y + 1) \rangle $$

    n_x and n_y count the neighbours nearer, in x or y alone, than the k-th in both (largest coordinate). Scale x and y
    alike (say to unit deviation): the estimate is not invariant, though the quantity is.
    """
    from scipy.spatial import cKDTree

    n, _ = _continuous(x, k)
    _continuous(y, k)
    if len(y) != n:
        raise ConfigError(f"Paired samples must be as many: x has {n}, y has {len(y)}.")
    first, second = x.detach().double().cpu(), y.detach().double().cpu()
    both = torch.cat([first, second], -1).numpy()
    radius = cKDTree(both).query(both, k=[k + 1], p=math.inf)[0][:, 0]
    # Strictly nearer: the next number below.
    radius = torch.nextafter(torch.from_numpy(radius), torch.tensor(-1.0, dtype=torch.float64)).clamp(min=0).numpy()
    total = torch.zeros(n, dtype=torch.float64)
    for points in (first.numpy(), second.numpy()):
        nearer = cKDTree(points).query_ball_point(points, radius, p=math.inf, return_length=True)  # itself included
        total += torch.special.digamma(torch.as_tensor(nearer, dtype=torch.float64))
    psi = torch.special.digamma(torch.tensor([n, k], dtype=torch.float64))
    return psi.sum() - total.mean()


def _counts(counts: Tensor) -> Tensor:
    counts = counts.double()
    if not bool((counts >= 0).all()) or not bool((counts.sum(-1) > 0).all()):
        raise ConfigError("Counts must be at least 0, and not all 0: an entropy of no samples is unknown.")
    return counts


def _continuous(samples: Tensor, k: int) -> tuple[int, int]:
    if samples.ndim != 2 or not 1 <= k < len(samples):
        raise ConfigError(
            f"Neighbours need samples [n, d] with n above k = {k} >= 1, not of shape {list(samples.shape)}."
        )
    if not bool(torch.isfinite(samples).all()):
        raise NumericFault("Samples hold a NaN or an infinity: they have no neighbours.")
    return samples.shape[0], samples.shape[1]
