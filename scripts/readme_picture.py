"""Draw docs/images/demo.png, the README's picture, from what `make demo` left in runs/demo.

python scripts/readme_picture.py [runs/demo]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"ising": "paid for agreeing with neighbours", "ising_coupling=-1": "paid for differing from neighbours"}
AGENTS = {"mfq": "mfq: feels its neighbours", "iql": "iql: does not"}


def draw(comparison: Path) -> Figure:
    figure = Figure(figsize=(14.8, 7.6), facecolor="#fdfdfd")
    halves = figure.subfigures(1, len(TITLES), squeeze=False)
    for half, (environment, title) in zip(np.ravel(halves), TITLES.items(), strict=True):
        half.suptitle(title, fontsize=15, fontweight="bold", x=0.045, ha="left", y=0.985)
        curves = half.add_axes((0.0, 0.42, 1.0, 0.52))
        curves.imshow(imread(comparison / "figures" / f"curves_{environment.replace('=', '_')}.png"))
        curves.axis("off")
        for place, (agent, name) in enumerate(AGENTS.items()):
            population = half.add_axes((0.09 + 0.33 * place, 0.01, 0.3, 0.36))
            population.imshow(
                imread(comparison / "figures" / f"population_{environment}_{agent}.png"), interpolation="nearest"
            )
            population.set_title(name, fontsize=11, loc="left", pad=4)
            population.axis("off")
    return figure


if __name__ == "__main__":
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "demo"
    if not (run / "report.html").is_file():
        sys.exit(f"There is no comparison at {run}: run `make demo` first.")
    target = ROOT / "docs" / "images" / "demo.png"
    target.parent.mkdir(exist_ok=True)
    draw(run).savefig(target, dpi=110)
    print(target)
