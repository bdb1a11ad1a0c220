"""From a config to what runs: the environment, its twin for evaluation, the players, the training."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from mfmarl.errors import ConfigError
from mfmarl.learning import judge
from mfmarl.learning.footprint import admit
from mfmarl.learning.players import Player, make_players
from mfmarl.learning.run_config import RunConfig
from mfmarl.learning.training import Training
from mfmarl.population.known import Known
from mfmarl.population.open import open_env
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.simulation import Env, Simulation
from mfmarl.random import Key
from mfmarl.registry import lookup


class Built(NamedTuple):
    """A run that is ready to start."""

    training: Training
    env: Env
    evaluation: Env | None
    players: list[Player]

    def close(self) -> None:
        self.env.close()
        if self.evaluation is not None:
            self.evaluation.close()


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises ConfigError for a device that is not there: nothing falls back silently.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Unknown device {name!r}; write cpu, cuda, cuda:1 or auto.", "no-device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"There is no CUDA device here for {name!r}; write --device cpu.", "no-device")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"The device {name!r} is not supported; write cpu, cuda, cuda:1 or auto.", "no-device")
    return device


def set_threads(count: int) -> None:
    """Threads of torch, part of what makes a run repeatable; and reductions in a fixed order."""
    # Spinning threads waste cores on small work; the variable must be set before the pool starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(count)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def open_population(config: RunConfig, copies: int, device: torch.device, ranks: Ranks = ALONE) -> Env:
    """Copies of the config's environment: this rank's part of them."""
    entry = lookup("environment", config.environment.name)
    env = open_env(
        entry,
        config.environment.options,
        copies,
        device,
        workers=config.run.workers,
        max_steps=config.run.max_steps or None,
        ranks=ranks,
        by_agents=config.run.divide == "agents",
        timeout=config.run.timeout,
        max_restarts=config.run.environment_restarts if config.run.on_fault == "restart" else 0,
        admit=lambda spec: admit(config, spec, ranks),
    )
    env.reward_limit = config.run.reward_limit
    return env


def build(config: RunConfig, ranks: Ranks = ALONE) -> Built:
    """Environment, evaluation, players and training of a config, or this rank's part; nothing is written anywhere."""
    set_threads(config.run.threads)
    device = choose_device(config.run.device)
    if ranks.count > 1 and device == torch.device("cuda"):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", ranks.rank)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    env = open_population(config, config.run.copies, device, ranks)
    evaluation = None
    try:
        players = make_players(config, env.spec, Key.of(config.run.seed), device)
        if config.run.evaluation_copies:
            evaluation = _open_evaluation(config, device, ranks)
        return Built(Training(env, players, config.run, evaluation), env, evaluation, players)
    except BaseException:
        env.close()
        if evaluation is not None:
            evaluation.close()
        raise


def _open_evaluation(config: RunConfig, device: torch.device, ranks: Ranks) -> Env:
    copies = config.run.evaluation_copies
    if config.run.divide == "copies" and copies < ranks.count:
        raise ConfigError(
            f"{ranks.count} ranks cannot share {copies} copies: give --evaluation-copies {ranks.count}, or 0."
        )
    return open_population(config, copies, device, ranks)


def known_answers(env: Env, players: list[Player]) -> dict[str, Known]:
    """What theory says of this population at the temperature that its agents end at."""
    if not isinstance(env, Simulation):
        return {}
    schedules = {p.agent.schedule for p in players}
    if len(schedules) != 1 or next(iter(schedules)).kind == "entropy":
        return {}
    temperature = next(iter(schedules)).at(1.0)
    game = judge.rules(env)
    own = players[0].agent.known_answers(temperature) if len({type(p.agent) for p in players}) == 1 else {}
    gaps = {} if game is None else judge.known(game, temperature)
    alone = all(p.agent.field.is_nothing for p in players)
    known = env.env.reference_independent(temperature) if alone else env.env.reference(temperature)
    return {**known, **gaps, **own}


def agent_label(config: RunConfig) -> str:
    """How reports call who played: `mfq`, or `red=mfq,blue=iql`."""
    if set(config.agents) == {"all"}:
        return config.agents["all"].name
    return ",".join(f"{group}={choice.name}" for group, choice in sorted(config.agents.items()))


def versions() -> dict[str, Any]:
    """The versions that a run depends on, and the git commit where there is one."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "numpy", "gymnasium", "pettingzoo", "stable-baselines3", "magent2", "mpe2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    from mfmarl import __version__

    found["mfmarl"] = __version__
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    commit = _git_commit()
    if commit:
        found["git_commit"] = commit
    return found


def _git_commit() -> str:
    """The commit of the working folder, read from its files: no process is started."""
    from pathlib import Path

    for folder in (Path.cwd(), *Path.cwd().parents):
        head = folder / ".git" / "HEAD"
        if head.is_file():
            try:
                text = head.read_text().strip()
                if text.startswith("ref: "):
                    ref = folder / ".git" / text.removeprefix("ref: ")
                    return ref.read_text().strip() if ref.is_file() else ""
                return text
            except OSError:
                return ""
    return ""
