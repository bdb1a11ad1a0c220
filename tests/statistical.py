"""Tests whose verdict is a draw: each says how often it errs, and which planted bugs it must fail on.

    @statistical(alpha=beyond(5, 12), bugs=("hot-draws", "uniforms-lean"))
    def test_moves_are_drawn_from_the_policy() -> None: ...

`alpha` is the chance that the test fails although nothing is wrong, had its seed been chosen at random: that any of 12
numbers, counted over all its parameters, lies beyond five standard errors. With its own seed it passes or fails every time; the chance is spent when a
change redraws the noise. So a test that fails is tried a second time with noise that shares nothing with the first
(`reseeded`), and fails only if it fails again: by accident with chance alpha squared. A bug is there both times.

`bugs` are names in `tests.planted_bugs`; `make verify` plants each and demands that the test fails
(tests/test_statistical_tests.py, which also adds up the false alarms of the whole suite).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy import special

from mfmarl import random

BUDGET = 1e-4
"""What the false alarms of the whole suite may add up to."""
WORST = 0.02
"""What one test may err in its first stage."""
SECOND = 0x5EED
"""The salt of the second stage."""

Test = TypeVar("Test", bound=Callable[..., Any])


class FailedByOneSeed(UserWarning):
    """A statistical test failed with its own seed and passed with other noise: a false alarm, or too little power."""


@dataclass(frozen=True)
class Declaration:
    """What a statistical test says of itself."""

    alpha: float
    """Of one stage, all of its parameters together."""
    bugs: tuple[str, ...]
    stages: int

    @property
    def false_alarms(self) -> float:
        return self.alpha**self.stages


def beyond(sigmas: float, comparisons: int = 1, samples: int | None = None) -> float:
    """The chance that any of so many numbers lies beyond so many of its standard errors (Bonferroni, two-sided).

    `samples`: each error is itself estimated, from so many independent samples, so that Student's law holds.
    """
    tail = math.erfc(sigmas / math.sqrt(2)) if samples is None else 2 * float(special.stdtr(samples - 1, -sigmas))
    return min(1.0, comparisons * tail)


def statistical(alpha: float, bugs: tuple[str, ...], stages: int = 2) -> Callable[[Test], Test]:
    """Declare a test whose verdict is a draw. `stages=1`: its noise comes from fixtures and cannot be drawn again."""
    declared = Declaration(alpha, bugs, stages)

    def declare(test: Test) -> Test:
        @functools.wraps(test)
        def tried(*arguments: Any, **named: Any) -> None:
            try:
                test(*arguments, **named)
            except AssertionError as first:
                if stages == 1:
                    raise
                with reseeded(SECOND):
                    if "tmp_path" in named:  # what the first has left there is not the second's
                        named["tmp_path"] = Path(tempfile.mkdtemp(dir=named["tmp_path"]))
                    try:
                        test(*arguments, **named)
                    except AssertionError as second:
                        raise second from first
                warnings.warn(
                    f"{test.__name__} failed by its own seed and passed by another", FailedByOneSeed, stacklevel=2
                )

        tried.declaration = declared  # type: ignore[attr-defined]
        return tried  # type: ignore[return-value]

    return declare


# What is said of tests by reading them.

LOOKS = re.compile(
    r"\b[4-9](\.\d+)?\s*\*\s*[^=]*(error|std\(|sqrt|\*\*\s*0\.5|sigma|spread|deviation)|chi2|kstest|p_?value\s*>"
)
"""An assert that compares with a multiple of a standard error, or with a p-value."""


class Told(NamedTuple):
    """A test, as its source tells of it."""

    name: str
    """`path::test`, the path from the root of the checkout."""
    declared: Declaration | None
    looks: bool
    """Whether an assert of it looks as if its verdict were a draw."""


@functools.cache
def told(root: Path) -> list[Told]:
    """Every test function below `root`/tests, read and not run."""
    found = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                asserts = [ast.unparse(n.test) for n in ast.walk(node) if isinstance(n, ast.Assert)]
                looks = any(LOOKS.search(text) for text in asserts)
                found.append(Told(f"{path.relative_to(root)}::{node.name}", _declaration(node), looks))
    return found


def _declaration(test: ast.FunctionDef) -> Declaration | None:
    for mark in test.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "statistical":
            given = {keyword.arg: keyword.value for keyword in mark.keywords}
            alpha = given["alpha"]
            if isinstance(alpha, ast.Call):
                named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in alpha.keywords}
                level = beyond(*(ast.literal_eval(argument) for argument in alpha.args), **named)
            else:
                level = float(ast.literal_eval(alpha))
            stages = int(ast.literal_eval(given["stages"])) if "stages" in given else 2
            return Declaration(level, tuple(ast.literal_eval(given["bugs"])), stages)
    return None


@contextlib.contextmanager
def reseeded(salt: int) -> Iterator[None]:
    """Every seed that is turned into noise meanwhile gives other noise: keys, torch's and numpy's generators."""
    key_of, torch_generator, numpy_generator = random.Key.of, torch.Generator, np.random.default_rng

    def salted(seed: int) -> int:
        return random._mix_int(int(seed) ^ random._mix_int(salt)) >> 2

    class Generator(torch_generator):  # type: ignore[misc, valid-type]
        def manual_seed(self, seed: int) -> Any:
            return super().manual_seed(salted(seed))

    def default_rng(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, (int, np.integer)):
            return numpy_generator(salted(int(seed)))
        if isinstance(seed, (list, tuple)):
            return numpy_generator([salt, *seed])
        return numpy_generator(seed)

    random.Key.of = classmethod(lambda cls, seed: key_of(salted(seed)))  # type: ignore[assignment, method-assign]
    torch.Generator = Generator  # type: ignore[misc]
    np.random.default_rng = default_rng  # type: ignore[assignment]
    try:
        yield
    finally:
        random.Key.of = key_of  # type: ignore[method-assign]
        torch.Generator = torch_generator  # type: ignore[misc]
        np.random.default_rng = numpy_generator
