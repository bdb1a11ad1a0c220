"""`FaultyEnv`: a PettingZoo environment that is wrong in exactly one way, named; without a name it is right.

A check of environments, or a training loop, shows what it is worth by what it says of these:

    from mfmarl.testing import FAULTS, FaultyEnv, check_env

    for name in FAULTS:
        print(name, check_env(FaultyEnv, options={"fault": name}).codes)

On the command line, a file with the line `from mfmarl.testing import FaultyEnv` will do:
`mfmarl check-env that_file.py:FaultyEnv --fault nan-reward`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import gymnasium
import numpy as np
from pettingzoo import AECEnv, ParallelEnv

from mfmarl.errors import ConfigError, nearest
from mfmarl.testing.faults import NOISE, PICTURES, Fault, Form, needed
from mfmarl.testing.small_game import ACTIONS, CHOICES, MASKS, OBSERVATIONS, SIZE, Answer, Game

_WORDS = gymnasium.spaces.Text(4)


class _Faulty:
    """What both faces share: the game, its spaces, its fault and the moment when that strikes."""

    possible_agents: list[str]
    agents: list[str]
    form: Form

    def __init__(
        self,
        fault: str | None = None,
        *,
        at: int = 3,
        num_agents: int = 3,
        max_cycles: int = 12,
        observation: str = "box",
        actions: str = "discrete",
        mask: str = "none",
        deaths: bool = True,
        seconds: float = 3600.0,
        render_mode: str | None = None,
    ) -> None:
        """`at` is the step of faults that strike once; `seconds` is how long it hangs, and its threads and processes live.

        A fault that shows only in some game (a mask, a Box of actions) is given that game. Raises ConfigError.
        """
        self.broken: Fault | None = needed(fault) if fault is not None else None
        self.fault = fault
        if self.broken is not None and self.form not in self.broken.forms:
            raise ConfigError(
                f"The fault {fault!r} is one of {self.broken.forms[0]} environments, not of {self.form} ones."
            )
        for word, given, known in (
            ("observation", observation, OBSERVATIONS),
            ("actions", actions, CHOICES),
            ("mask", mask, MASKS),
        ):
            if given not in known:
                raise ConfigError(f"FaultyEnv has no {word} {given!r}.{nearest(given, known)}")
        game: dict[str, Any] = {"observation": observation, "actions": actions, "mask": mask, "deaths": deaths}
        game |= dict(self.broken.needs) if self.broken is not None else {}
        if game["actions"] == "box" and game["mask"] != "none":
            raise ConfigError("FaultyEnv has masks for discrete actions only.")
        names = tuple(f"walker_{i}" for i in range(num_agents))
        self.at, self.seconds, self.render_mode = at, seconds, render_mode
        self.game = Game(names, max_cycles, noise=NOISE.get(fault or ""), **game)
        self._deaths = self.game.deaths
        self.kept: dict[str, Any] = {}
        self.episodes = 0
        self.closed = 0
        self.child: Any = None
        self.possible_agents = list(names)
        self.agents = []
        self._begun = False
        self._spaces = {kind: {name: self._space(kind, name) for name in names} for kind in ("action", "observation")}
        if fault != "no-metadata":
            self.metadata = {"name": f"faulty_{self.form}_v0", "render_modes": ["rgb_array"], "is_parallelizable": True}

    @property
    def max_cycles(self) -> int:
        """Steps of an episode."""
        return self.game.max_cycles

    @max_cycles.setter
    def max_cycles(self, cycles: int) -> None:
        self.game.max_cycles = cycles

    @property
    def num_agents(self) -> int:
        return len(self.agents) + (self.fault == "number-of-agents-wrong")

    @property
    def max_num_agents(self) -> int:
        return len(self.possible_agents)

    @property
    def unwrapped(self) -> Self:
        return self

    # ------------------------------------------------------------------------------------------- spaces

    def action_space(self, agent: str) -> Any:
        return self._asked("action", agent)

    def observation_space(self, agent: str) -> Any:
        return self._asked("observation", agent)

    def _asked(self, kind: str, agent: str) -> Any:
        if self.fault == f"{kind}-space-none":
            return None
        if self.fault == "action-space-a-number" and kind == "action":
            return ACTIONS
        if self.fault == "space-for-some" and kind == "action" and agent == self.game.names[-1]:
            raise KeyError(agent)
        if self.fault == f"{kind}-space-changes" and self.game.t >= self.at:
            wide = gymnasium.spaces.Box(-1.0, 1.0, (SIZE,), np.float32)
            return gymnasium.spaces.Discrete(ACTIONS - 1) if kind == "action" else wide
        if self.fault == f"{kind}-space-new-each-call" or agent not in self._spaces[kind]:
            return self._space(kind, agent)
        return self._spaces[kind][agent]

    def _space(self, kind: str, agent: str) -> gymnasium.Space[Any]:
        discrete = gymnasium.spaces.Discrete
        if kind == "observation":
            return _WORDS if self.fault == "text-observations" else self.game.observation_space()
        if self.fault == "one-action":
            return discrete(1)
        if self.fault == "actions-from-one":
            return discrete(ACTIONS, start=1)
        if self.fault == "unbounded-actions":
            return gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        return self.game.action_space()

    # --------------------------------------------------------------------------------------- the game

    def _begin(self, seed: int | None) -> Answer:
        if self.fault == "reset-takes-no-seed" and seed is not None:
            raise TypeError("reset() got an unexpected keyword argument 'seed'")
        self.episodes += 1
        self._begun = True
        before, self.game.deaths = dict(self.game.x), self._deaths
        answer = self.game.begin(0 if self.fault == "seed-ignored" else seed)
        if self.fault == "state-of-the-last-episode" and before:
            self.game.x = before
            answer = self.game.answer(self.game.alive)
        return self._spoilt(answer)

    def _play(self, actions: dict[str, Any]) -> Answer:
        fault, first = self.fault, self.game.first
        if fault == "state-exposed" and "exposed" in self.kept:
            self.game.x[first] = float(self.kept["exposed"][0])
        chosen = {name: self._meant(action) for name, action in actions.items()}
        answer = self.game.move(chosen)
        if fault == "action-overwritten" and isinstance(actions.get(first), np.ndarray):
            actions[first] *= 0.5
        if fault == "one-step-episodes":
            answer.truncations = dict.fromkeys(answer.truncations, True)
            answer.agents.clear()
            self.game.alive.clear()
        return self._spoilt(answer)

    def _meant(self, action: Any) -> Any:
        """The action of the game that an action of the (perhaps strange) space stands for."""
        if self.fault == "actions-from-one":
            return action - 1
        if self.fault == "unbounded-actions":
            return np.tanh(action)
        if self.fault == "outside-actions-taken" or self.fault in ("living-may-pass",):
            inside = self.game.action_space().contains(action)
            return action if inside else 1
        return action

    def _spoilt(self, answer: Answer) -> Answer:
        """The answer, once the fault has struck it."""
        if self.fault == "text-observations":
            answer.observations = dict.fromkeys(answer.observations, "wall")
        fault, t = self.broken, self.game.t
        if fault is None or fault.strike is None:
            return answer
        strikes = {
            "reset": t == 0,
            "first": t == 1,
            "once": t == self.at,
            "after": t >= self.at,
            "last": t > 0 and not answer.agents,
            "always": True,
        }
        if strikes[fault.when]:
            fault.strike(self, answer)
        return answer

    def _refuse_unbegun(self) -> None:
        if not self._begun:
            raise RuntimeError("step() was called before reset()")

    # -------------------------------------------------------------------------------- pictures, the end

    def render(self) -> Any:
        """The walkers as a line of white dots [8, 64, 3] uint8."""
        if self.fault == "picture-raises":
            raise RuntimeError("no display")
        if self.render_mode is None:
            return None
        if self.fault == "picture-moves-the-game":
            self.game.rng.random()
        picture = np.zeros((8, 64, 3), np.uint8)
        for name in self.game.alive:
            picture[:, int(63 * self.game.x[name])] = 255
        return PICTURES.get(self.fault or "", lambda right: right)(picture)

    def close(self) -> None:
        self.closed += 1
        if self.fault == "close-raises" or (self.fault == "second-close-raises" and self.closed > 1):
            raise RuntimeError("already closed")

    def state(self) -> np.ndarray:
        """Where everybody is, [N]."""
        return np.array([self.game.x.get(name, 0.0) for name in self.game.names], np.float32)


class FaultyEnv(_Faulty, ParallelEnv[str, Any, Any]):
    """A ParallelEnv with one fault of `mfmarl.testing.FAULTS`, or (None) with none."""

    form: Form = "parallel"

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        answer = self._begin(seed)
        self._leave(answer.agents)
        return answer.observations if self.fault == "reset-without-infos" else (answer.observations, answer.infos)

    def step(self, actions: dict[str, Any]) -> Any:
        """Raises RuntimeError out of turn, ValueError for what is no action."""
        if not self._begun and self.fault == "step-before-reset":
            self._begin(0)
        self._refuse_unbegun()
        if not self.game.alive:
            if self.fault == "step-after-the-end":
                return {}, {}, {}, {}, {}
            raise RuntimeError("step() was called after the end")
        if self.fault == "coroutine":
            return self._later(dict(actions))
        answer = self._play(actions)
        if self.fault == "action-dictionary-emptied":
            actions.clear()
        self._leave(answer.agents)
        flags = answer.terminations, answer.truncations
        if self.fault == "four-values":
            return answer.observations, answer.rewards, flags[0], answer.infos
        if self.fault == "step-returns-nothing":
            return None
        return answer.observations, answer.rewards, *flags, answer.infos

    async def _later(self, actions: dict[str, Any]) -> Any:
        answer = self._play(actions)
        return answer.observations, answer.rewards, answer.terminations, answer.truncations, answer.infos

    def _leave(self, living: list[str]) -> None:
        if self.fault == "agents-is-possible-agents":
            self.agents = self.possible_agents
            if self.game.t == 0:
                self.agents[:] = self.game.names
            self.agents[:] = living
        else:
            self.agents = list(living)


class FaultyAECEnv(_Faulty, AECEnv[str, Any, Any]):
    """An AECEnv with one fault of `mfmarl.testing.FAULTS`, or (None) with none: choices are played once all have chosen."""

    form: Form = "aec"

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        answer = self._begin(seed)
        if self.fault == "agents-is-possible-agents":
            self.agents = self.possible_agents
            self.agents[:] = answer.agents
        else:
            self.agents = list(answer.agents)
        self._skip_agent_selection = None
        self._choices: dict[str, Any] = {}
        self._order = list(answer.agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self._show(answer)
        self.terminations = dict.fromkeys(self.agents, self.fault == "ended-at-reset")
        self.truncations = dict.fromkeys(self.agents, False)
        self.agent_selection = self._order[0] if self._order else self.game.first

    def _show(self, answer: Answer) -> None:
        self._seen = {**getattr(self, "_seen", {}), **answer.observations}
        for name in set(self._seen) & set(answer.agents) - set(answer.observations):
            del self._seen[name]
        self.terminations, self.truncations, self.infos = answer.terminations, answer.truncations, answer.infos

    def observe(self, agent: str) -> Any:
        if self.fault == "observe-moves-the-game":
            self.game.rng.random()
        return self._seen[self.agent_selection if self.fault == "observation-of-the-selected" else agent]

    def last(self, observe: bool = True) -> Any:
        seen, reward, terminated, truncated, info = super().last(observe or self.fault == "last-shows-unasked")
        return seen, reward + (self.fault == "last-disagrees"), terminated, truncated, info

    def step(self, action: Any) -> Any:
        """Raises RuntimeError out of turn, ValueError for what is no action."""
        if not self._begun and self.fault == "step-before-reset":
            self.reset(0)
        self._refuse_unbegun()
        if not self.agents:
            raise RuntimeError("step() was called after the end")
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._bury(agent, action)
        else:
            self._choose(agent, action)
        return True if self.fault == "step-answers" else None

    def _bury(self, agent: str, action: Any) -> None:
        if self.fault == "dead-stay":
            self._clear_rewards()
            return
        self._was_dead_step(None if self.fault == "dead-may-act" else action)

    def _choose(self, agent: str, action: Any) -> None:
        if not self.game.action_space().contains(self._meant(action)):
            raise ValueError(f"the action {action!r} is outside {self.action_space(agent)}")
        if self.fault != "rewards-pile-up":
            self._cumulative_rewards[agent] = 0.0
        self._choices[agent] = action
        if self.fault == "selection-stuck" and len(self._choices) < 2 and len(self._order) > 1:
            self._clear_rewards()
            return
        waiting = [name for name in self._order if name not in self._choices]
        if self.fault == "agent-never-selected" and waiting == [self.game.names[-1]]:
            self._choices[waiting.pop()] = 1
        if waiting:
            if self.fault != "rewards-linger":
                self._clear_rewards()
            self.agent_selection = waiting[0]
        else:
            self._everybody()
        if self.fault == "selection-of-nobody" and self.game.t >= self.at:
            self.agent_selection = "nobody_0"

    def _everybody(self) -> None:
        """All have chosen."""
        answer = self._play(self._choices)
        self._choices = {}
        self._order = list(dict.fromkeys(answer.agents))
        flagged = [name for name, flag in answer.terminations.items() if flag or answer.truncations.get(name)]
        stay = [name for name in self.agents if name in answer.agents or name in flagged]
        stay += [name for name in answer.agents if name not in stay or stay.count(name) < answer.agents.count(name)]
        if self.fault == "dead-are-dropped":
            stay = [name for name in stay if name not in flagged]
        self.agents[:] = stay
        self._show(answer)
        kept = self._cumulative_rewards
        self.rewards = {name: answer.rewards[name] for name in answer.rewards if name in stay or name == "ghost_0"}
        for table in (self.terminations, self.truncations, self.infos):
            for name in [name for name in table if name not in stay and name != "ghost_0"]:
                del table[name]
        self._cumulative_rewards = {
            name: reward if (sum_ := kept.get(name, 0.0)) == 0.0 else sum_ + reward
            for name, reward in self.rewards.items()
        }
        if self._order:
            self.agent_selection = self._order[0]
        elif self.agents:
            self.agent_selection = self.agents[0]
        self._deads_step_first()


def faulty(fault: str | None = None, form: Form = "parallel", **options: Any) -> FaultyEnv | FaultyAECEnv:
    """An environment of that form, with that fault. Raises ConfigError."""
    return maker(fault, form, **options)()


def maker(fault: str | None = None, form: Form = "parallel", **options: Any) -> partial[Any]:
    """What makes such environments."""
    return partial(FaultyEnv if form == "parallel" else FaultyAECEnv, fault, **options)
