"""Whether a checkpoint is one of this run: every name, shape, type and number, before anything is changed.

What is expected is what the run itself would save now, a run just built: shapes of weights, environments and fields are
in its own state. What grows as a run goes on (memories, optimisers, logs of episodes, sums of the open interval) is asked
of the part that writes it. All differences are told at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, MfmarlError, RankLost
from mfmarl.learning.checkpoint import Checkpoint
from mfmarl.learning.episode import under
from mfmarl.learning.memory import Replay, Rollout
from mfmarl.learning.players import Player
from mfmarl.learning.training import Training
from mfmarl.population.simulation import Simulation

PLAIN: dict[str, tuple[type, ...]] = {
    "agent_steps": (int,),
    "tick": (int,),
    "wall": (int, float),
    "cpu": (int, float),
    "metrics": (int,),
    "waiting": (list,),
    "remarks": (list,),
}
"""The scalar state of a run and its types; all numbers are at least 0."""
_ALWAYS = ("agent_steps", "tick", "wall", "cpu")
_TOLD_AT_ONCE = 40
_GENERATOR = len(torch.Generator().get_state())

Values = Callable[[Tensor], str]
"""What is wrong with the numbers in a tensor; empty: nothing."""


def _anything(_: Tensor) -> str:
    return ""


@dataclass(frozen=True)
class Want:
    """What one tensor must be. A length of None may be any."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    needed: bool = True
    may_be_nan: bool = False
    values: Values = _anything


