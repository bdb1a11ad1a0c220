"""Many runs on Ray: the same bits, nothing lost with a worker or with the command, nothing left behind, no open door."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfmarl.cli.main import build_parser
from mfmarl.errors import ConfigError, ResourceFault
from mfmarl.evaluation import ray_engine, ray_task
from mfmarl.evaluation.comparison import PlannedRun, execute
from mfmarl.evaluation.local_engine import LocalEngine
from mfmarl.evaluation.ray_engine import RayEngine, bytes_of, unreachable
from mfmarl.learning import checkpoint, run_folder
from mfmarl.learning.run import Interrupted, run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import read_metrics, read_status
from mfmarl.registry import import_user_code

SLOW = str(Path(__file__).with_name("slow.py"))
REPOSITORY = Path(__file__).resolve().parents[2]


def planned(folder: Path, seeds: int = 2, steps: int = 200, sleep: float = 0.01) -> list[PlannedRun]:
    options = RunOptions(steps=steps, copies=1, report_every=5, evaluation_copies=0, checkpoint_seconds=0.2)
    config = RunConfig(Choice("slow", {"sleep": sleep}), {"all": Choice("mfq")}, options)
    return [
        PlannedRun("slow", "mfq", seed, folder / f"seed-{seed}", replace(config, run=replace(options, seed=seed)))
        for seed in range(seeds)
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    """What a run found, without how long it took."""
    return [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in read_metrics(path)]


def assert_as_if_undisturbed(runs: list[PlannedRun], folder: Path) -> None:
    """Every run's rows and weights are bit for bit those of a run in this process that nothing disturbed."""
    import_user_code(SLOW)
    for run in runs:
        alone = folder / f"alone-{run.seed}"
        swift = Choice("slow", {"sleep": 0.0})
        run_in_folder(RunConfig(swift, run.config.agents, run.config.run), alone)
        assert read_status(run.path)["state"] == "done"
        assert rows(run.path) == rows(alone) and len(rows(alone)) == run.config.run.steps // 5
        weights, expected = (checkpoint.load(p).tensors for p in (run.path, alone))
        assert weights.keys() == expected.keys() and all(weights[k].equal(expected[k]) for k in expected)


