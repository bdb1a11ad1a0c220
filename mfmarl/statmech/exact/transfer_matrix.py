r"""One-dimensional systems, exactly: products of small matrices, one per link.

$$ Z = \operatorname{tr} \prod_l W_l, \quad W_l(a, b) = e^{\beta (J_l\, a b + h_l a)}; \qquad
   \text{ring of equals: } Z = \lambda_+^N + \lambda_-^N, \quad
   \lambda_\pm = e^K \cosh \beta h \pm \sqrt{e^{2K} \sinh^2 \beta h + e^{-2K}}, \quad \xi = 1 / \ln(\lambda_+/|\lambda_-|) $$

(Ising 1925, Z. Phys. 31, 253; Kramers and Wannier 1941, Phys. Rev. 60, 252.) Couplings and fields may differ from
link to link and lead with a batch of instances [*d]. The product is taken in pairs, in logarithms: O(N) work in
log N steps, no overflow at any temperature. J > 0 is a ferromagnet. K = beta J.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check
from mfmarl.statmech.exact.enumeration import Thermodynamics


def log_product(log_matrices: Tensor, zero_temperature: bool = False) -> Tensor:
    """log of the product of exp(log_matrices) [*d, L, q, q] in order, [*d, q, q].

    With `zero_temperature` sums become maxima: minus the least energy of every path between two ends, for matrices of
    minus energies.
    """
    while log_matrices.shape[-3] > 1:
        even = log_matrices.shape[-3] // 2 * 2
        left, right = log_matrices[..., 0:even:2, :, :, None], log_matrices[..., 1:even:2, None, :, :]
        both = (left + right).amax(-2) if zero_temperature else torch.logsumexp(left + right, -2)
        log_matrices = torch.cat([both, log_matrices[..., even:, :, :]], -3)
    return log_matrices.squeeze(-3)


def chain_log_partition(couplings: Tensor, fields: Tensor | float, beta: float | Tensor) -> Tensor:
    """log Z [*d] of N Ising spins in a row with fields [*d, N]: couplings [*d, N - 1] make an open chain, [*d, N] a
    ring.

    Link l joins spins l and l + 1. A number for the fields makes a ring. Differentiable; beta is a number or [*d].
    """
    return _close(*_ising_links(couplings, fields), beta)


def chain_ground_energy(couplings: Tensor, fields: Tensor | float = 0.0) -> Tensor:
    """The least energy [*d] of the same chain."""
    links, end = _ising_links(couplings, fields)
    return -_close(links, end, None)


def chain_thermodynamics(couplings: Tensor, fields: Tensor | float, beta: float | Tensor) -> Thermodynamics:
    """log Z, F, U, S and C [*d] of the same chain at 0 < beta < inf: U and C are derivatives of log Z."""
    links, end = _ising_links(couplings.detach(), fields)
    return _derived(links, end, beta)


def potts_log_partition(couplings: Tensor, fields: Tensor, beta: float | Tensor) -> Tensor:
    """log Z [*d] of N Potts sites in a row: couplings [*d, N - 1] (open) or [*d, N] (ring), fields [*d, N, q]."""
    return _close(*_potts_links(couplings, fields), beta)


def ring_log_partition(num_spins: int, beta: float, field: float = 0.0, coupling: float = 1.0) -> float:
    """log(l+^N + l-^N): N equal spins in a ring, N >= 3 (or a double bond at N = 2)."""
    high, low, sign = _eigenvalues(beta, field, coupling)
    ratio = sign**num_spins * math.exp(num_spins * (low - high)) if low > -math.inf else 0.0
    return num_spins * high + math.log1p(ratio)


def chain_free_energy_density(beta: float, field: float = 0.0, coupling: float = 1.0) -> float:
    """f = -ln l+ / beta of the infinite chain. A ring of N has f - ln(1 + tanh^N K)/(N beta) without a field."""
    return -_eigenvalues(beta, field, coupling)[0] / beta


def chain_correlation_length(beta: float, field: float = 0.0, coupling: float = 1.0) -> float:
    """xi = 1/ln(l+/|l-|); -1/ln tanh |K| without a field: finite at every T > 0, so no order."""
    high, low, _ = _eigenvalues(beta, field, coupling)
    return 1 / (high - low) if high > low else math.inf


def chain_magnetisation(beta: float, field: float, coupling: float = 1.0) -> float:
    """m = sinh(beta h)/sqrt(sinh^2(beta h) + e^-4K) of the infinite chain."""
    check.inverse_temperature(beta)
    x, k = beta * field, beta * coupling
    # Divided by e^|x|, so that neither term overflows.
    sinh = -math.expm1(-2 * abs(x)) / 2
    return math.copysign(sinh / math.sqrt(sinh * sinh + math.exp(min(-4 * k - 2 * abs(x), 700.0))), x) if x else 0.0


def _eigenvalues(beta: float, field: float, coupling: float) -> tuple[float, float, float]:
    """ln l+, ln |l-|, and the sign of l- (l- = 2 sinh K at h = 0)."""
    if not (0 < beta < math.inf):
        raise ConfigError(f"A chain's eigenvalues need a beta above 0 and finite, not {beta:g}.")
    k, x = beta * coupling, abs(beta * field)
    # l+ / e^(K + x), with cosh and sinh divided by e^x.
    cosh, sinh = (1 + math.exp(-2 * x)) / 2, -math.expm1(-2 * x) / 2
    shift = max(k + x, -k)
    root = math.hypot(sinh * math.exp(k + x - shift), math.exp(-k - shift))
    high = shift + math.log(cosh * math.exp(k + x - shift) + root)
    # l+ l- = det = 2 sinh 2K, to all digits where l+ and l- are close.
    if k == 0:
        return high, -math.inf, 1.0
    log_determinant = 2 * abs(k) + math.log(-math.expm1(-4 * abs(k)))
    return high, log_determinant - high, math.copysign(1.0, k)


def _ising_links(couplings: Tensor, fields: Tensor | float) -> tuple[Tensor, Tensor | None]:
    """Minus the energies [*d, L, 2, 2] of every link with its left spin's field, and of the last spin of an open
    chain.
    """
    j = couplings.double()
    if not isinstance(fields, Tensor) or fields.ndim == 0:
        fields = torch.as_tensor(fields, dtype=torch.float64).expand(j.shape[-1])
    h = fields.double()
    spin = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return _links(j, h.unsqueeze(-1) * spin, spin.unsqueeze(-1) * spin)


def _potts_links(couplings: Tensor, fields: Tensor) -> tuple[Tensor, Tensor | None]:
    return _links(couplings.double(), fields.double(), torch.eye(fields.shape[-1], dtype=torch.float64))


def _links(j: Tensor, site: Tensor, pair: Tensor) -> tuple[Tensor, Tensor | None]:
    """From couplings [*d, L], sites' terms [*d, N, q] and the pair's term [q, q]; an open chain has L = N - 1."""
    length, sites = j.shape[-1], site.shape[-2]
    if length not in (sites, sites - 1) or length < 1:
        raise ConfigError(
            f"{sites} spins in a row have {sites - 1} links, in a ring {sites}: there are {length} couplings."
        )
    check.finite(j, "Couplings")
    check.finite(site, "Fields")
    links = j[..., None, None] * pair + site[..., :length, :, None]
    return links, None if length == sites else site[..., -1, :]


def _close(links: Tensor, end: Tensor | None, beta: float | Tensor | None) -> Tensor:
    """log Z [*d]; minus the ground energy for beta None."""
    if beta is not None:
        check.inverse_temperature(beta)
        scale = torch.as_tensor(beta, dtype=torch.float64)
        if bool(torch.isinf(scale).any()):
            raise ConfigError("log Z is infinite at beta = inf: ask for the ground energy.")
        links = links * scale[..., None, None, None]
        end = None if end is None else end * scale[..., None]
    product = log_product(links, zero_temperature=beta is None)
    if end is None:
        closed = product.diagonal(dim1=-2, dim2=-1)
    else:
        closed = (product + end.unsqueeze(-2)).flatten(-2)
    return closed.amax(-1) if beta is None else torch.logsumexp(closed, -1)


def _derived(links: Tensor, end: Tensor | None, beta: float | Tensor) -> Thermodynamics:
    """log Z and what its first two derivatives in beta give."""
    at = torch.as_tensor(beta, dtype=torch.float64)
    if not bool((at > 0).all()):
        raise ConfigError("The thermodynamics of a chain need a beta above 0.")
    with torch.enable_grad():
        at = at.expand(torch.broadcast_shapes(at.shape, links.shape[:-3])).clone().requires_grad_()
        log_z = _close(links, end, at)
        (slope,) = torch.autograd.grad(log_z.sum(), at, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), at)
    log_z, slope, at = log_z.detach(), slope.detach(), at.detach()
    return Thermodynamics(log_z, -log_z / at, -slope, log_z - at * slope, at * at * curvature)
