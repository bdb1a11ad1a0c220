"""Trained players in the limit: the policy that N of them show, the field that N of them feel, and gaps in a run's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.agents.uniform import Uniform
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.lockdown import Lockdown
from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import ConfigError
from mfmarl.games import finite, values
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.learning import judge as judging
from mfmarl.learning import limit
from mfmarl.learning.episode import Episode
from mfmarl.learning.players import Player, make_players
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.learning.mini import finish, train


def players_of(game: MeanFieldGame, agent: str, sharing: Any = "group", **options: Any) -> list[Player]:
    """Players as they begin: networks of random weights, whose policies are far from uniform when they are cold."""
    config = RunConfig(Choice("mini"), {"all": Choice(agent, options)}, RunOptions(sharing=sharing))
    return make_players(config, game.spec(), Key.of(4), torch.device("cpu"))


class Seen:
    """An episode of N agents: what they felt and did."""

    def __init__(self, game: MeanFieldGame, players: Sequence[Player], copies: int) -> None:
        env = Simulation(game, copies)
        episode = Episode(env, list(players), Key.of(2))
        self.felt: list[list[Tensor]] = []
        self.state: list[Tensor] = []
        self.action: list[Tensor] = []
        with torch.no_grad():
            for t in range(game.horizon or 0):
                self.felt.append(list(episode.felt))
                self.state.append(env.state.state)
                _, action, after, now = episode.play()
                self.action.append(action)
                if t + 1 < (game.horizon or 0):
                    episode.go_on(after, now)


CASES = [
    (SusceptibleInfected(num_agents=20_000, horizon=5), "mfq", {"field": "actions over everyone"}),
    (SusceptibleInfected(num_agents=20_000, horizon=6, sight="crowd"), "mfq", {"field": "moments(2) over everyone"}),
    (SusceptibleInfected(num_agents=20_000, horizon=6), "mfq", {"field": "smoothed(actions over everyone, 0.6)"}),
    (BeachBar(num_agents=20_000, horizon=4), "mfq", {"field": "joint(actions, states) over everyone"}),
    (PredatorPrey(num_agents=21_000, horizon=3), "mfq", {"field": "typed(actions) over everyone"}),
    (PredatorPrey(num_agents=21_000, horizon=3), "mfq", {"field": "moments(1) over team"}),
    (PredatorPrey(num_agents=21_000, horizon=3), "mfq", {"field": "typed(actions) over team"}),
    (BeachBar(num_agents=20_000), "mfac", {}),
    (BeachBar(num_agents=20_000), "sb3", {}),
    (BeachBar(num_agents=20_000), "sb3", {"algorithm": "dqn", "temperature": "0.01"}),
    (BeachBar(num_agents=20_000), "random", {}),
]


@pytest.mark.parametrize(
    ("game", "agent", "options"), CASES, ids=lambda x: x.get("field", "") if isinstance(x, dict) else None
)
def test_the_limit_is_what_many_agents_show(game: MeanFieldGame, agent: str, options: dict[str, Any]) -> None:
    options = {"temperature": "0.02", **options} if agent == "mfq" else options
    players = players_of(game, agent, **options)
    policy = limit.limit_policy(game, players)
    if agent == "mfq":
        assert float((policy - 1 / game.num_actions).abs().max()) > 0.2  # there is something to be seen
    copies = 4
    seen = Seen(game, players, copies)
    mu = flow(game, policy).mu
    sizes = game.group_sizes
    felt = [x.double() for x in _felt_in_the_limit(game, players, policy)]
    for t in range(game.horizon or 0):
        for g, (_, slots) in enumerate(game.spec().group_slices.items()):
            n = sizes[g] * copies
            state, action = seen.state[t][:, slots].flatten(), seen.action[t][:, slots].flatten()
            for s in range(game.num_states):
                here = state == s
                share = float(mu[t, g, s])
                assert float(here.double().mean()) == pytest.approx(share, abs=_room(share, n, t))
                if int(here.sum()) < 100:
                    continue
                for a in range(game.num_actions):
                    p = float(policy[t, g, s, a])
                    told = float((action[here] == a).double().mean())
                    assert told == pytest.approx(p, abs=_room(p, int(here.sum()), t)), (t, g, s, a)
            # What is felt at N differs between agents by their own part alone, and from the limit by fluctuations.
            player = next(
                i for i, p in enumerate(players) if p.slots.start <= slots.start and slots.stop <= p.slots.stop
            )
            start = players[player].slots.start
            now = seen.felt[t][player][:, slots.start - start : slots.stop - start].double()
            wanted = felt[t][g]
            if wanted.numel():
                assert float((now.mean(1) - wanted).abs().max()) < _room(0.5, min(sizes), t + 1)


def _room(p: float, n: int, t: int) -> float:
    """Five standard errors; the crowd's own fluctuations add up as time goes by."""
    return 5 * (1 + t) ** 0.5 * (p * (1 - p) / n) ** 0.5 + 10 / n


