r"""The most that anybody can earn who is given the model: exact, over all beliefs that can be reached.

$$ V_h(q) = \max_u \sum_{s'} q_u(s') \sum_o p(o \mid s') \left[ \sum_m C^m[o^m] + V_{h-1}(q_{u,o}) \right],
   \qquad q_u(s') = \sum_s B[s', s, u]\, q(s), \qquad q_{u,o} \propto p(o \mid \cdot)\, q_u $$

A partially observed decision process is a decision process over beliefs (Astrom 1965, J. Math. Anal. Appl. 10, 174-205;
Smallwood and Sondik 1973, Operations Research 21, 1071-1088). In small worlds of few kinds of evidence the beliefs that can
ever be held are few: each is found once, whenever it is met, and a horizon costs one sweep per step over them instead of a
tree. What is paid for a step is the preference of what is seen after it; the first observation is free.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel
from mfmarl.population.known import Known

_MOST_STATES = 2048  # joint states whose transitions are worth writing out
_MOST_NUMBERS = 2_000_000  # in all beliefs together
_PIECE = 1024  # beliefs looked beyond at a time
_GRAIN = 1e10  # beliefs that agree to so many parts are one


class _Seen(NamedTuple):
    """What every joint state may show, entry by entry, sorted by state."""

    first: Tensor  # [S + 1]: where a state's entries begin
    outcome: Tensor  # [entries] int64: all modalities as one number
    probability: Tensor  # [entries]
    paid: Tensor  # [S]: expected preference


def optimum(model: GenerativeModel, steps: int, limit: int | None = None) -> float | None:
    """Expected sum of preferences over so many steps of the best policy there is, nats.

    None where more than `limit` beliefs can be reached (default: 20,000, or fewer of more than a hundred joint states: some
    CPU-seconds), or there are too many joint states: `with_known_states` is then a bound. Raises ConfigError for tables of one's own or preferences that change with time.
    """
    _one_world(model)
    if model.num_states > _MOST_STATES:
        return None
    limit = min(20_000, _MOST_NUMBERS // model.num_states) if limit is None else limit
    flat = model.joint().to(dtype=torch.float64)
    seen, transitions = _outcomes(flat), flat.B[0]
    actions = transitions.shape[-1]
    at: dict[bytes, int] = {}
    found: list[Tensor] = []

    def number(beliefs: Tensor) -> Tensor:
        """The number of every belief, given to those not met before."""
        grains = (beliefs * _GRAIN).round().to(torch.int64).numpy()
        numbers = []
        for row, belief in zip(grains, beliefs, strict=True):
            name = row.tobytes()
            if name not in at:
                at[name] = len(found)
                found.append(belief)
            numbers.append(at[name])
        return torch.tensor(numbers, dtype=torch.int64)

    _, weight, beliefs = _posteriors(flat.D[0].unsqueeze(0), seen)
    begin = number(beliefs)
    earned, parents, children, chances = [], [], [], []
    done = 0
    for _ in range(steps):
        if done == len(found):
            break  # what can be believed has been found
        for first in range(done, upto := len(found), _PIECE):
            new = torch.stack(found[first : min(first + _PIECE, upto)])
            expected = torch.einsum("ks,tsu->kut", new, transitions).flatten(0, 1)
            earned.append(expected @ seen.paid)
            row, chance, after = _posteriors(expected, seen)
            parents.append(row + first * actions)
            children.append(number(after))
            chances.append(chance)
            if len(found) > limit:
                return None
        done = upto
    paid = torch.zeros(len(found) * actions, dtype=torch.float64)
    paid[: done * actions] = torch.cat(earned)
    parent, child, chance = torch.cat(parents), torch.cat(children), torch.cat(chances)
    value = torch.zeros(len(found), dtype=torch.float64)
    # A belief first met after d steps is worth something for no more than steps - d: those never looked beyond do no harm.
    for _ in range(steps):
        value = paid.index_add(0, parent, chance * value[child]).view(-1, actions).amax(-1)
    return float(weight @ value[begin])


def with_known_states(model: GenerativeModel, steps: int) -> float:
    """The same of somebody who also sees the states: no policy on observations earns more. Raises ConfigError as above."""
    _one_world(model)
    flat = model.joint().to(dtype=torch.float64)
    paid = _outcomes(flat).paid
    value = torch.zeros_like(paid)
    for _ in range(steps):
        value = torch.einsum("t,tsu->su", paid + value, flat.B[0]).amax(-1)
    return float(flat.D[0] @ value)


def most(model: GenerativeModel, steps: int, hidden: str) -> Known:
    """The known answer for the mean reward per step of an episode of so many steps, on which nobody can improve.

    `hidden`: what the model's hidden states are, in words, for the bound of those who see them where the optimum is not found.
    """
    found = optimum(model, steps)
    if found is None:
        bound = with_known_states(model, steps) / steps
        return Known(bound, f"dynamic programming, as if {hidden} were seen", "bound")
    source = "dynamic programming over all beliefs that can be held"
    return Known(found / steps, source, "optimum")


def _one_world(model: GenerativeModel) -> None:
    if any(d.ndim != 1 for d in model.D):
        raise ConfigError("The optimum is that of one model: give it one without leading axes.")
    if model.timed:
        raise ConfigError("The optimum is found for preferences that stay: this model's C changes with time.")


def _outcomes(flat: GenerativeModel) -> _Seen:
    states = flat.num_states
    state = torch.arange(states)
    outcome = torch.zeros(states, dtype=torch.int64)
    probability = torch.ones(states, dtype=torch.float64)
    paid = torch.zeros(states, dtype=torch.float64)
    for a, c in zip(flat.A, flat.C, strict=True):
        # Every entry splits into those of its state's outcomes in this modality.
        where, what = a.T.nonzero(as_tuple=True)
        count = torch.bincount(where, minlength=states)
        first = count.cumsum(0) - count
        entry = torch.repeat_interleave(torch.arange(len(state)), count[state])
        pick = first[state][entry] + _within(count[state])
        state, probability = state[entry], probability[entry] * a.T[where[pick], what[pick]]
        outcome = outcome[entry] * a.shape[0] + what[pick]
        paid = paid + c @ a
    return _Seen(_starts(torch.bincount(state, minlength=states)), outcome, probability, paid)


def _posteriors(expected: Tensor, seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row [R, S]: what may be seen, each with its row [G], its probability [G] and the belief after it [G, S]."""
    row, state = expected.nonzero(as_tuple=True)
    count = seen.first[state + 1] - seen.first[state]
    entry = torch.repeat_interleave(torch.arange(len(row)), count)
    pick = seen.first[state][entry] + _within(count)
    joint = expected[row, state][entry] * seen.probability[pick]
    span = int(seen.outcome.max()) + 1
    key, group = (row[entry] * span + seen.outcome[pick]).unique(return_inverse=True)
    after = torch.zeros(len(key), expected.shape[-1], dtype=torch.float64)
    after[group, state[entry]] = joint
    chance = after.sum(-1)
    return key // span, chance, after / chance.unsqueeze(-1)


