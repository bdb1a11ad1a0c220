"""Learning drivers on four links: a = (0, .2, .5, 1), b = (1, .8, .5, .25).

At beta = 1/T = 5 the logit split of a crowd without end is .434, .348, .193, .025 (at N = 100, counting oneself, .4336,
.3478, .1934, .0252: `Congestion.reference`). Greedy drivers share as Wardrop says, .5294, .4118, .0588, 0 at a cost of
.5294; with tolls at the optimum's .3824, .3529, .2647, 0, cost .4838.
"""

from __future__ import annotations

from typing import Any

import pytest

from mfmarl.envs.congestion import Congestion
from tests.theory.settled import assert_agrees, settled

TABLE: dict[str, Any] = {"values": "table"}
COOLING = "geometric(1, 0.001, 0.8)"
SHARES = [f"share/{k}" for k in range(4)]


def assert_logit(agent: str, options: dict[str, Any], steps: int, burn_in: float) -> None:
    """Every option but the temperature as a user meets it."""
    rules = Congestion(100, horizon=None)
    known = rules.reference(0.2)
    options = {**options, "temperature": "0.2"}
    found = settled(rules, agent, options, steps=steps, copies=4, burn_in=burn_in)
    for name in [*SHARES, "cost", "reward"]:
        # A quarter of 1/N: what remains of drivers who count each other's steps and not quite their own.
        assert_agrees(found[name], known[name].value, f"{name} of {agent}", 0.0025)


@pytest.mark.parametrize("agent", ["mfq", "iql"])
def test_tables_arrive_at_the_logit_split(agent: str) -> None:
    assert_logit(agent, TABLE, 600, 0.4)


@pytest.mark.parametrize(("agent", "burn_in"), [
    ("mfq", 0.5), ("mfac", 0.5), pytest.param("mfppo", 0.8, marks=pytest.mark.verify)
])  # fmt: skip
def test_networks_arrive_at_the_logit_split(agent: str, burn_in: float) -> None:
    assert_logit(agent, {}, 800, burn_in)


@pytest.mark.parametrize(("toll", "cost", "shares"), [
    (False, 0.529412, (0.529412, 0.411765, 0.058824, 0.0)),
    pytest.param(True, 0.483824, (0.382353, 0.352941, 0.264706, 0.0), marks=pytest.mark.verify),
])  # fmt: skip
def test_drivers_who_cool_down_share_the_links_as_wardrop_says_and_with_tolls_at_the_optimum(
    toll: bool, cost: float, shares: tuple[float, ...]
) -> None:
    """Each with a mind of its own: at the end every driver has chosen, and nobody would gain by leaving."""
    rules = Congestion(400, horizon=None, toll=toll)
    options = {**TABLE, "temperature": COOLING}
    found = settled(rules, "iql", options, steps=1500, copies=4, burn_in=0.85, sharing="none")
    for name, share in zip(SHARES, shares, strict=True):
        assert_agrees(found[name], share, name, 1 / 400)  # whole drivers
    assert_agrees(found["cost"], cost, "cost", 1 / 400)


@pytest.mark.verify
def test_one_mind_for_all_stampedes_where_it_is_colder_than_its_steps_allow() -> None:
    """The split answers a change of Q by p(1-p)/T: at T = .001 steps of .05 overshoot, and everybody takes one link.

    Not a fault of the table: simultaneous best answers do not settle. Cooling to T = .005 with steps of .005 does.
    """
    rules = Congestion(400, horizon=None)
    rash = settled(rules, "iql", {**TABLE, "temperature": COOLING}, steps=800, copies=4, burn_in=0.9)
    assert rash["cost"].value > 0.8
    calm = {**TABLE, "learning_rate": 0.005, "temperature": "geometric(1, 0.005, 0.7)"}
    found = settled(rules, "iql", calm, steps=1200, copies=4, burn_in=0.85)
    known = rules.reference(0.005)
    for name in [*SHARES, "cost"]:
        assert_agrees(found[name], known[name].value, name, 1 / 400)


# ------------------------------------------------------------------------------------------ minutes each


@pytest.mark.verify
@pytest.mark.parametrize("agent", ["iql", "iac", "ippo"])
def test_independent_networks_arrive_at_the_logit_split(agent: str) -> None:
    """In a game whose crowd is always at rest, feeling it or not is the same."""
    assert_logit(agent, {}, 3000, 0.8)


@pytest.mark.verify
@pytest.mark.parametrize(("agent", "options"), [
    ("mfppo", {}),
    ("ippo", {}),
    # Drawn from the last step alone: what a replay remembers of an earlier crowd makes the next overshoot.
    ("mfac", {"capacity": 1600, "actor_rate": 3e-4}),
    ("iac", {"capacity": 1600, "actor_rate": 3e-4}),
])  # fmt: skip
@pytest.mark.parametrize("toll", [False, True])
def test_actors_of_one_mind_share_the_links_too(agent: str, options: dict[str, Any], toll: bool) -> None:
    rules = Congestion(400, horizon=None, toll=toll)
    found = settled(rules, agent, {**options, "temperature": COOLING}, steps=3000, copies=4, burn_in=0.8)
    assert_agrees(found["cost"], 0.483824 if toll else 0.529412, "cost", 1 / 400)


@pytest.mark.verify
def test_mean_field_drivers_with_a_mind_each_share_the_links_too() -> None:
    rules = Congestion(400, horizon=None)
    options = {**TABLE, "temperature": COOLING}
    found = settled(rules, "mfq", options, steps=1500, copies=4, burn_in=0.85, sharing="none")
    assert_agrees(found["cost"], 0.529412, "cost", 1 / 400)
