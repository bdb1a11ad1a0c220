r"""The mean-field equilibrium of expected free energy: a crowd whose habits and preferences reproduce its own way.

$$ g_t(s, u) = r_t(s, u; \mu_t) + \beta \sum_{s'} P_t(s' \mid s, u; \mu_t)\, V_{t+1}(s'), \qquad
   V = \tfrac{1}{\gamma} \log \sum_u E(u \mid s)\, e^{\gamma g(s, u)}, \qquad
   \pi_t(u \mid s) = E\, e^{\gamma (g - V)} $$

with mu the flow of pi: backward g, forward mu. The preferences r are the game's rewards (log-preferences of outcomes,
in nats per 1/gamma), gamma is the precision of policies, E a habit. Where agents know their own state this is exactly
the mean-field game regularised by the relative entropy to the reference policy E at temperature 1/gamma (Cui and Koeppl
2021, arXiv 2102.01585; Guan, Afshari, Zhang and Tsiotras 2022, arXiv 2210.06682); of those who see it in part,
`believed_game` makes a game over beliefs, whose rewards hold the information that is sought.

In a potential game of fixed dynamics the equilibrium is where the population's free energy is least,

$$ \mathcal{F}[\mu, \pi] = -\sum_t \beta^t \Phi_t(\mu_t, \pi_t) + \tfrac{1}{\gamma} \sum_t \beta^t
   \sum_s \mu_t(s)\, \mathrm{KL}[\pi_t(\cdot \mid s) \,\|\, E(\cdot \mid s)] $$

and it falls along small enough steps of the damped iteration, which mixes the crowd with its answer. Undamped, the
iteration goes to the equilibrium only where the spectral radius of its derivative is below 1: it is measured here.
Policies are [T, *b, G, S, A]; gamma is a number, or [*b].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games import exploitability as measures
from mfmarl.games import values
from mfmarl.games.flow import Flow, check_policy, flow, times, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import looks
from mfmarl.games.solver import wide
from mfmarl.games.solvers.fictitious_play import mixed
from mfmarl.games.solvers.fixed_point import by_state
from mfmarl.games.values import Values
from mfmarl.random import Key

Method = Literal["damped", "fictitious_play", "mirror_descent"]
METHODS = ("damped", "fictitious_play", "mirror_descent")

_LEAST_WEIGHT = 1e-3  # adaptive damping never takes smaller steps than this
_SAME_WAY = 0.9  # cosine above which an answer that is farther off is one that moves, and no spiral outwards
_NEVER = -1e4  # the logarithm of a probability of 0, with which sums stay finite
_PUSH = 1e-5  # of logits, to measure a derivative: errors of 1e-10 either way
_KRYLOV = 24  # directions that the spectral radius is found in


class Response(NamedTuple):
    """What the crowd of a policy is worth to one agent, and the answer that it gives."""

    flow: Flow
    values: Values  # g and V
    answer: Tensor  # [T, *b, G, S, A]


class State(NamedTuple):
    """Where an iteration stands."""

    log_policy: Tensor  # [T, *b, G, S, A], -1e4 for what is never done
    weight: Tensor  # [*b], what the last answer counted
    direction: Tensor  # [T, *b, G, S, A], from the policy before to its answer; 0 at first


@dataclass(frozen=True)
class Equilibrium:
    """What an iteration came to."""

    policy: Tensor
    """pi [T, *b, G, S, A]."""
    values: Values
    """g [T, *b, G, S, A] and V [T, *b, G, S] along its own flow."""
    flow: Flow
    residual: Tensor
    """The largest difference of a probability between the policy and its answer, [*b]."""
    gap: Tensor
    """How much an agent could gain that pays 1/gamma for every nat that it leaves its habit by, [*b]."""
    exploitability: Tensor
    """How much one could gain that pays nothing for it, [*b]: not 0 at a finite gamma."""
    free_energy: Tensor | None
    """The population's, [*b]; None in a game without a potential, or where dynamics move with the crowd."""
    spectral_radius: Tensor
    """Of the undamped iteration at this policy, [*b]: above 1 it leaves the equilibrium."""
    rows: list[dict[str, Any]]
    """One for each look: iteration, residual, regularised, exploitability, weight, and free_energy where there is one."""
    settled: bool
    told: str
    """What is to be known of it in sentences; empty: nothing."""


