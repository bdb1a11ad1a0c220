r"""Who beats whom: the win matrix, and Elo ratings by maximum likelihood.

$$ P(i \text{ beats } j) = \frac{1}{1 + 10^{(R_j - R_i)/400}} $$

Bradley and Terry 1952, in Elo's units; ties count half to each side; the mean rating is 1500. A player who won every
game would have an infinite rating: one virtual draw for each pair that met keeps every rating finite.

The unit of replication is the trained run: the bootstrap draws each player's runs, and with them all their matches.
A tournament that trained each player once can resample only games; `Standings.runs` is then 1, and such an
interval knows nothing of how another training would turn out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfmarl.errors import ConfigError
from mfmarl.evaluation.results import read_json, write_text
from mfmarl.evaluation.statistics import half_width

Array = NDArray[np.float64]
Index = NDArray[np.int64]
SCALE = 400 / np.log(10)


@dataclass(frozen=True)
class Match:
    """The games between one run of `first` and one run of `second`: how many the first won, drew, lost."""

    first: str
    second: str
    wins: int
    draws: int = 0
    losses: int = 0
    first_run: int = 0
    """Which trained run (seed) of the first played."""
    second_run: int = 0

    def __post_init__(self) -> None:
        if min(self.wins, self.draws, self.losses) < 0:
            raise ConfigError(f"A match of {self.first!r} against {self.second!r} has a negative number of games.")

    @property
    def games(self) -> int:
        return self.wins + self.draws + self.losses


@dataclass(frozen=True)
class Standings:
    """Ratings of a tournament; arrays are in the order of `players`."""

    players: tuple[str, ...]
    points: Array
    """[i, j]: games that i won against j, ties half."""
    games: Array
    """[i, j]: games played; the diagonal is 0."""
    rating: Array
    low: Array
    high: Array
    runs: int
    """Trained runs per player (the fewest); 1: the intervals are over games only."""

    @property
    def win_rate(self) -> Array:
        """[i, j]: points per game of i against j; NaN where they never met."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.games > 0, self.points / self.games, np.nan)


def win_matrix(players: Sequence[str], matches: Sequence[Match]) -> tuple[Array, Array]:
    """Points [i, j] of i against j, ties half, and games [i, j]. A player's games against itself are left out."""
    place = {name: i for i, name in enumerate(players)}
    points, games = np.zeros((2, len(players), len(players)))
    for m in matches:
        if m.first not in place or m.second not in place:
            raise ConfigError(
                f"A match names {m.first!r} against {m.second!r}, but the players are {', '.join(players)}."
            )
        if m.first == m.second:
            continue
        i, j = place[m.first], place[m.second]
        points[i, j] += m.wins + 0.5 * m.draws
        points[j, i] += m.losses + 0.5 * m.draws
        games[i, j] += m.games
        games[j, i] += m.games
    return points, games


def maximum_likelihood(points: Array, games: Array) -> Array:
    """Elo ratings [players], of mean 1500, that make the points [i, j] in `games` [i, j] most likely.

    Newton's method on the concave log-likelihood, with one virtual draw per pair that met. Raises ConfigError
    where two groups of players never met.
    """
    met = games > 0
    count = len(games)
    reached = np.eye(count, dtype=bool) | met
    for _ in range(count.bit_length()):
        reached = reached @ reached
    if not reached.all():
        raise ConfigError("Some players never met, directly or through others, so their ratings cannot be compared.")
    points, games = points + 0.5 * met, games + met
    strength = np.zeros(count)
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        gradient = (points - games * chance).sum(axis=1)
        weight = games * chance * (1 - chance)
        hessian = np.diag(weight.sum(axis=1)) - weight + 1.0  # the likelihood does not feel a common shift: + 1 pins it
        step = np.linalg.solve(hessian, gradient)
        strength += step / max(1.0, float(np.abs(step).max()))  # at most one unit (174 Elo) at a time
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(1500 + SCALE * (strength - strength.mean()))


