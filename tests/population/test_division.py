"""A population divided over ranks does, bit for bit, what the whole one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.population.division import Division
from mfmarl.population.field import parse_field
from mfmarl.population.graph import Graph
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import lookup
from tests.population.threads import together

SPLITS = [1, 2, 3, 5]
GAMES = {
    "ising": ("ising", {"num_agents": 36}),
    "synchronous": ("ising", {"num_agents": 35, "shape": (5, 7), "order": "synchronous", "sight": "neighbours"}),
    "ring": ("ising", {"num_agents": 7, "dimension": 1, "order": "partial"}),
    "few rows": ("ising", {"num_agents": 12, "shape": (3, 4), "order": "sequential"}),
    "potts on a random graph": ("ising", {"num_agents": 22, "graph": "random_regular", "degree": 3, "states": 3}),
    "complete": ("ising", {"num_agents": 9, "graph": "complete", "order": "synchronous"}),
    "small world": ("ising", {"num_agents": 30, "graph": "small_world", "order": "synchronous"}),
    "beach": ("beach_bar", {"num_agents": 23}),
    "epidemic": ("susceptible_infected", {"num_agents": 17}),
    "crowds that pass": ("two_shores", {"num_agents": 13}),
    "graphon": ("graphon_epidemic", {"num_agents": 21}),
    "prey": ("predator_prey", {"num_agents": 9}),
    "seen crowd": ("crowd_modelling", {"num_agents": 19, "sight": "crowd"}),
    "congestion": ("congestion", {"num_agents": 11}),
    "squeeze": ("gaussian_squeeze", {"num_agents": 10}),
    "stag": ("stag_hunt", {"num_agents": 8}),
    "dilemma": ("prisoners_dilemma", {"num_agents": 8, "meetings": 3}),
    "minority": ("minority_game", {"num_agents": 9}),
    "foraging": ("foraging", {"num_agents": 12}),
    "collective": ("spin_collective", {"num_agents": 16}),
}


def rules(game):
    name, options = GAMES[game]
    return lookup("environment", name).load()(**options)


FIELDS = ["actions over everyone", "typed(actions) over everyone", "moments(2) over everyone", "actions over team",
          "states over everyone", "joint(actions, moments(1)) over everyone"]  # fmt: skip


def play(env, steps, copies, ranks=None, by_agents=True, fields=FIELDS):
    """Everything that happens, of the whole population: on the first rank."""
    options = {} if ranks is None else {"ranks": ranks, "by_agents": by_agents}
    sim = Simulation(env, copies, **options)
    division = sim.division
    found = []
    t = sim.reset(Key.of(5))
    for step in range(steps):
        for text in fields:
            if "neighbours" in text and sim.spec.graph is None:
                continue
            felt = parse_field(text)(t, sim.spec, sim.ids, Key.of(1))
            found.append((text, division.gather(felt, True)))
        found += [(f"measure {n}", division.gather(m, False)) for n, m in sim.measure().items()]
        action = random.integers(Key.of(9).fold(step), sim.ids, sim.spec.num_actions)
        t = sim.step(action)
        found += [("obs", division.gather(t.obs, True)), ("reward", division.gather(t.reward, True)),
                  ("acting", division.gather(t.acting, True))]  # fmt: skip
        t = sim.restart(t)
    found += sorted(sim.state_dict().items())
    return found


def same(whole, parts):
    assert len(whole) == len(parts)
    for (name, x), (other, y) in zip(whole, parts, strict=True):
        assert name == other
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name


@pytest.mark.parametrize("game", GAMES)
def test_a_population_divided_by_agents_is_the_whole_one_bit_for_bit(game):
    env = rules(game)
    fields = [*FIELDS, "actions over neighbours", "typed(moments(1)) over neighbours"]
    fields += ["grid(3) over everyone"] if game == "ising" else []
    whole = play(env, 4, 2, fields=fields)
    for count in SPLITS[1:]:
        if count <= env.num_agents:
            same(whole, together(count, lambda ranks: play(env, 4, 2, ranks, fields=fields))[0])


@pytest.mark.parametrize("game", ["ising", "beach", "congestion"])
def test_copies_divided_are_the_whole_batch_bit_for_bit(game):
    env = rules(game)
    whole = play(env, 4, 5)
    for count in SPLITS[1:]:
        same(whole, together(count, lambda ranks: play(env, 4, 5, ranks, by_agents=False))[0])


def test_a_divided_population_goes_on_from_the_whole_ones_state_and_back():
    env = rules("ising")

    def begin(sim, steps):
        t = sim.reset(Key.of(5))
        return on(sim, t, 0, steps)

    def on(sim, _, first, last):
        for step in range(first, last):
            sim.restart(sim.step(random.integers(Key.of(9).fold(step), sim.ids, 2)))
        return sim.state_dict()

    whole = Simulation(env, 2)
    middle, end = begin(whole, 3), None
    end = on(whole, whole.timestep, 3, 6)

    def go_on(ranks):
        sim = Simulation(env, 2, ranks=ranks)
        return on(sim, sim.load_state_dict(middle), 3, 6)

    for count in (2, 3):
        found = together(count, go_on)[0]
        assert all(torch.equal(end[name], found[name]) for name in end)
    again = Simulation(env, 2)
    middle = together(3, lambda ranks: begin(Simulation(env, 2, ranks=ranks), 3))[0]
    found = on(again, again.load_state_dict(middle), 3, 6)
    assert all(torch.equal(end[name], found[name]) for name in end)


def test_what_travels_in_a_step_does_not_grow_with_the_crowd():
    def sent(agents):
        def count(ranks):
            sim = Simulation(lookup("environment", "beach_bar").load()(num_agents=agents), 1, ranks=ranks)
            t = sim.reset(Key.of(0))
            ranks.sent.clear()
            parse_field("actions over everyone")(t, sim.spec, sim.ids, Key.of(1))
            sim.step(torch.zeros_like(sim.ids))
            return dict(ranks.sent)

        return together(2, count)[0]

    assert sent(10) == sent(1000)


def test_a_torus_sends_two_rows():
    def count(ranks):
        env = lookup("environment", "ising").load()(num_agents=600, shape=(20, 30), order="synchronous")
        sim = Simulation(env, 1, ranks=ranks)
        sim.reset(Key.of(0))
        ranks.sent.clear()
        sim.spec.graph.neighbour_sum(torch.ones(1, sim.spec.num_agents, dtype=torch.int8))
        return dict(ranks.sent)

    assert together(3, count) == [{"halo": 2 * 30}] * 3


def test_every_agent_is_on_one_rank_and_a_team_may_be_smaller_than_the_ranks():
    for count in (2, 3, 5):

        def here(ranks):
            spec = Spec(8, *_spaces(), groups=("few", "many"), group_sizes=(2, 6))
            return Division(spec, 1, ranks).local_spec, Division(spec, 1, ranks).here

        found = together(count, here)
        assert sorted(torch.cat([numbers for _, numbers in found]).tolist()) == list(range(8))
        sizes = [spec.num_agents for spec, _ in found]
        assert max(sizes) - min(sizes) <= 1
        assert sum(spec.group_sizes[0] for spec, _ in found) == 2


def _spaces() -> tuple[Any, Any]:
    from gymnasium.spaces import Box, Discrete

    return Box(0.0, 1.0, (1,)), Discrete(2)


def test_more_ranks_than_agents_or_copies_are_refused():
    with pytest.raises(ConfigError, match="3 ranks cannot share 2 agents: give at most 2 ranks"):
        together(3, lambda ranks: Division(Spec(2, *_spaces()), 9, ranks))
    with pytest.raises(ConfigError, match="3 ranks cannot share 2 copies"):
        together(3, lambda ranks: Division(Spec(9, *_spaces()), 2, ranks, by_agents=False))


@pytest.mark.parametrize("name", ["flocking", "t_maze"])
def test_rules_that_need_everybody_in_one_place_say_so(name):
    env = lookup("environment", name).load()(num_agents=6)
    with pytest.raises(ConfigError, match=r"cannot be divided by agents.*--divide copies"):
        together(2, lambda ranks: Simulation(env, 2, ranks=ranks))


@pytest.mark.parametrize("text", ["actions over sampled(2)"])
def test_fields_that_need_everybody_in_one_place_say_so(text):
    env = rules("beach")

    def feel(ranks):
        sim = Simulation(env, 1, ranks=ranks)
        return parse_field(text)(sim.reset(Key.of(0)), sim.spec, sim.ids, Key.of(1))

    with pytest.raises(ConfigError, match="cannot be divided by agents"):
        together(2, feel)


@pytest.mark.parametrize("seed", range(6))
def test_sums_over_any_graph_are_those_of_the_whole(seed):
    n = 14
    generator = random.generator(Key.of(seed))
    source, target = torch.randint(n, (2, 30 + 20 * seed), generator=generator)
    graph = Graph.from_links(n, source, target)
    x = torch.randint(-5, 5, (2, n, 3), generator=generator)
    whole = graph.neighbour_sum(x)
    spec = Spec(n, *_spaces(), graph=graph)

    def part(ranks):
        division = Division(spec, 2, ranks)
        return division.gather(division.local_spec.graph.neighbour_sum(x[:, division.here]), True)

    for count in SPLITS[1:]:
        assert torch.equal(together(count, part)[0], whole)


def test_rows_of_the_whole_population_are_found_where_they_live():
    spec = Spec(8, *_spaces(), groups=("few", "many"), group_sizes=(2, 6))
    for by_agents in (True, False):
        for team in ("few", "many", "all"):

            def find(ranks, by_agents=by_agents, team=team):
                division = Division(spec, 4, ranks, by_agents)
                rows = torch.arange(division.rows(team))
                inside, place = division.find(rows, team)
                return rows[inside], division.row_numbers(team)[place], division.row_numbers(team)

            found = together(3, find)
            for mine, placed, numbers in found:
                assert torch.equal(mine, placed) and torch.equal(mine, numbers)
            many = 4 * ({"few": 2, "many": 6, "all": 8}[team])
            assert sorted(torch.cat([mine for mine, *_ in found]).tolist()) == list(range(many))
