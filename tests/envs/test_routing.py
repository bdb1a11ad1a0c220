"""Drivers who are held up by each other: times by hand, Braess's paradox in closed form, N drivers, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mfmarl.envs.routing import Routing
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key


def _turning(game: Routing, at: dict[str, dict[str, float]]) -> Tensor:
    """The policy that turns so at the end of these links ("OA": {"AB": 1})."""
    policy, layout = uniform(game), game._layout
    named = [link.start + link.end for link in game.links]
    for here, turns in at.items():
        state = int(((layout.link == named.index(here)) & (layout.wait == 0)).nonzero())
        onto = [named[m] for m in layout.onto[state].tolist()]
        legal = layout.legal[state].tolist()
        policy[:, 0, state] = torch.tensor(
            [turns.get(name, 0.0) if free else 0.0 for name, free in zip(onto, legal, strict=True)], dtype=policy.dtype
        )
    return policy


def _arrivals(game: Routing, policy: Tensor) -> list[float]:
    """The share that arrives in each step."""
    arrived = flow(game, policy).mu[:, 0, -1]
    return arrived.diff(prepend=torch.zeros(1, dtype=arrived.dtype)).tolist()


@pytest.mark.parametrize("rounding", ["fair", "down"])
def test_three_quarters_on_the_roads_that_fill_up_is_braesss_equilibrium(rounding: str) -> None:
    """All ways take 3.75: nobody gains by turning otherwise (1 + 3/4 + 2 = 2 + 1 + 3/4 = 1 + 3/4 + 1/4 + 1 + 3/4)."""
    game = Routing(rounding=rounding)  # type: ignore[arg-type]
    policy = _turning(game, {"OA": {"AB": 0.75, "AC": 0.25}, "AB": {"BC": 2 / 3, "BD": 1 / 3}})
    found = gap(game, policy)
    assert float(found.value) == pytest.approx(-3.75, abs=1e-9)
    assert float(found.exploitability) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("rounding", ["fair", "down"])
def test_without_the_shortcut_everyone_is_quicker(rounding: str) -> None:
    game = Routing(shortcut=False, rounding=rounding)  # type: ignore[arg-type]
    found = gap(game, _turning(game, {"OA": {"AB": 0.5, "AC": 0.5}}))
    assert float(found.value) == pytest.approx(-3.5, abs=1e-9)
    assert float(found.exploitability) == pytest.approx(0.0, abs=1e-9)


def test_with_the_shortcut_half_and_half_is_no_equilibrium_any_more() -> None:
    """One who goes A-B-C-D takes 1.5 + .25 + 1 = 2.75, as C-D is empty until 2, while all others take 3.5."""
    game = Routing()
    found = gap(game, _turning(game, {"OA": {"AB": 0.5, "AC": 0.5}, "AB": {"BD": 1.0}}))
    assert float(found.value) == pytest.approx(-3.5, abs=1e-9)
    assert float(found.exploitability) == pytest.approx(0.75, abs=1e-9)


def test_a_link_holds_one_as_long_as_the_crowd_on_it_makes_it() -> None:
    """All by A-B and B-D: 2 + 2, so everyone arrives 80 steps of .05 after they set out."""
    game = Routing()
    arrivals = _arrivals(game, _turning(game, {"OA": {"AB": 1.0}, "AB": {"BD": 1.0}}))
    assert arrivals.index(1.0) == 81  # the state after the step at time 80
    half = _arrivals(game, _turning(game, {"OA": {"AB": 0.5, "AC": 0.5}, "AB": {"BD": 1.0}}))
    assert half.index(1.0) == 71


def test_a_time_between_two_steps_is_kept_fairly_or_rounded_down() -> None:
    """40 % on A-B take 1.4, which is 4.67 steps of .3: with the 2 of B-D (6.67) they arrive on one of three steps."""
    turns = {"OA": {"AB": 0.4, "AC": 0.6}, "AB": {"BD": 1.0}}
    fair = Routing(dt=0.3, horizon=20)
    on_ab = fair._layout.link == 1
    joint = torch.zeros(1, fair.num_states, fair.num_actions, dtype=torch.float64)
    joint[0, 0] = torch.tensor([0.4, 0.6])
    kernel = fair.outcomes(0, Crowd(joint.sum(-1), counted=joint))
    after = kernel.carry(joint)[0]
    waits = (after * on_ab).nonzero().flatten()
    assert fair._layout.wait[waits].tolist() == [3, 4]
    assert after[waits].tolist() == pytest.approx([0.4 * (1 - 2 / 3), 0.4 * 2 / 3])
    down = Routing(dt=0.3, horizon=20, rounding="down")
    times = [sum(t * x for t, x in enumerate(_arrivals(game, _turning(game, turns)))) for game in (fair, down)]
    assert times[0] > times[1]


def test_a_few_more_drivers_make_a_little_more_time_where_time_is_fair() -> None:
    """Rounded down, the time jumps by a step somewhere; kept fairly it does not."""

    def value(share: float, rounding: str) -> float:
        game = Routing(dt=0.2, horizon=30, rounding=rounding)  # type: ignore[arg-type]
        return float(gap(game, _turning(game, {"OA": {"AB": share, "AC": 1 - share}, "AB": {"BD": 1.0}})).value)

    shares = [0.59, 0.595, 0.6, 0.605, 0.61]  # 1.6 is eight steps of .2
    jumps = {
        rounding: max(abs(value(b, rounding) - value(a, rounding)) for a, b in itertools.pairwise(shares))
        for rounding in ("fair", "down")
    }
    assert jumps["fair"] < 0.02
    assert jumps["down"] > 0.1


def test_those_who_are_late_pay_a_step_more_than_there_is() -> None:
    game = Routing(horizon=10)
    assert float(gap(game, uniform(game)).value) == pytest.approx(-11 * 0.05)


@pytest.mark.parametrize("solver", [MirrorDescent(rate=0.5), FictitiousPlay()])
def test_solvers_find_the_quickest_that_everyone_can_be(solver: MirrorDescent | FictitiousPlay) -> None:
    game = Routing(dt=0.25, horizon=20)
    found = solve(game, solver, 120, every=40)
    assert float(found.exploitability) < 0.05  # of .5 for uniform choice
    assert float(gap(game, found.policy).value) == pytest.approx(-3.75, abs=0.1)


def test_on_pigous_roads_everyone_takes_the_one_that_fills_up() -> None:
    game = Routing(network="pigou")
    found = gap(game, _turning(game, {"OA": {"AC": 1.0}}))
    assert float(found.exploitability) == pytest.approx(0.0, abs=1e-9)
    # Of those who choose both alike, half take 2 where 1.5 would do.
    both = gap(game, _turning(game, {"OA": {"AB": 0.5, "AC": 0.5}}))
    assert float(both.exploitability) == pytest.approx(0.25, abs=1e-9)


def test_a_thousand_drivers_take_the_time_of_the_limit() -> None:
    game = Routing(num_agents=1000, dt=0.25, horizon=20)
    policy = _turning(game, {"OA": {"AB": 0.75, "AC": 0.25}, "AB": {"BC": 2 / 3, "BD": 1 / 3}})
    simulation = Simulation(game, 4)
    timestep = simulation.reset(Key.of(0))
    total = torch.zeros(4)
    generator = torch.Generator().manual_seed(0)
    for t in range(20):
        here = simulation.state.state  # type: ignore[attr-defined]
        chance = policy[t, 0][here]
        action = (torch.rand(chance.shape[:-1], generator=generator) > chance[..., 0]).long()
        assert bool(timestep.legal.gather(-1, action.unsqueeze(-1)).all())  # type: ignore[union-attr]
        timestep = simulation.step(action)
        total += timestep.reward.mean(-1)
    assert total.mean().item() == pytest.approx(float(gap(game, policy).value), abs=0.05)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"network": "brass"}, "braess"),
        ({"dt": 0.0}, "dt must be float"),
        ({"horizon": None, "discount": 0.9}, "give routing a horizon"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Routing(**options)  # type: ignore[arg-type]
