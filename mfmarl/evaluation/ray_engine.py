"""Many runs on Ray: each run a task, trained in its folder exactly as a local worker trains it, so with the same bits.

Three kinds of processes, and what passes between them:

    this one         imports nothing of Ray; orders and events are lines of JSON over the pipes of
    the driver       (mfmarl.evaluation.ray_driver) a child that talks to Ray; it hands out one JSON string a run to
    the tasks        (mfmarl.evaluation.ray_task) in Ray's workers; each feeds a `python -m mfmarl.learning.worker`

So Ray's logs never mix with ours, a cluster that does not answer is a child to end, and a lost worker loses one run's
last minute: it goes on elsewhere from its last checkpoint. Results are the files of the run folders, which every node
must see; rows are read from there. We pickle nothing. Ray itself sends a task as the pickled name of its function with
its arguments, here one string, and brings back one string (and its own exceptions, pickled, when a worker is lost):
whoever can speak to a Ray cluster can run code on it. Hence the token.

Without an address a cluster of this machine alone is started and ended with the runs: no dashboard, token
authentication with a token of its own (mode 0600, in a folder of mode 0700), every socket on loopback.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO, TYPE_CHECKING, Any

from mfmarl.errors import ConfigError, ResourceFault

if TYPE_CHECKING:  # Ray's driver imports this file, and has no use for torch
    from mfmarl.evaluation.comparison import Event, PlannedRun

_REACH = 15.0
"""Seconds in which a cluster must answer."""
_START = 180.0
"""Seconds in which a cluster of this machine must have started: 5 on a quiet machine, 31 seen on a busy one."""
_PROBE = 90.0
"""Seconds more for the nodes to show that they see the run folders."""
_SAVE = 60.0
"""Seconds for the runs in hand to save when the command is interrupted."""
_LISTENS = "0A"
_LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
"""127.0.0.1, the same as an address of version 6, and ::1, as /proc/net writes them."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True)
class RayEngine:
    """Carries runs out as tasks of a Ray cluster. Raises ConfigError for what cannot be."""

    address: str = ""
    """`auto`, `HOST:PORT` or `ray://HOST:PORT`; empty: a cluster of this machine alone, ended with the runs."""
    cpus_per_run: float = 1
    """CPUs that Ray sets aside for a run. (How many threads a run uses is its own option.)"""
    gpus_per_run: float = 0
    """GPUs for a run, or a share of one."""
    memory_per_run: float = 0
    """Bytes that Ray sets aside for a run; 0: none."""
    max_restarts: int = 3
    """How often a run goes on after its worker was lost; once more, and it is a failed run."""

    def __post_init__(self) -> None:
        for name in ("cpus_per_run", "gpus_per_run", "memory_per_run", "max_restarts"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 0, not {value:g}.")
        if self.cpus_per_run == 0 and self.gpus_per_run == 0:
            raise ConfigError(
                "--cpus-per-run 0 needs --gpus-per-run: a run that takes nothing would be started any number of times."
            )
        for name in ("cpus_per_run", "gpus_per_run"):
            if (value := getattr(self, name)) > 1 and value != int(value):
                raise ConfigError(f"--{name.replace('_', '-')} must be a whole number above 1, not {value:g}.")
        if self.address and self.address != "auto":
            _host_and_port(self.address)

    def check(self) -> None:
        """Raises ConfigError where Ray is not installed, would be open to anyone, or nothing answers at the address."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "--engine ray needs Ray: pip install 'mfmarl[ray]', or leave out --engine ray.", "missing-extra"
            )
        if not self.address:
            if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
                raise ConfigError(
                    "RAY_AUTH_MODE=disabled would let any user of this machine run code as you; unset it, or set it to token."
                )
            return
        _check_token_file()
        if self.address == "auto":
            return
        host, port = _host_and_port(self.address)
        try:
            socket.create_connection((host, port), timeout=_REACH / 3).close()
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise ConfigError(
                f"No Ray cluster answers at {self.address} ({reason}); expected the address that `ray start --head` named."
            ) from error

    def carry_out(
        self,
        runs: Sequence[PlannedRun],
        jobs: int,
        on_event: Callable[[PlannedRun, Event], None],
        imports: Sequence[str] = (),
    ) -> list[tuple[PlannedRun, str]]:
        """Carry out the runs, at most `jobs` at a time (0: as many as the cluster has room for).

        Returns the failed ones with their reasons. A run that is done is not done again; a command that was killed is
        simply given again. Raises ConfigError (unreachable, a wrong token, no node large enough, folders that a node
        does not see), ResourceFault where the cluster is lost in mid-course. Ctrl-C lets the runs in hand save.
        """
        self.check()
        if not runs:
            return []
        if not self.address:
            jobs = max(1, min(jobs or os.cpu_count() or 1, len(runs)))
        by_path = {os.path.abspath(run.path): run for run in runs}
        order = {
            "address": self.address,
            "jobs": jobs,
            "cpus": self.cpus_per_run,
            "gpus": self.gpus_per_run,
            "memory": int(self.memory_per_run),
            "max_restarts": self.max_restarts,
            "folder": _common_folder(by_path),
            "cwd": os.getcwd(),
            "threads": os.environ.get("OMP_NUM_THREADS", "1"),
            "imports": [os.path.abspath(name) if os.path.isfile(name) else name for name in imports],
            "runs": [{"path": path, "config": run.config.to_table()} for path, run in by_path.items()],
        }
        failed: list[tuple[PlannedRun, str]] = []
        with _private_folder() as private, _Driver(self.address, private) as driver:
            driver.begin(order)
            try:
                for event in driver.events():
                    run = by_path[event["path"]]
                    if event["event"] == "failed":
                        failed.append((run, str(event.get("error", ""))))
                    on_event(run, event)
            except KeyboardInterrupt:
                driver.interrupt(_SAVE)
                raise
        return failed


class _Driver:
    """The child that talks to Ray; whatever happens it is gone, with what it started, when the `with` is left."""

    def __init__(self, address: str, private: Path) -> None:
        self.address = address
        self.lines: Queue[str | None] = Queue()
        self.told: deque[str] = deque(maxlen=200)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mfmarl.evaluation.ray_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=_environment(address, private),
            start_new_session=True,  # Ctrl-C is for us: we ask for an orderly end
        )
        assert self.process.stdin is not None and self.process.stdout is not None and self.process.stderr is not None
        self.orders: IO[str] = self.process.stdin
        self.readers = [
            threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._collect, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.lines.put(line)
        self.lines.put(None)

    def _collect(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.told.append(line.rstrip())

    def __enter__(self) -> _Driver:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.orders.close()  # the driver takes the end of its input as the order to stop
        try:
            self.process.wait(timeout=_SAVE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.kill()
            self.process.wait()
        end_session(self.process.pid)
        for reader in self.readers:
            reader.join(timeout=5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def begin(self, order: dict[str, Any]) -> None:
        """Hand over the orders and wait until the cluster is there and fit. Raises ConfigError."""
        with contextlib.suppress(OSError):  # a driver that died says why on standard error
            self.orders.write(json.dumps(order) + "\n")
            self.orders.flush()
        self._await("awake", _START)
        self._await("connected", _REACH if self.address else _START)
        self._await("ready", _PROBE)

    def _await(self, word: str, seconds: float) -> None:
        line = self._line_within(seconds)
        if line is None:
            raise ConfigError(self._why_not("the connection was refused"))
        event = json.loads(line)
        if event["event"] == "refused":
            raise ConfigError(event["error"])
        if event["event"] != word:
            raise ResourceFault(f"Ray's driver said {event['event']!r} where {word!r} was expected.")

    def _line_within(self, seconds: float) -> str | None:
        """The next line. Raises ConfigError where none comes, or Ray keeps trying with a token that is refused."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self.lines.get(timeout=0.25)
            except Empty:
                refused = self.address and any("unauthenticated" in line.lower() for line in list(self.told))
                if refused or time.monotonic() >= until:
                    self.process.kill()
                    raise ConfigError(self._why_not(f"it did not answer within {seconds:g} s")) from None

    def _why_not(self, reason: str) -> str:
        self.process.wait()
        self.readers[1].join(timeout=5)
        text = "\n".join(self.told)
        if not self.address:
            return f"A Ray cluster could not be started on this machine: {_last_words(text) or reason}"
        return unreachable(self.address, text, reason)

    def events(self) -> Iterator[Event]:
        """Events of the runs, until the driver says that all are finished. Raises ResourceFault where it dies."""
        while True:
            line = self.lines.get()
            if line is None:
                code = self.process.wait()
                self.readers[1].join(timeout=5)
                words = _last_words("\n".join(self.told))
                raise ResourceFault(
                    f"The connection to Ray was lost (exit code {code}{'; ' + words if words else ''}); what is done is "
                    "kept: give the same command again to go on."
                )
            event = json.loads(line)
            if event["event"] == "lost":
                raise ResourceFault(event["error"])
            if event["event"] == "end":
                return
            yield event

    def interrupt(self, seconds: float) -> None:
        """Let the runs in hand save, and wait for it; a second Ctrl-C does not wait."""
        with contextlib.suppress(OSError):
            self.orders.close()
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.wait(timeout=seconds)


def unreachable(address: str, told: str, reason: str) -> str:
    """The sentence for a cluster that did not take us, from what Ray told."""
    lowered = told.lower()
    if any(word in lowered for word in ("unauthenticated", "authenticationerror", "invalid or missing auth", "token")):
        return (
            f"The Ray cluster at {address} refused our token; expected the cluster's own, in RAY_AUTH_TOKEN or in the "
            "file that RAY_AUTH_TOKEN_PATH names (default ~/.ray/auth_token)."
        )
    if "version mismatch" in lowered:
        return f"The Ray cluster at {address} has another version: {_last_words(told)}"
    if "could not find any running ray instance" in lowered:
        return "There is no Ray cluster on this machine; start one with `ray start --head`, or leave out --address."
    if "grpc" in lowered and "import" in lowered:
        return f"{address} needs Ray's client: pip install 'ray[client]', or give HOST:PORT."
    return f"No Ray cluster answers at {address} ({reason}); expected the address that `ray start --head` named."


def _last_words(text: str) -> str:
    """The last line that says something, without colours, cut to a sentence's length."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in text.splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "")


def bytes_of(text: str, option: str = "a size") -> float:
    """`2GB`, `512MiB`, `1.5e9` in bytes. Raises ConfigError."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", text, re.IGNORECASE)
    try:
        size = float(found[1]) * _UNITS[found[2].upper()] if found else -1.0
    except (ValueError, KeyError):
        size = -1.0
    if not 0 <= size < float("inf"):
        raise ConfigError(f"{option} is a number of bytes such as 2GB or 512MiB, not {text!r}.")
    return size


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:ray://)?(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[3]) < 65536:
        raise ConfigError(f"--address is auto, HOST:PORT or ray://HOST:PORT, not {address!r}.")
    return found[1] or found[2], int(found[3])


