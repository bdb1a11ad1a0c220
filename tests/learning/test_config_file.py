"""A run's file: all that is wrong with it is told at once, each with its line, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfmarl.errors import ConfigError
from mfmarl.learning.config import parse_toml
from mfmarl.learning.config_file import line_of, placed, read_text, run_config
from mfmarl.learning.run_config import RUN_OPTION_NAMES, Choice, RunConfig, RunOptions
from mfmarl.options import Problem

GOOD = """\
[run]
seed = 3
steps = 40

[environment]
name = "ising"
num_agents = 16

[agents.all]
name = "mfq"
"""


def read(text: str, **keywords: Any) -> RunConfig:
    return run_config(parse_toml(text.encode(), "my.toml"), "my.toml", text, **keywords)


def refused(text: str, **keywords: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **keywords)
    return caught.value


def test_a_good_file_is_the_run_it_describes(tmp_path: Path) -> None:
    wanted = RunConfig(Choice("ising", {"num_agents": 16}), {"all": Choice("mfq")}, RunOptions(seed=3, steps=40))
    assert read(GOOD) == wanted
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    table, text = read_text(tmp_path / "run.toml")
    assert text == GOOD and run_config(table, "run.toml", text) == wanted
    assert RunConfig.from_table(wanted.to_table()) == wanted
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / "none.toml")
    assert caught.value.code == "no-file"


def test_everything_wrong_is_told_in_the_order_of_its_lines() -> None:
    text = GOOD.replace("seed = 3", "sede = 3").replace("num_agents = 16", "num_agents = 0").replace('"mfq"', '"mfqq"')
    lines = str(refused(text + "\n[agnets]\n")).split("\n")
    assert [line.split(": ")[0] for line in lines] == [f"my.toml, line {n}" for n in (2, 7, 10, 12)]
    assert "sede is not an option of RunOptions. Did you mean 'seed'?" in lines[0]
    assert "num_agents must be int" in lines[1]
    assert "Did you mean 'mfq'?" in lines[2]
    assert "unknown table [agnets], expected [run], [environment] and [agents.<group>]. Did you mean" in lines[3]


def test_a_table_like_no_other_is_answered_without_a_guess() -> None:
    error = refused(GOOD + "[zzzzzz]\n")
    assert error.code == "unknown-option" and str(error).endswith("[agents.<group>].")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (GOOD.replace('name = "mfq"', ""), "missing-option", '[agents.all]: it needs a name, for example name = "mfq".'),
        (GOOD.replace('"mfq"', "3"), "missing-option", "for example name = \"mfq\", not 3."),
        (GOOD.replace('name = "ising"', ""), "missing-option", 'for example name = "ising".'),
        (GOOD.split("[environment]")[0], "missing-option", "[agents.all] is missing"),
        (GOOD.replace("[agents.all]", "[agents]"), "missing-option", "[agents.name]: it needs a name"),
        (GOOD.replace('[agents.all]\nname = "mfq"', "[agents]"), "missing-option", "[agents.all] is missing"),
        ('agents = "mfq"\nenvironment = "ising"\n', "missing-option", "[environment]: it needs a name"),
        (GOOD.replace('"ising"', '"pettingzo/x"'), "unknown-name", "[environment]: Unknown environment 'pettingzo/x'"),
        (GOOD.replace('"ising"', '"theirs.py:World"'), "untrusted-file", "This configuration plays theirs.py:World"),
        (GOOD.replace("seed = 3", "seed = -1"), "bounds", "seed must be int"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_code_and_says_what_is_wanted(text: str, code: str, words: str) -> None:
    error = refused(text)
    assert error.code == code and words in str(error)


def test_options_wait_for_whoever_adds_to_them_unless_the_file_is_the_whole() -> None:
    text = GOOD.replace("num_agents = 16", "num_agents = 0").replace('"mfq"', '"mfq"\nnothing = 1')
    assert read(text, whole=False).environment.options == {"num_agents": 0}
    assert len(str(refused(text)).split("\n")) == 2


def test_a_twin_is_checked_with_what_makes_it_one() -> None:
    assert read(GOOD.replace('"mfq"', '"iql"')).agents["all"] == Choice("iql")
    assert "nothing is not an option" in str(refused(GOOD.replace('"mfq"', '"iql"\nnothing = 1')))


def test_a_third_partys_options_are_asked_when_it_is_made() -> None:
    text = GOOD.replace('"ising"\nnum_agents = 16', '"pettingzoo/sisl/pursuit-v5"\nwhatever = 1')
    assert read(text).environment == Choice("pettingzoo/sisl/pursuit-v5", {"whatever": 1})


LINES = """\
# run.seed = 1
top = 1
[run]
  seed = 3   # the first