# ------------------------------------------------------------------------------------------- one agent's view


def habits(game: MeanFieldGame, habit: Tensor | Sequence[float] | None = None, like: Tensor | None = None) -> Tensor:
    """E [T, *1, G, S, A], with as many axes as the policy `like`: from weights that broadcast to [T, G, S, A], legal ones
    alone and normalised; None: uniform.

    Raises ConfigError for weights that are negative, not finite, or leave a state without anything to do.
    """
    shape = (times(game), game.num_groups, game.num_states, game.num_actions)
    dtype = torch.float64 if like is None else like.dtype
    device = torch.device("cpu") if like is None else like.device
    if habit is None:
        found = uniform(game, dtype=dtype, device=device)
    else:
        weights = torch.as_tensor(habit, dtype=dtype, device=device)
        if weights.shape[-1:] != shape[-1:] or weights.ndim > 4:
            raise ConfigError(
                f"A habit weighs {shape[-1]} actions, or them in every state: [..., {shape[-2]}, {shape[-1]}], "
                f"not {list(weights.shape)}."
            )
        try:
            weights = weights.expand(shape)
        except RuntimeError:
            raise ConfigError(
                f"A habit of {type(game).__name__} must broadcast to [T, G, S, A] = {list(shape)}, not {list(weights.shape)}."
            ) from None
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ConfigError("A habit holds weights of actions: finite and not negative.")
        legal = game.legal_mask(device)
        weights = weights if legal is None else weights * legal
        total = weights.sum(-1, keepdim=True)
        if bool((total <= 0).any()):
            t, g, s, _ = (total <= 0).nonzero()[0].tolist()
            raise ConfigError(
                f"The habit leaves nothing to do in state {s} of group {game.groups[g]!r} at time {t}: give a legal "
                "action of it a positive weight."
            )
        found = weights / total
    if like is not None:
        found = found.reshape(shape[0], *[1] * (like.ndim - 4), *shape[1:])
    return found


def respond(game: MeanFieldGame, policy: Tensor, gamma: float | Tensor, habit: Tensor) -> Response:
    """g, V and the answer pi = E exp(gamma (g - V)) along the flow of a policy."""
    path = flow(game, policy)
    temperature = by_state(1 / gamma)
    found = values.soft(game, path, temperature, habit)
    return Response(path, found, values.boltzmann(game, found.q, temperature, habit))


def divergence(policy: Tensor, habit: Tensor) -> Tensor:
    """KL[pi || E] in every state, [T, *b, G, S]; infinite where something is done that is never a habit."""
    term = policy * (policy.clamp(min=torch.finfo(policy.dtype).tiny).log() - habit.log())
    return torch.where(policy > 0, term, 0.0).sum(-1)


def regularised_gap(game: MeanFieldGame, policy: Tensor, gamma: float | Tensor, habit: Tensor) -> Tensor:
    """What an agent could gain [*b] that pays 1/gamma for every nat from its habit: 0 at the equilibrium alone."""
    return gap_of(game, respond(game, policy, gamma, habit), gamma)


