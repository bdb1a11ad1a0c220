"""One point: what run it is, what is timed, what is weighed, and what is said when it goes wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.evaluation.scaling import measure
from mfmarl.evaluation.scaling.points import PHASES, Measured, Plan, Point
from mfmarl.learning.build import build
from mfmarl.learning.memory import Replay
from mfmarl.learning.run_config import Choice


def plan(**agents: Choice) -> Plan:
    return Plan(Choice("ising", {"coupling": 0.5}), {n: {"all": c} for n, c in agents.items()}, (16,), steps=4)


PLAN = plan(mfq=Choice("mfq"), mfppo=Choice("mfppo", {"rollout": 4}), random=Choice("random"))


# ------------------------------------------------------------------------------------------- what run it is


def test_a_point_is_a_run_of_its_size_without_evaluation() -> None:
    config = measure.config_of(Point("mfq", "mfmarl", 100, copies=3), PLAN)
    assert config.environment == Choice("ising", {"coupling": 0.5, "num_agents": 100})
    assert config.agents == {"all": Choice("mfq")}
    assert (config.run.copies, config.run.sharing, config.run.evaluation_copies) == (3, "group", 0)
    assert config.run.exploitability == "off"


def test_what_is_varied_goes_to_whom_it_belongs() -> None:
    point = Point(
        "mfq", "mfmarl", 100, varied={"hidden": [8], "states": 3, "env.field": 0.25, "agent.field": "nothing"}
    )
    config = measure.config_of(point, PLAN)
    assert config.environment.options == {"coupling": 0.5, "num_agents": 100, "states": 3, "field": 0.25}
    assert config.agents["all"].options == {"hidden": [8], "field": "nothing"}


@pytest.mark.parametrize(("name", "told"), [("hiden", "hiden"), ("red.bins", "red.bins"), ("mfppo.clip", "mfppo.clip")])
def test_an_option_that_is_nobodys_is_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        measure.config_of(Point("mfq", "mfmarl", 100, varied={name: 1}), PLAN)


def test_an_option_that_could_be_two_peoples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.field or agent\.field"):
        measure.config_of(Point("mfq", "mfmarl", 100, varied={"field": "nothing"}), PLAN)


def test_an_independent_learner_cannot_be_given_a_field() -> None:
    with pytest.raises(ConfigError, match="field"):
        measure.config_of(
            Point("iql", "mfmarl", 9, varied={"agent.field": "actions over everyone"}), plan(iql=Choice("iql"))
        )


def test_an_unknown_agent_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'mfppo'"):
        measure.config_of(Point("mfpo", "mfmarl", 16), PLAN)


def test_an_environment_without_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be swept"):
        measure.config_of(Point("mfq", "mfmarl", 16), replace(PLAN, environment=Choice("gymnasium/CartPole-v1")))


def test_a_third_partys_size_is_found() -> None:
    pytest.importorskip("mpe2")
    config = measure.config_of(Point("mfq", "mfmarl", 5), replace(PLAN, environment=Choice("mpe2/simple_spread_v3")))
    assert config.environment.options == {"N": 5}


def test_stacked_learners_have_a_mind_each() -> None:
    built = build(measure.config_of(Point("iql", "stacked", 9), PLAN))
    assert built.players[0].agent.minds == 9


# -------------------------------------------------------------------------------------------- what is timed


class Clock:
    """Moves on by what every step takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.asked = seconds, 0.0, list[int]()

    def advance(self, steps: int) -> None:
        self.asked.append(steps)
        self.now += steps * self.seconds


def runner(clock: Clock, unit: int) -> measure.Runner:
    nothing: Callable[..., Any] = lambda *_: {}  # noqa: E731
    return measure.Runner(clock.advance, unit, nothing, lambda: 0, 1, 1, torch.device("cpu"), nothing, nothing)


