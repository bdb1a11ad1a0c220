"""Claims: what parses, what holds, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mfmarl.errors import ConfigError
from mfmarl.evaluation.claims import Side, evaluate, parse_claim
from mfmarl.evaluation.results import Comparison, read_comparison
from mfmarl.evaluation.summary import summary

Make = Callable[..., Path]


@pytest.fixture
def comparison(make_comparison: Make) -> Comparison:
    return read_comparison(make_comparison(seeds=6))


def test_a_claim_is_parsed_into_its_parts() -> None:
    claim = parse_claim("ising: mfq magnetisation = theory within 2%")
    assert (claim.environment, claim.left, claim.operator) == ("ising", Side("mfq", "magnetisation"), "=")
    assert claim.right.is_theory and claim.margin == 0.02 and claim.relative
    assert parse_claim("mfq > -0.5").right == Side(number=-0.5)
    assert parse_claim("magent2/battle_v4: red=mfq+blue=rusher > iql").left.agent == "red=mfq+blue=rusher"
    assert parse_claim("mfq:bins=9 >= iql").left.agent == "mfq:bins=9"
    assert not parse_claim("mfq ~ iql within 0.02").relative


@pytest.mark.parametrize(
    "text",
    ["", "mfq", "mfq>iql", "mfq > iql > iac", "theory = mfq", "0.9 < mfq", "mfq = iql", "a b c > iql", "mfq > iql within x",
     "mfq > iql within -1", "mfq > iql within nan", "> iql", "mfq ! iql"],
)  # fmt: skip
def test_what_is_no_claim_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_claim(text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ising: mfq > iql", True),
        ("ising: iql > mfq", False),
        ("ising: iql < mfq", True),
        ("mfq > iql", False),  # on congestion they are equal, and a claim without environment means all
        ("mfq >= iql", True),
        ("ising: iql >= mfq", False),
        ("congestion: mfq ~ iql", True),
        ("congestion: mfq ~ iql within 0.00001", False),
        ("congestion: mfq ~ random", False),
        ("ising: mfq magnetisation = theory", True),
        ("ising: iql magnetisation = theory", False),
        ("ising: mfq magnetisation = theory within 0.1", True),
        ("ising: mfq magnetisation = theory within 0.0001", False),
        ("congestion: mfq = theory within 2%", True),
        ("congestion: random = theory within 2%", False),
        ("ising: mfq > 0.8", True),
        ("ising: mfq > 0.95", False),
        ("ising: random < 0.1", True),
        ("ising: mfq magnetisation > iql", True),
    ],
)
def test_claims_are_judged_by_whole_intervals(comparison: Comparison, text: str, holds: bool) -> None:
    found, sentence = evaluate(parse_claim(text), comparison)
    assert found is holds, sentence
    assert "6 runs" in sentence


def test_two_runs_prove_nothing(make_comparison: Make) -> None:
    comparison = read_comparison(make_comparison(seeds=2))
    for text in (
        "ising: mfq > iql",
        "ising: mfq ~ mfq within 5",
        "ising: mfq magnetisation = theory",
        "ising: mfq > -9",
    ):
        holds, sentence = evaluate(parse_claim(text), comparison)
        assert not holds and "needs 3" in sentence


def test_a_claim_about_an_agent_that_never_finished_fails(make_comparison: Make) -> None:
    broken = tuple(("ising", "mfq", k) for k in range(3))
    comparison = read_comparison(make_comparison(seeds=3, failing=broken))
    for text in ("ising: mfq > iql", "ising: mfq > -9", "ising: iql > mfq"):
        assert not evaluate(parse_claim(text), comparison)[0]


def test_failed_runs_are_told(make_comparison: Make) -> None:
    comparison = read_comparison(make_comparison(seeds=5, failing=(("ising", "iql", 0),)))
    assert "1 of 5 runs of iql failed" in evaluate(parse_claim("ising: mfq > iql"), comparison)[1]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("isnig: mfq > iql", "Did you mean 'ising'"),
        ("mfqq > iql", "Did you mean 'mfq'"),
        ("ising: mfq magnetization = theory", "Did you mean 'magnetisation'"),
        ("magent2/battle_v4: mfq = theory", "no known answer"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(comparison: Comparison, text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        evaluate(parse_claim(text), comparison)


def test_theory_is_of_the_agent_and_of_the_temperature_that_its_runs_end_at(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    """A share that follows a falling temperature: only its end is what theory speaks of, and each has its own."""
    temperature = np.geomspace(1.0, 0.02, 50)
    for agent, law in (("mfq", 0.5), ("iql", 0.8)):
        for seed in range(4):
            share = law + temperature + 0.001 * np.random.Generator(np.random.Philox(key=seed)).normal(size=50)
            known = {"share": {"value": law + 0.02, "source": "by hand", "kind": "equilibrium"}}
            folder = tmp_path / "c" / "ising" / agent / f"seed-{seed}"
            make_run(folder, share, agent=agent, seed=seed, temperature=temperature,
                     measures={"share": share}, references=known)  # fmt: skip
    comparison = read_comparison(tmp_path / "c")
    for agent, law in (("mfq", 0.52), ("iql", 0.82)):
        assert evaluate(parse_claim(f"{agent} share = theory within 1%"), comparison)[0]
        # Against a number, the whole second half counts.
        assert not evaluate(parse_claim(f"{agent} share = {law} within 1%"), comparison)[0]
        found = summary(comparison)["environments"]["ising"]["agents"][agent]["theory"]["share"]
        assert found["distance"] < 0.002
