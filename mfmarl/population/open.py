"""One door for every environment: a name, a class, a factory or a ready-made one becomes an `Env`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from mfmarl import registry
from mfmarl.errors import ConfigError
from mfmarl.options import from_table
from mfmarl.population import third_party
from mfmarl.population.adapter import Adapter
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.simulation import Env, Simulation
from mfmarl.population.spec import Spec
from mfmarl.registry import Entry


def open_env(
    what: Any,
    options: Mapping[str, Any] | None = None,
    copies: int = 1,
    device: torch.device | str = "cpu",
    workers: int | Literal["threads"] = 0,
    max_steps: int | None = None,
    first_copy: int = 0,
    grouping: Mapping[str, str] | Callable[[str], str] | None = None,
    ranks: Ranks = ALONE,
    by_agents: bool = True,
    timeout: float = 60.0,
    max_restarts: int = 0,
    admit: Callable[[Spec], object] = lambda spec: None,
) -> Env:
    """`copies` copies of an environment.

    `what` is a name (`ising`, `magent2/battle_v4`, `my_env.py:MyEnv`), a registry `Entry`, a `PopulationEnv`,
    `ParallelEnv` or `AECEnv` (class or instance), or a function that makes one; `options` are its fields or
    keyword arguments. `workers`, `timeout`, `max_restarts` and `grouping` (an agent's name -> its team) are for
    third-party environments, see `Adapter`. `max_steps` truncates episodes that last longer. Between `ranks` a population of ours is
    divided, see `Simulation`. `admit` is told the spec of one of ours before anything is made that grows with it.

    Raises ConfigError (unknown name or option), EnvironmentFault (an environment that cannot be made).
    """
    if isinstance(what, str):
        what = registry.lookup("environment", what)
    target: Any = what
    name = ""

    def adapter(maker: third_party.Maker) -> Env:
        if ranks.count > 1:
            raise ConfigError(
                f"{maker.name} is another library's and cannot be divided over ranks; give its copies --workers instead."
            )
        return Adapter(maker, copies, device, first_copy, workers, grouping, max_steps, timeout, max_restarts)

    if isinstance(what, Entry):
        name = what.name
        options = {**dict(what.overrides), **dict(options or {})}
        if what.target is None and what.name.partition("/")[0] in registry.NAMESPACES:
            return adapter(third_party.maker(name, options))
        target = what.load()
    if isinstance(target, type) and issubclass(target, PopulationEnv):
        if not hasattr(target, "__dataclass_fields__"):
            raise ConfigError(f"{target.__name__} must be a frozen dataclass, whose fields are its options.")
        target = from_table(target, dict(options or {}), name)
    elif isinstance(target, PopulationEnv):
        if options:
            raise ConfigError(f"{type(target).__name__} is made already, so it takes no options; give its class.")
    else:
        maker = third_party.maker_of(target, options, name)
        if callable(target) and not isinstance(target, type):
            made = maker()
            if not isinstance(made, PopulationEnv):
                _close(made)
                return adapter(maker)
            target = made
        else:
            return adapter(maker)
    admit(replace(target.spec(), rules=target))  # agents may ask the rules what they are told of the world
    simulation = Simulation(target, copies, device, first_copy, ranks=ranks, by_agents=by_agents)
    if max_steps is not None:
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}.")
        simulation.spec = simulation.spec.limited(min(max_steps, simulation.spec.horizon or max_steps))
    return simulation


def _close(env: Any) -> None:
    close = getattr(env, "close", None)
    if callable(close):
        close()
