"""What all annealed optimisers share: noise that resumes bitwise, options that are refused, temperatures that move."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.optimisers.exchange import ReplicaExchangeSGLD
from mfmarl.statmech.optimisers.hamiltonian import SGHMC, Underdamped
from mfmarl.statmech.optimisers.langevin import SGLD, PreconditionedSGLD
from mfmarl.statmech.optimisers.local_entropy import EntropySGD
from mfmarl.statmech.optimisers.noise import ThermalOptimizer
from mfmarl.statmech.optimisers.noisy import NoisySGD
from mfmarl.statmech.optimisers.simulated import SimulatedAnnealing

KEY = Key.of(3)
MAKERS: dict[str, Any] = {
    "sgld": lambda p: SGLD(p, 0.01, key=KEY, weight_decay=0.1),
    "preconditioned": lambda p: PreconditionedSGLD(p, 0.01, key=KEY, weight_decay=0.1),
    "sghmc": lambda p: SGHMC(p, 0.01, key=KEY),
    "underdamped": lambda p: Underdamped(p, 0.05, key=KEY, weight_decay=0.2),
    "noisy": lambda p: NoisySGD(p, 0.01, key=KEY, noise=0.1, momentum=0.5),
    "tempered": lambda p: NoisySGD(p, 0.01, key=KEY, temperature=0.5),
    "exchange": lambda p: ReplicaExchangeSGLD(p, 0.01, (0.5, 1.0, 2.0), key=KEY),
    "local entropy": lambda p: EntropySGD(p, 0.1, 0.1, key=KEY, inner_steps=4, inner_lr=0.01),
    "simulated": lambda p: SimulatedAnnealing(p, 0.1, key=KEY, share=0.5),
}


def _model() -> tuple[list[nn.Parameter], Any]:
    torch_noise = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=torch_noise)) for shape in ((3, 4, 2), (3, 5))]

    def closure() -> Tensor:
        for p in params:
            p.grad = None
        energy = (params[0] ** 4).sum((1, 2)) + torch.cosh(params[1]).sum(1)
        if torch.is_grad_enabled():
            energy.sum().backward()
        return energy

    return params, closure


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_run_saved_as_tensors_and_resumed_is_bitwise_the_run_that_never_stopped(name: str):
    params, closure = _model()
    optimizer: ThermalOptimizer = MAKERS[name](params)
    for _ in range(4):
        optimizer.step(closure)
    kept = {
        k: {n: torch.as_tensor(v).clone() for n, v in s.items()} for k, s in optimizer.state_dict()["state"].items()
    }
    weights = [p.detach().clone() for p in params]
    assert kept[0]["noise"].dtype == torch.uint8
    for _ in range(4):
        optimizer.step(closure)

    again, closure = _model()
    resumed: ThermalOptimizer = MAKERS[name](again)
    with torch.no_grad():
        for p, w in zip(again, weights, strict=True):
            p.copy_(w)
    resumed.load_state_dict({"state": kept, "param_groups": resumed.state_dict()["param_groups"]})
    for _ in range(4):
        resumed.step(closure)
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q) and bool(p.isfinite().all())


@pytest.mark.parametrize("name", list(MAKERS))
def test_the_global_generator_is_neither_read_nor_moved(name: str):
    before, results = torch.get_rng_state(), []
    for _ in range(2):
        params, closure = _model()
        optimizer = MAKERS[name](params)
        for _ in range(3):
            optimizer.step(closure)
        results.append(params[0].detach().clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(results[0], _model()[0][0])


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_bad_temperature_or_rate_is_refused(name: str):
    params, _ = _model()
    optimizer = MAKERS[name](params)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError):
            optimizer.set_temperature(wrong)
        with pytest.raises(ConfigError, match="temperature"):
            SGLD(params, 0.1, wrong, key=KEY)
    for wrong in (-0.1, 0.0, math.nan):
        with pytest.raises(ConfigError, match=r"must be finite and above 0"):
            type(optimizer)(params, wrong, **({"temperatures": (1.0, 2.0)} if name == "exchange" else {}), key=KEY)


def test_a_schedule_moves_the_temperature_of_every_group():
    params, closure = _model()
    optimizer = SGLD(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}], 0.01, Schedule("linear", 2.0, 0.0), key=KEY
    )
    assert [g["temperature"] for g in optimizer.param_groups] == [2.0, 2.0]
    assert optimizer.advance(0.25) == pytest.approx(1.5)
    assert [g["temperature"] for g in optimizer.param_groups] == [pytest.approx(1.5)] * 2
    optimizer.advance(1.0)
    before = optimizer.generator.get_state()
    optimizer.step(closure)
    assert torch.equal(before, optimizer.generator.get_state())  # at zero temperature nothing is drawn
    with pytest.raises(ConfigError, match="entropy"):
        SGLD(params, 0.01, Schedule("entropy", 0.7), key=KEY)
    with pytest.raises(ConfigError, match="no schedule"):
        SGLD(params, 0.01, key=KEY).advance(0.5)


def test_a_negative_temperature_set_by_hand_is_refused_at_the_step():
    params, closure = _model()
    optimizer = SGLD(params, 0.01, key=KEY)
    optimizer.param_groups[0]["temperature"] = -1.0
    with pytest.raises(ConfigError, match="temperature"):
        optimizer.step(closure)


def test_many_parameters_get_the_noise_of_one():
    """The noise of [3, 4, 2] and [3, 5] is one draw: no two numbers are shared."""
    params, _ = _model()
    noise = torch.cat([z.flatten() for z in SGLD(params, 0.1, key=KEY).gaussian(params)])
    assert len(noise.unique()) == 39
    assert abs(float(noise.mean())) < 5 / math.sqrt(39)


def test_what_cannot_be_done_is_refused_in_a_sentence():
    params, closure = _model()
    with pytest.raises(ConfigError, match="leads? with them"):
        ReplicaExchangeSGLD(params, 0.1, (1.0, 2.0), key=KEY)
    with pytest.raises(ConfigError, match="one lr or as many"):
        ReplicaExchangeSGLD(params, (0.1, 0.1), (1.0, 2.0, 3.0), key=KEY)
    with pytest.raises(ConfigError, match="one energy for each"):
        ReplicaExchangeSGLD(params, 0.1, (1.0, 2.0, 3.0), key=KEY).step(lambda: closure().sum())
    with pytest.raises(ConfigError, match="closure"):
        SimulatedAnnealing(params, 0.1, key=KEY).step()
    with pytest.raises(ConfigError, match="closure"):
        EntropySGD(params, 0.1, key=KEY).step()
    with pytest.raises(NumericFault, match="not a number"):
        SimulatedAnnealing(params, 0.1, key=KEY).step(lambda: closure() * math.nan)
    with pytest.raises(ConfigError, match="not both"):
        NoisySGD(params, 0.1, key=KEY, noise=0.1, temperature=1.0)
    with pytest.raises(ConfigError, match="friction must be at least"):
        hot = SGHMC(params, 0.1, 0.01, key=KEY, gradient_variance=10.0)
        hot.step(closure)
    with pytest.raises(ConfigError, match="generator"):
        SGLD(params, 0.1, key=KEY).load_state_dict(
            {"state": {}, "param_groups": SGLD(params, 0.1, key=KEY).state_dict()["param_groups"]}
        )
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="Sparse"):
        SGLD(embedding.parameters(), 0.1, key=KEY).step()


def test_a_weight_without_a_gradient_stays():
    for make in MAKERS.values():
        if make in (MAKERS["simulated"], MAKERS["exchange"]):
            continue
        used, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

        def loss(used: nn.Parameter = used) -> Tensor:
            used.grad = used.detach().clone()
            return (used**2).sum() / 2

        make([used, idle]).step(loss)
        assert torch.equal(idle, torch.ones(2))
        assert not torch.equal(used, torch.ones(3))
