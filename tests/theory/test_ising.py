"""Learning spins obey the law of their order of moves: the heat bath's, or that of the mean field.

Onsager 1944, Kaufman 1949 and Yang 1952 through `Ising.reference` (energies and rewards exact on the 20 x 20 torus);
magnetisations at 20 x 20 by Monte Carlo, as published with the mean-field MARL experiments' reconstruction:
.9114(5), .691(7), .460(6) at tau = 1, 1.1346, 1.2. Agents know nothing of this: they are paid for agreeing.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from mfmarl.envs.ising import Ising
from tests.theory.settled import assert_agrees, settled

TABLE: dict[str, Any] = {"values": "table"}
MONTE_CARLO = {1.0: (0.9114, 0.0005), 1.1346: (0.691, 0.007), 1.2: (0.460, 0.006)}


def held(rules: Ising, agent: str, options: dict[str, Any], tau: float, **run: Any) -> None:
    """Reward, energy and magnetisation where the order's law knows them, all within their errors."""
    found = settled(rules, agent, {**options, "temperature": str(tau)}, **run)
    alone = agent.startswith("i")
    known = rules.reference_independent(tau) if alone else rules.reference(tau)
    assert {"reward", "energy"} <= set(known)
    for name in ("reward", "energy", "magnetisation"):
        if name in known:
            # The law of independent spins is a limit: their mind is shared, and wavers with them by O(1/N).
            slack = 2 / rules.num_agents if alone or rules.order == "synchronous" else 0.0
            assert_agrees(found[name], known[name].value, f"{name} at {tau}", slack)
    if not alone and rules.order != "synchronous":
        value, error = MONTE_CARLO[tau]
        assert_agrees(found["magnetisation"], value, f"magnetisation at {tau}", 5 * error)


def test_a_table_in_checkerboard_order_is_the_heat_bath() -> None:
    held(Ising(400), "mfq", TABLE, 1.0, steps=1000, copies=12)


def test_a_network_in_checkerboard_order_is_the_heat_bath() -> None:
    held(Ising(400), "mfq", {}, 1.0, steps=800, copies=6)


@pytest.mark.verify
def test_an_actor_in_checkerboard_order_is_the_heat_bath() -> None:
    held(Ising(400), "mfac", {}, 1.0, steps=800, copies=4)


@pytest.mark.parametrize("agent", ["mfq", "iql"])
def test_a_table_in_synchronous_order_obeys_the_mean_field_law(agent: str) -> None:
    """m = tanh(2m/1.5) = .7755, where the lattice of Onsager has none: what one felt says nothing of what comes."""
    held(Ising(400, order="synchronous"), agent, TABLE, 1.5, steps=700, copies=8)


@pytest.mark.verify
def test_a_network_in_synchronous_order_obeys_the_mean_field_law() -> None:
    held(Ising(400, order="synchronous"), "mfq", {}, 1.5, steps=700, copies=3)


def test_who_feels_no_neighbours_obeys_the_mean_field_law_in_any_order() -> None:
    held(Ising(400), "iql", TABLE, 1.5, steps=700, copies=6)


def test_order_is_lost_above_the_critical_temperature_of_each_order_of_moves() -> None:
    """At tau = 1.5 the lattice (tau_c = 1.13) is disordered; at 2.2 simultaneous learners (tau_c = 2) are too."""
    lattice, together = Ising(400), Ising(400, order="synchronous")
    assert lattice.critical_temperature() == pytest.approx(1.134593, abs=1e-6)
    assert together.critical_temperature() == pytest.approx(2.0)
    # 400 spins have |m| = 0.14 there by the heat bath, 0.04 at random; what orders at 1.5 has 0.78.
    for rules, tau, most in ((lattice, 1.5, 0.3), (together, 2.2, 0.3)):
        found = settled(rules, "mfq", {**TABLE, "temperature": str(tau)}, steps=500, copies=4)
        assert found["magnetisation"].value + 5 * found["magnetisation"].error < most


# ------------------------------------------------------------------------------------------ minutes each


@pytest.mark.verify
@pytest.mark.parametrize("values", ["table", "network"])
@pytest.mark.parametrize("tau", MONTE_CARLO)
def test_learned_spins_have_the_published_magnetisation(values: str, tau: float) -> None:
    held(Ising(400), "mfq", {"values": values}, tau, steps=6000, copies=32, burn_in=0.4)


@pytest.mark.verify
@pytest.mark.parametrize("tau", [1.0, 1.2])
def test_spins_that_move_one_by_one_have_it_too(tau: float) -> None:
    """True random-sequential order on 8 x 8: one spin a step, 64 steps a sweep. Kaufman's energy is exact there."""
    rules = Ising(64, order="sequential")
    options = {**TABLE, "temperature": str(tau)}
    found = settled(rules, "mfq", options, steps=64 * 800, copies=48, burn_in=0.5)
    assert_agrees(found["energy"], rules.reference(tau)["energy"].value, "energy")


@pytest.mark.verify
@pytest.mark.parametrize("agent", ["mfac", "mfppo"])
def test_learned_policies_are_the_heat_bath(agent: str) -> None:
    held(Ising(400, start="ordered"), agent, {}, 1.0, steps=4000, copies=16, burn_in=0.9)


@pytest.mark.verify
@pytest.mark.parametrize("tau", [1.0, 1.2, 1.5, 1.8])
@pytest.mark.parametrize("agent", ["mfq", "iql"])
def test_simultaneous_learners_obey_the_mean_field_law(agent: str, tau: float) -> None:
    held(Ising(400, order="synchronous"), agent, TABLE, tau, steps=4000, copies=16)


def _powers(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"m2": found["magnetisation"] ** 2, "m4": found["magnetisation"] ** 4}


@pytest.mark.verify
def test_binders_cumulants_of_two_sizes_cross_at_onsagers_temperature() -> None:
    """U = 1 - <m^4>/(3 <m^2>^2) grows with the lattice below tau_c = 1.1346 and shrinks above (Binder 1981)."""

    def cumulant(side: int, tau: float) -> float:
        options = {**TABLE, "temperature": str(tau)}
        rules = Ising(side**2, shape=(side, side), start="ordered")
        found = settled(rules, "mfq", options, steps=6000, copies=32, burn_in=0.2, more=_powers)
        return 1 - found["m4"].value / (3 * found["m2"].value ** 2)

    below = cumulant(20, 1.08) - cumulant(8, 1.08)
    above = cumulant(20, 1.19) - cumulant(8, 1.19)
    assert below > 0.01
    assert above < -0.03
