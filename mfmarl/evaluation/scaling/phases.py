"""Which part of a training step costs what: the methods of one training are timed, each without what it calls in turn.

Nothing global is changed: the wrappers lie on the instances, over the methods of their classes, and are taken off again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mfmarl.evaluation.scaling.points import PHASES
from mfmarl.learning.training import Training

Seconds = Callable[[], float]


class Clock:
    """Sums of time by phase, of which one is going on at any moment: together they are the whole."""

    def __init__(self, now: Seconds = time.process_time) -> None:
        self.now = now
        self.spent = dict.fromkeys(PHASES, 0.0)
        self.going = ["rest"]
        self.last = now()

    def _turn(self) -> None:
        now = self.now()
        self.spent[self.going[-1]] += now - self.last
        self.last = now

    def begin(self, phase: str) -> None:
        self._turn()
        self.going.append(phase)

    def end(self) -> None:
        self._turn()
        self.going.pop()

    def stop(self) -> dict[str, float]:
        """Every phase's seconds until now."""
        self._turn()
        return dict(self.spent)


def parts(training: Training) -> list[tuple[Any, str, str]]:
    """(whose, which method, of what phase) of a training. Beliefs and where new episodes begin are counted with what
    they are for: acting, and the environment's rules."""
    episode = training.episode
    return [
        (episode, "act", "act"),
        (episode, "_perceive", "act"),
        (episode, "_feel", "field"),
        (episode.env, "step", "step"),
        (episode.env, "restart", "step"),
        (training, "_remember", "remember"),
        (training, "_roll", "remember"),
        (training, "_learn", "learn"),
    ]


@contextmanager
def timed(training: Training, clock: Clock) -> Iterator[None]:
    """While it lasts, the training's methods tell the clock when they begin and end."""
    own = [(owner, name, vars(owner).get(name)) for owner, name, _ in parts(training)]
    for owner, name, phase in parts(training):
        setattr(owner, name, _telling(clock, phase, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, before in own:
            delattr(owner, name)
            if before is not None:
                setattr(owner, name, before)


def _telling(clock: Clock, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def told(*arguments: Any, **options: Any) -> Any:
        clock.begin(phase)
        try:
            return method(*arguments, **options)
        finally:
            clock.end()

    return told


def on_device(device: torch.device, now: Seconds = time.process_time) -> Seconds:
    """A clock that waits, on a GPU, for what has been asked of it: else whoever waits next would be charged."""
    if device.type != "cuda":
        return now

    def waited() -> float:
        torch.cuda.synchronize(device)
        return now()

    return waited


def phases(training: Training, steps: int, now: Seconds | None = None) -> dict[str, float]:
    """CPU-seconds of each of PHASES over so many further steps; empty where another library trains.

    `steps` should be whole rollouts, so that learning is counted in its true share.
    """
    if any(p.agent.memory == "self" for p in training.players):
        return {}
    clock = Clock(now or on_device(training.episode.env.device))
    with timed(training, clock):
        for _ in range(steps):
            training.step()
    return clock.stop()