def gap_of(game: MeanFieldGame, response: Response, gamma: float | Tensor) -> Tensor:
    """The same of a response: (1/gamma) sum_t beta^t sum_s mu_t(s) KL[pi_t || answer_t], exact down to 1e-20 and below.

    As a difference of values it would drown in their rounding, and with it the choice of the step.
    """
    policy, answer = response.flow.policy, response.answer
    tiny = torch.finfo(policy.dtype).tiny
    ratio = answer.clamp(min=tiny).log() - policy.clamp(min=tiny).log()
    near = policy * (torch.expm1(ratio.clamp(-0.1, 0.1)) - ratio.clamp(-0.1, 0.1))
    far = answer - policy - policy * ratio
    each = torch.where(policy == 0, answer, torch.where(ratio.abs() < 0.1, near, far)).sum(-1)
    total = measures.over_time(game, response.flow, (response.flow.mu * each).sum((-2, -1))) / gamma
    return total / (1 - game.discount) if game.horizon is None else total


def _held(game: MeanFieldGame, path: Flow, gamma: float | Tensor, habit: Tensor) -> Values:
    """Of the flow's own policy, which pays for leaving the habit."""
    price = by_state(1 / gamma) * divergence(path.policy, habit)
    return values.of_policy(game, path._replace(rewards=path.rewards - price.unsqueeze(-1)))


def free_energy(game: MeanFieldGame, path: Flow, gamma: float | Tensor, habit: Tensor) -> Tensor | None:
    """The population's free energy F[mu, pi] of a flow, [*b]; None where nothing is minimised.

    That is: without a potential, where dynamics depend on the crowd, in a stationary game, and with a reward at the end.
    """
    if game.horizon is None or game.crowd_moves or type(game).terminal is not MeanFieldGame.terminal:
        return None
    found = measures.potential(game, path)
    if found is None:
        return None
    left = (path.mu * divergence(path.policy, habit)).sum((-2, -1))
    return measures.over_time(game, path, left) / gamma - found


# ------------------------------------------------------------------------------------------------ the iteration


def begin(policy: Tensor, weight: float | None = None) -> State:
    """Before the first step from a policy [T, *b, G, S, A]; `weight` None: whole steps, until they must be smaller."""
    batch = policy.shape[1:-3]
    first = policy.new_full(batch, 1.0 if weight is None else weight)
    return State(_log(policy), first, torch.zeros_like(policy))


def policy_of(game: MeanFieldGame, state: State) -> Tensor:
    """The policy that a state stands for."""
    return values.boltzmann(game, state.log_policy, 1.0)


def step(
    game: MeanFieldGame,
    state: State,
    iteration: int,
    gamma: float | Tensor,
    habit: Tensor,
    method: Method = "damped",
    weight: float | None = None,
) -> tuple[State, Response]:
    """One iteration (the first is number 1), and how the policy before it was answered.

    `damped` mixes the crowd with its answer, (1 - w) L + w L(answer); `fictitious_play` with w = 1/(k + 1);
    `mirror_descent` mixes logarithms, log pi <- (1 - w) log pi + w (ln E + gamma Q), Q of the policy itself.
    `weight` None adapts w: it is halved where the answer lies back the way that it came, or farther off and another way,
    and else grows by a tenth. So it follows a gamma that rises, and does not take that for failure.
    """
    policy = policy_of(game, state)
    response = respond(game, policy, gamma, habit)
    direction = response.answer - policy
    share = state.weight
    if method == "fictitious_play":
        share = torch.full_like(share, 1 / (iteration + 1))
    elif weight is None:
        share = _adapted(share, response.flow.mu, direction, state.direction)
    if method == "mirror_descent":
        w = wide(share)
        target = habit.log().clamp(min=_NEVER) + wide(gamma) * _held(game, response.flow, gamma, habit).q
        # Written as logarithms of probabilities: numbers that only drift would lose their digits.
        following = _log(values.boltzmann(game, (1 - w) * state.log_policy + w * target, 1.0))
    elif bool((share == 1).all()):
        following = _log(response.answer)
    else:
        following = _log(mixed(game, response.flow.mu, policy, response.answer, wide(share)))
    return State(following, share, direction), response


