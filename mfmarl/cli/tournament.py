"""`mfmarl tournament`: cross-play of trained teams, with a win matrix and Elo ratings."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from mfmarl.cli.choices import add_import_option, import_all, parse_agents
from mfmarl.errors import ConfigError, printable

EXAMPLES = """  mfmarl tournament runs/battle                      # every trained run of a comparison
  mfmarl tournament runs/a runs/b --games 50
  mfmarl tournament runs/battle --against rusher,random"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="+", help="run or comparison folders, of one environment of two teams"
    )
    parser.add_argument("--against", default="", help="also enter untrained agents by name: random,rusher")
    parser.add_argument("--games", type=int, default=20, help="games of each pair of runs on each side (default: 20)")
    parser.add_argument(
        "--horizon", type=int, default=1000, help="steps after which a game that nothing ends is over (default: 1000)"
    )
    parser.add_argument("--copies", type=int, default=10, help="games played at a time (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the games (default: 0)")
    parser.add_argument("--name", help="results are kept in RUNS/NAME (default: tournament-time)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where results are kept (default: runs)")
    add_import_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(known: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise ConfigError(f"Unknown option {rest[0]!r}. See `mfmarl tournament --help`.")
    for name in ("games", "copies", "horizon"):
        if getattr(known, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(known, name)}.")
    import_all(known.imports)
    from mfmarl.learning.run_folder import exclusive, inside

    stage, entrants = _entrants(known)
    folder = inside(known.runs, known.name or f"tournament-{time.strftime('%Y%m%d-%H%M%S')}")
    with exclusive(folder):
        if (folder / "tournament.json").exists():
            raise ConfigError(f"{folder} holds a tournament already; choose another --name.", "run-exists")
        return _play(known, folder, stage, entrants)


def _play(known: argparse.Namespace, folder: Path, stage: Any, entrants: list[Any]) -> int:
    from mfmarl.cli.progress import Progress
    from mfmarl.evaluation.elo import standings, write_tournament
    from mfmarl.evaluation.report import report_tournament
    from mfmarl.evaluation.tournament import tournament
    from mfmarl.learning.build import versions

    pairs = sum(
        a.name != b.name and (a.side != b.side or not a.side) for i, a in enumerate(entrants) for b in entrants[i + 1 :]
    )
    matches = []
    with Progress(known.quiet) as progress:
        progress.add("matches", pairs)
        for match in tournament(stage, entrants, known.games, known.horizon):
            matches.append(match)
            progress.update("matches", len(matches), f"{match.first} - {match.second}")
    names = list(dict.fromkeys(e.name for e in entrants))
    write_tournament(
        folder,
        names,
        matches,
        environment=stage.environment.name,
        command="mfmarl " + " ".join(sys.argv[1:]),
        versions=versions(),
    )
    found = standings(names, matches)
    page = report_tournament(folder)
    rows = [
        {"player": n, "elo": float(r), "low": float(lo), "high": float(hi)}
        for n, r, lo, hi in sorted(
            zip(found.players, found.rating, found.low, found.high, strict=True), key=lambda x: -x[1]
        )
    ]
    if known.json:
        print(json.dumps({"standings": rows, "matches": [vars(m) for m in matches], "report": str(page)}))
    else:
        print(f"{'player':<24} {'Elo':>6}  95 % interval")
        for row in rows:
            print(f"{printable(str(row['player'])):<24} {row['elo']:>6.0f}  {row['low']:.0f} to {row['high']:.0f}")
        print(f"report: {page}")
    return 0


def _entrants(known: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The environment to play on, and everybody who plays: each finished run, and agents by name."""
    from dataclasses import replace

    from mfmarl.evaluation.tournament import Entrant, entrants_of
    from mfmarl.learning.run_config import RunConfig
    from mfmarl.learning.run_folder import find_runs, read_config

    entrants: list[Any] = []
    stage = None
    for folder in known.folders:
        found = find_runs(folder) if folder.is_dir() else []
        if not found:
            raise ConfigError(f"There is no run in {folder}.")
        for path in found:
            config = RunConfig.from_table({k: v for k, v in read_config(path).items() if k != "versions"}, str(path))
            config.demand_typed(str(path))
            stage = stage or config
            entrants.extend(entrants_of(path, config))
    assert stage is not None
    for label, team in (parse_agents(known.against) if known.against else {}).items():
        entrants.extend(
            Entrant(label, 0, None, choice, "" if group == "all" else group) for group, choice in team.items()
        )
    if len({e.name for e in entrants}) < 2:
        raise ConfigError("A tournament needs two different agents; add for example --against random.")
    if len({e.side for e in entrants}) == 1 and entrants[0].side:
        raise ConfigError(
            f"Everybody here was trained for {entrants[0].side!r} alone, so nobody can meet; "
            "add for example --against random, which plays either side."
        )
    return replace(stage, run=replace(stage.run, copies=known.copies, seed=known.seed, sharing="group")), entrants