"steps" = 40
'copies'=2
seed = 5

[ agents . all ]  # spaces
bins . low = 1
[[many]]
x = 1
[a.b.c]
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("top", 2),
        ("run", 3),
        ("run.seed", 4),
        ("run.steps", 5),
        ("run.copies", 6),
        ("run.nothing", 3),
        ("run.seed.deeper.still", 4),
        ("run.steps[3]", 5),
        ("agents", 9),
        ("agents.all", 9),
        ("agents.all.bins.low", 10),
        ("agents.red", 9),
        ("many.x", 12),
        ("a", 13),
        ("a.b", 13),
        ("a.b.c.d", 13),
        ("nothing", 0),
        ("", 0),
    ],
)
def test_the_line_of_a_key_is_where_it_stands_else_where_its_table_does(key: str, line: int) -> None:
    assert line_of(LINES, key) == line
    for quotes in ('"""', "'''"):
        assert line_of(f"{LINES}x = {quotes}\nrun.seed = 1\n{quotes}\n", key) == 0


def test_what_has_no_line_comes_first_and_names_the_file_alone() -> None:
    problems = [Problem("b", "usage", "run.steps"), Problem("a", "usage", "run.seed"), Problem("c", "usage", "gone")]
    assert [p.text for p in placed(problems, "x.toml", LINES)] == [
        "x.toml: c",
        "x.toml, line 4: a",
        "x.toml, line 5: b",
    ]


# A run as one value


def test_intervals_are_a_fiftieth_of_the_run_and_at_most_a_hundred_steps() -> None:
    assert RunOptions(steps=2000).report_interval == 40 and RunOptions(steps=2000).evaluation_interval == 40
    assert RunOptions(steps=10).report_interval == 1
    assert RunOptions(steps=10**6).evaluation_interval == 100
    assert RunOptions(report_every=7).report_interval == 7 and RunOptions(report_every=7).evaluation_interval == 7
    assert RunOptions(report_every=7, evaluation_steps=300).evaluation_interval == 300
    assert RUN_OPTION_NAMES[:3] == ("seed", "steps", "copies")


def test_the_table_of_a_run_reads_back_equal_and_anything_else_is_refused() -> None:
    config = RunConfig(Choice("ising", {"num_agents": 4}), {"red": Choice("mfq", {"bins": 3}), "blue": Choice("iql")})
    table = config.to_table()
    assert table["environment"] == {"name": "ising", "num_agents": 4}
    assert table["agents"] == {"red": {"name": "mfq", "bins": 3}, "blue": {"name": "iql"}}
    more: dict[str, Any] = {"versions": {}, "command": {}, "fork": {}}
    assert RunConfig.from_table({**table, **more}) == config
    assert RunConfig.from_table({k: v for k, v in table.items() if k != "run"}).run == RunOptions()
    for wrong, words in (
        ({"zoo": {}}, r"config\.toml: unknown table \[zoo\]"),
        ({"agents": None}, r"\[agents\.all\] is missing"),
        ({"agents": {"red": "mfq"}}, r'\[agents\.red\] needs a name, for example name = "ising"'),
        ({"environment": {"name": 3}}, r"\[environment\] needs a name"),
        ({"agents": {}}, "A run needs an agent"),
        ({"run": {"sede": 1}}, r"config\.toml: \[run\]: sede is not an option"),
    ):
        with pytest.raises(ConfigError, match=words):
            RunConfig.from_table({**table, **wrong})


def test_a_file_that_only_the_configuration_names_is_not_played() -> None:
    RunConfig(Choice("ising"), {"all": Choice("mfq")}).demand_typed("x")
    for config in (
        RunConfig(Choice("theirs.py"), {"all": Choice("mfq")}),
        RunConfig(Choice("ising"), {"all": Choice("mfq"), "red": Choice("theirs.py:A")}),
    ):
        with pytest.raises(ConfigError, match=r"x plays theirs\.py") as caught:
            config.demand_typed("x")
        assert caught.value.code == "untrusted-file"
