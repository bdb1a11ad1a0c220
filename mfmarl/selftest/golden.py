"""G16: run folders of every released version are read, fitted to a run and gone on with, for ever.

    golden/0.1.0/third_party/     config.toml, metrics.jsonl, status.json, checkpoints/, as that version wrote them
                    answers.json  what the policy answered there and then

`python -m mfmarl.selftest.golden --write` makes those of the version at hand; they are never written again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import mfmarl
from mfmarl.errors import CheckpointError, ConfigError, MfmarlError
from mfmarl.learning import checkpoint
from mfmarl.learning.build import Built
from mfmarl.learning.durable import write_atomic
from mfmarl.learning.run import load_training, run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import CONFIG, MARKER, is_run, read_config, read_metrics, read_status
from mfmarl.selftest.goal import Order, Outcome

FOLDER = Path(__file__).parent / "golden"
ANSWERS = "answers.json"
LARGEST = 50_000
_SHOWN = 48  # numbers of each player's answers that are kept


@dataclass(frozen=True)
class Recipe:
    """A small run that leaves one kind of state behind."""

    environment: Choice
    agents: dict[str, Choice]
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> RunConfig:
        usual: dict[str, Any] = {"steps": 23, "report_every": 5, "copies": 2, "evaluation_copies": 1, "seed": 7}
        return RunConfig(self.environment, self.agents, RunOptions(**{**usual, **self.options}))


def _everybody(name: str, **options: Any) -> dict[str, Choice]:
    return {"all": Choice(name, options)}


_NET: dict[str, Any] = {"hidden": [4]}
_REPLAY: dict[str, Any] = {**_NET, "capacity": 24, "warm_up": 8, "batch_size": 8}

RECIPES = {
    "replay": Recipe(Choice("ising", {"num_agents": 9}), _everybody("mfq", **_REPLAY)),
    "replay_by_priority": Recipe(Choice("congestion", {"num_agents": 4}), _everybody("iql", **_REPLAY, priority=0.6)),
    "weights_with_noise": Recipe(
        Choice("congestion", {"num_agents": 4}),
        _everybody("mfq", **_REPLAY, optimiser="sghmc", weight_temperature="geometric(1e-3, 1e-6)"),
    ),
    "mind_for_each": Recipe(Choice("congestion", {"num_agents": 3}), _everybody("mfq", **_REPLAY), {"sharing": "none"}),
    "rollout": Recipe(Choice("congestion", {"num_agents": 4}), _everybody("mfppo", **_NET, rollout=7)),
    "continuous_actions": Recipe(Choice("flocking", {"num_agents": 3}), _everybody("mfac", **_REPLAY)),
    "beliefs": Recipe(Choice("aliased_grid", {"num_agents": 2}), _everybody("active_inference", depth=1)),
    "learned_beliefs": Recipe(Choice("congestion", {"num_agents": 4}), _everybody("mean_field_inference")),
    "three_teams": Recipe(
        Choice("predator_prey", {"num_agents": 9}),
        {
            "first": Choice("mfq", _REPLAY),
            "second": Choice("mfppo", {**_NET, "rollout": 7}),
            "third": Choice("random"),
        },
    ),
    "third_party": Recipe(
        Choice("mpe2/simple_spread_v3", {"max_cycles": 9}), _everybody("mfq", **_REPLAY), {"copies": 1}
    ),
}
"""What each release leaves a run folder of."""


def write(version: str, folder: Path = FOLDER) -> list[Path]:
    """Make the run folders of the version at hand; returns them. Raises ConfigError where they are there already."""
    if version != mfmarl.__version__:
        raise ConfigError(f"This is mfmarl {mfmarl.__version__}: it cannot write what {version} would.")
    if (folder / version).exists():
        raise ConfigError(f"{folder / version} exists: what a release wrote is never written again.")
    made = []
    for name, recipe in RECIPES.items():
        path = folder / version / name
        path.parent.mkdir(parents=True, exist_ok=True)
        run_in_folder(recipe.config(), path)
        _slim(path)
        _, built = load_training(path)
        with _closing(built):
            (path / ANSWERS).write_text(json.dumps({"step": built.training.tick, **answers(built)}) + "\n")
        too_large = [file.name for file in path.rglob("*") if file.is_file() and file.stat().st_size > LARGEST]
        if too_large:
            raise ConfigError(f"{path} holds {too_large[0]}, which is larger than {LARGEST:,} bytes: make it smaller.")
        made.append(path)
    return made


def _slim(path: Path) -> None:
    """What is of the machine, or made anew from the rest, does not travel."""
    latest = json.loads((path / "checkpoints" / checkpoint.LATEST).read_text())["file"]
    for file in (path / "checkpoints").glob("*.safetensors"):
        if file.name != latest:
            file.unlink()
    (path / MARKER).unlink(missing_ok=True)
    text = (path / CONFIG).read_text(encoding="utf-8")
    write_atomic(path / CONFIG, text.replace(platform.platform(), platform.system()).encode())
    for name in ("figures", "tensorboard"):
        shutil.rmtree(path / name, ignore_errors=True)


class _closing:
    def __init__(self, built: Built) -> None:
        self.built = built

    def __enter__(self) -> Built:
        return self.built

    def __exit__(self, *_: object) -> None:
        self.built.close()


def answers(built: Built) -> dict[str, list[float]]:
    """What each player's policy says here and now: energies of actions, or the actions where they are not listed."""
    episode, found = built.training.episode, {}
    for i, player in enumerate(built.players):
        if built.env.spec.discrete:
            obs = player.agent.by_mind(episode.seen[i].obs[:, player.slots])
            with torch.no_grad():
                told = player.agent.energy(obs, player.agent.by_mind(episode.felt[i]))
        else:
            told = episode.act()[:, player.slots]
        found[player.name] = [float(x) for x in told.flatten()[:_SHOWN].double()]
    return found


