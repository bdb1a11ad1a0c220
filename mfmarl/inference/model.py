r"""A generative model of what an agent sees: hidden states, what they show, where they lead, what is preferred.

$$ p(o, s \mid u) = \prod_f D^f(s^f_1) \prod_{t > 1} \prod_f B^f(s^f_t \mid s^{pa(f)}_{t-1}, u_{t-1})
                    \prod_t \prod_m A^m(o^m_t \mid s^{pa(m)}_t), \qquad \tilde p(o^m) = e^{C^m} / Z $$

A discrete, partially observed Markov decision process in the letters of the field (Friston et al. 2017, "Active
inference: a process theory"; Da Costa et al. 2020, J. Math. Psych. 99, 102447): F factors of S_f hidden states, M
modalities of O_m outcomes, G controls of U_g settings. An action is one setting of every control, numbered with the
last control fastest: 0..U-1.

All tensors may lead with axes [*p] that broadcast against those of beliefs [*b]: none where every agent has the same
model, [M, 1] for one of each mind. `joint` makes of several factors the one factor of their joint states: what is an
approximation for factors (independent beliefs, predictions by marginals) is exact there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError

_TOLERANCE = 1e-5  # a column's sum may be off by rounding in float32


@dataclass(frozen=True, eq=False)
class GenerativeModel:
    """What an agent takes the world to be. Raises ConfigError for tables that do not fit together or do not normalise.

    Dependencies that are left empty are the usual ones: every modality depends on all factors, every factor on itself,
    and on the control of its number where there are as many controls as factors (or on the only one there is).
    """

    A: tuple[Tensor, ...]
    """Likelihoods A^m [*p, O_m, S_pa(m), ...]: a distribution over outcomes for every state of its factors."""
    B: tuple[Tensor, ...]
    """Transitions B^f [*p, S_f, S_pa(f), ..., U_g, ...]: over next states, for states of its factors and settings."""
    C: tuple[Tensor, ...]
    """Log-preferences C^m [*p, O_m], nats up to a constant; [*p, T, O_m] where `timed`."""
    D: tuple[Tensor, ...]
    """Beliefs D^f [*p, S_f] before anything was seen."""
    E: Tensor | None = None
    """Habits: a prior over actions [*p, U] taken at every step, or over policies [*p, U^L]; None: none."""
    A_factors: tuple[tuple[int, ...], ...] = ()
    """The factors that each modality depends on, in the order of its axes."""
    B_factors: tuple[tuple[int, ...], ...] = ()
    """The factors that each factor's next state depends on, in the order of its axes."""
    B_controls: tuple[tuple[int, ...], ...] = ()
    """The controls that each factor's next state depends on; an empty tuple: nobody moves it."""
    controls: tuple[int, ...] = ()
    """U_g, settings of every control; empty: read from B."""
    timed: bool = False
    """Whether preferences have an axis of times; the last one holds for all later times."""
    modalities: tuple[str, ...] = ()
    """Names of the modalities, for messages and pictures; empty: numbers."""
    factors: tuple[str, ...] = ()
    """Names of the factors."""
    states: tuple[tuple[str, ...], ...] = ()
    """Names of each factor's states, for pictures; empty: numbers."""

    def __post_init__(self) -> None:
        for name in ("A", "B", "C", "D"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.A or not self.B:
            raise ConfigError("A generative model needs at least one modality (A) and one factor (B).")
        if len(self.C) != len(self.A):
            raise ConfigError(f"{len(self.A)} modalities need as many preferences C, not {len(self.C)}.")
        if len(self.D) != len(self.B):
            raise ConfigError(f"{len(self.B)} factors need as many first beliefs D, not {len(self.D)}.")
        self._settle_names()
        self._settle_dependencies()
        self._check()

    # ---------------------------------------------------------------------------------------- what it has

    @property
    def sizes(self) -> tuple[int, ...]:
        """S_f: states of every factor."""
        return tuple(d.shape[-1] for d in self.D)

    @property
    def outcomes(self) -> tuple[int, ...]:
        """O_m: outcomes of every modality."""
        return tuple(c.shape[-1] for c in self.C)

    @property
    def num_states(self) -> int:
        """S: joint states."""
        return math.prod(self.sizes)

    @property
    def num_actions(self) -> int:
        """U: settings of all controls."""
        return math.prod(self.controls)

    @property
    def device(self) -> torch.device:
        return self.D[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.D[0].dtype

    def preferences(self, t: int = 0) -> tuple[Tensor, ...]:
        """C^m [*p, O_m] of a time (0: now), as given: not normalised."""
        return tuple(c[..., min(t, c.shape[-2] - 1), :] for c in self.C) if self.timed else self.C

    def settings(self) -> Tensor:
        """The setting of every control that an action stands for, int64 [U, G]."""
        return torch.cartesian_prod(*[torch.arange(u) for u in self.controls]).view(self.num_actions, -1)

    def of_action(self, f: int, action: Tensor | None = None) -> Tensor:
        """B^f by action: [*p, U, S_f, S_pa(f), ...]; of the action number of each belief, int64 [*b]: [*b, S_f, S_pa, ...]."""
        table, own = self.B[f], self.B_controls[f]
        core = 1 + len(self.B_factors[f])
        lead = table.ndim - core - len(own)
        if own:
            # Controls that it depends on, as one number, in front of its states.
            table = table.movedim(tuple(range(lead + core, table.ndim)), tuple(range(lead, lead + len(own))))
            table = table.flatten(lead, lead + len(own) - 1)
            columns = self.settings()[:, list(own)]
            sizes = [self.controls[g] for g in own]
            index = torch.zeros(self.num_actions, dtype=torch.int64)
            for column, size in zip(columns.unbind(-1), sizes, strict=True):
                index = index * size + column
            index = index.to(table.device)
        else:
            table = table.unsqueeze(lead)
            index = torch.zeros(self.num_actions, dtype=torch.int64, device=table.device)
        if action is None:
            return table.index_select(lead, index)
        chosen = index[action]
        if lead == 0:
            return table[chosen]
        batch = torch.broadcast_shapes(table.shape[:lead], chosen.shape)
        tail = table.shape[lead + 1 :]
        where = chosen.expand(batch).reshape(*batch, *[1] * (1 + len(tail))).expand(*batch, 1, *tail)
        return table.expand(*batch, *table.shape[lead:]).gather(len(batch), where).squeeze(len(batch))

    # --------------------------------------------------------------------------------------- other forms

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GenerativeModel:
        """The same model elsewhere, or in another precision."""
        return self.map(lambda x: x.to(device=device or x.device, dtype=dtype or x.dtype))

    def map(self, change: Callable[[Tensor], Tensor]) -> GenerativeModel:
        """The model with every table changed."""
        tables = {name: tuple(change(x) for x in getattr(self, name)) for name in ("A", "B", "C", "D")}
        return self.trusted(**tables, E=None if self.E is None else change(self.E))

    def trusted(self, **tables: Any) -> GenerativeModel:
        """The model with other tables of A, B, C, D, E, of the same layout, that are not checked: for every step's learning.

        Tables that may be wrong belong into `dataclasses.replace`, which checks them.
        """
        for name in tables:
            if name not in ("A", "B", "C", "D", "E"):
                raise ConfigError(f"A generative model has no table {name!r}: expected A, B, C, D or E.")
        return self._other(**{name: x if name == "E" else tuple(x) for name, x in tables.items()})

    def _other(self, **changes: Any) -> GenerativeModel:
        """A copy with other fields, not checked."""
        made = copy(self)
        for name, value in changes.items():
            object.__setattr__(made, name, value)
        return made

    def joint(self) -> GenerativeModel:
        """The model of one factor, whose S states are all factors' joint ones (the last factor fastest), and one control.

        Its beliefs need no independence and its predictions are exact; its tables hold U S^2 numbers. A model that has
        this form already is returned as it is.
        """
        if len(self.sizes) == 1 and len(self.controls) == 1 and self.B_controls == ((0,),):
            return self
        likelihoods = tuple(
            _spread(a, pa, self.sizes, 1).flatten(-len(self.sizes))
            for a, pa in zip(self.A, self.A_factors, strict=True)
        )
        n, total = len(self.sizes), None
        for f in range(n):
            # [*p, U, S_f', S_1, ..., S_n] with next states of the factor on an axis of their own.
            table = _spread(self.of_action(f), self.B_factors[f], self.sizes, 2)
            shape = (*table.shape[: -n - 1], *[self.sizes[f] if g == f else 1 for g in range(n)], *table.shape[-n:])
            table = table.reshape(shape)
            total = table if total is None else total * table
        assert total is not None
        lead = total.ndim - 2 * n
        total = total.flatten(lead, lead + n - 1).flatten(lead + 1)  # [*p, U, S', S]
        first = self.D[0]
        for d in self.D[1:]:
            first = (first.unsqueeze(-1) * d.unsqueeze(-2)).flatten(-2)
        return self._other(
            A=likelihoods,
            B=(total.movedim(-3, -1),),
            D=(first,),
            A_factors=((0,),) * len(self.A),
            B_factors=((0,),),
            B_controls=((0,),),
            controls=(self.num_actions,),
            factors=(" x ".join(self.factors),),
            states=(),
        )

    # ---------------------------------------------------------------------------------------- validation

    def _settle_names(self) -> None:
        for name, tables in (("modalities", self.A), ("factors", self.B)):
            given = tuple(getattr(self, name)) or tuple(str(i) for i in range(len(tables)))
            if len(set(given)) != len(tables):
                raise ConfigError(f"{len(tables)} {name} need as many different names, not {given}.")
            object.__setattr__(self, name, given)

    def _settle_dependencies(self) -> None:
        n = len(self.B)
        A_factors = tuple(map(tuple, self.A_factors)) or (tuple(range(n)),) * len(self.A)
        B_factors = tuple(map(tuple, self.B_factors)) or tuple((f,) for f in range(n))
        if len(A_factors) != len(self.A):
            raise ConfigError(f"A_factors must name the factors of {len(self.A)} modalities, not of {len(A_factors)}.")
        if len(B_factors) != n:
            raise ConfigError(f"B_factors must name the factors of {n} factors, not of {len(B_factors)}.")
        for what, names, lists in (("modality", self.modalities, A_factors), ("factor", self.factors, B_factors)):
            for name, own in zip(names, lists, strict=True):
                if not own or len(set(own)) != len(own) or not all(0 <= f < n for f in own):
                    raise ConfigError(
                        f"The {what} {name!r} depends on the factors {own}: name some of 0..{n - 1}, each once."
                    )
        controls = tuple(self.controls)
        B_controls = tuple(map(tuple, self.B_controls)) or (tuple((f,) for f in range(n)))
        if not self.B_controls and len(controls) == 1:
            B_controls = ((0,),) * n
        if len(B_controls) != n:
            raise ConfigError(f"B_controls must name the controls of {n} factors, not of {len(B_controls)}.")
        if not controls:
            controls = self._read_controls(B_factors, B_controls)
        for name, listed in zip(self.factors, B_controls, strict=True):
            if len(set(listed)) != len(listed) or not all(0 <= g < len(controls) for g in listed):
                raise ConfigError(
                    f"The factor {name!r} depends on the controls {listed}: name some of 0..{len(controls) - 1}, each once."
                )
        for name, value in (
            ("A_factors", A_factors),
            ("B_factors", B_factors),
            ("B_controls", B_controls),
            ("controls", controls),
        ):
            object.__setattr__(self, name, value)

    def _read_controls(
        self, B_factors: Sequence[Sequence[int]], B_controls: Sequence[Sequence[int]]
    ) -> tuple[int, ...]:
        count = 1 + max((g for own in B_controls for g in own), default=0)
        found = [1] * count
        for f, (own, parents) in enumerate(zip(B_controls, B_factors, strict=True)):
            if self.B[f].ndim < 1 + len(parents) + len(own):
                raise ConfigError(
                    f"B of factor {self.factors[f]!r} must be [next states, {len(parents)} factors', "
                    f"{len(own)} controls'], not {list(self.B[f].shape)}."
                )
            for g, size in zip(own, self.B[f].shape[self.B[f].ndim - len(own) :], strict=True):
                if found[g] not in (1, size):
                    raise ConfigError(f"Control {g} has {found[g]} settings in one factor's B and {size} in another's.")
                found[g] = size
        return tuple(found)

    def _check(self) -> None:
        sizes, everything = self.sizes, [*self.A, *self.B, *self.C, *self.D]
        if len({x.dtype for x in everything}) != 1 or not self.dtype.is_floating_point:
            raise ConfigError("All tables of a generative model must have the same floating-point type.")
        for f, d in enumerate(self.D):
            _distribution(d, 0, f"D of factor {self.factors[f]!r}", "its first beliefs")
        for m, a in enumerate(self.A):
            own = [sizes[f] for f in self.A_factors[m]]
            what = f"A of modality {self.modalities[m]!r}"
            shape = [self.outcomes[m], *own]
            if list(a.shape[a.ndim - len(shape) :]) != shape:
                raise ConfigError(
                    f"{what} must be [outcomes, states of factors {self.A_factors[m]}] = {shape}, not {list(a.shape)}."
                )
            _distribution(a, len(own), what, "outcomes in every state")
        for f, b in enumerate(self.B):
            what = f"B of factor {self.factors[f]!r}"
            inputs = [sizes[g] for g in self.B_factors[f]] + [self.controls[g] for g in self.B_controls[f]]
            shape = [sizes[f], *inputs]
            if list(b.shape[b.ndim - len(shape) :]) != shape:
                raise ConfigError(
                    f"{what} must be [next states, states of factors {self.B_factors[f]}, settings of controls "
                    f"{self.B_controls[f]}] = {shape}, not {list(b.shape)}."
                )
            _distribution(b, len(inputs), what, "next states from every state by every action")
        for m, c in enumerate(self.C):
            if self.timed and c.ndim < 2:
                raise ConfigError(f"C of modality {self.modalities[m]!r} must be [times, outcomes] where it is timed.")
            if bool(c.isnan().any()) or bool((c == math.inf).any()):
                raise ConfigError(
                    f"C of modality {self.modalities[m]!r} holds {'NaN' if bool(c.isnan().any()) else 'infinity'}: "
                    "log-preferences are finite numbers; write a large negative one for what must not be."
                )
            if bool((c == -math.inf).any()):
                raise ConfigError(
                    f"C of modality {self.modalities[m]!r} holds minus infinity: write a large negative number, such "
                    "as -1e3, for what must not be."
                )
        if self.E is not None and (bool((self.E < 0).any()) or not bool(self.E.isfinite().all())):
            raise ConfigError("Habits E are probabilities of actions or policies: finite and not negative.")
        if self.states and [len(x) for x in self.states] != list(sizes):
            raise ConfigError(f"Names of states must be {list(sizes)} of them, by factor.")


def _distribution(table: Tensor, inputs: int, what: str, over: str) -> None:
    """Raises ConfigError unless the axis in front of `inputs` last ones holds distributions."""
    axis = table.ndim - 1 - inputs
    if not bool(table.isfinite().all()):
        raise ConfigError(f"{what} holds numbers that are not finite: it must be a distribution over {over}.")
    if bool((table < 0).any()):
        raise ConfigError(f"{what} holds negative numbers: it must be a distribution over {over}.")
    total = table.sum(axis)
    wrong = (total - 1).abs() > _TOLERANCE
    if bool(wrong.any()):
        where = wrong.nonzero()[0].tolist()
        raise ConfigError(
            f"{what} must be a distribution over {over}: column {where} adds up to {float(total[tuple(where)]):.6g}, "
            "not 1; divide each column by its sum."
        )


def _spread(table: Tensor, own: Sequence[int], sizes: Sequence[int], head: int) -> Tensor:
    """[*p, *head axes, S_pa, ...] -> [*p, *head axes, S_1, ..., S_n]: constant along factors that it does not depend on."""
    first = table.ndim - len(own)
    order = sorted(range(len(own)), key=lambda i: own[i])
    table = table.permute(*range(first), *[first + i for i in order])
    shape = [sizes[f] if f in own else 1 for f in range(len(sizes))]
    table = table.reshape(*table.shape[:first], *shape)
    return table.expand(*table.shape[:first], *sizes)
