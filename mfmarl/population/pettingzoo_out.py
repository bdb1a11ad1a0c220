"""The doors to PettingZoo: `parallel_env()` and `env()` for each environment, and PettingZoo's own `make`.

The author of an environment ends the file with one line, `parallel_env, env = faces(Market)`; a user then writes

    from mfmarl.envs import ising
    env = ising.parallel_env(num_agents=100, coupling=1.0, max_cycles=50, render_mode="rgb_array")

or, for every registered environment, one's own and installed plugins' included,

    import mfmarl.pettingzoo
    env = pettingzoo.make("parallel", "mfmarl/ising-v0", num_agents=100)

PettingZoo 1.27 loads no plugins by itself, hence the import. `parallel` and `aec` say what the faces are
and how the two games differ. Importing this module imports neither PettingZoo nor torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mfmarl import registry
from mfmarl.errors import ConfigError, nearest
from mfmarl.options import from_table

if TYPE_CHECKING:
    from mfmarl.population.aec import PopulationAECEnv
    from mfmarl.population.environment import PopulationEnv
    from mfmarl.population.parallel import PopulationParallelEnv

NAMESPACE = "mfmarl"
_VERSION = re.compile(r"[-_]v\d+$")


class Faces(NamedTuple):
    """The two functions that PettingZoo's users know a module by."""

    parallel_env: Callable[..., PopulationParallelEnv]
    env: Callable[..., PopulationAECEnv]


def faces(rules: type[PopulationEnv]) -> Faces:
    """`parallel_env(...)` and `env(...)` for a class of rules; its options are their keyword arguments.

    Both also take `max_cycles` and `render_mode`, and `parallel_env` takes `lazy` (see there). Raises ConfigError, with the nearest option, for one that
    does not exist or does not fit.
    """
    own = list(inspect.signature(rules).parameters.values())
    taken = {"max_cycles", "render_mode", "lazy"} & {parameter.name for parameter in own}
    if taken:
        raise ConfigError(f"{rules.__name__} has an option {min(taken)!r}, which PettingZoo gives another meaning.")

    def parallel_env(
        *, max_cycles: int | None = None, render_mode: str | None = None, lazy: bool = False, **options: Any
    ) -> PopulationParallelEnv:
        from mfmarl.population.parallel import PopulationParallelEnv

        return PopulationParallelEnv(with_options(rules, options), max_cycles, render_mode, lazy)

    def env(*, max_cycles: int | None = None, render_mode: str | None = None, **options: Any) -> PopulationAECEnv:
        from mfmarl.population.aec import PopulationAECEnv

        return PopulationAECEnv(with_options(rules, options), max_cycles, render_mode)

    summary = (inspect.getdoc(rules) or rules.__name__).split("\n")[0]
    made: tuple[tuple[Any, str], ...] = ((parallel_env, "everybody moves at once"), (env, "agent by agent"))
    for face, order in made:
        given = [p for p in inspect.signature(face).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        face.__signature__ = inspect.Signature([*options, *given])
        face.__doc__ = f"{summary} As a PettingZoo environment: {order}."
        face.__module__ = rules.__module__
    return Faces(parallel_env, env)


def with_options(rules: Any, options: dict[str, Any]) -> PopulationEnv:
    """An instance of the class of rules. Raises ConfigError for an unknown, missing or ill-typed option."""
    parameters = inspect.signature(rules).parameters
    for name in options:
        if name not in parameters:
            choices = [*parameters, "max_cycles", "render_mode", "lazy"]
            raise ConfigError(f"{rules.__name__} has no option {name!r}.{nearest(name, choices)}")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(f"{rules.__name__} needs the option {missing[0]!r}.")
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}
    is_table = dataclasses.is_dataclass(rules) and set(parameters) == {f.name for f in dataclasses.fields(rules)}
    if is_table and all(isinstance(v, bool | int | float | str | tuple | list | None) for v in plain.values()):
        return from_table(rules, plain, rules.__name__)
    # A graph, a function: only Python can give it, and only the rules can judge it.
    return rules(**plain)


def open_face(order: Literal["parallel", "aec"], name: str, **options: Any) -> Any:
    """The registered environment of that name as PettingZoo knows it; imported now."""
    from mfmarl.population.environment import PopulationEnv

    target = registry.lookup("environment", name).load()
    if isinstance(target, type) and issubclass(target, PopulationEnv):
        made = faces(target)
        return made.parallel_env(**options) if order == "parallel" else made.env(**options)
    # A user's own PettingZoo environment, registered here to be trained.
    from pettingzoo import AECEnv
    from pettingzoo.utils.conversions import aec_to_parallel, parallel_to_aec

    env = target(**options)
    if isinstance(env, AECEnv) == (order == "aec"):
        return env
    return aec_to_parallel(env) if order == "parallel" else parallel_to_aec(env)


def pettingzoo_id(name: str) -> str:
    """The id under which PettingZoo's `make` knows an environment of ours: `ising` is `mfmarl/ising-v0`."""
    name = name.replace("/", ".")  # PettingZoo's ids have one slash
    return f"{NAMESPACE}/{name}" + ("" if _VERSION.search(name) else "-v0")


def register_with_pettingzoo() -> tuple[str, ...]:
    """Register every environment known now with PettingZoo, importing none; returns their ids.

    Call it again after registering more; what PettingZoo has already is left alone.
    """
    from pettingzoo.env_registry.registration import aec_registry, parallel_registry, register

    ids = []
    for name in registry.entries("environment"):
        ids.append(key := pettingzoo_id(name))
        if _normal(key) not in parallel_registry:
            register("parallel", key, entry_point=partial(open_face, "parallel", name))
        if _normal(key) not in aec_registry:
            register("aec", key, entry_point=partial(open_face, "aec", name))
    return tuple(ids)


def _normal(key: str) -> str:
    return re.sub(r"_v(?=\d+$)", "-v", key)
