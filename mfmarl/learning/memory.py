"""What agents learn from: a replay of transitions, the last steps in order, or each step as it happens.

Everything is laid out by mind, [M, B, ...]. Where a crowd is exchangeable, `remember` keeps a random
sample of it: a million agents teach as much as ten thousand, and cost as little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.learning.agent import NOT_KEPT, Transition
from mfmarl.random import Key
from mfmarl.statmech import weighted_sampling


def sample_rows(rows: int, keep: int | None, key: Key, device: torch.device) -> Tensor | None:
    """Indices of `keep` distinct random rows, in order; None where all are kept."""
    if keep is None or keep >= rows:
        return None
    # The keep-th smallest of one random number per row: exact sampling without replacement, O(rows).
    ids = torch.arange(rows, device=device)
    noise = random.bits(key, ids)
    return torch.topk(noise, keep, largest=False, sorted=False).indices.sort().values


def rows_of(transition: Transition, index: Tensor | slice) -> Transition:
    """These rows of every mind, all of them valid."""
    columns = {name: x for name, x in transition._asdict().items() if x is not None}
    if isinstance(index, slice):
        chosen = {name: x[:, index] for name, x in columns.items()}
    else:
        chosen = {name: x.index_select(1, index) for name, x in columns.items()}
    return transition._replace(**{**chosen, "valid": None})


class Replay:
    """A ring of transitions for each mind, drawn from with replacement: uniformly, or by priority.

    With an exponent `alpha` above 0 a transition is drawn in proportion to p^alpha, p the size of its error when it
    was last learned from (a new one: the largest so far), and batches carry the weights that correct for it.
    """

    def __init__(self, minds: int, capacity: int, alpha: float = 0.0) -> None:
        self.minds, self.capacity, self.alpha = minds, capacity, alpha
        self.largest = torch.ones(minds)  # priority of each mind so far
        self.ring: dict[str, Tensor] = {}
        self.at = torch.zeros(minds, dtype=torch.int64)  # where each mind writes next
        self.size = torch.zeros(minds, dtype=torch.int64)
        self.least = 0  # the least size over minds, on the host
        self.added = 0
        self.even = True  # whether every mind has written as many rows as the others

    def add(self, new: Transition, key: Key, remember: int | None = None) -> None:
        """Append the valid rows of `new` [M, B, ...]; of one shared mind at most `remember`, drawn at random."""
        valid, rows = new.valid, new.reward.shape[1]
        limit = min(remember or self.capacity, self.capacity)
        if self.minds == 1 and (valid is not None or rows > limit):
            index = None if valid is None else valid[0].nonzero().squeeze(-1)
            count = rows if index is None else len(index)
            if count == 0:
                return
            chosen = sample_rows(count, limit, key, new.reward.device)
            if chosen is not None:
                index = chosen if index is None else index[chosen]
            if index is not None:
                new = rows_of(new, index)
            valid, rows = None, new.reward.shape[1]
        if not self.ring:
            for name, value in new._asdict().items():
                if value is not None and name not in NOT_KEPT:
                    shape = (self.minds, self.capacity, *value.shape[2:])
                    self.ring[name] = torch.zeros(shape, dtype=value.dtype, device=value.device)
            device = new.reward.device
            self.at, self.size = self.at.to(device), self.size.to(device)
            if self.alpha:
                self.largest = self.largest.to(device)
                self.priority = torch.zeros((self.minds, self.capacity), dtype=torch.float64, device=device)
        if valid is None and not self.even:
            valid = torch.ones(new.reward.shape, dtype=torch.bool, device=new.reward.device)
        if valid is None:
            if rows > self.capacity:
                new = rows_of(new, slice(-self.capacity, None))
                rows = self.capacity
            # Without masks every mind writes the same places: one or two slices.
            start = self.added % self.capacity
            first = min(rows, self.capacity - start)
            for name, store in self.ring.items():
                value = getattr(new, name)
                store[:, start : start + first] = value[:, :first]
                if first < rows:
                    store[:, : rows - first] = value[:, first:]
            if self.alpha:
                fresh = self.largest.double().unsqueeze(1)
                self.priority[:, start : start + first] = fresh
                self.priority[:, : rows - first] = fresh
            self.added += rows
            self.at.fill_(self.added % self.capacity)
            self.least = min(self.added, self.capacity)
            self.size.fill_(self.least)
            return
        # Masked rows of many minds: each mind's k-th valid row goes to its own k-th free place.
        self.even = False
        rank = valid.long().cumsum(1) - 1
        if rows > self.capacity:
            # No place is written twice: of more than fit, the last.
            valid = valid & (rank > rank[:, -1:] - self.capacity)
        place = (self.at.unsqueeze(1) + rank) % self.capacity
        mind, row = valid.nonzero(as_tuple=True)
        for name, store in self.ring.items():
            store[mind, place[mind, row]] = getattr(new, name)[mind, row]
        if self.alpha:
            self.priority[mind, place[mind, row]] = self.largest.double()[mind]
        counts = rank[:, -1] + 1
        self.at = (self.at + counts) % self.capacity
        self.size = (self.size + counts).clamp(max=self.capacity)
        self.least = int(self.size.min())

    def draw(self, batch: int, key: Key, correction: float = 1.0) -> Transition:
        """`batch` transitions of each mind: [M, batch, ...]. Needs `least` > 0.

        By priority, `correction` is the exponent beta of their weights: at 1 averages are those of uniform draws.
        """
        ids = torch.arange(self.minds * batch, device=self.at.device).view(self.minds, batch)
        weight = None
        if self.alpha:
            rows = max(1, int(self.size.max()))
            probability = weighted_sampling.replay_probabilities(self.priority[:, :rows], self.alpha)
            index = weighted_sampling.draw(probability, ids, key)
            # N P, with the N that each mind has: weights of what is not there yet are never asked for.
            weight = weighted_sampling.replay_weights(probability, correction).gather(1, index).to(torch.float32)
        else:
            index = (random.uniform(key, ids) * self.size.unsqueeze(1)).long()
        flat = index + torch.arange(self.minds, device=index.device).unsqueeze(1) * self.capacity
        # index_select: several times faster than store[index].
        line = flat.flatten()
        columns = {n: x.flatten(0, 1).index_select(0, line).unflatten(0, flat.shape) for n, x in self.ring.items()}
        drawn = {name: columns.get(name) for name in Transition._fields if name not in NOT_KEPT}
        return Transition(**drawn, weight=weight, place=None if weight is None else index)  # type: ignore[arg-type]

    def reweigh(self, place: Tensor, priority: Tensor) -> None:
        """Give the transitions at `place` [M, B] their new priorities [M, B]; the largest of a repeated one's."""
        # Never quite 0: what is learned well today may be wrong tomorrow (Schaul et al., section 3.3).
        new = priority.double().clamp(min=1e-6)
        seen = torch.zeros_like(self.priority).scatter_reduce_(1, place, new, "amax")
        self.priority = torch.where(seen > 0, seen, self.priority)
        self.largest = torch.maximum(self.largest, new.amax(1).to(self.largest.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        rows = max(1, int(self.size.max()))
        # A ring that is not yet full is written without its empty part.
        state = {f"ring.{name}": store[:, :rows].contiguous() for name, store in self.ring.items()}
        if self.alpha and self.ring:
            state |= {"priority": self.priority[:, :rows].contiguous(), "largest": self.largest}
        return {
            **state,
            "at": self.at,
            "size": self.size,
            "added": torch.tensor(self.added),
            "even": torch.tensor(self.even),
        }

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        self.at, self.size = state["at"].to(device), state["size"].to(device)
        self.added, self.least = int(state["added"]), int(state["size"].min())
        self.even = bool(state["even"])
        self.ring = {}
        for name, value in state.items():
            if name.startswith("ring."):
                store = torch.zeros((self.minds, self.capacity, *value.shape[2:]), dtype=value.dtype, device=device)
                store[:, : value.shape[1]] = value.to(device)
                self.ring[name.removeprefix("ring.")] = store
        if self.alpha and "priority" in state:
            self.largest = state["largest"].to(device)
            self.priority = torch.zeros((self.minds, self.capacity), dtype=torch.float64, device=device)
            self.priority[:, : state["priority"].shape[1]] = state["priority"].to(device)


class Rollout:
    """The last `length` steps in order, of all agents or of a random sample of a shared mind's rows.

    Steps: obs, field, legal, action, reward [M, B, ...], `acting` [M, B] (who chose), `ended` [M, B] (whose
    episode this step ended) and `bootstrap` [M, B] (the value of what a truncated agent would have seen next).
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.steps: list[dict[str, Tensor]] = []
        self.rows: Tensor | None = None
        self.chosen = False

    @property
    def full(self) -> bool:
        return len(self.steps) >= self.length

    def begin(self, rows: int, remember: int | None, key: Key, device: torch.device) -> None:
        """Choose whose steps are kept until the rollout is full; `remember` None or 0: everybody's."""
        self.rows, self.chosen = sample_rows(rows, remember or None, key, device), True

    def select(self, x: Tensor) -> Tensor:
        return x if self.rows is None else x.index_select(1, self.rows)

    def add(self, step: dict[str, Tensor | None]) -> None:
        self.steps.append({name: value for name, value in step.items() if value is not None})

    def stacked(self) -> dict[str, Tensor]:
        """Every column as [T, M, B, ...]."""
        return {name: torch.stack([step[name] for step in self.steps]) for name in self.steps[0]}

    def clear(self) -> None:
        self.steps, self.chosen, self.rows = [], False, None

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"steps.{name}": value for name, value in self.stacked().items()} if self.steps else {}
        if self.rows is not None:
            state["rows"] = self.rows
        state["chosen"] = torch.tensor(self.chosen)
        return state

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        columns = {n.removeprefix("steps."): v.to(device) for n, v in state.items() if n.startswith("steps.")}
        count = len(next(iter(columns.values()))) if columns else 0
        self.steps = [{name: value[t] for name, value in columns.items()} for t in range(count)]
        self.rows = state["rows"].to(device) if "rows" in state else None
        self.chosen = bool(state["chosen"])


def advantages(
    reward: Tensor,
    value: Tensor,
    last_value: Tensor,
    acting: Tensor,
    ended: Tensor,
    bootstrap: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns [T, *b] (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Between two of its own actions an agent only collects reward: time passes for it when it acts, so
    turn-taking, death and the end of an episode all come out of the same recursion. `last_value` [*b] is
    the value after the last step, `bootstrap` [T, *b] that of a truncated agent's last observation.
    """
    advantage = torch.zeros_like(reward)
    next_value, next_advantage = last_value, torch.zeros_like(last_value)
    collected = torch.zeros_like(last_value)
    for t in range(len(reward) - 1, -1, -1):
        next_value = torch.where(ended[t], bootstrap[t], next_value)
        next_advantage = torch.where(ended[t], 0.0, next_advantage)
        collected = torch.where(ended[t], 0.0, collected) + reward[t]
        delta = collected + gamma * next_value - value[t]
        now = delta + gamma * lam * next_advantage
        advantage[t] = torch.where(acting[t], now, 0.0)
        next_value = torch.where(acting[t], value[t], next_value)
        next_advantage = torch.where(acting[t], now, next_advantage)
        collected = torch.where(acting[t], 0.0, collected)
    return advantage, advantage + value