def standings(players: Sequence[str], matches: Sequence[Match], *, draws: int = 500, seed: int = 0) -> Standings:
    """The win matrix and Elo ratings, with 95 % bootstrap intervals over trained runs (over games if there is one each).

    Where run k of one player met only run k of the other, seeds are drawn for all players together.
    """
    points, games = win_matrix(players, matches)
    if not games.any():
        raise ConfigError("No games were played between two different players, so there is nobody to rate.")
    rating = maximum_likelihood(points, games)
    place = {name: i for i, name in enumerate(players)}
    kept = [m for m in matches if m.first != m.second and m.games > 0]
    seeds = [
        sorted({r for m in kept for name, r in ((m.first, m.first_run), (m.second, m.second_run)) if name == p})
        for p in players
    ]
    runs = min(len(s) for s in seeds)
    first, second = (np.array([place[getattr(m, side)] for m in kept]) for side in ("first", "second"))
    won, drawn, lost = (
        np.array([getattr(m, side) for m in kept], dtype=np.int64) for side in ("wins", "draws", "losses")
    )
    noise = np.random.Generator(np.random.Philox(key=seed))
    ratings = np.empty((draws, len(players)))
    for k in range(draws):
        if runs == 1:
            weight = np.ones(len(kept))
            total = won + drawn + lost
            # The virtual draw has its part in the chances too: who won every game is not sure to win the next.
            chance = (np.stack([won, drawn, lost], 1) + np.array([0.25, 0.5, 0.25])) / (total[:, None] + 1)
            result = noise.multinomial(total, chance)
            score = result[:, 0] + 0.5 * result[:, 1]
        else:
            weight = _weights(kept, seeds, place, noise)
            score = won + 0.5 * drawn
        ratings[k] = maximum_likelihood(*_weighted(points, games, first, second, score, won + drawn + lost, weight))
    half = half_width(ratings, runs) if runs > 1 else half_width(ratings, 10**9)
    return Standings(tuple(players), points, games, rating, rating - half, rating + half, runs)


def _weights(matches: list[Match], seeds: list[list[int]], place: dict[str, int], noise: np.random.Generator) -> Array:
    """How often each match is counted in a resample of runs."""
    together = all(m.first_run == m.second_run for m in matches)
    if together:
        every = sorted({s for run in seeds for s in run})
        count = dict(
            zip(every, np.bincount(noise.integers(len(every), size=len(every)), minlength=len(every)), strict=True)
        )
        return np.array([count[m.first_run] for m in matches], dtype=np.float64)
    counts = [
        dict(zip(s, np.bincount(noise.integers(len(s), size=len(s)), minlength=len(s)), strict=True)) for s in seeds
    ]
    return np.array(
        [counts[place[m.first]][m.first_run] * counts[place[m.second]][m.second_run] for m in matches], dtype=np.float64
    )


def _weighted(
    points: Array, games: Array, first: Index, second: Index, score: Array, total: Index, weight: Array
) -> tuple[Array, Array]:
    """Points of a resample, scaled to the games really played; a pair that it missed keeps its own points."""
    p, g = np.zeros_like(points), np.zeros_like(games)
    np.add.at(p, (first, second), weight * score)
    np.add.at(p, (second, first), weight * (total - score))
    np.add.at(g, (first, second), weight * total)
    np.add.at(g, (second, first), weight * total)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(g > 0, p / g * games, points), games


def write_tournament(folder: Path, players: Sequence[str], matches: Sequence[Match], **about: Any) -> Path:
    """Keep a tournament as `tournament.json` in `folder` (`about`: environment, command, versions); returns its path."""
    text = json.dumps({**about, "players": list(players), "matches": [asdict(m) for m in matches]}, indent=1)
    return write_text(folder / "tournament.json", text)


def read_tournament(folder: Path) -> tuple[tuple[str, ...], list[Match], dict[str, Any]]:
    """Players, matches and the rest of `tournament.json` in `folder`. Raises ConfigError where it is missing or damaged."""
    path = folder / "tournament.json"
    table = read_json(path)
    try:
        players = tuple(str(name) for name in table.pop("players"))
        matches = [
            Match(
                str(m["first"]),
                str(m["second"]),
                *(int(m.get(key, 0)) for key in ("wins", "draws", "losses", "first_run", "second_run")),
            )
            for m in table.pop("matches")
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); run the tournament again.") from error
    return players, matches, table
