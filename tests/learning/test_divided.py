"""Learning in a divided population is learning in the whole one, up to the order of sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.learning.memory import Crowd, sample_rows
from mfmarl.learning.players import make_players
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training
from mfmarl.population.division import Division
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.registry import lookup
from tests.learning.mini import Aim, Lattice
from tests.population.threads import together
from tests.statistical import beyond, statistical

SMALL: dict[str, dict[str, Any]] = {
    "mfq": {"hidden": (8,), "warm_up": 16, "batch_size": 16, "capacity": 200, "remember": 20},
    "table": {"values": "table", "bins": 3},
    "mfac": {"hidden": (8,), "warm_up": 16, "batch_size": 16, "capacity": 200, "remember": 20},
    "mfppo": {"hidden": (8,), "rollout": 4, "epochs": 2, "minibatches": 2, "remember": 20},
    "iql": {"hidden": (8,), "warm_up": 16, "batch_size": 16, "capacity": 200, "remember": 20},
    "random": {},
}
SMALL["iac"] = SMALL["mfac"]
CPU = torch.device("cpu")
GAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "checkerboard": ("ising", {"num_agents": 36}),
    "synchronous": ("ising", {"num_agents": 49, "order": "synchronous"}),
    "few at a time": ("ising", {"num_agents": 36, "order": "partial", "participation": 0.1}),
    "beach": ("beach_bar", {"num_agents": 23, "horizon": 7}),
    "town": ("susceptible_infected", {"num_agents": 17, "horizon": 6}),
    "prey": ("predator_prey", {"num_agents": 9}),
}


def rules(game: str) -> PopulationEnv:
    name, options = GAMES[game]
    found: PopulationEnv = lookup("environment", name).load()(**options)
    return found


def begin(
    env: PopulationEnv,
    agent: str,
    ranks: Ranks = ALONE,
    by_agents: bool = True,
    options: dict[str, Any] | None = None,
    **run: Any,
) -> Training:
    config = RunOptions(
        **{"copies": 2, "steps": 20, "report_every": 10, "evaluation_steps": 2, "exploitability": "off", **run}
    )
    sims = [Simulation(env, copies, ranks=ranks, by_agents=by_agents) for copies in (config.copies, config.copies)]
    choice = Choice("mfq" if agent == "table" else agent, {**SMALL.get(agent, {}), **(options or {})})
    players = make_players(
        RunConfig(Choice("mini"), {"all": choice}, config), sims[0].spec, Key.of(config.seed), sims[0].device
    )
    return Training(sims[0], players, config, sims[1])


def live(training: Training) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    rows = [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in training.rows()]
    return rows, training.state_dict()[0]


def alike(whole: Any, part: Any, within: float = 1e-6) -> None:
    """Rows and everything that a checkpoint holds, of whole numbers exactly."""
    assert len(whole[0]) == len(part[0])
    for row, other in zip(whole[0], part[0], strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=within), name
    theirs = {n: x for n, x in part[1].items() if not n.endswith((".memory.owner", ".memory.ranks"))}
    assert set(theirs) == set(whole[1])
    for name, value in whole[1].items():
        other = theirs[name]
        assert (other.shape, other.dtype) == (value.shape, value.dtype), name
        if value.is_floating_point():
            gap = (other.nan_to_num() - value.nan_to_num()).abs()
            scale = 1.0 if ".agent." in name else 1 + value.nan_to_num().abs()
            assert float((gap / scale).max() if gap.numel() else 0.0) <= within, name
        else:
            assert torch.equal(other, value), name


def both(env: PopulationEnv, agent: str, counts: tuple[int, ...], by_agents: bool = True, **how: Any) -> Any:
    """The whole run and divided ones; returns the whole."""
    whole = live(begin(env, agent, **how))
    for count in counts:
        found = together(count, lambda ranks: live(begin(env, agent, ranks, by_agents, **how)))
        alike(whole, found[0])
    return whole


# Every agent and every kind of game, by 2, 3 and 5 ranks in turn: 36, 49 and 23 agents part unevenly, and of the two
# predators' teams some ranks have nobody.
PAIRS = [
    ("checkerboard", "mfq", 3), ("checkerboard", "table", 5), ("checkerboard", "mfac", 2), ("checkerboard", "mfppo", 3),
    ("synchronous", "mfq", 2), ("synchronous", "table", 3), ("synchronous", "mfppo", 2), ("synchronous", "random", 2),
    ("few at a time", "iql", 3), ("few at a time", "mfppo", 3), ("few at a time", "table", 2),
    ("beach", "mfq", 2), ("beach", "mfac", 5), ("beach", "mfppo", 3),
    ("prey", "mfq", 5), ("prey", "mfppo", 5), ("town", "table", 3), ("town", "iac", 3),
]  # fmt: skip


@pytest.mark.parametrize(("game", "agent", "count"), PAIRS)
def test_learning_in_a_divided_population_is_learning_in_the_whole_one(game: str, agent: str, count: int) -> None:
    """All rows, weights, optimisers, memories and the state of the world, restarts and evaluation among them."""
    both(rules(game), agent, (count,))


HUNDRED = [("mfac", 3), ("mfppo", 5), ("iql", 3), ("table", 2)]


@pytest.mark.parametrize(
    ("agent", "count"), [("mfq", 2), *(pytest.param(*pair, marks=pytest.mark.verify) for pair in HUNDRED)]
)
def test_a_hundred_updates_later_weights_are_within_a_millionth(agent: str, count: int) -> None:
    steps = 116 if agent in ("mfq", "mfac", "iql") else 100
    both(rules("checkerboard"), agent, (count,), steps=steps, report_every=50)


@pytest.mark.parametrize("agent", ["mfac", "mfppo"])
def test_copies_are_divided_with_a_box_of_actions_too(agent: str) -> None:
    both(Aim(num_agents=5), agent, (2, 3), by_agents=False, copies=5)


@pytest.mark.parametrize("agent", ["mfq", "table", "mfppo"])
def test_copies_whose_agents_die_and_take_turns_are_divided(agent: str) -> None:
    env = Lattice(groups=("red", "blue"), risk=0.03, horizon=17)
    both(env, agent, (3,), by_agents=False, copies=4)


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("mfq", {"temperature": "entropy(0.4)"}),
        ("mfppo", {"temperature": "entropy(0.4)", "remember": 0}),
        ("mfac", {"temperature": "entropy(0.4)", "gradient_clip": 0.01}),
        ("table", {"temperature": "entropy(0.4)"}),
        ("mfq", {"field": "smoothed(actions over neighbours, 0.5)", "carry": "caused", "updates": 2, "remember": 1000}),
        ("mfq", {"optimiser": "sgld", "weight_temperature": "1e-3"}),
        ("mfq", {"capacity": 23, "remember": 60}),
    ],
)
def test_options_that_need_to_know_of_all_rows_do(agent: str, options: dict[str, Any]) -> None:
    both(rules("checkerboard"), agent, (3,), options=options)


def test_the_distance_from_equilibrium_is_that_of_the_whole_game() -> None:
    rows, _ = both(rules("town"), "mfq", (2,), exploitability="auto", steps=20, options={"temperature": "1"})
    assert "limit/exploitability" in rows[-1] and "finite/exploitability" in rows[-1]
    sampled = both(rules("town"), "mfq", (2,), exploitability="sampled", steps=10)[0]
    assert "finite/standard_error" in sampled[-1]


@pytest.mark.parametrize("agent", ["mfq", "mfac", "mfppo"])
@pytest.mark.parametrize("count", [2, 5, 16])
def test_a_frozen_policy_acts_bit_for_bit_as_in_one_place(agent: str, count: int) -> None:
    """Sixteen ranks have one agent each: a product of one row has other bits than one of sixteen."""
    options = {"hidden": (64, 64)} if agent != "mfppo" else {"hidden": (64, 64), "rollout": 1000}
    env = lookup("environment", "ising").load()(num_agents=16, order="synchronous")

    def play(ranks: Ranks) -> list[Tensor]:
        training = begin(env, agent, ranks, options=options, copies=1, seed=3)
        episode, found = training.episode, []
        mind = training.players[0].agent
        energies = []
        plain = mind.energy

        def watched(obs: Tensor, field: Tensor) -> Tensor:
            energies.append(plain(obs, field))
            return energies[-1]

        mind.energy = watched  # type: ignore[method-assign]
        for _ in range(5):
            _, action, after, now = episode.play()
            episode.go_on(after, now)
            here = action.shape[1]
            found += [
                episode.env.division.gather(action, True),
                episode.env.division.gather(energies[-1][:, :here].detach(), True),
            ]
        return found

    whole, parts = play(ALONE), together(count, play)[0]
    assert all(torch.equal(x, y) for x, y in zip(whole, parts, strict=True))


# ------------------------------------------------------------------------------------------- stopping and going on


def go_on(env: PopulationEnv, agent: str, saved: Any, ranks: Ranks = ALONE, **how: Any) -> Any:
    training = begin(env, agent, ranks, **how)
    training.load_state_dict(*saved)
    return live(training)


def half(env: PopulationEnv, agent: str, until: int, ranks: Ranks = ALONE, **how: Any) -> Any:
    training = begin(env, agent, ranks, **how)
    for _ in training.rows():
        if training.tick + 10 > until:
            break
    while training.tick < until:
        training.step()
    tensors, plain = training.state_dict()
    return {name: x.clone() for name, x in tensors.items()}, plain


@pytest.mark.parametrize("agent", ["mfq", "mfppo", "table"])
def test_any_number_of_ranks_goes_on_from_any_others_checkpoint(agent: str) -> None:
    """Stopped in the middle of a rollout, an episode and the time between two reports."""
    env = rules("few at a time")
    whole = live(begin(env, agent, steps=30))
    from_whole = half(env, agent, 18, steps=30)
    from_three = together(3, lambda ranks: half(env, agent, 18, ranks, steps=30))[0]
    assert from_three[1]["agent_steps"] == from_whole[1]["agent_steps"]
    rest = whole[0][1:], whole[1]
    for saved, count in ((from_three, 1), (from_three, 2), (from_whole, 2), (from_three, 3)):
        if count == 1:
            found = go_on(env, agent, saved, steps=30)
        else:
            found = together(count, lambda ranks, saved=saved: go_on(env, agent, saved, ranks, steps=30))[0]  # type: ignore[misc]
        alike(rest, found)


@pytest.mark.parametrize("agent", ["mfq", "mfac", "mfppo"])
def test_the_same_ranks_go_on_in_the_same_bits(agent: str) -> None:
    env = rules("checkerboard")
    never = together(3, lambda ranks: live(begin(env, agent, ranks, steps=30)))[0]
    saved = together(3, lambda ranks: half(env, agent, 20, ranks, steps=30))[0]
    again = together(3, lambda ranks: go_on(env, agent, saved, ranks, steps=30))[0]
    assert set(never[1]) == set(again[1])
    assert [name for name, x in never[1].items() if not torch.equal(x, again[1][name])] == []


# ------------------------------------------------------------------------------------------------ what is sent


@pytest.mark.parametrize("agent", ["mfq", "table", "mfppo"])
def test_what_a_step_of_learning_sends_does_not_grow_with_the_crowd(agent: str) -> None:
    def sent(side: int) -> dict[str, int]:
        def count(ranks: Ranks) -> dict[str, int]:
            env = lookup("environment", "ising").load()(num_agents=10 * side, shape=(side, 10))
            training = begin(env, agent, ranks, copies=1)
            for _ in range(8):
                training.step()
            before = dict(ranks.sent)
            for _ in range(8):
                training.step()
            return {name: total - before.get(name, 0) for name, total in ranks.sent.items()}

        return together(2, count)[0]

    few, many = sent(40), sent(400)
    assert few.keys() == many.keys() and few["gradients"] == many["gradients"] > 0
    # The marks of who may be remembered are of drawn rows, as many for a crowd of any size.
    assert many.get("rows", 0) <= 1.5 * few.get("rows", 0) + 64
    assert {n: x for n, x in few.items() if n != "rows"} == {n: x for n, x in many.items() if n != "rows"}


# ----------------------------------------------------------------------------------------------- which rows


@pytest.mark.parametrize(("rows", "keep", "share"), [
    (1000, 20, 1.0), (1000, 600, 1.0), (1000, 20, 0.5), (1000, 300, 0.5), (1000, 20, 0.02), (1000, 2000, 0.5),
    (1000, 20, 0.0), (40, 39, 1.0),
])  # fmt: skip
def test_ranks_choose_the_rows_that_one_would(rows: int, keep: int, share: float) -> None:
    valid = None if share == 1.0 else torch.rand(rows, generator=torch.Generator().manual_seed(1)) < share
    whole = sample_rows(rows, keep, Key.of(4), CPU, valid)
    allowed = torch.arange(rows) if valid is None else valid.nonzero().squeeze(-1)
    expected = allowed if whole is None else whole
    assert len(expected) == min(keep, len(allowed))
    assert bool(torch.isin(expected, allowed).all()) and torch.equal(expected, expected.unique())
    spec = Simulation(Aim(num_agents=rows // 2)).spec

    def choose(ranks: Ranks) -> Tensor | None:
        crowd = Crowd(Division(spec, 2, ranks))
        here = None if valid is None else valid[crowd.numbers(0, CPU)]
        return sample_rows(rows, keep, Key.of(4), CPU, here, crowd)

    for count in (2, 3, 5):
        for found in together(count, choose):
            assert (whole is None and found is None) or torch.equal(whole, found)


@pytest.mark.parametrize("share", [1.0, 0.5])
@statistical(alpha=beyond(5, 200), bugs=("even-rows", "numbers-lean"))
def test_every_row_is_as_likely_to_be_chosen_as_any_other(share: float) -> None:
    """By rejection, where keep is small: each of the valid rows with probability keep / count, 5 sigma."""
    rows, keep, trials = 60, 6, 4000
    valid = None if share == 1.0 else torch.arange(rows) % 2 == 0
    count = rows if valid is None else rows // 2
    total = torch.zeros(rows)
    for trial in range(trials):
        chosen = sample_rows(rows, keep, Key.of(trial), CPU, valid)
        assert chosen is not None
        total[chosen] += 1
    p = keep / count
    found = total if valid is None else total[valid]
    assert bool(((found / trials - p).abs() < 5 * (p * (1 - p) / trials) ** 0.5).all())


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("agent", "options", "run", "told"), [
    ("mfq", {"replicas": 3}, {}, "replicas = 3"),
    ("mfac", {"priority": 0.6}, {}, "priority = 0.6"),
    ("mfq", {}, {"sharing": "none"}, "sharing = none"),
    ("table", {"bins": 1000}, {}, "too large to be sent"),
])  # fmt: skip
def test_what_cannot_learn_from_parts_says_so(agent: str, options: Any, run: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"divided over ranks.*{told}|{told}.*divided over ranks"):
        together(2, lambda ranks: begin(rules("checkerboard"), agent, ranks, options=options, **run))
    begin(rules("checkerboard"), agent, options=options, **run)


@pytest.mark.parametrize(
    ("game", "agent"), [("town", "free_energy_equilibrium"), ("town", "kl_control"), ("beach", "deep_active_inference")]
)
def test_agents_of_other_kinds_are_refused_by_name(game: str, agent: str) -> None:
    kind = lookup("agent", agent).load().__name__
    with pytest.raises(ConfigError, match=rf"cannot learn in a population that is divided over ranks: {kind}"):
        together(2, lambda ranks: begin(rules(game), agent, ranks))


def test_ranks_that_have_come_apart_are_found_out() -> None:
    def drift(ranks: Ranks) -> None:
        training = begin(rules("checkerboard"), "mfq", ranks)
        next(training.rows())
        if ranks.rank == 1:
            with torch.no_grad():
                next(training.players[0].agent.parameters()).view(-1)[0] += 1e-7
        training.report()

    with pytest.raises(NumericFault, match="no longer alike at step 10"):
        together(2, drift)


def test_a_loss_that_is_lost_on_one_rank_stops_all_before_their_weights_are_touched() -> None:
    def spoil(ranks: Ranks) -> tuple[bool, bool]:
        training = begin(rules("checkerboard"), "mfq", ranks)
        next(training.rows())
        memory, mind = training.players[0].memory, training.players[0].agent
        if ranks.rank == 1:
            memory.ring["reward"][:] = float("nan")
        before = [w.clone() for w in mind.parameters()]
        raised = False
        try:
            training.step()
        except NumericFault:
            raised = True
        return raised, all(torch.equal(a, b) for a, b in zip(before, mind.parameters(), strict=True))

    assert together(3, spoil) == [(True, True)] * 3
