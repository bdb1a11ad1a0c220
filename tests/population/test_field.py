"""Every feature over every average against sums written out agent by agent, and the words that name them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.population.environment import agent_ids
from mfmarl.population.field import (
    Actions,
    Average,
    Everyone,
    Feature,
    Field,
    Function,
    Joint,
    Moments,
    Nearby,
    Neighbours,
    Nothing,
    Sampled,
    States,
    _sum,
    default_field,
    parse_field,
)
from mfmarl.population.graph import Graph
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key, integers, normal, uniform
from tests.statistical import beyond, statistical

KEY = Key.of(77)


def moment(
    spec: Spec, copies: int, seed: int, deaths: float = 0.0, dims: int = 2, first_copy: int = 0
) -> tuple[Timestep, Tensor]:
    """A timestep of random actions, observations, positions and deaths; some have not acted yet."""
    key, ids = Key.of(seed), agent_ids(copies, spec.num_agents, first_copy=first_copy)
    alive = uniform(key.fold("alive"), ids) >= deaths
    if spec.discrete:
        action = integers(key.fold("action"), ids, spec.num_actions + 1) - 1
    else:
        action = normal(key.fold("action"), ids, spec.num_actions)
        action[uniform(key.fold("unacted"), ids) < 0.1] = math.nan
    if isinstance(spec.observation_space, Discrete):
        obs = integers(key.fold("obs"), ids, int(spec.observation_space.n))
    else:
        size = int(torch.Size(spec.observation_shape).numel())
        obs = normal(key.fold("obs"), ids, size).reshape(*ids.shape, *spec.observation_shape)
        obs[~alive] = math.nan  # whatever an environment leaves in the slots of the dead
    position = normal(key.fold("position"), ids, dims) * 1.5
    zero, never = torch.zeros(copies, dtype=torch.int64), torch.zeros_like(alive)
    return (
        Timestep(obs, torch.zeros(ids.shape), alive, alive, None, action, never, never, position, zero, zero.bool()),
        ids,
    )


def others(
    field: Field, t: Timestep, spec: Spec, ids: Tensor, copy: int, i: int, links: set[tuple[int, int]]
) -> list[int]:
    """Whom agent i of that copy feels, as the definitions say it; with repetitions."""
    n, over = spec.num_agents, field.over
    if isinstance(over, Everyone):
        return [j for j in range(n) if j != i and (not over.same or spec.group[j] == spec.group[i])]
    if isinstance(over, Neighbours):
        return [j for j in range(n) if (i, j) in links]
    if isinstance(over, Nearby):
        assert t.position is not None
        place = t.position[copy]
        return [j for j in range(n) if j != i and float((place[i] - place[j]).square().sum()) <= over.radius**2]
    assert isinstance(over, Sampled)
    drawn = []
    for draw in range(over.k if n > 1 else 0):
        ahead = 1 + int(random.integers(KEY.fold("sampled", draw), ids[copy : copy + 1, i : i + 1], n - 1))
        drawn.append((i + ahead) % n)
    return drawn


def row(feature: Feature, t: Timestep, spec: Spec, copy: int, j: int) -> list[float]:
    """One agent's feature in plain Python."""
    if isinstance(feature, Joint):
        return [x for part in feature.parts for x in row(part, t, spec, copy, j)]
    action = t.action[copy, j]
    if isinstance(feature, Actions):
        if spec.discrete:
            return [float(int(action) == a) for a in range(spec.num_actions)]
        return [0.0 if math.isnan(x) else x for x in action.tolist()]
    if isinstance(feature, Moments):
        if spec.discrete:
            base = [max(int(action), 0) / max(spec.num_actions - 1, 1)]
        else:
            base = [0.0 if math.isnan(x) else x for x in action.tolist()]
        return [x**p for p in range(1, feature.k + 1) for x in base]
    if isinstance(feature, States):
        if isinstance(spec.observation_space, Discrete):
            return [float(int(t.obs[copy, j]) == s) for s in range(int(spec.observation_space.n))]
        return t.obs[copy, j].reshape(-1).tolist()
    assert isinstance(feature, Function)
    return feature.function(t, spec)[copy, j].tolist()


