r"""A population as PettingZoo's `AECEnv`: agents choose one after the other, in one of two games.

**Simultaneous** (`PopulationEnv.aec_order`, the default): nobody sees what the others choose now. Choices are
collected and played as one step when the last agent who is asked has chosen: the parallel game exactly.
Rules that ask only some agents (`acting`) have only those selected.

**Sequential**: every choice is a step of its own, in which all others hold their action in force, so each sees the
effect of those before. The mover alone is paid, for the state that it made. This is another game with another
stationary law. Take spins that answer the field of their neighbours by p(s_i) ~ exp(s_i h_i / T). One after the
other they are Gibbs sampling, with the law (Glauber 1963, J. Math. Phys. 4, 294)

$$ P(s) \propto e^{-H(s)/T}, \qquad H = -\tfrac12 \sum_i s_i h_i(s), $$

all at once they are not, and obey (Peretto 1984, Biol. Cybern. 50, 51)

$$ P(s) \propto \prod_i 2 \cosh(h_i(s)/T), $$

in which neighbours are correlated only through third parties: on an even lattice it falls into two halves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from pettingzoo import AECEnv

from mfmarl.errors import ConfigError, EnvironmentFault
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.one_copy import OneCopy, tensor
from mfmarl.population.timestep import Timestep

PATIENCE = 10_000
"""Steps without anybody being asked until the rules are said to be at fault."""


class PopulationAECEnv(AECEnv[str, Any, Any]):
    """One copy of `rules`, agent by agent.

    A cycle is as many turns as there are agents alive; `max_cycles` truncates after so many. Without it the rules'
    horizon counts: in steps where moves are simultaneous, in cycles where they are sequential.
    `infos[agent]["action_mask"]` [A] int8 shows what is legal for the agent selected, where the rules know illegal actions.

    Raises ConfigError for an action outside the space, EnvironmentFault for a step before a reset or after
    the end, and for rules that are sequential but have no actions in force to hold (`standing`).
    """

    def __init__(self, rules: PopulationEnv, max_cycles: int | None = None, render_mode: str | None = None) -> None:
        order = rules.aec_order
        if order not in ("simultaneous", "sequential"):
            raise EnvironmentFault(
                f"{type(rules).__name__}.aec_order is {order!r}; expected 'simultaneous' or 'sequential'."
            )
        self._one = one = OneCopy(rules, None, render_mode)
        self._sequential = order == "sequential"
        self._horizon = one.max_cycles
        self._limit: int | None = None
        self.max_cycles = max_cycles if max_cycles is not None or not self._sequential else self._horizon
        self.rules = rules
        # A cycle of PettingZoo's converters is one turn of everybody, then one update.
        self.metadata = {**one.metadata, "is_parallelizable": not self._sequential and not one.asks}
        self.render_mode = render_mode
        self.possible_agents = list(one.names)
        self.agents: list[str] = []
        self._begun = False

    @property
    def max_cycles(self) -> int | None:
        """Cycles until an episode is truncated; None: the rules' horizon."""
        return self._limit

    @max_cycles.setter
    def max_cycles(self, cycles: int | None) -> None:
        self._one.limit(cycles)  # refuses what is not a number
        self._limit = None if cycles is None else int(cycles)
        # The simulation's clock counts steps: it is the rules' own where nothing else is said.
        self._one.limit(self._horizon if cycles is None and not self._sequential else None)

    def observation_space(self, agent: str) -> gymnasium.Space:
        return self._one.observation_space(agent)

    def action_space(self, agent: str) -> gymnasium.Space:
        return self._one.action_space(agent)

    @property
    def state_space(self) -> gymnasium.spaces.Box:
        """The observations of all agents, one after the other: a flat Box."""
        return self._one.state_space

    def state(self) -> np.ndarray:
        """The observations of all agents, the dead included, one after the other: flat."""
        return self._one.state()

    def observe(self, agent: str) -> Any:
        """What the agent sees now: its own copy."""
        if not self._begun:
            raise EnvironmentFault("observe() was called before reset().")
        return self._seen[self._one.row(agent)].copy()

    def render(self) -> np.ndarray | None:
        """The picture [H, W, 3] uint8 for `rgb_array`; shows it for `human`."""
        return self._one.render()

    def close(self) -> None:
        self._one.close()

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin an episode. A seed fixes this one and those that follow without one."""
        one = self._one
        timestep = one.reset(seed)
        if self._sequential and self._unset(timestep):
            raise EnvironmentFault(
                f"{type(one.rules).__name__} has aec_order 'sequential' but no standing(state): "
                "those who wait their turn need an action in force."
            )
        self._begun = True
        alive = timestep.alive.numpy()[0].tolist()
        self.agents = [name for name, lives in zip(one.names, alive, strict=True) if lives]
        self._live = dict.fromkeys(self.agents)  # an ordered set
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        self._paid: Sequence[str] = ()
        self._leaving: deque[str] = deque()
        self._order: deque[str] = deque()
        self._cycles = self._turns = 0
        self._look(timestep)
        self._choices = one.no_actions()
        self._ask()
        self._select()
        self._draw()

    def _unset(self, timestep: Timestep) -> bool:
        action = timestep.action
        return bool((action < 0).any() if self._one.spec.discrete else torch.isnan(action).any())

    def step(self, action: Any) -> None:
        """The selected agent's choice; None for an agent that is terminated or truncated, which then leaves."""
        if not self.agents:
            what = "the episode is over" if self._begun else "it was called before reset()"
            raise EnvironmentFault(f"step() cannot play: {what}; call reset() first.")
        agent = self.agent_selection
        if self._leaving:
            if action is not None:
                raise ConfigError(f"Agent {agent!r} has left the game: the only valid action is None.")
            self._unpay()
            self._bury(agent)
        else:
            chosen = self._one.action(agent, action)
            self._unpay()
            self._cumulative_rewards[agent] = 0.0
            self._choices[self._one.index[agent]] = chosen
            self._order.popleft()
            self._turns += 1
            if self._sequential:
                self._move(agent)
            elif not self._order:
                self._play()
            if not self._order:
                self._ask()
        self._select()

    def _unpay(self) -> None:
        """`rewards` are those of the last step only."""
        for agent in self._paid:
            self.rewards[agent] = 0.0
        self._paid = ()

    def _bury(self, agent: str) -> None:
        for kept in (self.terminations, self.truncations, self.rewards, self._cumulative_rewards, self.infos):
            del kept[agent]
        self.agents.remove(agent)
        self._leaving.popleft()

    def _select(self) -> None:
        """Whose turn it is: those who leave come first. The info of who is selected is made when it is."""
        if self._leaving:
            self.agent_selection = self._leaving[0]
        elif self._order:
            self.agent_selection = agent = self._order[0]
            if self._masks is not None:
                self.infos[agent] = {"action_mask": self._masks[self._one.index[agent]].astype(np.int8)}

    def _ask(self) -> None:
        """Fill the order of turns: everybody alive, or those that the rules ask."""
        one = self._one
        for _ in range(PATIENCE):
            if not self._live:
                return
            self._order.extend(self._live)
            timestep = one.simulation.timestep
            if one.asks and not self._sequential and timestep is not None:
                asked = timestep.acting.numpy()[0]
                self._order = deque(agent for agent in self._live if asked[one.index[agent]])
            if self._order:
                return
            self._play()  # nobody is asked: time passes
        raise EnvironmentFault(f"{type(one.rules).__name__}.acting asked nobody in {PATIENCE} steps.")

    def _move(self, agent: str) -> None:
        """One agent moves; all others hold their action in force."""
        one = self._one
        row = one.index[agent]
        acting = torch.zeros_like(one.simulation.ids, dtype=torch.bool)
        acting[0, row] = True
        timestep = one.simulation.step(tensor(self._choices), acting)
        self._pay((agent,), (one.rewards(timestep)[row].item(),))
        self._look(timestep)
        self._end(timestep)
        if not self._order:
            self._next_cycle()
            self._draw()

    def _play(self) -> None:
        """Everyone who was asked moves at once."""
        one = self._one
        live = list(self._live)
        timestep = one.simulation.step(tensor(self._choices.copy()))
        rewards = one.rewards(timestep).tolist()
        self._pay(live, rewards if len(live) == len(rewards) else [rewards[one.index[agent]] for agent in live])
        self._look(timestep)
        self._end(timestep)
        if self._turns >= len(live):
            self._turns -= len(live)
            self._next_cycle()
        self._draw()

    def _pay(self, agents: Sequence[str], rewards: Iterable[float]) -> None:
        for agent, reward in zip(agents, rewards, strict=True):
            self.rewards[agent] += reward
            self._cumulative_rewards[agent] += reward
        self._paid = self._paid or agents

    def _look(self, timestep: Timestep) -> None:
        self._seen = self._one.observations(timestep)
        self._masks = None if timestep.legal is None else timestep.legal.numpy()[0]

    def _end(self, timestep: Timestep) -> None:
        """Mark those whose episode this step ended; they leave before anybody else's turn."""
        if self._one.together and not timestep.ended.item():
            return
        terminated, truncated = timestep.terminated.numpy()[0], timestep.truncated.numpy()[0]
        if not (terminated | truncated).any():
            return
        for agent in list(self._live):
            row = self._one.index[agent]
            if terminated[row] or truncated[row]:
                self.terminations[agent] = bool(terminated[row])
                self.truncations[agent] = bool(truncated[row])
                self._leave(agent)
        self._order = deque(agent for agent in self._order if agent in self._live)

    def _leave(self, agent: str) -> None:
        del self._live[agent]
        self._leaving.append(agent)

    def _next_cycle(self) -> None:
        self._cycles += 1
        if self._limit is not None and self._cycles >= self._limit:
            for agent in list(self._live):
                self.truncations[agent] = True
                self._leave(agent)
            self._order.clear()

    def _draw(self) -> None:
        if self.render_mode == "human":
            self.render()
