"""What `check_env` finds, what it leaves in peace, and that it leaves everything as it was."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mfmarl.errors import ConfigError, EnvironmentFault
from mfmarl.testing import Findings, check_env
from mfmarl.testing.apart import apart
from mfmarl.testing.check import died, subjects_of
from mfmarl.testing.contract import RULES, Ledger, every_code
from mfmarl.testing.values import Breach, breach, draw, frozen, mask_breach, spoil

sys.path.append(str(Path(__file__).parent))
from toy import Toy  # type: ignore[import-not-found]

BOX = spaces.Box(-1, 1, (2,), np.float32)


def test_a_correct_environment_has_no_findings_and_its_plays_are_counted() -> None:
    found = check_env(Toy)
    assert found.found == ()
    assert not found
    assert (found.name, found.episodes, found.steps, found.agents) == ("Toy", 2, 28, 3)


def test_a_check_costs_a_few_plays() -> None:
    """What is played once is played again once, beside another, and in short pieces: at most five times in all."""
    steps = [0]

    class Counted(Toy):
        def step(self, actions: dict[str, Any]) -> Any:
            steps[0] += 1
            return super().step(actions)

    found = check_env(Counted)
    assert found.found == ()
    assert found.steps < steps[0] <= 6 * found.steps


# --------------------------------------------------------------------------------------------- planted faults


def _after(change: Callable[[Any, tuple[Any, ...]], Any]) -> type[Toy]:
    """A toy whose answers to step are changed."""

    class Changed(Toy):
        def step(self, actions: dict[str, Any]) -> Any:
            answer = super().step(actions)
            changed = change(self, answer)
            return answer if changed is None else changed

    return Changed


def _put(part: int, value: Any, agent: str = "walker_0", at: int = 3) -> type[Toy]:
    def change(env: Any, answer: Any) -> None:
        if env.t == at:
            answer[part][agent] = value

    return _after(change)


def _without(part: int) -> Callable[[Any, Any], None]:
    def change(env: Any, answer: Any) -> None:
        answer[part].pop("walker_0", None)

    return change


def _shared(env: Any, answer: Any) -> None:
    for agent in answer[0]:
        answer[0][agent] = answer[0]["walker_0"]


class Buffered(Toy):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.buffer = np.zeros((3, 3), np.float32)
        return super().reset(seed, options)

    def _observed(self) -> dict[str, Any]:
        self.buffer[...] = np.clip(self.x, -10, 10)
        return {a: self.buffer[int(a[-1])] for a in self.agents}


class Leaking(Toy):
    level = 0.0

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        answer = super().reset(seed, options)
        self.x += self.level
        return answer

    def step(self, actions: dict[str, Any]) -> Any:
        self.level += 0.01
        return super().step(actions)


class OfTheClass(Toy):
    walls = np.zeros(3)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        OfTheClass.walls[:] = 0
        return super().reset(seed, options)

    def step(self, actions: dict[str, Any]) -> Any:
        OfTheClass.walls += 0.001
        self.x += OfTheClass.walls
        return super().step(actions)


class Exposed(Toy):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.own: dict[str, Any] = {}
        return super().reset(seed, options)

    def _observed(self) -> dict[str, Any]:
        for agent, shown in self.own.items():
            self.x[int(agent[-1])] += shown  # what it showed last, if nobody wrote into it
        self.own = super()._observed()
        return self.own


class Global(Toy):
    def step(self, actions: dict[str, Any]) -> Any:
        self.x += 0.01 * np.random.normal()
        return super().step(actions)


class Seeds(Toy):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        random.seed(seed)
        return super().reset(seed, options)


class Unseeded(Toy):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(None, options)


class Dated(Toy):
    def step(self, actions: dict[str, Any]) -> Any:
        self.x += 0.01 * (int(time.time()) // 1000 % 97)
        return super().step(actions)


class OneList(Toy):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        answer = super().reset(seed, options)
        self.agents = self.possible_agents
        return answer


class Painted(Toy):
    def step(self, actions: dict[str, Any]) -> Any:
        answer = super().step(actions)
        actions["walker_0"] = np.int64(0) if actions.get("walker_0") else np.int64(1)
        return answer


class NewSpaces(Toy):
    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(4)


class Ints(Toy):
    def step(self, actions: dict[str, Any]) -> Any:
        if any(type(a) is int for a in actions.values()):
            self.x += 0.5
        return super().step(actions)


class Moving(Toy):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        os.chdir("/")
        return super().reset(seed, options)


class Alarming(Toy):
    def step(self, actions: dict[str, Any]) -> Any:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.environ["TOY_WAS_HERE"] = "1"
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        return super().step(actions)


class Threaded(Toy):
    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        threading.Thread(target=time.sleep, args=(1.0,), daemon=True).start()
        return super().reset(seed, options)


class Masked(Toy):
    mask: Any = np.ones(4, np.int8)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        seen, infos = super().reset(seed, options)
        return seen, {a: {"action_mask": np.ones(4, np.int8)} for a in infos}

    def step(self, actions: dict[str, Any]) -> Any:
        *answer, infos = super().step(actions)
        return *answer, {a: {"action_mask": self.mask} if self.mask is not None else {} for a in infos}


def _masked(mask: Any) -> type[Toy]:
    return type("MaskedSo", (Masked,), {"mask": mask})


def _raising(error: BaseException, method: str = "step") -> type[Toy]:
    class Raising(Toy):
        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            if method == "reset":
                raise error
            return super().reset(seed, options)

        def step(self, actions: dict[str, Any]) -> Any:
            if self.t == 4:
                raise error
            return super().step(actions)

    return Raising


def _gone(env: Any, answer: Any) -> None:
    env.agents = [a for a in env.agents if a != "walker_1" or env.t < 5]


def _back(env: Any, answer: Any) -> None:
    if env.t == 12:
        env.agents = [*env.agents, "walker_2"]


PLANTED: dict[str, tuple[str, type[Toy]]] = {
    "a NaN reward": ("reward-not-finite", _put(1, float("nan"))),
    "an infinite reward": ("reward-not-finite", _put(1, np.float32(np.inf))),
    "a reward that float32 cannot square": ("reward-huge", _put(1, 1e38)),
    "a whole reward beyond all": ("reward-huge", _put(1, 10**400)),
    "a text for a reward": ("reward-type", _put(1, "1.0")),
    "an array for a reward": ("reward-array", _put(1, np.ones(1))),
    "True for a reward": ("reward-bool", _put(1, True)),
    "a reward missing": ("reward-missing", _after(_without(1))),
    "a ghost that is paid": ("value-for-a-stranger", _put(1, 0.0, "ghost_0")),
    "one that left is paid": ("value-for-the-dead", _put(1, 0.0, "walker_2", 12)),
    "an int for a flag": ("flag-type", _put(3, 0)),
    "None for a flag": ("flag-type", _put(2, None)),
    "both flags": ("both-flags", _after(lambda e, a: a[2].update(a[3]))),
    "a NaN seen": ("observation-not-finite", _put(0, np.full(3, np.nan, np.float32))),
    "far away seen": ("observation-outside-space", _put(0, np.full(3, 11, np.float32))),
    "float64 seen": ("observation-dtype", _put(0, np.zeros(3))),
    "too short an observation": ("observation-shape", _put(0, np.zeros(2, np.float32))),
    "a list seen": ("observation-type", _put(0, [0.0, 0.0, 0.0])),
    "None seen": ("observation-none", _put(0, None)),
    "an observation missing": ("observation-missing", _after(_without(0))),
    "an info that is none": ("info-type", _put(4, None)),
    "one memory for all": ("observations-share-memory", _after(_shared)),
    "one buffer for ever": ("observation-changed-later", Buffered),
    "its own state shown": ("observation-is-internal", Exposed),
    "one list of agents": ("agents-is-possible-agents", OneList),
    "actions written into": ("actions-mutated", Painted),
    "new spaces in every call": ("space-new-each-call", NewSpaces),
    "numpy's global generator": ("global-random-decides", Global),
    "a global generator seeded": ("global-random-seeded", Seeds),
    "no seed heeded": ("not-repeatable", Unseeded),
    "the date heeded": ("clock-decides", Dated),
    "the class remembers": ("instances-share-state", OfTheClass),
    "the last episode goes on": ("episode-leaks", Leaking),
    "ints played otherwise": ("int-actions-differ", Ints),
    "no flag, but gone": ("agent-vanished", _after(_gone)),
    "back from the dead": ("agent-revived", _after(_back)),
    "the folder changed": ("changes-folder", Moving),
    "a signal's handler changed": ("changes-signals", Alarming),
    "a variable set": ("changes-environment-variables", Alarming),
    "warnings silenced": ("changes-warnings", Alarming),
    "numpy's errors silenced": ("changes-numeric-settings", Alarming),
    "a thread left": ("leaves-threads", Threaded),
    "too long a mask": ("mask-length", _masked(np.ones(5, np.int8))),
    "a mask of floats": ("mask-dtype", _masked(np.ones(4))),
    "nothing legal": ("mask-empty", _masked(np.zeros(4, np.int8))),
    "a mask that goes": ("mask-gone", _masked(None)),
    "an exception": ("raises-at-step", _raising(ValueError("so"))),
    "an exception at reset": ("raises-at-reset", _raising(ValueError("so"), "reset")),
    "an exit": ("exits", _raising(SystemExit(3))),
    "an interrupt of its own": ("interrupts", _raising(KeyboardInterrupt())),
    "four values": ("step-returns", _after(lambda e, a: a[:4])),
    "rewards in a list": ("not-a-dictionary", _after(lambda e, a: (a[0], list(a[1].values()), *a[2:]))),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named(fault: str) -> None:
    code, env = PLANTED[fault]
    found = check_env(env)
    assert code in found.codes, [str(f) for f in found]
    one = next(f for f in found if f.code == code)
    assert one.level == RULES[code].level
    assert one.remedy
    assert one.message.count("\n") == 0


def test_the_correct_twins_of_faults_are_left_in_peace() -> None:
    """The same code without the fault: the finding is the fault's doing."""
    assert check_env(_masked(np.ones(4, np.int8))).found == ()
    assert check_env(_after(lambda e, a: None)).found == ()