def writer_of(run: PlannedRun) -> int:
    """The process that writes a run's folder: it signs the lock."""
    return int(json.loads((run.path / ".mfmarl-run").read_text())["pid"])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def marked(mark: str) -> dict[int, str]:
    """Processes whose environment holds the mark, and are more than a zombie."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = command_of(int(entry.name))
            except OSError:
                continue
    return found


def gone(mark: str, seconds: float = 20.0) -> dict[int, str]:
    """What is left of the marked processes after at most that many seconds."""
    until = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def listening(pids: set[int]) -> list[str]:
    """Addresses (hexadecimal, as in /proc/net) at which these processes listen."""
    inodes = set()
    for pid in pids:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        except OSError:
            continue
    table = [line.split() for f in ("tcp", "tcp6") for line in Path(f"/proc/net/{f}").read_text().splitlines()[1:]]
    return [line[1].split(":")[0] for line in table if line[3] == "0A" and line[9] in inodes]


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def engine_from(*arguments: str) -> Any:
    from mfmarl.cli.engines import engine_of

    known, _ = build_parser().parse_known_args(["compare", "ising", *arguments])
    return engine_of(known)


# Without a cluster


def test_without_ray_the_command_says_how_to_get_it_and_nothing_is_written(tmp_path):
    script = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "ray" else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Without if f is PathFinder else f for f in sys.meta_path]
from mfmarl.cli.main import main
code = main(["compare", "ising", "--agents", "mfq", "--name", "x", "--engine", "ray"])
from mfmarl.evaluation import comparison, ray_engine
assert "ray" not in sys.modules
sys.exit(code)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert told.returncode == 2, told.stderr
    assert (
        told.stderr.strip()
        == "mfmarl: --engine ray needs Ray: pip install 'mfmarl[ray]', or leave out --engine ray. [missing-extra]"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_default_engine_is_this_machine():
    assert engine_from() == LocalEngine()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--address", "auto"], "--address is for Ray: add --engine ray, or leave it out."),
        (["--gpus-per-run", "0"], "--gpus-per-run is for Ray"),
        (["--engine", "ray", "--address", "nonsense"], "not 'nonsense'"),
        (["--engine", "ray", "--address", "host:70000"], "not 'host:70000'"),
        (["--engine", "ray", "--cpus-per-run", "-1"], "--cpus-per-run must be at least 0, not -1."),
        (["--engine", "ray", "--cpus-per-run", "nan"], "--cpus-per-run must be at least 0, not nan."),
        (["--engine", "ray", "--cpus-per-run", "1.5"], "--cpus-per-run must be a whole number above 1, not 1.5."),
        (["--engine", "ray", "--cpus-per-run", "0"], "--cpus-per-run 0 needs --gpus-per-run"),
        (["--engine", "ray", "--memory-per-run", "lots"], "not 'lots'"),
        (["--engine", "ray", "--max-restarts", "-1"], "--max-restarts must be at least 0, not -1."),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(given, sentence, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError) as refused:
        engine_from(*given)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2e9), ("512MiB", 2**29), ("1.5e9", 1.5e9), ("3k", 3000), ("0", 0)])
def test_sizes_are_read(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.2.3", "2 gallons", "1e999", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="number of bytes"):
        bytes_of(text)


def test_a_cluster_of_our_own_is_refused_where_its_token_would_not_be_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("RAY_AUTH_MODE", "Disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=disabled"):
        RayEngine().check()


def test_a_token_that_others_may_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    token = tmp_path / "token"
    token.write_text("secret")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o640)
    with pytest.raises(ConfigError, match=f"mode 0640.*chmod 600 {token}"):
        RayEngine(address="auto").check()
    token.chmod(0o600)
    RayEngine(address="auto").check()


def test_where_nothing_listens_the_address_is_named():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=f"No Ray cluster answers at ray://127.0.0.1:{port} \\(Connection refused\\)"):
        RayEngine(address=f"ray://127.0.0.1:{port}").check()


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken", "refused our token"),
        ("RuntimeError: Version mismatch: the cluster has Ray 2.9", "another version: RuntimeError: Version mismatch"),
        ("ConnectionError: Could not find any running Ray instance.", "There is no Ray cluster on this machine"),
        ("ImportError: grpcio: cannot import grpc", "pip install 'ray\\[client\\]'"),
        ("anything else", "No Ray cluster answers at h:1 \\(silence\\)"),
    ],
)
def test_what_ray_told_becomes_one_sentence(told, sentence):
    assert re.search(sentence, unreachable("h:1", told, "silence"))


def test_the_folder_of_a_cluster_is_private_short_and_gone_in_the_end():
    with ray_engine._private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
        assert len((folder / "token").read_text()) == 64
        assert len(f"{folder}/r/session_2026-11-22_02-58-48_054986_1234567/sockets/plasma_store") < 107
    assert not folder.exists()


def test_a_socket_that_listens_to_everyone_is_found():
    session = os.getsid(0)
    with socket.create_server(("127.0.0.1", 0)):
        before = ray_engine.open_doors(session)
        with socket.create_server(("0.0.0.0", 0)) as open_to_all:
            assert set(ray_engine.open_doors(session)) - set(before) == {open_to_all.getsockname()[1]}
        own = subprocess.run([sys.executable, "-c", LISTEN], capture_output=True, text=True, start_new_session=True)
        assert own.stdout == "[]\n", own.stderr


LISTEN = """
import os, socket
from mfmarl.evaluation.ray_engine import open_doors
a, b = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET6)
try:
    b.bind(("::1", 0))
    b.listen()
except OSError:
    pass  # a machine without IPv6
