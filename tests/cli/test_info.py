"""What `mfmarl info` tells: versions, machine, promises, plugins, codes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mfmarl.cli import info
from mfmarl.cli.main import main
from mfmarl.errors import CODES, MfmarlError
from mfmarl.registry import Entry, Plugin


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["info", "--json", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def test_versions_machine_and_promises_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys)
    assert found["versions"]["torch"].startswith("2.") and found["versions"]["mfmarl"]
    assert list(found["promises"]) == ["R1", "R2", "R3", "R4"]
    assert "GiB" in found["machine"]["memory"]
    assert found["repetition"]["digest class"] == info.digest_class()
    assert set(found["extras"]) == set(info.EXTRAS)


def test_what_is_not_installed_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "find_spec", lambda module: None)
    assert info._extra("ray", "ray", "ray") == "not installed: pip install 'mfmarl[ray]'"
    assert info._version("nothing-of-the-sort") == "not installed"


def test_every_code_and_exit_code_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "--codes")
    assert found["codes"] == CODES
    assert {str(kind.exit_code) for kind in MfmarlError.__subclasses__()} <= set(found["exit codes"])
    for kind in MfmarlError.__subclasses__():
        assert kind.code in CODES


def test_the_digest_class_changes_with_what_decides_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    before = info.digest_class()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert info.digest_class() != before


def test_plugins_are_imported_only_to_be_checked_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Entry("torn", "environment", "nothing_of_the_sort:X", origin="torn 1.2", distribution="torn")
    assert "installed" in info._health(Plugin(broken, ""), check=False)
    assert "torn 1.2 cannot be imported" in info._health(Plugin(broken, ""), check=True)
    assert info._health(Plugin(broken, "the name is mfmarl's"), check=True) == "cannot be used: the name is mfmarl's"


@pytest.mark.parametrize("columns", ["20", "80"])
def test_it_can_be_read_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(info, "plugins", lambda kind: (Plugin(Entry("x\x1b[31m", kind, "a:b", origin="[red]y"), "z"),))
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out and "[red]y" in out.replace("\n", "").replace(" ", "")
    assert all(len(line.rstrip()) <= int(columns) for line in out.splitlines())
