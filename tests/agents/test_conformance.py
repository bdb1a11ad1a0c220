"""What every agent of this package promises, generated from the registry: register one, and it is tested."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random as python_random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.envs.congestion import Congestion
from mfmarl.envs.ising import Ising
from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.world import World
from mfmarl.learning import checkpoint
from mfmarl.learning.agent import Agent
from mfmarl.learning.build import Built
from mfmarl.learning.episode import Episode
from mfmarl.learning.players import Player
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training, player_state
from mfmarl.options import options_of
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import entries, lookup
from mfmarl.statmech import gibbs
from tests.games.mini import Teams
from tests.learning.mini import Aim, Lattice, train

# ------------------------------------------------------------------------------------------------ the games


class Flock(NamedTuple):
    hunger: Tensor  # [E, N] int64
    alive: Tensor  # [E, N] bool


@dataclass(frozen=True)
class Meadow(PopulationEnv):
    """Three pastures, of which the one last grazed is closed; grazing in company pays, and some die.

    What the dead seem to see, `poison`, must not matter to anybody.
    """

    num_agents: int = 8
    horizon: int | None = 13
    risk: float = 0.06
    poison: float = 0.0

    def spec(self) -> Spec:
        box = gymnasium.spaces.Box(-1.0, 1.0, (3,))
        return Spec(self.num_agents, box, gymnasium.spaces.Discrete(3), self.horizon)

    def reset(self, ids: Tensor, key: Key) -> Flock:
        return Flock(random.integers(key, ids, 3), torch.ones_like(ids, dtype=torch.bool))

    def observe(self, state: Flock) -> Tensor:
        seen = torch.nn.functional.one_hot(state.hunger, 3).float()
        return torch.where(state.alive.unsqueeze(-1), seen, self.poison)

    def alive(self, state: Flock) -> Tensor:
        return state.alive

    def legal(self, state: Flock) -> Tensor:
        # The dead may do nothing at all: agents must not stumble over a row without a legal action.
        return torch.nn.functional.one_hot(state.hunger, 3).eq(0) & state.alive.unsqueeze(-1)

    def step(self, state: Flock, action: Tensor, ids: Tensor, key: Key) -> tuple[Flock, Tensor]:
        here = torch.nn.functional.one_hot(action, 3).float() * state.alive.unsqueeze(-1)
        company = here.mean(1).gather(1, action)
        alive = state.alive & (random.uniform(key.fold("risk"), ids) >= self.risk)
        return Flock(torch.where(state.alive, action, state.hunger), alive), company + 0.1 * action


class Sights(NamedTuple):
    seen: Tensor  # [E, N, 13, 13, 5]
    left: Tensor  # [E] int64


@dataclass(frozen=True)
class Arena(PopulationEnv):
    """Two teams who see pictures of the shape of MAgent2's battles, with as many actions."""

    num_agents: int = 4
    horizon: int | None = 5

    def spec(self) -> Spec:
        half = self.num_agents // 2
        sizes = (half, self.num_agents - half)
        box, moves = gymnasium.spaces.Box(0.0, 1.0, (13, 13, 5)), gymnasium.spaces.Discrete(21)
        return Spec(self.num_agents, box, moves, self.horizon, ("red", "blue"), sizes)

    def _look(self, ids: Tensor, key: Key) -> Tensor:
        return (random.uniform(key.fold("look"), ids, 13 * 13 * 5) < 0.1).float().view(*ids.shape, 13, 13, 5)

    def reset(self, ids: Tensor, key: Key) -> Sights:
        return Sights(self._look(ids, key), torch.zeros(len(ids), dtype=torch.int64))

    def observe(self, state: Sights) -> Tensor:
        return state.seen

    def step(self, state: Sights, action: Tensor, ids: Tensor, key: Key) -> tuple[Sights, Tensor]:
        struck = state.seen[..., 6, 7, 3] * (action >= 13)
        return Sights(self._look(ids, key), state.left + 1), struck + 0.01 * action