print(open_doors(os.getsid(0)))
"""


def test_a_folder_that_a_kill_left_is_removed_and_one_in_use_is_not(tmp_path):
    left, used, foreign = (tmp_path / f"mfmarl-ray-{name}" for name in ("left", "used", "foreign"))
    for folder in (left, used, foreign):
        folder.mkdir()
    for folder in (left, used):
        (folder / "token").write_text("x")
    lock = ray_engine.hold(used)
    try:
        ray_engine._remove_stale(tmp_path)
        assert not left.exists() and used.exists() and foreign.exists()
    finally:
        os.close(lock)


def test_a_node_that_sees_another_folder_is_refused(tmp_path):
    driver = pytest.importorskip("mfmarl.evaluation.ray_driver", exc_type=ImportError)
    (tmp_path / "probe").write_text("nonce")
    wanted = {"folder": str(tmp_path), "probe": "probe", "expected": "nonce", "answer": "answer"}
    told = json.loads(ray_task.look(json.dumps(wanted)))
    driver.judge_node(tmp_path, told, "answer", "nonce")

    told = json.loads(ray_task.look(json.dumps({**wanted, "folder": str(tmp_path / "elsewhere")})))
    with pytest.raises(ConfigError, match="does not see the folder of the runs.*elsewhere cannot be used there"):
        driver.judge_node(tmp_path, told, "answer", "nonce")
    told = json.loads(ray_task.look(json.dumps({**wanted, "expected": "other"})))
    with pytest.raises(ConfigError, match="is another folder than here"):
        driver.judge_node(tmp_path, told, "answer", "nonce")
    told = {"host": "far", "fault": "", "versions": ray_task.versions()}
    with pytest.raises(ConfigError, match=f"What the node far writes in {tmp_path} is not seen here"):
        driver.judge_node(tmp_path, told, "unwritten", "nonce")
    told["versions"] = {**told["versions"], "torch": "1.0"}
    with pytest.raises(ConfigError, match=r"The node far has torch 1\.0 \(here "):
        driver.judge_node(tmp_path, told, "answer", "nonce")


def test_a_run_that_no_node_could_ever_hold_is_refused():
    driver = pytest.importorskip("mfmarl.evaluation.ray_driver", exc_type=ImportError)
    nodes = [{"Resources": {"CPU": 4.0, "memory": 8e9}}, {"Resources": {"CPU": 1.0, "GPU": 1.0, "memory": 8e9}}]
    driver.demand_room({"cpus": 4, "gpus": 0, "memory": 7e9}, nodes)
    with pytest.raises(ConfigError, match="asks for 2 CPUs and 1 GPU; the nodes have 1 CPU and 1 GPU and 8 GB; 4 CPUs"):
        driver.demand_room({"cpus": 2, "gpus": 1, "memory": 0}, nodes)


def test_a_cluster_that_takes_the_call_and_says_nothing_is_given_up(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_engine, "_REACH", 1.0)
    monkeypatch.setenv("MFMARL_TEST", mark := f"silent-{os.getpid()}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            ConfigError, match=f"No Ray cluster answers at {address} \\(it did not answer within 1 s\\)"
        ):
            RayEngine(address=address).carry_out(planned(tmp_path), 1, lambda *_: None)
    assert gone(mark, 5.0) == {}
    assert not any(tmp_path.glob("seed-*"))


# With a cluster


def test_runs_on_ray_end_with_the_same_bits_and_nobody_can_call_from_outside(tmp_path, monkeypatch):
    """One of the runs cannot be: it fails as it does here, and is not tried again."""
    pytest.importorskip("ray")
    monkeypatch.setenv("MFMARL_TEST", mark := f"smoke-{os.getpid()}")
    runs = planned(tmp_path, steps=60, sleep=0.005)
    never = RunConfig(Choice("ising", {"num_agents": -1}), runs[0].config.agents, runs[0].config.run)
    broken = PlannedRun("ising", "mfq", 0, tmp_path / "broken", never)
    events: list[tuple[str, str]] = []
    heard: list[str] = []

    def on_event(run: PlannedRun, event: dict[str, Any]) -> None:
        events.append((run.path.name, event["event"]))
        if event["event"] == "row" and not heard:
            heard.extend(listening(set(marked(mark))))

    failed = execute([runs[0], broken, runs[1]], 1, on_event, [SLOW], RayEngine())
    assert [run for run, _ in failed] == [broken] and "-1" in failed[0][1]
    every = ["begin", *["row"] * 12, "done"]
    assert events == [("seed-0", e) for e in every] + [("broken", "failed")] + [("seed-1", e) for e in every]
    assert len(heard) >= 5 and set(heard) <= set(LOOPBACK), heard
    assert gone(mark) == {}
    assert_as_if_undisturbed(runs, tmp_path / "again")


@pytest.mark.verify
def test_a_worker_killed_in_mid_run_loses_nothing(tmp_path, monkeypatch):
    """One run loses its trainer, the other its Ray worker; rows and weights end as if nothing had happened."""
    pytest.importorskip("ray")
    monkeypatch.setenv("MFMARL_TEST", mark := f"smoke-{os.getpid()}")
    runs = planned(tmp_path)
    events: list[tuple[int, str, str]] = []
    killed: set[int] = set()

    def on_event(run: PlannedRun, event: dict[str, Any]) -> None:
        events.append((run.seed, event["event"], event.get("error", "")))
        if event["event"] == "row" and event["row"]["step"] >= 50 and run.seed not in killed:
            killed.add(run.seed)
            trainer = writer_of(run)
            victim = trainer if run.seed == 0 else parent_of(trainer)
            assert ("mfmarl.learning.worker" if run.seed == 0 else "ray::") in command_of(victim)
            os.kill(victim, signal.SIGKILL)

    assert execute(runs, 2, on_event, [SLOW], RayEngine()) == []
    assert killed == {0, 1}
    told = sorted((seed, error) for seed, event, error in events if event == "restarted")
    assert told == [
        (0, "the process of this run died (signal 9); restart 1 of 3"),
        (1, "the Ray worker of this run died; restart 1 of 3"),
    ]
    assert next(event for seed, event, _ in events if seed == 0) == "begin"
    assert sorted(seed for seed, event, _ in events if event == "done") == [0, 1]
    assert gone(mark) == {}
    assert_as_if_undisturbed(runs, tmp_path / "again")


@pytest.mark.verify
def test_a_run_whose_worker_is_always_lost_becomes_a_failed_run_and_a_held_folder_is_waited_for(tmp_path, monkeypatch):
    """Two ends of patience: restarts are counted, and a folder that another process writes is not written by two."""
    pytest.importorskip("ray")
    monkeypatch.setenv("MFMARL_TEST", mark := f"patience-{os.getpid()}")
    doomed, held = planned(tmp_path)
    run_in_folder_until(held, 20)
    lock = run_folder.reopen(held.path)
    waits: list[str] = []

    def on_event(run: PlannedRun, event: dict[str, Any]) -> None:
        if run is doomed and event["event"] == "row":
            with suppress(ProcessLookupError):
                os.kill(writer_of(run), signal.SIGKILL)
        if event["event"] == "waiting":
            assert run is held
            waits.append(event["error"])
            threading.Timer(3.0, lock.close).start()

    failed = execute([doomed, held], 2, on_event, [SLOW], RayEngine(max_restarts=1))
    assert [(run, why) for run, why in failed] == [(doomed, "the process of this run died (signal 9), 2 times")]
    assert len(waits) == 1 and f"is being written by process {os.getpid()}" in waits[0]
    assert gone(mark) == {}
    assert_as_if_undisturbed([held], tmp_path / "again")


COMMAND = """
import json, signal, sys
from pathlib import Path
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.comparison import PlannedRun, execute
from mfmarl.evaluation.ray_engine import RayEngine
from mfmarl.learning.run_config import RunConfig

