"""G10: long runs and long comparisons. What grows is told by a robust line through what the system says of this process."""

from __future__ import annotations

import gc
import threading
from typing import NamedTuple


class Use(NamedTuple):
    """What a process holds."""

    files: int
    threads: int
    children: int
    memory: int
    """Resident bytes."""


def use_now() -> Use:
    """Of this process. Raises OSError where the system does not say."""
    import psutil

    gc.collect()
    me = psutil.Process()
    files = me.num_fds() if hasattr(me, "num_fds") else me.num_handles()
    return Use(files, max(me.num_threads(), threading.active_count()), len(me.children(recursive=True)), me.memory_info().rss)