def fork() -> GenerativeModel:
    """A prize lies left or right, and a guide who is mostly right can be asked: places are guide, left, right."""
    place, side = torch.eye(3), torch.eye(2)
    told = torch.full((3, 3, 2), 0.0)
    told[0, 1:] = 1.0
    told[1:, 0] = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    paid = torch.zeros(2, 3, 2)
    paid[0, 0] = paid[0, 1, 1] = paid[0, 2, 0] = 1.0
    paid[1] = 1 - paid[0]
    moves = place.unsqueeze(1).expand(3, 3, 3)  # [place, from, action]: one goes where one likes
    return GenerativeModel(
        A=(place.unsqueeze(-1).expand(3, 3, 2).double(), told.double(), paid.double()),
        B=(moves.permute(2, 1, 0).double(), (0.9 * side + 0.05).double()),
        C=(torch.zeros(3).double(), torch.zeros(3).double(), torch.tensor([0.0, 1.0]).double()),
        D=(place[0].double(), torch.full((2,), 0.5).double()),
        B_controls=((0,), ()),
        modalities=("place", "guide", "prize"),
        factors=("place", "side"),
    )


GAMES: dict[str, Callable[..., PopulationEnv]] = {
    "turns": lambda **o: Ising(**{"num_agents": 16, "order": "sequential", "horizon": 7, **o}),
    "congestion": lambda **o: Congestion(**{"num_agents": 7, "horizon": 7, **o}),
    "box": lambda **o: Aim(**{"num_agents": 5, "dims": 2, "horizon": 7, **o}),
    "teams": lambda **o: Lattice(**{"groups": ("red", "blue"), "risk": 0.03, "horizon": 11, **o}),
    "masks": Meadow,
    "pictures": Arena,
    "forks": lambda **o: World(fork(), **{"num_agents": 6, "horizon": 7, "groups": ("red", "blue"), **o}),
    "crowds": lambda **o: Teams(**{"num_agents": 8, "horizon": 7, **o}),
}
# In these, agents of a group differ in nothing but their names.
EXCHANGEABLE = ("congestion", "box", "masks", "pictures", "forks", "crowds")
# Of interest to agents that are given the rules: a generative model, a game in the limit. Others play them as they play
# anything else, which one of them may show.
GIVEN = ("forks", "crowds")
ASKED_FOR_RULES = {"mfq"} | set(entries("agent")) - {
    "iql", "mfac", "iac", "mfppo", "ippo", "random", "rusher", "sb3", "dqn", "ppo", "sac", "a2c",
}  # fmt: skip

# ----------------------------------------------------------------------------------------------- the agents

NAMES = [name for name, entry in entries("agent").items() if entry.origin == "mfmarl"]
# Small enough that every one of them learns, wraps its memory and begins new episodes within a few steps.
SMALL: dict[str, Any] = {
    "hidden": (8,), "channels": (4, 4), "warm_up": 8, "batch_size": 8, "capacity": 40, "rollout": 6,
    "epochs": 2, "minibatches": 2, "n_steps": 6, "exploration_steps": 20, "target_every": 3,
    "candidates": 6, "elites": 2, "iterations": 2, "members": 3, "habit_rows": 2, "horizon": 4,
}  # fmt: skip
# More than one agent goes by some names.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mfq": [{"values": "table", "bins": 3, "field": "moments(1) over everyone"}],
    "mfac": [{"carry": "caused", "temperature": "entropy(0.4)"}],
    "mfppo": [{"remember": 5, "temperature": "geometric(1, 0.1)", "field": "smoothed(actions over everyone, 0.5)"}],
    "sb3": [{"algorithm": "a2c"}, {"algorithm": "dqn"}],
    "active_inference": [
        {"model": "learned", "parameter_information": "exact", "planning": "open_loop", "depth": 2, "forgetting": 0.01},
        {"learn": "ABDE", "planning": "sophisticated", "depth": 2, "temperature": "entropy(0.5)"},
    ],
}
# What cannot be played, and is refused in a sentence; agents that are not named here may refuse what they like.
REFUSED: dict[str, set[str]] = {
    "mfq": {"box"},
    "iql": {"box"},
    "mfac": set(),
    "iac": set(),
    "mfppo": set(),
    "ippo": set(),
    "random": set(),
    "rusher": set(GAMES) - {"pictures"},
    "active_inference": set(GAMES) - {"forks"},
    "belief_planner": set(GAMES) - {"forks"},
    "free_energy_equilibrium": set(GAMES) - {"crowds"},
    "kl_control": set(GAMES) - {"crowds"},
    "sb3": {"masks"},
    "sb3-dqn": {"box", "masks"},
    "mfq-table": {"box", "pictures"},
}