def test_a_finding_tells_agent_step_and_how_often() -> None:
    (found,) = check_env(_put(1, float("nan"), "walker_1", 4)).found
    assert found.message == "The reward is nan (agent walker_1, step 4 of episode 1); 2 times in all."
    assert found.where == "agent walker_1, step 4 of episode 1"


def test_an_exception_is_told_with_the_line_that_raised() -> None:
    (found,) = check_env(_raising(ValueError("no such door"))).found
    assert "step raised ValueError: no such door" in found.message.lower().replace("valueerror", "ValueError")
    assert "test_check_env.py, line" in found.message


def test_what_hangs_is_interrupted_and_nothing_more_is_asked_of_it() -> None:
    class Sleeps(Toy):
        def step(self, actions: dict[str, Any]) -> Any:
            time.sleep(60)

    begun = time.monotonic()
    (found,) = check_env(Sleeps, patience=0.2).found
    assert found.code == "hangs"
    assert time.monotonic() - begun < 30


def test_swallowing_exceptions_does_not_hide_a_hang() -> None:
    class Swallows(Toy):
        def step(self, actions: dict[str, Any]) -> Any:
            while True:
                try:
                    time.sleep(60)
                except Exception:  # noqa: BLE001 - the fault
                    pass

    assert check_env(Swallows, patience=0.2).codes == ("hangs",)


