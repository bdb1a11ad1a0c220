r"""What a plan is worth: the terms of expected free energy, and which of them count, computed how.

$$ G = \mathrm{risk} + \mathrm{ambiguity} - \mathrm{novelty}
     = -\mathrm{pragmatic} - \mathrm{state\ information} - \mathrm{parameter\ information}, \qquad g = -G $$

(Friston et al. 2017, "Active inference: a process theory", eq. 9; Da Costa et al. 2020.) G is a cost; g = -G is the
value that planning adds up and maximises. Published codes differ in how they approximate the terms, hence the switches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from torch import Tensor

from mfmarl.options import Bounds, check_numbers

StateInformation = Literal["per_modality", "joint", "none"]
ParameterInformation = Literal["none", "exact", "pymdp", "spm"]


@dataclass(frozen=True)
class Objective:
    """Which terms count. The default is expected free energy without learning; `Objective("none")` is expected utility."""

    state_information: StateInformation = "per_modality"
    """What an observation is expected to tell of hidden states: the sum over modalities, as pymdp and SPM have it (it
    counts twice what two modalities both tell); of all modalities jointly; or nothing."""
    parameter_information: ParameterInformation = "none"
    """What a step is expected to tell of A and B, from Dirichlet counts: exact, or as pymdp or SPM approximate it."""
    state_weight: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    """Times the state information: 1 in theory."""
    parameter_weight: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    """Times the parameter information: 1 in theory."""
    normalise: bool = True
    """Whether preferences are ln softmax(C), as the identity with risk wants; else C itself, as pymdp has it: every g is
    shifted by the same number for every step, and the policy is the same."""

    def __post_init__(self) -> None:
        check_numbers(self)


class Terms(NamedTuple):
    """The parts of expected free energy of beliefs [*b], nats. risk + ambiguity = -pragmatic - state_information
    (per modality, normalised)."""

    pragmatic: Tensor
    """Expected log-preference of outcomes."""
    state_information: Tensor
    """As the objective has it, not weighted; 0 where it does not count."""
    parameter_information: Tensor
    risk: Tensor
    """sum_m KL[Q(o^m) || P~(o^m)]."""
    ambiguity: Tensor
    """sum_m E_Q H(A^m[., s])."""

    def value(self, objective: Objective) -> Tensor:
        """g = -G."""
        return (
            self.pragmatic
            + objective.state_weight * self.state_information
            + objective.parameter_weight * self.parameter_information
        )


class Plan(NamedTuple):
    """What planning found for beliefs [*b]."""

    value: Tensor
    """g [*b, U] of every first action, habits included, such that softmax(gamma g) is its probability at the precision
    planned with: of open-loop policies the (1 / gamma) log-sum-exp over what may follow."""
    policies: Tensor | None = None
    """log Q(pi) [*b, U, U, ...], one axis for every step of an open-loop policy; None where nothing is enumerated."""
    terms: Terms | None = None
    """Of the first step, each [*b, U]."""