def folders(root: Path = FOLDER) -> list[Path]:
    """Every run folder kept of a release."""
    if not root.is_dir():
        return []
    return sorted(path for version in root.iterdir() if version.is_dir() for path in version.iterdir() if is_run(path))


class Unavailable(Exception):
    """The run plays an environment that is not installed here."""


def try_release(source: Path, place: Path) -> None:
    """Load, fit, compare and go on with a copy of one run folder.

    Raises MfmarlError that says what went wrong; Unavailable where its environment cannot be opened here.
    """
    shutil.copytree(source, place)
    name = str(read_config(place)["environment"]["name"])
    _demand_installed(name)
    stored = json.loads((place / ANSWERS).read_text())
    config, built = load_training(place)
    with _closing(built):
        if built.training.tick != stored.pop("step"):
            raise CheckpointError(f"{source} is at step {built.training.tick}, not where its answers were given.")
        now = answers(built)
        for player, numbers in stored.items():
            there, here = torch.tensor(numbers), torch.tensor(now.get(player, []))
            if there.shape != here.shape or not torch.allclose(there, here, rtol=1e-4, atol=1e-5):
                raise CheckpointError(f"{source}: {player} answers otherwise than the release that wrote it.")
    rows = read_metrics(place)
    if not rows or read_status(place)["state"] != "done":
        raise CheckpointError(f"{source}: its rows or its status are not understood.")
    further = replace(config, run=replace(config.run, steps=config.run.steps + 2 * config.run.report_interval))
    run_in_folder(further, place, resume=True).close()
    found = checkpoint.load(place)
    if found.step != further.run.steps or read_metrics(place)[: len(rows)] != rows:
        raise CheckpointError(f"{source} went on to step {found.step} of {further.run.steps}, or lost its rows.")


def _demand_installed(name: str) -> None:
    import importlib.util

    namespace, slash, _ = name.partition("/")
    if slash and importlib.util.find_spec(namespace) is None:
        raise Unavailable(f"{namespace} is not installed")


def releases(order: Order) -> Outcome:
    """G16: every run folder of every release. The trials are few: all of them, whatever the share."""
    every, failures, absent = folders(), [], []
    for done, source in enumerate(every, 1):
        told = f"{source.parent.name}/{source.name}"
        try:
            try_release(source, order.folder / f"{source.parent.name}-{source.name}")
        except Unavailable as reason:
            absent.append(f"{told}: {reason}")
        except Exception as error:  # noqa: BLE001 - the other releases are still to be tried
            failures.append(f"{told}: {type(error).__name__}: {error}")
        order.watch(done, len(every))
    versions = sorted({source.parent.name for source in every})
    tried = len(every) - len(absent)
    if not tried:
        return Outcome(None, f"no run folder of a release can be tried here ({'; '.join(absent) or 'none is there'})")
    note = f"; not tried: {'; '.join(absent)}" if absent else ""
    return Outcome(
        not failures,
        f"{tried - len(failures)} of {tried} run folders of {', '.join(versions)} load, answer alike and go on{note}",
        tried,
        tuple(failures),
        figures={"folders": len(every), "tried": tried, "releases": len(versions)},
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the run folders of a release, to be kept for ever."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", metavar="VERSION", required=True, help="the version at hand, for safety")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args(arguments)
    try:
        for path in write(given.write, given.folder):
            print(f"{path}  {sum(file.stat().st_size for file in path.rglob('*') if file.is_file()):,} bytes")
    except MfmarlError as error:
        print(f"mfmarl: {error} [{error.code}]", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
