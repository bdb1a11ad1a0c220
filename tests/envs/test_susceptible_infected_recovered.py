"""SIR: the closed form of its stationary equilibrium where immunity wanes, and an epidemic that burns out where not."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.envs.susceptible_infected_recovered import SusceptibleInfectedRecovered
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import flow
from mfmarl.games.game import Crowd


def _policy(out: float, times: int = 1) -> torch.Tensor:
    rows = [[out, 1 - out], [1.0, 0.0], [1.0, 0.0]]
    return torch.tensor(rows, dtype=torch.float64).expand(times, 1, 3, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"waning": 0.3},
        {"waning": 0.1, "distance": 0.3, "illness": 3.0},
        {"waning": 1.0, "discount": 0.9, "distance": 0.2},
        {"waning": 0.05, "distance": 0.8},  # too dear to stay at home
    ],
)
def test_the_stationary_equilibrium_leaves_nothing_to_gain(options: dict[str, float]) -> None:
    game = SusceptibleInfectedRecovered(horizon=None, discount=options.pop("discount", 0.98), **options)  # type: ignore[arg-type]
    known = game.stationary()
    assert known is not None
    ill, immune, out = known
    found = gap(game, _policy(out))
    assert float(found.exploitability) == pytest.approx(0, abs=1e-9)
    assert found.flow.mu[0, 0, 1:].tolist() == pytest.approx([ill, immune], abs=1e-9)
    reward = game.reference()["reward"].value
    assert reward == pytest.approx(float(found.value) * (1 - game.discount), abs=1e-9)


def test_without_waning_the_final_size_is_that_of_kermack_and_mckendrick() -> None:
    # In steps so small that they are a flow: log(S_0 / S) = (beta / rho) (1 - S), nearly all susceptible at first.
    game = SusceptibleInfectedRecovered(infection=0.02, recovery=0.01, horizon=6000, infected=1e-4)
    crowd = flow(game, _policy(1.0, 6000)).mu[-1, 0]
    assert float(crowd[1]) < 1e-9
    left = float(crowd[0])
    assert math.log((1 - 1e-4) / left) == pytest.approx(2 * (1 - left), rel=0.02)


def test_the_recovered_are_immune_until_it_wanes() -> None:
    game = SusceptibleInfectedRecovered(waning=0.25)
    mu = torch.tensor([[0.1, 0.5, 0.4]], dtype=torch.float64)
    dense = game.outcomes(0, Crowd(mu)).dense()[0]
    assert dense[2, 0].tolist() == [0.25, 0.0, 0.75]
    assert dense[1, 1].tolist() == pytest.approx([0.0, 0.7, 0.3])
    assert dense[0, 0].tolist() == pytest.approx([1 - 0.405, 0.405, 0.0])
    assert dense[0, 1].tolist() == [1.0, 0.0, 0.0]
