"""The compiled loops give the bits of the torch path, whatever the graph, the groups and the dead."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.population import compiled
from mfmarl.population.division import Division
from mfmarl.population.environment import agent_ids
from mfmarl.population.field import Actions, Everyone, Field, Neighbours, parse_field
from mfmarl.population.graph import Graph
from mfmarl.population.open import open_env
from mfmarl.population.ranks import Ranks
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from tests.population.threads import together

pytest.importorskip("numba")

COPIES = 2


def star_and_ring(agents: int) -> Graph:
    """Everybody feels the first and the next; nobody is felt by the last."""
    here = torch.arange(agents)
    source, target = torch.cat([here, here[:-1], here[:1].expand(agents)]), torch.cat([here * 0, here[1:], here])
    keep = target != agents - 1
    return Graph.from_links(agents, source[keep], target[keep])


def of_degree_four(agents: int) -> Graph:
    here = torch.arange(agents)
    ends = [(here + step) % agents for step in (1, 3, 7, -2)]
    return Graph.from_links(agents, here.repeat(4), torch.cat(ends))


def ragged(agents: int) -> Graph:
    """Links one way, of which some have none and some three."""
    here = torch.arange(agents)
    links = [(here[here % 4 > k], (here[here % 4 > k] * 5 + k) % agents) for k in range(3)]
    return Graph.from_links(agents, torch.cat([a for a, _ in links]), torch.cat([b for _, b in links]))


GRAPHS = {
    "ring": lambda: Graph.torus_of((60,)),
    "square": lambda: Graph.torus_of((12, 5)),
    "cube": lambda: Graph.torus_of((3, 4, 5)),
    "regular": lambda: of_degree_four(60),
    "ragged": lambda: ragged(60),
    "star": lambda: star_and_ring(60),
    "none": lambda: Graph.from_links(60, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)),
}


def population(
    graph: Graph | None, actions: int, teams: int = 1, dead: float = 0.0, agents: int = 60
) -> tuple[Spec, Timestep, Tensor]:
    """Agents who have acted at random; a few have not acted yet, and a share is dead."""
    sizes = tuple(agents // teams + (t < agents % teams) for t in range(teams))
    spec = Spec(
        agents, Discrete(actions + 1), Discrete(actions), groups=tuple(f"team{t}" for t in range(teams)),
        group_sizes=sizes, graph=graph,
    )  # fmt: skip
    ids = agent_ids(COPIES, agents)
    key = Key.of(7)
    action = random.integers(key.fold("action"), ids, actions)
    action[random.uniform(key.fold("none yet"), ids) < 0.1] = -1
    alive = random.uniform(key.fold("alive"), ids) >= dead
    zeros, no = torch.zeros(ids.shape), torch.zeros(ids.shape, dtype=torch.bool)
    timestep = Timestep(
        obs=random.integers(key.fold("state"), ids, actions + 1), reward=zeros, alive=alive, acting=alive, legal=None,
        action=action, terminated=no, truncated=no, position=None, step=torch.zeros(COPIES, dtype=torch.int64),
        ended=no[:, 0],
    )  # fmt: skip
    return spec, timestep, ids


def ways(
    monkeypatch: pytest.MonkeyPatch,
    field: Field,
    population: tuple[Spec, Timestep, Tensor],
    agents: slice | None = None,
) -> list[Tensor]:
    """The field by compiled loops, by counts in torch, and from a plane for each class."""
    spec, timestep, ids = population
    found = []
    for word, planes in (("always", False), ("never", False), ("never", True)):
        monkeypatch.setenv("MFMARL_COMPILED", word)
        with monkeypatch.context() as patched:
            if planes:
                patched.setattr(Field, "_counted", lambda *_: None)
            found.append(field(timestep, spec, ids, Key.of(3), agents))
    return found


def assert_same_bits(found: list[Tensor]) -> None:
    for a in found:
        assert a.shape == found[-1].shape
        assert a.dtype == torch.float32
        assert torch.equal(a.contiguous().view(torch.int32), found[-1].contiguous().view(torch.int32))


@pytest.mark.parametrize("dead", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("actions", [2, 3, 4, 7, 8, 30])
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_mean_action_of_the_neighbours_has_the_bits_of_torch(
    graph: str, actions: int, dead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = population(GRAPHS[graph](), actions, dead=dead)
    for rows in (None, slice(0, 60), slice(7, 31), slice(59, 60)):
        assert_same_bits(ways(monkeypatch, Field(Actions(), Neighbours()), where, rows))


@pytest.mark.parametrize("dead", [0.0, 0.3])
@pytest.mark.parametrize("actions", [2, 3, 12])
@pytest.mark.parametrize("graph", GRAPHS)
def test_teams_are_kept_apart_with_the_bits_of_torch(
    graph: str, actions: int, dead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = population(GRAPHS[graph](), actions, teams=3, dead=dead)
    for text in ("typed(actions) over neighbours", "typed(states) over neighbours", "states over neighbours"):
        for rows in (None, slice(13, 37)):
            assert_same_bits(ways(monkeypatch, parse_field(text), where, rows))


@pytest.mark.parametrize("text", ["actions", "states", "typed(actions)", "typed(states)"])
@pytest.mark.parametrize("over", ["everyone", "team"])
@pytest.mark.parametrize("dead", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("actions", [1, 2, 3, 4, 20, 60])
def test_the_mean_over_everyone_has_the_bits_of_torch(
    text: str, over: str, dead: float, actions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for teams in (1, 3):
        where = population(None, actions, teams=teams, dead=dead, agents=61)
        for rows in (None, slice(13, 40), slice(60, 61)):
            assert_same_bits(ways(monkeypatch, parse_field(f"{text} over {over}"), where, rows))


def test_one_who_is_alone_feels_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    where = population(None, 3, agents=1)
    found = ways(monkeypatch, Field(Actions(), Everyone()), where)
    assert_same_bits(found)
    assert not found[0].any()


def test_actions_that_lie_scattered_in_memory_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for graph in (None, GRAPHS["square"]()):
        spec, timestep, ids = population(graph, 3, dead=0.2)
        scattered = timestep._replace(action=timestep.action.T.contiguous().T, alive=timestep.alive.T.contiguous().T)
        field = Field(Actions(), Everyone() if graph is None else Neighbours())
        straight = ways(monkeypatch, field, (spec, timestep, ids))
        assert_same_bits([*ways(monkeypatch, field, (spec, scattered, ids)), *straight])


def test_large_crowds_on_the_cpu_choose_compiled_loops_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv("MFMARL_COMPILED", raising=False)
    assert compiled.chosen(compiled.WORTH, cpu)
    assert not compiled.chosen(compiled.WORTH - 1, cpu)
    assert not compiled.chosen(compiled.WORTH, torch.device("meta"))
    monkeypatch.setenv("MFMARL_COMPILED", "always")
    assert compiled.chosen(1, cpu)
    assert not compiled.chosen(1, torch.device("meta"))
    monkeypatch.setenv("MFMARL_COMPILED", "never")
    assert not compiled.chosen(1 << 30, cpu)
    monkeypatch.setenv("MFMARL_COMPILED", "alwyas")
    with pytest.raises(ConfigError, match="always"):
        compiled.chosen(1, cpu)


def test_without_numba_torch_serves_unless_loops_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_numba", lambda: False)
    monkeypatch.setenv("MFMARL_COMPILED", "auto")
    assert not compiled.chosen(1 << 30, torch.device("cpu"))
    monkeypatch.setenv("MFMARL_COMPILED", "always")
    with pytest.raises(ConfigError, match=r"mfmarl\[fast\]"):
        compiled.chosen(1, torch.device("cpu"))


def test_small_crowds_never_load_numba() -> None:
    program = """
