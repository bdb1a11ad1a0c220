"""The options that say where the runs of a command are carried out, the same in every command that has many runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mfmarl.errors import ConfigError

if TYPE_CHECKING:
    from mfmarl.evaluation.comparison import Engine

_RAY_ONLY = ("address", "cpus_per_run", "gpus_per_run", "memory_per_run")
_LOCAL_ONLY = {"engine_silence": "--worker-timeout", "engine_run_timeout": "--run-timeout"}


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """`--engine` and what only Ray needs to know; `engine_of` reads them."""
    group = parser.add_argument_group("where the runs are carried out")
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine, or Ray: pip install 'mfmarl[ray]' (default: local)",
    )
    group.add_argument(
        "--address",
        help="a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; all its nodes must see the runs' folder "
        "(default: a cluster of this machine alone, ended with the command)",
    )
    group.add_argument("--cpus-per-run", type=float, help="CPUs that Ray sets aside for each run (default: 1)")
    group.add_argument("--gpus-per-run", type=float, help="GPUs, or a share of one, for each run (default: 0)")
    group.add_argument(
        "--memory-per-run", metavar="SIZE", help="memory that Ray sets aside for each run, e.g. 2GB (default: none)"
    )
    group.add_argument(
        "--max-restarts",
        type=int,
        help="how often a run whose worker is lost goes on in another, from its last checkpoint (default: 2, of Ray 3)",
    )
    group.add_argument(
        "--worker-timeout",
        dest="engine_silence",  # `run_timeout` is the run's own --timeout
        type=float,
        metavar="SECONDS",
        help="a worker of this machine that gives no sign of life for so long is ended, and its run goes on (default: 60)",
    )
    group.add_argument(
        "--run-timeout",
        dest="engine_run_timeout",
        type=float,
        metavar="SECONDS",
        help="a run that reports nothing for so long is ended, and goes on from its checkpoint (default: no limit)",
    )


def engine_of(known: argparse.Namespace) -> Engine:
    """The engine that the options name, found ready for use. Raises ConfigError."""
    of_ray = {name: value for name in _RAY_ONLY if (value := getattr(known, name)) is not None}
    of_local = {name: value for name in _LOCAL_ONLY if (value := getattr(known, name, None)) is not None}
    restarts = {} if known.max_restarts is None else {"max_restarts": known.max_restarts}
    if known.engine == "local":
        if of_ray:
            option = "--" + next(iter(of_ray)).replace("_", "-")
            raise ConfigError(f"{option} is for Ray: add --engine ray, or leave it out.")
        from mfmarl.evaluation.local_engine import LocalEngine

        return LocalEngine(**{name.removeprefix("engine_"): value for name, value in of_local.items()}, **restarts)
    if of_local:
        option = _LOCAL_ONLY[next(iter(of_local))]
        raise ConfigError(f"{option} is for processes of this machine: leave out --engine ray, or it.")
    from mfmarl.evaluation.ray_engine import RayEngine, bytes_of

    given = {**of_ray, **restarts}
    if "memory_per_run" in given:
        given["memory_per_run"] = bytes_of(given["memory_per_run"], "--memory-per-run")
    engine = RayEngine(**given)
    engine.check()
    return engine
