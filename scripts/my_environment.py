"""An environment of your own, trained and compared from a script: a market of producers.

Each of N producers chooses one of five quantities; the price falls with the mean quantity. Theory
(Cournot 1838, price-taking limit): with price a - q and cost c per unit, the equilibrium of many
producers is q = a - c; producers at a temperature settle near it, where the logit equilibrium says.

    python scripts/my_environment.py
    mfmarl compare scripts/my_environment.py:Market --agents mfq,iql --seeds 3
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from scipy import optimize
from torch import Tensor

import mfmarl
from mfmarl import random
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.spec import Spec
from mfmarl.random import Key


class State(NamedTuple):
    quantity: Tensor  # [E, N] what was produced, in units


@mfmarl.register("market")
@dataclass(frozen=True)
class Market(PopulationEnv):
    """Producers who choose how much to make; the price falls with what everybody makes."""

    num_agents: int = 100
    """Producers."""
    intercept: float = 4.0
    """The price when nothing is made."""
    cost: float = 1.0
    """Cost per unit."""

    def spec(self) -> Spec:
        return Spec(self.num_agents, Box(1, 1, (1,), np.float32), Discrete(5), horizon=100, discount=0.0)

    def reset(self, ids: Tensor, key: Key) -> State:
        return State(random.integers(key, ids, 5).float())

    def observe(self, state: State) -> Tensor:
        return torch.ones(*state.quantity.shape, 1, device=state.quantity.device)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        quantity = action.float()
        price = self.intercept - quantity.mean(-1, keepdim=True)
        return State(quantity), (price - self.cost) * quantity

    def measure(self, state: State) -> dict[str, Tensor]:
        return {"quantity": state.quantity.mean(-1)}

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """What many producers settle at: Cournot's quantity at temperature 0, else the root of q = <k> at the
        Gibbs distribution of what each quantity k then earns."""
        if temperature == 0:
            cournot = min(max(self.intercept - self.cost, 0.0), 4.0)
            return {"quantity": Known(cournot, "Cournot 1838, price-taking limit", "equilibrium")}
        choices = np.arange(5)

        def excess(mean: float) -> float:
            weight = np.exp((self.intercept - self.cost - mean) * (choices - 2) / temperature)
            return mean - float(choices @ weight / weight.sum())

        logit = optimize.brentq(excess, 0.0, 4.0)
        return {"quantity": Known(logit, "logit equilibrium of many producers", "equilibrium")}


if __name__ == "__main__":
    result = mfmarl.compare(
        "market", ["mfq", "iql"], seeds=5, steps=600, temperature="geometric(1, 0.3)", values="table", bins=3
    )
    for name, agent in result.summary["environments"]["market"]["agents"].items():
        found = agent["theory"]["quantity"]
        print(f"{name}: quantity {found['measured']:.3f}, theory {found['theory']:.3f}")
    print("report:", result.report)
