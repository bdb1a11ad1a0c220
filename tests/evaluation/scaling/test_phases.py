"""The parts of a step: without what they call in turn, whole when added up, and without a trace afterwards."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from mfmarl.evaluation.scaling import phases as timing
from mfmarl.evaluation.scaling.points import PHASES
from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training


def training(agent: str, environment: str = "ising", **options: Any) -> Training:
    settings = RunOptions(steps=1000, copies=2, evaluation_copies=0, exploitability="off")
    config = RunConfig(Choice(environment, {"num_agents": 16}), {"all": Choice(agent, options)}, settings)
    return build(config).training


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_what_is_within_is_not_counted_without() -> None:
    hands = Hands()
    clock = timing.Clock(hands)
    hands.time = 1
    clock.begin("step")
    hands.time = 3
    clock.begin("field")
    hands.time = 7
    clock.end()
    hands.time = 15
    clock.end()
    hands.time = 31
    assert clock.stop() == {"act": 0, "field": 4, "step": 10, "remember": 0, "learn": 0, "rest": 17}


@pytest.mark.parametrize(("agent", "environment"), [("mfq", "ising"), ("mfppo", "ising"), ("mfq", "beach_bar")])
def test_each_part_is_charged_what_it_took(agent: str, environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    game, hands = training(agent, environment), Hands()
    for _ in range(20):
        game.step()  # replay is warm
    episode, player = game.episode, game.players[0]
    calls: dict[str, int] = {}

    def costs(owner: Any, name: str, seconds: float) -> None:
        method = getattr(owner, name)

        def dear(*arguments: Any, **options: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            result = method(*arguments, **options)
            hands.time += seconds
            return result

        monkeypatch.setattr(owner, name, dear)

    # The agent's own methods, which are called from within the parts.
    costs(player.agent, "act", 1.0)
    costs(player.agent, "learn", 1000.0)
    costs(episode.env, "step", 10.0)
    costs(episode.env, "restart", 0.25)
    costs(game.tally, "step", 100.0)
    spent = timing.phases(game, 32, hands)
    assert tuple(spent) == PHASES
    assert spent["act"] == 32 * 1.0
    assert spent["step"] == 32 * 10.25
    assert spent["learn"] == calls["learn"] * 1000.0 == (2 if agent == "mfppo" else 32) * 1000.0
    assert spent["rest"] == 32 * 100.0
    assert spent["field"] == spent["remember"] == 0.0
    assert sum(spent.values()) == hands.time


@pytest.mark.parametrize("agent", ["mfq", "mfppo", "deep_active_inference"])
def test_the_parts_add_up_to_the_whole(agent: str) -> None:
    game = training(agent)
    game.step()
    begun = time.process_time()
    spent = timing.phases(game, 16)
    assert sum(spent.values()) == pytest.approx(time.process_time() - begun, rel=0.02, abs=1e-3)
    assert all(spent[name] > 0 for name in ("act", "field", "step", "learn", "rest"))


def test_timing_leaves_no_trace() -> None:
    plain, watched = training("mfppo"), training("mfppo")
    for _ in range(16):
        plain.step()
    classes = {owner: dict(vars(type(owner))) for owner in (watched, watched.episode, watched.episode.env)}
    own = {owner: set(vars(owner)) for owner in classes}
    timing.phases(watched, 16)
    for owner, before in classes.items():
        assert dict(vars(type(owner))) == before
        assert set(vars(owner)) == own[owner]
    assert plain.tick == watched.tick
    for one, other in zip(plain.players[0].agent.parameters(), watched.players[0].agent.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_error_takes_the_wrappers_off(monkeypatch: pytest.MonkeyPatch) -> None:
    game = training("mfq")

    def broken(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(game.players[0].agent, "act", broken)
    with pytest.raises(ValueError, match="no"):
        timing.phases(game, 1)
    assert "act" not in vars(game.episode)


def test_what_another_library_trains_has_no_parts() -> None:
    assert timing.phases(training("sb3", temperature="0.1"), 4) == {}
