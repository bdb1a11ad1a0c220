"""What a population says of itself, and what it may not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary

from mfmarl.errors import ConfigError
from mfmarl.population.graph import Graph
from mfmarl.population.spec import Spec

SEEN, TWO = Box(-1, 1, (3,)), Discrete(2)


def test_a_lone_group_holds_everyone() -> None:
    spec = Spec(3, SEEN, TWO)
    assert spec.group_sizes == (3,)
    assert spec.group_slices == {"agent": slice(0, 3)}
    assert spec.names == ("agent_0", "agent_1", "agent_2")
    assert spec.group.tolist() == [0, 0, 0]


def test_groups_lie_one_after_the_other() -> None:
    spec = Spec(5, SEEN, TWO, groups=("red", "blue"), group_sizes=(2, 3))
    assert spec.group.tolist() == [0, 0, 1, 1, 1]
    assert spec.group_slices == {"red": slice(0, 2), "blue": slice(2, 5)}
    assert spec.names == ("red_0", "red_1", "blue_0", "blue_1", "blue_2")
    for number, part in enumerate(spec.group_slices.values()):
        assert torch.equal(spec.group[part], torch.full((spec.group_sizes[number],), number))


def test_spaces_give_the_sizes() -> None:
    spec = Spec(1, Box(0, 255, (4, 5, 3), np.uint8), Box(-1, 1, (7,)))
    assert (spec.discrete, spec.num_actions, spec.observation_shape) == (False, 7, (4, 5, 3))
    spec = Spec(1, Discrete(9), Discrete(4))
    assert (spec.discrete, spec.num_actions, spec.observation_shape) == (True, 4, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_agents": 0}, "num_agents must be at least 1"),
        ({"num_agents": 2.5}, "num_agents must be a whole number"),
        ({"num_agents": True}, "num_agents must be a whole number"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"horizon": 10.0}, "horizon must be a whole number"),
        ({"group_sizes": (3,)}, "do not make up 4 agents"),
        ({"groups": ("a", "b"), "group_sizes": (5, -1)}, "do not make up 4 agents"),
        ({"groups": ("a", "b"), "group_sizes": (4, 0)}, "do not make up 4 agents"),
        ({"groups": ("a", "a"), "group_sizes": (2, 2)}, "different names"),
        ({"groups": ("a", "b")}, "do not make up"),
        ({"action_space": MultiBinary(3)}, "action space must be Discrete or Box"),
        ({"action_space": Discrete(3, start=1)}, "action space must start at 0"),
        ({"observation_space": Discrete(3, start=-1)}, "observation space must start at 0"),
        ({"observation_space": MultiBinary(3)}, "observation space must be Discrete or Box"),
        ({"action_space": Box(-1, 1, (2, 2))}, r"shape \(D,\)"),
        ({"action_space": Box(-1, 1, ())}, r"shape \(D,\)"),
        ({"graph": Graph.torus_of((3,))}, "graph has 3 agents"),
        ({"agent_names": ("a", "b", "c", "c")}, "4 different names"),
        ({"agent_names": ("a", "b")}, "4 different names"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Spec(**{"num_agents": 4, "observation_space": SEEN, "action_space": TWO, **changes})


def test_agents_are_numbered_in_32_bits() -> None:
    with pytest.raises(ConfigError, match=r"at most 2\^32 agents"):
        Spec((1 << 32) + 1, Box(0, 1, (1,)), Discrete(2))
