"""Several processes that live through one population: who is here, and the few numbers that travel between them.

A process is a rank. Nothing is sent by a population on one rank (`ALONE`), whose every operation is the identity.
Between ranks travel counts, a torus's outermost rows, gradients: by step, of a size that does not grow with N. All
ranks must ask for the same things in the same order: an operation waits until the last of them has come.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, RankLost


class Ranks:
    """One rank of `count`; this class alone is the population that is whole."""

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        self.sent: dict[str, int] = {}
        """Bytes that this rank has handed over since it began, by what for."""
        self.calls: dict[str, int] = {}
        """How often the ranks have met for it: each time costs a latency, however few the bytes."""

    @property
    def first(self) -> bool:
        """Whether this rank writes what all have in common: files, progress."""
        return self.rank == 0

    def sum(self, x: Tensor, purpose: str = "field") -> Tensor:
        """The sum over ranks, of whole numbers exactly; of equal bits on every rank."""
        return x

    def largest(self, x: Tensor, purpose: str = "field") -> Tensor:
        """The largest over ranks, element by element."""
        return x

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes it."""
        return wish

    def to_first(self, x: Tensor, purpose: str = "state") -> list[Tensor]:
        """Every rank's `x`, in order, on the first rank; nothing elsewhere. Shapes may differ along the first axis alone."""
        return [x]

    def everybody(self, x: Tensor, purpose: str = "rows") -> Tensor:
        """Every rank's `x`, one after the other, on every rank. Shapes may differ along the first axis alone."""
        return x

    def exchange(self, x: Tensor, give: Sequence[int], take: Sequence[int], purpose: str = "halo") -> Tensor:
        """Rows for rows: the first give[0] rows of `x` go to rank 0, and so on; what comes is take[0] rows of rank 0's, ..."""
        return x

    def tell(self, text: str) -> str:
        """The first rank's `text`, on every rank."""
        return text

    def close(self) -> None:
        """Leave the group."""


ALONE = Ranks()


class Group(Ranks):
    """Ranks joined by `torch.distributed`: gloo between processors, nccl between GPUs.

    A rank that is lost ends every operation of the others with RankLost.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        super().__init__()
        self.dist: Any = dist
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def _do(self, purpose: str, x: Tensor, action: Any, *arguments: Any, **options: Any) -> None:
        self.sent[purpose] = self.sent.get(purpose, 0) + x.numel() * x.element_size()
        self.calls[purpose] = self.calls.get(purpose, 0) + 1
        try:
            action(*arguments, **options)
        except RuntimeError as error:
            raise RankLost(
                f"Rank {self.rank} of {self.count} lost touch with the others: one of them has died or is stuck "
                f"({str(error).splitlines()[0][:160]})."
            ) from error

    def _reduced(self, x: Tensor, purpose: str, how: Any) -> Tensor:
        # Neither gloo nor nccl reduces booleans, nor small whole numbers without overflow.
        wide = x.to(torch.int64) if not x.is_floating_point() else x
        out = wide.to(self.device, copy=True).contiguous()
        self._do(purpose, out, self.dist.all_reduce, out, op=how)
        return out.to(x.device, torch.int64 if not x.is_floating_point() else x.dtype)

    def sum(self, x: Tensor, purpose: str = "field") -> Tensor:
        return self._reduced(x, purpose, self.dist.ReduceOp.SUM)

    def largest(self, x: Tensor, purpose: str = "field") -> Tensor:
        return self._reduced(x, purpose, self.dist.ReduceOp.MAX).to(x.dtype)

    def agree(self, wish: bool) -> bool:
        return bool(self.largest(torch.tensor(int(wish)), "word"))

    def to_first(self, x: Tensor, purpose: str = "state") -> list[Tensor]:
        mine, sizes = self._padded(x)
        out = [torch.empty_like(mine) for _ in sizes] if self.first else None
        self._do(purpose, mine, self.dist.gather, mine, out, dst=0)
        return [] if out is None else [part[:size].to(x.device, x.dtype) for part, size in zip(out, sizes, strict=True)]

    def everybody(self, x: Tensor, purpose: str = "rows") -> Tensor:
        mine, sizes = self._padded(x)
        out = [torch.empty_like(mine) for _ in sizes]
        self._do(purpose, mine, self.dist.all_gather, out, mine)
        return torch.cat([part[:size] for part, size in zip(out, sizes, strict=True)]).to(x.device, x.dtype)

    def _padded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """`x` as long as the longest, and everybody's own length: what is gathered must be of one shape."""
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = len(x)
        sizes: list[int] = self.sum(lengths, "word").tolist()
        plain = x.to(torch.uint8) if x.dtype == torch.bool else x
        mine = plain.new_zeros((max(sizes), *x.shape[1:]), device=self.device)
        mine[: len(x)] = plain
        return mine, sizes

    def exchange(self, x: Tensor, give: Sequence[int], take: Sequence[int], purpose: str = "halo") -> Tensor:
        plain = (x.to(torch.uint8) if x.dtype == torch.bool else x).to(self.device).contiguous()
        out = plain.new_empty((sum(take), *x.shape[1:]))
        self._do(
            purpose, plain, self.dist.all_to_all_single, out, plain,
            output_split_sizes=list(take), input_split_sizes=list(give),
        )  # fmt: skip
        return out.to(x.device, x.dtype)

    def tell(self, text: str) -> str:
        raw = text.encode() if self.first else b""
        size = int(self.sum(torch.tensor(len(raw)), "word"))
        letters = torch.zeros(size, dtype=torch.int64)
        letters[: len(raw)] = torch.tensor(list(raw), dtype=torch.int64)
        return bytes(self.sum(letters, "word").tolist()).decode()

    def close(self) -> None:
        if self.dist.is_initialized():
            self.dist.destroy_process_group()


