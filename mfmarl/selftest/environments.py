"""G6: environments with a seeded fault each, and environments of other hands that have none.

Every fault of `FaultyEnv` in each of its forms, at several steps and seeds, is put to `check_env` and, beside it, to
PettingZoo's own four tests. Each check is a process of its own: some faults leave threads, handlers and folders behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfmarl.errors import MfmarlError
from mfmarl.selftest.goal import Order, Outcome
from mfmarl.testing.faults import FAULTS, Fault, Form

PLACES = ((3, 0), (1, 1), (5, 2))
"""The step at which a fault strikes, and the seed of the check."""
PEERS = ("parallel_api_test", "parallel_seed_test", "api_test", "seed_test")
OURS = (
    *(
        "ising",
        "predator_prey",
        "foraging",
        "flocking",
        "schelling",
        "t_maze",
        "minority_game",
        "stag_hunt",
        "lockdown",
    ),
    *("susceptible_infected", "two_shores", "mountain_car"),
)
"""Environments of this package, checked as rules and in both faces."""
REAL = {("pettingzoo/butterfly/knights_archers_zombies-v11", "episode-leaks")}
"""Errors that are right: of PettingZoo 1.27, after `reset(seed=7)` and the same actions an instance that has played before
shows another fourth observation than a new one."""
NUMBERS = (39, 40, 42)
"""Cases of the catalogue that are numbers which are none."""
SHARE_FOUND = 0.97
_PATIENCE = 1.0  # seconds that a call of a faulty environment may take
_LIMIT = 60.0  # seconds that a check may take
_PEER_LIMIT = 10.0
_CYCLES = 30  # of PettingZoo's tests, whose default is 500 to 1000: a fault strikes by the fifth step


@dataclass(frozen=True)
class Trial:
    """One fault in one form, at one place."""

    fault: Fault
    form: Form
    at: int
    seed: int

    def __str__(self) -> str:
        face = "FaultyEnv" if self.form == "parallel" else "FaultyAECEnv"
        return (
            f"check_env({face}, seed={self.seed}, patience={_PATIENCE:g}, elsewhere=True, "
            f"options={{'fault': {self.fault.name!r}, 'at': {self.at}}})"
        )


def trials() -> list[Trial]:
    """Every fault in every form at every place."""
    return [Trial(fault, form, at, seed) for at, seed in PLACES for fault in FAULTS.values() for form in fault.forms]


def seeded_faults(order: Order) -> Outcome:
    """Faults that are found, environments that are wrongly accused, and what training does with each fault."""
    if not hasattr(os, "fork"):
        return Outcome(None, "Faults are let loose in forked processes, and this system cannot fork.")
    every = trials()
    some = _some(every, order.trials(len(every), 40), order.seed)
    names = stock()
    names = _some(names, order.trials(len(names), 3), order.seed)
    training = [fault for fault in FAULTS.values() if "parallel" in fault.forms]
    numbers = [fault for fault in training if fault.case in NUMBERS]
    others = [fault for fault in training if fault not in numbers]
    training = numbers + _some(others, order.trials(len(training), 10) - len(numbers), order.seed)
    tested = list({(trial.fault.name, trial.form): trial for trial in some}.values())
    of = len(some) + len(names) + len(training) + len(tested)
    done = 0

    def watch() -> None:
        nonlocal done
        done += 1
        order.watch(done, of)

    right = [f"training on it ends as {end!r}"] if (end := trained(None, order.folder)) != "done" else []
    right += [str(codes) for form in ("parallel", "aec") if (codes := found(None, form, 3, order.seed))]
    missed, errors, begun = [], 0, _cpu()
    for trial in some:
        told = found(trial.fault.name, trial.form, trial.at, trial.seed)
        missed += [] if told else [trial]
        errors += any(level == "error" for level, _ in told)
        watch()
    seconds = _cpu() - begun
    accused, skipped, real, begun = [], 0, 0, _cpu()
    for name in names:
        verdict = checked(name)
        skipped += verdict is None
        wrong = [(name, code) for level, code in verdict or [] if level == "error"]
        accused += [f"{name}: {code}" for name, code in wrong if (name, code) not in REAL]
        real += sum(one in REAL for one in wrong)
        watch()
    stock_seconds = _cpu() - begun
    played = {}
    for fault in training:
        played[fault.name] = trained(fault.name, order.folder)
        watch()
    slipped = [fault.name for fault in numbers if fault.level == "error" and played[fault.name] not in STOPPED]
    peers = beside(tested, watch)
    share = 1 - len(missed) / len(some)
    stopped = sum(end in STOPPED for end in played.values())
    met = share >= SHARE_FOUND and not accused and not slipped and not right
    failures = [f"the right environment is accused: {codes}" for codes in right]
    failures += [f"a false error on {one}" for one in accused]
    failures += [f"training went on: FaultyEnv with {name}" for name in slipped]
    failures += [f"missed: {trial}" for trial in missed]
    kinds = len({trial.fault.name for trial in some})
    return Outcome(
        met,
        f"{kinds} kinds of fault: {share:.1%} of {len(some)} trials found, {errors / len(some):.1%} as errors; "
        f"{len(accused)} false errors on {len(names) - skipped} environments; training stopped on "
        f"{len(numbers) - len(slipped)} of {len(numbers)} numbers that are none",
        of,
        tuple(failures),
        peers,
        {
            "kinds": kinds,
            "found": share,
            "errors": errors / len(some),
            "missed": len(missed),
            "stock": len(names) - skipped,
            "false errors": len(accused),
            "real faults of other hands": real,
            "stopped in training": stopped / max(1, len(played)),
            "CPU s per fault": seconds / len(some),
            "CPU s per stock environment": stock_seconds / max(1, len(names) - skipped),
        },
    )


def _some(every: Iterable[Any], number: int, seed: int) -> list[Any]:
    """So many of them, drawn by the seed, in their own order."""
    items = list(every)
    chosen = random.Random(seed).sample(range(len(items)), max(0, min(number, len(items))))  # noqa: S311 - which to try
    return [items[i] for i in sorted(chosen)]


# --------------------------------------------------------------------------------------------- our own check

Told = list[tuple[str, str]]
"""(level, code) of each finding."""


def found(fault: str | None, form: Form, at: int, seed: int) -> Told:
    """What `check_env` says of that fault; a check that breaks off, or is lost, has found nothing."""

    def check() -> Any:
        from mfmarl.testing.check import check_env
        from mfmarl.testing.faulty_env import FaultyAECEnv, FaultyEnv

        options = {"at": at, **({} if fault is None else {"fault": fault})}
        face = FaultyEnv if form == "parallel" else FaultyAECEnv
        findings = check_env(face, options=options, seed=seed, patience=_PATIENCE)
        if not findings:
            # As the command does; another interpreter only adds to what is found, and takes a second or two.
            findings = check_env(face, options=options, seed=seed, patience=_PATIENCE, elsewhere=True)
        return [(one.level, one.code) for one in findings.found]

    _warm()
    answer = apart(check, _LIMIT)
    return [(level, code) for level, code in answer] if isinstance(answer, list) else []


def stock() -> list[str]:
    """Environments of other hands that are installed here, and a dozen of ours."""
    from mfmarl.population import third_party

    others = [name for name in third_party.names() if name.partition("/")[0] in ("pettingzoo", "mpe2", "magent2")]
    return [*others, *OURS]


def checked(name: str) -> Told | None:
    """What `check_env` says of an environment by name; None where it is not installed (a package of its own is lacking)."""

    def check() -> Any:
        from mfmarl.testing.check import check_env

        try:
            return [(one.level, one.code) for one in check_env(name).found]
        except MfmarlError as error:
            return None if "pip install" in str(error) else [("error", f"refused: {error}")]

    _warm()
    answer = apart(check, 3 * _LIMIT)
    if answer is LOST:
        return [("error", "the check was lost")]
    return None if answer is None else [(level, code) for level, code in answer]


def _warm() -> None:
    """What every child needs is imported once, here."""
    if not _checked_once:
        from mfmarl.testing.check import check_env
        from mfmarl.testing.faulty_env import FaultyEnv

        _checked_once.append(check_env(FaultyEnv, episodes=1, max_steps=2))


_checked_once: list[Any] = []


# ---------------------------------------------------------------------------------------------- in training

STOPPED = ("stopped", "refused", "raised")
"""The ends of a run that a fault cannot poison."""


def trained(fault: str | None, folder: Path, at: int = 10) -> str:
    """How a short run of independent Q-learners ends on that fault: `stopped` (exit 3 or 5), `refused` (2), `raised` (what
    the environment raised went through), `done`, `lost` (it hung or died), or `poisoned`: a weight on disk is no number."""

    if not _trained_once:
        _trained_once.append(_train(None, folder / "first", at))  # what every child needs is imported once, here
    # In one process nothing ends a step that does not come back: such a run is lost, and is not waited for.
    answer = apart(lambda: _train(fault, folder, at), 3.0 if fault and fault.startswith("hangs") else _LIMIT)
    return answer if isinstance(answer, str) else "lost"


_trained_once: list[str] = []


def _train(fault: str | None, folder: Path, at: int) -> str:
    from mfmarl.learning.run import run_in_folder
    from mfmarl.learning.run_config import Choice, RunConfig, RunOptions

    place = folder / f"training-{fault or 'right'}"
    place.mkdir(parents=True, exist_ok=True)
    file = place / "faulty.py"
    file.write_text("from mfmarl.testing.faulty_env import FaultyEnv\n")
    config = RunConfig(
        Choice(f"{file}:FaultyEnv", {"at": at, **({} if fault is None else {"fault": fault})}),
        {"all": Choice("iql", {"warm_up": 4, "batch_size": 4, "hidden": (8,)})},
        RunOptions(steps=40, copies=1, report_every=4, checkpoint_seconds=0.0),
    )
    try:
        run_in_folder(config, place / "run")
        end = "done"
    except MfmarlError as error:
        end = {2: "refused", 3: "stopped", 5: "stopped"}.get(error.exit_code, "raised")
    except BaseException:  # noqa: BLE001 - whatever the environment raises
        end = "raised"
    return end if finite_weights(place / "run") else "poisoned"


def finite_weights(run: Path) -> bool:
    """Whether every weight and every optimiser's number in every checkpoint of that run is finite."""
    import torch
    from safetensors.torch import load

    for path in (run / "checkpoints").glob("*.safetensors"):
        for name, value in load(path.read_bytes()).items():
            learned = name.startswith("player.") and (".agent." in name or ".optimiser." in name)
            if learned and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return False
    return True


