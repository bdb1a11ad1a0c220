"""The networks of deep solvers against torch's own, and what they see."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from mfmarl.errors import ConfigError
from mfmarl.games import approximation as nets
from mfmarl.games import values
from mfmarl.games.flow import flow, uniform, watched
from mfmarl.games.sampling import layout_of
from mfmarl.random import Key
from tests.games.mini import Teams, Tiny, simplex

SIZES = (5, 7, 4, 3)


def a_batch_of_weights(minds: int) -> Tensor:
    return torch.randn(minds, nets.parameters(SIZES), generator=torch.Generator().manual_seed(0))


def modules(weights: Tensor) -> nn.Sequential:
    """The same network of one mind, by torch."""
    layers: list[nn.Module] = []
    at = 0
    for a, b in pairwise(SIZES):
        layer = nn.Linear(a, b)
        layer.weight.data = weights[at : at + a * b].view(a, b).T.contiguous()
        layer.bias.data = weights[at + a * b : at + a * b + b].clone()
        at += a * b + b
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_networks_side_by_side_answer_as_torch_s_own() -> None:
    weights = a_batch_of_weights(3)
    x = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(1))
    found = nets.answers(weights, SIZES, x)
    for mind in range(3):
        torch.testing.assert_close(found[mind], modules(weights[mind])(x[mind]))


def test_descent_is_adam() -> None:
    """Forty steps of two minds with losses of their own, beside torch.optim.Adam's of each."""
    weights = a_batch_of_weights(2) / 3
    x = torch.randn(2, 11, 5, generator=torch.Generator().manual_seed(1))
    goal = torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(2))
    learned = torch.stack([weights, torch.zeros_like(weights), torch.zeros_like(weights)], 1)
    for step in range(1, 41):
        learned = nets.descend(learned, lambda w: (nets.answers(w, SIZES, x) - goal).square().mean((1, 2)), 3e-3, step)
    for mind in range(2):
        network = modules(weights[mind])
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(40):
            optimiser.zero_grad()
            (network(x[mind]) - goal[mind]).square().mean().backward()
            optimiser.step()
        torch.testing.assert_close(nets.answers(learned[:, 0], SIZES, x)[mind], network(x[mind]), rtol=1e-3, atol=1e-4)


def test_a_mind_without_a_gradient_rests_while_others_move() -> None:
    learned = torch.stack([a_batch_of_weights(2)] * 3, 1)
    after = nets.descend(learned, lambda w: w.square().sum(1) * torch.tensor([0.0, 1.0]), 1e-2, 5)
    assert torch.equal(after[0], learned[0])
    assert not torch.equal(after[1, 0], learned[1, 0])


def test_a_large_gradient_is_scaled_down_for_its_mind_alone() -> None:
    weights = torch.ones(2, 4)
    learned = torch.stack([weights, torch.zeros_like(weights), torch.zeros_like(weights)], 1)
    after = nets.descend(learned, lambda w: w.sum(1) * torch.tensor([1e6, 1.0]), 1e-2, 1)
    # First moments: a tenth of the gradient, of norm at most 10 and of norm 2.
    torch.testing.assert_close(after[:, 1].norm(dim=1), torch.tensor([1.0, 0.2]))


def test_new_networks_say_nothing_and_differ() -> None:
    game = Teams()
    layout = layout_of(game, (2,))
    rows = nets.rows_of(game, layout, game.start().expand(3, 2, -1, -1))
    sizes = (nets.features(game), 16, 16, 2)
    learned = nets.new_networks(layout, sizes, rows, Key.of(0))
    assert learned.shape == (2, 2, 3, nets.parameters(sizes))
    weights = learned.flatten(0, 1)[:, 0]
    assert float(nets.answers(weights, sizes, rows.expand(4, -1, -1)).abs().max()) == 0
    assert len(weights[:, :20].unique(dim=0)) == 4
    # He's law where one-hot rows have two features other than 0: what comes out of the first layer is of size one.
    first = torch.baddbmm(
        weights.new_zeros(4, 1, 16), rows.expand(4, -1, -1), weights[:, : sizes[0] * 16].view(4, -1, 16)
    )
    assert 1.2 < float(first.square().mean()) < 3.0


def test_what_is_seen_of_the_crowd_is_the_crowd_that_the_policy_makes() -> None:
    """A network that sees the crowd, tabulated, against the same asked time by time by `watched`."""
    game = Teams(pull=0.5, sight="crowd")
    layout = layout_of(game, ())
    sizes = (nets.features(game), 8, 2)
    weights = torch.randn(2, nets.parameters(sizes), generator=torch.Generator().manual_seed(3))

    def head(said: Tensor) -> Tensor:
        return values.boltzmann(game, said, 1.0)

    seen = nets.tabulate(game, layout, weights, sizes, head, game.start().unsqueeze(0))
    path = watched(game, lambda t, mu: head(nets.answers(weights, sizes, game.views(t, mu)).double()))
    torch.testing.assert_close(seen.flow.policy[:, 0], path.policy)
    torch.testing.assert_close(seen.flow.mu[:, 0], path.mu)
    torch.testing.assert_close(seen.rows[1, 3 + 2], game.views(1, path.mu[1])[1, 2])
    torch.testing.assert_close(
        layout.by_time(nets.answers(weights, sizes, seen.rows)).double(), seen.said, rtol=1e-5, atol=1e-5
    )


def test_a_policy_that_watches_the_crowd_needs_a_horizon() -> None:
    game = Tiny(horizon=None, discount=0.9, sight="crowd")
    layout = layout_of(game, ())
    sizes = (nets.features(game), 2)
    with pytest.raises(ConfigError, match="sight=state"):
        nets.tabulate(
            game, layout, torch.zeros(1, nets.parameters(sizes)), sizes, torch.softmax, game.start().unsqueeze(0)
        )  # type: ignore[arg-type]


def test_rows_are_looked_up_for_each_mind() -> None:
    rows = torch.from_numpy(simplex(0, 2, 6, 4).numpy())
    index = torch.tensor([[5, 0, 3], [1, 1, 2]])
    assert torch.equal(nets.look(rows, index), torch.stack([rows[0, index[0]], rows[1, index[1]]]))
    assert torch.equal(nets.look(rows[:1], index), rows[0][index])


def test_values_are_scaled_by_what_is_paid_at_the_end_too() -> None:
    game = Tiny(coupling=0.0, last=0.5)
    path = flow(game, uniform(game, (1,)))
    scale = nets.reward_scale(game, path, layout_of(game, ()))
    paid = (path.joint * path.rewards.square()).sum() + (
        path.kernels[-1].carry(path.joint[-1]) * path.terminal.square()
    ).sum()
    torch.testing.assert_close(scale, (paid / 3).sqrt().view(1) * 3)
    nothing = path._replace(rewards=torch.zeros_like(path.rewards), terminal=None)
    assert nets.reward_scale(game, nothing, layout_of(game, ())).tolist() == [1.0]
