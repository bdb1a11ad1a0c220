"""Trained teams play each other: every pair of runs, on both sides, on fresh random streams.

A run that trained one agent plays both sides; one whose teams were played by two agents enters each of those that
learned, for its own side alone. A game is one episode of one copy. A team's score is how many of it are alive at the end where the environment
measures that (`alive/<team>`), else its return per agent; equal scores are a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from mfmarl.errors import ConfigError
from mfmarl.evaluation.elo import Match
from mfmarl.learning.agent import Agent
from mfmarl.learning.build import Built, agent_label, build
from mfmarl.learning.episode import Episode
from mfmarl.learning.players import Player
from mfmarl.learning.run import load_training
from mfmarl.learning.run_config import Choice, RunConfig
from mfmarl.population.simulation import Env
from mfmarl.random import Key
from mfmarl.registry import lookup


@dataclass(frozen=True)
class Entrant:
    """A trained run (or an untrained agent by name) that plays under a name; `run` tells its seed apart."""

    name: str
    run: int
    path: Path | None = None
    agent: Choice | None = None
    side: str = ""
    """The one team it plays; empty: either."""


def entrants_of(path: Path, config: RunConfig) -> list[Entrant]:
    """Who enters for a run: its agent, or, where two played, each that learned, under `agent (side vs other)`."""
    seed, agents = config.run.seed, config.agents
    if len(agents) == 1 or len(set(map(repr, agents.values()))) == 1:
        return [Entrant(agent_label(config) if len(agents) == 1 else next(iter(agents.values())).name, seed, path)]
    entered = []
    for side, choice in agents.items():
        kind = lookup("agent", choice.name).load()
        if kind.learn is not Agent.learn or kind.memory == "self":
            others = "+".join(sorted(other.name for team, other in agents.items() if team != side))
            entered.append(Entrant(f"{choice.name} ({side} vs {others})", seed, path, side=side))
    return entered


def sides_of(env: Env) -> tuple[str, str]:
    """The two teams of a population. Raises ConfigError where there are not two."""
    if len(env.spec.groups) != 2:
        raise ConfigError(f"A tournament needs an environment of two teams; this one has {', '.join(env.spec.groups)}.")
    return env.spec.groups[0], env.spec.groups[1]


def load_entrant(entrant: Entrant, stage: RunConfig) -> dict[str, Player]:
    """The players of an entrant by side: both, or its own."""
    if entrant.path is not None:
        config, built = load_training(entrant.path)
        if config.environment != stage.environment:
            built.close()
            raise ConfigError(
                f"{entrant.path} was trained on {config.environment.name} with other options than the tournament's."
            )
    else:
        assert entrant.agent is not None
        built = build(replace(stage, agents={"all": entrant.agent}, run=replace(stage.run, evaluation_copies=0)))
    try:
        sides = sides_of(built.env)
        for player in built.players:
            player.agent.progress = 1.0
        by_name = {p.name: p for p in built.players}
        if "all" in by_name:
            raise ConfigError(f"{entrant.name} shares one mind over both teams; train it with --sharing group.")
        return {side: by_name[side] for side in sides if entrant.side in ("", side)}
    finally:
        built.close()


@torch.no_grad()
def play(env: Env, players: Sequence[Player], games: int, key: Key, horizon: int) -> list[tuple[float, float]]:
    """Scores (first side, second side) of at least `games` episodes, `env.copies` at a time.

    `horizon` bounds an episode that nothing ends.
    """
    sides = sides_of(env)
    slots = [env.spec.group_slices[side] for side in sides]
    scores: list[tuple[float, float]] = []
    batch = 0
    while len(scores) < games:
        episode = Episode(env, list(players), key.fold("batch", batch))
        batch += 1
        returns = torch.zeros(2, env.copies, dtype=torch.float64, device=env.device)
        survivors = torch.full((2, env.copies), float("nan"), dtype=torch.float64, device=env.device)
        over = torch.zeros(env.copies, dtype=torch.bool, device=env.device)
        for _ in range(horizon):
            _, _, after, now = episode.play()
            measured = env.measure()
            for side, (name, team) in enumerate(zip(sides, slots, strict=True)):
                reward = after.reward[:, team].mean(1, dtype=torch.float64)
                returns[side] += torch.where(over, 0.0, reward)
                # `terminated` would not do: a battle's end terminates its winners too.
                if f"alive/{name}" in measured:
                    alive = measured[f"alive/{name}"].to(survivors)
                    survivors[side] = torch.where(over, survivors[side], alive)
            over = over | after.ended
            if bool(over.all()):
                break
            episode.go_on(after, now)
        score = returns if bool(survivors.isnan().any()) else survivors
        scores += list(zip(*score.tolist(), strict=True))
    return scores[:games]


def tournament(
    stage: RunConfig,
    entrants: Sequence[Entrant],
    games: int,
    horizon: int,
    on_match: Callable[[Match], None] | None = None,
) -> Iterator[Match]:
    """Every pair of entrants of different names, `games` on each side; yields a match for each pair that can meet.

    Two that play the same side cannot. `stage` is the environment to play on and the copies, seed and device.
    """
    stage = replace(stage, run=replace(stage.run, evaluation_copies=0))
    built: Built = build(replace(stage, agents={"all": Choice("random")}))
    try:
        env = built.env
        sides = sides_of(env)
        loaded = [(e, load_entrant(e, stage)) for e in entrants]
        for number, ((a, first), (b, second)) in enumerate(combinations(loaded, 2)):
            if a.name == b.name:
                continue
            wins = draws = losses = 0
            for swap in (False, True):
                left, right = (second, first) if swap else (first, second)
                if sides[0] not in left or sides[1] not in right:
                    continue
                pair = [left[sides[0]], right[sides[1]]]
                key = Key.of(stage.run.seed).fold("tournament", number, int(swap))
                for one, other in play(env, pair, games, key, horizon):
                    mine, theirs = (other, one) if swap else (one, other)
                    wins, draws, losses = wins + (mine > theirs), draws + (mine == theirs), losses + (mine < theirs)
            match = Match(a.name, b.name, wins, draws, losses, a.run, b.run)
            if match.games == 0:
                continue
            if on_match is not None:
                on_match(match)
            yield match
    finally:
        built.close()
