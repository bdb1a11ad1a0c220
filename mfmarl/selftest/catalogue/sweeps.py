"""Many runs at once: workers that die, sweeps that are shared, results that are partial."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mfmarl.evaluation.cells import cells, counts
from mfmarl.learning import run_folder
from mfmarl.selftest.case import Case, case, expect
from mfmarl.selftest.command import Answer, forked, start
from mfmarl.selftest.processes import prepare_forks, processes_below, still_alive, wait_until, write_moody

_SHORT = ("--steps", "40", "--copies", "1", "--report-every", "10", "--evaluation-copies", "0", "--checkpoint-seconds",
          "0", "--no-film", "--quiet")  # fmt: skip
_TIMES = ("wall", "cpu")


def _compare(folder: Path, *words: str, name: str = "c", **options: Any) -> Answer:
    """A comparison of one agent on the failing environment, by workers that are forks."""
    arguments = ["compare", write_moody(folder), "--agents", "mfq", "--name", name, *_SHORT, *words]
    return forked(arguments, folder, prepare=options.pop("prepare", prepare_forks), **options)


def _fault(folder: Path, fault: str, times: int) -> tuple[str, ...]:
    return ("--fault", fault, "--times", str(times), "--tally", str(folder / f"tally-{fault}"))


def _states(folder: Path, name: str = "c") -> dict[str, int]:
    return {state: n for state, n in counts(cells(folder / "runs" / name)).items() if n}


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every run's rows without what they cost, by the run's place in a comparison's folder."""
    return {
        str(path.relative_to(folder)): [
            {k: repr(v) for k, v in row.items() if k not in _TIMES} for row in run_folder.read_metrics(path)
        ]
        for path in run_folder.find_runs(folder)
    }