# ----------------------------------------------------------------------------------------- PettingZoo's tests


def beside(tested: list[Trial], watch: Callable[[], None]) -> dict[str, str]:
    """What each of PettingZoo's tests, and all together, say of the same faults, as one sentence each."""
    with contextlib.suppress(ImportError):
        import pettingzoo.test  # noqa: F401
    calm: dict[tuple[str, str], dict[str, list[str]]] = {}
    raised = dict.fromkeys((*PEERS, "all four together"), 0)
    noticed, asked, seconds = dict(raised), dict(raised), dict.fromkeys(PEERS, 0.0)
    for trial in tested:
        key = trial.form, json.dumps(dict(trial.fault.needs), sort_keys=True)
        if key not in calm:
            calm[key] = {peer: said_by(peer, None, trial)[1] for peer in _peers(trial.form)}
        any_raised = any_noticed = False
        for peer in _peers(trial.form):
            begun = _cpu()
            error, told = said_by(peer, trial.fault.name, trial)
            seconds[peer] += _cpu() - begun
            new = bool(error) or bool(set(told) - set(calm[key][peer]))
            raised[peer] += bool(error)
            noticed[peer] += new
            asked[peer] += 1
            any_raised, any_noticed = any_raised or bool(error), any_noticed or new
        raised["all four together"] += any_raised
        noticed["all four together"] += any_noticed
        asked["all four together"] += 1
        watch()
    told_of = {}
    for peer in raised:
        if asked[peer]:
            cost = f" ({seconds[peer] / asked[peer]:.2f} CPU s each)" if peer in seconds else ""
            told_of[f"pettingzoo {peer}"] = (
                f"raises on {raised[peer]} of {asked[peer]}, raises or warns on {noticed[peer]}{cost}"
            )
    return told_of


