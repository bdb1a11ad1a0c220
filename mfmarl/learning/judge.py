"""How far the players of a run are from equilibrium: its columns.

`Judge` puts the gaps in a run's rows: `limit/exploitability` at every report and, never far from it, `finite/exploitability`
of one among the run's own N agents at the end. The policy whose gap is counted at N is the one of the limit: the
others' answers to fluctuations of their field are left out, unless the gap is `sampled`, against the players themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games import finite, sampled
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import times
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.reference import quantal_response
from mfmarl.learning.episode import Episode
from mfmarl.learning.limit import limit_policy, seat
from mfmarl.learning.players import Player
from mfmarl.population.known import Known
from mfmarl.population.simulation import Env, Simulation
from mfmarl.random import Key

_OFTEN = 50_000  # times, groups, states and actions up to which the limit is looked at with every report
_ONCE = 20_000_000  # and up to which it is at all
_COUNTED = 1e7, 15.0, 1.2e8  # terms of a gap at N: at least, for every step trained, and at most (seven seconds)
_PLAYED = 2e7  # steps of agents that a learned best response may take at the end, or as many as were trained
_LEARNED = 1e9  # rewards that it may ask for
_FEWEST = 16  # copies below which its error says nothing
_MOST = 512
_SEATED = 5e6  # agents of all copies together: a million in sixteen copies would want gigabytes


def rules(env: Env) -> MeanFieldGame | None:
    """The mean-field game that an environment plays, all of its agents; None where it plays something else."""
    if not isinstance(env, Simulation) or not isinstance(env.env, MeanFieldGame):
        return None
    # Of a part of its agents: the same options, and nothing that says who is here.
    return env.env if env.env.here is None else replace(env.env)


class Judge:
    """The columns of a run that say how far its players are from equilibrium. `told` says what is left out, and why."""

    def __init__(self, game: MeanFieldGame, players: Sequence[Player], sample: bool = False) -> None:
        self.game, self.players, self.sample, self.told = game, players, sample, ""
        self.size = times(game) * game.num_groups * game.num_states * game.num_actions
        try:
            for group in range(game.num_groups):
                seat(game, players, group)
        except ConfigError as error:
            self.told = f"No exploitability: {error}"
        if self.size > _ONCE:
            self.told = f"No exploitability: {self.size:,} times, states and actions are too many."

    def row(self) -> dict[str, float]:
        """`limit/exploitability`; empty where it would cost more than it tells."""
        policy = None if self.size > _OFTEN else self._policy()
        return {} if policy is None else self._in_the_limit(policy)

    def last(self, begin: Callable[[int, Key], Episode], trained: float, key: Key) -> dict[str, float]:
        """The row at the end: in the limit, and at N.

        `begin(copies, key)` makes an episode of the players; `trained` is how many steps of agents the run has taken.
        """
        policy = self._policy()
        if policy is None:
            return {}
        game, row = self.game, self._in_the_limit(policy)
        least, each, most = _COUNTED
        if not self.sample and finite.cost(game) <= min(most, max(least, each * trained)):
            return {**row, "finite/exploitability": finite.gap(game, policy).exploitability}
        copies = self._copies(max(_PLAYED, trained))
        if copies < _FEWEST:
            self.told = f"No exploitability among {game.num_agents} agents: it would take too much play to learn."
            return row
        if self.sample:
            play = players_play(game, lambda k: begin(copies, k))
        else:
            play = sampled.table_play(game, policy, copies)
        found = sampled.best_response(game, play, key)
        return {**row, "finite/exploitability": found.exploitability, "finite/standard_error": found.standard_error}

    def _in_the_limit(self, policy: Tensor) -> dict[str, float]:
        return {"limit/exploitability": max(0.0, float(exploitability(self.game, policy)))}

    def _policy(self) -> Tensor | None:
        """The players' policy; None, and told why, where it has none or nothing is to be looked at."""
        if self.told:
            return None
        try:
            return limit_policy(self.game, self.players)
        except ConfigError as error:  # a run is not to end because its crowd goes round in circles
            self.told = f"No exploitability: {error}"
            return None

    def _copies(self, steps: float) -> int:
        """Copies in which a best response may be learned; 0: none."""
        game = self.game
        if game.horizon is None:
            return 0
        cells = game.num_states * (game.num_actions if game.extended else 1)
        asked = game.horizon * cells * game.num_groups * game.num_states * game.num_actions * game.num_groups
        played = (2 + game.num_groups) * game.horizon * game.num_agents
        return int(min(_MOST, steps / played, _LEARNED / asked, _SEATED / game.num_agents))


def players_play(game: MeanFieldGame, begin: Callable[[Key], Episode]) -> sampled.Play:
    """The players themselves, with all that they see and feel of the crowd as it is."""

    def play(key: Key, slot: int | None, deviation: sampled.Deviation | None) -> sampled.Recorded:
        episode = begin(key)
        env, log = episode.env, sampled.Log(game)
        assert isinstance(env, Simulation)
        for t in range(game.horizon or 0):
            before, action = env.state, episode.act()
            if slot is not None and deviation is not None:
                action = action.clone()
                action[:, slot] = deviation(t, before)
            _, _, after, now = episode.play(action)
            log.note(before, action, after.reward, env.state)
            if t + 1 < (game.horizon or 0):
                episode.go_on(after, now)
        return log.recorded()

    return play


def known(game: MeanFieldGame, temperature: float) -> dict[str, Known]:
    """What theory says of both gaps: 0 at Nash equilibria; at a temperature those of the quantal response equilibrium."""
    if temperature <= 0:
        return {
            "limit/exploitability": Known(
                0.0, "a Nash equilibrium of infinitely many, and nothing else", "equilibrium"
            ),
            "finite/exploitability": Known(0.0, "a Nash equilibrium of so many, and nothing else", "equilibrium"),
        }
    if times(game) * game.num_groups * game.num_states * game.num_actions > _OFTEN:
        return {}
    found = quantal_response(game, float(temperature))
    if not found.residual < 1e-5:
        return {}
    name = f"of the quantal response equilibrium at temperature {temperature:g}"
    of_limit = float(gap(game, found.policy).exploitability)
    answers = {"limit/exploitability": Known(max(0.0, of_limit), f"{name}, infinitely many agents", "equilibrium")}
    if finite.cost(game) <= _COUNTED[0]:
        counted = finite.gap(game, found.policy).exploitability
        source = f"{name} of infinitely many, played by {game.num_agents}"
        answers["finite/exploitability"] = Known(counted, source, "equilibrium")
    return answers