def _together(*commands: Any) -> list[Answer]:
    """The answers of commands that are carried out at the same time."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda c=c: answers.append(c())) for c in commands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@case(
    15,
    "two processes, one comparison",
    "S1",
    "each run is carried out once, by one of them; both wait for the whole, and report it with exit 0",
)
def _shared(folder: Path) -> None:
    log = folder / "log"
    # Forked one after the other, as threads must not fork at once; they overlap by the pace of the steps.
    write_moody(folder)
    words = ("--seeds", "6", "--jobs", "2", "--log", str(log), "--pace", "0.01", "--json")
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _compare(folder, *words).exit_code
            finally:
                os._exit(code & 0xFF)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    expect(codes == [0, 0], f"expected both to leave with 0, they left with {codes}")
    expect(_states(folder) == {"done": 6}, f"expected 6 runs done, found {_states(folder)}")
    steps = log.read_text().split()
    expect(len(steps) == 6 * 40, f"expected 240 steps to be taken in all, {len(steps)} were")
    expect(
        len(set(steps)) == len(steps), f"{len(steps) - len(set(steps))} steps were taken twice: a run was not claimed"
    )


@case(
    72,
    "out of memory, in a run and by the system's hand",
    "S3",
    "exit 8 for the run, with what to use less of; in a comparison the run has failed, named as memory, and the others go on",
)
def _memory(folder: Path) -> None:
    def small() -> None:
        prepare_forks()
        used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))

    place = write_moody(folder)
    words = [*_SHORT[:-2], "--quiet", *_fault(folder, "memory", 1), "--name", "alone"]
    answer = forked(["train", place, "--agent", "mfq", *words], folder, prepare=small)
    answer.expect(8, "", "memory")
    status = run_folder.read_status(folder / "runs" / "alone")
    expect(status["state"] == "failed" and status["exit_code"] == 8, f"the run's status is {status}")
    answer = _compare(folder, "--seeds", "3", "--jobs", "1", *_fault(folder, "kill", 3))
    answer.expect(6, "runs-failed", "1 of 3 runs failed", "memory")
    expect(_states(folder) == {"done": 2, "failed": 1}, f"found {_states(folder)}")


@case(
    73,
    "a worker dies, stops, hangs or raises; or its parent does",
    "S1",
    "lost ones go on from their checkpoint with the same results, what raises has failed with its reason; no orphan",
)
def _workers(folder: Path) -> None:
    calm = folder / "calm"
    calm.mkdir()
    _compare(calm, "--seeds", "3", "--jobs", "2").expect(0)
    told = rows_of(calm / "runs" / "c")
    for fault, more in (
        ("kill", ()),
        ("stop", ("--worker-timeout", "4")),
        ("hang", ("--run-timeout", "4")),
    ):
        words = ["--seeds", "3", "--jobs", "2", *_fault(folder, fault, 1), *more]
        words.remove("--quiet") if "--quiet" in words else None
        answer = _compare(folder, *words, name=fault).expect(0)
        expect((folder / f"tally-{fault}").stat().st_size == 1, f"{fault}: it was not brought about")
        expect(rows_of(folder / "runs" / fault) == told, f"{fault}: results differ; {answer.err[-300:]}")
    answer = _compare(folder, "--seeds", "3", "--jobs", "2", *_fault(folder, "raise", 1), name="raise")
    answer.expect(6, "runs-failed", "ZeroDivisionError", "the market crashed")
    _parent_dies(folder)


def _parent_dies(folder: Path) -> None:
    place = write_moody(folder)
    words = ["--steps", "100000", "--pace", "0.02", "--seeds", "2", "--jobs", "2", "--name", "orphans"]
    pid = os.fork()
    if pid == 0:
        try:
            prepare = ["compare", place, "--agents", "mfq", *_SHORT, *words]
            forked(prepare, folder, prepare=prepare_forks)
        finally:
            os._exit(0)
    runs = folder / "runs" / "orphans"
    begun = wait_until(lambda: sum(1 for _ in runs.glob("*/*/*/metrics.jsonl")) == 2)
    seen = processes_below(pid)
    for process in sorted(seen):  # the command itself is the eldest below our fork
        os.kill(process, signal.SIGKILL)
        break
    os.waitpid(pid, 0)
    expect(begun and len(seen) == 3, f"expected a command with two workers, saw {len(seen)} processes")
    gone = wait_until(lambda: not still_alive(seen), 30.0)
    expect(gone, f"{len(still_alive(seen))} processes outlived a command that was killed")
    locked = [str(p) for p in run_folder.find_runs(runs) if run_folder.is_running(p)]
    expect(not locked, f"still locked: {locked}")
    states = {str(run_folder.read_status(p)["state"]) for p in run_folder.find_runs(runs)}
    expect(states == {"interrupted"}, f"the workers did not save when their parent was gone: {states}")


@case(
    74,
    "some seeds of a comparison fail",
    "S2",
    "exit 6; so many done and so many failed, each with its reason; a failed seed ranks last and is never dropped; the "
    "same command does the failed ones alone",
)
def _some_fail(folder: Path) -> None:
    words = ("--seeds", "10", "--jobs", "2", *_fault(folder, "raise", 3), "--json")
    answer = _compare(folder, *words).expect(6, "runs-failed", "3 of 10 runs failed")
    told = answer.table
    states = {k: v for k, v in told["runs_by_state"]["counts"].items() if v}
    expect(states == {"done": 7, "failed": 3}, f"told of {states}")
    reasons = [c["reason"] for c in told["runs_by_state"]["cells"]]
    expect(all("the market crashed" in why for why in reasons), f"reasons told: {reasons}")
    [about] = [e["agents"]["mfq"] for e in told["environments"].values()]
    expect(len(about["scores"]) == 10 and about["failed"] == 3, f"{len(about['scores'])} of 10 seeds are counted")
    lost = [s for seed, s in zip(about["seeds"], about["scores"], strict=True) if str(seed) in about["errors"]]
    expect(len(lost) == 3 and max(lost) <= min(about["scores"]), f"failed seeds score {lost} of {about['scores']}")
    kept = _compare(folder, *words, "--keep-failed").expect(6, "runs-failed")
    expect(len(kept.table["failed"]) == 3, "failed runs that were to be kept were forgotten")
    finished = {c.path: (Path(c.path) / "metrics.jsonl").stat().st_mtime_ns
                for c in cells(folder / "runs" / "c") if c.state == "done"}  # fmt: skip
    _compare(folder, *words).expect(0)
    expect(_states(folder) == {"done": 10}, f"after the second time: {_states(folder)}")
    touched = [p for p, when in finished.items() if (Path(p) / "metrics.jsonl").stat().st_mtime_ns != when]
    expect(len(finished) == 7 and not touched, f"runs that were done are done again: {touched}")


@case(
    75,
    "results that are partial, of unequal length, or of other options or versions",
    "S2",
    "exit 2, saying which and how many; --allow-unequal compares them and says so; --status tells how every run stands",
)
def _partial(folder: Path) -> None:
    _compare(folder, "--seeds", "3", "--jobs", "2").expect(0)
    runs = folder / "runs" / "c"
    first, second, third = run_folder.find_runs(runs)

    def report(*words: str) -> Answer:
        return forked(["report", "runs/c", *words], folder, prepare=prepare_forks)

    rows = (second / "metrics.jsonl").read_bytes()
    (second / "metrics.jsonl").write_bytes(b"".join(rows.splitlines(keepends=True)[:2]))
    report().expect(2, "unequal-runs", "1 of 3", "20 steps", "40", "--allow-unequal")
    report("--allow-unequal").expect(0, "", "cut to the 20 steps")
    (second / "metrics.jsonl").write_bytes(rows)
    text = (third / "config.toml").read_text(encoding="utf-8")
    for old, new, word in (
        ("copies = 1", "copies = 2", "run.copies"),
        ("at = 25", "at = 26", "environment.at"),
        ('mfmarl = "', 'mfmarl = "9.', "versions.mfmarl"),
    ):
        changed = text.replace(old, new) if old in text else text.replace("[environment]\n", "[environment]\nat = 26\n")
        (third / "config.toml").write_text(changed, encoding="utf-8")
        if word == "environment.at":
            other = (first / "config.toml").read_text(encoding="utf-8")
            (first / "config.toml").write_text(other.replace("[environment]\n", "[environment]\nat = 25\n"), "utf-8")
        report().expect(2, "unequal-runs", "1 of 3", word)
        report("--allow-unequal").expect(0, "", word)
    (third / "config.toml").write_text(text, encoding="utf-8")
    run_folder.remove(third)
    report().expect(2, "unfinished-runs", "1 such of 3 runs")
    told = forked(["report", "runs/c", "--status", "--json"], folder).expect(0).table
    expect(told["counts"]["never run"] == 1 and told["counts"]["done"] == 2, f"--status tells {told['counts']}")
    both = report("--allow-unequal", "--json").expect(0).table
    expect(any("1 of 3 planned runs" in note for note in both["notes"]), f"notes are {both['notes']}")


def _have_begun(runs: Path, many: int) -> bool:
    return sum(1 for _ in runs.glob("*/*/*/metrics.jsonl")) == many


def _are_gone(pids: Mapping[int, float]) -> bool:
    return not still_alive(pids)


@case(
    177,
    "SIGTERM or SIGINT to a comparison, once and twice",
    "S1",
    "once: the runs in hand save, exit 143 or 130, no process left, the same command goes on to the same results; twice: "
    "at once, the last checkpoints stand",
)
def _asked_to_stop(folder: Path) -> None:
    calm = folder / "calm"
    calm.mkdir()
    _compare(calm, "--seeds", "2", "--jobs", "2").expect(0)
    words = ("--seeds", "2", "--jobs", "2", "--pace", "0.1")
    for number, twice in ((signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)):
        name = f"{signal.Signals(number).name}-{int(twice)}"
        process = start(["compare", write_moody(folder), "--agents", "mfq", "--name", name, *_SHORT, *words], folder)
        runs = folder / "runs" / name
        begun = wait_until(partial(_have_begun, runs, 2))
        seen = processes_below(process.pid)
        process.send_signal(number)
        if twice:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
        answer = Answer(f"mfmarl compare ... ({name})", process.returncode, out, err, 0.0)
        expect(begun, f"{name}: no run was begun: {answer.err}")
        answer.expect(128 + number, "interrupted", "same command")
        expect(wait_until(partial(_are_gone, seen), 10.0), f"{name}: a process is left")
        states = [run_folder.read_status(p)["state"] for p in run_folder.find_runs(runs)]
        expect(twice or states == ["interrupted"] * 2, f"{name}: states are {states}")
        _compare(folder, "--seeds", "2", "--jobs", "2", "--pace", "0.1", name=name).expect(0)
        expect(rows_of(runs) == rows_of(calm / "runs" / "c"), f"{name}: what went on is another")


@case(
    178,
    "every run of a comparison fails; or its options changed since it was begun",
    "S3",
    "exit 6 with the reason; exit 2 before anything is done, with the difference",
)
def _all_fail(folder: Path) -> None:
    words = ("--seeds", "2", "--jobs", "2")
    _compare(folder, *words, *_fault(folder, "raise", 2)).expect(6, "runs-failed", "All 2 runs", "the market crashed")
    _compare(folder, *words, *_fault(folder, "raise", 2), "--copies", "2").expect(2, "", "copies", "1", "2")


@case(
    179,
    "two commands that measure, solve or play in one folder",
    "S1",
    "the second leaves with exit 7 at once, naming the process and machine of the first",
)
def _exclusive(folder: Path) -> None:
    me = f"process {os.getpid()}"
    with run_folder.exclusive(folder / "runs" / "s"):
        words = ["scale", "congestion", "--agents", "mfq", "--num-agents", "4,8", "--name", "s", "--quiet"]
        forked(words, folder).expect(7, "locked", me)
    with run_folder.create(folder / "runs" / "g", {"run": {}}):
        forked(["solve", "beach_bar", "--name", "g", "--quiet"], folder).expect(7, "locked", me)
    with run_folder.exclusive(folder / "runs" / "c"):
        # (A comparison waits for the plan, then for its turn to report: two of them share the runs.)
        pass


CASES: list[Case] = [_shared, _memory, _workers, _some_fail, _partial, _asked_to_stop, _all_fail, _exclusive]