class Kind(NamedTuple):
    """An agent and its options; `label` is how tests call it."""

    name: str
    label: str
    options: tuple[tuple[str, Any], ...]

    def refuses(self, game: str) -> bool:
        return game in REFUSED.get(self.label, REFUSED.get(self.name, set()))


def kind(name: str, options: dict[str, Any]) -> Kind:
    known = {o.name for o in options_of(lookup("agent", name).load().Config)}
    label = "-".join(
        [name, *(str(v) for k, v in options.items() if k in ("values", "carry", "algorithm", "remember", "planning"))]
    )
    return Kind(name, label, tuple(({k: v for k, v in SMALL.items() if k in known} | options).items()))


KINDS = [kind(name, options) for name in NAMES for options in [{}, *VARIANTS.get(name, [])]]
# A twin without a field is the same code: it need not play everything again.
PAIRS = [
    (k, game)
    for k in KINDS
    for game in GAMES
    if not k.refuses(game)
    and (not lookup("agent", k.name).overrides or game in ("turns", "box", "masks"))
    and (game not in GIVEN or k.name in ASKED_FOR_RULES)
]
REFUSALS = [(k, g) for k in KINDS for g in GAMES if k.refuses(g)]
every_agent = pytest.mark.parametrize("agent", KINDS, ids=[k.label for k in KINDS])


def every_pair(games: tuple[str, ...] = tuple(GAMES)) -> pytest.MarkDecorator:
    chosen = [(k, g) for k, g in PAIRS if g in games]
    return pytest.mark.parametrize(("agent", "game"), chosen, ids=[f"{k.label}-{g}" for k, g in chosen])


def begin(agent: Kind, game: str | PopulationEnv, **run: Any) -> Training:
    """A run that is ready to go; agents that are not known to `REFUSED` may refuse it, and are skipped then."""
    rules = GAMES[game]() if isinstance(game, str) else game
    settings = {"steps": 24, "report_every": 5, "evaluation_steps": 3, **run}
    if lookup("agent", agent.name).load().memory == "self":  # a library that trains the whole environment
        settings = {"sharing": "all", **settings}
    try:
        return train(rules, agent.name, dict(agent.options), **settings)
    except ConfigError as refusal:
        if agent.name in REFUSED:
            raise
        pytest.skip(f"refuses this game: {refusal}")


def rows_of(training: Training) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in training.rows()]