def test_everything_is_as_it_was_after_a_check() -> None:
    def seeded() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.default_generator.manual_seed(5)

    seeded()
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seeded()
    handlers, folder = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)], os.getcwd()
    filters, errors, variables = list(warnings.filters), np.geterr(), dict(os.environ)
    for env in (Toy, Global, Seeds, Moving, Alarming):
        check_env(env)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == handlers
    assert (os.getcwd(), list(warnings.filters), np.geterr(), dict(os.environ)) == (folder, filters, errors, variables)


def test_somebody_elses_time_limit_goes_on() -> None:
    previous = signal.signal(signal.SIGALRM, lambda number, frame: None)
    before = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, 500)
        check_env(Toy)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 500
    finally:
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_with_a_number_of_steps_the_same_is_found_twice() -> None:
    for env in (_put(1, float("nan")), Global, Leaking):
        one, two = (check_env(env, max_steps=12).to_table() for _ in range(2))
        assert one == two


def test_threads_check_too_but_cannot_interrupt() -> None:
    found: list[Findings] = []
    thread = threading.Thread(target=lambda: found.append(check_env(_put(1, float("nan")))))
    thread.start()
    thread.join()
    assert found[0].codes == ("reward-not-finite",)


# -------------------------------------------------------------------------------------- what may be checked