def written_out(field: Field, t: Timestep, spec: Spec, ids: Tensor) -> Tensor:
    """The field by its definition: loops over everybody's everybody, in double precision."""
    links = set() if spec.graph is None else {(int(a), int(b)) for a, b in spec.graph.links().tolist()}
    width = field.of.size(spec)
    kinds = range(len(spec.groups)) if field.typed else (None,)
    out = torch.zeros((*ids.shape, field.size(spec)), dtype=torch.float64)
    for copy in range(len(ids)):
        for i in range(spec.num_agents):
            if not t.alive[copy, i]:
                continue
            felt = [j for j in others(field, t, spec, ids, copy, i, links) if t.alive[copy, j]]
            columns: list[float] = []
            for kind in kinds:
                rows = [row(field.of, t, spec, copy, j) for j in felt if kind is None or spec.group[j] == kind]
                columns += [sum(c) / len(rows) for c in zip(*rows, strict=True)] if rows else [0.0] * width
            out[copy, i] = torch.tensor(columns, dtype=torch.float64)
    return out


def shifted(t: Timestep, spec: Spec) -> Tensor:
    """A user's own feature, of one column."""
    return (t.alive.float() + 2 * torch.arange(spec.num_agents)).unsqueeze(-1)


FEATURES = [Actions(), States(), Moments(1), Moments(3), Joint((Actions(), States())), Joint((Moments(2), Actions()))]
FEATURES += [Function(shifted, 1)]
AVERAGES: list[Average] = [
    Everyone(),
    Everyone(same=True),
    Neighbours(),
    Nearby(0.4),
    Nearby(1.7),
    Nearby(50.0),
    Sampled(1),
    Sampled(5),
]


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    n = sum(sizes)
    links = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=3 * n))
    pairs = torch.tensor(links, dtype=torch.long).reshape(-1, 2)
    return Spec(
        n,
        draw(st.sampled_from([Discrete(3), Box(-9, 9, (2,)), Box(-9, 9, (2, 1, 2)), Box(-9, 9, ())])),
        draw(st.sampled_from([Discrete(1), Discrete(2), Discrete(5), Discrete(11), Box(-9, 9, (2,))])),
        groups=tuple("abc"[: len(sizes)]),
        group_sizes=tuple(sizes),
        graph=Graph.from_links(n, pairs[:, 0], pairs[:, 1]),
    )


