"""What agents learn from: a replay of transitions, the last steps in order, or each step as it happens.

Everything is laid out by mind, [M, B, ...]. Where a crowd is exchangeable, `remember` keeps a random
sample of it: a million agents teach as much as ten thousand, and cost as little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.learning.agent import NOT_KEPT, Transition
from mfmarl.population.division import ALL, Division
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.random import Key
from mfmarl.statmech import weighted_sampling

# ------------------------------------------------------------------------- which rows of a crowd are learned from


@dataclass(frozen=True)
class Crowd:
    """The rows of a crowd with one mind, numbered copy by copy; where it is divided, the part of them that is here."""

    division: Division | None = None
    """None: all rows are here."""
    team: str = ALL

    @property
    def ranks(self) -> Ranks:
        return ALONE if self.division is None else self.division.ranks

    @property
    def divided(self) -> bool:
        return self.division is not None

    def count(self, here: int) -> int:
        """How many rows there are in all, of so many here."""
        return here if self.division is None else self.division.rows(self.team)

    def numbers(self, here: int, device: torch.device) -> Tensor:
        """The numbers of the rows here, increasing."""
        if self.division is None:
            return torch.arange(here, device=device)
        return self.division.row_numbers(self.team).to(device)

    def find(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which of these are here, by their place in `rows`, and where those lie here."""
        if self.division is None:
            return torch.arange(len(rows), device=rows.device), rows
        inside, place = self.division.find(rows, self.team)
        return inside.nonzero().squeeze(-1), place

    def marked(self, mark: Tensor, rows: Tensor) -> Tensor:
        """Which of these rows, wherever they are, bear the mark that those here [B] are asked for."""
        if self.division is None:
            return mark[rows]
        inside, place = self.find(rows)
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        found[inside] = mark[place]
        return either(found, self.ranks)


WHOLE = Crowd()


def either(mark: Tensor, ranks: Ranks, purpose: str = "rows") -> Tensor:
    """What any rank marks, of marks [n] bool that no two ranks make of the same: 64 to a word as it travels."""
    if ranks.count == 1:
        return mark
    bit = torch.ones((), dtype=torch.int64, device=mark.device) << torch.arange(64, device=mark.device)
    words = torch.nn.functional.pad(mark, (0, -len(mark) % 64)).view(-1, 64)
    words = ranks.sum((words * bit).sum(1), purpose)
    return ((words.unsqueeze(-1) & bit) != 0).flatten()[: len(mark)]


def sample_rows(
    rows: int,
    keep: int | None,
    key: Key,
    device: torch.device,
    valid: Tensor | None = None,
    crowd: Crowd = WHOLE,
) -> Tensor | None:
    """The numbers of `keep` distinct random rows of a crowd of so many, increasing; None where all are kept.

    Only of the `valid` ones, where some are not: [B] bool of the rows here. The same on every rank, and the same
    however the crowd is divided.
    """
    if valid is None:
        if keep is None or keep >= rows:
            return None
        count = rows
    else:
        count = int(crowd.ranks.sum(valid.count_nonzero(), "rows"))
        if keep is None or keep >= count:
            named = crowd.numbers(len(valid), device)[valid] if crowd.divided else valid.nonzero().squeeze(-1)
            return crowd.ranks.everybody(named).sort().values if crowd.divided else named
    if rows <= 1 << 31 and 2 * keep * rows <= count * count:
        return _by_rejection(rows, count, keep, key, device, valid, crowd)
    return _by_noise(rows, keep, key, device, valid, crowd)


def _by_rejection(
    rows: int, count: int, keep: int, key: Key, device: torch.device, valid: Tensor | None, crowd: Crowd
) -> Tensor:
    """Rows drawn until `keep` different valid ones are there: O(keep / share of the valid), in the same order for all."""
    expected = -rows * math.log1p(-keep / count)
    drawn = int(expected + 5 * math.sqrt(expected * rows / count)) + 16
    while True:
        # A longer sequence begins with the shorter: how many are drawn at first does not matter.
        row = random.integers(key, torch.arange(drawn, device=device), rows)
        ordered, place = row.sort(stable=True)
        new = torch.ones_like(row, dtype=torch.bool)
        new[place[1:]] = ordered[1:] != ordered[:-1]
        different = row[new]
        if valid is not None:
            different = different[crowd.marked(valid, different)]
        if len(different) >= keep:
            return different[:keep].sort().values
        drawn *= 2


def _by_noise(rows: int, keep: int, key: Key, device: torch.device, valid: Tensor | None, crowd: Crowd) -> Tensor:
    """The rows of the `keep` smallest of one random number per row: O(rows), where many of them are kept."""
    if valid is None:
        numbers, lowest = None, torch.arange(rows, device=device)  # known to everybody
    else:
        numbers = crowd.numbers(len(valid), device)[valid] if crowd.divided else valid.nonzero().squeeze(-1)
        lowest = numbers
    noise = random.bits(key, lowest)
    if numbers is not None and crowd.divided:
        best = torch.topk(noise, min(keep, len(noise)), largest=False, sorted=False).indices
        noise, lowest = crowd.ranks.everybody(torch.stack([noise[best], lowest[best]], 1)).unbind(1)
    chosen: Tensor = lowest[torch.topk(noise, keep, largest=False, sorted=False).indices]
    return chosen.sort().values


