r"""Bayesian neural networks with a mean-field Gaussian over the weights, by Bayes-by-backprop.

$$ F_T[q] = \langle L \rangle_q + T\, KL\left(q \,\|\, N(0, T/\lambda)\right)
          = \langle L + \tfrac\lambda2 |\theta|^2 \rangle_q - T\, S[q] + const $$

(Blundell et al. 2015, eq. 3; T = 1 is minus the ELBO, T < 1 a cold posterior, T = 0 MAP with |theta|^2 as the prior's
energy.) The entropy that regularises is S[q] = sum log(sigma sqrt(2 pi e)) of a distribution, and it enters with a minus.
`MeanField` does it for any module, drawing weights; `MeanFieldLayers` draws activations, which has less variance
(local reparameterisation: Kingma, Salimans and Welling 2015, eq. 6-7) and gives each row noise of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.losses import demand_determinism


def gaussian_entropy(log_scale: Tensor) -> Tensor:
    """S = sum log sigma + d/2 log(2 pi e) over the last axis, [*b]."""
    return log_scale.sum(-1) + log_scale.shape[-1] / 2 * math.log(2 * math.pi * math.e)


def kl_to_prior(mean: Tensor, log_scale: Tensor, precision: float | Tensor, temperature: float = 1.0) -> Tensor:
    """KL(N(mean, sigma^2) || N(0, T/precision)) summed over the last axis, [*b]; precisions are one or [*b]."""
    stiffness = torch.as_tensor(precision, dtype=mean.dtype, device=mean.device).unsqueeze(-1) / temperature
    each = stiffness * (mean.square() + (2 * log_scale).exp()) - 1 - 2 * log_scale - stiffness.log()
    return each.sum(-1) / 2


def entropy_regularised(loss: Tensor, entropy: Tensor, temperature: float) -> Tensor:
    """L - T S: the objective of any stochastic learner whose entropy is S (a policy's, a posterior's)."""
    check.temperature(temperature)
    return loss - temperature * entropy


class MeanField(nn.Module):
    """A Gaussian for every weight of `model` (whose own values become the means), `networks` of them at once.

    `mean` and `log_scale` are [networks, d]; the model itself is left as it is. A prior's precision is one for all or
    [networks]: a choice of priors is then fitted in one go.
    """

    def __init__(
        self, model: nn.Module, prior_precision: float | Tensor = 1.0, *, scale: float = 0.05, networks: int = 1
    ) -> None:
        super().__init__()
        _check_options(prior_precision, scale, networks)
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        if not self.shapes:
            raise ConfigError("The model has no parameters to be Bayesian about.")
        demand_determinism(model)
        # Not a submodule: its parameters are not ours to learn.
        self._model = [model]
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        self.mean = nn.Parameter(flat.repeat(networks, 1))
        self.log_scale = nn.Parameter(torch.full_like(self.mean, math.log(scale)))
        self.prior_precision = prior_precision

    def weights(self, key: Key, draws: int) -> Tensor:
        """[draws, networks, d], differentiable in mean and scale."""
        networks, d = self.mean.shape
        ids = torch.arange(draws * networks, device=self.mean.device).reshape(draws, networks)
        return self.mean + self.log_scale.exp() * random.normal(key, ids, d).to(self.mean)

    def forward(self, x: Tensor, key: Key, draws: int = 1) -> Tensor:
        """Outputs [draws, networks, n, ...] for the same inputs [n, ...]."""
        weights = self.weights(key, draws)
        flat = torch.func.vmap(self._outputs, (0, None))(weights.flatten(0, 1), x)
        return flat.unflatten(0, (draws, self.mean.shape[0]))

    def entropy(self) -> Tensor:
        """S[q], [networks]."""
        return gaussian_entropy(self.log_scale)

    def kl(self, temperature: float = 1.0) -> Tensor:
        """[networks]."""
        return kl_to_prior(self.mean, self.log_scale, self.prior_precision, temperature)

    def free_energy(self, losses: Tensor, temperature: float = 1.0) -> Tensor:
        """F_T [networks] of losses [draws, networks], each *summed* over all data (scale minibatches up)."""
        check.temperature(temperature, positive=True)
        return losses.mean(0) + temperature * self.kl(temperature)

    def _outputs(self, weights: Tensor, x: Tensor) -> Tensor:
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return torch.func.functional_call(self._model[0], named, (x,))


class MeanFieldLayers(nn.Module):
    """Fully connected layers of such `widths` with Gaussian weights and sampled activations, `networks` at once.

    A last layer without nonlinearity; tanh between. Initial means as torch's (uniform +- 1/sqrt(inputs)).
    """

    def __init__(
        self,
        widths: Sequence[int],
        prior_precision: float | Tensor = 1.0,
        *,
        key: Key,
        scale: float = 0.05,
        networks: int = 1,
    ) -> None:
        super().__init__()
        _check_options(prior_precision, scale, networks)
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigError(f"Layers need at least an input and an output width of 1 or more, not {list(widths)}.")
        self.prior_precision = prior_precision
        self.means, self.log_scales = nn.ParameterList(), nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            generator = random.generator(key.fold("layer", layer))
            shape = (networks, inputs + 1, outputs)  # the bias is the last row
            bound = 1 / math.sqrt(inputs)
            self.means.append(nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound))
            self.log_scales.append(nn.Parameter(torch.full(shape, math.log(scale))))

    def forward(self, x: Tensor, key: Key | None, draws: int = 1) -> Tensor:
        """Outputs [networks, draws n, C] flattened as [draws, networks, n, C] of inputs [n, I] or [networks, n, I].

        With no key the weights are at their means (draws then must be 1).
        """
        if key is None and draws != 1:
            raise ConfigError("Without a key there is no noise: several draws would be the same.")
        networks, rows = self.means[0].shape[0], x.shape[-2]
        h = x.expand(networks, *x.shape[-2:]).repeat(1, draws, 1)
        for layer, (mean, log_scale) in enumerate(zip(self.means, self.log_scales, strict=True)):
            h = torch.tanh(h) if layer else h
            out = torch.baddbmm(mean[:, -1:], h, mean[:, :-1])
            if key is not None:
                variance = (2 * log_scale).exp()
                spread = torch.baddbmm(variance[:, -1:], h.square(), variance[:, :-1])
                generator = random.generator(key.fold("layer", layer), out.device)
                noise = torch.empty_like(out).normal_(generator=generator)
                # 1e-16: the root's slope at an input of zeros and a bias without doubt is infinite.
                out = out + (spread + 1e-16).sqrt() * noise
            h = out
        return h.reshape(networks, draws, rows, -1).transpose(0, 1)

    def entropy(self) -> Tensor:
        """S[q], [networks]."""
        return sum((gaussian_entropy(s.flatten(1)) for s in self.log_scales), torch.zeros(()))

    def kl(self, temperature: float = 1.0) -> Tensor:
        """[networks]."""
        parts = [
            kl_to_prior(m.flatten(1), s.flatten(1), self.prior_precision, temperature)
            for m, s in zip(self.means, self.log_scales, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def free_energy(self, losses: Tensor, temperature: float = 1.0) -> Tensor:
        """F_T [networks] of losses [draws, networks], each *summed* over all data (scale minibatches up)."""
        check.temperature(temperature, positive=True)
        return losses.mean(0) + temperature * self.kl(temperature)


def _check_options(prior_precision: float | Tensor, scale: float, networks: int) -> None:
    if networks < 1:
        raise ConfigError(f"There must be at least one network, not {networks}.")
    if not 0 < scale < math.inf:
        raise ConfigError(f"An initial scale must be finite and above 0, not {scale:g}.")
    precision = torch.as_tensor(prior_precision, dtype=torch.float64)
    if precision.shape not in ((), (networks,)) or not bool(((precision > 0) & precision.isfinite()).all()):
        raise ConfigError(
            f"A prior's precision must be finite and above 0, one for all or one for each of {networks} networks."
        )