def _felt_in_the_limit(game: MeanFieldGame, players: Sequence[Player], policy: Tensor) -> list[Tensor]:
    """[T] of [G, F], recomputed from the flow of the extracted policy."""
    path = flow(game, policy)
    found: list[Tensor] = []
    for t in range(len(policy)):
        acted = path.joint[t - 1].sum(-2) if t else torch.zeros(game.num_groups, game.num_actions, dtype=torch.float64)
        rows = []
        for g, slots in enumerate(game.spec().group_slices.values()):
            field = next(p for p in players if p.slots.start <= slots.start < p.slots.stop).agent.field
            now = limit.field_in_the_limit(field, game, t, g, path.mu[t : t + 1], acted.unsqueeze(0))[0]
            rows.append(field.decay * found[-1][g] + (1 - field.decay) * now if t and field.decay else now)
        found.append(torch.stack(rows))
    return found


def test_random_play_is_uniform_over_what_is_legal() -> None:
    game = BeachBar()
    assert float((limit.limit_policy(game, players_of(game, "random")) - uniform(game)).abs().max()) < 1e-12


@dataclass(frozen=True)
class Lonely(BeachBar):
    """A beach whose other bathers do not matter: each mind's value is its own, and minds go different ways."""

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return -(torch.arange(self.places) - self.bar).abs().to(crowd.mu).expand(crowd.mu.shape).unsqueeze(-1)


def test_a_mixture_of_minds_is_worth_what_its_minds_are_worth() -> None:
    game = Lonely(num_agents=7, horizon=5, bar=3)
    players = players_of(game, "iql", sharing="none", temperature="0.02")
    assert players[0].agent.minds == 7
    mixed = gap(game, limit.limit_policy(game, players))
    each, best = [], []
    for mind in range(7):
        alone = torch.empty(5, 1, 4, 3, dtype=torch.float64)
        for t in range(5):
            obs = game.views(t, game.start())[0].expand(7, -1, -1)
            energy = players[0].agent.energy(obs, torch.zeros(7, 4, 0))[mind].detach()
            alone[t, 0] = torch.softmax(-energy.double() / 0.02, -1)
        found = gap(game, alone)
        each.append(float(found.value))
        best.append(float(found.best))
    assert max(each) - min(each) > 0.5
    assert float(mixed.value) == pytest.approx(sum(each) / 7, abs=1e-6)
    assert float(mixed.exploitability) == pytest.approx(
        sum(b - v for b, v in zip(best, each, strict=True)) / 7, abs=1e-6
    )


def test_minds_are_followed_group_by_group() -> None:
    game = PredatorPrey(num_agents=9, horizon=3)
    policy = limit.limit_policy(game, players_of(game, "iql", sharing="none", temperature="0.02"))
    assert policy.shape == uniform(game).shape
    assert float((policy.sum(-1) - 1).abs().max()) < 1e-12
    assert float((policy[:, 0] - policy[:, 1]).abs().max()) > 0.05