def everything(training: Training) -> dict[str, Tensor]:
    tensors, _ = training.state_dict()
    return {name: value.detach().clone() for name, value in tensors.items()}


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names of what is not the same, bit by bit (NaN is NaN)."""
    names = set(one) ^ set(other)
    for name in set(one) & set(other):
        a, b = one[name], other[name]
        if a.dtype != b.dtype or a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all()):
            names.add(name)
    return sorted(names)


@cache
def whole(agent: Kind, game: str) -> tuple[Training, list[dict[str, Any]], dict[str, Tensor]]:
    """A run that was never stopped: itself, its rows, and everything it ended with."""
    before = begin(agent, game)
    started = everything(before)
    with same_global_generators():
        rows = rows_of(before)
    if before.players[0].agent.memory != "none":
        learned = [n for n in different(started, everything(before)) if ".agent." in n and "log_temperature" not in n]
        assert learned, "it learns from these few steps: else the tests of learning are empty"
    return before, rows, everything(before)


@contextmanager
def same_global_generators() -> Iterator[None]:
    """Nobody touches the generators that the whole process shares."""
    theirs = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()  # type: ignore[index,union-attr]
    yield
    assert torch.equal(torch.get_rng_state(), theirs[0])
    assert (np.random.get_state()[1] == theirs[1]).all()  # type: ignore[index]
    assert python_random.getstate() == theirs[2]


# ------------------------------------------------------------------------------------------------ the tests


@every_pair()
def test_stopping_and_resuming_is_bitwise_never_having_stopped(agent: Kind, game: str, tmp_path: Path) -> None:
    """Stopped between two reports, in the middle of rollouts and episodes, and gone on with from the file elsewhere.

    The first part is a second run of the same key: it is the same, whatever the global generators hold.
    """
    _, rows, ended = whole(agent, game)
    torch.manual_seed(123)  # noqa: TID251 - nothing may depend on the global generators
    np.random.seed(123)
    python_random.seed(123)
    first = begin(agent, game)
    if first.players[0].agent.memory == "self":  # a library is handed whole intervals
        seen = list(itertools.islice(first.rows(), 3))
    else:
        step = first.step

        def counted() -> None:
            step()
            first.stopping = first.tick >= 17

        first.step = counted  # type: ignore[method-assign]
        seen = list(first.rows())
        assert first.tick == 17
    tensors, plain = first.state_dict()
    may_be_nan = ("train.env.timestep.action", "evaluation.env.timestep.action")
    checkpoint.save(tmp_path, first.tick, tensors, plain, config_digest="0" * 64, nonfinite=may_be_nan)
    found = checkpoint.load(tmp_path)
    again = begin(agent, game)
    again.load_state_dict(found.tensors, found.state)
    assert [{k: v for k, v in r.items() if k not in ("wall", "cpu")} for r in seen] + rows_of(again) == rows
    assert different(ended, everything(again)) == []


@every_pair(("box", "congestion", "masks", "pictures"))
def test_another_seed_is_another_run(agent: Kind, game: str) -> None:
    _, _, ended = whole(agent, game)
    other = begin(agent, game, seed=1, steps=3, report_every=3)
    assert rows_of(other)[0]["train/reward"] != whole(agent, game)[1][0]["train/reward"]
    assert different(ended, everything(other)) != []


@every_pair()
def test_a_copy_does_not_know_how_many_copies_there_are(agent: Kind, game: str) -> None:
    """Frozen agents in one copy and in three: what the first copy's feel and do has the same bits."""
    players = whole(agent, game)[0].players
    one, three = (Episode(Simulation(GAMES[game](), copies), players, Key.of(5)) for copies in (1, 3))
    for _ in range(12):
        a, b = one.act(), three.act()
        assert torch.equal(a, b[:1])
        assert all(torch.equal(x, y[:1]) for x, y in zip(one.felt, three.felt, strict=True))
        for episode, action in ((one, a), (three, b)):
            _, _, after, now = episode.play(action)
            episode.go_on(after, now)