def test_a_ready_made_instance_is_checked_by_playing_it_twice() -> None:
    assert check_env(Toy()).found == ()
    assert "not-repeatable" in check_env(Unseeded()).codes
    assert "global-random-decides" in check_env(Global()).codes


def test_a_function_that_makes_one_thing_again_and_again_is_told() -> None:
    only = Toy()
    assert check_env(lambda: only).codes == ("same-object-twice",)


def test_a_gymnasium_environment_is_checked_in_its_own_spaces() -> None:
    class Pair(gymnasium.Env[Any, Any]):
        observation_space = spaces.Dict({"place": BOX, "kind": spaces.Discrete(3)})
        action_space = spaces.MultiDiscrete([2, 3])
        metadata = {"render_modes": []}
        kind: Any = np.int64(1)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.t = 0
            return self._seen(), {}

        def _seen(self) -> Any:
            return {"place": self.np_random.uniform(-1, 1, 2).astype(np.float32), "kind": self.kind}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            self.t += 1
            return self._seen(), float(action.sum()), False, self.t >= 7, {}

    assert check_env(Pair).found == ()
    broken = type("Broken", (Pair,), {"kind": np.int64(3)})
    (found,) = check_env(broken).errors
    assert found.code == "observation-outside-space"
    assert "['kind']" in found.message


def test_rules_of_ours_are_checked_in_both_forms() -> None:
    found = check_env("ising", options={"num_agents": 9}, max_steps=5)
    assert found.errors == (), [str(f) for f in found]
    assert [s.turns for s in subjects_of("ising")] == [False, True]


def test_agents_taking_turns_are_checked() -> None:
    from pettingzoo.classic import tictactoe_v3

    found = check_env(tictactoe_v3.env)
    assert found.errors == (), [str(f) for f in found]
    assert set(found.codes) <= {"seed-without-effect"}

    class Forgets(tictactoe_v3.raw_env):  # type: ignore[misc]
        def last(self, observe: bool = True) -> Any:
            seen, reward, *rest = super().last(observe)
            return seen, reward + 1, *rest

    assert "last-disagrees" in check_env(Forgets).codes

    class Stuck(tictactoe_v3.raw_env):  # type: ignore[misc]
        def step(self, action: Any) -> None:
            super().step(action)
            self.rewards = dict.fromkeys(list(self.agents)[:1], 0)

    assert "keys-not-agents" in check_env(Stuck).codes


