"""The errors a user can cause, each with the exit code that a script can trust.

A message is one sentence: what is wrong, where, what was expected, the nearest valid choice.
The command line prints it without a traceback and leaves with `exit_code`. Where a script may want to tell one mistake
from another, the error carries a `code`, a name that stays when the sentence is worded better: see CODES.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CODES: dict[str, str] = {
    "usage": "an option, a name or a config file cannot be used",
    "environment-fault": "an environment or a plugin broke its own contract",
    "checkpoint": "a checkpoint is damaged, foreign, or does not fit",
    "numeric": "a NaN or an infinity where a number was needed",
    "runs-failed": "some runs of a comparison failed; the others are kept",
    "locked": "another process is writing this folder",
    "resource": "disk, memory or permissions",
    "claim-refuted": "what was asserted does not hold",
    "rank-lost": "a process that shared the population died or fell silent",
    "bad-name": "a name that cannot name a file on every system",
    "config-changed": "a run is to go on with other options than it was begun with",
    "damaged-metrics": "a row of a metrics.jsonl cannot be read, or the file was changed",
    "filesystem": "a file system that cannot lock, sync or rename: a kill could cost a checkpoint there",
    "link": "a symbolic link where a folder of runs was expected",
    "no-run": "there is no run in that folder",
    "not-a-run": "a folder or file that is not a run's, left as it was",
    "run-deleted": "the run's folder was deleted or moved while it was written; its last state is beside it",
    "run-exists": "the folder holds a run already",
    "interrupted": "the command was asked to stop; what was done is kept",
}
"""Every code of an error and what it means. A code is never given another meaning."""


class MfmarlError(Exception):
    """Anything that is the user's to mend. `exit_code` is what the command line returns.

    `code` is one of CODES; without one it is that of the class.
    """

    exit_code = 1
    code = "usage"

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(message)
        if code:
            self.code = code


class ConfigError(MfmarlError):
    """An option, a name or a config file that cannot be used."""

    exit_code = 2
    code = "usage"


class EnvironmentFault(MfmarlError):
    """An environment (or a plugin) that broke its own contract."""

    exit_code = 3
    code = "environment-fault"


class CheckpointError(MfmarlError):
    """A checkpoint that is damaged, foreign, or does not fit."""

    exit_code = 4
    code = "checkpoint"


class NumericFault(MfmarlError):
    """A NaN or an infinity where a number was needed."""

    exit_code = 5
    code = "numeric"


class RunsFailed(MfmarlError):
    """Some runs of a comparison failed; the others are kept."""

    exit_code = 6
    code = "runs-failed"


class RunLocked(MfmarlError):
    """Another process is writing this run folder."""

    exit_code = 7
    code = "locked"


class ResourceFault(MfmarlError):
    """Disk, memory or permissions."""

    exit_code = 8
    code = "resource"


class RankLost(MfmarlError):
    """One of the processes that shared a population died or fell silent; the others stopped."""

    exit_code = 10
    code = "rank-lost"


class ClaimRefuted(MfmarlError):
    """`compare --assert` did not hold."""

    exit_code = 9
    code = "claim-refuted"


_SHOWN = 24  # choices that one sentence names


def nearest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `choices`, else the choices themselves."""
    known = sorted(choices)
    lowered = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close = close or [lowered[word] for word in difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)]
    if close:
        return f" Did you mean {close[0]!r}?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN + 1 else ""
    return f" Known: {', '.join(known[:_SHOWN] if more else known)}{more}." if known else ""
