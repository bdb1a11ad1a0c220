"""`check_env` against every fault of `FaultyEnv`: found, and called by its name."""

from __future__ import annotations

import sys

import pytest

from mfmarl.selftest import environments
from mfmarl.selftest.environments import PLACES, SHARE_FOUND, Trial, found, trials
from mfmarl.testing.faults import FAULTS, Form

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="faults are let loose in forked processes")

# Of each kind one or two, and what it must be called.
CALLED: dict[tuple[str, Form], str] = {
    ("nan-reward", "parallel"): "reward-not-finite",
    ("string-reward", "aec"): "reward-type",
    ("missing-reward", "parallel"): "reward-missing",
    ("inf-in-an-unbounded-box", "aec"): "observation-not-finite",
    ("observation-outside-its-space", "parallel"): "observation-outside-space",
    ("float64-observation", "parallel"): "observation-dtype",
    ("nan-deep-in-an-observation", "parallel"): "observation-not-finite",
    ("observation-buffer-reused", "parallel"): "observation-changed-later",
    ("read-only-view-that-changes", "aec"): "observation-changed-later",
    ("int-flags", "aec"): "flag-type",
    ("both-flags", "parallel"): "both-flags",
    ("revival", "parallel"): "agent-revived",
    ("vanishing", "aec"): "agent-vanished",
    ("never-ends", "aec"): "no-end",
    ("agents-is-possible-agents", "parallel"): "agents-is-possible-agents",
    ("action-dictionary-emptied", "parallel"): "actions-mutated",
    ("action-overwritten", "aec"): "actions-mutated",
    ("seeds-numpy", "parallel"): "global-random-seeded",
    ("draws-from-torch", "aec"): "global-random-drawn",
    ("unseeded-later", "parallel"): "not-repeatable",
    ("depends-on-the-time", "aec"): "not-repeatable",
    ("depends-on-hashes", "parallel"): "process-decides",
    ("state-of-the-last-episode", "parallel"): "episode-leaks",
    ("changes-the-folder", "parallel"): "changes-folder",
    ("signal-handler", "aec"): "changes-signals",
    ("leaves-threads", "parallel"): "leaves-threads",
    ("short-mask", "parallel"): "mask-length",
    ("mask-of-zeros", "aec"): "mask-empty",
    ("mask-of-twos-in-observation", "parallel"): "mask-value",
    ("action-space-new-each-call", "aec"): "space-new-each-call",
    ("raises-midway", "parallel"): "raises-at-step",
    ("exits", "aec"): "exits",
    ("four-values", "parallel"): "step-returns",
    ("none-info", "aec"): "info-type",
    ("picture-moves-the-game", "parallel"): "rendering-changes-it",
    ("selection-of-nobody", "aec"): "selection-unknown",
    ("rewards-pile-up", "aec"): "cumulative-reward",
    ("last-disagrees", "aec"): "last-disagrees",
    ("observe-moves-the-game", "aec"): "looking-changes-it",
}


@pytest.mark.parametrize(("fault", "form"), CALLED, ids=[f"{fault}-{form}" for fault, form in CALLED])
def test_a_fault_is_found_and_called_by_its_name(fault: str, form: Form) -> None:
    assert CALLED[fault, form] in [code for _, code in found(fault, form, 3, 0)]


@pytest.mark.parametrize("form", ["parallel", "aec"])
def test_the_right_environment_is_not_accused(form: Form) -> None:
    assert [found(None, form, 3, seed) for seed in (0, 1)] == [[], []]


def test_every_fault_is_tried_in_every_form_at_every_place() -> None:
    every = trials()
    assert len(every) == len(PLACES) * sum(len(fault.forms) for fault in FAULTS.values())
    assert len(set(map(str, every))) == len(every)


@pytest.mark.verify
@pytest.mark.parametrize(("at", "seed"), PLACES)
def test_at_least_97_of_100_faults_are_found_and_80_are_errors(at: int, seed: int) -> None:
    some = [trial for trial in trials() if (trial.at, trial.seed) == (at, seed)]
    told = {str(trial): found(trial.fault.name, trial.form, at, seed) for trial in some}
    missed = [name for name, codes in told.items() if not codes]
    assert len(missed) <= (1 - SHARE_FOUND) * len(some), missed
    assert sum(any(level == "error" for level, _ in codes) for codes in told.values()) >= 0.8 * len(some)
    # What an author cannot mean is an error.
    mild = [str(trial) for trial in some if trial.fault.level == "error" and told[str(trial)]]
    mild = [name for name in mild if not any(level == "error" for level, _ in told[name])]
    assert len(mild) <= 6, mild


def test_a_check_that_looks_at_no_values_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import mfmarl.testing.inspection

    monkeypatch.setattr(mfmarl.testing.inspection, "breach", lambda space, value, path="": None)
    assert not [code for _, code in found("nan-observation", "parallel", 3, 0) if code == "observation-not-finite"]
    some = [Trial(FAULTS[name], "parallel", 3, 0) for name in ("short-observation", "observation-outside-its-space")]
    assert not all(environments.found(trial.fault.name, trial.form, 3, 0) for trial in some)
