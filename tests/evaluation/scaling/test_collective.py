"""All-reduces between processes of this machine: what they cost, where they listen, and that nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfmarl.errors import ConfigError, RankLost
from mfmarl.evaluation.scaling import collective
from mfmarl.evaluation.scaling.collective import PRESETS, Network, fit, gather, measure, preset, started

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_ring_waits_for_twice_its_length_and_a_tree_for_twice_its_height() -> None:
    ring, tree = Network("r", 1.0, 10.0), Network("t", 1.0, 10.0, "tree", start=3.0)
    assert [ring.all_reduce(0, m) for m in (1, 2, 3, 64)] == [0, 2, 4, 126]
    assert [tree.all_reduce(0, m) for m in (1, 2, 3, 64)] == [0, 5, 7, 15]
    # Each rank sends (M - 1)/M of the bytes twice: once to be added, once added up.
    assert ring.all_reduce(40, 4) == pytest.approx(6 + 2 * 0.75 * 40 / 10)
    assert tree.all_reduce(40, 4) == pytest.approx(3 + 4 + 8)
    assert [ring.exchange(20, m) for m in (1, 2, 3, 9)] == [0, 3, 5, 5]


def test_latency_and_bandwidth_are_fitted_over_six_decades() -> None:
    truth = Network("truth", 5e-5, 2e9)
    rows = [(m, 4 * n, truth.all_reduce(4 * n, m)) for m in (2, 5) for n in collective.SIZES]
    found = fit("found", rows)
    assert found.latency == pytest.approx(5e-5, rel=1e-6)
    assert found.bandwidth == pytest.approx(2e9, rel=1e-6)
    assert found.measured == tuple(rows)
    with pytest.raises(ConfigError, match="at least two sizes"):
        fit("one", rows[:1])


def test_times_that_do_not_grow_tell_of_a_bandwidth_beyond_all_and_are_json() -> None:
    flat = fit("flat", [(2, 4, 1e-4), (2, 4000, 1e-4), (2, 400_000, 0.9e-4)])
    assert flat.bandwidth == pytest.approx(1e12)
    assert Network(**json.loads(json.dumps(flat.to_table(), allow_nan=False))).latency == flat.latency


def test_a_network_is_found_by_name_or_the_nearest_is_told() -> None:
    assert preset("INFINIBAND") is PRESETS["infiniband"]
    with pytest.raises(ConfigError, match="Did you mean 'nvlink'"):
        preset("nvlin")


def test_software_over_another_wire_is_as_slow_as_the_slower_of_both() -> None:
    here = Network("here", latency=2e-4, bandwidth=3e9)
    over = here.behind(PRESETS["10GbE"])
    assert (over.name, over.latency, over.bandwidth) == ("10GbE", 2e-4, 1.25e9)
    assert here.behind(PRESETS["100GbE"]).bandwidth == 3e9


def test_two_processes_are_measured_and_gone() -> None:
    network = measure(2, sizes=(1, 1000, 300_000), repeats=12)
    assert 1e-6 < network.latency < 0.1
    assert 1e6 < network.bandwidth < 1e12
    assert [(ranks, size) for ranks, size, _ in network.measured] == [(2, 4), (2, 4000), (2, 1_200_000)]
    assert _children() == []


@pytest.mark.parametrize("ranks", [1, 0, -3, 65, True])
def test_fewer_than_two_ranks_have_nothing_to_add_up(ranks: int) -> None:
    with pytest.raises(ConfigError, match="between 2 to 64 processes"):
        measure(ranks)


@linux
def test_nothing_listens_but_on_the_loopback_interface(tmp_path: Path) -> None:
    order = json.dumps({"sizes": [1], "repeats": 3, "timeout": 60})
    with started(2, tmp_path / "store") as children:
        # One rank waits for the other: its socket is open.
        assert children[0].stdin is not None
        children[0].stdin.write(order.encode() + b"\n")
        children[0].stdin.flush()
        deadline = time.monotonic() + 60
        while not (listening := _listening(children[0].pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert listening, "no rank ever listened: nothing was seen"
        assert {address for address, _ in listening} == {"127.0.0.1"}, listening


@linux
def test_a_rank_that_dies_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    order = json.dumps({"sizes": [1000], "repeats": 1_000_000, "timeout": 60})
    with pytest.raises(RankLost, match=r"Rank 1 of 2 ended with code -9"), started(2, tmp_path / "store") as children:
        os.kill(children[1].pid, signal.SIGKILL)
        gather(children, order, 60)
    assert all(child.returncode is not None for child in children) and _children() == []


def test_ranks_that_never_finish_are_ended_in_time(tmp_path: Path) -> None:
    order = json.dumps({"sizes": [1], "repeats": 100_000_000, "timeout": 60})
    began = time.monotonic()
    with pytest.raises(RankLost, match="did not finish"), started(2, tmp_path / "store") as children:
        gather(children, order, 1.0)
    assert time.monotonic() - began < 20
    assert all(child.returncode is not None for child in children)


def test_what_a_rank_complained_of_is_told(tmp_path: Path) -> None:
    with pytest.raises(RankLost, match="ended with code 1: .*sizes"), started(2, tmp_path / "store") as children:
        gather(children, json.dumps({"timeout": 5}), 60)


@linux
def test_no_rank_outlives_who_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from mfmarl.evaluation.scaling.collective import started\n"
        f"with started(2, pathlib.Path({str(tmp_path / 'store')!r})) as children:\n"
        "    print(*[c.pid for c in children], flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    for pid in pids:  # each has said that it wants to die with its parent, or will see that it has none
        assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _children() -> list[int]:
    """Ranks that this process has started and that still run."""
    if sys.platform != "linux":
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                ours = b"scaling.collective" in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and ours:
                found.append(int(entry.name))
    return found


def _listening(pid: int) -> list[tuple[str, int]]:
    """(address, port) of every TCP socket on which a process listens, of both families."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            sockets.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                address, port = words[1].split(":")
                plain = ".".join(str(b) for b in reversed(bytes.fromhex(address))) if table == "tcp" else address
                found.append((plain, int(port, 16)))
    return found
