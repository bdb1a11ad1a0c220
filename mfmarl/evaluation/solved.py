"""What a solve leaves in its folder: outcomes, and each solver's policy with its crowd.

A policy file holds `policy` [T, G, S, A], `mu` [T + 1, G, S] (the crowd at each time and after the last step), `paths`
[P, T + 1] (rows of mu in the order of time; several under common noise, whose pasts are the rows) and, of a game on a
grid, `drift` [T, G, S, D]: the mean move. What they mean is JSON in its header. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError
from mfmarl.evaluation.solve_config import SolveConfig
from mfmarl.games.flow import Flow, reach
from mfmarl.games.game import MeanFieldGame
from mfmarl.learning import run_folder
from mfmarl.learning.durable import read_limited, write_atomic

SCHEMA = 1
SOLUTION = "solution.json"
POLICIES = "policies"
_MOST_BYTES = 16 * 2**30
_FULL = 3  # cells of a grid for each state of a game, at most: else its states do not fill a plane
_PATHS = 3  # pasts of the common noise that are followed, the likeliest


@dataclass
class Outcome:
    """What one solver came to."""

    label: str
    state: Literal["running", "done", "interrupted", "diverged", "failed"] = "running"
    stopped: str = ""
    told: str = ""
    exploitability: float = math.nan
    """Of the best policy that was looked at."""
    regularised: float = math.nan
    """The same of entropy-regularised agents, where the solver has a temperature."""
    uniform: float = math.nan
    """Of the policy that it began with: uniform choice, or the one of another run."""
    value: float = math.nan
    iterations: int = 0
    seconds: float = 0.0
    cooperative: bool = False
    temperature: float = 0.0
    file: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    finite: dict[str, Any] = field(default_factory=dict)
    """The gain of one of N agents: see `finite_gain`."""


@dataclass(frozen=True)
class SavedPolicy:
    """A policy file, read back."""

    policy: Tensor  # [T, G, S, A]
    mu: Tensor  # [T + 1, G, S]
    paths: Tensor  # [P, T + 1] int64, rows of mu
    chances: Tensor  # [P], the probability of each path
    drift: Tensor | None  # [T, G, S, D]
    about: dict[str, Any]


def save_policy(file: Path, game: MeanFieldGame, path: Flow, outcome: Outcome, config: SolveConfig) -> None:
    """Write a policy and its crowd, whole or not at all. Raises ResourceFault."""
    import safetensors.torch

    tensors = _crowd(game, path)
    about = {
        "schema": SCHEMA,
        "environment": {"name": config.environment.name, **config.environment.options},
        "solver": {"name": config.solvers[outcome.label].name, **config.solvers[outcome.label].options},
        "exploitability": outcome.exploitability,
        "iterations": outcome.iterations,
    }
    held = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    content = safetensors.torch.save(held, {"mfmarl": json.dumps(about)})
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, content)


def _crowd(game: MeanFieldGame, path: Flow) -> dict[str, Tensor]:
    mu = path.mu
    times = torch.arange(len(mu)).unsqueeze(0)
    chances = torch.ones(1, dtype=torch.float64)
    if game.tree is not None:
        times, chances = _likeliest(game, path)
    elif game.horizon is not None:
        mu = torch.cat([mu, path.kernels[-1].carry(path.joint[-1]).unsqueeze(0)])
        times = torch.arange(len(mu)).unsqueeze(0)
    found = {"policy": path.policy, "mu": mu, "paths": times, "chances": chances}
    drift = drift_of(game, path)
    return found if drift is None else {**found, "drift": drift}


def _likeliest(game: MeanFieldGame, path: Flow) -> tuple[Tensor, Tensor]:
    """The likeliest pasts of the common noise as rows of nodes [P, T], with their probabilities."""
    tree = game.tree
    assert tree is not None
    last = tree.levels[-1]
    chance = reach(game, path)[last]
    order = chance.argsort(descending=True, stable=True)[:_PATHS]
    rows = []
    for leaf in order.tolist():
        node, nodes = leaf, []
        for t in range(len(tree.levels) - 1, -1, -1):
            nodes.append(tree.levels[t].start + node)
            node = int(tree.parent[t][node])
        rows.append(nodes[::-1])
    return torch.tensor(rows), chance[order]


def drift_of(game: MeanFieldGame, path: Flow) -> Tensor | None:
    """The mean move of those who stand in each cell of a grid of two or more dimensions, [T, G, S, D].

    By the circular mean of where they go, so that a step across the edge of a torus is a step.
    """
    plane = layout(game)
    grid = plane["grid"]
    if len(grid) < 2:
        return None
    cells = torch.tensor(plane["cells"] or list(range(game.num_states)), device=path.mu.device)
    place = torch.stack(torch.unravel_index(cells, tuple(grid)), -1).to(path.mu)  # [S, D]
    levels = [slice(t, t + 1) for t in range(len(path.mu))] if game.tree is None else list(game.tree.levels)
    moves = []
    for axis, size in enumerate(grid):
        angle = place[:, axis] * (2 * math.pi / size)
        found = []
        for t, level in enumerate(levels):
            shape = path.mu[level].shape
            ahead = [
                (path.policy[level] * path.kernels[t].expect(f(angle).expand(shape))).sum(-1)
                for f in (torch.cos, torch.sin)
            ]
            turned = ahead[1] * angle.cos() - ahead[0] * angle.sin()
            along = ahead[0] * angle.cos() + ahead[1] * angle.sin()
            found.append(torch.atan2(turned, along) * (size / (2 * math.pi)))
        moves.append(torch.cat(found))
    return torch.stack(moves, -1)


def load_policy(path: Path) -> SavedPolicy:
    """The policy of a solved run (its best where several solvers found one), or of one policy file.

    Raises ConfigError where there is none, CheckpointError for a file that is damaged.
    """
    import safetensors.torch

    path = Path(path)
    if path.is_dir():
        path = path / POLICIES / _best_file(path)
    elif not path.is_file():
        raise ConfigError(f"There is no solved run or policy file {path}.")
    content = read_limited(path, _MOST_BYTES, CheckpointError)
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["mfmarl"])
    except Exception as error:
        raise CheckpointError(f"{path} is no policy of a solved game, or it is damaged: {error}") from error
    missing = sorted({"policy", "mu", "paths", "chances"} - set(tensors))
    if missing or not isinstance(about, dict):
        raise CheckpointError(f"{path} is no policy of a solved game: it has no {', '.join(missing) or 'description'}.")
    return SavedPolicy(
        tensors["policy"], tensors["mu"], tensors["paths"], tensors["chances"], tensors.get("drift"), about
    )


def _best_file(path: Path) -> str:
    try:
        outcomes = read_outcomes(path)
    except ConfigError as error:
        raise ConfigError(f"{path} holds no solved game ({SOLUTION} is missing or damaged).") from error
    kept = [o for o in outcomes if (path / POLICIES / o.file).is_file()]
    if not kept:
        raise ConfigError(f"{path} holds no policy: no solver came to one.")
    return best_of(kept).file


def best_of(outcomes: list[Outcome]) -> Outcome:
    """The outcome of least exploitability; a planner's only where there is no other."""
    return min(outcomes, key=lambda o: (o.cooperative, or_inf(o.exploitability)))


