"""What one population lives through: the current timestep, the field that each player feels, and what it believes."""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl.learning.players import Player
from mfmarl.population.simulation import Env
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key


class Episode:
    """What one population lives through: the current timestep, the field that each player feels, and what it believes.

    Used for training and, with its own key, for evaluation. `seen` is the timestep as each player acts upon it: of one
    that perceives, what it believes stands in place of what is observed; of others it is the timestep itself.
    """

    def __init__(self, env: Env, players: list[Player], key: Key) -> None:
        self.env, self.players, self.key = env, players, key
        self.begin()

    def begin(self) -> None:
        """Begin at the beginning, as the key has it."""
        self.tick = 0
        self.timestep: Timestep = self.env.reset(self.key.fold("environment"))
        self.felt = [self._feel(p, self.timestep) for p in self.players]
        self.carried: list[dict[str, Tensor]] = [{} for _ in self.players]
        self.seen = self._perceive(self.timestep, self.felt)
        self.seen_after = list(self.seen)

    def _feel(self, player: Player, timestep: Timestep) -> Tensor:
        key = self.key.fold("field", self.tick)
        return player.agent.field(timestep, self.env.spec, self.env.ids, key, player.slots)

    def act(self) -> Tensor:
        """Everybody's action: [E, N] or [E, N, D]."""
        key = self.key.fold("act", self.tick)
        parts = [
            p.agent.act(seen, felt, self.env.ids[:, p.slots], key)
            for p, seen, felt in zip(self.players, self.seen, self.felt, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _perceive(self, timestep: Timestep, felt: list[Tensor], fresh: Tensor | None = None) -> list[Timestep]:
        """The timestep as each player sees it, who then carries on what it believes; only in `fresh` copies [E]."""
        key = self.key.fold("perceive" if fresh is None else "begin", self.tick)
        views = []
        for i, player in enumerate(self.players):
            if not player.agent.perceives:
                views.append(timestep)
                continue
            ids = self.env.ids[:, player.slots]
            view, carried = player.agent.perceive(self.carried[i], timestep, felt[i], ids, key)
            if fresh is not None:
                old = self.seen_after[i].obs[:, player.slots]
                view = _in_copies(fresh, view, old)
                carried = {name: _in_copies(fresh, x, self.carried[i][name]) for name, x in carried.items()}
            # In the order that a checkpoint gives them back: sums over another one end in other bits.
            view = view.contiguous()
            self.carried[i] = {name: x.contiguous() for name, x in carried.items()}
            views.append(timestep._replace(obs=_placed(view, player.slots, self.env.ids.shape[1])))
        return views

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
        self.seen_after = self._perceive(after, now)
        return before, action, after, now

    def go_on(self, after: Timestep, now: list[Tensor]) -> bool:
        """Begin new episodes where one has ended; True if any did."""
        self.timestep = self.env.restart(after)
        restarted = self.timestep is not after
        if restarted:
            fresh = after.ended.view(-1, 1, 1)
            now = [torch.where(fresh, self._feel(p, self.timestep), m) for p, m in zip(self.players, now, strict=True)]
        self.felt = now
        self.seen = self._perceive(self.timestep, now, after.ended) if restarted else list(self.seen_after)
        return restarted

    def state_dict(self) -> dict[str, Tensor]:
        """Where it stands: of a population that is divided, the whole one's, on the first rank."""
        state = {f"env.{name}": value for name, value in self.env.state_dict().items()}
        gather = self.env.division.gather
        for i, (player, felt) in enumerate(zip(self.players, self.felt, strict=True)):
            state[f"felt.{i}"] = gather(felt, True, player.name)
        for i, player in enumerate(self.players):
            if player.agent.perceives:
                state[f"seen.{i}"] = self.seen[i].obs[:, player.slots]
                state |= {f"carried.{i}.{name}": x for name, x in self.carried[i].items()}
        return {**state, "tick": torch.tensor(self.tick)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.timestep = self.env.load_state_dict(under(state, "env."))
        part, device = self.env.division.part, self.env.device
        self.felt = [part(state[f"felt.{i}"].to(device), True, p.name) for i, p in enumerate(self.players)]
        self.tick = int(state["tick"])
        agents = self.env.ids.shape[1]
        for i, player in enumerate(self.players):
            view = self.timestep
            if player.agent.perceives:
                self.carried[i] = {n: x.to(self.env.device) for n, x in under(state, f"carried.{i}.").items()}
                view = view._replace(obs=_placed(state[f"seen.{i}"].to(self.env.device), player.slots, agents))
            self.seen[i] = self.seen_after[i] = view


def _placed(view: Tensor, slots: slice, agents: int) -> Tensor:
    """What some slots see [E, n, ...] at their place among all [E, N, ...]."""
    if view.shape[1] == agents:
        return view
    placed = view.new_zeros(view.shape[0], agents, *view.shape[2:])
    placed[:, slots] = view
    return placed


def _in_copies(copies: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(copies.view(-1, *[1] * (new.ndim - 1)), new, old)


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
