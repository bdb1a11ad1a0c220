"""The errors a user can cause, each with the exit code that a script can trust.

A message is one sentence: what is wrong, where, what was expected, the nearest valid choice.
The command line prints it without a traceback and leaves with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MfmarlError(Exception):
    """Anything that is the user's to mend. `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(MfmarlError):
    """An option, a name or a config file that cannot be used."""

    exit_code = 2


class EnvironmentFault(MfmarlError):
    """An environment (or a plugin) that broke its own contract."""

    exit_code = 3


class CheckpointError(MfmarlError):
    """A checkpoint that is damaged, foreign, or does not fit."""

    exit_code = 4


class NumericFault(MfmarlError):
    """A NaN or an infinity where a number was needed."""

    exit_code = 5


class RunsFailed(MfmarlError):
    """Some runs of a comparison failed; the others are kept."""

    exit_code = 6


class RunLocked(MfmarlError):
    """Another process is writing this run folder."""

    exit_code = 7


class ResourceFault(MfmarlError):
    """Disk, memory or permissions."""

    exit_code = 8


class RankLost(MfmarlError):
    """One of the processes that shared a population died or fell silent; the others stopped."""

    exit_code = 10


class ClaimRefuted(MfmarlError):
    """`compare --assert` did not hold."""

    exit_code = 9


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
