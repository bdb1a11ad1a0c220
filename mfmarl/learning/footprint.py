"""How much memory a run will take, before it is begun: a population that does not fit is refused in a sentence.

An estimate by arithmetic: what every agent of every copy has at once (state, what it sees before and after, what it feels
and does), what is remembered to learn from, and what every mind has (weights, their target, gradient and moments).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mfmarl.errors import ResourceFault
from mfmarl.learning.memory import Replay, Rollout
from mfmarl.learning.players import make_agent, make_memory, teams_of
from mfmarl.learning.run_config import RunConfig
from mfmarl.population.free_memory import free_memory, told
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.spec import Spec
from mfmarl.random import Key

HARMLESS = 1 << 28
"""Bytes at which nothing is asked."""
SHARE = 0.9
"""Of what is free, the part that may be taken."""
_ALWAYS = 440
"""Bytes of an agent in a copy that do not depend on what it sees: ids, clocks, rewards, flags, noise, actions. This and the
next two are fitted to what six environments took with 300,000 agents of mfq or mfppo, and meet each within a quarter."""
_CHOICE = 180
"""Bytes of an agent that chooses among numbered actions: the choice, its energies, their noise and what is counted of them."""
_VIEWS = 2.3
"""How often what is seen is there at once: in the state, before and after a step, and on the way through a network."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run takes, by what for."""

    population: int
    memories: int
    minds: int
    agents: int

    @property
    def total(self) -> int:
        return self.population + self.memories + self.minds

    def fitting(self, limit: float) -> int:
        """How many agents would fit, all else being equal."""
        return max(0, int(self.agents * limit / max(self.total, 1)))


def estimate(config: RunConfig, spec: Spec, ranks: Ranks = ALONE) -> Footprint:
    """What a run of this config with that population takes on each rank."""
    run = config.run
    copies = run.copies + run.evaluation_copies
    seen = (8 if not spec.observation_shape else 4) * int(torch.Size(spec.observation_shape).numel())
    memories = minds = felt = 0
    for name, slots in teams_of(config, spec).items():
        choice = config.agents.get(name) or config.agents["all"]
        size = slots.stop - slots.start
        agent = make_agent(choice, spec, slots, 1, Key(0), torch.device("cpu"))
        count = size if run.sharing == "none" else 1
        felt = max(felt, 4 * agent.field_size)
        weights = sum(4 * p.numel() for p in agent.parameters())
        trained = sum(p.numel() for o in agent.optimisers().values() for g in o.param_groups for p in g["params"])
        minds += count * (weights + 3 * 4 * trained)
        row = 2 * (seen + felt) + (2 * spec.num_actions if spec.discrete else 4 * spec.num_actions) + 32
        crowd = size * run.copies // count // ranks.count
        memory = make_memory(agent)
        kept = getattr(agent.config, "remember", None) or crowd
        kept = min(kept, crowd) if count == 1 else crowd
        if isinstance(memory, Replay):
            memories += count * min(memory.capacity, kept * run.steps) * row
        elif isinstance(memory, Rollout):
            memories += 2 * count * memory.length * kept * row
    each = _ALWAYS + (_CHOICE if spec.discrete else 0) + _VIEWS * seen + 3 * felt + 2 * spec.num_actions
    return Footprint(int(spec.num_agents * copies * each / ranks.count), memories, minds, spec.num_agents)


def admit(config: RunConfig, spec: Spec, ranks: Ranks = ALONE) -> Footprint:
    """The estimate. Raises ResourceFault where it is more than may be taken."""
    found = estimate(config, spec, ranks)
    limit = config.run.max_memory
    if not limit:
        if (
            found.total <= HARMLESS
            or torch.device(config.run.device if config.run.device != "auto" else "cpu").type != "cpu"
        ):
            return found
        limit = SHARE * free_memory()
    if limit and found.total > limit:
        copies = config.run.copies + config.run.evaluation_copies
        raise ResourceFault(
            f"{config.environment.name} with {spec.num_agents:,} agents in {copies} copies would take about "
            f"{told(found.total)} ({told(found.population)} the population, {told(found.memories)} what is learned from, "
            f"{told(found.minds)} networks), and {told(limit)} may be taken: about {found.fitting(limit):,} agents would fit; "
            "use fewer agents or copies, a smaller --capacity or network, or another --max-memory.",
            "memory",
        )
    return found