def _peers(form: Form) -> tuple[str, ...]:
    return PEERS if form == "parallel" else PEERS[2:]


def said_by(peer: str, fault: str | None, trial: Trial) -> tuple[str, list[str]]:
    """The error that a test of PettingZoo's raises on that fault (empty: none), and its warnings."""

    def test() -> Any:
        from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
        from pettingzoo.utils.conversions import parallel_to_aec

        from mfmarl.testing.faulty_env import maker

        options: dict[str, Any] = {} if fault is not None else dict(trial.fault.needs)
        make = maker(fault, trial.form, at=trial.at, **options)

        def turns() -> Any:
            return parallel_to_aec(make()) if trial.form == "parallel" else make()

        carried_out: dict[str, Callable[[], Any]] = {
            "parallel_api_test": lambda: parallel_api_test(make(), _CYCLES),
            "parallel_seed_test": lambda: parallel_seed_test(make, _CYCLES),
            "api_test": lambda: api_test(turns(), _CYCLES),
            "seed_test": lambda: seed_test(turns, _CYCLES),
        }
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                carried_out[peer]()
                error = ""
            except BaseException as raised:  # noqa: BLE001 - a test that fails has found the fault
                error = f"{type(raised).__name__}: {raised}"[:200]
        return error, sorted({str(one.message)[:60] for one in told})

    import pettingzoo.test  # noqa: F401 - once, for all children

    answer = apart(test, _PEER_LIMIT)
    return ("", []) if answer is None or answer is LOST else (answer[0], answer[1])


# ------------------------------------------------------------------------------------------- one's own process

LOST = object()
"""The answer of a child that died, or did not come back in time."""


def apart(call: Callable[[], Any], limit: float) -> Any:
    """What `call` returns in a child process with no output, as JSON holds it; LOST where it did not come back.

    Whatever the child started goes with it.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process, which is not measured
        _be_the_child(call, writing)
    os.close(writing)
    data, until = b"", time.monotonic() + limit
    with open(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            more = pipe.read(1 << 16)
            if not more:
                break
            data += more
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        return json.loads(data)
    except ValueError:
        return LOST


def _be_the_child(call: Callable[[], Any], writing: int) -> None:  # pragma: no cover - another process
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        data = json.dumps(call()).encode()
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def _cpu() -> float:
    """CPU seconds of the children so far."""
    used = os.times()
    return used.children_user + used.children_system
