"""Ranks that are threads of one process: what travels between them is checked without starting processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mfmarl.population.ranks import Ranks


class Table:
    """Where threads lay down what they give, and meet."""

    def __init__(self, count: int) -> None:
        self.count, self.laid = count, [None] * count
        self.barrier = threading.Barrier(count, timeout=60)

    def meet(self, rank: int, value: Any) -> list[Any]:
        self.laid[rank] = value
        self.barrier.wait()
        found = list(self.laid)
        self.barrier.wait()
        return found


class Thread(Ranks):
    def __init__(self, rank: int, table: Table) -> None:
        super().__init__()
        self.rank, self.count, self.table = rank, table.count, table

    def _meet(self, what: str, purpose: str, value: Any) -> list[Any]:
        laid = value if isinstance(value, tuple) else (value,)
        given = sum(part.nbytes for part in laid if isinstance(part, Tensor))
        self.sent[purpose] = self.sent.get(purpose, 0) + given
        found = self.table.meet(self.rank, (what, value))
        assert len({name for name, _ in found}) == 1, f"ranks ask for different things: {[name for name, _ in found]}"
        return [value for _, value in found]

    def sum(self, x: Tensor, purpose: str = "field") -> Tensor:
        total = sum(self._meet("sum", purpose, x))
        return total if x.is_floating_point() else total.to(torch.int64)  # type: ignore[union-attr, return-value]

    def largest(self, x: Tensor, purpose: str = "field") -> Tensor:
        return torch.stack(self._meet("largest", purpose, x)).amax(0)

    def agree(self, wish: bool) -> bool:
        return any(self._meet("agree", "word", wish))

    def to_first(self, x: Tensor, purpose: str = "state") -> list[Tensor]:
        found = self._meet("to_first", purpose, x)
        return found if self.first else []

    def everybody(self, x: Tensor, purpose: str = "rows") -> Tensor:
        return torch.cat(self._meet("everybody", purpose, x))

    def exchange(self, x: Tensor, give: Sequence[int], take: Sequence[int], purpose: str = "halo") -> Tensor:
        found = self._meet("exchange", purpose, x.split(list(give)))
        mine = [parts[self.rank] for parts in found]
        assert [len(part) for part in mine] == list(take)
        return torch.cat(mine)


def together(count: int, play: Callable[[Ranks], Any]) -> list[Any]:
    """What `play` gives on each of `count` ranks; raises what the first of them raised."""
    table = Table(count)
    found: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = play(Thread(rank, table))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)
            table.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