@every_pair(EXCHANGEABLE)
def test_relabelling_agents_relabels_what_they_do_and_earn(agent: Kind, game: str) -> None:
    """A shared mind does not know its agents by their place: shuffled within their group, each does as before."""
    players = whole(agent, game)[0].players
    plain, shuffled = Simulation(GAMES[game](), 2), Simulation(GAMES[game](), 2)
    spec = plain.spec
    order = torch.argsort(spec.group + random.uniform(Key.of(0), torch.arange(spec.num_agents)))
    assert not torch.equal(order, torch.arange(spec.num_agents))
    shuffled.ids = shuffled.ids[:, order]
    a, b = Episode(plain, players, Key.of(6)), Episode(shuffled, players, Key.of(6))
    for _ in range(12):
        _, action, after, now = a.play()
        _, turned, later, then = b.play()
        # Exact but for the rounding of sums over agents in another order.
        torch.testing.assert_close(turned, action[:, order], rtol=1e-4, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(later.reward, after.reward[:, order], rtol=1e-4, atol=1e-5)
        assert torch.equal(later.alive, after.alive[:, order])
        a.go_on(after, now), b.go_on(later, then)


@every_pair()
def test_being_evaluated_changes_nothing_in_an_agent(agent: Kind, game: str) -> None:
    training = whole(agent, game)[0]
    before = [{k: v.clone() for k, v in player_state(p).items()} for p in training.players]
    with same_global_generators():
        training.evaluate(9)
    for player, state in zip(training.players, before, strict=True):
        assert different(state, player_state(player)) == []


@every_agent
def test_how_often_it_is_watched_changes_nothing(agent: Kind) -> None:
    """Neither reports nor evaluation are felt in training: the same weights, the same population."""
    game = next(g for k, g in PAIRS if k == agent)
    watched = begin(agent, game, report_every=4)
    alone = train(GAMES[game](), agent.name, dict(agent.options), evaluate=False, steps=24, report_every=24)
    rows_of(watched), rows_of(alone)
    a, b = ({k: v for k, v in everything(t).items() if k.startswith(("train.", "player."))} for t in (watched, alone))
    assert different(a, b) == []


@every_pair(("masks",))
@pytest.mark.parametrize("temperature", ["0", "0.01", "1", "1e9", "entropy(0.5)"])
def test_only_legal_actions_are_chosen_at_any_temperature(agent: Kind, game: str, temperature: str) -> None:
    hot = kind(agent.name, {**dict(agent.options), "temperature": temperature})
    agents = 4000
    training = begin(hot, Meadow(agents), evaluate=False)
    chooser = training.players[0].agent
    assert isinstance(chooser, nn.Module)
    for round_ in range(3):
        key, ids = Key.of(round_), torch.arange(agents).unsqueeze(0)
        obs = random.normal(key.fold("obs"), ids, 3)
        if chooser.perceives:  # it acts upon beliefs, which are not any numbers
            obs = training.episode.seen[0].obs[:1]
        legal = random.uniform(key.fold("legal"), ids, 3) < 0.4
        action = chooser.choose(obs, torch.zeros(1, agents, chooser.field_size), legal, ids, key)
        asked = legal.any(-1)
        assert bool(legal.gather(-1, action.unsqueeze(-1)).squeeze(-1)[asked].all())
        assert bool(((action >= 0) & (action < 3)).all())


@every_pair(("box",))
def test_continuous_actions_stay_in_the_box(agent: Kind, game: str) -> None:
    """However far the weights have gone."""
    training = begin(agent, game, evaluate=False)
    with torch.no_grad():
        for weight in training.players[0].agent.parameters():
            weight.mul_(1e3)
    space = training.episode.env.spec.action_space
    for _ in range(3):
        action = training.episode.act()
        assert all(space.contains(row.numpy()) for row in action.flatten(0, 1))
        _, _, after, now = training.episode.play(action)
        training.episode.go_on(after, now)


@every_pair(("masks",))
@pytest.mark.parametrize("sharing", ["all", "none"])
def test_the_dead_are_not_learned_from(agent: Kind, game: str, sharing: str) -> None:
    """What the dead would see, and what their rows hold, changes no bit of what the living learn and do."""
    mortal = {"risk": 0.15, "horizon": 9}
    clean, poisoned = (begin(agent, Meadow(poison=p, **mortal), sharing=sharing) for p in (0.0, 1e3))  # type: ignore[arg-type]
    assert rows_of(clean) == rows_of(poisoned)
    a, b = ({k: v for k, v in everything(t).items() if ".agent." in k} for t in (clean, poisoned))
    assert different(a, b) == []
    assert clean.agent_steps < 24 * 2 * 8, "some died"


def peak_memory() -> int:
    """The most memory this process has held since `forget_peak`, in bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def forget_peak() -> int:
    """Begin to watch the peak anew; returns it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return peak_memory()


@every_agent
@pytest.mark.parametrize("agents", [1, 2, 100_000])
def test_any_number_of_agents_plays_and_learns(agent: Kind, agents: int) -> None:
    """A hundred thousand: no loop over them, and a few kilobytes for each."""
    game = next(g for g in ("masks", "congestion", "box", "pictures", *GIVEN) if not agent.refuses(g))
    if game in ("forks", "crowds") and agents == 1:
        pytest.skip("there are two teams")
    if game == "pictures" and agents != 2:
        pytest.skip("there are two teams, and pictures take 3 kB each")
    if agent.name == "sb3" and agents > 10:  # minibatches of eight rows would be a loop over agents
        agent = kind(agent.name, {k: v for k, v in agent.options if k == "algorithm"} | {"batch_size": 0})
    steps = 24 if agents < 10 else 7
    before, began = forget_peak(), time.process_time()
    training = begin(
        agent, GAMES[game](num_agents=agents), steps=steps, report_every=steps, copies=1, evaluation_steps=1
    )
    row = rows_of(training)[-1]
    assert row["agent_steps"] <= steps * agents
    assert all(np.isfinite(v) for v in row.values())
    if agents > 10:
        assert row["agent_steps"] > 0.5 * steps * agents
        assert time.process_time() - began < 30
        assert peak_memory() - before < 4000 * agents


@every_agent
@pytest.mark.parametrize(("sharing", "players"), [("all", 1), ("group", 2), ("none", 2)])
def test_sharing_says_how_many_minds_there_are(agent: Kind, sharing: str, players: int) -> None:
    game = next(g for g in ("teams", "pictures", *GIVEN) if not agent.refuses(g))
    if agent.name == "sb3" and sharing != "all":
        # One library trains the whole environment, with one policy.
        with pytest.raises(ConfigError, match="sharing all|cannot share"):
            begin(agent, game, sharing=sharing)
        return
    training = begin(agent, game, sharing=sharing)
    assert len(training.players) == players
    for player in training.players:
        assert player.agent.minds == (player.slots.stop - player.slots.start if sharing == "none" else 1)
    assert all(np.isfinite(v) for row in rows_of(training) for v in row.values())


BONUS = {"last": 0.0}


class FavouredDrivers(Congestion):
    """The last agent is paid a bonus."""

    def step(self, state: Any, action: Tensor, ids: Tensor, key: Key) -> Any:
        following, reward = super().step(state, action, ids, key)
        return following, torch.cat([reward[:, :-1], reward[:, -1:] + BONUS["last"]], 1)


class FavouredAim(Aim):
    """Likewise."""

    def step(self, state: Any, action: Tensor, ids: Tensor, key: Key) -> Any:
        following, reward = super().step(state, action, ids, key)
        return following, torch.cat([reward[:, :-1], reward[:, -1:] + BONUS["last"]], 1)


@every_agent
@pytest.mark.parametrize("rules", [FavouredDrivers, FavouredAim])
def test_minds_of_their_own_learn_from_their_own_experience_alone(agent: Kind, rules: type[PopulationEnv]) -> None:
    """Everybody plays the same actions twice; only the last agent's pay differs, and only its mind comes out other."""
    game = "box" if rules is FavouredAim else "congestion"
    if agent.refuses(game) or agent.name == "sb3" or "entropy" in str(dict(agent.options).get("temperature")):
        pytest.skip("it does not play this, has one mind only, or one temperature for all that follows their mean")
    alone, ends = kind(agent.name, {**dict(agent.options), "field": "nothing"}), []
    for bonus in (0.0, 3.0):
        BONUS["last"] = bonus
        made = rules(num_agents=5, horizon=7, **({"dims": 2} if game == "box" else {}))  # type: ignore[call-arg]
        training = begin(alone, made, sharing="none", evaluate=False)
        episode, play = training.episode, training.episode.play
        for tick in range(24):
            noise = random.uniform(Key.of(3).fold(tick), episode.env.ids, 2)
            chosen = noise - 0.5 if game == "box" else (noise[..., 0] * 4).long()
            episode.play = lambda action=chosen, play=play: play(action)  # type: ignore[method-assign,misc]
            training.step()
        minds = training.players[0].agent
        ends.append({k: v.clone() for k, v in minds.state_dict().items() if v.ndim and v.shape[0] == 5})
    BONUS["last"] = 0.0
    one, other = ends
    assert [name for name in one if not torch.equal(one[name][:-1], other[name][:-1])] == []
    if training.players[0].agent.memory != "none":
        assert any(not torch.equal(one[name][-1], other[name][-1]) for name in one)


@every_agent
def test_numbers_are_float32_on_the_device_of_the_run(agent: Kind) -> None:
    for game in (g for k, g in PAIRS if k == agent):
        training = whole(agent, game)[0]
        for player in training.players:
            for name, value in player_state(player).items():
                assert value.device.type == "cpu", name
                assert not value.is_floating_point() or value.dtype == torch.float32 or name.startswith("memory."), name
        action = training.episode.act()
        assert action.dtype == (torch.int64 if training.episode.env.spec.discrete else torch.float32)


@pytest.mark.parametrize(("agent", "game"), REFUSALS, ids=[f"{k.label}-{g}" for k, g in REFUSALS])
def test_what_cannot_be_played_is_refused_in_one_sentence(agent: Kind, game: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        rows_of(begin(agent, game))
    text = str(refusal.value)
    assert 20 < len(text) < 400
    assert "\n" not in text


@pytest.mark.parametrize("name", NAMES)
def test_options_are_documented_one_by_one(name: str) -> None:
    made = lookup("agent", name).load()
    assert not [option.name for option in options_of(made.Config) if not option.help]
    assert made.__doc__


# ------------------------------------------------------------------------------- folders and other processes

OUTSIDE: dict[str, Any] = {"watching": False, "folder": Path(), "found": []}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which cannot be removed: asleep but in the test of where files are made."""
    if not OUTSIDE["watching"]:
        return
    if event == "open":
        path, mode, flags = arguments
        if not isinstance(path, str | bytes) or not (
            (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
    elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
        path = arguments[1] if event != "os.mkdir" else arguments[0]
    else:
        return
    where = Path(os.fsdecode(path)).absolute()
    if not where.is_relative_to(OUTSIDE["folder"]) and "__pycache__" not in where.parts and where != Path(os.devnull):
        OUTSIDE["found"].append((event, str(where)))


def folder_config(agent: Kind, **run: Any) -> RunConfig:
    """A run that another process can repeat: of a registered environment."""
    options = RunOptions(**{"copies": 2, "steps": 20, "report_every": 5, "evaluation_steps": 3, **run})
    choice = Choice(agent.name, {k: list(v) if isinstance(v, tuple) else v for k, v in agent.options})
    return RunConfig(Choice(*FOLDERS[folder_game(agent)]), {"all": choice}, options)


# Registered games, by a game here that is refused by whoever refuses them.
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "congestion": ("congestion", {"num_agents": 7, "horizon": 7}),
    "forks": ("t_maze", {"num_agents": 7, "horizon": 7}),
    "crowds": ("beach_bar", {"num_agents": 7, "horizon": 7}),
}


def folder_game(agent: Kind) -> str:
    """The first of them that it plays; empty if none."""
    return next((g for g in FOLDERS if not agent.refuses(g)), "")


FOLDER_KINDS = [k for k in KINDS if folder_game(k)]


@pytest.mark.parametrize("agent", FOLDER_KINDS, ids=[k.label for k in FOLDER_KINDS])
def test_nothing_is_written_outside_the_folder_of_the_run(
    agent: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config  # noqa: F401 - where torch is first asked for determinism, it makes a folder

    away, run = tmp_path / "temporary", tmp_path / "runs" / "mine"
    away.mkdir()
    run.parent.mkdir()
    for name in ("TMPDIR", "TEMP", "TMP", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(away))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(away)
    assert tempfile.gettempdir() == str(away)
    if not OUTSIDE.get("hooked"):
        sys.addaudithook(_watch)
        OUTSIDE["hooked"] = True
    (away / "seen").write_text("")
    OUTSIDE.update(watching=True, folder=run, found=[])
    try:
        (away / "seen").write_text("by the watch")
        assert OUTSIDE["found"], "the watch is awake"
        OUTSIDE["found"].clear()
        run_in_folder(folder_config(agent), run)
    finally:
        OUTSIDE["watching"] = False
    assert OUTSIDE["found"] == []
    assert [p.name for p in away.iterdir()] == ["seen"]
    assert [p.name for p in run.parent.iterdir()] == ["mine"]


def play_on(players: list[Player]) -> str:
    """What these players do in a population of their own, frozen: a digest of every action and reward."""
    env = Simulation(players[0].agent.spec.rules, 3)
    episode, digest = Episode(env, players, Key.of(11)), hashlib.sha256()
    for _ in range(12):
        _, action, after, now = episode.play()
        digest.update(action.numpy().tobytes() + after.reward.numpy().tobytes())
        episode.go_on(after, now)
    for player in players:
        agent, obs = player.agent, episode.seen[0].obs
        with torch.no_grad():
            digest.update(agent.energy(agent.by_mind(obs), agent.by_mind(episode.felt[0])).numpy().tobytes())
    return digest.hexdigest()


def test_the_checkpoint_is_the_whole_agent(tmp_path: Path) -> None:
    """A fresh process that loads nothing but the folder acts as the process that trained does, bit by bit."""
    expected: dict[str, str] = {}
    for agent in FOLDER_KINDS:
        path = tmp_path / agent.label
        built: list[Built] = []
        run_in_folder(folder_config(agent, sharing="all"), path, on_start=built.append)
        expected[agent.label] = play_on(built[0].players)
    assert len(set(expected.values())) == len(expected), "they all play differently"
    program = (
        "import json, pathlib, sys\n"
        "from mfmarl.learning.run import load_training\n"
        "from tests.agents.test_conformance import play_on\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "print(json.dumps({p.name: play_on(load_training(p)[1].players) for p in sorted(root.iterdir())}))\n"
    )
    there = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=there, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@every_agent
def test_a_temperature_is_that_of_a_draw(agent: Kind) -> None:
    """Frequencies of what is chosen against exp(-E/T)/Z of its own energies: 5 standard errors. No argmax."""
    game = next(g for g in ("congestion", "pictures", *GIVEN) if not agent.refuses(g))
    playing = whole(agent, game)[0]
    chooser, episode = playing.players[0].agent, playing.episode
    rows, draws = 20, 2000
    obs = chooser.by_mind(episode.seen[0].obs[:, chooser.slots]).flatten(0, 1)[:rows]
    felt = chooser.by_mind(episode.felt[0]).flatten(0, 1)[:rows]
    many, field = (x.repeat_interleave(draws, 0).unsqueeze(0) for x in (obs, felt))
    if type(chooser).act is not Agent.act:
        pytest.skip("it acts by a rule of its own")
    with torch.no_grad():
        energy = chooser.energy(many, field)
        action = chooser.choose(many, field, None, torch.arange(many.shape[1]).unsqueeze(0), Key.of(4))
        p = gibbs.probabilities(energy, chooser.temperature)[0].double()
    actions = p.shape[-1]
    seen = torch.nn.functional.one_hot(action[0], actions).double().mean(0)
    error = (p * (1 - p)).mean(0).div(len(p)).sqrt()
    assert bool(((seen - p.mean(0)).abs() <= 5 * error + 1e-9).all())
