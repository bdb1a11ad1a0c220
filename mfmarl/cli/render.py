"""`mfmarl render`: a picture and a film of a trained population."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mfmarl.cli.choices import add_import_option, import_all
from mfmarl.errors import ConfigError

EXAMPLES = """  mfmarl render runs/routes
  mfmarl render runs/mine/ising/mfq/seed-0 --frames 200 --every 5 --fps 20"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--frames", type=int, default=60, help="pictures in the film (default: 60)")
    parser.add_argument("--every", type=int, default=1, help="environment steps between pictures (default: 1)")
    parser.add_argument("--fps", type=float, default=12.0, help="pictures per second (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the episode that is drawn (default: 0)")
    add_import_option(parser)


def run(known: argparse.Namespace, rest: list[str]) -> int:
    import_all(known.imports)
    from mfmarl.evaluation.films import film, write_gif, write_png
    from mfmarl.learning.run_folder import is_run

    if not is_run(known.run):
        raise ConfigError(
            f"There is no run in {known.run}; a comparison keeps its runs at <environment>/<agent>/seed-<k>/."
        )
    frames = film(known.run, known.frames, known.every, known.seed)
    figures = known.run / "figures"
    png = write_png(frames[-1], figures / "population.png")
    gif = write_gif(frames, figures / "population.gif", known.fps)
    if known.json:
        print(json.dumps({"png": str(png), "gif": str(gif), "frames": len(frames)}))
    else:
        print(f"picture: {png}\n   film: {gif} ({len(frames)} frames)")
    return 0