@dataclass
class Fit:
    """What a checkpoint of a run must hold."""

    names: dict[str, Want] = field(default_factory=dict)
    beginnings: dict[str, Want] = field(default_factory=dict)
    """By the beginning of their names: any number of tensors, each such."""
    together: list[Callable[[Mapping[str, Tensor]], Iterator[str]]] = field(default_factory=list)
    """What several tensors must agree on; asked once each of them is well by itself."""
    free: tuple[str, ...] = ()
    """Beginnings of names of which nothing but finite numbers is asked."""

    def misfits(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Every difference, one sentence each; the numbers themselves are not looked at."""
        told = [f"{name} is missing" for name, want in self.names.items() if want.needed and name not in tensors]
        for name, tensor in tensors.items():
            want = self._of(name)
            if want is None:
                told += [] if name.startswith(self.free) and self.free else [f"{name} is not wanted"]
                continue
            if not _alike(tensor.shape, want.shape):
                told.append(f"{name} has shape {_shown(tensor.shape)}, expected {_shown(want.shape)}")
            if tensor.dtype != want.dtype:
                told.append(f"{name} is {_short(tensor.dtype)}, expected {_short(want.dtype)}")
        if not told:
            told = [line for rule in self.together for line in rule(tensors)]
        return told

    def wrong_values(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Every tensor whose numbers cannot be those of a run, of tensors that fit."""
        told = []
        for name, tensor in tensors.items():
            want = self._of(name)
            reason = want.values(tensor) if want is not None else ""
            told += [f"{name} {reason}"] if reason else []
        return told

    def nonfinite(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Every tensor with NaN or infinity where there may be none."""
        told = []
        for name, tensor in tensors.items():
            want = self._of(name)
            if tensor.is_floating_point():
                bad = tensor.isinf() if want is not None and want.may_be_nan else ~tensor.isfinite()
                told += [f"{name} holds NaN or infinity"] if bool(bad.any()) else []
        return told

    def refusals(self, found: Checkpoint) -> tuple[list[str], list[str]]:
        """Why a checkpoint is not of this run, and where it holds NaN or infinity."""
        told = _plain_misfits(found) + self.misfits(found.tensors)
        if told:
            return told, []
        return self.wrong_values(found.tensors), self.nonfinite(found.tensors)

    def _of(self, name: str) -> Want | None:
        if name in self.names:
            return self.names[name]
        return next((want for start, want in self.beginnings.items() if name.startswith(start)), None)


def about(training: Training) -> dict[str, Any]:
    """Which environment, agents and population a run is of: what a checkpoint says of itself."""
    env = training.episode.env
    return {
        "environment": type(env.env).__name__ if isinstance(env, Simulation) else env.layout.name,  # type: ignore[attr-defined]
        "agents": {p.name: type(p.agent).__name__ for p in training.players},
        "num_agents": env.division.spec.num_agents,
        "copies": env.division.copies,
    }


def load_into(training: Training, found: Checkpoint, *, allow_nonfinite: bool = False, same_seed: bool = True) -> None:
    """Let a training that was just built go on where a checkpoint is.

    All of it is checked before anything is changed. `allow_nonfinite` takes NaN and infinities, to look at what went
    wrong; `same_seed=False` takes the noise of another seed. All ranks of a divided run must call it.

    Raises CheckpointError with every difference at once; RankLost on ranks that are told so by the first.
    """
    check(training, found, allow_nonfinite, same_seed)
    try:
        training.load_state_dict(found.tensors, found.state)
    except MfmarlError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{found.path} does not fit this run ({type(error).__name__}: {str(error)[:200]}); "
            "it was made by another agent, environment or version: start a new run.",
            "misfit-checkpoint",
        ) from error


def check(training: Training, found: Checkpoint, allow_nonfinite: bool = False, same_seed: bool = True) -> None:
    """Raises CheckpointError unless a checkpoint is one that this run, just built, could have written later."""
    fit = expected(training, same_seed)  # all ranks have a part in it
    ranks = training.ranks
    told, nonfinite = fit.refusals(found) if ranks.first else ([], [])
    if ranks.first and not told:
        this = about(training)
        told = [
            f"it says {n} {found.of[n]!r}, and this run has {this[n]!r}"
            for n in this
            if found.of.get(n, this[n]) != this[n]
        ]
    nonfinite = [] if allow_nonfinite else nonfinite
    if ranks.agree(bool(told or nonfinite)) and not told and not nonfinite:
        raise RankLost(f"Rank {ranks.rank} of {ranks.count} stopped: the checkpoint does not fit the first rank's run.")
    if told:
        raise CheckpointError(
            f"{found.path} does not fit this run: {_listed(told)}. {_of_both(found.of, about(training))}",
            "misfit-checkpoint",
        )
    if nonfinite:
        raise CheckpointError(
            f"{found.path} is of a run that diverged: {_listed(nonfinite)}. Use an older checkpoint; to look at this one all "
            "the same: --allow-nonfinite.",
            "nonfinite-checkpoint",
        )


def _of_both(of: Mapping[str, Any], this: Mapping[str, Any]) -> str:
    end = "start a new run for these options."
    if not of:
        return f"It was made by another agent, environment or population; {end}"
    return f"It is of {_named(of)}, this run of {_named(this)}; {end}"


def _named(of: Mapping[str, Any]) -> str:
    agents = of.get("agents")
    table = agents if isinstance(agents, dict) else {}
    told = ", ".join(str(kind) if team == "all" else f"{team}={kind}" for team, kind in table.items())
    copies = of.get("copies")
    return f"{told[:200]} in {str(of.get('environment'))[:60]} with {of.get('num_agents')} agents in {copies} " + (
        "copy" if copies == 1 else "copies"
    )


def _plain_misfits(found: Checkpoint) -> list[str]:
    state = found.state
    told = [f"the number {name} is missing" for name in _ALWAYS if name not in state]
    told += [f"the value {name[:60]!r} is not wanted" for name in state if name not in PLAIN]
    for name, kinds in PLAIN.items():
        if name in state and type(state[name]) not in kinds:
            told.append(f"{name} is {type(state[name]).__name__}, expected {kinds[-1].__name__}")
        elif isinstance(state.get(name), int | float) and not (math.isfinite(state[name]) and 0 <= state[name] < 2**63):
            told.append(f"{name} is {state[name]!r:.40}, expected a number from 0 to 2^63 - 1")
    if not told and state["tick"] != found.step:
        told.append(f"it says step {state['tick']} inside and {found.step} outside")
    tick = found.tensors.get("train.tick")
    if not told and tick is not None and tick.numel() == 1 and int(tick) != found.step:
        told.append(f"its population is at step {int(tick)}, and it at {found.step}")
    return told


# ---------------------------------------------------------------------------------------- what a run expects


def expected(training: Training, same_seed: bool = True) -> Fit:
    """What every checkpoint of this run, just built, must hold."""
    fit = Fit()
    fresh, _ = training.state_dict()
    grows = ("log.", "pending.", "tally.", "numbers.", ".memory.", ".optimiser.")
    for name, tensor in fresh.items():
        if not any(part in name for part in grows):
            fit.names[name] = _kept(training, name, tensor, same_seed)
    for name, tensor in fresh.items():
        if ".env.log." in name:
            low, high = (-1, training.episode.env.spec.num_actions - 1) if not tensor.is_floating_point() else (0, 0)
            values = _anything if tensor.is_floating_point() else _between(low, high)
            fit.names[name] = Want((None, *tensor.shape[1:]), tensor.dtype, values=values)
    fit.beginnings["tally."] = Want((2,), torch.float64)
    fit.beginnings["numbers."] = Want((None,), torch.float64)
    for i, player in enumerate(training.players):
        _expect_optimisers(fit, f"player.{i}.optimiser.", player)
        _expect_memory(fit, f"player.{i}.memory.", training, i)
        if training.episode.env.turns and player.agent.memory in ("replay", "latest"):
            _expect_pending(fit, f"pending.{i}.", training, i)
    return fit


def _kept(training: Training, name: str, tensor: Tensor, same_seed: bool) -> Want:
    """A tensor whose shape never changes."""
    shape, last = tuple(tensor.shape), name.rpartition(".")[2]
    env = training.episode.env
    if name.endswith("env.key"):
        return Want(shape, tensor.dtype, values=_equal_to(tensor) if same_seed else _between(0, 2**32 - 1))
    if name.endswith("env.timestep.action"):
        values = _between(-1, env.spec.num_actions - 1) if env.spec.discrete else _anything
        return Want(shape, tensor.dtype, may_be_nan=not env.spec.discrete, values=values)
    if not name.startswith("player.") and last in ("tick", "host_clock", "clock", "episode", "counts"):
        return Want(shape, tensor.dtype, values=_between(0, 2**62))
    return Want(shape, tensor.dtype)


def _expect_optimisers(fit: Fit, start: str, player: Player) -> None:
    for name, optimiser in player.agent.optimisers().items():
        place = f"{start}{name}."
        present = {i: set(fields) for i, fields in optimiser.state_dict()["state"].items()}
        grown: set[str] = set()
        for index, fields in _stepped(optimiser).items():
            for label, value in fields.items():
                tensor = torch.as_tensor(value)
                if label == "noise":
                    values: Values = _generator_state
                else:
                    values = _at_least_0 if label == "step" else _anything
                needed = label in present.get(index, ()) and label != "step"
                fit.names[f"{place}{index}.{label}"] = Want(tuple(tensor.shape), tensor.dtype, needed, values=values)
                grown |= set() if needed else {f"{place}{index}.{label}"}
        fit.together.append(_all_or_none(grown, f"the optimiser {name} of {player.name}"))


def _stepped(optimiser: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The state that an optimiser of this kind has once it has stepped: that of a twin, which descends from nothing."""
    twin = copy.deepcopy(optimiser)  # with parameters of its own
    for name, value in vars(optimiser).items():
        if name not in vars(twin):  # what a subclass added is not copied with it
            setattr(twin, name, _another(value) if isinstance(value, torch.Generator) else value)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    state: dict[int, dict[str, Any]] = twin.state_dict()["state"]
    return state


def _another(generator: torch.Generator) -> torch.Generator:
    found = torch.Generator(generator.device)
    found.set_state(generator.get_state())
    return found


def _expect_memory(fit: Fit, start: str, training: Training, i: int) -> None:
    player = training.players[i]
    memory = player.memory
    if isinstance(memory, Replay):
        _expect_replay(fit, start, training, i, memory)
    elif isinstance(memory, Rollout):
        _expect_rollout(fit, start, training, i, memory)
    elif memory is not None:
        # Of another library's training: what it says of itself.
        fit.free += (start,)
        checked = getattr(memory, "misfits", None)
        if checked is not None:
            fit.together.append(lambda tensors: (f"{start}{line}" for line in checked(under(dict(tensors), start))))


def _columns(training: Training, i: int) -> dict[str, Tensor]:
    """What is remembered of a step, as the step at hand would be: [M, B, ...]."""
    player, episode = training.players[i], training.episode
    seen, felt, by_mind, slots = episode.seen[i], episode.felt[i], player.agent.by_mind, player.slots
    found = {"obs": seen.obs[:, slots], "field": felt, "action": seen.action[:, slots], "reward": seen.reward[:, slots]}
    if seen.legal is not None:
        found["legal"] = seen.legal[:, slots]
    return {name: by_mind(value) for name, value in found.items()}


def _expect_replay(fit: Fit, start: str, training: Training, i: int, memory: Replay) -> None:
    minds, capacity = memory.minds, memory.capacity
    columns = _columns(training, i)
    following = {f"next_{name}": columns[name] for name in ("obs", "field", "legal") if name in columns}
    ended = {"terminated": columns["reward"].bool()}
    ring = {f"{start}ring.{name}": value for name, value in {**columns, **following, **ended}.items()}
    for name, value in ring.items():
        actions = name.endswith("ring.action") and not value.is_floating_point()
        values = _between(0, training.episode.env.spec.num_actions - 1) if actions else _anything
        fit.names[name] = Want((minds, None, *value.shape[2:]), value.dtype, needed=False, values=values)
    for name in ("at", "size"):
        top = capacity - 1 if name == "at" else capacity
        fit.names[f"{start}{name}"] = Want((minds,), torch.int64, values=_between(0, top))
    fit.names[f"{start}added"] = Want((), torch.int64, values=_between(0, 2**62))
    fit.names[f"{start}even"] = Want((), torch.bool)
    rows: list[str] = list(ring)
    if memory.alpha:
        fit.names[f"{start}priority"] = Want((minds, None), torch.float64, needed=False, values=_at_least_0)
        fit.names[f"{start}largest"] = Want((minds,), torch.float32, needed=False, values=_at_least_0)
        rows.append(f"{start}priority")
        fit.together.append(_all_or_none({f"{start}priority", f"{start}largest", *ring}, "the replay"))
    if minds == 1:  # of a run that was divided over ranks
        fit.names[f"{start}owner"] = Want((None,), torch.int64, needed=False, values=_at_least_0)
        fit.names[f"{start}ranks"] = Want((), torch.int64, needed=False, values=_between(1, 1 << 20))

    def filled(tensors: Mapping[str, Tensor]) -> Iterator[str]:
        size = int(tensors[f"{start}size"].max())
        there = [name for name in rows if name in tensors]
        if not there and size:
            yield f"{start}size says {size} rows, and there are none"
        for name in there:
            if tensors[name].shape[1] != max(1, size):
                yield f"{name} has {tensors[name].shape[1]} rows, expected {max(1, size)} as {start}size says"

    fit.together += [_all_or_none(set(ring), "the replay"), filled]


def _expect_rollout(fit: Fit, start: str, training: Training, i: int, memory: Rollout) -> None:
    columns = _columns(training, i)
    marks = {name: columns["reward"].bool() for name in ("acting", "ended")}
    steps = {f"{start}steps.{n}": x for n, x in {**columns, **marks, "bootstrap": columns["reward"]}.items()}
    for name, value in steps.items():
        actions = name.endswith("steps.action") and not value.is_floating_point()
        values = _between(0, training.episode.env.spec.num_actions - 1) if actions else _anything
        shape = (None, value.shape[0], None, *value.shape[2:])
        fit.names[name] = Want(shape, value.dtype, needed=False, values=values)
    everybody = memory.crowd.count(columns["reward"].shape[1])
    fit.names[f"{start}rows"] = Want((None,), torch.int64, needed=False, values=_between(0, everybody - 1))
    fit.names[f"{start}chosen"] = Want((), torch.bool)

    def filled(tensors: Mapping[str, Tensor]) -> Iterator[str]:
        there = [name for name in steps if name in tensors]
        rows = tensors.get(f"{start}rows")
        width = everybody if rows is None else len(rows)
        if there and not bool(tensors[f"{start}chosen"]):
            yield f"{start}chosen is False, and there are steps"
        for name in there:
            length = tensors[name].shape[0]
            if not 0 < length < memory.length or length != tensors[there[0]].shape[0]:
                yield f"{name} has {length} steps, expected as many as the others and fewer than {memory.length}"
            elif tensors[name].shape[2] != width:
                yield f"{name} has {tensors[name].shape[2]} rows, expected {width}"

    fit.together += [_all_or_none(set(steps), "the rollout"), filled]


def _expect_pending(fit: Fit, start: str, training: Training, i: int) -> None:
    player, division = training.players[i], training.episode.env.division
    slots = player.slots
    seen, felt = training.episode.seen[i], training.episode.felt[i]
    columns = {"obs": seen.obs[:, slots], "field": felt, "action": seen.action[:, slots]}
    columns |= {"reward": seen.reward[:, slots], "open": seen.acting[:, slots]}
    if seen.legal is not None:
        columns["legal"] = seen.legal[:, slots]
    lead = columns["reward"].shape if division.whole else (None, None)
    for name, value in columns.items():
        fit.names[f"{start}{name}"] = Want((*lead, *value.shape[2:]), value.dtype, needed=False)
    fit.together.append(_all_or_none({f"{start}{name}" for name in columns}, f"what {player.name} waits for"))


# --------------------------------------------------------------------------------------------- of values


def _between(low: int, high: int) -> Values:
    def wrong(tensor: Tensor) -> str:
        if tensor.numel() == 0:
            return ""
        least, most = (int(x) for x in tensor.aminmax())
        outside = least if least < low else most
        return f"holds {outside}, expected {low} to {high}" if least < low or most > high else ""

    return wrong


def _at_least_0(tensor: Tensor) -> str:
    return "holds a number below 0" if bool((tensor < 0).any()) else ""


def _equal_to(wanted: Tensor) -> Values:
    return lambda tensor: "" if torch.equal(tensor.cpu(), wanted.cpu()) else "is not the noise of this run's seed"


def _generator_state(tensor: Tensor) -> str:
    return generator_fault(tensor)


def generator_fault(state: Tensor) -> str:
    """What is wrong with the stored state of a torch generator; empty: nothing."""
    raw = state.cpu().to(torch.uint8)
    if raw.shape != (_GENERATOR,):
        return f"has {raw.numel()} bytes, expected the {_GENERATOR} of a generator"
    try:
        torch.Generator().set_state(raw)
    except (RuntimeError, TypeError) as error:
        return f"is no state of a generator ({error})"
    # Of its words at least one is not 0, or it would give 0 for ever.
    return "" if bool(raw[24:].any()) else "is no state of a generator (it is 0 throughout)"


def _all_or_none(names: set[str], what: str) -> Callable[[Mapping[str, Tensor]], Iterator[str]]:
    def lacking(tensors: Mapping[str, Tensor]) -> Iterator[str]:
        missing = sorted(names - set(tensors))
        if missing and len(missing) < len(names):
            yield from (f"{name} is missing, and other parts of {what} are there" for name in missing)

    return lacking


def _alike(shape: torch.Size, wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or n == w for n, w in zip(shape, wanted, strict=True))


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if n is None else str(n) for n in shape)}]"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(told: list[str]) -> str:
    more = [f"and {len(told) - _TOLD_AT_ONCE} more"] if len(told) > _TOLD_AT_ONCE else []
    return "; ".join(told[:_TOLD_AT_ONCE] + more)