def _adapted(share: Tensor, mu: Tensor, direction: Tensor, before: Tensor) -> Tensor:
    """The weight [*b] of a step in `direction`, after one in the direction `before`: both as the crowd goes."""

    def product(one: Tensor, other: Tensor) -> Tensor:
        return (mu * (one * other).sum(-1)).sum((0, -2, -1))

    now, then = product(direction, direction), product(before, before)
    cosine = product(direction, before) / (now * then).sqrt().clamp(min=1e-300)
    back = (then > 0) & ((cosine < 0) | ((now > then) & (cosine < _SAME_WAY)))
    return torch.where(back, (share / 2).clamp(min=_LEAST_WEIGHT), (share * 1.1).clamp(max=1.0))


def solve(
    game: MeanFieldGame,
    gamma: float | Tensor,
    habit: Tensor | Sequence[float] | None = None,
    method: Method = "damped",
    weight: float | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-10,
    policy: Tensor | None = None,
    every: int = 0,
) -> Equilibrium:
    """Iterate from `policy` (default: the habit; with gammas [B], one for each) until policy and answer differ by less
    than the tolerance in every probability.

    Raises ConfigError for options that cannot be, NumericFault for rules that are none or a crowd without rest.
    """
    check_precision(gamma)
    if method not in METHODS:
        raise ConfigError(f"The method is 'damped', 'fictitious_play' or 'mirror_descent', not {method!r}.")
    if weight is not None and not 0 < weight <= 1:
        raise ConfigError(f"weight must be above 0 and at most 1, not {weight:g}.")
    if iterations < 1:
        raise ConfigError(f"iterations must be at least 1, not {iterations}.")
    batch = tuple(gamma.shape) if isinstance(gamma, Tensor) else ()
    with torch.no_grad():
        if policy is None:
            prior = habits(game, habit)
            first = prior.reshape(prior.shape[0], *[1] * len(batch), *prior.shape[1:])
            first = first.expand(prior.shape[0], *batch, *prior.shape[1:]).clone()
        else:
            check_policy(game, policy)
            first = policy
        prior = habits(game, habit, first)
        flow(game, first, check=True)  # rules that are none are told before anything is done
        state, rows = begin(first, weight), []
        due = looks(iterations, every)
        look = next(due)
        settled = False
        for k in range(iterations + 1):
            after, response = step(game, state, k + 1, gamma, prior, method, weight)
            residual = _largest(response.answer - response.flow.policy)
            if not bool(torch.isfinite(residual).all()):
                raise NumericFault(f"The policy of iteration {k} holds NaN: lower gamma, or scale the rewards.")
            settled = bool((residual <= tolerance).all())
            if k == look or settled:
                rows.append(_row(game, k, response, residual, after, gamma, prior))
                look = next(due, iterations)
            if settled or k == iterations:
                break
            state = after
        policy = response.flow.policy
        radius = spectral_radius(game, policy, gamma, prior)
        return Equilibrium(
            policy,
            response.values,
            response.flow,
            residual,
            gap_of(game, response, gamma),
            measures.of_flow(game, response.flow).exploitability,
            free_energy(game, response.flow, gamma, prior),
            radius,
            rows,
            settled,
            told(settled, residual, radius, method),
        )


def check_precision(gamma: float | Tensor) -> None:
    """Raises ConfigError unless every precision is positive and finite."""
    g = torch.as_tensor(gamma, dtype=torch.float64)
    if not bool((torch.isfinite(g) & (g > 0)).all()):
        raise ConfigError(f"gamma must be positive and finite (a temperature above 0), not {gamma}.")


def told(settled: bool, residual: Tensor, radius: Tensor, method: str) -> str:
    """What is to be said of an iteration, in sentences."""
    parts = []
    if not settled:
        parts.append(
            f"The iteration did not settle: probabilities still differ from their answer by {float(residual.max()):.2g}; "
            "give it more iterations, or a smaller weight."
        )
    if float(radius.max()) > 1:
        where = "equilibrium" if settled else "policy that was reached"
        parts.append(
            f"The spectral radius of the undamped iteration is {float(radius.max()):.3g} at the {where}: without damping "
            "a crowd that answers all at once cannot settle there."
        )
    return " ".join(parts)


