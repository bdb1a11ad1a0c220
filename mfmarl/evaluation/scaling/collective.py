"""What it costs ranks to add up numbers: measured here between processes of this machine, or given for a network.

One all-reduce of b bytes over M ranks takes

    start + hops(M) latency + share(M) b / bandwidth
    ring:  hops = 2 (M - 1),         share = 2 (M - 1) / M
    tree:  hops = 2 ceil(log2 M),    share = 2

(Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in MPICH",
doi 10.1177/1094342005051521, section 2.) Gloo reduces around a ring whatever the size (`gloo/allreduce.cc`:
UNSPECIFIED is RING); NCCL takes a tree for few bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from mfmarl.errors import ConfigError, RankLost, nearest

SIZES = (1, 16, 256, 4096, 65_536, 1_000_000)
"""Numbers (float32, 4 bytes each) of the all-reduces that are timed."""


@dataclass(frozen=True)
class Network:
    """What lies between ranks."""

    name: str
    latency: float
    """Seconds of one message from a rank to the next, its software included."""
    bandwidth: float
    """Bytes per second, one way."""
    algorithm: Literal["ring", "tree"] = "ring"
    start: float = 0.0
    """Seconds that every operation costs once, whoever takes part."""
    measured: tuple[tuple[int, int, float], ...] = ()
    """(ranks, bytes, seconds) that it was fitted to; empty: it was given."""

    def hops(self, ranks: int) -> int:
        """Messages that one all-reduce waits for, one after the other."""
        if ranks < 2:
            return 0
        return 2 * (ranks - 1) if self.algorithm == "ring" else 2 * math.ceil(math.log2(ranks))

    def share(self, ranks: int) -> float:
        """Bytes that each rank sends in an all-reduce, per byte that is added up."""
        if ranks < 2:
            return 0.0
        return 2 * (ranks - 1) / ranks if self.algorithm == "ring" else 2.0

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds of adding up `size` bytes over so many ranks."""
        if ranks < 2:
            return 0.0
        return self.start + self.hops(ranks) * self.latency + self.share(ranks) * size / self.bandwidth

    def exchange(self, size: float, ranks: int) -> float:
        """Seconds of giving `size` bytes to each of two neighbours, and taking as many: both ways at once."""
        return 0.0 if ranks < 2 else self.start + self.latency + min(2, ranks - 1) * size / self.bandwidth

    def behind(self, wire: Network) -> Network:
        """This software over another wire: the slower of both latencies and of both bandwidths."""
        return replace(
            wire,
            latency=max(self.latency, wire.latency),
            bandwidth=min(self.bandwidth, wire.bandwidth),
            measured=(),
        )

    def to_table(self) -> dict[str, Any]:
        return asdict(self)


PRESETS = {
    # Ours: `measure()` between 2 ranks of the machine that docs/internet_scale.md names.
    "loopback": Network("loopback", latency=1.3e-4, bandwidth=1.3e9),
    # Line rate of IEEE 802.3ae, one way; a message from kernel to kernel takes about 50 us, nearly all of it inside the
    # servers (WWT, "The basics of high-performance networking").
    "10GbE": Network("10GbE", latency=5e-5, bandwidth=1.25e9),
    # Line rate of IEEE 802.3ba; TCP as above.
    "100GbE": Network("100GbE", latency=5e-5, bandwidth=12.5e9),
    # NCCL's own model (src/graph/tuning.cc, commit 01afd20a; a tree, protocol LL): 4.4 us to start, 5.0 us for each step
    # over a network; line rate of HDR, 200 Gbit/s.
    "infiniband": Network("infiniband", latency=5e-6, bandwidth=25e9, algorithm="tree", start=4.4e-6),
    # The same: 0.52 us for each step over NVLink; an H100's 900 GB/s are both ways together.
    "nvlink": Network("nvlink", latency=5.2e-7, bandwidth=450e9, algorithm="tree", start=4.4e-6),
}
"""Networks by name. None is a promise: kernels, switches and neighbours differ; `measure` measures."""


def preset(name: str) -> Network:
    """The network of that name. Raises ConfigError with the nearest one."""
    known = {n.lower(): network for n, network in PRESETS.items()}
    if name.lower() not in known:
        raise ConfigError(f"network={name!r} is not known.{nearest(name, PRESETS)}")
    return known[name.lower()]


