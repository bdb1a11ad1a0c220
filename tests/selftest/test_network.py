"""What listens is seen, on loopback and beyond; and a command that opens a door is told of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mfmarl.selftest import network
from mfmarl.selftest.goal import Order

LISTEN = "import socket, time; s = socket.socket(); s.bind(({address!r}, 0)); s.listen(); time.sleep(0.6)"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"


@pytest.mark.parametrize(
    ("address", "beyond"),
    [("127.0.0.1", False), ("0.0.0.0", True)],
)
def test_a_door_is_seen_in_a_process_and_in_its_child(tmp_path: Path, address: str, beyond: bool) -> None:
    program = LISTEN.format(address=address)
    for words in (program, CHILD.format(program=program)):
        found = network.watch([sys.executable, "-S", "-c", words], tmp_path)
        assert {a for a, _ in found.listening} == {address}, found.told
        assert bool(found.beyond) is beyond


def test_a_door_that_is_open_for_a_moment_is_told_by_the_hook(tmp_path: Path) -> None:
    program = "import socket; s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); s.close()"
    found = network.watch([sys.executable, "-c", program], tmp_path)
    assert any("0.0.0.0" in told for told in found.bound) and found.beyond


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::", False),
     ("0.0.0.0", False), ("10.0.0.1", False), ("fe80::1%eth0", False), ("", False), ("somewhere", False)],
)  # fmt: skip
def test_loopback_is_told_from_everywhere(address: str, local: bool) -> None:
    assert network.on_loopback(address) is local


def test_a_command_that_listens_everywhere_misses_the_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.setattr(network, "commands", lambda *_: [("list", ["list"])])
    monkeypatch.setattr(network, "_others", lambda *_: {})
    assert network.listeners(Order(tmp_path)).met
    real = network.watch

    def opened(arguments, folder, **options):
        return real([sys.executable, "-c", LISTEN.format(address="0.0.0.0")], folder, **options)

    monkeypatch.setattr(network, "watch", opened)
    outcome = network.listeners(Order(tmp_path))
    assert outcome.met is False
    assert any("can be reached at 0.0.0.0" in line for line in outcome.failures)