def read_outcomes(path: Path) -> list[Outcome]:
    """What each solver of a solved run came to. Raises ConfigError."""
    table = read_table(Path(path) / SOLUTION).get("solvers")
    known = set(Outcome.__dataclass_fields__)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}/{SOLUTION} is damaged: it names no solvers.")
    found = []
    for label, row in table.items():
        if not isinstance(row, dict) or not set(row) <= known:
            raise ConfigError(f"{path}/{SOLUTION} is damaged at {label!r}.")
        floats = ("exploitability", "regularised", "uniform", "value", "seconds", "temperature")
        found.append(Outcome(**{**row, **{k: math.nan for k in floats if row.get(k) is None}, "label": str(label)}))
    return found


def read_table(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError."""
    try:
        table = json.loads(read_limited(file, 2**26, ConfigError))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{file} is damaged: expected a JSON object.")
    return table


def is_solved(path: Path) -> bool:
    """Whether that folder is one of `solve_in_folder`."""
    return (Path(path) / "game.json").is_file() and run_folder.is_run(Path(path))


def layout(game: MeanFieldGame) -> dict[str, Any]:
    """How the game's states lie, and what states and actions are called where it says so (`state_names`, `action_names`).

    A plane or space is read off the game's coordinates: the cells of a grid, of which walls are missing.
    """
    found: dict[str, Any] = {"grid": [], "cells": [], "state_names": [], "action_names": []}
    place = game.coordinates()
    if place is not None and place.ndim == 2 and 2 <= place.shape[1] <= 3 and len(place) == game.num_states:
        ranks = [torch.unique(torch.round(column, decimals=6), return_inverse=True) for column in place.double().T]
        shape = [len(values) for values, _ in ranks]
        cells = torch.zeros(len(place), dtype=torch.int64)
        for size, (_, rank) in zip(shape, ranks, strict=True):
            cells = cells * size + rank
        if min(shape) > 1 and math.prod(shape) <= _FULL * len(place) and len(cells.unique()) == len(cells):
            whole = torch.equal(cells, torch.arange(len(cells)))
            found |= {"grid": shape, "cells": [] if whole else cells.tolist()}
    for name, count in (("state_names", game.num_states), ("action_names", game.num_actions)):
        names = getattr(game, name, None)
        if names is not None and len(names) == count:
            found[name] = [str(n) for n in names]
    return found


def or_inf(value: float) -> float:
    """The number, or infinity where it is none: what was never found is the worst."""
    return value if math.isfinite(value) else math.inf