given = json.loads(sys.argv[1])
runs = [PlannedRun("slow", "mfq", i, Path(p), RunConfig.from_table(c)) for i, (p, c) in enumerate(given["runs"])]
def tell(run, event):
    print(json.dumps({"seed": run.seed, **event}), flush=True)
try:
    execute(runs, given["jobs"], tell, [given["slow"]], RayEngine(**given["engine"]))
except MfmarlError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


def command(runs: list[PlannedRun], jobs: int = 2, **engine: Any) -> subprocess.Popen[str]:
    """A process that carries the runs out, as the command line does; its events on standard output."""
    given = {"runs": [(str(r.path), r.config.to_table()) for r in runs], "jobs": jobs, "slow": SLOW, "engine": engine}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )


def events_until(process: subprocess.Popen[str], enough: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    assert process.stdout is not None
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if enough(events[-1]):
            return events
    assert process.stderr is not None
    raise AssertionError(f"the command ended early: {process.stderr.read()}")


def at_step(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "row" and event["row"]["step"] >= step


@contextmanager
def cluster(place: Path) -> Iterator[str]:
    """A Ray cluster of its own, as a user would start one with `ray start`; its address."""
    place.mkdir(mode=0o700)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PYTHONPATH": str(REPOSITORY)}
    options = ["--head", "--block", "--num-cpus=2", f"--port={port}", "--node-ip-address=127.0.0.1"]
    options += ["--include-dashboard=false", f"--temp-dir={place}", "--object-store-memory=80000000"]
    head = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", *options, "--disable-usage-stats"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60
        while True:
            assert head.poll() is None and time.monotonic() < until, "the cluster did not start"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        time.sleep(3)  # the port answers before the node has joined
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


@pytest.fixture
def token(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef" * 4)
    path.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return path


@pytest.mark.verify
def test_a_killed_command_is_given_again_and_goes_on_on_the_same_cluster(tmp_path, token, monkeypatch):
    """SIGKILL to the command, and the cluster lives on: no task of the dead one writes beside the new one's."""
    pytest.importorskip("ray")
    monkeypatch.setenv("MFMARL_TEST", mark := f"again-{os.getpid()}")
    runs = planned(tmp_path / "runs", seeds=3)
    with tempfile.TemporaryDirectory(prefix="mfmarl-", dir="/tmp") as short, cluster(Path(short) / "r") as address:
        first = command(runs, address=address)
        seen = events_until(first, lambda event: event["seed"] == 2 and at_step(50)(event))
        done = {event["seed"] for event in seen if event["event"] == "done"}
        assert done, "one of the first two runs is done before the third is in its middle"
        first.kill()
        first.wait()
        before = {seed: (runs[seed].path / "metrics.jsonl").stat().st_mtime_ns for seed in done}
        second = command(runs, address=address)
        told, errors = second.communicate(timeout=200)
        assert second.returncode == 0, errors
        events = [json.loads(line) for line in told.splitlines()]
        assert {event["seed"] for event in events if event["event"] == "done"} == {0, 1, 2}
        assert not any(event["event"] == "row" and event["seed"] in done for event in events)
        assert {seed: (runs[seed].path / "metrics.jsonl").stat().st_mtime_ns for seed in done} == before
        assert not any(tmp_path.rglob(".mfmarl-probe*"))

        token.write_text("f" * 64)
        begun = time.monotonic()
        refused = command(runs, address=address)
        _, errors = refused.communicate(timeout=100)
        assert refused.returncode == 2 and errors.count("\n") == 1 and "refused our token" in errors
        assert time.monotonic() - begun < 40
        token.write_text("0123456789abcdef" * 4)
    assert gone(mark) == {}
    assert_as_if_undisturbed(runs, tmp_path / "again")


@pytest.mark.verify
def test_a_killed_command_leaves_no_process_of_its_own_cluster_and_goes_on_when_given_again(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("MFMARL_TEST", mark := f"killed-{os.getpid()}")
    runs = planned(tmp_path)
    first = command(runs)
    events_until(first, at_step(50))
    folder = next(
        e[18:]
        for e in Path(f"/proc/{next(iter(drivers(mark)))}/environ").read_text().split("\0")
        if e.startswith("MFMARL_RAY_FOLDER=")
    )
    first.kill()
    first.wait()
    assert gone(mark, 60.0) == {}
    second = command(runs)
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert not Path(folder).exists()
    assert gone(mark) == {}
    assert_as_if_undisturbed(runs, tmp_path / "again")


@pytest.mark.verify
def test_the_process_that_talks_to_ray_may_die_too(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("MFMARL_TEST", mark := f"driver-{os.getpid()}")
    runs = planned(tmp_path)

    def on_event(run: PlannedRun, event: dict[str, Any]) -> None:
        if at_step(50)(event):
            for driver in drivers(mark):
                os.kill(driver, signal.SIGKILL)

    with pytest.raises(ResourceFault, match="The connection to Ray was lost.*give the same command again"):
        execute(runs, 2, on_event, [SLOW], RayEngine())
    assert gone(mark, 60.0) == {}
    assert execute(runs, 2, lambda *_: None, [SLOW], RayEngine()) == []
    assert_as_if_undisturbed(runs, tmp_path / "again")


@pytest.mark.verify
def test_ctrl_c_lets_the_runs_save(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("MFMARL_TEST", mark := f"ctrl-c-{os.getpid()}")
    runs = planned(tmp_path)
    process = command(runs)
    events_until(process, at_step(50))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert gone(mark) == {}
    for run in runs:
        assert read_status(run.path)["state"] == "interrupted"
        assert rows(run.path)[-1]["step"] >= 50
    assert execute(runs, 2, lambda *_: None, [SLOW]) == []  # what Ray began, this machine's processes end
    assert_as_if_undisturbed(runs, tmp_path / "again")


def drivers(mark: str) -> list[int]:
    return [pid for pid, line in marked(mark).items() if "mfmarl.evaluation.ray_driver" in line]


def run_in_folder_until(run: PlannedRun, step: int) -> None:
    """Begin the run in this process, and stop it there as Ctrl-C would."""
    import_user_code(SLOW)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] >= step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_in_folder(run.config, run.path, on_row=stop)
