"""Which time and state an agent is in, found again by what it sees there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games.flow import times
from mfmarl.games.game import MeanFieldGame
from mfmarl.random import Key


class Sight(nn.Module):
    """Numbers of times and states, looked up by observations; what is seen of the crowd is passed over.

    Raises ConfigError where two of them look the same.
    """

    weights: Tensor
    codes: Tensor
    cells: Tensor

    def __init__(self, game: MeanFieldGame) -> None:
        super().__init__()
        mu = game.start()
        rows = torch.stack([game.views(t, mu)[0] for t in range(times(game))]).flatten(0, 1)
        if game.sight == "crowd":
            rows = rows[:, : rows.shape[1] - mu.numel()]
        weights = random.normal(Key.of(0).fold("view"), torch.arange(rows.shape[1])).double()
        codes, cells = (rows.double() @ weights).sort()
        if len(codes) > 1 and float(codes.diff().min()) < 1e-13:
            raise ConfigError(
                f"Two states or times of {type(game).__name__} look the same, and an agent that knows the rules would not "
                "know which one it is in: give the game coordinates that tell them apart."
            )
        for name, values in (("weights", weights), ("codes", codes), ("cells", cells)):
            self.register_buffer(name, values, persistent=False)

    def forward(self, obs: Tensor) -> Tensor:
        """Time and state as one number t S + s, int64 [*b], of what is seen [*b, O]."""
        code = obs[..., : len(self.weights)].double() @ self.weights
        right = torch.searchsorted(self.codes, code).clamp(max=len(self.codes) - 1)
        left = (right - 1).clamp(min=0)
        nearer = (code - self.codes[left]).abs() < (code - self.codes[right]).abs()
        return self.cells[torch.where(nearer, left, right)]
