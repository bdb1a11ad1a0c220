from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mfmarl.learning.networks import Conv, Linear, Network, clip_gradients, track
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from tests.statistical import statistical

ACTIONS = gymnasium.spaces.Discrete(3)
SPACES = {
    "vector": gymnasium.spaces.Box(-1, 1, (5,)),
    "matrix": gymnasium.spaces.Box(-1, 1, (3, 2)),
    "class": gymnasium.spaces.Discrete(4),
    "channels last": gymnasium.spaces.Box(-1, 1, (7, 6, 2)),
    "channels first": gymnasium.spaces.Box(-1, 1, (2, 7, 6)),
    "small image": gymnasium.spaces.Box(-1, 1, (3, 3, 2)),
}


def observations(space: gymnasium.Space, minds: int, rows: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.randint(int(space.n), (minds, rows), generator=g)
    return torch.randn(minds, rows, *space.shape, generator=g)  # type: ignore[misc]


def one_mind(stacked: nn.Module, alone: nn.Module, mind: int) -> None:
    """Copy a stacked mind's weights into a network of one."""
    with torch.no_grad():
        for target, source in zip(alone.parameters(), stacked.parameters(), strict=True):
            per_mind = len(source) // len(target)
            size = len(source) // per_mind
            target.copy_(source[mind * size : (mind + 1) * size])


@pytest.mark.parametrize("name", SPACES)
def test_a_stacked_mind_computes_what_it_would_alone(name: str) -> None:
    spec = Spec(4, SPACES[name], ACTIONS)
    stacked, alone = Network(spec, 2, (16, 8), 3, 4, Key.of(0)), Network(spec, 2, (16, 8), 3, 1, Key.of(1))
    obs, extra = observations(SPACES[name], 4, 6), torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1))
    out = stacked(obs, extra)
    assert out.shape == (4, 6, 3)
    for mind in range(4):
        one_mind(stacked, alone, mind)
        torch.testing.assert_close(
            alone(obs[mind : mind + 1], extra[mind : mind + 1])[0], out[mind], rtol=1e-5, atol=1e-6
        )


def test_minds_begin_different_and_the_same_key_begins_the_same() -> None:
    spec = Spec(4, SPACES["vector"], ACTIONS)
    a, b, c = (Network(spec, 0, (8,), 3, 4, Key.of(k)) for k in (0, 0, 1))
    for x, y, z in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)
        assert not torch.equal(x[0], x[1])


@statistical(alpha=1e-3, bugs=("wide-weights", "peaked-weights"))
def test_weights_begin_as_torch_begins_them() -> None:
    """Uniform within 1/sqrt(inputs), as torch.nn.Linear; the last layer within `out_scale`."""
    network = Network(Spec(1, SPACES["vector"], ACTIONS), 0, (400,), 3, 1, Key.of(0), out_scale=1e-3)
    first: torch.Tensor = network.hidden[0].weight  # type: ignore[assignment]
    last = network.out.weight
    bound = 1 / np.sqrt(5)
    assert 0.95 * bound < first.abs().max() <= bound
    # A uniform's variance is bound^2 / 3; of 2000 weights its estimate has a relative error of sqrt(0.8 / 2000).
    assert first.var().item() == pytest.approx(bound**2 / 3, rel=5 * (0.8 / 2000) ** 0.5)
    assert last.abs().max() <= 1e-3


def test_a_linear_layer_and_a_convolution_are_torchs() -> None:
    linear, conv = Linear(1, 5, 3, Key.of(0)), Conv(1, 2, 4, Key.of(1))
    x, image = torch.randn(1, 6, 5), torch.randn(1, 6, 2, 7, 7)
    torch.testing.assert_close(linear(x)[0], nn.functional.linear(x[0], linear.weight[0].T, linear.bias[0, 0]))
    torch.testing.assert_close(conv(image)[0], nn.functional.conv2d(image[0], conv.weight, conv.bias))


def test_the_network_looks_at_the_extra_columns() -> None:
    network = Network(Spec(1, SPACES["channels last"], ACTIONS), 2, (8,), 3, 1, Key.of(0))
    obs = observations(SPACES["channels last"], 1, 4)
    assert not torch.equal(network(obs, torch.zeros(1, 4, 2)), network(obs, torch.ones(1, 4, 2)))


def test_channels_are_found_at_either_end() -> None:
    last = Network(Spec(1, SPACES["channels last"], ACTIONS), 0, (8,), 3, 1, Key.of(0))
    first = Network(Spec(1, SPACES["channels first"], ACTIONS), 0, (8,), 3, 1, Key.of(0))
    image = observations(SPACES["channels last"], 1, 4)
    torch.testing.assert_close(last(image), first(image.permute(0, 1, 4, 2, 3)))


def test_channels_say_how_many_convolutions_there_are_and_none_flattens() -> None:
    spec = Spec(1, SPACES["channels last"], ACTIONS)
    image = observations(SPACES["channels last"], 1, 4)
    plain = Network(spec, 0, (8,), 3, 1, Key.of(0), channels=())
    assert plain.hidden[0].weight.shape == (1, 7 * 6 * 2, 8)
    as_vector = Network(Spec(1, gymnasium.spaces.Box(-1, 1, (84,)), ACTIONS), 0, (8,), 3, 1, Key.of(0))
    assert torch.equal(plain(image), as_vector(image.flatten(2)))
    one = Network(spec, 0, (8,), 3, 1, Key.of(0), channels=(4,))
    assert one.hidden[0].weight.shape == (1, 4 * 5 * 4, 8) and one(image).shape == (1, 4, 3)
    # Three convolutions take 6 off each side: more than a 7 x 6 image has.
    assert not Network(spec, 0, (8,), 3, 1, Key.of(0), channels=(4, 4, 4)).convolutions


def test_gradients_are_clipped_mind_by_mind() -> None:
    layer = Linear(3, 4, 2, Key.of(0))
    grads = {"weight": torch.randn(3, 4, 2), "bias": torch.randn(3, 1, 2)}
    size = torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)
    layer.weight.grad, layer.bias.grad = grads["weight"] * size, grads["bias"] * size
    before = torch.cat([layer.weight.grad.flatten(1), layer.bias.grad.flatten(1)], 1).clone()
    norm = clip_gradients(list(layer.parameters()), 3, 0.5)
    after = torch.cat([layer.weight.grad.flatten(1), layer.bias.grad.flatten(1)], 1)
    torch.testing.assert_close(norm, before.norm(dim=1))
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1:].norm(dim=1), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(nn.functional.normalize(after, dim=1), nn.functional.normalize(before, dim=1))
    untouched = after.clone()
    clip_gradients(list(layer.parameters()), 3, 0.0)
    assert torch.equal(torch.cat([layer.weight.grad.flatten(1), layer.bias.grad.flatten(1)], 1), untouched)


def test_the_target_moves_its_share_of_the_way() -> None:
    online, target = Linear(1, 2, 2, Key.of(0)), Linear(1, 2, 2, Key.of(1))
    expected = 0.75 * target.weight.detach() + 0.25 * online.weight.detach()
    track(target, online, 0.25)
    torch.testing.assert_close(target.weight.detach(), expected)
