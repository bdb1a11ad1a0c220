"""Ratings: closed forms, invariances, and recovery of strengths that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mfmarl.errors import ConfigError
from mfmarl.evaluation import elo
from mfmarl.evaluation.elo import Match


def test_ties_count_half_and_both_orders_add_up() -> None:
    points, games = elo.win_matrix(["a", "b"], [Match("a", "b", 3, 2, 1), Match("b", "a", 4, 0, 0)])
    assert points[0, 1] == 3 + 1 and points[1, 0] == 1 + 1 + 4
    assert games[0, 1] == games[1, 0] == 10 and games[0, 0] == 0


def test_playing_oneself_is_left_out() -> None:
    points, games = elo.win_matrix(["a", "b"], [Match("a", "a", 5), Match("a", "b", 1)])
    assert games.sum() == 2 and points.sum() == 1


def test_two_players_have_the_rating_of_their_win_rate() -> None:
    # 75 points in 100 games and one virtual draw: 75.5 of 101; the difference is 400 log10 of the odds.
    found = elo.standings(["a", "b"], [Match("a", "b", 75, 0, 25)])
    assert found.rating[0] - found.rating[1] == pytest.approx(400 * np.log10(75.5 / 25.5), abs=1e-6)
    assert found.rating.mean() == pytest.approx(1500)


def test_wins_and_losses_that_make_the_same_points_make_the_same_rating() -> None:
    one = elo.standings(["a", "b"], [Match("a", "b", 30, 40, 30)]).rating
    other = elo.standings(["a", "b"], [Match("a", "b", 50, 0, 50)]).rating
    assert one == pytest.approx(other) and one == pytest.approx([1500, 1500])


def test_an_unbeaten_player_has_a_finite_rating() -> None:
    found = elo.standings(["a", "b"], [Match("a", "b", 10)])
    assert np.isfinite(found.rating).all() and found.rating[0] > found.rating[1]


def test_ratings_are_stationary_points_of_the_likelihood() -> None:
    noise = np.random.Generator(np.random.Philox(key=3))
    games = np.triu(noise.integers(5, 50, (5, 5)), 1).astype(float)
    games += games.T
    share = np.triu(noise.random((5, 5)), 1)
    points = np.where(np.triu(np.ones((5, 5)), 1) > 0, share * games, 0)
    points += np.where(np.tril(np.ones((5, 5)), -1) > 0, games - points.T, 0)
    rating = elo.maximum_likelihood(points, games)
    chance = 1 / (1 + 10 ** ((rating[None, :] - rating[:, None]) / 400))
    met = games > 0
    assert ((points + 0.5 * met) - (games + met) * chance).sum(1) == pytest.approx(np.zeros(5), abs=1e-7)


def test_order_of_players_does_not_matter() -> None:
    matches = [Match("a", "b", 7, 1, 2), Match("b", "c", 5, 0, 5), Match("c", "a", 3, 3, 4)]
    one, other = elo.standings(["a", "b", "c"], matches), elo.standings(["c", "a", "b"], matches)
    assert one.rating == pytest.approx(other.rating[[1, 2, 0]])


def test_known_strengths_are_recovered_and_their_intervals_hold_them() -> None:
    noise = np.random.Generator(np.random.Philox(key=4))
    players, truth = ["a", "b", "c", "d"], np.array([1700.0, 1550.0, 1450.0, 1300.0])
    matches = []
    for i in range(4):
        for j in range(i + 1, 4):
            chance = 1 / (1 + 10 ** ((truth[j] - truth[i]) / 400))
            for k in range(5):
                for m in range(5):
                    wins = int(noise.binomial(40, chance))
                    matches.append(Match(players[i], players[j], wins, 0, 40 - wins, k, m))
    found = elo.standings(players, matches)
    assert found.runs == 5
    # 3,000 games per player: a standard error of about 400 / ln 10 / sqrt(3000 * .2) = 7 Elo.
    assert found.rating == pytest.approx(truth, abs=35)
    assert ((found.low < truth) & (truth < found.high)).all()


def test_trained_once_each_the_intervals_are_over_games_only() -> None:
    found = elo.standings(["a", "b"], [Match("a", "b", 60, 0, 40)])
    assert found.runs == 1
    # d rating / d p = 400 / ln 10 / (p (1 - p)), shared between two players; s.e. of p = sqrt(.24 / 100).
    expected = 1.96 * 0.5 * elo.SCALE / 0.24 * np.sqrt(0.24 / 100)
    assert (found.high - found.low)[0] / 2 == pytest.approx(expected, rel=0.2)


def test_runs_that_disagree_widen_the_interval_more_than_games_do() -> None:
    steady = [Match("a", "b", 50, 0, 50, k, k) for k in range(4)]
    moody = [Match("a", "b", w, 0, 100 - w, k, k) for k, w in enumerate((5, 95, 10, 90))]
    narrow, wide = elo.standings(["a", "b"], steady), elo.standings(["a", "b"], moody)
    assert (wide.high - wide.low)[0] > 100 > (narrow.high - narrow.low)[0]


def test_the_interval_is_students_over_the_runs() -> None:
    # Seeds are drawn together, so two players' rating is a function of the mean win rate of four runs:
    # half width = t(3) * d rating / d p * sd / sqrt(4), to first order.
    wins = np.array([48, 55, 52, 45])
    found = elo.standings(
        ["a", "b"], [Match("a", "b", int(w), 0, 100 - int(w), k, k) for k, w in enumerate(wins)], draws=4000
    )
    expected = 3.182 * 0.5 * elo.SCALE / 0.25 * wins.std(ddof=1) / 100 / 2
    assert (found.high - found.low)[0] / 2 == pytest.approx(expected, rel=0.08)


def test_players_who_never_met_are_refused() -> None:
    with pytest.raises(ConfigError, match="never met"):
        elo.standings(["a", "b", "c", "d"], [Match("a", "b", 1), Match("c", "d", 1)])
    with pytest.raises(ConfigError, match="No games"):
        elo.standings(["a", "b"], [])
    with pytest.raises(ConfigError, match="the players are a, b"):
        elo.win_matrix(["a", "b"], [Match("a", "x", 1)])
    with pytest.raises(ConfigError, match="negative"):
        Match("a", "b", -1)


def test_a_tournament_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    matches = [Match("a", "b", 1, 2, 3, 4, 5), Match("b", "a", 0)]
    elo.write_tournament(tmp_path, ["a", "b"], matches, command="mfmarl tournament x")
    players, found, about = elo.read_tournament(tmp_path)
    assert players == ("a", "b") and found == matches and about == {"command": "mfmarl tournament x"}


@pytest.mark.parametrize(
    "text", ["{}", '{"players": ["a"], "matches": [{"first": "a"}]}', '{"players": 3, "matches": []}']
)
def test_a_damaged_tournament_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tournament.json").write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        elo.read_tournament(tmp_path)


def test_who_won_every_game_is_not_known_exactly() -> None:
    few, many = (elo.standings(("a", "b"), [Match("a", "b", games)]) for games in (5, 500))
    assert few.high[0] - few.low[0] > 20 and few.high[0] > few.rating[0] > few.low[0]
    assert many.rating[0] > few.rating[0]
