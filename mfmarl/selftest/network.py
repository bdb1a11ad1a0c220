"""G14: nothing listens beyond this machine, whichever command is carried out.

Two watchers, as neither sees everything: a hook in every Python process of a command, started through a
`sitecustomize` of our own, writes down each socket that listens, or that is bound and hears without listening (UDP),
however short; and the listening sockets of the whole tree of processes are sampled from outside all the while, which also
sees those that C++ opens (gloo, Ray's servers).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mfmarl.selftest.command import environment_of
from mfmarl.selftest.goal import Order, Outcome
from mfmarl.selftest.processes import processes_below, still_alive

PATIENCE = 300.0
_PAUSE = 0.02

HOOK = '''"""Writes every address at which a socket of this process can be reached into a file."""

import os
import sys

_file = os.environ.get("MFMARL_SELFTEST_DOORS")


def _tell(address):
    line = f"{os.getpid()} {address!r}\\n".encode()
    handle = os.open(_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, line)
    os.close(handle)


if _file:
    import socket

    _listen = socket.socket.listen

    def listen(self, *backlog):
        _listen(self, *backlog)
        _tell(self.getsockname())

    def _watch(event, arguments):
        # Without connections, whoever is bound hears. One that connects is bound to ask which port is free: no door yet.
        if event == "socket.bind" and arguments[0].type & 0xF == socket.SOCK_DGRAM:
            _tell(arguments[1])

    socket.socket.listen = listen
    sys.addaudithook(_watch)
'''

RULES = ("--steps", "40", "--copies", "1", "--evaluation-copies", "0", "--report-every", "20", "--quiet")


@dataclass(frozen=True)
class Watched:
    """What a command opened, and how it ended."""

    exit_code: int
    listening: frozenset[tuple[str, int]]
    """(address, port) of every listening socket that was seen."""
    bound: tuple[str, ...]
    """Where Python processes said that they could be reached."""
    processes: int
    told: str = ""
    left: tuple[int, ...] = field(default=())
    """Processes that were still there when it was gone."""

    @property
    def beyond(self) -> list[str]:
        """What could be reached from elsewhere."""
        doors = {f"{address}:{port}" for address, port in self.listening if not on_loopback(address)}
        return sorted(doors | {told for told in self.bound if not _bound_on_loopback(told)})


def on_loopback(address: str) -> bool:
    """Whether an address leads nowhere but to this machine."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None)
        return bool((mapped or found).is_loopback)
    return False


def _bound_on_loopback(told: str) -> bool:
    """Of what the hook wrote: `4711 ('127.0.0.1', 0)`, or the path of a socket that is a file."""
    words = told.partition(" ")[2]
    if not words.startswith("("):
        return True  # a Unix socket, or one of the kernel's: no network
    address = words[1:].split(",")[0].strip().strip("'\"")
    return on_loopback(address)


