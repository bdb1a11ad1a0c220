"""Pictures of trained populations: the first episode they play after training, as a PNG and an animated GIF."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mfmarl.errors import EnvironmentFault, MfmarlError
from mfmarl.evaluation.results import Comparison, folder_name
from mfmarl.learning.durable import write_atomic
from mfmarl.learning.episode import Episode
from mfmarl.learning.run import load_training
from mfmarl.random import Key

Frame = NDArray[np.uint8]
STEPS = 400
"""Of a comparison's films, at most: long enough for order to grow."""
_WORK = 100_000_000  # agent-steps that a film may cost


def film(run: Path, frames: int = 60, every: int = 1, seed: int = 0, steps: int = 0) -> list[Frame]:
    """`frames` pictures [H, W, 3] of copy 0 of a trained run, `every` steps apart, from a fresh start.

    With `steps`, they are spread over that many instead (fewer of a huge crowd), close together at first, when most happens.
    Stops early where the episode ends. Raises EnvironmentFault for an environment that draws nothing.
    """
    _, built = load_training(run)
    try:
        env = built.evaluation or built.env
        steps = min(steps, max(frames, _WORK // (env.spec.num_agents * env.copies)))
        episode = Episode(env, built.players, Key.of(seed).fold("film"))
        for player in built.players:
            player.agent.progress = built.training.tick / max(built.training.options.steps, 1)
        taken: list[Frame] = []
        with torch.no_grad():
            while True:
                picture = env.render(0)
                if picture is None:
                    raise EnvironmentFault(f"The environment of {run} draws no pictures.")
                taken.append(np.asarray(picture.cpu().numpy(), dtype=np.uint8))
                if len(taken) >= frames:
                    return taken
                for _ in range(_stride(len(taken), frames, steps) if steps else every):
                    _, _, after, now = episode.play()
                    if bool(after.ended[0]):
                        picture = env.render(0)
                        return [*taken, taken[-1] if picture is None else picture.cpu().numpy()]
                    episode.go_on(after, now)
    finally:
        built.close()


def _stride(taken: int, frames: int, steps: int) -> int:
    """Steps from picture `taken` to the next: picture i is at steps (i / last)^2."""
    before, after = ((k / max(frames - 1, 1)) ** 2 * steps for k in (taken - 1, taken))
    return max(1, round(after) - round(before))


def write_gif(frames: list[Frame], path: Path, frames_per_second: float = 12.0) -> Path:
    """An animated GIF that loops and rests on its last frame. Raises ResourceFault."""
    from PIL import Image

    # One palette for all frames: else colours flicker, and the file doubles.
    images = [Image.fromarray(f) for f in frames]
    palette = images[-1].quantize(colors=128, dither=Image.Dither.NONE)
    quantised = [i.quantize(palette=palette, dither=Image.Dither.NONE) for i in images]
    span = max(20, int(1000 / frames_per_second))
    buffer = io.BytesIO()
    quantised[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=quantised[1:],
        duration=[span] * (len(quantised) - 1) + [1500],
        loop=0,
    )
    write_atomic(path, buffer.getvalue())
    return path


def write_png(frame: Frame, path: Path) -> Path:
    """One picture. Raises ResourceFault."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
    return path


def film_comparison(comparison: Comparison, frames: int = 40) -> list[Path]:
    """`figures/population_<environment>_<agent>.png` and `.gif` from the first finished run of each pair."""
    written = []
    for environment in comparison.environments:
        for agent in comparison.agents:
            done = [r for r in comparison.runs if (r.environment, r.agent, r.state) == (environment, agent, "done")]
            if not done:
                continue
            try:
                taken = film(done[0].path, frames, steps=STEPS)
            except MfmarlError:
                continue  # nothing to draw: a report without a picture is still a report
            stem = f"population_{folder_name(environment)}_{folder_name(agent)}"
            folder = comparison.path / "figures"
            folder.mkdir(exist_ok=True)
            written.append(write_png(taken[-1], folder / f"{stem}.png"))
            written.append(write_gif(taken, folder / f"{stem}.gif"))
    return written
