"""`check_env` accuses no environment of other hands, and none of ours, of an error."""

from __future__ import annotations

import sys

import pytest

from mfmarl.selftest.environments import OURS, REAL, checked, stock

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="each is checked in a forked process")

NAMES = stock()
QUICK = [name for name in ("mpe2/simple_v3", "mpe2/simple_crypto_v3", "pettingzoo/classic/rps-v2") if name in NAMES]


def _errors(name: str) -> list[str]:
    verdict = checked(name)
    if verdict is None:
        pytest.skip(f"{name} lacks a package")
    return [code for level, code in verdict if level == "error" and (name, code) not in REAL]


@pytest.mark.parametrize("name", [*QUICK, "minority_game"])
def test_a_few_environments_are_not_accused(name: str) -> None:
    assert _errors(name) == []


@pytest.mark.verify
@pytest.mark.parametrize("name", NAMES)
def test_no_environment_is_accused(name: str) -> None:
    assert _errors(name) == []


def test_there_are_enough_of_them() -> None:
    assert set(OURS) < set(NAMES)
    pytest.importorskip("mpe2")
    pytest.importorskip("magent2")
    assert len(NAMES) >= 25