def _starts(count: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)])


def _within(count: Tensor) -> Tensor:
    """0, 1, ..., n - 1 for each n, one after the other."""
    total = int(count.sum())
    return torch.arange(total) - torch.repeat_interleave(count.cumsum(0) - count, count)


def check_preferences(model: GenerativeModel) -> None:
    """Raises ConfigError where preferences of a modality tell apart only outcomes that can never be seen.

    Whatever is done from the states that D allows, all that this modality will show is then preferred alike. Models with
    more joint states than are worth writing out, or with tables of agents' own, are not looked at.
    """
    if model.num_states > _MOST_STATES or any(d.ndim > 1 for d in model.D):
        return
    flat = model.joint()
    leads = (flat.B[0] > 0).any(-1)  # [next, state]
    known = flat.D[0] > 0
    while True:
        more = known | leads[:, known].any(1)
        if bool((more == known).all()):
            break
        known = more
    for m, (a, c) in enumerate(zip(flat.A, flat.C, strict=True)):
        wanted = c.reshape(-1, c.shape[-1])
        seen = (a[:, known] > 0).any(1)
        if bool((wanted.amax(-1) > wanted.amin(-1)).any()) and bool((wanted[:, seen] == wanted[:, seen][:, :1]).all()):
            best = int(wanted[0].argmax())
            raise ConfigError(
                f"Preferences of modality {model.modalities[m]!r} are out of reach: no state that can be come to from D "
                f"shows its outcome {best}, which is preferred most, nor any other than what is preferred alike. Mend A, B or "
                "D, or prefer what can be seen."
            )