def test_every_past_of_common_noise_has_its_own_policy() -> None:
    # Beside a government: what has been locked down changes what the team has done, and so what is felt.
    game = Lockdown(num_agents=50, horizon=8)
    players = players_of(game, "mfq", field="actions over team", temperature="0.1")
    policy = limit.limit_policy(game, players)
    assert policy.shape == uniform(game).shape
    assert float(exploitability(game, policy)) > 0
    tree = game.tree
    assert tree is not None
    last = policy[tree.levels[-1], 0]
    same = tree.common[-1] == tree.common[-1][0]
    assert float((last[same] - last[same][0]).abs().max()) > 1e-4
    with pytest.raises(ConfigError, match="major"):
        limit.limit_policy(game, players_of(game, "mfq", field="typed(actions) over everyone"))


def test_without_a_horizon_the_policy_is_that_of_the_crowd_at_rest() -> None:
    game = SusceptibleInfected(num_agents=20_000, horizon=None, discount=0.9, sight="crowd")
    players = players_of(game, "mfq", field="actions over everyone", temperature="0.05")
    policy = limit.limit_policy(game, players)
    path = flow(game, policy)
    acted = path.joint[0].sum(-2)
    felt = limit.field_in_the_limit(players[0].agent.field, game, 0, 0, path.mu, acted.unsqueeze(0))
    with torch.no_grad():
        energy = players[0].agent.energy(game.views(0, path.mu[0]), felt.float().unsqueeze(1).expand(1, 2, -1))
    assert torch.allclose(torch.softmax(-energy.double() / 0.05, -1), policy[0], atol=1e-4)


@pytest.mark.parametrize(
    ("agent", "options", "told"),
    [
        ("mfq", {"field": "actions over sampled(4)"}, "random in the limit"),
        ("mfq", {"field": "actions over nearby(1)"}, "whole crowd"),
    ],
)
def test_what_has_no_limit_is_refused(agent: str, options: dict[str, Any], told: str) -> None:
    game = BeachBar()
    with pytest.raises(ConfigError, match=told):
        limit.limit_policy(game, players_of(game, agent, **options))


def test_an_agent_that_acts_otherwise_is_refused() -> None:
    class Stubborn(Uniform):
        def act(self, *arguments: Any) -> Tensor:
            return torch.zeros(1, 1, dtype=torch.int64)

    game = BeachBar()
    players = players_of(game, "random")
    players[0].agent.__class__ = Stubborn
    with pytest.raises(ConfigError, match="energies"):
        limit.limit_policy(game, players)


# ------------------------------------------------------------------------------------------ rows of a run


def test_a_run_reports_the_limit_as_it_goes_and_n_at_the_end() -> None:
    game = BeachBar(num_agents=12)
    rows = finish(train(game, "mfppo", {"temperature": "0.1"}, steps=300, report_every=100, copies=4))
    assert ["limit/exploitability" in row for row in rows] == [True] * 3
    assert ["finite/exploitability" in row for row in rows] == [False, False, True]
    assert rows[-1]["limit/exploitability"] < 0.7 * float(exploitability(game, uniform(game)))
    assert rows[-1]["finite/exploitability"] > rows[-1]["limit/exploitability"] / 2


def test_the_numbers_are_those_of_the_players_policy() -> None:
    game = BeachBar(num_agents=6)
    training = train(game, "mfq", {"field": "actions over everyone"}, steps=20, report_every=20)
    row = finish(training)[-1]
    policy = limit.limit_policy(game, training.players)
    assert row["limit/exploitability"] == pytest.approx(float(exploitability(game, policy)), abs=1e-12)
    assert row["finite/exploitability"] == pytest.approx(finite.gap(game, policy).exploitability, abs=1e-12)


