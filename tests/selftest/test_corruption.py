"""The trial of damaged, forged and hostile checkpoints finds none that slips through, and would find it if one did."""

from __future__ import annotations

import pickle  # noqa: TID251 - to see that the payloads are live
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfmarl.errors import CheckpointError
from mfmarl.learning import checkpoint
from mfmarl.learning.fit import Fit
from mfmarl.selftest import corruption
from mfmarl.selftest.corruption import FORGERIES, Specimen, Tally, forged, hostile, hostile_files, mutations, specimen
from mfmarl.selftest.goal import Order


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return specimen(tmp_path_factory.mktemp("run"))


def _tried(one: Specimen, folder: Path, trials: int, seed: int = 0) -> Tally:
    tally = Tally()
    for _ in mutations(one, folder, Order(folder, seed=seed), trials, tally):
        pass
    return tally


def test_none_of_a_thousand_mutations_slips_through(one: Specimen, tmp_path: Path) -> None:
    tally = _tried(one, tmp_path, 1000)
    assert tally.failures == []
    assert tally.refused + tally.harmless == 1000 and tally.harmless < 20
    assert tally.lone > 50  # which the file format alone lets through


@pytest.mark.verify
def test_a_hundred_thousand_mutations_are_refused(tmp_path: Path) -> None:
    outcome = corruption.mutated_checkpoints(Order(tmp_path, seed=11))
    assert outcome.met, outcome.failures
    assert outcome.trials >= 100_060


def test_every_kind_of_forgery_makes_a_file_and_each_is_refused(one: Specimen, tmp_path: Path) -> None:
    draw, kinds = random.Random(4), dict.fromkeys(range(len(FORGERIES)), 0)
    for number, kind in enumerate(FORGERIES):
        for _ in range(12):
            document, tensors = corruption.document_of(one.found), dict(one.found.tensors)
            told = kind(document, tensors, draw)
            path = tmp_path / "copy.safetensors"
            path.write_bytes(checkpoint.serialise(document, tensors))
            try:
                kinds[number] += any(one.fit.refusals(checkpoint.load(path)))
            except CheckpointError:
                kinds[number] += 1
            assert kinds[number] > 0, told
    assert set(kinds.values()) == {12}


def test_the_specimen_itself_fits_and_loads(one: Specimen, tmp_path: Path) -> None:
    assert one.fit.refusals(one.found) == ([], [])
    tally = Tally()
    tally.judge(corruption.place(tmp_path, one.content, one.found.step, 0), one.found, one.fit, "whole")
    assert (tally.harmless, tally.refused, tally.failures) == (1, 0, [])


def test_nothing_in_a_hostile_file_is_run(tmp_path: Path) -> None:
    count, failures = hostile(tmp_path, tmp_path / "executed", many=3000)
    assert failures == []
    assert count >= 60


def _off(*_: Any) -> None:
    return None


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "no digest of the file": (checkpoint, "_check_digest", _off),
    "no digest of the contents": (checkpoint, "contents_digest", lambda *_: "0" * 64),
    "no names": (Fit, "misfits", lambda *_: []),
    "no numbers": (Fit, "wrong_values", lambda *_: []),
    "NaN": (Fit, "nonfinite", lambda *_: []),
}


@pytest.mark.parametrize("what", ["no digest of the contents", "no names", "no numbers", "NaN"])
def test_a_check_that_is_left_out_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(*PLANTED[what])
    assert _tried(specimen(tmp_path / "run"), tmp_path, 400).failures


def test_a_loader_that_raises_something_else_is_found(
    one: Specimen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(path: Path) -> Any:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "planted")

    monkeypatch.setattr(corruption, "load", strange)
    assert "UnicodeDecodeError instead of CheckpointError" in _tried(one, tmp_path, 3).failures[0]


def test_a_loader_that_runs_a_payload_is_heard_and_seen(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    def running(path: Path) -> None:
        if path.is_file() and path.read_bytes().startswith(b"\x80\x02cposix") and not marker.exists():
            marker.mkdir()  # what loading it does: see below
        raise CheckpointError("refused, too late")

    _, failures = hostile(tmp_path, marker, running, many=10)
    assert any("it ran something: os.mkdir" in failure for failure in failures)
    assert "a payload was run" in failures[-1]


def test_the_payloads_are_live(tmp_path: Path) -> None:
    corpus: Iterator[str] = iter(("pickle", "pickle, protocol 0"))
    for name in corpus:
        marker = tmp_path / name.replace(",", "")
        pickle.loads(hostile_files(marker, 1)[name])
        assert marker.is_dir()


def test_what_is_forged_says_what_was_done(one: Specimen) -> None:
    told, content = forged(one.found, random.Random(3))
    assert told and content != one.content


def test_the_outcome_names_trials_and_what_others_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = corruption.hostile
    monkeypatch.setattr(corruption, "hostile", lambda folder, marker: real(folder, marker, many=10))
    outcome = corruption.mutated_checkpoints(Order(tmp_path, share=0.002))
    assert outcome.met and outcome.trials > 260
    assert "safetensors alone" in outcome.beside and outcome.figures["hostile"] >= 60


def test_growing_memory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruption, "hostile", lambda folder, marker: (60, []))
    monkeypatch.setattr(corruption, "MOST_MEMORY", -1)
    monkeypatch.setattr(corruption, "_SAMPLED", 50)
    assert not corruption.mutated_checkpoints(Order(tmp_path, share=0.002)).met