@pytest.mark.parametrize(
    ("unit", "steps", "expected"), [(16, 1, 16), (16, 16, 16), (16, 17, 32), (1, 7, 7), (5, 98, 100)]
)
def test_whole_cycles_are_timed(unit: int, steps: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.5)
    monkeypatch.setattr(measure.time, "monotonic", lambda: clock.now)
    done, wall, _ = measure.timed(runner(clock, unit), steps, 99.0)
    assert done == sum(clock.asked) == expected
    assert wall == expected * 0.5


@pytest.mark.parametrize(
    ("step", "least", "most"),
    [(0.001, 2.0, 2.02), (0.0301, 2.0, 2.2), (0.3, 4.8, 4.8), (0.6, 9.6, 9.6), (0.9, 10.8, 10.8), (7.0, 28.0, 28.0)],
)
def test_steps_are_timed_for_as_long_as_asked_and_not_much_longer(
    step: float, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(step)
    monkeypatch.setattr(measure.time, "monotonic", lambda: clock.now)
    done, wall, _ = measure.timed(runner(clock, 4), 0, 2.0)
    assert done % 4 == 0
    assert least <= wall * 1.0001
    assert wall <= most * 1.0001
    assert len(clock.asked) < 8


def test_a_point_that_is_over_its_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(10.0)
    monkeypatch.setattr(measure.time, "monotonic", lambda: clock.now)
    with pytest.raises(measure.TooSlow, match="4 steps took 40 s"):
        measure.timed(runner(clock, 4), 100, 2.0, deadline=30.0)


def test_a_training_that_is_too_slow_is_left_out_and_says_so() -> None:
    answer = measure.answer(
        {"plan": PLAN.to_table(), "point": {"agent": "mfq", "kind": "mfmarl", "num_agents": 16}, "limit": 0}
    )
    assert answer.status == "skipped"
    assert "all the time" in answer.reason


@pytest.mark.parametrize(
    ("agent", "options", "unit"),
    [
        ("mfq", {}, 1), ("mfq", {"learn_every": 3}, 3), ("mfppo", {}, 16), ("random", {}, 1), ("sb3", {"temperature": "0.1"}, 16),
        ("sb3", {"algorithm": "a2c"}, 5), ("sb3", {"algorithm": "dqn"}, 1), ("sb3", {"n_steps": 8}, 8),
    ],
)  # fmt: skip
def test_a_cycle_is_as_long_as_learning_is_rare(agent: str, options: dict[str, Any], unit: int) -> None:
    training = build(measure.config_of(Point("x", "mfmarl", 16), plan(x=Choice(agent, options)))).training
    assert measure.unit(training) == unit


def learned(training: Any) -> int:
    return sum(1 for name in training.numbers if name.endswith("/loss"))


@pytest.mark.parametrize(("agent", "size"), [("mfq", 9), ("mfppo", 9), ("mfq", 400)])
def test_after_the_warm_up_everybody_has_learned_and_a_cycle_begins(agent: str, size: int) -> None:
    built = build(measure.config_of(Point(agent, "mfmarl", size), plan(**{agent: Choice(agent)})))
    training = built.training
    measure.runner_of(built).warm()
    assert learned(training)
    assert training.tick % measure.unit(training) == 0
    memory = built.players[0].memory
    if isinstance(memory, Replay):
        assert memory.least >= built.players[0].agent.config.warm_up
    else:
        assert not memory.steps


def test_numbers_do_not_pile_up_while_steps_are_timed() -> None:
    built = build(measure.config_of(Point("mfq", "mfmarl", 16), PLAN))
    measure.runner_of(built).advance(10 * built.training.options.report_interval + 1)
    assert max(len(values) for values in built.training.numbers.values()) <= built.training.options.report_interval


def test_a_replay_is_weighed_full_and_draws_as_before() -> None:
    plain, touched = (build(measure.config_of(Point("mfq", "mfmarl", 16), PLAN)).training for _ in range(2))
    for training in (plain, touched):
        for _ in range(40):
            training.step()
        assert learned(training)
    measure.touch(touched.players[0].memory)
    for training in (plain, touched):
        for _ in range(5):
            training.step()
    for one, other in zip(plain.players[0].agent.parameters(), touched.players[0].agent.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_follows_is_not_counted_among_what_is_learned() -> None:
    config = measure.config_of(
        Point("mfq", "mfmarl", 16), plan(mfq=Choice("mfq", {"hidden": (8,), "field": "nothing"}))
    )
    training = build(config).training
    inputs = math.prod(training.episode.env.spec.observation_shape)
    assert measure.weights(training) == inputs * 8 + 8 + 8 * 2 + 2


def test_entries_of_a_table_are_counted() -> None:
    training = build(
        measure.config_of(Point("mfq", "mfmarl", 16), plan(mfq=Choice("mfq", {"values": "table", "bins": 3})))
    ).training
    table: Any = training.players[0].agent.values
    assert measure.weights(training) == table.value.numel()


# ------------------------------------------------------------------------------------------- what is weighed


def test_the_peak_is_of_what_happened_since() -> None:
    base = measure.reset_peak()
    block = torch.ones(16 << 20)
    del block
    high = measure.peak_bytes() - base
    assert high == pytest.approx(64 << 20, rel=0.05)
    if measure._status("VmHWM"):
        assert measure.reset_peak() <= base + (8 << 20)
        assert measure.peak_bytes() < base + (16 << 20)


def test_a_point_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    point = Point("mfppo", "mfmarl", 16, copies=2)
    found = measure.fresh(point, PLAN)
    assert (found.status, found.reason, found.point) == ("done", "", point)
    assert (found.steps, found.agent_steps) == (4, 4 * 32)
    assert 0 < found.cpu < 60
    assert 0 < found.base_bytes <= found.peak_bytes < 2e9
    assert set(found.phases) == set(PHASES)
    assert 0.2 < sum(found.phases.values()) / found.phase_steps / (found.cpu / found.steps) < 5
    assert found.machine["threads"] == 1
    assert found.machine["seconds"] > found.wall
    assert Measured.from_table(json.loads(json.dumps(found.to_table()))) == found
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(("how", "told"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory runs out"),
    ("import os, sys; print('the engine is broken', file=sys.stderr); os._exit(7)", "exit code 7: the engine is broken"),
])  # fmt: skip
def test_a_process_that_dies_is_a_point_that_failed(how: str, told: str, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(how + "\n")
    found = measure.fresh(Point("mfq", "mfmarl", 16), PLAN, imports=[str(code)])
    assert found.status == "failed"
    assert told in found.reason


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "mine.py"
    code.write_text("import time; time.sleep(1000)\n")
    monkeypatch.setattr(measure, "GRACE", 0.5)
    found = measure.fresh(Point("mfq", "mfmarl", 16), PLAN, limit=0.0, imports=[str(code)])
    assert found.status == "skipped"
    assert "was ended" in found.reason


@pytest.mark.parametrize(("change", "size", "told"), [
    ({"environment": Choice("ising", {"coupling": "x"})}, 16, "coupling"),
    ({}, 10, "num_agents=9"),
    ({"environment": Choice("isin")}, 16, "'ising'"),
    ({"device": "cuda:9"}, 16, "CUDA" if not torch.cuda.is_available() else ""),
])  # fmt: skip
def test_a_point_that_cannot_be_made_says_why(change: dict[str, Any], size: int, told: str) -> None:
    order = {
        "plan": replace(PLAN, **change).to_table(),
        "point": {"agent": "mfq", "kind": "mfmarl", "num_agents": size},
    }
    found = measure.answer(order)
    assert found.status == "failed"
    assert told in found.reason


def test_want_of_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800000000 bytes.")

    monkeypatch.setattr(measure, "make_runner", greedy)
    found = measure.answer({"plan": PLAN.to_table(), "point": {"agent": "mfq", "kind": "mfmarl", "num_agents": 16}})
    assert (found.status, found.reason) == ("failed", measure.NO_MEMORY)