def watch(
    arguments: Sequence[str], folder: Path, changes: Mapping[str, str] | None = None, patience: float = PATIENCE
) -> Watched:
    """Carry out a command (all its words) in that folder, and see what its processes listen at."""
    hook = Path(tempfile.mkdtemp(prefix="hook-", dir=folder))
    (hook / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    file, out = hook / "bound", hook / "out"
    environment = {**environment_of(), "MFMARL_SELFTEST_DOORS": str(file), **(changes or {})}
    environment["PYTHONPATH"] = os.pathsep.join([str(hook), environment["PYTHONPATH"]])
    doors = _Doors()
    until = time.monotonic() + patience
    with open(out, "wb") as sink:
        process = subprocess.Popen(
            list(arguments), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
        try:
            while process.poll() is None and time.monotonic() < until:
                doors.look(process.pid)
                time.sleep(_PAUSE)
        finally:
            if process.poll() is None:
                process.kill()
            code = process.wait()
    for _ in range(100):
        if not (left := still_alive({**doors.seen, **_marked(str(file))})):
            break
        time.sleep(0.05)
    bound = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    told = out.read_text(encoding="utf-8", errors="replace")[-600:]
    return Watched(code, frozenset(doors.listening), tuple(bound), len(doors.seen), told, tuple(left))


class _Doors:
    """The processes below one, and the sockets at which they listen.

    Whose a socket is takes long to find: it is asked where the system has one that it had not before, for a while.
    """

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}
        self.listening: set[tuple[str, int]] = set()
        self._asked: dict[str, int] = dict.fromkeys(_everyones(), _ASKED)
        self._looked = 0

    def look(self, pid: int) -> None:
        fresh = [line for line in _everyones() if self._asked.setdefault(line, 0) < _ASKED]
        self._looked += 1
        if fresh or self._looked % 10 == 1 or not _TABLES:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                self.seen.setdefault(pid, root.create_time())
                self.seen.update(processes_below(pid))
        for line in fresh:
            self._asked[line] += 1
        # Processes that have left their parent are looked at for as long as they live.
        for known in still_alive(self.seen) if fresh or not _TABLES else ():
            with contextlib.suppress(psutil.Error, AttributeError):
                for connection in psutil.Process(known).net_connections(kind="inet"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr:
                        self.listening.add((connection.laddr.ip, connection.laddr.port))


_TABLES = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
_ASKED = 5
"""How many times it is asked whose a socket is: it may be another program's."""


def _everyones() -> list[str]:
    """The listening sockets of everybody here, each as the kernel tells of it: its address and its number."""
    found = []
    for path in _TABLES:
        with contextlib.suppress(OSError):
            rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()[1:]]
            found += [f"{row[1]} {row[9]}" for row in rows if len(row) > 9 and row[3] == "0A"]
    return found


def _marked(file: str) -> dict[int, float]:
    """The processes that have inherited our mark, wherever they are in the tree now."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get("MFMARL_SELFTEST_DOORS") == file:
                found[process.pid] = process.create_time()
    return found


# ------------------------------------------------------------------------------------------------- what is watched


def commands(share: float, with_ray: bool) -> list[tuple[str, list[str]]]:
    """(what, words) of every command; those that need what another left come after it. Fewer for a small share."""
    found = [
        ("train", ["train", "congestion", "--num-agents", "8", "--name", "t", *RULES]),
        ("train --ranks 2", ["train", "ising", "--num-agents", "16", "--name", "d", "--ranks", "2", *RULES]),
        ("compare --jobs 2", ["compare", "congestion", "--agents", "mfq,random", "--num-agents", "8", "--seeds", "1",
                              "--jobs", "2", "--no-film", "--name", "c", *RULES]),
        ("train --workers 2", ["train", "mpe2/simple_spread_v3", "--name", "w", "--workers", "2", "--copies", "2",
                               *[w for w in RULES if w not in ("--copies", "1")]]),
        ("solve", ["solve", "beach_bar", "--iterations", "20", "--name", "s", "--quiet"]),
        ("train of two teams", ["train", "schelling", "--agent", "mfq", "--name", "b", *RULES]),
        ("scale", ["scale", "congestion", "--agents", "mfq", "--num-agents", "4,8", "--timed-steps", "5", "--no-quality",
                   "--name", "m", "--quiet"]),
        ("tournament", ["tournament", "runs/b", "--against", "random", "--games", "2", "--horizon", "20",
                        "--name", "o"]),
        ("render", ["render", "runs/d"]),
        ("report", ["report", "runs/c"]),
        ("list", ["list"]),
        ("info", ["info"]),
        ("check-env", ["check-env", "congestion"]),
    ]  # fmt: skip
    if share < 1:
        kept = ("train --ranks 2", "list") if share < 0.2 else ("train --ranks 2", "compare --jobs 2", "list", "solve")
        return [(what, words) for what, words in found if what in kept]
    if with_ray:
        words = ["r" if word == "c" else word for word in dict(found)["compare --jobs 2"]]
        found.append(("compare --engine ray", [*words, "--engine", "ray"]))
    return found


def listeners(order: Order) -> Outcome:
    """G14: every command, with what its processes listen at; beside it what torch and Ray open by themselves."""
    import importlib.util

    with_ray = importlib.util.find_spec("ray") is not None
    every = commands(order.share, with_ray)
    failures, doors, local = [], 0, 0
    not_tried = [] if with_ray or order.share < 1 else ["compare --engine ray (Ray is not installed)"]
    for done, (what, words) in enumerate(every, 1):
        found = watch([sys.executable, "-m", "mfmarl", *words], order.folder)
        if found.exit_code != 0:
            if "is not installed" in found.told or "pip install" in found.told:
                not_tried.append(what)
            else:
                failures.append(f"`mfmarl {' '.join(words)}` left with {found.exit_code}: {found.told[-200:]!r}")
        failures += [f"`mfmarl {' '.join(words)}` can be reached at {door}" for door in found.beyond]
        if found.left:
            failures.append(f"`mfmarl {' '.join(words)}` left {len(found.left)} processes behind")
        doors += len(found.beyond)
        local += len([a for a, _ in found.listening if on_loopback(a)])
        order.watch(done, len(every))
    beside = _others(order.folder, with_ray and order.share >= 1)
    more = f"; not tried: {', '.join(not_tried)}" if not_tried else ""
    return Outcome(
        not failures,
        f"{doors} sockets beyond this machine in {len(every)} commands ({local} on its loopback){more}",
        len(every),
        tuple(failures),
        beside,
        figures={"commands": len(every), "beyond": doors, "loopback": local},
    )


_STORE = (
    "import socket, time, torch.distributed as d; s = socket.socket(); s.bind(('127.0.0.1', 0)); "
    "p = s.getsockname()[1]; s.close(); store = d.TCPStore('127.0.0.1', p, 1, True); time.sleep(1)"
)
_RAY = """
import os, time
os.environ["HOME"] = os.getcwd()  # it leaves a key there
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
time.sleep(3)
ray.shutdown()
"""


def _others(folder: Path, with_ray: bool) -> dict[str, str]:
    """What the usual libraries open, in a process of their own."""
    tried: list[tuple[str, str, Callable[[], bool]]] = [("torch's TCPStore at 127.0.0.1", _STORE, lambda: True)]
    tried += [("ray.init()", _RAY, lambda: with_ray)]
    found = {}
    for name, program, wanted in tried:
        if wanted():
            seen = watch([sys.executable, "-c", program], folder, patience=120.0)
            doors = [a for a, _ in seen.listening if not on_loopback(a)]
            found[name] = f"{len(doors)} sockets on every interface" if seen.exit_code == 0 else "could not be tried"
    return found