@pytest.mark.parametrize(
    ("what", "options", "code"),
    [
        ("mfq", {}, "unknown-name"),
        ("isnig", {}, "unknown-name"),
        (dict, {}, "not-an-environment"),
        (3, {}, "not-an-environment"),
        (lambda: 3, {}, "not-an-environment"),
        (Toy, {"episodes": 0}, "bounds"),
        (Toy, {"max_steps": True}, "bounds"),
        (Toy, {"seed": -1}, "bounds"),
        (Toy, {"patience": float("nan")}, "bounds"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_sentence(what: Any, options: Any, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_env(what, **options)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_an_option_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="length"):
        check_env(Toy, options={"lenght": 3})
    assert check_env(Toy, options={"length": 1}).codes == ("episode-of-one-step",)


# ------------------------------------------------------------------------------------------ in another process


def test_one_that_takes_its_process_with_it_is_a_finding() -> None:
    class Leaves(Toy):
        def step(self, actions: dict[str, Any]) -> Any:
            os._exit(7)

    (found,) = check_env(Leaves, apart=True).found
    assert found.code == "died"
    assert "exit code 7 in step, step 1 of episode 1" in found.message

    class Crashes(Toy):
        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    assert "SIGKILL in reset" in check_env(Crashes, apart=True).found[0].message


def test_findings_and_refusals_come_back_from_the_other_process_as_they_are() -> None:
    env = _put(1, float("nan"))
    assert check_env(env, apart=True) == check_env(env)
    with pytest.raises(ConfigError) as caught:
        check_env("isnig", apart=True)
    assert caught.value.code == "unknown-name"


def test_one_that_is_lost_where_no_signal_reaches_is_given_up() -> None:
    def lost(told: Callable[[str], None]) -> Findings:
        told("step, step 3 of episode 1")
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)
        raise EnvironmentFault("never")

    begun = time.monotonic()
    found = apart(lost, "lost", died, patience=-4.5)
    assert found.codes == ("hangs",)
    assert "step 3 of episode 1" in found.found[0].message
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(("share", "codes"), [(0.1, ()), (0.001, ("hangs",)), (1.0, ("hangs",))])
def test_who_computes_on_a_busy_machine_is_not_given_up(
    share: float, codes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent for longer than its patience: late is who waits, and who had that much of a core to itself."""
    module = sys.modules[apart.__module__]
    monkeypatch.setattr(module, "_spent", lambda child: share * time.monotonic())
    waits, awaits = os.pipe()

    def slow(told: Callable[[str], None]) -> Findings:
        told("making it")
        os.read(waits, 1)
        return Findings("slow", (), 1, 1, 1)

    timer = threading.Timer(1.5, os.write, (awaits, b"."))
    timer.start()
    assert apart(slow, "slow", died, patience=0.3 - module._GRACE).codes == codes
    timer.join()
    os.close(waits)
    os.close(awaits)


# -------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("space", "value", "kind"),
    [
        (BOX, np.zeros(2, np.float32), None),
        (BOX, np.ones(2, np.float32), None),
        (BOX, np.nextafter(np.ones(2, np.float32), np.float32(2)), "outside-space"),
        (BOX, np.zeros(2, np.float64), "dtype"),
        (BOX, np.zeros(2, np.float16), "dtype"),
        (BOX, np.zeros((2, 1), np.float32), "shape"),
        (BOX, (0.0, 0.0), "type"),
        (BOX, torch.zeros(2), "type"),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), np.array([np.inf], np.float32), "not-finite"),
        (spaces.Box(0, 255, (2, 2), np.uint8), np.zeros((2, 2), np.uint8), None),
        (spaces.Discrete(3), 2, None),
        (spaces.Discrete(3), np.int64(2), None),
        (spaces.Discrete(3), np.array(2), None),
        (spaces.Discrete(3), 3, "outside-space"),
        (spaces.Discrete(3, start=1), 0, "outside-space"),
        (spaces.Discrete(3, start=1), 3, None),
        (spaces.Discrete(3), 1.0, "type"),
        (spaces.Discrete(3), True, "type"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), None),
        (spaces.MultiDiscrete([2, 3]), np.array([2, 2]), "outside-space"),
        (spaces.MultiDiscrete([2, 3]), np.array([1.0, 2.0]), "dtype"),
        (spaces.MultiBinary(3), np.array([0, 1, 1], np.int8), None),
        (spaces.MultiBinary(3), np.array([0, 1, 2], np.int8), "outside-space"),
        (spaces.Tuple((BOX, spaces.Discrete(2))), (np.zeros(2, np.float32), 1), None),
        (spaces.Tuple((BOX, spaces.Discrete(2))), [np.zeros(2, np.float32), 1], "type"),
        (spaces.Tuple((BOX, spaces.Discrete(2))), (np.zeros(2, np.float32), 2), "outside-space"),
        (spaces.Tuple((BOX, spaces.Discrete(2))), (np.zeros(2, np.float32),), "shape"),
        (spaces.Dict({"a": BOX}), {"a": np.zeros(2, np.float32)}, None),
        (spaces.Dict({"a": BOX}), {"a": np.zeros(2, np.float32), "b": 1}, "keys"),
        (spaces.Dict({"a": BOX}), {"a": np.full(2, 3, np.float32)}, "outside-space"),
        (spaces.Dict({"a": BOX}), np.zeros(2, np.float32), "type"),
        (spaces.Text(5, charset="ab"), "abba", None),
        (spaces.Text(5, charset="ab"), "abc", "outside-space"),
        (spaces.Text(5), 3, "type"),
        (spaces.Sequence(spaces.Discrete(2)), (0, 1), None),
        (spaces.Sequence(spaces.Discrete(2)), (0, 5), "outside-space"),
        (spaces.Graph(BOX, None), spaces.Graph(BOX, None, seed=1).sample(), None),
        (spaces.Graph(BOX, None), 4, "outside-space"),
        (BOX, None, "none"),
    ],
)
def test_a_value_is_held_against_its_space(space: Any, value: Any, kind: str | None) -> None:
    found = breach(space, value)
    assert (found.kind if found else None) == kind


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (np.ones(3, np.int8), None),
        (np.array([0, 0, 1], np.int8), None),
        (np.ones(3, bool), "dtype"),
        (np.ones(3, np.float32), "dtype"),
        (np.ones(2, np.int8), "length"),
        (np.ones((1, 3), np.int8), "length"),
        (np.zeros(3, np.int8), "empty"),
        (np.full(3, 2, np.int8), "value"),
        ([1, 1, 1], "type"),
        (None, "type"),
    ],
)
def test_a_mask_is_held_against_its_actions(mask: Any, kind: str | None) -> None:
    found = mask_breach(spaces.Discrete(3), mask)
    assert (found.kind if found else None) == kind
    if kind is None:
        drawn = {int(draw(spaces.Discrete(3), np.random.default_rng(i), mask)) for i in range(40)}
        assert drawn == set(np.flatnonzero(mask).tolist())


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=-2),
        BOX,
        spaces.Box(-np.inf, np.inf, (3,)),
        spaces.Box(0, np.inf, (3,)),
        spaces.Box(0, 3, (3,), np.int64),
        spaces.MultiDiscrete([2, 5]),
        spaces.MultiBinary(4),
        spaces.Tuple((BOX, spaces.Discrete(3))),
        spaces.Dict({"a": BOX, "b": spaces.Discrete(3)}),
        spaces.Text(4),
    ],
)
def test_drawn_actions_are_of_the_space_and_of_the_generator_alone(space: Any) -> None:
    one, two = (np.random.default_rng(3) for _ in range(2))
    for _ in range(20):
        action = draw(space, one)
        assert space.contains(action)
        assert breach(space, action) is None
        space.seed(17)
        assert frozen(draw(space, two)) == frozen(action)


def test_frozen_values_are_equal_to_the_last_bit_only() -> None:
    assert frozen(0.0) != frozen(-0.0)
    assert frozen(float("nan")) == frozen(float("nan"))
    assert frozen(np.zeros(2)) != frozen(np.zeros(2, np.float32))
    assert frozen({"a": np.arange(9000)}) == frozen({"a": np.arange(9000)})
    assert frozen({"a": np.arange(9000)}) != frozen({"a": np.r_[np.arange(8999), 0]})
    array = np.zeros(3)
    kept = frozen({"a": [array]})
    spoil({"a": [array]})
    assert kept != frozen({"a": [array]})


# ------------------------------------------------------------------------------------------------- contract


def test_every_rule_has_a_meaning_and_a_remedy_and_a_kebab_name() -> None:
    for code, rule in RULES.items():
        assert code == code.lower().replace("_", "-")
        assert rule.broken
        assert rule.remedy.endswith((".", "))", ")"))
    assert set(RULES) <= set(every_code())


def test_an_error_takes_the_place_of_a_warning_of_the_same_code() -> None:
    ledger = Ledger()
    ledger.note("mask-dtype", "first", level="warning")
    ledger.note("mask-dtype", "then")
    ledger.note("prints", "it prints")
    assert [(f.level, f.code) for f in ledger.findings()] == [("error", "mask-dtype"), ("warning", "prints")]
    assert ledger.findings()[0].message == "Then; 2 times in all."


def test_every_kind_of_breach_has_a_code() -> None:
    kinds = {"none", "type", "dtype", "shape", "keys", "not-finite", "outside-space"}
    assert {f"observation-{kind}" for kind in kinds} <= set(RULES)
    assert {f"mask-{kind}" for kind in ("type", "dtype", "length", "value", "empty", "unused")} <= set(RULES)
    assert Breach("x", "y").grave
