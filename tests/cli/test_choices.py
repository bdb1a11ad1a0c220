"""Which option belongs to whom: variants keep their own, everybody else takes what is given to all."""

from __future__ import annotations

import pytest

from mfmarl.cli.choices import assign, parse_agents, parse_environments
from mfmarl.errors import ConfigError


def test_variants_of_an_environment_keep_their_own_options() -> None:
    environments = parse_environments("ising:num-agents=16,ising:coupling=-1, congestion")
    assert list(environments) == ["ising:num-agents=16", "ising:coupling=-1", "congestion"]
    given, _ = assign([("num_agents", "25")], environments, parse_agents("mfq"))
    assert given["ising:num-agents=16"].options == {"num_agents": 16}
    assert given["ising:coupling=-1"].options == {"coupling": -1.0, "num_agents": 25}
    assert given["congestion"].options == {"num_agents": 25}


def test_variants_of_an_agent_keep_their_own_options() -> None:
    agents = parse_agents("mfq:bins=9:temperature=geometric(1, 0.02),mfq,iql")
    _, given = assign([("bins", "3"), ("agent.field", "nothing")], parse_environments("ising"), agents)
    label = "mfq:bins=9:temperature=geometric(1, 0.02)"
    assert given[label]["all"].options == {"bins": 9, "temperature": "geometric(1, 0.02)", "field": "nothing"}
    assert given["mfq"]["all"].options == {"bins": 3, "field": "nothing"}
    assert given["iql"]["all"].options == {"bins": 3}


def test_what_is_typed_beside_a_file_replaces_what_the_file_says() -> None:
    """A config or a run that goes on: an option that the file names is given anew, not passed over."""
    environments, agents = parse_environments("ising:num-agents=16"), parse_agents("mfq:bins=9")
    pairs = [("num_agents", "25"), ("bins", "3")]
    environment, team = assign(pairs, environments, agents, ("environments", "agents"))
    assert environment["ising:num-agents=16"].options == {"num_agents": 25}
    assert team["mfq:bins=9"]["all"].options == {"bins": 3}


def test_a_comma_within_brackets_is_not_between_names() -> None:
    assert list(parse_agents("mfq:hidden=(8, 8),iql:hidden=(4,4)")) == ["mfq:hidden=(8, 8)", "iql:hidden=(4,4)"]
    team = parse_agents("red=mfq:bins=9+blue=rusher")["red=mfq:bins=9+blue=rusher"]
    assert (team["red"].name, team["red"].options, team["blue"].name) == ("mfq", {"bins": 9}, "rusher")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ising:coupling", "name=value"),
        ("ising:couplng=1", "coupling"),
        ("ising:coupling=strong", "coupling"),
        ("isng:coupling=1", "ising"),
        ("ising:coupling=1,ising:coupling=1", "twice"),
        (" , ", "No environment"),
    ],
)
def test_a_wrong_variant_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_environments(text)


def test_a_name_that_could_be_two_things_is_asked_about() -> None:
    environments, agents = parse_environments("ising"), parse_agents("mfq,iql")
    with pytest.raises(ConfigError, match=r"--env\.field or --agent\.field"):
        assign([("field", "0.1")], environments, agents)
    given, players = assign([("env.field", "0.1"), ("agent.field", "actions over everyone")], environments, agents)
    assert given["ising"].options == {"field": 0.1}
    assert players["mfq"]["all"].options == {"field": "actions over everyone"}
    assert players["iql"]["all"].options == {}


def test_what_learners_have_is_not_given_to_the_scripted() -> None:
    agents = parse_agents("red=mfq+blue=rusher")
    environments = parse_environments("magent2/battle_v4")
    _, given = assign([("temperature", "0.1")], environments, agents)
    assert given["red=mfq+blue=rusher"]["red"].options == {"temperature": "0.1"}
    assert given["red=mfq+blue=rusher"]["blue"].options == {}
    _, given = assign([("rusher.temperature", "0.1")], environments, agents)
    assert given["red=mfq+blue=rusher"]["blue"].options == {"temperature": "0.1"}
    _, given = assign([("temperature", "0.1")], environments, parse_agents("rusher"))
    assert given["rusher"]["all"].options == {"temperature": "0.1"}
