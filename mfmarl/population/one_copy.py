"""One copy of a population with names, seeds and a picture: what both of PettingZoo's faces stand on."""

from __future__ import annotations

import copy
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from mfmarl.errors import ConfigError, EnvironmentFault, NumericFault, nearest
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.simulation import Simulation
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key, seed_of

RENDER_MODES = ("human", "rgb_array")
_INT64 = np.dtype(np.int64)


class OneCopy:
    """A `Simulation` of one copy whose arrays are numpy's and whose agents have names.

    Observations, rewards and masks are handed out as fresh arrays: what a caller keeps or overwrites
    is never what a later step reads.
    """

    def __init__(self, rules: PopulationEnv, max_cycles: int | None, render_mode: str | None) -> None:
        self.rules = rules
        # The checks of a step are made here, on numpy arrays, at a fifth of the price.
        self.simulation = Simulation(rules, copies=1, check=False)
        self.spec = self.simulation.spec
        self.names = self.spec.names
        self.index = {name: i for i, name in enumerate(self.names)}
        self.asks = type(rules).acting is not PopulationEnv.acting
        self.together = type(rules).alive is PopulationEnv.alive and type(rules).done is PopulationEnv.done
        """All leave at once, at the horizon."""
        self._observed = (self.spec.num_agents, *self.spec.observation_shape)
        self._dtype = np.dtype(self.spec.observation_space.dtype)
        drawn = type(rules).render is not PopulationEnv.render
        self.metadata: dict[str, Any] = {
            "name": f"{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', type(rules).__name__).lower()}_v0",
            "render_modes": list(RENDER_MODES) if drawn else [],
            "render_fps": 10,
        }
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            hint = nearest(render_mode, RENDER_MODES) if drawn else " It has no picture: leave render_mode out."
            raise ConfigError(f"{type(rules).__name__} cannot be drawn with render_mode {render_mode!r}.{hint}")
        self.render_mode = render_mode
        self.limit(self.spec.horizon if max_cycles is None else max_cycles)
        self._observation_spaces: dict[str, gymnasium.Space] = {}
        self._action_spaces: dict[str, gymnasium.Space] = {}
        self._state_space: gymnasium.spaces.Box | None = None
        self._key: Key | None = None
        self._episode = 0
        self._window: Any = None

    @property
    def max_cycles(self) -> int | None:
        return self.simulation.spec.horizon

    def limit(self, cycles: int | None) -> None:
        """Truncate episodes after this many steps of the rules; None: never."""
        if cycles is not None and (not isinstance(cycles, int | np.integer) or cycles < 1):
            raise ConfigError(f"max_cycles must be a whole number of at least 1, not {cycles!r}.")
        self.simulation.spec = self.spec.limited(None if cycles is None else int(cycles))

    # ---------------------------------------------------------------------------------------- spaces

    def observation_space(self, agent: str) -> gymnasium.Space:
        return self._space(agent, self.spec.observation_space, self._observation_spaces)

    def action_space(self, agent: str) -> gymnasium.Space:
        return self._space(agent, self.spec.action_space, self._action_spaces)

    def _space(self, agent: str, space: gymnasium.Space, made: dict[str, gymnasium.Space]) -> gymnasium.Space:
        found = made.get(agent)
        if found is None:
            self.row(agent)
            # Each agent's own, so that seeding one leaves the others; the bounds are shared.
            found = made[agent] = copy.copy(space)
        return found

    def row(self, agent: str) -> int:
        try:
            return self.index[agent]
        except (KeyError, TypeError):
            raise ConfigError(f"There is no agent {agent!r}.{nearest(str(agent), self.names[:1000])}") from None

    @property
    def state_space(self) -> gymnasium.spaces.Box:
        """The observations of all agents, one after the other: a flat Box."""
        if self._state_space is None:
            space, n = self.spec.observation_space, self.spec.num_agents
            if isinstance(space, gymnasium.spaces.Discrete):
                low = np.full(n, space.start, space.dtype)
                high = low + (space.n - 1)
            else:
                assert isinstance(space, gymnasium.spaces.Box)
                low, high = (np.tile(bound.ravel(), n) for bound in (space.low, space.high))
            self._state_space = gymnasium.spaces.Box(low, high, dtype=low.dtype.type)
        return self._state_space

    # ---------------------------------------------------------------------------------------- values

    def reset(self, seed: int | None) -> Timestep:
        """Begin an episode. A seed fixes it and all that follow without one; never seeded: a seed of the system's.

        The episode of seed s is the one that `Simulation.reset(Key.of(s))` gives its copy 0.
        """
        if seed is not None:
            self._key, self._episode = Key.of(seed_of(seed)), 0
        elif self._key is None:
            self._key = Key.of(int.from_bytes(os.urandom(8), "little"))
        else:
            self._episode += 1
        key = self._key.fold("episode", self._episode) if self._episode else self._key
        timestep = self.simulation.reset(key)
        if not bool(timestep.alive.any()):
            raise EnvironmentFault(f"{type(self.rules).__name__} has nobody alive after a reset: nobody could act.")
        return timestep

    def observations(self, timestep: Timestep) -> np.ndarray:
        """[N, *O] in the observation space's own type; not a copy where the type is the rules'."""
        array = timestep.obs.numpy()[0]
        if array.shape != self._observed:
            raise EnvironmentFault(
                f"{type(self.rules).__name__}.observe returned shape {tuple(timestep.obs.shape)}; its spec declares "
                f"{(1, *self._observed)} (copies, agents, observation)."
            )
        self._finite("an observation", array)
        return array if array.dtype is self._dtype else array.astype(self._dtype)

    def rewards(self, timestep: Timestep) -> np.ndarray:
        """[N] float32."""
        if timestep.reward.shape != (1, self.spec.num_agents):
            raise EnvironmentFault(
                f"{type(self.rules).__name__}.step returned rewards of shape {tuple(timestep.reward.shape)}; "
                f"expected {(1, self.spec.num_agents)} (copies, agents)."
            )
        array = timestep.reward.numpy()[0]
        self._finite("a reward", array)
        return array

    def _finite(self, what: str, array: np.ndarray) -> None:
        # A sum is not finite if a term is not; the search runs only on a fault.
        if array.dtype.kind != "f" or math.isfinite(np.add.reduce(array, axis=None)):
            return
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise NumericFault(
                f"{type(self.rules).__name__} gave {what} of {array[tuple(bad[0])]} to agent "
                f"{self.names[bad[0][0]]}: it must be finite."
            )

    def masks(self, timestep: Timestep) -> np.ndarray | None:
        """Legal actions as gymnasium's `sample(mask)` wants them, [N, A] int8, fresh; None: all are legal."""
        return None if timestep.legal is None else timestep.legal.numpy()[0].astype(np.int8)

    def state(self) -> np.ndarray:
        """The observations of all agents, the dead included, one after the other: for centralised training."""
        timestep = self.simulation.timestep
        if timestep is None:
            raise EnvironmentFault("state() was called before reset().")
        return self.observations(timestep).flatten()

    # --------------------------------------------------------------------------------------- actions

    def no_actions(self) -> np.ndarray:
        """A zero for everyone, [N] int64 or [N, D] float32."""
        n = self.spec.num_agents
        return np.zeros(n, np.int64) if self.spec.discrete else np.zeros((n, self.spec.num_actions), np.float32)

    def actions(self, values: Sequence[Any]) -> np.ndarray | None:
        """All values as one array; None if any might not be in the action space."""
        space = self.spec.action_space
        try:
            if isinstance(space, gymnasium.spaces.Discrete):
                array = np.array(values)
                if array.dtype is not _INT64:
                    if array.dtype.kind not in "iu":
                        return None
                    array = array.astype(np.int64)
                if array.ndim != 1:
                    return None
                # Read as unsigned, a negative number is a huge one: one comparison for both ends.
                return array if np.maximum.reduce(array.view(np.uint64)) < space.n else None
            assert isinstance(space, gymnasium.spaces.Box)
            array = np.array(values, np.float32)
            if array.shape[1:] != space.shape or not ((array >= space.low) & (array <= space.high)).all():
                return None
            return array.reshape(len(array), -1)
        except (ValueError, TypeError, OverflowError):
            return None

    def action(self, agent: str, value: Any) -> np.ndarray:
        """One agent's action, [] int64 or [D] float32. Raises ConfigError with the agent's name."""
        array = self.actions((value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value,))
        if array is None and isinstance(value, bool | np.bool_):
            array = self.actions((int(value),))
        if array is None:
            raise ConfigError(
                f"Agent {agent!r} chose {value!r}, which is not in its action space {self.spec.action_space}."
            )
        return array[0]

    def refuse_strangers(self, actions: Mapping[str, Any], agents: Sequence[str]) -> None:
        """Raise ConfigError for an action of somebody who is not playing."""
        playing = set(agents)
        for name in actions:
            if name not in playing:
                self.row(name)
                raise ConfigError(f"Agent {name!r} has left the episode: give actions for env.agents only.")

    # --------------------------------------------------------------------------------------- picture

    def render(self) -> np.ndarray | None:
        """The picture [H, W, 3] uint8 for `rgb_array`; shows it for `human`."""
        if self.render_mode is None:
            warnings.warn("render() shows nothing: make the environment with render_mode='rgb_array'.", stacklevel=3)
            return None
        if self.simulation.timestep is None:
            raise EnvironmentFault("render() was called before reset().")
        drawn = self.simulation.render(0)
        assert drawn is not None
        picture = drawn.numpy().copy()
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise EnvironmentFault(
                f"{type(self.rules).__name__}.render returned {picture.dtype} of shape {picture.shape}; "
                "expected uint8 [H, W, 3]."
            )
        if self.render_mode == "rgb_array":
            return picture
        self._window = _show(self._window, picture, self.metadata["name"])
        return None

    def close(self) -> None:
        if self._window is not None:
            import matplotlib.pyplot as plt

            plt.close(self._window.figure)
            self._window = None
        self.simulation.close()


def _show(image: Any, picture: np.ndarray, title: str) -> Any:
    """Draw into a window of matplotlib's, opened at the first picture; returns its image."""
    import matplotlib.pyplot as plt

    if image is None or not plt.fignum_exists(image.figure.number):
        figure, axes = plt.subplots(num=title, clear=True)
        axes.set_axis_off()
        image = axes.imshow(picture, interpolation="nearest")
        if figure.canvas.required_interactive_framework is None:
            warnings.warn("There is no display to show a window on; use render_mode='rgb_array'.", stacklevel=4)
    image.set_data(picture)
    image.figure.canvas.draw()
    if image.figure.canvas.required_interactive_framework is not None:
        plt.pause(0.001)
    return image


def tensor(action: np.ndarray) -> torch.Tensor:
    """The actions of all agents as a batch of one copy, [1, N] or [1, N, D]; shares their memory."""
    return torch.from_numpy(action).unsqueeze(0)