import sys
from mfmarl.population.open import open_env
from mfmarl.population.field import default_field
from mfmarl.random import Key
from tests.population.threads import together
env = open_env("ising", {"num_agents": 100}, 2, "cpu")
t = env.reset(Key.of(0))
t = env.step(t.action)
default_field(env.spec)(t, env.spec, env.ids, Key.of(1))
sys.exit("numba" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("states", [2, 5])
@pytest.mark.parametrize("options", [{}, {"dimension": 1}, {"dimension": 3}, {"graph": "random_regular"},
                                     {"graph": "small_world"}, {"graph": "complete"}], ids=str)  # fmt: skip
def test_spins_are_paid_with_the_bits_of_torch(
    states: int, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for order in ("checkerboard", "synchronous"):
        env = open_env(
            "ising",
            {"num_agents": 60, "states": states, "field": 0.3, "coupling": 0.7, "order": order, **options},
            COPIES,
            "cpu",
        )
        found = []
        for word in ("always", "never"):
            monkeypatch.setenv("MFMARL_COMPILED", word)
            timestep = env.reset(Key.of(5))
            for step in range(4):
                timestep = env.step(random.integers(Key.of(6).fold(step), env.ids, states))
                found.append(timestep.reward)
            found.extend(env.measure().values())
        for mine, torchs in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
            assert_same_bits([mine, torchs])


@pytest.mark.parametrize("dead", [0.0, 0.2, "one"])
@pytest.mark.parametrize("graph", [*GRAPHS, None])
def test_parts_of_a_crowd_on_several_ranks_feel_what_the_whole_one_does(
    graph: str | None, dead: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = dead if isinstance(dead, float) else 0.0
    spec, timestep, ids = population(None if graph is None else GRAPHS[graph](), 3, dead=share)
    timestep.alive[:, 0] &= dead != "one"
    text = "actions over everyone" if graph is None else "actions over neighbours"
    whole = ways(monkeypatch, parse_field(text), (spec, timestep, ids))
    monkeypatch.setenv("MFMARL_COMPILED", "always")

    def part(ranks: Ranks) -> Tensor:
        division = Division(spec, COPIES, ranks)
        here = timestep._replace(action=timestep.action[:, division.here], alive=timestep.alive[:, division.here])
        return parse_field(text)(here, division.local_spec, ids[:, division.here], Key.of(3))

    # One who is dead may be another rank's neighbour, and unknown to it but for the halo.
    assert_same_bits([torch.cat(together(3, part), 1), *whole])
