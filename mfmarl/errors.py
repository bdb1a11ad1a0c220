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
    "ambiguous-option": "an option that both the environment and the agents have",
    "bounds": "a number, a text or a list beyond what an option may hold, NaN and infinity among them",
    "not-an-environment": "what was named can be imported, but is no environment",
    "missing-extra": "a package that is not installed, and is an extra of this one",
    "missing-option": "an option that must be given",
    "no-device": "a device that is not here, a GPU for the most part, or that nobody knows",
    "no-file": "a file that is not there, is no plain file, is too large or cannot be read",
    "plugin": "an installed plugin cannot be imported, or is not what its entry point says",
    "syntax": "a file that is no TOML, or larger, deeper or stranger than a configuration may be",
    "unknown-option": "an option that nobody has, or a table that no configuration has",
    "unknown-name": "an environment, agent, solver, command or choice that nobody knows",
    "untrusted-file": "a Python file that only a configuration names, not the user",
    "wrong-type": "a value of another type than the option's: true for 1, a text for a number",
    "environment-fault": "an environment or a plugin broke its own contract",
    "checkpoint": "a checkpoint is damaged, foreign, or does not fit",
    "damaged-checkpoint": "a checkpoint, or what names it, is not as it was written",
    "foreign-checkpoint": "a file that is no checkpoint of this package: nothing in it was run",
    "misfit-checkpoint": "a checkpoint of another agent, environment or population than the run's",
    "newer-checkpoint": "a checkpoint of a newer version than this one",
    "nonfinite-checkpoint": "a checkpoint with NaN or infinity in it",
    "unstorable-state": "a state that no checkpoint can hold",
    "numeric": "a NaN or an infinity where a number was needed",
    "nonfinite-state": "a NaN or an infinity in what was to be saved: it is not, and older checkpoints stay",
    "runs-failed": "some runs of a comparison failed; the others are kept",
    "unequal-runs": "runs that are to be compared had other options, steps or versions than each other",
    "unfinished-runs": "runs that are to be compared are not finished, or not begun",
    "worker-lost": "a process that carried out a run, or hosted an environment, died or gave no sign of life",
    "locked": "another process is writing this folder",
    "resource": "disk, memory or permissions",
    "disk-failed": "the disk could not do what it was asked: write, sync or rename",
    "disk-full": "no room on the disk, or beyond a quota or a limit on the size of a file",
    "folder-gone": "the folder to be written in is no longer there, or is no folder",
    "not-writable": "a folder or file that may not be written",
    "claim-refuted": "what was asserted does not hold",
    "rank-lost": "a process that shared the population died or fell silent",
    "bad-name": "a name that cannot name a file on every system",
    "config-changed": "a run is to go on with other options than it was begun with",
    "damaged-metrics": "a row of a metrics.jsonl cannot be read, or the file was changed",
    "filesystem": "a file system that cannot lock, sync or rename: a kill could cost a checkpoint there",
    "link": "a symbolic link where a folder of runs was expected",
    "no-checkpoint": "a run has no checkpoint to go on from",
    "no-run": "there is no run in that folder",
    "not-a-run": "a folder or file that is not a run's, left as it was",
    "run-deleted": "the run's folder was deleted or moved while it was written; its last state is beside it",
    "run-exists": "the folder holds a run already",
    "environment-died": "a process that hosts an environment ended",
    "environment-hangs": "an environment did not answer in time and was stopped",
    "environment-raised": "an environment's own code raised an exception",
    "bad-mask": "a mask of legal actions is missing, or not one of zeros and ones for every action",
    "memory": "the population, or what is learned from it, does not fit in memory",
    "nan-action": "an agent chose an action that is no number",
    "nan-energy": "an agent's energies of its actions are not numbers: nothing can be drawn from them",
    "nan-gradient": "the gradient of a loss is not a number; no step was taken",
    "nan-loss": "what was to be learned from is not a number; no step was taken",
    "nan-observation": "an environment showed an observation that is not finite",
    "nan-reward": "an environment paid a reward that is not finite",
    "nan-weights": "an agent's weights are not numbers any more; the last checkpoint's are",
    "no-legal-action": "an agent that is asked to act has no legal action",
    "reward-bound": "an environment paid a reward beyond the bound of the run",
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


def printable(text: str) -> str:
    """A text of somebody else's as a terminal may see it: no control character but the end of a line acts there."""
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)
