"""Import this, and PettingZoo's own `make` knows every environment of mfmarl's registry.

>>> import pettingzoo, mfmarl.pettingzoo
>>> env = pettingzoo.make("parallel", "mfmarl/ising-v0", num_agents=100)

`register_with_pettingzoo()` does it again for environments registered since.
"""

from __future__ import annotations

from mfmarl.population.pettingzoo_out import pettingzoo_id, register_with_pettingzoo

__all__ = ["pettingzoo_id", "register_with_pettingzoo"]

register_with_pettingzoo()
