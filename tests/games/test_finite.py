"""Gaps of N agents: against plain enumeration of everybody, closed forms, the simulation, and numbers known from elsewhere."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games import finite, values
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key
from tests.statistical import beyond, statistical


@dataclass(frozen=True)
class Restless(MeanFieldGame):
    """Everything at once: dynamics and rewards that depend on the crowd and the time, a forbidden action, a last reward."""

    horizon: int | None = 3
    discount: float = 0.9
    places: int = 3

    time_dependent = True

    @property
    def num_states(self) -> int:
        return self.places

    @property
    def num_actions(self) -> int:
        return 2

    def initial(self) -> Tensor:
        weight = torch.arange(1, self.places + 1).double()
        return weight / weight.sum()

    def _table(self, name: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=random.generator(Key.of(3).fold(name)), dtype=torch.float64)

    def _pull(self, crowd: Crowd) -> Tensor:
        return crowd.mu

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        s = self.places
        weight = self._table("moves", s, 2, s, s) * (1 + t / 5)
        felt = torch.einsum("saxy,...y->...sax", weight, self._pull(crowd))
        return Dense((felt + self._table("habit", s, 2, s)).softmax(-1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        reward = torch.einsum("say,...y->...sa", self._table("reward", self.places, 2, self.places), self._pull(crowd))
        return reward.square() - math.cos(t)

    def effort(self) -> Tensor:
        return torch.tensor([0.0, 0.3], dtype=torch.float64).expand(self.places, 2)

    def terminal(self, crowd: Crowd) -> Tensor:
        return 2 * crowd.mu.square() - crowd.mu[..., :1]

    def allowed(self) -> Tensor:
        mask = torch.ones(self.places, 2, dtype=torch.bool)
        mask[0, 1] = False
        return mask


@dataclass(frozen=True)
class Watchful(Restless):
    """The same, in which what the others do counts and not only where they are."""

    extended = True

    def _pull(self, crowd: Crowd) -> Tensor:
        done = crowd.joint
        return crowd.mu + 2 * done[..., 0] - done[..., 1].square()


@dataclass(frozen=True)
class Priced(Watchful):
    """Rewards depend on what others do, moves on nobody."""

    crowd_moves = False

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return Dense(self._table("habit", self.places, 2, self.places).softmax(-1))


@dataclass(frozen=True)
class Alone(Priced):
    """Rewards depend on where others are, moves on nobody."""

    extended = False

    def _pull(self, crowd: Crowd) -> Tensor:
        return crowd.mu.sqrt()


def some_policy(game: MeanFieldGame, name: str = "policy") -> Tensor:
    logits = torch.randn(uniform(game).shape, generator=random.generator(Key.of(7).fold(name)), dtype=torch.float64)
    legal = game.legal_mask()
    return (logits if legal is None else logits.masked_fill(~legal, -torch.inf)).softmax(-1)


def enumerated(game: MeanFieldGame, policy: Tensor, agents: int) -> tuple[float, float]:
    """The value of the policy and of the best answer to it, by walking through the states of all agents by name.

    No counts, no Fourier sums, no batch: every place and choice of everybody, one after the other.
    """
    states, actions, horizon = game.num_states, game.num_actions, game.horizon
    assert horizon is not None
    legal = game.legal_mask()
    places = list(itertools.product(range(states), repeat=agents))

    def crowd_of(where: tuple[int, ...], done: tuple[int, ...] | None = None) -> Crowd:
        mu = torch.zeros(1, states, dtype=torch.float64)
        joint = torch.zeros(1, states, actions, dtype=torch.float64)
        for k, s in enumerate(where):
            mu[0, s] += 1 / agents
            if done is not None:
                joint[0, s, done[k]] += 1 / agents
        return Crowd(mu, counted=joint if game.extended and done is not None else None)

    def last(where: tuple[int, ...]) -> float:
        paid = game.terminal(crowd_of(where))
        return 0.0 if paid is None else float(paid[0, where[0]])

    best = {where: last(where) for where in places}
    held = dict(best)
    for t in range(horizon - 1, -1, -1):
        now_best, now_held = {}, {}
        for where in places:
            q_best, q_held = [0.0] * actions, [0.0] * actions
            for done in itertools.product(range(actions), repeat=agents):
                chance = math.prod(float(policy[t, 0, s, a]) for s, a in zip(where[1:], done[1:], strict=True))
                if not chance:
                    continue
                crowd = crowd_of(where, done)
                paid = float(game.paid(t, crowd)[0, where[0], done[0]])
                law = game.kernel(t, crowd).dense()
                law = law.reshape(states, actions, states)
                ahead_best = ahead_held = 0.0
                for after in places:
                    p = math.prod(float(law[s, a, z]) for s, a, z in zip(where, done, after, strict=True))
                    ahead_best += p * best[after]
                    ahead_held += p * held[after]
                q_best[done[0]] += chance * (paid + game.discount * ahead_best)
                q_held[done[0]] += chance * (paid + game.discount * ahead_held)
            free = [a for a in range(actions) if legal is None or bool(legal[0, where[0], a])]
            now_best[where] = max(q_best[a] for a in free)
            now_held[where] = sum(float(policy[t, 0, where[0], a]) * q_held[a] for a in free)
        best, held = now_best, now_held
    start = game.start()[0]
    weight = {w: math.prod(float(start[s]) for s in w) for w in places}
    return sum(weight[w] * held[w] for w in places), sum(weight[w] * best[w] for w in places)


@pytest.mark.parametrize("agents", [1, 2, 3])
@pytest.mark.parametrize("kind", [Restless, Watchful, Priced, Alone])
def test_counting_gives_what_walking_through_everybody_gives(kind: type[Restless], agents: int) -> None:
    # Three agents in three places by three steps are many ways to walk: two places there.
    game = kind(num_agents=max(agents, 2), places=3 if agents < 3 else 2, horizon=3 if agents < 3 else 2)
    policy = some_policy(game)
    value, best = enumerated(game, policy, agents)
    found = finite.gap(game, policy, agents)
    assert found.value == pytest.approx(value, abs=1e-11)
    assert found.best == pytest.approx(best, abs=1e-11)
    assert found.exploitability == pytest.approx(best - value, abs=1e-11)


@pytest.mark.parametrize(("agents", "told"), [(20, 4.22), (100, 1.13), (200, 0.82)])
def test_what_the_limit_calls_small_is_large_for_few(agents: int, told: float) -> None:
    # Mirror descent with rate .1 for 100 iterations; the gaps of an independent computation.
    game = SusceptibleInfected(horizon=51)
    policy = solve(game, MirrorDescent(rate=0.1), 100, every=100).last
    assert float(exploitability(game, policy)) == pytest.approx(0.383, abs=5e-4)
    assert finite.gap(game, policy, agents).exploitability == pytest.approx(told, abs=5e-3)


@pytest.mark.parametrize("agents", [2, 3, 10, 40])
def test_the_equilibrium_of_n_leaves_nothing_to_gain_left_or_right(agents: int) -> None:
    game = LeftRight(num_agents=agents)
    left = min(1.0, (2 * agents - 1) / (3 * (agents - 1)))
    policy = uniform(game)
    policy[:, :, 0] = torch.tensor([left, 1 - left], dtype=torch.float64)
    found = finite.gap(game, policy)
    assert found.exploitability == pytest.approx(0, abs=1e-12)
    assert found.value == pytest.approx(-2 * (agents + 1) / (3 * agents), abs=1e-12)
    policy[:, :, 0] = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    # The limit's equilibrium is none of N agents: on the right one's own weight counts twice, so left is 1/N better.
    assert finite.gap(game, policy).exploitability == pytest.approx(1 / (3 * agents), abs=1e-12)
    assert float(exploitability(game, policy)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("game", [SusceptibleInfected(num_agents=12, horizon=6), BeachBar(num_agents=9)])
@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "steps-share-noise"))
def test_the_value_is_what_the_simulation_pays(game: MeanFieldGame) -> None:
    policy = some_policy(game)
    copies = 20_000
    ids, key = agent_ids(copies, game.num_agents, torch.device("cpu")), Key.of(5)
    state = game.reset(ids, key)
    total = torch.zeros(copies, dtype=torch.float64)
    for t in range(game.horizon or 0):
        cumulative = policy[t, 0].cumsum(-1)[state.state]
        level = random.uniform(key.fold("act", t), ids).double().unsqueeze(-1)
        action = (level > cumulative[..., :-1]).sum(-1)
        state, reward = game.step(state, action, ids, key.fold("step", t))
        total += reward.double().mean(-1)
    error = float(total.std()) / copies**0.5
    assert float(total.mean()) == pytest.approx(finite.gap(game, policy).value, abs=5 * error)


def test_many_agents_get_what_the_limit_says() -> None:
    game = SusceptibleInfected(horizon=5)
    policy = some_policy(game)
    off = [abs(found.value - found.limit_value) for found in (finite.gap(game, policy, n) for n in (50, 100, 200))]
    # The error of the value falls as 1/N.
    assert off[0] / off[1] == pytest.approx(2, abs=0.05)
    assert off[1] / off[2] == pytest.approx(2, abs=0.03)


def test_who_sees_less_gains_less_and_what_theory_says_of_one_place() -> None:
    game = Alone(num_agents=6)
    policy = some_policy(game)
    blind, informed = finite.uninformed(game, policy), finite.gap(game, policy)
    assert blind.value == pytest.approx(informed.value, abs=1e-12)
    assert 0 < blind.exploitability < informed.exploitability
    # With one action only there is nothing to know.
    forced = uniform(game)
    forced[:, :, :, 0], forced[:, :, :, 1] = 1.0, 0.0
    assert finite.uninformed(game, forced).value == pytest.approx(finite.gap(game, forced).value, abs=1e-12)


@pytest.mark.parametrize("kind", [Priced, Alone])
def test_an_answer_that_sees_no_crowd_is_the_best_of_all_such_answers(kind: type[Restless]) -> None:
    game = kind(num_agents=2, places=2, horizon=2)
    policy = some_policy(game)
    best = -math.inf
    for choice in itertools.product(range(2), repeat=4):  # action at (time, state)
        answer = torch.nn.functional.one_hot(torch.tensor(choice), 2).double().view(2, 1, 2, 2)
        legal = game.legal_mask()
        if legal is not None and bool((answer > 0).logical_and(~legal).any()):
            continue
        best = max(best, _value_of_answer(game, policy, answer))
    assert finite.uninformed(game, policy).best == pytest.approx(best, abs=1e-12)


def _value_of_answer(game: MeanFieldGame, policy: Tensor, answer: Tensor) -> float:
    """What the first of two agents gets by `answer` while the second keeps the policy."""
    start, total = game.start()[0], 0.0
    law = game.kernel(0, Crowd(game.start())).dense()
    joint = torch.outer(start, start)  # of the two places
    for t in range(game.horizon or 0):
        after = torch.zeros_like(joint)
        for s, z, a, b in itertools.product(range(2), repeat=4):
            p = float(joint[s, z] * answer[t, 0, s, a] * policy[t, 0, z, b])
            if p:
                counted = torch.zeros(1, 2, 2, dtype=torch.float64)
                counted[0, s, a] += 0.5
                counted[0, z, b] += 0.5
                crowd = Crowd(counted.sum(-1), counted=counted)
                total += game.discount**t * p * float(game.paid(t, crowd)[0, s, a])
                after += p * torch.outer(law[s, a], law[z, b])
        joint = after
    for s, z in itertools.product(range(2), repeat=2):
        mu = torch.zeros(1, 2, dtype=torch.float64)
        mu[0, s] += 0.5
        mu[0, z] += 0.5
        last = game.terminal(Crowd(mu))
        assert last is not None
        total += game.discount ** (game.horizon or 0) * float(joint[s, z] * last[0, s])
    return total


def test_a_game_without_end_is_a_long_one() -> None:
    @dataclass(frozen=True)
    class Held(SusceptibleInfected):
        """Begins where the game without end begins: at its stationary distribution."""

        at: float = 0.5

        def initial(self) -> Tensor:
            return torch.tensor([1 - self.at, self.at], dtype=torch.float64)

    endless = SusceptibleInfected(num_agents=15, horizon=None, discount=0.8)
    policy = some_policy(endless)
    mu = flow(endless, policy).mu[0, 0]
    long = Held(num_agents=15, horizon=150, discount=0.8, at=float(mu[1]))
    found, wanted = finite.gap(endless, policy), finite.gap(long, policy.expand(150, -1, -1, -1))
    assert found.value == pytest.approx(wanted.value, abs=1e-9)
    assert found.best == pytest.approx(wanted.best, abs=1e-9)
    assert found.exploitability > 1e-3


def test_ways_to_stand_are_counted_and_their_chances_sum_to_one() -> None:
    counts = finite.count_vectors(5, 4)
    assert len(counts) == finite.number_of_vectors(5, 4) == len({tuple(row) for row in counts.tolist()})
    assert bool((counts.sum(-1) == 5).all()) and bool((counts >= 0).all())
    chance = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    assert float(finite.multinomial(counts, chance).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert finite.count_vectors(3, 1).tolist() == [[3]]


def test_too_much_to_sum_is_refused_with_another_way() -> None:
    game = BeachBar(num_agents=1000)
    with pytest.raises(ConfigError, match="sampled"):
        finite.gap(game, uniform(game))
    pack = PredatorPrey(num_agents=6)
    assert finite.cost(pack) == math.inf
    with pytest.raises(ConfigError, match="groups"):
        finite.gap(pack, uniform(pack), budget=math.inf)
    noisy = BeachBar(num_agents=6, closing=0.3)
    assert finite.cost(noisy) == math.inf
    with pytest.raises(ConfigError, match="common noise"):
        finite.gap(noisy, uniform(noisy), budget=math.inf)
    with pytest.raises(ConfigError, match="One policy"):
        finite.gap(LeftRight(), uniform(LeftRight(), (2,)))
    with pytest.raises(NumericFault, match="no probability"):
        finite.gap(LeftRight(), torch.full_like(uniform(LeftRight()), torch.nan))
    with pytest.raises(ConfigError, match="at least 1"):
        finite.gap(LeftRight(), uniform(LeftRight()), 0)
    with pytest.raises(ConfigError, match="crowd"):
        finite.uninformed(SusceptibleInfected(), uniform(SusceptibleInfected()))


def test_the_gap_of_everything_alike_is_the_best_responses_gain_in_the_limit_too() -> None:
    # Where rewards do not depend on the crowd, N does not matter.
    game = SusceptibleInfected(num_agents=5, horizon=4, infection=0.0)
    policy = some_policy(game)
    limit = float(exploitability(game, policy))
    assert finite.gap(game, policy).exploitability == pytest.approx(limit, abs=1e-12)
    assert float((flow(game, policy).mu[0] * values.best(game, flow(game, policy)).v[0]).sum()) == pytest.approx(
        finite.gap(game, policy).best, abs=1e-12
    )
