"""What every agent of every copy sees after a step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Timestep(NamedTuple):
    """One moment of E copies of N agents. The dead keep an empty slot, so shapes never change.

    `acting` says who is asked to act now: everyone alive, one in turn, one colour of a lattice.
    `terminated` and `truncated` mark the step in which an agent's episode ended, and are never both true.
    `action` is each agent's action in force: its last one, or the environment's standing one (a spin);
    -1 (or NaN, for a Box) where there is none yet.
    """

    obs: Tensor  # [E, N, *O] float32, or [E, N] int64 for a Discrete observation space
    reward: Tensor  # [E, N] float32, of the step that led here; 0 after a reset
    alive: Tensor  # [E, N] bool
    acting: Tensor  # [E, N] bool, a subset of alive; nobody in a copy that has ended
    legal: Tensor | None  # [E, N, A] bool; None: every action is legal for everyone
    action: Tensor  # [E, N] int64, or [E, N, D] float32
    terminated: Tensor  # [E, N] bool
    truncated: Tensor  # [E, N] bool
    position: Tensor | None  # [E, N, D] float32, for fields felt within a radius
    step: Tensor  # [E] int64, steps since the copy's reset
    ended: Tensor  # [E] bool: the episode is over; `Env.restart` begins the next one
