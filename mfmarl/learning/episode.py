"""What one population lives through: the current timestep and the field that each player feels."""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl.learning.players import Player
from mfmarl.population.simulation import Env
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key


class Episode:
    """What one population lives through: the current timestep and the field that each player feels.

    Used for training and, with its own key, for evaluation.
    """

    def __init__(self, env: Env, players: list[Player], key: Key) -> None:
        self.env, self.players, self.key = env, players, key
        self.begin()

    def begin(self) -> None:
        """Begin at the beginning, as the key has it."""
        self.tick = 0
        self.timestep: Timestep = self.env.reset(self.key.fold("environment"))
        self.felt = [self._feel(p, self.timestep) for p in self.players]

    def _feel(self, player: Player, timestep: Timestep) -> Tensor:
        key = self.key.fold("field", self.tick)
        return player.agent.field(timestep, self.env.spec, self.env.ids, key, player.slots)

    def act(self) -> Tensor:
        """Everybody's action: [E, N] or [E, N, D]."""
        key = self.key.fold("act", self.tick)
        parts = [
            p.agent.act(self.timestep, felt, self.env.ids[:, p.slots], key)
            for p, felt in zip(self.players, self.felt, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def play(self, action: Tensor | None = None) -> tuple[Timestep, Tensor, Timestep, list[Tensor]]:
        """One step: (before, action, after, what is felt after), without beginning new episodes.

        `action` is somebody else's choice for everybody, instead of the players'.
        """
        before, action = self.timestep, self.act() if action is None else action
        after = self.env.step(action)
        self.tick += 1
        now = []
        for player, felt in zip(self.players, self.felt, strict=True):
            field, decay = self._feel(player, after), player.agent.field.decay
            now.append(decay * felt + (1 - decay) * field if decay else field)
        return before, action, after, now

    def go_on(self, after: Timestep, now: list[Tensor]) -> bool:
        """Begin new episodes where one has ended; True if any did."""
        self.timestep = self.env.restart(after)
        restarted = self.timestep is not after
        if restarted:
            fresh = after.ended.view(-1, 1, 1)
            now = [torch.where(fresh, self._feel(p, self.timestep), m) for p, m in zip(self.players, now, strict=True)]
        self.felt = now
        return restarted

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"env.{name}": value for name, value in self.env.state_dict().items()}
        state |= {f"felt.{i}": felt for i, felt in enumerate(self.felt)}
        return {**state, "tick": torch.tensor(self.tick)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.timestep = self.env.load_state_dict(under(state, "env."))
        self.felt = [state[f"felt.{i}"].to(self.env.device) for i in range(len(self.players))]
        self.tick = int(state["tick"])


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