def fit(name: str, measured: Sequence[tuple[int, int, float]], algorithm: Literal["ring", "tree"] = "ring") -> Network:
    """The network whose latency and bandwidth come nearest to (ranks, bytes, seconds), by relative error."""
    import numpy as np
    from scipy.optimize import nnls

    shape = Network(name, 0.0, 1.0, algorithm)
    rows = [
        (shape.hops(ranks) / t, shape.share(ranks) * size / t) for ranks, size, t in measured if ranks > 1 and t > 0
    ]
    if len({size for ranks, size, _ in measured if ranks > 1}) < 2:
        raise ConfigError("A network is fitted to all-reduces of at least two sizes between at least two ranks.")
    (latency, per_byte), _ = nnls(np.array(rows), np.ones(len(rows)))
    # Faster than 1e12 bytes a second cannot be told from what it takes to send nothing.
    return replace(shape, latency=float(latency), bandwidth=1 / max(float(per_byte), 1e-12), measured=tuple(measured))


def measure(
    ranks: int = 2, sizes: Sequence[int] = SIZES, repeats: int = 30, timeout: float = 120.0, name: str = "here"
) -> Network:
    """Time all-reduces between `ranks` processes of this machine, over its loopback interface, and fit them.

    Of each size the fastest tenth counts, which the load of others disturbs least: what stragglers add is the cost
    model's. Raises ConfigError for fewer than two ranks, RankLost when one dies or the time is up; no process is left.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or not 2 <= ranks <= 64:
        raise ConfigError(f"ranks={ranks}: an all-reduce is measured between 2 to 64 processes of this machine.")
    with tempfile.TemporaryDirectory(prefix="mfmarl-") as folder, started(ranks, Path(folder) / "store") as children:
        order = json.dumps({"sizes": list(sizes), "repeats": repeats, "timeout": timeout})
        rows = gather(children, order, timeout)["rows"]
    return fit(name, [(ranks, 4 * int(size), seconds) for size, seconds in rows])


@contextlib.contextmanager
def started(
    ranks: int, store: Path, program: Sequence[str] = ("-m", "mfmarl.evaluation.scaling.collective")
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many child processes that are to meet in the file `store`; killed on leaving, whatever happened.

    Each runs Python with `program` and this process's id: it should `die_with_parent`.
    """
    children: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MFMARL_STORE": str(store),
                "OMP_NUM_THREADS": "1",
            }
            environment.pop("GLOO_SOCKET_IFNAME", None)
            children.append(
                subprocess.Popen(
                    [sys.executable, *program, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment,
                )
            )
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.communicate()


def gather(children: Sequence[subprocess.Popen[bytes]], order: str, timeout: float) -> dict[str, Any]:
    """Hand every child the order; what rank 0 reports, as JSON. Raises RankLost when one dies or the time is up."""
    for child in children:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(order.encode() + b"\n")
            child.stdin.flush()
    deadline = time.monotonic() + timeout
    while True:
        codes = [child.poll() for child in children]
        died = next((rank for rank, code in enumerate(codes) if code), None)
        if died is not None:
            _, complaint = children[died].communicate()
            lines = complaint.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RankLost(f"Rank {died} of {len(children)} ended with code {codes[died]}: {lines[-1][:300]}")
        if all(code == 0 for code in codes):
            break
        if time.monotonic() > deadline:
            raise RankLost(f"{len(children)} ranks did not finish their all-reduces within {timeout:g} s.")
        time.sleep(0.02)
    report, _ = children[0].communicate()
    told: dict[str, Any] = json.loads(report)
    return told


def take_part(orders: IO[str], reports: IO[str]) -> None:
    """What a child does: join, add up, tell (rank 0 alone)."""
    order = json.loads(orders.readline())
    sizes, repeats, timeout = order["sizes"], int(order["repeats"]), float(order["timeout"])
    import torch

    from mfmarl.population.ranks import join

    torch.set_num_threads(1)
    ranks = join(timeout=timeout)
    rows = []
    for size in sizes:
        x = torch.ones(size)
        times = []
        for turn in range(repeats + 2):
            ranks.agree(False)  # together
            began = time.perf_counter()
            total = ranks.sum(x)
            if turn >= 2:
                times.append(time.perf_counter() - began)
        if float(total[-1]) != ranks.count:
            raise RankLost(f"{ranks.count} ones add up to {float(total[-1])}.")
        times.sort()
        best = times[: max(1, len(times) // 10)]
        rows.append((size, sum(best) / len(best)))
    if ranks.first:
        reports.write(json.dumps({"rows": rows}) + "\n")
        reports.flush()
    ranks.close()


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when `parent` dies, were it by a signal that nobody can catch."""
    if sys.platform == "linux":
        import ctypes
        import signal

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the wish was heard
            os._exit(1)


def main() -> None:
    """What `python -m mfmarl.evaluation.scaling.collective PARENT` does. Whatever prints, prints to standard error."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    die_with_parent(int(sys.argv[1]))
    take_part(sys.stdin, reports)


if __name__ == "__main__":
    main()