def _row(
    game: MeanFieldGame,
    k: int,
    response: Response,
    residual: Tensor,
    after: State,
    gamma: float | Tensor,
    habit: Tensor,
) -> dict[str, Any]:
    row = {
        "iteration": k,
        "residual": residual.tolist(),
        "regularised": gap_of(game, response, gamma).tolist(),
        "exploitability": measures.of_flow(game, response.flow).exploitability.tolist(),
        "weight": after.weight.tolist(),
    }
    energy = free_energy(game, response.flow, gamma, habit)
    return row if energy is None else {**row, "free_energy": energy.tolist()}


def _largest(x: Tensor) -> Tensor:
    """max |x| of [T, *b, G, S, A] over all but the batch: [*b]."""
    return x.abs().amax((0, -3, -2, -1))


def _log(policy: Tensor) -> Tensor:
    return policy.log().clamp(min=_NEVER)


# --------------------------------------------------------------------------------------------- can it converge?


def spectral_radius(
    game: MeanFieldGame, policy: Tensor, gamma: float | Tensor, habit: Tensor | None = None, directions: int = _KRYLOV
) -> Tensor:
    """The spectral radius [*b] of the undamped iteration pi -> answer at a policy: it converges nearby only below 1.

    By Arnoldi's method (1951) in so many directions, the derivative along each from a central difference of the map from
    logits to gamma g. Exact where there are no more than `directions` logits; else the outermost eigenvalue found.
    """
    prior = habits(game, None, policy) if habit is None else habit
    T, batch, core = policy.shape[0], policy.shape[1:-3], policy.shape[-3:]
    free = (policy > 0).to(policy.dtype)
    logits = _log(policy)
    scale = wide(gamma)

    def flat(x: Tensor) -> Tensor:  # [T, *b, G, S, A] -> [*b, n]
        return x.movedim(0, len(batch)).flatten(len(batch))

    def full(x: Tensor) -> Tensor:
        return x.unflatten(-1, (T, *core)).movedim(len(batch), 0)

    def slope(v: Tensor) -> Tensor:
        size = v.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        push = full(v / size * _PUSH)
        up, down = (
            respond(game, values.boltzmann(game, logits + sign * push, 1.0), gamma, prior).values.q for sign in (1, -1)
        )
        moved = scale * (up - down) / (2 * _PUSH) * free
        # What all actions of a state share moves no policy.
        moved = (moved - (policy * moved).sum(-1, keepdim=True)) * free
        return flat(moved) * size

    n = T * math.prod(core)
    ids = torch.arange(n, device=policy.device)
    v = random.normal(Key.of(0).fold("spectral"), ids).to(policy.dtype).expand(*batch, n) * flat(free)
    v = v / v.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    basis = [v]
    count = min(directions, n)
    table = policy.new_zeros(*batch, count + 1, count)
    first = None
    for k in range(count):
        w = slope(basis[-1])
        first = w.norm(dim=-1) if first is None else torch.maximum(first, w.norm(dim=-1))
        for again in range(2):  # Gram and Schmidt twice: once leaves rounding
            for j, q in enumerate(basis):
                part = (q * w).sum(-1, keepdim=True)
                table[..., j, k] += part[..., 0]
                w = w - part * q
            if again == 0 and k + 1 == count:
                break
        length = w.norm(dim=-1)
        # Nothing new is left: the space is closed, and what is beyond it is rounding.
        alive = length > 1e-8 * first.clamp(min=1e-300)
        if k + 1 < count:
            table[..., k + 1, k] = torch.where(alive, length, 0.0)
            basis.append(torch.where(alive.unsqueeze(-1), w / length.clamp(min=1e-300).unsqueeze(-1), 0.0))
            if not bool(alive.any()):
                break
    return torch.linalg.eigvals(table[..., :count, :]).abs().amax(-1)
