"""The order of a sweep, what survives of it, and what a budget, a limit and a memory leave of it. Nothing is measured here but
in the last test: points cost what a law says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfmarl.errors import ConfigError, ResourceFault
from mfmarl.evaluation.scaling import memory, sweep
from mfmarl.evaluation.scaling.points import Measured, Plan, Point
from mfmarl.learning.run import Interrupted
from mfmarl.learning.run_config import Choice

PLAN = Plan(
    Choice("ising"),
    {"mfq": {"all": Choice("mfq")}, "iql": {"all": Choice("iql")}},
    (1024, 16, 128),
    repeats=2,
)


class World:
    """A machine whose points cost what the laws say: seconds of a step, bytes, and 4 seconds for the start of a process."""

    def __init__(self, step: Callable[[Point], float], size: Callable[[Point], float] = lambda p: 3e8) -> None:
        self.step, self.size, self.now = step, size, 1000.0
        self.made: list[Point] = []
        self.probed: list[Point] = []

    def __call__(
        self, point: Point, plan: Plan, seconds: float = 2.0, limit: float = 300.0, imports: Any = ()
    ) -> Measured:
        (self.made if seconds else self.probed).append(point)
        step = self.step(point)
        steps = max(plan.steps, 1) if plan.steps else max(1, round(seconds / step), min(4, round(4 * seconds / step)))
        whole = 4.0 + steps * step
        if whole > limit + 4.0:
            self.now += limit
            return Measured(point, "skipped", "too slow")
        self.now += whole
        machine = {"seconds": whole, "unit": 1, "warm_steps": 0}
        return Measured(
            point,
            "done",
            steps=steps,
            wall=steps * step,
            cpu=steps * step,
            peak_bytes=int(self.size(point)),
            machine=machine,
        )

    @property
    def names(self) -> list[tuple[str, int, int]]:
        return [(p.agent, p.num_agents, p.repeat) for p in self.made]


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> World:
    return live(World(lambda p: 1e-3 + 1e-6 * p.num_agents), monkeypatch)


def live(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sweep.time, "monotonic", lambda: world.now)
    return world


def events(told: list[sweep.Event], kind: str) -> list[tuple[str, int, int]]:
    return [(e["point"].agent, e["point"].num_agents, e["point"].repeat) for e in told if e["event"] == kind]


# ------------------------------------------------------------------------------------------ order and keeping


def test_small_sizes_come_first_and_every_agent_before_any_repeat(flat: World, tmp_path: Path) -> None:
    measured = sweep.carry_out(PLAN, tmp_path / "s", measure=flat)
    expected = [(agent, size, repeat) for repeat in (0, 1) for size in (16, 128, 1024) for agent in ("mfq", "iql")]
    assert flat.names == expected
    assert [(m.point.agent, m.point.num_agents, m.point.repeat) for m in measured] == expected
    assert {m.status for m in measured} == {"done"}


def test_what_is_varied_and_the_peers_are_curves_of_their_own() -> None:
    plan = replace(
        PLAN, varied=({}, {"hidden": [8]}), baselines=("sb3", "stacked"), sizes=(16,), repeats=1, copies=(1, 4)
    )
    points = sweep.points(plan)
    assert len({p.name for p in points}) == len(points) == 2 * (2 * 2 + 1 + 2)
    assert [(p.kind, p.agent, p.copies) for p in points if not p.varied and p.copies == 4] == [
        ("mfmarl", "mfq", 4), ("mfmarl", "iql", 4), ("sb3", "ppo", 4), ("stacked", "iql", 4), ("stacked", "ippo", 4),
    ]  # fmt: skip


def test_every_point_is_announced_and_told(flat: World, tmp_path: Path) -> None:
    told: list[sweep.Event] = []
    sweep.carry_out(PLAN, tmp_path / "s", told.append, measure=flat)
    assert events(told, "begin") == events(told, "done") == flat.names
    assert all(e["expected_seconds"] > 0 and e["measured"].steps for e in told if e["event"] == "done")
    planned = [e for e in told if e["event"] == "planned"]
    assert [(e["points"], e["dropped"]) for e in planned] == [(8, 0)]


def test_a_sweep_that_was_cut_off_goes_on_where_it_was(flat: World, tmp_path: Path) -> None:
    def cut(point: Point, plan: Plan, **options: Any) -> Measured:
        if len(flat.made) == 5:
            raise KeyboardInterrupt
        return flat(point, plan, **options)

    folder = tmp_path / "s"
    with pytest.raises(Interrupted, match=r"5 points are kept in .*s: the same command goes on"):
        sweep.carry_out(PLAN, folder, measure=cut)
    assert len(sweep.read(folder)[1]) == 5
    before = list(flat.names)
    measured = sweep.carry_out(PLAN, folder, measure=flat)
    assert len(flat.names) == len(set(flat.names)) == 12
    assert flat.names[:5] == before
    again = sweep.carry_out(PLAN, folder, measure=flat)
    assert len(flat.made) == 12
    assert again == measured
    assert sweep.read(folder) == (PLAN, measured)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"point": {}}', '{"point": {"agent": "mfq"}, "status": "done"}', None]
)
def test_a_damaged_point_is_measured_again_with_a_warning(content: str | None, flat: World, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    sweep.carry_out(PLAN, folder, measure=flat)
    path = folder / "points" / f"{Point('mfq', 'mfmarl', 128).name}.json"
    other = folder / "points" / f"{Point('mfq', 'mfmarl', 16).name}.json"
    path.write_text(other.read_text() if content is None else content)
    flat.made.clear()
    told: list[sweep.Event] = []
    sweep.carry_out(PLAN, folder, told.append, measure=flat)
    assert flat.names == [("mfq", 128, 0)]
    assert [str(path) in e["message"] for e in told if e["event"] == "warning"] == [True]
    assert len(sweep.read(folder)[1]) == 12


def test_a_point_that_dies_is_one_failed_point_and_is_tried_again(flat: World, tmp_path: Path) -> None:
    def dying(point: Point, plan: Plan, **options: Any) -> Measured:
        if (point.agent, point.num_agents) == ("mfq", 128):
            flat.made.append(point)
            return Measured(point, "failed", "Its process died by SIGSEGV.")
        return flat(point, plan, **options)

    told: list[sweep.Event] = []
    measured = sweep.carry_out(PLAN, tmp_path / "s", told.append, measure=dying)
    assert events(told, "failed") == [("mfq", 128, 0)]
    assert [m.point.num_agents for m in measured if m.status == "failed"] == [128]
    # What has just failed is not repeated; larger ones are.
    assert [(m.point.repeat, m.reason) for m in measured if m.status == "skipped"] == [
        (1, "Its process died by SIGSEGV.")
    ]
    assert ("mfq", 1024, 1) in flat.names
    flat.made.clear()
    assert {m.status for m in sweep.carry_out(PLAN, tmp_path / "s", measure=flat)} == {"done"}
    assert flat.names == [("mfq", 128, 0), ("mfq", 128, 1)]


def test_a_tuple_that_is_varied_is_the_list_that_a_file_holds(flat: World, tmp_path: Path) -> None:
    plan = replace(PLAN, varied=({"hidden": (8, 8)},), sizes=(16,), repeats=1)
    sweep.carry_out(plan, tmp_path / "s", measure=flat)
    kept, measured = sweep.read(tmp_path / "s")
    assert [m.point for m in measured] == sweep.points(plan) == sweep.points(kept)
    assert sweep.write_plan(plan, tmp_path / "s", "").varied == ({"hidden": [8, 8]},)
    assert memory.alike(measured[0], sweep.points(plan)[0])


# --------------------------------------------------------------------------------------------- the plan's file


def test_a_plan_is_kept_and_extended(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    assert sweep.write_plan(PLAN, folder, "mfmarl scale ising") == replace(PLAN)
    more = replace(
        PLAN, agents={"mfac": {"all": Choice("mfac", {"hidden": (8, 8)})}}, sizes=(4096,), repeats=1, seeds=(7,), copies=(2,),
        varied=({"hidden": [8]},), baselines=("loop",), budget=60.0,
    )  # fmt: skip
    both = sweep.write_plan(more, folder, "mfmarl scale ising --num-agents 4096")
    assert list(both.agents) == ["mfq", "iql", "mfac"]
    assert both.sizes == (16, 128, 1024, 4096)
    assert (both.repeats, both.seeds, both.copies, both.baselines) == (2, (0, 1, 2, 7), (1, 2), ("loop",))
    assert both.varied == ({}, {"hidden": [8]})
    kept = sweep.read_plan(folder)
    assert kept.to_table() == both.to_table()
    assert json.loads((folder / "scale.json").read_text())["command"] == "mfmarl scale ising --num-agents 4096"


@pytest.mark.parametrize(("change", "told"), [
    ({"environment": Choice("ising", {"coupling": 2.0})}, r"environment: .* there, .*2\.0.* now"),
    ({"agents": {"mfq": {"all": Choice("mfq", {"bins": 9})}}}, r"mfq: .* there, .*9.* now"),
    ({"steps": 9}, "steps: 0 there, 9 now"),
    ({"threads": 2}, "threads: 1 there, 2 now"),
])  # fmt: skip
def test_another_sweep_in_the_same_folder_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    sweep.write_plan(PLAN, tmp_path / "s", "")
    with pytest.raises(ConfigError, match=told):
        sweep.write_plan(replace(PLAN, **change), tmp_path / "s", "")
    assert sweep.read_plan(tmp_path / "s") == PLAN


@pytest.mark.parametrize("content", ["{", "{}", '{"environment": 3, "agents": {}}', "[1]"])
def test_a_damaged_plan_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "scale.json").write_text(content)
    with pytest.raises(ConfigError, match=r"scale\.json"):
        sweep.read(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    with pytest.raises(ResourceFault, match="s"):
        sweep.write_plan(PLAN, tmp_path / "s", "")


@pytest.mark.parametrize(("change", "told"), [
    ({"sizes": ()}, "No number of agents"),
    ({"sizes": (10, 0)}, "number of agents must be at least 1, not 0"),
    ({"sizes": (-5,)}, "not -5"),
    ({"copies": (0,)}, "copies must be at least 1, not 0"),
    ({"repeats": 0}, "repeats must be at least 1"),
    ({"steps": -1}, "steps must be at least 0"),
    ({"threads": 0}, "threads must be at least 1"),
    ({"budget": -1.0}, "budget in seconds must be at least 0"),
    ({"budget": float("nan")}, "budget in seconds must be at least 0"),
    ({"max_memory": -1.0}, "memory of a point"),
    ({"budget": 3.0}, "3 s is too small for one point, which takes about 10 s: give at least 10 s"),
    ({"agents": {}}, "No agent is named"),
    ({"agents": {"a:b": {"all": Choice("mfq")}, "a/b": {"all": Choice("iql")}}}, "one file"),
    ({"agents": {"x": {"all": Choice("mfqq")}}}, "'mfq'"),
    ({"environment": Choice("isingg")}, "'ising'"),
    ({"varied": ({"hiden": 3},)}, "hiden"),
    ({"device": "cuda:77"}, "cuda"),
])  # fmt: skip
def test_a_plan_that_cannot_be_carried_out_is_refused_before_anything(
    change: dict[str, Any], told: str, flat: World, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        sweep.carry_out(replace(PLAN, **change), tmp_path / "s", measure=flat)
    assert not flat.made
    assert not (tmp_path / "s").exists()


# ------------------------------------------------------------------------------------------------ foretelling


def done(point: Point, step: float, steps: int = 100, start: float = 4.0, **machine: Any) -> Measured:
    machine = {"seconds": start + steps * step, "unit": 1, "warm_steps": 0, **machine}
    return Measured(point, "done", steps=steps, wall=steps * step, machine=machine)


def test_the_time_of_a_large_point_follows_from_two_smaller_ones() -> None:
    known = [done(Point("mfq", "mfmarl", n), 2e-3 + 3e-6 * n) for n in (1000, 10_000)]
    plan = replace(PLAN, steps=50)
    expected = 4.0 + 50 * (2e-3 + 3.0)  # the line, at a million
    assert sweep.expected_seconds(Point("mfq", "mfmarl", 1_000_000, repeat=1), known, plan) == pytest.approx(expected)
    # The first repeat also times its parts.
    first = sweep.expected_seconds(Point("mfq", "mfmarl", 1_000_000), known, plan)
    assert first == pytest.approx(4.0 + 62.5 * (2e-3 + 3.0))


def test_the_time_of_a_small_point_is_the_start_and_two_seconds() -> None:
    known = [done(Point("mfq", "mfmarl", 10), 1e-3, start=5.0)]
    assert sweep.expected_seconds(Point("mfq", "mfmarl", 11, repeat=1), known, PLAN) == pytest.approx(7.0, rel=0.01)
    assert sweep.expected_seconds(Point("iql", "mfmarl", 11, repeat=1), known, PLAN) == pytest.approx(8.0, rel=0.01)


def test_a_rollout_is_waited_for_whole() -> None:
    known = [done(Point("mfppo", "mfmarl", n), 1e-6 * n, unit=16, warm_steps=16) for n in (1000, 10_000)]
    point = Point("mfppo", "mfmarl", 1_000_000, repeat=1)
    steps = (known[0].wall / 100) * 16, 16 * 1.0
    assert sweep.expected_seconds(point, known, PLAN) == pytest.approx(max(1.0, 4.0 - steps[0] * 0) + 32 * 1.0, rel=0.2)


def test_a_budget_drops_repeats_first_and_then_the_dearest() -> None:
    points = sweep.points(replace(PLAN, repeats=3))
    known = [done(p, 1e-3) for p in points[:4]]
    cost = {p.name: sweep.expected_seconds(p, known, PLAN) for p in points}
    total = sum(cost.values())
    assert sweep.affordable(points, known, total + 0.1, PLAN) == points
    left = sweep.affordable(points, known, total - 0.1, PLAN)
    assert {(p.repeat, p.num_agents) for p in points if p not in left} == {(2, 1024)}
    left = sweep.affordable(points, known, sum(cost[p.name] for p in points if p.repeat == 0) + 0.1, PLAN)
    assert left == [p for p in points if p.repeat == 0]
    left = sweep.affordable(points, known, sum(cost[p.name] for p in points[:4]) + 0.1, PLAN)
    assert left == points[:4]
    left = sweep.affordable(points, known, sum(cost[p.name] for p in points[:3]) + 0.1, PLAN)
    assert left == points[:3]
    assert sweep.affordable(points, known, 0.0, PLAN) == []


def test_a_dear_peer_is_dropped_before_a_million_of_ours() -> None:
    ours = [Point("mfq", "mfmarl", n) for n in (1000, 10_000, 1_000_000)]
    loop = [Point("ppo", "loop", n) for n in (1000, 10_000, 1_000_000)]
    plan = replace(PLAN, steps=10)
    known = [done(p, 1e-7 * p.num_agents) for p in ours[:1]] + [done(p, 1e-3 * p.num_agents) for p in loop[:1]]
    # Ours at a million: ten steps of .1 s and more. The loop: 100 s at 10,000; at a million it would not be begun.
    todo = [ours[1], loop[1], ours[2], loop[2]]
    assert sweep.affordable(todo, known, 60.0, plan) == [ours[1], ours[2], loop[2]]
    assert sweep.far_too_long(sweep.expected_seconds(loop[2], known, plan), 300.0)


@pytest.mark.parametrize("budget", [40.0, 75.0, 120.0])
def test_a_sweep_keeps_to_its_budget(budget: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = live(World(lambda p: 1e-3 + 1e-5 * p.num_agents), monkeypatch)
    plan = replace(PLAN, sizes=(16, 128, 1024, 2**20), repeats=3, budget=budget)
    begun = world.now
    told: list[sweep.Event] = []
    measured = sweep.carry_out(plan, tmp_path / "s", told.append, measure=world)
    spent = world.now - begun
    assert budget - 16 < spent < budget + 2
    left_out = [m for m in measured if m.status == "skipped"]
    assert left_out
    assert all(f"budget of {budget:g} s" in m.reason for m in left_out)
    # Every size that was afforded was afforded for both agents, before any repeat of it.
    firsts = [m.point.num_agents for m in measured if m.status == "done" and m.point.repeat == 0]
    assert firsts[: 2 * (len(firsts) // 2)][::2] == sorted(set(firsts))[: len(firsts) // 2]
    assert len(events(told, "skipped")) == len(left_out)
    # A larger budget measures what this one left out, and nothing again.
    before = len(world.made)
    again = sweep.carry_out(replace(plan, budget=0.0), tmp_path / "s", measure=world)
    assert {m.status for m in again} == {"done"}
    assert len(world.made) == before + len(left_out)


def test_who_is_too_slow_is_not_tried_at_larger_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = live(World(lambda p: 200.0 if p.agent == "iql" and p.num_agents > 16 else 1e-6 * p.num_agents), monkeypatch)
    measured = sweep.carry_out(PLAN, tmp_path / "s", measure=world, limit=100.0)
    assert [(p.num_agents, p.repeat) for p in world.made if p.agent == "iql"] == [(16, 0), (128, 0), (16, 1)]
    reasons = {
        m.point.num_agents: m.reason for m in measured if m.point.agent == "iql" and m.point.repeat == 0 and m.reason
    }
    assert reasons == {128: "too slow", 1024: "Already with 128 agents: too slow"}
    assert sum(m.status == "done" for m in measured if m.point.agent == "mfq") == 6


def test_who_would_be_far_too_slow_is_not_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = live(World(lambda p: 1e-2 * p.num_agents), monkeypatch)
    plan = replace(PLAN, sizes=(16, 128, 2**20), repeats=1)
    measured = sweep.carry_out(plan, tmp_path / "s", measure=world, limit=100.0)
    assert {p.num_agents for p in world.made} == {16, 128}
    assert all("a point may take 100 s" in m.reason for m in measured if m.point.num_agents == 2**20)


def test_who_does_not_fit_in_memory_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def size(p: Point) -> float:
        return 3e8 + p.num_agents * (1e6 if p.agent == "iql" else 1e3)

    world = live(World(lambda p: 1e-6 * p.num_agents, size), monkeypatch)
    plan = replace(PLAN, sizes=(128, 1024, 8192, 16384), max_memory=2e9)
    measured = sweep.carry_out(plan, tmp_path / "s", measure=world)
    assert {p.num_agents for p in world.made if p.agent == "iql"} == {128, 1024}
    assert {p.num_agents for p in world.made if p.agent == "mfq"} == {128, 1024, 8192, 16384}
    reasons = [m.reason for m in measured if m.status == "skipped" and m.point.repeat == 0]
    assert reasons[0] == "It would take about 8.5 GB of memory, and it may take 2.0 GB."
    assert reasons[1].startswith("Already with 8192 agents: It would take about 8.5 GB")
    assert all(size(p) < 2e9 for p in world.probed)


# ------------------------------------------------------------------------------------------------- for real


def test_ctrl_c_ends_the_point_in_hand_and_says_how_to_go_on(tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import signal, sys\nfrom pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background are born deaf to it
        "from mfmarl.evaluation.scaling import sweep\n"
        "from mfmarl.evaluation.scaling.points import Plan\n"
        "from mfmarl.learning.run_config import Choice\n"
        "plan = Plan(Choice('ising'), {'mfq': {'all': Choice('mfq')}}, (16,), repeats=1, steps=10**9)\n"
        "try:\n"
        "    sweep.carry_out(plan, Path(sys.argv[1]), lambda e: print(e['event'], flush=True))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error, flush=True)\n"
    )
    folder = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    time.sleep(1.0)
    children = _children(process.pid)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert "Interrupted" in rest
    assert "the same command goes on" in rest
    assert process.returncode == 0
    assert len(children) == 1
    assert not Path(f"/proc/{children[0]}").exists()
    assert sweep.read(folder)[1] == []


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.is_file():
        pytest.skip("this system does not tell whose child is whose")
    return [int(word) for word in path.read_text().split()]


def test_rows_are_agents_of_all_copies() -> None:
    assert memory.rows(Point("mfq", "mfmarl", 16, copies=4)) == 64
