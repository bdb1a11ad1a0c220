"""The spreads that Ising spins are said to have are those of an enumeration of all configurations."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from mfmarl.envs.ising import Ising, State


def enumerated(env: Ising, log_weight: Any) -> dict[str, float]:
    """Standard deviations of what the environment measures, over all 2^N configurations weighted so."""
    spin = torch.tensor(list(itertools.product((0, 1), repeat=env.num_agents)), dtype=torch.int8)
    measured = {k: v.double().numpy() for k, v in env.measure(State(spin, torch.zeros(len(spin)))).items()}
    weight = np.exp(log_weight(spin.double().numpy() * 2 - 1, measured))
    weight /= weight.sum()
    return {k: float(np.sqrt(weight @ v**2 - (weight @ v) ** 2)) for k, v in measured.items()}


def heat_bath(env: Ising, temperature: float) -> dict[str, float]:
    return enumerated(env, lambda spin, seen: -env.num_agents * seen["energy"] / temperature)


@pytest.mark.parametrize(("temperature", "field"), [(0.9, 0.0), (0.9, 0.3), (0.3, 0.0)])
def test_on_the_complete_graph(temperature: float, field: float) -> None:
    env = Ising(num_agents=10, graph="complete", coupling=1.0, field=field)
    known, exact = env.fluctuations(temperature), heat_bath(env, temperature)
    assert known["magnetisation"].value == pytest.approx(exact["magnetisation"], rel=1e-5)
    # Cold and without a field a copy never crosses to the other side.
    assert ("magnetisation/signed" in known) == (temperature == 0.9)
    if temperature == 0.9:
        assert known["magnetisation/signed"].value == pytest.approx(exact["magnetisation/signed"], rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"shape": (3, 4)}, {"num_agents": 12, "dimension": 1}, {"shape": (3, 4), "coupling": 0.6}]
)
@pytest.mark.parametrize("temperature", [0.5, 1.2, 3.0])
def test_of_the_energy_on_rings_and_tori(options: dict[str, Any], temperature: float) -> None:
    env = Ising(**{"num_agents": 12, **options})
    known = env.fluctuations(temperature)
    assert set(known) == {"energy"}
    assert known["energy"].value == pytest.approx(heat_bath(env, temperature)["energy"], rel=1e-4)


@pytest.mark.parametrize("options", [{"shape": (3, 4)}, {"graph": "complete"}, {"graph": "path"}])
@pytest.mark.parametrize(("temperature", "field"), [(1.0, 0.2), (5.0, 0.0), (0.4, 0.0)])
def test_of_spins_that_do_not_heed_each_other(options: dict[str, Any], temperature: float, field: float) -> None:
    if options.get("graph") == "path":
        from networkx import path_graph

        options = {"graph": path_graph(10)}  # ends of one bond, insides of two
    env = Ising(num_agents=12 if "shape" in options else 10, field=field, **options)
    known = env.fluctuations(temperature, independent=True)
    m = np.sqrt(max(0.0, 1 - known["magnetisation/signed"].value ** 2 * env.num_agents))
    exact = enumerated(env, lambda spin, _: np.log((1 + m * spin) / 2 + 1e-300).sum(1))
    assert set(known) == {"magnetisation", "magnetisation/signed", "energy"}
    for name, value in known.items():
        assert value.value == pytest.approx(exact[name], rel=2e-4, abs=1e-6), name
    if temperature == 5.0:
        assert m == pytest.approx(0)


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert Ising(states=3).fluctuations(1.0) == {}
    assert Ising(order="partial").fluctuations(1.0) == {}
    assert Ising(order="synchronous").fluctuations(1.0) == {}
    assert Ising(field=0.1).fluctuations(1.0) == {}
    assert Ising(sight="neighbours", order="partial").fluctuations(1.0, independent=True) == {}