def join(device: str = "cpu", timeout: float = 1800.0) -> Ranks:
    """Take one's place among the ranks that a launcher has started; `ALONE` where none has.

    Between processors they speak by gloo, between GPUs (`device` cuda, or auto where there is one) by nccl.

    Understood are torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR ...), and MFMARL_STORE, a file on this machine
    that ranks meet in: nothing then listens but on the loopback interface. Ranks of one machine always speak over that
    interface alone. Raises ConfigError where the launcher's words make no sense, RankLost where the others do not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch.distributed as dist

    rank, count = _number("RANK"), _number("WORLD_SIZE")
    if not 0 <= rank < count:
        raise ConfigError(f"RANK={rank} is not one of WORLD_SIZE={count} ranks.")
    if int(os.environ.get("LOCAL_WORLD_SIZE", count)) == count and not os.environ.get("GLOO_SOCKET_IFNAME"):
        os.environ["GLOO_SOCKET_IFNAME"] = loopback()
    store = os.environ.get("MFMARL_STORE")
    backend = "nccl" if torch.cuda.is_available() and device.startswith(("cuda", "auto")) else "gloo"
    if not dist.is_initialized():
        try:
            dist.init_process_group(
                backend,
                init_method=f"file://{Path(store).resolve()}" if store else "env://",
                rank=rank,
                world_size=count,
                timeout=timedelta(seconds=timeout),
            )
        except (RuntimeError, ValueError) as error:
            raise RankLost(
                f"Rank {rank} could not meet the {count - 1} others: {str(error).splitlines()[0]}"
            ) from error
    return Group()


def loopback() -> str:
    """The name of the interface that leads nowhere else: `lo` on Linux, `lo0` on macOS and the BSDs."""
    import socket

    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not a whole number: start the ranks with torchrun or --ranks.") from None


def parts(count: int, ranks: int, taken: Sequence[int] | None = None, grain: int = 1) -> list[tuple[int, int]]:
    """Where each rank's stretch of `count` things begins and ends, as even as can be.

    What is left over after an even division goes to those who have `taken` the fewest so far. `grain` things are kept
    together (the sites of a torus's row), and must divide `count`.
    """
    each, more = divmod(count // grain, ranks)
    order = sorted(range(ranks), key=lambda r: (0 if taken is None else taken[r], r))
    sizes = [each] * ranks
    for r in order[:more]:
        sizes[r] += 1
    ends, at = [], 0
    for size in sizes:
        ends.append((at, at + size * grain))
        at += size * grain
    return ends