@pytest.mark.parametrize("over", AVERAGES, ids=str)
@given(
    specs(),
    st.sampled_from(FEATURES),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    st.integers(0, 999),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_field_is_the_mean_over_the_living_others(
    over: Average, spec: Spec, of: Feature, copies: int, typed: bool, deaths: float, seed: int, dims: int
) -> None:
    field = Field(of, over, typed)
    t, ids = moment(spec, copies, seed, deaths, dims)
    felt = field(t, spec, ids, KEY)
    wanted = written_out(field, t, spec, ids)
    assert felt.dtype == torch.float32
    assert felt.shape == (copies, spec.num_agents, field.size(spec))
    assert felt.is_contiguous()
    torch.testing.assert_close(felt.double(), wanted, rtol=1e-5, atol=2e-6)
    if isinstance(of, Actions) and spec.discrete:
        assert torch.equal(felt, wanted.float())  # counts are whole numbers: the mean is the exact quotient, rounded
    # A part of the crowd, and a part of the copies, feels bitwise what it feels in the whole.
    for part in (*spec.group_slices.values(), slice(1, 1), slice(spec.num_agents // 2, spec.num_agents)):
        assert torch.equal(field(t, spec, ids, KEY, agents=part), felt[:, part])
    last = Timestep(*(None if x is None else x[-1:] for x in t))
    assert torch.equal(field(last, spec, ids[-1:], KEY), felt[-1:])


@given(st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_relabelled_agents_feel_the_relabelled_field(n: int, seed: int) -> None:
    spec = Spec(n, Box(-9, 9, (2,)), Discrete(4))
    t, ids = moment(spec, 2, seed, 0.2)
    order = torch.randperm(n, generator=random.generator(Key.of(seed)))
    turned = t._replace(**{name: getattr(t, name)[:, order] for name in ("obs", "alive", "action", "position")})
    for text in ("actions over everyone", "actions over nearby(1.5)", "states over everyone"):
        field = parse_field(text)
        torch.testing.assert_close(
            field(turned, spec, ids, KEY), field(t, spec, ids, KEY)[:, order], rtol=1e-6, atol=1e-6
        )


def test_an_agent_never_feels_itself_nor_the_dead() -> None:
    spec = Spec(3, Box(-1, 1, (1,)), Discrete(3), graph=Graph.torus_of((3,)))
    t, ids = moment(spec, 1, 0)
    t = t._replace(action=torch.tensor([[0, 1, 2]]), position=torch.zeros(1, 3, 2))
    for text in ("everyone", "neighbours", "nearby(1)"):
        felt = parse_field(f"actions over {text}")(t, spec, ids, KEY)
        assert felt.tolist() == [[[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]]
        dead = t._replace(alive=torch.tensor([[True, True, False]]))
        assert parse_field(f"actions over {text}")(dead, spec, ids, KEY).tolist() == [[[0, 1, 0], [1, 0, 0], [0, 0, 0]]]
    felt = parse_field("actions over sampled(9)")(t, spec, ids, KEY)[0]
    assert felt.diagonal().tolist() == [0, 0, 0]
    assert felt.sum(-1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("over", AVERAGES, ids=str)
@pytest.mark.parametrize("of", FEATURES, ids=str)
@pytest.mark.parametrize("typed", [False, True])
def test_who_has_no_living_others_feels_zeros(over: Average, of: Feature, typed: bool) -> None:
    none = torch.empty(0, dtype=torch.int64)
    for n, deaths in ((1, 0.0), (4, 1.0)):
        spec = Spec(n, Box(-9, 9, (3,)), Discrete(2), graph=Graph.from_links(n, none, none))
        t, ids = moment(spec, 2, 1, deaths)
        felt = Field(of, over, typed)(t, spec, ids, KEY)
        assert felt.shape == (2, n, of.size(spec))
        assert not felt.any()


def test_the_lone_survivor_feels_zeros() -> None:
    spec = Spec(5, Box(-9, 9, (3,)), Box(-9, 9, (2,)), graph=Graph.torus_of((5,)))
    t, ids = moment(spec, 1, 1)
    t = t._replace(alive=torch.tensor([[False, False, True, False, False]]))
    for over in AVERAGES:
        for of in FEATURES:
            assert not Field(of, over)(t, spec, ids, KEY).any()


def test_nothing_is_felt_by_an_independent_learner() -> None:
    spec = Spec(4, Box(-9, 9, (3,)), Discrete(2))
    t, ids = moment(spec, 2, 1)
    assert Field.nothing()(t, spec, ids, KEY).shape == (2, 4, 0)
    assert Field.nothing()(t, spec, ids, KEY, agents=slice(1, 3)).shape == (2, 2, 0)
    assert Field.nothing().size(spec) == 0
    assert Field(Nothing(), Neighbours(), typed=True, decay=0.5) == Field.nothing()


@pytest.mark.parametrize("n", [300, 70_000])
def test_a_hub_counts_beyond_a_byte_and_beyond_two(n: int) -> None:
    hub, leaf = torch.zeros(n - 1, dtype=torch.int64), torch.arange(1, n)
    graph = Graph.from_links(n, torch.cat([hub, leaf]), torch.cat([leaf, hub]))
    spec = Spec(n, Box(-9, 9, (1,)), Discrete(11), graph=graph)
    t, ids = moment(spec, 2, 3)
    felt = parse_field("actions over neighbours")(t, spec, ids, KEY)
    for copy in range(2):
        counts = torch.bincount(t.action[copy, 1:][t.action[copy, 1:] >= 0], minlength=11)
        assert torch.equal(felt[copy, 0], (counts.double() / (n - 1)).float())
        alone = torch.nn.functional.one_hot(t.action[copy, :1].clamp(min=0), 11) * (t.action[copy, :1] >= 0).long()
        assert torch.equal(felt[copy, 1:], alone.float().expand(n - 1, -1))


def test_padded_and_complete_graphs_count_beyond_a_byte() -> None:
    """Degree 299 in the padded representation, against everyone: two ways to the same numbers."""
    n = 300
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    spec = Spec(n, Box(-9, 9, (4,)), Discrete(3), graph=Graph.from_links(n, pairs[:, 0], pairs[:, 1]))
    assert spec.graph is not None
    assert spec.graph.index is not None
    t, ids = moment(spec, 2, 5, deaths=0.1)
    for of in (Actions(), States()):
        by_links, by_total = (Field(of, over)(t, spec, ids, KEY) for over in (Neighbours(), Everyone()))
        torch.testing.assert_close(by_links, by_total, rtol=1e-5, atol=1e-6)
    assert torch.equal(Field(Actions(), Neighbours())(t, spec, ids, KEY), Field(Actions())(t, spec, ids, KEY))


@pytest.fixture(scope="module")
def million() -> tuple[Spec, Timestep, Tensor]:
    n = 1_000_000
    spec = Spec(n, Discrete(2), Discrete(5), graph=Graph.torus_of((1000, 1000)))
    t, ids = moment(spec, 1, 9, deaths=0.05)
    return spec, t, ids


def test_a_million_agents_feel_everyone_exactly(million: tuple[Spec, Timestep, Tensor]) -> None:
    spec, t, ids = million
    felt = parse_field("actions over everyone")(t, spec, ids, KEY)[0]
    action, alive = t.action[0], t.alive[0]
    counts = torch.bincount(action[alive & (action >= 0)], minlength=5)
    own = (action.unsqueeze(-1) == torch.arange(5)) & alive.unsqueeze(-1)
    wanted = (counts - own.long()).double() / (int(alive.sum()) - 1)
    assert torch.equal(felt, torch.where(alive.unsqueeze(-1), wanted, 0.0).float())


def test_a_million_agents_feel_their_neighbours_exactly(million: tuple[Spec, Timestep, Tensor]) -> None:
    spec, t, ids = million
    felt = parse_field("actions over neighbours")(t, spec, ids, KEY)[0]
    action, alive = t.action[0].view(1000, 1000), t.alive[0].view(1000, 1000)
    around = [(1, 0), (-1, 0), (1, 1), (-1, 1)]
    count = sum(alive.roll(s, d).long() for s, d in around)
    for a in range(5):
        mine = (action == a) & alive
        wanted = sum(mine.roll(s, d).long() for s, d in around) / count.clamp(min=1) * alive
        assert torch.equal(felt[:, a], wanted.flatten())


def test_a_million_agents_feel_those_nearby_exactly(million: tuple[Spec, Timestep, Tensor]) -> None:
    """On the sites of a square lattice, shuffled: within 1 of a site are the four next to it, none beyond the edge."""
    spec, t, ids = million
    site = torch.randperm(1_000_000, generator=random.generator(Key.of(1)))
    at = torch.empty_like(site)
    at[site] = torch.arange(1_000_000)  # who stands at each site
    place = torch.stack([site // 1000, site % 1000], dim=-1).float().unsqueeze(0)
    felt = parse_field("actions over nearby(1.0)")(t._replace(position=place), spec, ids, KEY)[0]
    alive = t.alive[0, at].view(1000, 1000)

    def around(mine: Tensor) -> Tensor:
        edged = torch.nn.functional.pad(mine.long(), (1, 1, 1, 1))
        return edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:]

    for a in range(5):
        mine = (t.action[0, at].view(1000, 1000) == a) & alive
        wanted = around(mine) / around(alive).clamp(min=1) * alive
        assert torch.equal(felt[at, a], wanted.flatten())


def test_a_crowd_scattered_at_random_feels_whom_a_tree_finds() -> None:
    """Against the pairs of scipy's k-d tree, in two copies."""
    from scipy.spatial import cKDTree

    n, radius = 20_000, 1.5
    spec = Spec(n, Discrete(2), Discrete(3))
    t, ids = moment(spec, 2, 5, deaths=0.2)
    place = uniform(Key.of(4), ids, 2).double().mul(2**20).round().div(2**14)  # whole multiples: distances are exact
    felt = parse_field(f"actions over nearby({radius})")(t._replace(position=place.float()), spec, ids, KEY)
    for copy in range(2):
        living = t.alive[copy].nonzero().squeeze(-1)
        pairs = torch.from_numpy(cKDTree(place[copy, living].numpy()).query_pairs(radius + 1e-3, output_type="ndarray"))
        first, second = living[pairs[:, 0]], living[pairs[:, 1]]
        near = (place[copy, first].float() - place[copy, second].float()).square().sum(-1) <= radius**2
        ends = torch.cat([first[near], second[near]])
        met = t.action[copy, torch.cat([second[near], first[near]])]
        count = torch.bincount(ends, minlength=n).clamp(min=1)
        wanted = torch.stack([torch.bincount(ends[met == a], minlength=n) / count for a in range(3)], dim=-1)
        assert torch.equal(felt[copy], wanted)
        assert 5 < float(torch.bincount(ends, minlength=n).float().mean()) < 50


def test_numbers_far_from_zero_lose_nothing_to_a_million_others() -> None:
    """The others' mean of a float feature is total minus own in double precision."""
    n = 1_000_000
    spec = Spec(n, Box(-1e9, 1e9, (1,)), Discrete(2))
    t, ids = moment(spec, 1, 2)
    obs = 1e4 + normal(Key.of(6), ids, 1)
    felt = parse_field("states over everyone")(t._replace(obs=obs), spec, ids, KEY)
    wanted = (obs.double().sum() - obs.double()) / (n - 1)
    assert float((felt.double() - wanted).abs().max()) <= 1e4 * 2**-24 * 1.01


def test_long_sums_have_the_same_bits_for_any_number_of_threads_and_copies() -> None:
    # Of all sizes, or double precision would add single ones without a rounding.
    size = (15 * normal(Key.of(2), agent_ids(3, 200_001))).exp()
    spec = Spec(200_001, Box(-1, 1, (1,)), Discrete(2))
    x = normal(Key.of(3), agent_ids(3, 200_001)) * size
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _sum(x, spec)
        torch.set_num_threads(2)
        assert torch.equal(_sum(x, spec), one)
        assert torch.equal(_sum(x[:1], spec), one[:1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(_sum(x[:, torch.randperm(x.shape[1], generator=random.generator(Key.of(4)))], spec), one)
    # 2^18 agents leave 44 bits below the largest number for each.
    error = (one - x.double().sum(1)).abs() / x.abs().amax(1).double()
    assert float(error.max()) <= 200_001 * 2.0**-45
    assert _sum(x[:, :0], spec).tolist() == [0, 0, 0]
    assert bool(_sum(torch.tensor([[1.0, float("nan")], [1.0, float("inf")]]), spec).isnan().all())


@pytest.mark.parametrize("text", ["states over everyone", "states over team", "states over nearby(1.0)"])
def test_float_fields_depend_on_neither_copies_nor_threads(text: str) -> None:
    n = 100_000
    spec = Spec(n, Box(-9, 9, (2,)), Discrete(2), groups=("a", "b"), group_sizes=(40_000, 60_000))
    t, ids = moment(spec, 3, 1)
    assert t.position is not None
    t = t._replace(position=t.position * 300)
    field = parse_field(text)
    whole = field(t, spec, ids, KEY)
    alone = Timestep(*(None if x is None else x[1:2] for x in t))
    assert torch.equal(field(alone, spec, ids[1:2], KEY), whole[1:2])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(field(alone, spec, ids[1:2], KEY), whole[1:2])
    finally:
        torch.set_num_threads(threads)


@statistical(alpha=beyond(5, 200), bugs=("last-number-never", "steps-share-noise"))
def test_a_sample_is_drawn_from_all_others_alike() -> None:
    n, draws = 6, 4000
    spec = Spec(n, Discrete(n), Discrete(2))
    t, ids = moment(spec, 1, 0)
    t = t._replace(obs=torch.arange(n).unsqueeze(0))
    field = Field(States(), Sampled(5))
    share = torch.stack([field(t, spec, ids, Key.of(step))[0].double() for step in range(draws // 5)]).mean(0)
    assert not share.diagonal().any()
    away = share[~torch.eye(n, dtype=torch.bool)] - 1 / (n - 1)
    assert float(away.abs().max()) < 5 * math.sqrt((1 / 5) * (4 / 5) / draws)
    # Anew each step, and by agent.
    rows = field(t, spec, ids, Key.of(0))[0], field(t, spec, ids, Key.of(1))[0]
    assert not torch.equal(*rows)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_cells_and_radii_agree_at_every_scale(dims: int) -> None:
    """Positions on a lattice at multiples of the radius: distances of exactly one radius count."""
    for radius in (0.1, 1.0, 1 / 3, 1000.0):
        n = 60
        spec = Spec(n, Box(-9, 9, (1,)), Discrete(2))
        t, ids = moment(spec, 1, 3)
        lattice = integers(Key.of(8), ids, 9, dims).float() * torch.tensor(radius, dtype=torch.float32) - 4 * radius
        t = t._replace(position=lattice)
        field = Field(Function(shifted, 1), Nearby(radius))
        wanted = written_out(field, t, spec, ids)
        torch.testing.assert_close(field(t, spec, ids, KEY).double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_distance_that_rounds_to_the_radius_counts_across_two_cells() -> None:
    """2 - 0.99999994 is 1 in single precision, though floor puts the two in cells 0 and 2."""
    spec = Spec(2, Box(-9, 9, (1,)), Discrete(2))
    t, ids = moment(spec, 1, 0)
    t = t._replace(position=torch.tensor([[[0.99999994], [2.0]]]), action=torch.tensor([[0, 1]]))
    assert parse_field("actions over nearby(1)")(t, spec, ids, KEY).tolist() == [[[0, 1], [1, 0]]]


def test_positions_that_cannot_be_sorted_are_refused() -> None:
    spec = Spec(3, Box(-9, 9, (1,)), Discrete(2))
    t, ids = moment(spec, 2, 0)
    assert t.position is not None
    field = parse_field("actions over nearby(1)")
    lost = t.position.clone()
    lost[1, 2] = math.nan
    with pytest.raises(NumericFault, match="Agent 2 of copy 1 has position"):
        field(t._replace(position=lost), spec, ids, KEY)
    alive = t.alive.clone()
    alive[1, 2] = False  # nobody asks where the dead are
    assert torch.isfinite(field(t._replace(position=lost, alive=alive), spec, ids, KEY)).all()
    lost[1, 2] = 1e30
    with pytest.raises(ConfigError, match="spread over too many"):
        field(t._replace(position=lost), spec, ids, KEY)


def test_fields_that_an_environment_cannot_give_are_refused() -> None:
    spec = Spec(3, Box(-9, 9, (1,)), Discrete(2))
    t, ids = moment(spec, 1, 0)
    with pytest.raises(ConfigError, match="needs an environment with a graph"):
        parse_field("actions over neighbours")(t, spec, ids, KEY)
    with pytest.raises(ConfigError, match="needs an environment with positions"):
        parse_field("actions over nearby(1)")(t._replace(position=None), spec, ids, KEY)
    with pytest.raises(ConfigError, match=r"shape \(1, 3, 1\); expected \(1, 3, 2\)"):
        Field(Function(shifted, 2))(t, spec, ids, KEY)


def test_the_default_is_the_mean_action_of_whom_one_meets() -> None:
    plain, ring = Spec(3, Discrete(2), Discrete(2)), Spec(3, Discrete(2), Discrete(2), graph=Graph.torus_of((3,)))
    assert str(default_field(plain)) == "actions over everyone"
    assert str(default_field(ring)) == "actions over neighbours"
    teams = Spec(4, Discrete(2), Box(-1, 1, (2,)), groups=("a", "b"), group_sizes=(2, 2))
    assert str(default_field(teams)) == "moments(2) over team"


# ------------------------------------------------------------------------------------------------ words

FLOATS = st.floats(1e-300, 1e300)
WORDS: st.SearchStrategy[Feature] = st.recursive(
    st.sampled_from([Actions(), States()]) | st.builds(Moments, st.integers(1, 9)),
    lambda inner: st.builds(Joint, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    max_leaves=4,
)
PLACES: st.SearchStrategy[Average] = (
    st.builds(Everyone, st.booleans())
    | st.just(Neighbours())
    | st.builds(Nearby, FLOATS)
    | st.builds(Sampled, st.integers(1, 999))
)
FIELDS = st.builds(Field, WORDS, PLACES, st.booleans(), st.floats(0, 1, exclude_max=True)) | st.just(Field.nothing())


@given(FIELDS)
@settings(max_examples=150, deadline=None)
def test_a_field_is_read_back_from_its_words(field: Field) -> None:
    assert parse_field(str(field)) == field
    assert parse_field(f"  {field} ") == field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("actions", Field()),
        ("actions over everyone", Field()),
        ("typed(actions) over everyone", Field(typed=True)),
        ("moments(2) over sampled(16)", Field(Moments(2), Sampled(16))),
        ("moments over team", Field(Moments(2), Everyone(same=True))),
        ("joint(actions, states) over nearby(0.2)", Field(Joint((Actions(), States())), Nearby(0.2))),
        ("nearby", None),
        ("nothing", Field.nothing()),
        ("typed(nothing) over neighbours", Field.nothing()),
        ("smoothed(actions over everyone, 0.9)", Field(decay=0.9)),
        ("smoothed(typed(actions) over neighbours, 1e-3)", Field(over=Neighbours(), typed=True, decay=0.001)),
    ],
)
def test_the_words_of_the_docstring_mean_what_it_says(text: str, field: Field | None) -> None:
    if field is None:
        with pytest.raises(ConfigError, match="write for example 'actions over nearby'"):
            parse_field(text)
    else:
        assert parse_field(text) == field


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("actons over everyone", "Unknown word 'actons'.*Did you mean 'actions'"),
        ("actions over neighbors", "Unknown word 'neighbors'.*Did you mean 'neighbours'"),
        ("actions over states", "does not say over whom"),
        ("actions everyone", "Cannot read the field"),
        ("actions over", "Cannot read the field"),
        ("", "Cannot read the field"),
        ("actions(3) over everyone", "Cannot read the field"),
        ("moments(0)", "must be a whole number of at least 1"),
        ("moments(1.5)", "must be a whole number of at least 1"),
        ("moments('x')", "must be a whole number of at least 1"),
        ("actions over sampled(0)", "whole number of others"),
        ("actions over sampled(True)", "whole number of others"),
        ("actions over nearby(-1)", "positive, finite"),
        ("actions over nearby(0)", "positive, finite"),
        ("actions over nearby(1e999)", "positive, finite"),
        ("actions over nearby('far')", "positive, finite"),
        ("joint() over everyone", "joint feature is made of"),
        ("joint(actions, everyone)", "'everyone' is not a feature"),
        ("smoothed(actions over everyone, 1)", r"decay must be a number in \[0, 1\)"),
        ("smoothed(actions over everyone, -0.1)", "decay must be"),
        ("smoothed(actions over everyone, nan)", "decay must be"),
        ("smoothed(actions over everyone)", "Unknown word|Cannot read"),
        ("smoothed(smoothed(actions over everyone, 0.5), 0.9)", "smoothed once"),
        ("actions over everyone over team", "Cannot read the field"),
        ("__import__('os').system('true')", "Cannot read the field"),
        ("actions over everyone(**{})", "Cannot read the field"),
        ("moments(print)", "Cannot read the field"),
        ("(" * 5000, "Cannot read the field"),
        ("joint(" * 5000, "Cannot read the field"),
        ("actions\0", "Cannot read the field"),
    ],
)
def test_words_that_say_nothing_are_refused_with_the_nearest_that_do(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_field(text)
    assert len(str(caught.value)) < 300


TOKENS = ["actions", "states", "moments", "joint", "typed", "smoothed", "nothing", " over ", "everyone", "nearby"]
TOKENS += ["sampled", "team", "(", "(", ")", ")", ",", "2", "0.5", "-1", "'x'", "[", "\n", "é"]


@given(st.lists(st.sampled_from(TOKENS), max_size=9).map("".join) | st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_field_or_a_sentence(text: str) -> None:
    try:
        field = parse_field(text)
    except ConfigError:
        return
    assert parse_field(str(field)) == field


def test_fields_made_in_python_are_checked_like_those_of_words() -> None:
    for make in (
        lambda: Joint(()),
        lambda: Joint((Everyone(),)),  # type: ignore[arg-type]
        lambda: Moments(0),
        lambda: Nearby(math.nan),
        lambda: Sampled(2.0),  # type: ignore[arg-type]
        lambda: Field(decay=1.0),
        lambda: Field(decay="x"),  # type: ignore[arg-type]
    ):
        refused(make)


def refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_grid_counts_who_is_in_each_cell_but_oneself() -> None:
    spec = Spec(4, Box(np.array([0.0, -1.0, 5.0], np.float32), np.array([1.0, 1.0, 5.0], np.float32)), Discrete(2))
    t, ids = moment(spec, 1, 2)
    # Along the first axis cells end at .5, along the second at 0; the third cannot vary.
    obs = torch.tensor([[[0.0, -1.0, 5.0], [0.4, 0.9, 5.0], [1.0, 1.0, 5.0], [0.5, -0.1, 5.0]]])
    field = parse_field("grid(2) over everyone")
    felt = field(t._replace(obs=obs), spec, ids, KEY)
    cells = [0, 1, 3, 2]
    wanted = [[(c != mine) / 3 for c in range(4)] for mine in cells]
    torch.testing.assert_close(felt[0], torch.tensor(wanted))
    assert str(field) == "grid(2) over everyone"


@pytest.mark.parametrize(
    ("space", "text", "told"),
    [
        (Discrete(5), "grid(3) over everyone", "needs observations in a Box"),
        (Box(-np.inf, np.inf, (2,)), "grid(3) over everyone", "finite bounds"),
        (Box(0, 1, (9,)), "grid(8) over everyone", r"8\^9 cells here; at most 4096"),
    ],
)
def test_a_grid_that_cannot_be_says_why(space: Any, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_field(text).size(Spec(4, space, Discrete(2)))


def test_a_grid_of_one_cell_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        parse_field("grid(1) over everyone")
