r"""What all agents together get, what one more of them adds to it, and what selfishness costs.

$$ J(\pi) = \sum_g \sum_t \gamma^t \langle L_t, r_t(L_t) \rangle, \qquad
   \tilde Q_t(s, a) = \frac{\partial}{\partial L_t(s, a)} \big[ \langle L_t, r_t(L_t) \rangle
   + \gamma \langle L_t P_t(L_t), \lambda_{t+1} \rangle \big], \qquad \lambda_t = \sum_a \pi_t \tilde Q_t $$

The planner of mean-field control counts what an agent does to the others, r + <L, dr/dL>, and an agent of the game does
not (Lauriere and Pironneau 2016 on the difference; Pigou 1920 and Beckmann, McGuire and Winsten 1956 on roads, where
the second part is the toll that makes selfish drivers take the best routes). Groups count alike, as in
`exploitability`'s value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games.flow import Flow, check_policy, flow
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Kernel
from mfmarl.games.values import Values


def total(game: MeanFieldGame, path: Flow) -> Tensor:
    """J, [*b]: what an agent expects over the game, summed over groups; in a stationary game over its discounted life."""
    _known(game, "The total")
    each = (path.joint * path.rewards).sum((-3, -2, -1))
    if game.horizon is None:
        return each[0] / (1 - game.discount)
    weight = game.discount ** torch.arange(len(each), dtype=each.dtype, device=each.device)
    found = (each * weight.reshape(-1, *[1] * (each.ndim - 1))).sum(0)
    if path.terminal is not None:
        last = path.kernels[-1].carry(path.joint[-1])
        found = found + game.discount ** len(each) * (last * path.terminal).sum((-2, -1))
    return found


def values(game: MeanFieldGame, path: Flow) -> Values:
    """What one more agent in each state and action adds to J from then on: the exact gradient of J by the adjoint.

    dJ / dpi_t(a | s) = gamma^t mu_t(s) q_t(s, a), and q is right where nobody comes too. Raises ConfigError for a game
    without a horizon, NumericFault where the rules have no finite derivative.
    """
    if game.horizon is None:
        raise ConfigError("The planner's values are of a game with a horizon.")
    _known(game, "The planner's values")
    joint = path.joint.detach()
    fixed = None if game.crowd_moves else _marginal(game, joint).unbind(0)
    ahead = _ahead(game, path)
    qs: list[Tensor] = []
    vs: list[Tensor] = []
    for t in range(len(joint) - 1, -1, -1):
        if fixed is None:
            q = _derivative(game, t, joint[t], ahead)
        elif ahead is None:
            q = fixed[t]
        else:
            q = fixed[t] + game.discount * path.kernels[t].expect(ahead)
        ahead = (path.policy[t].detach() * q).sum(-1)
        qs.append(q)
        vs.append(ahead)
    found = Values(torch.stack(qs[::-1]), torch.stack(vs[::-1]))
    if not bool(torch.isfinite(found.v.sum())):
        raise NumericFault(f"{type(game).__name__}: the rules have no finite derivative at this crowd.")
    return found


def _marginal(game: MeanFieldGame, joint: Tensor) -> Tensor:
    """r + <L, dr/dL> of all times [T, *b, G, S, A]."""
    with torch.enable_grad():
        held = joint.clone().requires_grad_()
        if game.time_dependent:
            parts = enumerate(held.unbind(0))
            earned = torch.stack([(part * _paid(game, t, _crowd(part))).sum() for t, part in parts]).sum()
        else:
            earned = (held * _paid(game, 0, _crowd(held))).sum()
        return torch.autograd.grad(earned, held)[0]


def _derivative(game: MeanFieldGame, t: int, joint: Tensor, ahead: Tensor | None) -> Tensor:
    with torch.enable_grad():
        held = joint.clone().requires_grad_()
        crowd = _crowd(held)
        earned = (held * _paid(game, t, crowd)).sum()
        if ahead is not None:
            earned = earned + game.discount * (game.kernel(t, crowd).carry(held) * ahead).sum()
        return torch.autograd.grad(earned, held)[0]


def _ahead(game: MeanFieldGame, path: Flow) -> Tensor | None:
    """d/dmu <mu, terminal(mu)> after the last step, [*b, G, S]."""
    if path.terminal is None:
        return None
    with torch.enable_grad():
        last = path.kernels[-1].carry(path.joint[-1]).detach().requires_grad_()
        return torch.autograd.grad(_last(game, last), last)[0]


def _last(game: MeanFieldGame, mu: Tensor) -> Tensor:
    paid = game.terminal(Crowd(mu))
    assert paid is not None
    return (mu * paid).sum()


def _paid(game: MeanFieldGame, t: int, crowd: Crowd) -> Tensor:
    """Rewards, with 0 where the action is not legal: they may be infinite there."""
    legal = game.legal_mask(crowd.mu.device)
    paid = game.paid(t, crowd)
    return paid if legal is None else torch.where(legal, paid, 0.0)


def _known(game: MeanFieldGame, what: str) -> None:
    if game.tree is not None:
        raise ConfigError(f"{what} of a game with common noise ({type(game).__name__}) cannot be had yet.")


def _crowd(joint: Tensor) -> Crowd:
    return Crowd(joint.sum(-1), counted=joint)


def price_of_anarchy(game: MeanFieldGame, equilibrium: Tensor, optimum: Tensor) -> Tensor:
    """How many times worse off all are at the equilibrium than at the planner's optimum, [*b], at least 1 if it is one.

    Of costs (rewards below 0) the cost at the equilibrium over the cost at the optimum, of gains the other way round
    (Koutsoupias and Papadimitriou 1999). Raises ConfigError where one is a gain and the other a cost, or nothing.
    """
    found = []
    for policy in (equilibrium, optimum):
        check_policy(game, policy)
        found.append(total(game, flow(game, policy)))
    selfish, best = torch.broadcast_tensors(*found)
    if bool((selfish * best <= 0).any()):
        raise ConfigError(
            "The price of anarchy compares two costs or two gains; here the equilibrium is worth "
            f"{float(selfish.flatten()[0]):.4g} and the optimum {float(best.flatten()[0]):.4g}."
        )
    return torch.where(selfish < 0, selfish / best, best / selfish)


@dataclass(frozen=True)
class Marginal(MeanFieldGame):
    """A game whose agents are also paid for what they do to the others: `marginal` makes it."""

    game: MeanFieldGame = field(kw_only=True)

    extended = True

    @property
    def num_states(self) -> int:
        return self.game.num_states

    @property
    def num_actions(self) -> int:
        return self.game.num_actions

    @property
    def batch(self) -> tuple[int, ...]:
        return self.game.batch

    def initial(self) -> Tensor:
        return self.game.initial()

    def start(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        return self.game.start(dtype, device)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return self.game.kernel(t, crowd)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return _slope(crowd.joint, lambda joint: (joint * _paid(self.game, t, _crowd(joint))).sum())

    def terminal(self, crowd: Crowd) -> Tensor | None:
        if self.game.terminal(crowd) is None:
            return None
        return _slope(crowd.mu, lambda mu: _last(self.game, mu))

    def allowed(self) -> Tensor | None:
        return self.game.allowed()

    def coordinates(self) -> Tensor | None:
        return self.game.coordinates()

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        return (crowd.joint * _paid(self.game, t, crowd)).sum((-3, -2, -1))


def _slope(at: Tensor, earned: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of what is earned; itself to be differentiated where `at` is."""
    graph = torch.is_grad_enabled() and at.requires_grad
    with torch.enable_grad():
        held = at if graph else at.detach().requires_grad_()
        return torch.autograd.grad(earned(held), held, create_graph=graph)[0]


@cache
def _marginal_class(groups: tuple[str, ...], time_dependent: bool) -> type[Marginal]:
    rules = {"groups": groups, "time_dependent": time_dependent, "crowd_moves": False}
    return type("Marginal", (Marginal,), {**rules, "__doc__": Marginal.__doc__, "__module__": __name__})


def marginal(game: MeanFieldGame) -> Marginal:
    """The game with tolls: rewards r + <L, dr/dL>. Its equilibria are the planner's optima of `game` where J is concave
    (its stationary points where not), and its potential is J itself.

    Raises ConfigError where the crowd moves the dynamics: there a toll on rewards is not enough.
    """
    if game.crowd_moves:
        raise ConfigError(
            f"In {type(game).__name__} the crowd moves the dynamics, and tolls on rewards alone do not make the "
            "planner's optimum; use the solver planner."
        )
    if game.horizon is None:
        raise ConfigError("Tolls make the planner's optimum in games with a horizon.")
    _known(game, "The tolls")
    made = _marginal_class(game.groups, game.time_dependent)
    return made(game.num_agents, game.horizon, game.discount, game.sight, game=game)
