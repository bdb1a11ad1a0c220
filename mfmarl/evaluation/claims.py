"""Claims that a script can check: `--assert "mfq > iql"`.

    mfq > iql                                 mfq scores higher (in every environment compared), Holm-corrected
    ising: mfq > iql                          in that environment
    mfq >= iql within 5%                      not worse by more than the margin
    mfq ~ mfac within 0.02                    equal: the whole interval of the difference lies within the margin
    mfq magnetisation = theory                the known answer lies within 5 standard errors of what was measured
    mfq magnetisation = theory within 0.02    the whole interval lies within 0.02 of the known answer
    mfq > 0.9                                 the whole interval lies above a number

A side is an agent, perhaps with a measure (otherwise the headline score), a number, or `theory`. Without a margin, `~` and `>=` allow 5 % of the
larger score. A claim needs three runs on each side; absence of evidence never makes one hold.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from mfmarl.errors import ConfigError, nearest
from mfmarl.evaluation import results, statistics, summary
from mfmarl.evaluation.results import Comparison, Scores
from mfmarl.evaluation.statistics import FEWEST, Difference

SIGMAS = 5.0
"""Standard errors between measurement and theory that still count as agreement, where no margin is given."""
_OPERATORS = (">=", "<=", ">", "<", "~", "=")
_SPLIT = re.compile(r"\s(>=|<=|>|<|~|=|==)\s")


@dataclass(frozen=True)
class Side:
    """One side of a claim: an agent and perhaps a measure, or a number, or theory."""

    agent: str = ""
    measure: str = ""
    number: float | None = None

    @property
    def is_theory(self) -> bool:
        return not self.agent and self.number is None


@dataclass(frozen=True)
class Claim:
    """A parsed claim; `environment` empty means every one."""

    text: str
    environment: str
    left: Side
    operator: str
    right: Side
    margin: float | None = None
    relative: bool = False
    """The margin is a share (of the known answer or the larger score), not an amount."""


def parse_claim(text: str) -> Claim:
    """A claim from its text. Raises ConfigError with what was expected."""
    environment, rest = _environment(text.strip())
    rest, margin, relative = _margin(rest, text)
    parts = _SPLIT.split(f" {rest} ")
    if len(parts) != 3:
        raise ConfigError(
            f"{text!r} is not a claim: expected one operator ({' '.join(_OPERATORS)}) with spaces round it, as in 'ising: mfq > iql'."
        )
    operator = "=" if parts[1] == "==" else parts[1]
    left, right = _side(parts[0], text), _side(parts[2], text)
    if not left.agent:
        raise ConfigError(f"{text!r} is not a claim: its left side must be an agent, as in 'mfq > iql' or 'mfq > 0.9'.")
    if operator == "=" and right.agent:
        raise ConfigError(
            f"{text!r}: two agents are never exactly equal; write '{left.agent} ~ {right.agent} within 5%'."
        )
    return Claim(text.strip(), environment, left, operator, right, margin, relative)


def evaluate(claim: Claim, comparison: Comparison) -> tuple[bool, str]:
    """Whether the claim holds in that comparison, and a sentence with the numbers.

    Raises ConfigError for an unknown environment, agent, measure, or a theory that is not known.
    """
    if claim.environment and claim.environment not in comparison.environments:
        hint = nearest(claim.environment, comparison.environments)
        raise ConfigError(f"The claim {claim.text!r} names an environment that was not compared.{hint}")
    for side in (claim.left, claim.right):
        if side.agent and side.agent not in comparison.agents:
            hint = nearest(side.agent, comparison.agents)
            raise ConfigError(f"The claim {claim.text!r} names {side.agent!r}, which was not compared.{hint}")
    environments = [claim.environment] if claim.environment else list(comparison.environments)
    judged = _two_agents if claim.right.agent else _one_agent
    verdicts = judged(claim, comparison, environments)
    return all(holds for holds, _ in verdicts), " ".join(sentence for _, sentence in verdicts)


def _environment(text: str) -> tuple[str, str]:
    # 'ising: mfq > iql'; the colon of a variant (mfq:bins=9) has no space behind it.
    head, colon, rest = text.partition(": ")
    return (head.strip(), rest.strip()) if colon and not _SPLIT.search(head) else ("", text)


def _margin(text: str, whole: str) -> tuple[str, float | None, bool]:
    head, found, tail = text.partition(" within ")
    if not found:
        return text, None, False
    relative = tail.strip().endswith("%")
    value = _float(tail.strip().removesuffix("%").strip())
    if value is None or not 0 <= value < math.inf:
        raise ConfigError(f"{whole!r}: 'within' takes an amount or a share, as in 'within 0.02' or 'within 5%'.")
    return head, value / 100 if relative else value, relative


def _side(text: str, whole: str) -> Side:
    words = text.split()
    if words == ["theory"]:
        return Side()
    if len(words) == 1 and _float(words[0]) is not None:
        return Side(number=_float(words[0]))
    if not 1 <= len(words) <= 2:
        raise ConfigError(
            f"{whole!r}: a side is an agent, an agent and a measure, a number, or 'theory'; not {text.strip()!r}."
        )
    return Side(words[0], words[1] if len(words) == 2 else "")


def _float(text: str) -> float | None:
    try:
        value = float(text.replace("−", "-"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _scores(comparison: Comparison, environment: str, side: Side) -> Scores:
    if not side.measure:
        return results.scores(comparison, environment, side.agent)
    column = results.measure_column(comparison, environment, side.measure)
    if not column:
        known = {c.partition("/")[2] for r in comparison.within(environment) for c in r.columns if "/" in c}
        raise ConfigError(f"No run of {environment} measured {side.measure!r}.{nearest(side.measure, known)}")
    return results.measured(comparison, environment, side.agent, side.measure)


def _two_agents(claim: Claim, comparison: Comparison, environments: list[str]) -> list[tuple[bool, str]]:
    sides = [
        (_scores(comparison, e, claim.left), _scores(comparison, e, _completed(claim.right, claim.left)))
        for e in environments
    ]
    found = [summary.paired_difference(a, b) for a, b in sides]
    adjusted = iter(statistics.holm([d.p for d in found if d is not None]))
    verdicts = []
    for environment, d, (a, b) in zip(environments, found, sides, strict=True):
        if d is None:
            verdicts.append((False, f"{environment}: a side of '{claim.text}' has no finished run."))
            continue
        p = next(adjusted)
        margin = _allowed(claim, max(abs(_iqm(a)), abs(_iqm(b))), default=summary.EQUAL)
        holds = d.runs >= FEWEST and _holds(claim.operator, d, p, margin)
        text = f"{environment}: {_name(claim.left)} − {_name(claim.right)} = {summary.signed(*d[:3])} "
        text += f"{summary.interval(d.low, d.high)}, {_runs(d.runs)}"
        text += f", {summary.p_value(p)}" if claim.operator in "><" else f", margin {summary.number(margin)}"
        verdicts.append((holds, text + _few(d.runs) + _broken(claim, (a, b)) + "."))
    return verdicts


def _one_agent(claim: Claim, comparison: Comparison, environments: list[str]) -> list[tuple[bool, str]]:
    verdicts = []
    for environment in environments:
        target, named = _target(claim, comparison, environment)
        scores = _scores(comparison, environment, claim.left)
        if claim.right.is_theory:
            measure = claim.left.measure or comparison.headline(environment)
            scores = results.measured(comparison, environment, claim.left.agent, measure, settled=True)
        if not len(scores.values):
            verdicts.append((False, f"{environment}: no run of {claim.left.agent} finished."))
            continue
        e = statistics.estimate([scores.values])
        margin = _allowed(claim, abs(target), default=0.0)
        if claim.operator in ("=", "~") and claim.margin is None:
            margin = SIGMAS * statistics.standard_error(scores.values)
            holds, how = abs(e.value - target) <= margin, f"{SIGMAS:g} standard errors are {summary.number(margin)}"
        elif claim.operator in ("=", "~"):
            holds, how = target - margin <= e.low and e.high <= target + margin, f"margin {summary.number(margin)}"
        else:
            d = Difference(e.value - target, e.low - target, e.high - target, 0.0, e.runs, False)
            above = claim.operator in (">", ">=")
            holds = d.low > -margin if above else d.high < margin
            how = "the whole interval must lie " + ("above" if above else "below")
        text = f"{environment}: {_name(claim.left)} {summary.number(e.value, e.high - e.low)} {summary.interval(e.low, e.high)} against "
        text += f"{named} {summary.number(target)}, {_runs(e.runs)}; {how}"
        verdicts.append((bool(holds) and e.runs >= FEWEST, text + _few(e.runs) + _broken(claim, (scores,)) + "."))
    return verdicts


def _target(claim: Claim, comparison: Comparison, environment: str) -> tuple[float, str]:
    if claim.right.number is not None:
        return claim.right.number, "the number"
    known = comparison.references(environment, claim.left.agent)
    measure = claim.left.measure or comparison.headline(environment).partition("/")[2]
    answer = known.get(measure) or known.get(measure.partition("/")[2])
    if answer is None:
        raise ConfigError(f"{environment} publishes no known answer for {measure!r}.{nearest(measure, known)}")
    return answer.value, f"theory ({answer.kind})"


def _completed(right: Side, left: Side) -> Side:
    """`mfq magnetisation > iql` compares the same measure."""
    return right if right.measure else Side(right.agent, left.measure)


def _holds(operator: str, d: Difference, p: float, margin: float) -> bool:
    if operator == ">":
        return d.value > 0 and p < 1 - statistics.LEVEL
    if operator == "<":
        return d.value < 0 and p < 1 - statistics.LEVEL
    if operator == ">=":
        return d.low >= -margin
    if operator == "<=":
        return d.high <= margin
    return -margin <= d.low and d.high <= margin


def _allowed(claim: Claim, scale: float, default: float) -> float:
    if claim.margin is None:
        return default * scale
    return claim.margin * scale if claim.relative else claim.margin


def _iqm(scores: Scores) -> float:
    return float(statistics.interquartile_mean(np.asarray(scores.values)))


def _name(side: Side) -> str:
    return f"{side.agent} {side.measure}".strip()


def _runs(runs: int) -> str:
    return f"{runs} run{'s' if runs != 1 else ''}"


def _few(runs: int) -> str:
    return "" if runs >= FEWEST else f" (a claim needs {FEWEST})"


def _broken(claim: Claim, sides: tuple[Scores, ...]) -> str:
    names = (claim.left.agent, claim.right.agent)
    told = [f"{s.failed} of {s.planned} runs of {n} failed" for n, s in zip(names, sides, strict=False) if s.failed]
    return f"; {', '.join(told)}" if told else ""