def test_what_cannot_be_counted_is_learned_with_an_error_and_so_it_is_when_asked() -> None:
    wide = BeachBar(num_agents=60, places=8)
    row = finish(train(wide, "random", steps=6, report_every=6))[-1]
    assert row["finite/standard_error"] > 0
    game = BeachBar(num_agents=10)
    asked = finish(train(game, "random", steps=6, report_every=6, exploitability="sampled"))[-1]
    exact = finite.gap(game, uniform(game)).exploitability
    assert asked["finite/exploitability"] <= exact + 5 * asked["finite/standard_error"]
    assert asked["finite/exploitability"] >= 0.7 * exact - 5 * asked["finite/standard_error"]


def test_the_players_themselves_are_played_against_when_asked() -> None:
    # Their policies feel the crowd: at N the field fluctuates, and the bound knows it.
    game = SusceptibleInfected(num_agents=15, horizon=4)
    players = players_of(game, "mfq", field="actions over everyone", temperature="0.02")
    judge = judging.Judge(game, players, sample=True)
    row = judge.last(lambda copies, key: Episode(Simulation(game, copies), players, key), 0.0, Key.of(0))
    assert row["finite/standard_error"] > 0
    assert row["finite/exploitability"] > -5 * row["finite/standard_error"]


def test_nothing_is_reported_where_it_is_off_or_has_no_limit_and_the_run_goes_on() -> None:
    game = BeachBar(num_agents=6)
    off = finish(train(game, "random", steps=4, report_every=2, exploitability="off"))
    assert not any("exploitability" in name for row in off for name in row)
    training = train(game, "mfq", {"field": "actions over sampled(2)"}, steps=4, report_every=2)
    assert not any("exploitability" in name for row in finish(training) for name in row)
    assert training.judge is not None and "sampled(2)" in training.judge.told


def test_large_games_are_looked_at_once_and_larger_ones_never(monkeypatch: pytest.MonkeyPatch) -> None:
    game = BeachBar(num_agents=6)
    monkeypatch.setattr(judging, "_OFTEN", 10)
    rows = finish(train(game, "random", steps=4, report_every=2))
    assert ["limit/exploitability" in row for row in rows] == [False, True]
    monkeypatch.setattr(judging, "_ONCE", 10)
    training = train(game, "random", steps=4, report_every=2)
    assert not any("exploitability" in name for row in finish(training) for name in row)
    assert training.judge is not None and "too many" in training.judge.told


def test_theory_says_zero_for_the_cold_and_the_quantal_gap_for_the_warm() -> None:
    game = LeftRight(num_agents=20)
    assert {k.value for k in judging.known(game, 0.0).values()} == {0.0}
    warm = judging.known(game, 0.3)
    assert warm["limit/exploitability"].value > 0.01
    assert warm["finite/exploitability"].value > warm["limit/exploitability"].value
    # A learner at that temperature comes to it.
    row = finish(train(game, "iql", {"values": "table", "temperature": "0.3"}, steps=400, report_every=400, copies=8))[
        -1
    ]
    assert row["limit/exploitability"] == pytest.approx(warm["limit/exploitability"].value, abs=0.03)


def test_a_run_folder_holds_both_gaps_and_what_theory_says_of_them(tmp_path: Path) -> None:
    config = RunConfig(
        Choice("beach_bar", {"num_agents": 8}), {"all": Choice("iql", {"temperature": "0.2"})},
        RunOptions(steps=30, report_every=10, copies=2),
    )  # fmt: skip
    run_in_folder(config, tmp_path / "run")
    known = json.loads((tmp_path / "run" / "reference.json").read_text())
    assert known["limit/exploitability"]["value"] > 0 and known["finite/exploitability"]["kind"] == "equilibrium"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "finite/exploitability" in rows[-1] and "finite/exploitability" not in rows[0]


def test_the_policy_in_the_limit_is_worth_what_its_flow_says() -> None:
    game = SusceptibleInfected(num_agents=10, horizon=4)
    policy = limit.limit_policy(game, players_of(game, "mfq", temperature="0.02"))
    path = flow(game, policy)
    worth = float((path.mu[0] * values.of_policy(game, path).v[0]).sum())
    assert worth == pytest.approx(finite.gap(game, policy).limit_value, abs=1e-12)