def rows_of(transition: Transition, index: Tensor | slice) -> Transition:
    """These rows of every mind, all of them valid."""
    columns = {name: x for name, x in transition._asdict().items() if isinstance(x, Tensor)}
    if isinstance(index, slice):
        chosen = {name: x[:, index] for name, x in columns.items()}
    else:
        chosen = {name: x.index_select(1, index) for name, x in columns.items()}
    return transition._replace(**{**chosen, "valid": None})  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- replay


class Replay:
    """A ring of transitions for each mind, drawn from with replacement: uniformly, or by priority.

    With an exponent `alpha` above 0 a transition is drawn in proportion to p^alpha, p the size of its error when it
    was last learned from (a new one: the largest so far), and batches carry the weights that correct for it.

    Of a crowd that is divided over ranks the ring is one: each rank holds what its own agents lived through, at the
    places that it would have in the whole ring, and draws what it holds of the batch that all draw.
    """

    def __init__(self, minds: int, capacity: int, alpha: float = 0.0) -> None:
        self.minds, self.capacity, self.alpha = minds, capacity, alpha
        self.crowd = WHOLE
        self.here = torch.zeros(0, dtype=torch.bool)  # where divided: which places of the ring are filled here
        self.largest = torch.ones(minds)  # priority of each mind so far
        self.ring: dict[str, Tensor] = {}
        self.at = torch.zeros(minds, dtype=torch.int64)  # where each mind writes next
        self.size = torch.zeros(minds, dtype=torch.int64)
        self.least = 0  # the least size over minds, on the host
        self.added = 0
        self.even = True  # whether every mind has written as many rows as the others

    def add(self, new: Transition, key: Key, remember: int | None = None) -> None:
        """Append the valid rows of `new` [M, B, ...]; of one shared mind at most `remember`, drawn at random."""
        valid, rows, device = new.valid, new.reward.shape[1], new.reward.device
        limit = min(remember or self.capacity, self.capacity)
        if self.crowd.divided:
            self._add_part(new, key, limit)
            return
        if self.minds == 1 and (valid is not None or rows > limit):
            index = sample_rows(rows, limit, key, device, None if valid is None else valid[0])
            if index is not None:
                new = rows_of(new, index)
            valid, rows = None, new.reward.shape[1]
            if rows == 0:
                return
        self._make(new)
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

    def _make(self, new: Transition) -> None:
        """Room for columns such as these, once it is known what they are."""
        if self.ring:
            return
        device = new.reward.device
        for name, value in new._asdict().items():
            if value is not None and name not in NOT_KEPT:
                shape = (self.minds, self.capacity, *value.shape[2:])
                self.ring[name] = torch.zeros(shape, dtype=value.dtype, device=device)
        self.at, self.size = self.at.to(device), self.size.to(device)
        if self.crowd.divided:
            self.here = torch.zeros(self.capacity, dtype=torch.bool, device=device)
        if self.alpha:
            self.largest = self.largest.to(device)
            self.priority = torch.zeros((self.minds, self.capacity), dtype=torch.float64, device=device)

    def _add_part(self, new: Transition, key: Key, limit: int) -> None:
        """Append those here of the rows that are chosen of the whole crowd."""
        crowd, device, here = self.crowd, new.reward.device, new.reward.shape[1]
        rows = crowd.count(here)
        chosen = sample_rows(rows, limit, key, device, None if new.valid is None else new.valid[0], crowd)
        count = rows if chosen is None else len(chosen)
        if count == 0:
            return
        self._make(new)
        # As in the whole ring: the k-th chosen row goes to the k-th free place.
        rank, place = (crowd.numbers(here, device), None) if chosen is None else crowd.find(chosen)
        written = (self.added + torch.arange(count, device=device)) % self.capacity
        mine = written[rank]
        self.here[written] = False
        self.here[mine] = True
        for name, store in self.ring.items():
            value = getattr(new, name)
            store[:, mine] = value if place is None else value.index_select(1, place)
        self.added += count
        self.at.fill_(self.added % self.capacity)
        self.least = min(self.added, self.capacity)
        self.size.fill_(self.least)

    def draw(self, batch: int, key: Key, correction: float = 1.0) -> Transition:
        """`batch` transitions of each mind: [M, batch, ...]. Needs `least` > 0.

        Where the crowd is divided, those of them that are here: [1, b, ...], `number` says which of the batch.

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
        number = None
        if self.crowd.divided:
            number = self.here[index[0]].nonzero().T
            index = index.gather(1, number)
        flat = index + torch.arange(self.minds, device=index.device).unsqueeze(1) * self.capacity
        # index_select: several times faster than store[index].
        line = flat.flatten()
        columns = {n: x.flatten(0, 1).index_select(0, line).unflatten(0, flat.shape) for n, x in self.ring.items()}
        drawn = {name: columns.get(name) for name in Transition._fields if name not in NOT_KEPT}
        return Transition(
            **drawn,  # type: ignore[arg-type]
            weight=weight,
            place=None if weight is None else index,
            number=number,
            of=None if number is None else batch,
        )

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
        if self.crowd.divided and self.ring:
            state = self._gathered(state)
        if self.alpha and self.ring:
            state |= {"priority": self.priority[:, :rows].contiguous(), "largest": self.largest}
        return {
            **state,
            "at": self.at,
            "size": self.size,
            "added": torch.tensor(self.added),
            "even": torch.tensor(self.even),
        }

    def _gathered(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole ring on the first rank, and whose each place is."""
        ranks = self.crowd.ranks
        mine = self.here[: next(iter(columns.values())).shape[1]].nonzero().squeeze(-1)
        places = ranks.to_first(mine)
        owner = torch.zeros_like(self.here[: next(iter(columns.values())).shape[1]], dtype=torch.int64)
        for rank, place in enumerate(places):
            owner[place] = rank
        for name, store in columns.items():
            parts = ranks.to_first(store[0].index_select(0, mine))
            if parts:
                columns[name] = torch.empty_like(store)
                columns[name][0, torch.cat(places)] = torch.cat(parts)
        return {**columns, "owner": owner, "ranks": torch.tensor(ranks.count)}

    def _own(self, state: dict[str, Tensor], rows: int) -> Tensor:
        """Which places of a whole ring this rank takes: its own, or where others divided it, each count-th."""
        ranks = self.crowd.ranks
        place = torch.arange(rows)
        known = "owner" in state and int(state["ranks"]) == ranks.count
        return (state["owner"].cpu() if known else place % ranks.count) == ranks.rank

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
                if self.crowd.divided:
                    self.here = torch.zeros(self.capacity, dtype=torch.bool, device=device)
                    self.here[: value.shape[1]] = self._own(state, value.shape[1]).to(device)
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
        self.rows: Tensor | None = None  # the numbers, in the whole crowd, of those that are kept
        self.chosen = False
        self.crowd = WHOLE
        self.width = 0  # how many are kept, of the whole crowd
        self.number: Tensor | None = None  # where the crowd is divided: which of them are here
        self.place: Tensor | None = None  # and where they lie here

    @property
    def full(self) -> bool:
        return len(self.steps) >= self.length

    def begin(self, rows: int, remember: int | None, key: Key, device: torch.device) -> None:
        """Choose whose steps are kept until the rollout is full, of so many rows here; `remember` None or 0: everybody's."""
        whole = self.crowd.count(rows)
        self.rows, self.chosen = sample_rows(whole, remember or None, key, device), True
        self._find(rows, device)

    def _find(self, here: int, device: torch.device) -> None:
        crowd = self.crowd
        self.width = crowd.count(here) if self.rows is None else len(self.rows)
        self.number, self.place = None, self.rows
        if crowd.divided:
            everybody = (crowd.numbers(here, device), None)
            self.number, self.place = everybody if self.rows is None else crowd.find(self.rows)

    def select(self, x: Tensor) -> Tensor:
        return x if self.place is None else x.index_select(1, self.place)

    def add(self, step: dict[str, Tensor | None]) -> None:
        self.steps.append({name: value for name, value in step.items() if value is not None})

    def stacked(self) -> dict[str, Tensor]:
        """Every column as [T, M, B, ...]."""
        return {name: torch.stack([step[name] for step in self.steps]) for name in self.steps[0]}

    def clear(self) -> None:
        self.steps, self.chosen = [], False
        self.rows = self.number = self.place = None

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"steps.{n}": self._gathered(x) for n, x in self.stacked().items()} if self.steps else {}
        if self.rows is not None:
            state["rows"] = self.rows
        state["chosen"] = torch.tensor(self.chosen)
        return state

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        columns = {n.removeprefix("steps."): v.to(device) for n, v in state.items() if n.startswith("steps.")}
        count = len(next(iter(columns.values()))) if columns else 0
        self.rows = state["rows"].to(device) if "rows" in state else None
        self.chosen = bool(state["chosen"])
        if self.chosen:
            self._find(next(iter(columns.values())).shape[2] if columns else 0, device)
        if self.number is not None:
            columns = {name: x.index_select(2, self.number) for name, x in columns.items()}
        self.steps = [{name: value[t] for name, value in columns.items()} for t in range(count)]

    def _gathered(self, x: Tensor) -> Tensor:
        """Of one column [T, 1, b, ...] of those here, that of everybody [T, 1, B, ...] on the first rank."""
        if self.number is None:
            return x
        parts, numbers = (self.crowd.ranks.to_first(y) for y in (x.movedim(2, 0).contiguous(), self.number))
        if not parts:
            return x
        whole = torch.empty((self.width, *parts[0].shape[1:]), dtype=x.dtype, device=x.device)
        whole[torch.cat(numbers)] = torch.cat(parts)
        return whole.movedim(0, 2).contiguous()


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
