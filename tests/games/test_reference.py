"""Known answers of infinitely many: equilibria that are ones, and silence where none was reached."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.games import reference, values
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame


@pytest.mark.parametrize(
    "game", [BeachBar(), LeftRight(), SusceptibleInfected(horizon=20)], ids=["beach", "two", "SIS"]
)
def test_what_is_called_a_nash_equilibrium_cannot_be_exploited(game: MeanFieldGame) -> None:
    found = reference.nash(game)
    assert found.residual == pytest.approx(float(exploitability(game, found.policy)), abs=1e-12)
    # At a hundred-thousandth of what uniform choice leaves to gain (.25 to 5 in these) it is left.
    assert found.residual < 1e-5 * 5
    known = reference.equilibrium(game)
    paid = float((found.flow.joint * found.flow.rewards).sum()) / (game.horizon or 1)
    if found.flow.terminal is None:
        assert known["reward"].value == pytest.approx(paid, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_a_quantal_response_equilibrium_answers_its_own_values(temperature: float) -> None:
    game = BeachBar(places=6, bar=2, horizon=5)
    found = reference.quantal_response(game, temperature)
    own = values.of_policy(game, flow(game, found.policy)).q
    torch.testing.assert_close(values.boltzmann(game, own, temperature), found.policy, rtol=0, atol=1e-7)


def test_what_was_not_reached_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    # After one iteration of each solver a beach is far from its equilibrium.
    monkeypatch.setattr(reference, "_LEAST", 1)
    monkeypatch.setattr(reference, "_MOST", 1)
    assert reference.equilibrium(BeachBar(places=9, bar=4, horizon=7)) == {}
