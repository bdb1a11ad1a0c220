"""Networks for one mind or many: every weight carries a leading axis of minds, so that a thousand learners
are one batched product and not a Python loop.

Rows come as [M, B, ...]: M minds, B rows each. With M = 1 the products are the ordinary ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.learning.agent import NotFinite
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.spec import Spec
from mfmarl.random import Key

Activation = Literal["relu", "tanh"]


class Linear(nn.Module):
    """M affine maps at once: [M, B, I] -> [M, B, O]. Initialised as torch's (Kaiming-uniform), from a key.

    One mind's rows may come without its axis: [B, I] -> [B, O].
    """

    def __init__(self, minds: int, inputs: int, outputs: int, key: Key, scale: float | None = None) -> None:
        super().__init__()
        generator = random.generator(key)
        bound = 1 / math.sqrt(max(inputs, 1)) if scale is None else scale
        self.weight = nn.Parameter((torch.rand(minds, inputs, outputs, generator=generator) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(minds, 1, outputs, generator=generator) * 2 - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            # squeeze, not [0]: the gradient of an index is a tensor of zeros written into.
            return torch.addmm(self.bias.squeeze(0), x, self.weight.squeeze(0))
        return torch.baddbmm(self.bias, x, self.weight)


class Conv(nn.Module):
    """M 3 x 3 convolutions at once: [M, B, C, H, W] -> [M, B, O, H-2, W-2]; minds are groups of channels."""

    def __init__(self, minds: int, inputs: int, outputs: int, key: Key) -> None:
        super().__init__()
        generator = random.generator(key)
        bound = 1 / math.sqrt(inputs * 9)
        self.weight = nn.Parameter((torch.rand(minds * outputs, inputs, 3, 3, generator=generator) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(minds * outputs, generator=generator) * 2 - 1) * bound)
        self.minds = minds

    def forward(self, x: Tensor) -> Tensor:
        minds, rows = x.shape[:2]
        if minds == 1:
            return nn.functional.conv2d(x.squeeze(0), self.weight, self.bias).unsqueeze(0)
        wide = x.transpose(0, 1).flatten(1, 2)
        out = nn.functional.conv2d(wide, self.weight, self.bias, groups=minds)
        return out.unflatten(1, (minds, -1)).transpose(0, 1).reshape(minds, rows, -1, *out.shape[2:])


class Network(nn.Module):
    """Observation and extra columns (field, action) -> outputs.

    Images [H, W, C] (or [C, H, W]: the smaller end is the channels) large enough for it pass 3 x 3 convolutions, one
    for each of `channels`, which are their widths; Discrete observations become one-hot; everything else is
    flattened. The extra columns join before the hidden layers. `out_scale` bounds the last layer's initial weights
    (small for policies).
    """

    def __init__(
        self,
        spec: Spec,
        extra: int,
        hidden: Sequence[int],
        outputs: int,
        minds: int,
        key: Key,
        activation: Activation = "relu",
        out_scale: float | None = None,
        channels: Sequence[int] = (32, 32),
    ) -> None:
        super().__init__()
        shape = spec.observation_shape
        self.classes = int(getattr(spec.observation_space, "n", 0)) if not shape else 0
        self.convolutions = nn.ModuleList()
        self.channels_last = False
        border = 2 * len(channels)
        if channels and len(shape) == 3 and sorted(shape)[1] > border:
            self.channels_last = shape[2] <= shape[0]
            colours, height, width = (shape[2], shape[0], shape[1]) if self.channels_last else shape
            for layer, (inputs, wide) in enumerate(pairwise((colours, *channels))):
                self.convolutions.append(Conv(minds, inputs, wide, key.fold("conv", layer)))
            features = channels[-1] * (height - border) * (width - border)
        else:
            features = self.classes or int(torch.Size(shape).numel())
        sizes = [features + extra, *hidden]
        self.hidden = nn.ModuleList(
            Linear(minds, a, b, key.fold("hidden", i)) for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.out = Linear(minds, sizes[-1], outputs, key.fold("out"), out_scale)
        self.activation: Activation = activation

    def forward(self, obs: Tensor, *extra: Tensor) -> Tensor:
        """`obs` [M, B, *O] (or [M, B] int64), each of `extra` [M, B, *] -> [M, B, outputs]."""
        if self.classes:
            x = nn.functional.one_hot(obs, self.classes).to(self.out.weight.dtype)
        elif len(self.convolutions):
            x = obs.permute(0, 1, 4, 2, 3) if self.channels_last else obs
            for layer in self.convolutions:
                x = torch.relu(layer(x))
            x = x.flatten(2)
        else:
            x = obs.flatten(2)
        if any(e.shape[-1] for e in extra):
            x = torch.cat([x, *extra], dim=-1)
        alone = x.shape[0] == 1
        x = x.squeeze(0) if alone else x
        for layer in self.hidden:
            x = layer(x)
            # In place: the product is nobody else's, and its gradient does not need it.
            x = x.relu_() if self.activation == "relu" else x.tanh_()
        x = self.out(x)
        return x.unsqueeze(0) if alone else x


def descend(
    loss: Tensor,
    parameters: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    minds: int,
    largest: float,
    name: str = "a network",
    ranks: Ranks = ALONE,
) -> Tensor:
    """One step down the gradient of these parameters alone, clipped mind by mind; returns its norms [M] before that.

    `loss` is this rank's share of the whole. Raises NumericFault, on all ranks, before a loss or gradient of `name` that
    is not finite has touched a weight or the optimiser.
    """
    whole, _ = find_gradients(loss, parameters, ranks)
    norm = clip_gradients(parameters, minds, largest)
    finite_step(whole, norm, name)
    optimiser.step()
    return norm


def finite_step(loss: Tensor, norm: Tensor, name: str) -> None:
    """Refuse a step down a gradient that is not a number, looking once at the loss and at all minds' norms [M].

    An infinite norm is refused too: scaled down to a largest one, nothing would be left of such a gradient, and 0 times
    infinity is no number. Raises NumericFault, which says whose loss it is.
    """
    if math.isfinite(float(loss + norm.sum())):
        return
    lost = (~torch.isfinite(norm)).nonzero().flatten().tolist()
    whole = float(loss)
    if math.isfinite(whole) and not lost:
        return  # it is their sum that is too large, and nobody takes a step of it
    of_loss = not math.isfinite(whole)
    told = f"loss of {name} is {whole}" if of_loss else f"gradient of {name} has norm {float(norm[lost[0]])}"
    raise NotFinite(told, "nan-loss" if of_loss else "nan-gradient", lost[0] if len(norm) > 1 and lost else None)


def find_gradients(
    loss: Tensor, parameters: Sequence[nn.Parameter], ranks: Ranks, more: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Give the parameters the gradient of the whole loss, of which every rank has a share: their sum, in one message.

    `more` [n] are numbers that are to be added up beside it. Returns the whole loss, and the sum of `more`. Whether they
    are finite is for `finite_step` to say, of the gradient's norm too, before a step is taken.
    """
    gradients = torch.autograd.grad(loss, parameters)
    if ranks.count > 1:
        shares = [loss.detach().unsqueeze(0), *([] if more is None else [more]), *(g.flatten() for g in gradients)]
        whole, told, *flat = ranks.sum(torch.cat(shares), "gradients").split(
            [1, 0 if more is None else len(more), *(g.numel() for g in gradients)]
        )
        loss = whole.squeeze(0)
        gradients = tuple(x.view_as(g) for x, g in zip(flat, gradients, strict=True))
        more = None if more is None else told
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return loss.detach(), more


def clip_gradients(parameters: Sequence[nn.Parameter], minds: int, largest: float) -> Tensor:
    """Scale each mind's gradient to norm at most `largest` (0: leave it); returns the norms [M] before clipping.

    Parameters lead with the minds' axis (a convolution's channels are minds x outputs).
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if minds == 1:
        norm = torch.stack(torch._foreach_norm(grads)).square().sum().sqrt()
        if largest:
            torch._foreach_mul_(grads, (largest / (norm + 1e-6)).clamp(max=1.0))
        return norm.unsqueeze(0)
    grads = [g.view(minds, -1) for g in grads]
    norm = torch.stack([g.square().sum(1) for g in grads]).sum(0).sqrt()
    if largest:
        scale = (largest / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        for g in grads:
            g.mul_(scale)
    return norm


def track(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate online, in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
