"""What a check of rules writes down: each fault once, with its first place and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mfmarl.testing.finding import Finding, Level

REMEDIES = {
    "acting-shape": "Return bool [E, N], or None where all that live act.",
    "acting-type": "Return bool [E, N], or None where all that live act.",
    "alive-shape": "Return bool [E, N], or None where nobody dies.",
    "alive-type": "Return bool [E, N], or None where nobody dies.",
    "copies-mix": "Draw noise with mfmarl.random from key and ids, and reduce along the agents' axis alone, never the copies'.",
    "crowd-differs": "Let step() draw from the kernel that outcomes() tells.",
    "dead-asked": "Let acting() be False where alive() is.",
    "done-shape": "Return bool [E].",
    "done-type": "Return bool [E].",
    "draws-global-noise": "Replace torch.rand and its like by mfmarl.random.uniform(key, ids).",
    "initial-distribution": "Let initial() be a distribution: not negative, and 1 in all.",
    "kernel-not-a-distribution": "Let the probabilities of every state and action add up to 1.",
    "legal-shape": "Return bool [E, N, A], or None where every action is legal.",
    "legal-type": "Return bool [E, N, A], or None where every action is legal.",
    "measure-not-finite": "Let a mean over nobody be 0, or some other number.",
    "measure-shape": "Return one number for each copy, float32 [E].",
    "measure-type": "Return a dictionary of float32 [E].",
    "measures-change": "Tell the same names at every step.",
    "no-legal-action": "Leave everyone who acts an action: one that does nothing, if need be.",
    "no-spec": "Return a mfmarl.population.spec.Spec.",
    "not-a-function": "Let the answer follow from the arguments alone: no generator, clock or counter beside them.",
    "not-a-named-tuple": "Declare `class State(NamedTuple)` with a tensor [E, ...] in each field.",
    "not-a-pair": "Return (state, reward).",
    "not-frozen": "Write @dataclass(frozen=True) above the class.",
    "observation-not-finite": "Look for a division by 0 or a logarithm of 0 in observe().",
    "observation-outside-space": "Widen the observation space in spec(), or scale what observe() shows.",
    "observation-shape": "Return [E, N, *O] with O of the observation space.",
    "observation-type": "Return float32 (a Box) or int64 (a Discrete space): `.to(torch.float32)`.",
    "own-state-not-per-agent": "Name only fields [E, N, ...] of the state in own_state().",
    "picture-shape": "Return [H, W, 3].",
    "picture-type": "Return uint8, 0 to 255.",
    "position-not-finite": "Keep positions finite.",
    "position-shape": "Return float32 [E, N, D].",
    "position-type": "Return float32 [E, N, D].",
    "reference-not-finite": "Leave out what is not known.",
    "reference-not-measured": "Name it as measure() does, or `reward`.",
    "reference-type": "Return {name: Known(value, source)}.",
    "reference-without-source": "Name the paper and equation, or the calculation.",
    "remembers": "Keep nothing on self that playing changes: what lasts belongs into the state.",
    "revival": "Let alive() be False for the rest of the episode once it was.",
    "reward-not-finite": "Look for a division by 0 or a logarithm of 0 in step().",
    "reward-shape": "Return float32 [E, N], 0 for those who are paid nothing.",
    "reward-type": "Return float32: `.to(torch.float32)`.",
    "rule-raises": "See the last line of its traceback.",
    "rewards-shape": "Let rewards() broadcast to [*b, G, S, A].",
    "rewards-not-finite": "Look for a division by 0 or a logarithm of 0 in rewards().",
    "spec-changes": "Let spec() follow from the options alone.",
    "standing-outside-space": "Let standing() name actions of the action space.",
    "standing-shape": "Return the action in force of every agent, [E, N] or [E, N, D].",
    "standing-type": "Return the action in force of every agent, a tensor.",
    "state-changes-shape": "Keep shapes and types of the state from step to step.",
    "state-not-tensors": "Hold every part of the state as a tensor [E, ...].",
    "state-shape": "Give every part of the state the copies as its first axis.",
    "successor-impossible": "Let step() draw from the kernel that outcomes() tells.",
    "successor-outside": "Number successors from 0 to S - 1.",
    "value-changes-later": "Return a new tensor in every step: `.clone()`.",
    "writes-action": "Do not write into arguments: `action = action.clone()` first, or no in-place operation.",
    "writes-ids": "Do not write into arguments.",
    "writes-state": "Make a new state: `state._replace(x=...)`, and no in-place operation on its tensors.",
    "wrong-device": "Make tensors on ids.device.",
}
"""What to do, by code."""


class RuleRaised(Exception):
    """A rule raised: it is noted, and nothing more can be asked."""


class Notes:
    """The findings so far."""

    def __init__(self, name: str, told: Callable[[str], None] = lambda where: None) -> None:
        self.name, self.told = name, told
        self._found: dict[str, Finding] = {}

    def error(self, code: str, message: str, where: str = "") -> None:
        """Noted once."""
        self._note("error", code, message, where)

    def warning(self, code: str, message: str, where: str = "") -> None:
        """Noted once."""
        self._note("warning", code, message, where)

    def _note(self, level: Level, code: str, message: str, where: str) -> None:
        if code not in self._found:
            self._found[code] = Finding(level, code, f"{self.name}: {message}", REMEDIES[code], where)

    def ask(self, rule: str, call: Callable[[], Any], step: int = 0) -> Any:
        """What the rule answers. Raises RuleRaised once it is noted that it raised."""
        self.told(f"{rule}() of the rules on tensors")
        try:
            with torch.no_grad():
                return call()
        except Exception as error:
            self.error("rule-raises", f"{rule}() raised {type(error).__name__} at step {step}: {error}", rule)
            raise RuleRaised from error

    def sorted(self) -> list[Finding]:
        """Errors first."""
        return sorted(self._found.values(), key=lambda finding: finding.level)


def said(value: Any, most: int = 60) -> str:
    """A value in a sentence."""
    text = repr(value) if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