def _on_loopback_alone(host: str, port: int) -> bool:
    """Whether what answers at a loopback address answers nowhere else: Ray would look for it at our outer address."""
    try:
        if not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            return False
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it asks the system which address it would send from
            outer = probe.getsockname()[0]
        socket.create_connection((outer, port), timeout=2).close()
    except (OSError, ValueError):
        return True
    return False


def _check_token_file() -> None:
    """Raises ConfigError where others may read the token that Ray would show the cluster."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others (mode {mode:04o}); it is a key to the cluster: chmod 600 {path}"
        )


def _common_folder(paths: Sequence[str] | dict[str, PlannedRun]) -> str:
    """The folder that holds all runs, made if need be: nodes must see it. Raises ResourceFault."""
    folder = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceFault(f"{folder} cannot be made: {error.strerror}.") from error
    return str(folder)


def _environment(address: str, private: Path) -> dict[str, str]:
    """What the driver, and with a cluster of our own all of Ray's processes, find in their environment."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_COLOR_PREFIX": "0",
        # What an unreachable cluster may take before Ray's own library gives up, in seconds.
        "RAY_gcs_rpc_server_connect_timeout_s": "5",
        "RAY_gcs_server_request_timeout_seconds": "10",
    }
    # The package is found by the workers wherever the command found it, installed or not.
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    if address and address != "auto" and _on_loopback_alone(*_host_and_port(address)):
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # see below
    if not address:
        for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_ID", "RAY_RUNTIME_ENV"):
            environment.pop(name, None)
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(private / "token"),
            "MFMARL_RAY_FOLDER": str(private),
            # Ray turns the node address 127.0.0.1 into an outer one, and then listens everywhere, unless it takes this
            # machine for one that cannot be part of a cluster; then it listens on loopback alone.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
    return environment


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder of mode 0700 with a token of mode 0600, for the life of one cluster of our own.

    Ray gives its own folder mode 0777, so it gets one inside. Names are short: sockets in it may have 107 characters.
    Folders that a kill left are removed: nobody holds their lock.
    """
    place = tempfile.gettempdir()
    if len(place) > 12 and os.path.isdir("/tmp"):  # noqa: S108  # nosec B108 - mkdtemp makes a private folder in it
        place = "/tmp"  # noqa: S108  # nosec B108
    _remove_stale(Path(place))
    folder = Path(tempfile.mkdtemp(prefix="mfmarl-ray-", dir=place))
    lock = hold(folder)
    try:
        token = os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(token, "w") as file:
            file.write(secrets.token_hex(32))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def end_session(session: int, seconds: float = 15.0) -> None:
    """End what the driver left: all of Ray's processes and ours belong to its session. (Linux; elsewhere Ray's reaper
    is trusted, which leaves some for a minute.) They are asked first, so that runs save.
    """
    until = time.monotonic() + seconds
    number = signal.SIGTERM
    asked: set[int] = set()
    while left := _of_session(session):
        if time.monotonic() >= until:
            if number == signal.SIGKILL:
                return
            number, until, asked = signal.SIGKILL, time.monotonic() + 5.0, set()
        for process in left - asked:
            with contextlib.suppress(OSError):
                os.kill(process, number)
        asked |= left
        time.sleep(0.1)


def _of_session(session: int) -> set[int]:
    """Processes of that session other than this one, zombies left out; none where there is no /proc."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == session and int(entry.parent.name) != os.getpid():
                found.add(int(entry.parent.name))
    return found


def open_doors(session: int) -> list[int]:
    """Ports at which processes of that session listen on more than loopback; none where there is no /proc."""
    inodes = set()
    for process in _of_session(session) | {os.getpid()}:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(link)
                    if target.startswith("socket:["):
                        inodes.add(target[len("socket:[") : -1])
    ports = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                address, port = fields[1].split(":")
                if fields[3] == _LISTENS and fields[9] in inodes and address not in _LOOPBACK:
                    ports.append(int(port, 16))
    return sorted(ports)


def hold(folder: Path) -> int:
    """A descriptor that keeps others from taking the folder for a leftover while it is open; -1 where locks are unknown."""
    if sys.platform == "win32":
        return -1
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _remove_stale(place: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    for folder in place.glob("mfmarl-ray-*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not (folder / "token").is_file():
                continue
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
