r"""A mean-field game of agents who see their own state in part: the same game over beliefs, and what they look for in it.

$$ b'(s') \propto A(o \mid s') \sum_s P(s' \mid s, u; \mu)\, b(s), \qquad r(b, u; \mu) = \sum_s b(s)\, r(s, u; \mu)
   + \lambda\, I(o'; s' \mid b, u), \qquad \mu(s) = \sum_b \nu(b)\, b(s) $$

An agent's belief is all that its past tells of its state, so that nu, the crowd's distribution over beliefs, is the
state of a mean-field game that is observed in full; its mean is the crowd mu itself, because beliefs by Bayes' rule are
right on average. Beliefs lie on a grid of the simplex, all multiples of 1/R; each new one is drawn among the corners of
its cell of Freudenthal's triangulation, with weights whose mean it is. So mu stays exact at any resolution, and where
the crowd does not matter the value bounds the true one from above and falls to it as R doubles (Lovejoy 1991, Oper. Res.
39, 162). With lambda = 0 agents look where it pays; with lambda = 1 information of the own state is worth itself, as
expected free energy has it. There are C(R + S - 1, S - 1) beliefs: this is for a handful of states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.finite import count_vectors, number_of_vectors
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.options import Bounds

_MOST = 20_000  # beliefs


def believed(game: MeanFieldGame, likelihood: Tensor, resolution: int = 20, information: float = 0.0) -> BelievedGame:
    """The game over beliefs of agents who see outcomes by A [O, S] instead of their state.

    Raises ConfigError for a table that is no likelihood, for games with common noise or with actions that are legal in
    some states only, and for grids that are too fine.
    """
    kind = BelievedGame if type(game).terminal is MeanFieldGame.terminal else _BelievedGameWithAnEnd
    return kind(
        num_agents=game.num_agents,
        horizon=game.horizon,
        discount=game.discount,
        game=game,
        likelihood=likelihood.to(torch.float64),
        resolution=resolution,
        information=information,
    )


@dataclass(frozen=True, eq=False)
class BelievedGame(MeanFieldGame):
    """A game whose states are beliefs over those of another. Make it by `believed`."""

    game: MeanFieldGame | None = None
    """The game itself."""
    likelihood: Tensor | None = None
    """A [O, S]: what is seen in each state, after every step and at the start."""
    resolution: Annotated[int, Bounds(1, 1 << 20)] = 20
    """R: beliefs are multiples of 1/R."""
    information: Annotated[float, Bounds(-1e6, 1e6)] = 0.0
    """lambda, what a nat about the own state is worth in itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        game, a = self.game, self.likelihood
        if game is None or a is None:
            raise ConfigError("A game over beliefs is made by believed(game, likelihood).")
        if a.ndim != 2 or a.shape[1] != game.num_states:
            raise ConfigError(f"A likelihood is [outcomes, {game.num_states} states], not {list(a.shape)}.")
        if bool((a < 0).any()) or not bool(((a.sum(0) - 1).abs() < 1e-6).all()):
            raise ConfigError("Every column of a likelihood is a distribution over outcomes: divide it by its sum.")
        if game.tree is not None:
            raise ConfigError(
                f"{type(game).__name__} has common noise, of which beliefs over the own state know nothing."
            )
        if game.allowed() is not None:
            raise ConfigError(
                f"{type(game).__name__} forbids actions by the state, and who is not sure of it cannot know them; pay "
                "for them by effort instead."
            )
        if (count := number_of_vectors(self.resolution, game.num_states)) > _MOST:
            raise ConfigError(
                f"{count:,} beliefs over {game.num_states} states at resolution {self.resolution} are too many "
                f"(at most {_MOST:,}): lower the resolution."
            )

    @property
    def base(self) -> MeanFieldGame:
        assert self.game is not None
        return self.game

    @property
    def groups(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.base.groups

    @property
    def time_dependent(self) -> bool:  # type: ignore[override]
        return self.base.time_dependent

    @property
    def crowd_moves(self) -> bool:  # type: ignore[override]
        return self.base.crowd_moves

    @property
    def extended(self) -> bool:  # type: ignore[override]
        return self.base.extended

    @cached_property
    def _counts(self) -> Tensor:
        """Beliefs as whole multiples of 1/R, int64 [K, S], in the order of their codes."""
        counts = count_vectors(self.resolution, self.base.num_states).long()
        return counts[self._code(counts).argsort()]

    def _code(self, counts: Tensor) -> Tensor:
        found = torch.zeros_like(counts[..., 0])
        for column in counts.unbind(-1)[:-1]:
            found = found * (self.resolution + 1) + column
        return found

    @cached_property
    def beliefs(self) -> Tensor:
        """b [K, S]."""
        return self._counts.to(torch.float64) / self.resolution

    def corners(self, belief: Tensor) -> tuple[Tensor, Tensor]:
        """The beliefs of the grid round any [*b, S]: their numbers int64 [*b, S] and weights [*b, S], whose mean it is."""
        above = self.resolution * belief.flip(-1).cumsum(-1).flip(-1)
        # Rounding must not put a grid point into the next cell.
        near = above.round()
        above = torch.where((above - near).abs() < 1e-9, near, above)
        whole = above.floor()
        part, order = (above - whole).sort(-1, descending=True)
        ones = torch.ones_like(part[..., :1])
        weight = torch.cat([ones, part[..., :-1]], -1) - part
        steps = torch.nn.functional.one_hot(order, order.shape[-1]).to(whole).cumsum(-2)
        # Corner k has climbed the k largest parts: [*b, S corners, S]; the last step is that of a part of 0.
        climbed = torch.cat([torch.zeros_like(steps[..., :1, :]), steps[..., :-1, :]], -2)
        corner = whole.unsqueeze(-2) + climbed
        counts = corner - torch.cat([corner[..., 1:], torch.zeros_like(corner[..., :1])], -1)
        number = torch.searchsorted(self._code(self._counts), self._code(counts.long()).clamp(min=0))
        return number.clamp(max=len(self._counts) - 1), weight.clamp(min=0)

    @property
    def num_states(self) -> int:
        return number_of_vectors(self.resolution, self.base.num_states)

    @property
    def num_actions(self) -> int:
        return self.base.num_actions

    def coordinates(self) -> Tensor:
        return 2 * self.beliefs - 1

    def crowd_of(self, crowd: Crowd) -> Crowd:
        """The crowd over states, of one over beliefs."""
        points = self.beliefs.to(crowd.mu)
        if crowd.policy is None and crowd.counted is None:
            return Crowd(crowd.mu @ points)
        return Crowd(crowd.mu @ points, counted=torch.einsum("...ka,ks->...sa", crowd.joint, points))

    def initial(self) -> Tensor:
        prior = torch.as_tensor(self.base.initial()).to(torch.float64)
        number, weight = self._seen(prior)
        found = prior.new_zeros(*prior.shape[:-1], self.num_states)
        return found.scatter_add(-1, number, weight)

    def _seen(self, expected: Tensor) -> tuple[Tensor, Tensor]:
        """After having seen: numbers and probabilities [*b, O S] of beliefs, from what was expected [*b, S]."""
        assert self.likelihood is not None
        both = expected.unsqueeze(-2) * self.likelihood.to(expected)  # [*b, O, S]
        chance = both.sum(-1, keepdim=True)
        posterior = torch.where(chance > 0, both / chance.clamp(min=1e-300), expected.unsqueeze(-2))
        number, weight = self.corners(posterior)
        return number.flatten(-2), (chance * weight).flatten(-2)

    def _expected(self, t: int, crowd: Crowd) -> Tensor:
        """What is expected of the own state after an action, [..., K, A, S]."""
        dense = self.base.kernel(t, self.crowd_of(crowd)).dense().to(crowd.mu)
        return torch.einsum("ks,...sax->...kax", self.beliefs.to(crowd.mu), dense)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        return Outcomes(*self._seen(self._expected(t, crowd)))

    def sought(self, t: int, crowd: Crowd) -> Tensor:
        """I(o'; s' | b, u) in nats, [..., K, A]: what is expected to be learned of the own state."""
        assert self.likelihood is not None
        expected, a = self._expected(t, crowd), self.likelihood.to(crowd.mu)
        seen = expected @ a.mT
        vague = -torch.special.xlogy(a, a).sum(0)
        return -torch.special.xlogy(seen, seen).sum(-1) - expected @ vague

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        paid = self.base.rewards(t, self.crowd_of(crowd))
        paid = torch.einsum("ks,...sa->...ka", self.beliefs.to(crowd.mu), paid)
        return paid + self.information * self.sought(t, crowd) if self.information else paid

    def effort(self) -> Tensor | None:
        effort = self.base.effort()
        return None if effort is None else torch.einsum("ks,...sa->...ka", self.beliefs.to(effort), effort)

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        found = self.base.potential(t, self.crowd_of(crowd))
        if found is None or not self.information:
            return found
        # Of fixed dynamics what is learned is linear in the crowd.
        return (
            None
            if self.crowd_moves
            else found + self.information * (crowd.joint * self.sought(t, crowd)).sum((-3, -2, -1))
        )

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """The game's own of the crowd over states, and how unsure its beliefs are, in nats."""
        points = self.beliefs.to(mu)
        unsure = mu @ -torch.special.xlogy(points, points).sum(-1)
        return {**self.base.measures(mu @ points), "doubt": unsure.mean(-1)}


class _BelievedGameWithAnEnd(BelievedGame):
    """Of a game that pays for the state after the last step."""

    def terminal(self, crowd: Crowd) -> Tensor | None:
        last = self.base.terminal(self.crowd_of(crowd))
        return None if last is None else last @ self.beliefs.to(last).mT
