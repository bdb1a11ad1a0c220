"""What the agents' Gibbs distributions say of a population: energy, entropy, free energy and heat capacity.

Every agent with discrete actions is an energy at a temperature, so these mean the same for all of them. They are means
over the agents asked to act, each in units of the agent's own energy (reward, for a value learner; an actor's energy
has an arbitrary zero, so only its entropy and heat capacity are to be compared).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl.learning.agent import Agent, forbid
from mfmarl.learning.memory import WHOLE, Crowd
from mfmarl.population.timestep import Timestep
from mfmarl.statmech import gibbs, information

_ROWS = 1 << 16  # agents enough for any mean that is drawn


@torch.no_grad()
def thermodynamics(agent: Agent, timestep: Timestep, field: Tensor, crowd: Crowd = WHOLE) -> dict[str, Tensor]:
    """Means (0-dim) over who acts now, of at most 65,536 agents; empty for a Box of actions or where nobody acts.

    Of an agent with replicas also `uncertainty`: what a draw of the replica tells of the action, in nats (Houlsby et
    al. 2011's mutual information); 0 where they agree, at most log R and log A.
    `field` [E, n, F] is what the agent's slots feel. Of a `crowd` that is divided over ranks, means over all of it.
    """
    if not agent.spec.discrete:
        return {}
    obs, felt = agent.by_mind(timestep.obs[:, agent.slots]), agent.by_mind(field)
    acting = agent.by_mind(timestep.acting[:, agent.slots])
    legal = None if timestep.legal is None else agent.by_mind(timestep.legal[:, agent.slots])
    # One that does not learn may know its rows by their place.
    every = 1 if agent.memory == "none" else -(-crowd.count(acting.numel()) // _ROWS)
    if crowd.divided and every > 1:
        # The same rows as of the whole crowd, by their numbers there.
        some = (crowd.numbers(acting.numel(), acting.device) % every == 0).nonzero().squeeze(-1)
        obs, felt, acting = (x.index_select(1, some) for x in (obs, felt, acting))
        legal = None if legal is None else legal.index_select(1, some)
    else:
        obs, felt, acting = obs[:, ::every], felt[:, ::every], acting[:, ::every]
        legal = None if legal is None else legal[:, ::every]
    if not crowd.ranks.agree(bool(acting.any())):
        return {}
    energy = forbid(agent.energy(obs, felt), legal)[acting]
    temperature = agent.temperature
    found = {
        "energy": gibbs.mean_energy(energy, temperature),
        "entropy": gibbs.entropy(energy, temperature),
        "free_energy": gibbs.free_energy(energy, temperature),
        "heat_capacity": gibbs.heat_capacity(energy, temperature),
    }
    replicas = agent.replica_energies(obs, felt)
    if replicas is not None and len(replicas) > 1:
        p = torch.stack([gibbs.probabilities(forbid(one, legal)[acting], temperature) for one in replicas], dim=-2)
        found["uncertainty"] = information.jensen_shannon(p)
    if not crowd.divided:
        return {name: value.mean(dtype=torch.float64) for name, value in found.items()}
    sums = [acting.sum(dtype=torch.float64), *(value.sum(dtype=torch.float64) for value in found.values())]
    count, *totals = crowd.ranks.sum(torch.stack(sums), "report")
    return {name: total / count for name, total in zip(found, totals, strict=True)}
