"""What is wrong with rules of our own form: a `PopulationEnv`, put to every promise that a simulation relies on.

`Simulation` checks what it is given step by step. Here rules are asked twice, with copies in another order, with other global
generators, with states that were kept: what is found are rules with a memory, rules that write into what they are given,
noise that is drawn by position. Of a `MeanFieldGame` the kernel is held against what its agents do.
"""

from __future__ import annotations

import contextlib
import random as python_random
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.games.game import MeanFieldGame
from mfmarl.population.environment import PopulationEnv, agent_ids
from mfmarl.population.known import Known
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.testing.check_games import check_laws, check_moves
from mfmarl.testing.finding import Finding
from mfmarl.testing.notes import Notes, RuleRaised, said

COPIES = 3
STEPS = 12
_FEW = 4096  # observations that are looked at one by one in their space


def check_rules(
    rules: PopulationEnv,
    *,
    seed: int = 0,
    steps: int = STEPS,
    references: bool = True,
    told: Callable[[str], None] = lambda where: None,
) -> list[Finding]:
    """What is wrong with these rules, worst first, each fault once with its first place.

    `steps` are played in three copies. `references`: whether known answers are worked out, which may take seconds.
    `told` is called with what is about to be asked. Raises nothing: an error of the rules is a finding.
    """
    notes = Notes(type(rules).__name__, told)
    with contextlib.suppress(RuleRaised), _unchanged_generators(notes):
        spec = _spec(rules, notes)
        if spec is not None:
            game = rules if isinstance(rules, MeanFieldGame) else None
            if game is not None and not check_laws(game, notes):
                return notes.sorted()
            play = _Play(rules, spec, notes, Key.of(seed))
            if play.through(steps):
                if game is not None:
                    check_moves(game, notes, Key.of(seed).fold("game"))
                if references:
                    _references(rules, play.measured, notes)
    return notes.sorted()


def _spec(rules: PopulationEnv, notes: Notes) -> Spec | None:
    spec, again = notes.ask("spec", rules.spec), notes.ask("spec", rules.spec)
    if not isinstance(spec, Spec):
        notes.error("no-spec", f"spec() gave {said(spec)}, where a Spec was expected.")
        return None
    for name in ("num_agents", "observation_space", "action_space", "horizon", "groups", "group_sizes", "ends"):
        if getattr(spec, name) != getattr(again, name, None):
            notes.error("spec-changes", f"spec() gave another {name} when it was asked again.")
    params = getattr(type(rules), "__dataclass_params__", None)
    if params is None or not params.frozen:
        notes.warning(
            "not-frozen", "The rules are no frozen dataclass: their options could change while they are played."
        )
    return spec


@contextlib.contextmanager
def _unchanged_generators(notes: Notes) -> Iterator[None]:
    """Global generators are put back as they were, whatever the rules did to them."""
    kept = _generators()
    try:
        yield
    finally:
        torch.set_rng_state(torch.frombuffer(bytearray(kept[0]), dtype=torch.uint8))
        np.random.set_state(kept[3])  # noqa: NPY002 - put back, not drawn from
        python_random.setstate(kept[2])


def _generators() -> tuple[bytes, bytes, Any, Any]:
    state: Any = np.random.get_state()  # noqa: NPY002 - looked at, not drawn from
    told = state[1].tobytes() + repr(state[2:]).encode()
    return torch.get_rng_state().numpy().tobytes(), told, python_random.getstate(), state


def same(one: Any, other: Any) -> bool:
    """Whether two tensors (or None) are equal to the last bit; NaN is equal to itself."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.is_floating_point():
        return torch.equal(one.nan_to_num(7.125), other.nan_to_num(7.125)) and torch.equal(one.isnan(), other.isnan())
    return torch.equal(one, other)


class _Play:
    """A run of three copies in which every rule is asked more than once."""

    def __init__(self, rules: PopulationEnv, spec: Spec, notes: Notes, key: Key) -> None:
        self.rules, self.spec, self.notes, self.key = rules, spec, notes, key
        self.ids = agent_ids(COPIES, spec.num_agents)
        self.measured: set[str] = set()
        self.step = 0
        self.kept: list[tuple[str, Tensor, Tensor]] = []  # what was returned, and what it was

    def through(self, steps: int) -> bool:
        """Whether it could be played to the end."""
        rules, ids, notes = self.rules, self.ids, self.notes
        state = self._guarded("reset", lambda: rules.reset(ids, self.key.fold("reset", 0)), {"ids": ids})
        if not self._is_state(state, COPIES, "reset"):
            return False
        self._alone(state)
        seen = self._views(state, None)
        first: tuple[Any, ...] | None = None
        clock = 0
        for step in range(1, steps + 1):
            self.step = step
            action = self._action(state, seen)
            if action is None:
                return False
            key = self.key.fold("step", step)
            given = {"ids": ids, "action": action, **_parts(state)}
            before, held = state, action

            def one(state: Any = before, action: Tensor = held, key: Key = key) -> Any:
                return rules.step(state, action, ids, key)

            answer = self._guarded("step", one, given)
            if not isinstance(answer, tuple) or len(answer) != 2:
                notes.error("not-a-pair", f"step() gave {said(answer)}, where (state, reward) was expected.")
                return False
            after, reward = answer
            if not self._is_state(after, COPIES, "step", state):
                return False
            self._check_reward(reward)
            self._rows(state, action, key, after, reward)
            self._kept_values({"reward": reward, **_parts(after)})
            if first is None:
                first = state, action, key, after, reward
            previous, state = seen, after
            seen = self._views(state, previous)
            clock += 1
            state, seen, clock = self._restarted(state, seen, clock)
        if first is not None:
            self._again(*first)
        return True

    # ------------------------------------------------------------------------------------ asking twice

    def _guarded(self, rule: str, call: Callable[[], Any], given: dict[str, Tensor]) -> Any:
        """What the rule answers, asked twice under different global generators; what it was given must stay."""
        notes = self.notes
        kept = {name: value.clone() for name, value in given.items()}
        before = _generators()
        answer = notes.ask(rule, call, self.step)
        touched = [
            name
            for name, old, new in zip(("torch", "numpy", "random"), before, _generators(), strict=False)
            if old != new
        ]
        if touched:
            notes.error(
                "draws-global-noise",
                f"{rule}() used the global generator of {' and '.join(touched)} at step {self.step}; "
                "noise is drawn from mfmarl.random by key and ids.",
                rule,
            )
        first = _parts(answer)
        first_kept = {name: value.clone() for name, value in first.items()}
        torch.manual_seed(12345)  # noqa: TID251 - whether anything depends on it is what is asked
        np.random.seed(12345)  # noqa: NPY002 - as above
        python_random.seed(12345)
        again = _parts(notes.ask(rule, call, self.step))
        for name, old in kept.items():
            if not same(old, given[name]):
                notes.error(
                    f"writes-{'state' if name not in ('ids', 'action') else name}",
                    f"{rule}() wrote into {name if name in ('ids', 'action') else f'the state ({name})'} that it was given "
                    f"at step {self.step}.",
                    rule,
                )
                given[name].copy_(old)
        for name, old in first_kept.items():
            if not same(old, again.get(name)):
                notes.error(
                    "not-a-function", f"{rule}() gave another {name} when it was asked again at step {self.step}.", rule
                )
            elif not same(old, first[name]):
                notes.error("value-changes-later", f"{name} of {rule}() at step {self.step} changed afterwards.", rule)
        return answer

    def _kept_values(self, values: dict[str, Any]) -> None:
        """What was returned a step ago must be what it was."""
        for name, value, old in self.kept:
            if not same(value, old):
                self.notes.error(
                    "value-changes-later",
                    f"{name} that was returned at step {self.step - 1} had changed by step {self.step}: a buffer is reused.",
                    name,
                )
        self.kept = [(name, x, x.clone()) for name, x in values.items() if isinstance(x, Tensor)]

    def _again(self, state: Any, action: Tensor, key: Key, after: Any, reward: Tensor) -> None:
        """The first step once more, now that the rules have seen others."""
        answer = _parts(self.notes.ask("step", lambda: self.rules.step(state, action, self.ids, key), self.step))
        for name, old in {**_parts(after), "reward": reward}.items():
            if not same(old, answer.get(name)):
                self.notes.error(
                    "remembers",
                    f"step() gave another {name} for the first step after {self.step} more had been played.",
                )

    # ---------------------------------------------------------------------------------------- the copies

    def _alone(self, state: Any) -> None:
        """A copy begins as it does among others."""
        rows = torch.tensor([2, 0])
        key = self.key.fold("reset", 0)
        fresh = self.notes.ask("reset", lambda: self.rules.reset(self.ids[rows], key))
        if not self._is_state(fresh, 2, "reset"):
            return
        for name, value in _parts(state).items():
            if not same(value[rows], getattr(fresh, name)):
                self._mixed("reset", name)

    def _rows(self, state: Any, action: Tensor, key: Key, after: Any, reward: Tensor) -> None:
        """Two of the three copies, in another order, go on as they do among all."""
        rows = torch.tensor([2, 0])
        some = type(state)(*(value[rows] for value in state))
        ids = self.ids[rows]
        answer = self.notes.ask("step", lambda: self.rules.step(some, action[rows], ids, key), self.step)
        parts = _parts(answer)
        for name, value in {**_parts(after), "reward": reward}.items():
            if isinstance(value, Tensor) and value.ndim and not same(value[rows], parts.get(name)):
                self._mixed("step", name)
        for name in ("observe", "alive", "acting", "legal", "done", "position", "standing"):
            rule = getattr(self.rules, name)
            whole, part = self.notes.ask(name, partial(rule, state)), self.notes.ask(name, partial(rule, some))
            if isinstance(whole, Tensor) and whole.ndim and not same(whole[rows], part):
                self._mixed(name, "its answer")

    def _mixed(self, rule: str, name: str) -> None:
        self.notes.error(
            "copies-mix",
            f"{name} of {rule}() at step {self.step} was another when copies 2 and 0 were played without copy 1.",
            rule,
        )

    def _restarted(self, state: Any, seen: dict[str, Any], clock: int) -> tuple[Any, dict[str, Any], int]:
        """The copies that are over begin anew, as in a simulation."""
        over = torch.zeros(COPIES, dtype=torch.bool)
        if isinstance(seen.get("done"), Tensor):
            over = over | seen["done"]
        if isinstance(seen.get("alive"), Tensor):
            over = over | ~seen["alive"].any(-1)
        if self.spec.horizon is not None and clock >= self.spec.horizon:
            over = torch.ones_like(over)
        which = over.nonzero().squeeze(-1)
        if not len(which):
            return state, seen, clock
        fresh = self.notes.ask("reset", lambda: self.rules.reset(self.ids[which], self.key.fold("reset", self.step)))
        if not self._is_state(fresh, len(which), "reset"):
            raise RuleRaised
        state = type(state)(*(old.index_copy(0, which, new) for old, new in zip(state, fresh, strict=True)))
        return state, self._views(state, None), 0 if len(which) == COPIES else clock

    # ------------------------------------------------------------------------------ what is answered

    def _is_state(self, state: Any, copies: int, rule: str, before: Any = None) -> bool:
        notes = self.notes
        if not hasattr(state, "_asdict"):
            notes.error(
                "not-a-named-tuple", f"{rule}() gave {said(state)}, where a NamedTuple of tensors was expected."
            )
            return False
        for name, value in state._asdict().items():
            if not isinstance(value, Tensor):
                notes.error(
                    "state-not-tensors", f"The state's {name} of {rule}() is {said(value)}, not a tensor.", name
                )
                return False
            if value.ndim == 0 or value.shape[0] != copies:
                notes.error(
                    "state-shape",
                    f"The state's {name} of {rule}() is {list(value.shape)}; its first axis must be the {copies} copies.",
                    name,
                )
                return False
            if value.device != self.ids.device:
                notes.error("wrong-device", f"The state's {name} is on {value.device}, ids on {self.ids.device}.", name)
                return False
            old = getattr(before, name, None) if before is not None else None
            if isinstance(old, Tensor) and (old.shape[1:] != value.shape[1:] or old.dtype != value.dtype):
                notes.error(
                    "state-changes-shape",
                    f"step() changed the state's {name} from {list(old.shape)} {old.dtype} to {list(value.shape)} "
                    f"{value.dtype}.",
                    name,
                )
                return False
        own = notes.ask("own_state", self.rules.own_state)
        for name in own or ():
            value = getattr(state, name, None)
            if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != self.spec.num_agents:
                notes.error(
                    "own-state-not-per-agent",
                    f"own_state() names {name!r}, which is no field [E, N, ...] of the state.",
                    name,
                )
        return True

    def _check_reward(self, reward: Any) -> None:
        if self._is(reward, "reward", tuple(self.ids.shape), torch.float32):
            self._finite(reward, "reward")

    def _is(self, value: Any, what: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> bool:
        """Whether it is a tensor of that shape and type."""
        notes = self.notes
        if not isinstance(value, Tensor):
            notes.error(f"{what}-type", f"{what} is {said(value)} at step {self.step}, not a tensor.", what)
            return False
        if tuple(value.shape) != shape:
            notes.error(
                f"{what}-shape", f"{what} is {list(value.shape)} at step {self.step}; expected {list(shape)}.", what
            )
            return False
        if dtype is not None and value.dtype != dtype:
            notes.error(f"{what}-type", f"{what} is of {value.dtype} at step {self.step}; expected {dtype}.", what)
            return False
        if value.device != self.ids.device:
            notes.error("wrong-device", f"{what} is on {value.device}, ids on {self.ids.device}.", what)
            return False
        return True

    def _finite(self, value: Tensor, what: str) -> bool:
        if value.is_floating_point() and not bool(value.isfinite().all()):
            place = (~value.isfinite()).nonzero()[0].tolist()
            self.notes.error(
                f"{what}-not-finite",
                f"{what} of {said(float(value[tuple(place)]))} at {place} (copy, agent, ...) at step {self.step}.",
                what,
            )
            return False
        return True

    def _views(self, state: Any, previous: dict[str, Any] | None) -> dict[str, Any]:
        """What all rules say of a state; each is asked twice, and must leave it as it is."""
        spec, notes = self.spec, self.notes
        shape = tuple(self.ids.shape)
        seen: dict[str, Any] = {}
        for name in ("observe", "alive", "acting", "legal", "done", "position", "standing"):
            rule = getattr(self.rules, name)
            seen[name] = self._guarded(name, partial(rule, state), _parts(state))
        discrete_view = isinstance(spec.observation_space, Discrete)
        kind = torch.int64 if discrete_view else torch.float32
        if self._is(seen["observe"], "observation", (*shape, *spec.observation_shape), kind):
            self._inside(seen["observe"])
        for name in ("alive", "acting"):
            if seen[name] is not None and not self._is(seen[name], name, shape, torch.bool):
                seen[name] = None
        if seen["done"] is not None and not self._is(seen["done"], "done", shape[:1], torch.bool):
            seen["done"] = None
        width = (*shape, spec.num_actions)
        if seen["legal"] is not None and not self._is(seen["legal"], "legal", width, torch.bool):
            seen["legal"] = None
        self._life(seen, previous)
        if seen["standing"] is not None:
            expected = shape if spec.discrete else width
            if self._is(seen["standing"], "standing", expected, None) and spec.discrete:
                low, high = int(seen["standing"].min()), int(seen["standing"].max())
                if low < 0 or high >= spec.num_actions:
                    notes.error("standing-outside-space", f"standing() names action {low if low < 0 else high}.")
        if seen["position"] is not None and isinstance(seen["position"], Tensor):
            wide = seen["position"].shape[-1] if seen["position"].ndim == 3 else 1
            if self._is(seen["position"], "position", (*shape, wide), torch.float32):
                self._finite(seen["position"], "position")
        self._measures(state)
        self._picture(state)
        return seen

    def _life(self, seen: dict[str, Any], previous: dict[str, Any] | None) -> None:
        notes, alive = self.notes, seen["alive"]
        if alive is not None and previous is not None and previous["alive"] is not None:
            back = alive & ~previous["alive"]
            if bool(back.any()):
                copy, agent = back.nonzero()[0].tolist()
                notes.error("revival", f"Agent {agent} of copy {copy} lives again at step {self.step}.")
        acting = torch.ones_like(self.ids, dtype=torch.bool) if seen["acting"] is None else seen["acting"]
        if alive is not None:
            if seen["acting"] is not None and bool((acting & ~alive).any()):
                notes.warning("dead-asked", f"acting() asks the dead at step {self.step}; they are left out.")
            acting = acting & alive
        if seen["legal"] is not None:
            stuck = acting & ~seen["legal"].any(-1)
            if seen["done"] is not None:
                stuck = stuck & ~seen["done"].unsqueeze(-1)
            if bool(stuck.any()):
                copy, agent = stuck.nonzero()[0].tolist()
                notes.error("no-legal-action", f"Agent {agent} of copy {copy} has no legal action at step {self.step}.")

    def _inside(self, obs: Tensor) -> None:
        space = self.spec.observation_space
        if not self._finite(obs, "observation"):
            return
        if isinstance(space, Discrete):
            outside = (obs < 0) | (obs >= int(space.n))
        else:
            assert isinstance(space, Box)
            low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
            outside = (obs < low) | (obs > high)
        if bool(outside.any()):
            place = outside.nonzero()[0].tolist()
            self.notes.error(
                "observation-outside-space",
                f"An observation of {obs[tuple(place)].item():.6g} at {place} (copy, agent, ...) at step {self.step} is outside "
                f"{space}.",
            )

    def _measures(self, state: Any) -> None:
        notes = self.notes
        measured = notes.ask("measure", lambda: self.rules.measure(state), self.step)
        if not isinstance(measured, dict):
            notes.error("measure-type", f"measure() gave {said(measured)}, where a dictionary was expected.")
            return
        if self.measured and set(measured) != self.measured:
            notes.error("measures-change", f"measure() gave other names at step {self.step} than before.")
        self.measured |= set(measured)
        for name, value in measured.items():
            if not isinstance(value, Tensor) or tuple(value.shape) != (COPIES,):
                what = list(value.shape) if isinstance(value, Tensor) else said(value)
                notes.error(
                    "measure-shape", f"measure()[{name!r}] is {what}; expected a number for each copy, [E].", name
                )
            elif value.dtype != torch.float32:
                notes.error("measure-type", f"measure()[{name!r}] is of {value.dtype}; expected torch.float32.", name)
            else:
                self._finite(value, "measure")

    def _picture(self, state: Any) -> None:
        if type(self.rules).render is PopulationEnv.render or self.step > 1:
            return
        picture = self._guarded("render", lambda: self.rules.render(state, 1), _parts(state))
        shape = list(picture.shape) if isinstance(picture, Tensor) else said(picture)
        if not isinstance(picture, Tensor) or picture.ndim != 3 or picture.shape[-1] != 3:
            self.notes.error("picture-shape", f"render() gave {shape}; expected [H, W, 3].")
        elif picture.dtype != torch.uint8:
            self.notes.error("picture-type", f"render() gave {picture.dtype}; expected torch.uint8.")

    # ------------------------------------------------------------------------------------- what is played

    def _action(self, state: Any, seen: dict[str, Any]) -> Tensor | None:
        """A legal action of each, drawn from keyed noise; those who are not asked hold theirs."""
        spec, ids, key = self.spec, self.ids, self.key.fold("choice", self.step)
        if spec.discrete:
            noise = random.uniform(key, ids, spec.num_actions)
            if seen["legal"] is not None:
                noise = torch.where(seen["legal"], noise, -1.0)
            action = noise.argmax(-1)
        else:
            space = spec.action_space
            assert isinstance(space, Box)
            low = torch.as_tensor(space.low).clamp(min=-3).float()
            high = torch.as_tensor(space.high).clamp(max=3).float()
            action = low + (high - low) * random.uniform(key, ids, spec.num_actions)
        held, asked = seen["standing"], seen["acting"]
        if isinstance(held, Tensor) and isinstance(asked, Tensor):
            action = torch.where(asked if spec.discrete else asked.unsqueeze(-1), action, held.to(action.dtype))
        return action


def _parts(answer: Any) -> dict[str, Tensor]:
    """The tensors of an answer by name: of a state, of (state, reward), of one tensor."""
    if isinstance(answer, Tensor):
        return {"its answer": answer}
    if hasattr(answer, "_asdict"):
        return {name: value for name, value in answer._asdict().items() if isinstance(value, Tensor)}
    if isinstance(answer, tuple) and len(answer) == 2:
        reward = {"reward": answer[1]} if isinstance(answer[1], Tensor) else {}
        return {**_parts(answer[0]), **reward}
    return {}


def _references(rules: PopulationEnv, measured: set[str], notes: Notes) -> None:
    """Known answers have sources and are about what is measured."""
    for temperature in (0.0, 1.0):
        known = notes.ask("reference", partial(rules.reference, temperature))
        if not isinstance(known, dict):
            notes.error(
                "reference-type", f"reference({temperature:g}) gave {said(known)}, where a dictionary was expected."
            )
            return
        for name, value in known.items():
            where = f"reference({temperature:g})[{name!r}]"
            if not isinstance(value, Known):
                notes.error("reference-type", f"{where} is {said(value)}, where a Known was expected.", name)
            elif not np.isfinite(value.value):
                notes.error("reference-not-finite", f"{where} is {value.value}.", name)
            elif len(str(value.source)) < 6:
                notes.error("reference-without-source", f"{where} does not say where it is from.", name)
            if name not in measured | {"reward"}:
                notes.error("reference-not-measured", f"{where} is of something that measure() does not tell.", name)


def undocumented(rules: type[PopulationEnv]) -> list[str]:
    """The options without a sentence of their own."""
    from mfmarl.options import options_of

    helped = {option.name for option in options_of(rules) if option.help}
    return [field.name for field in fields(rules) if field.name not in helped]  # type: ignore[arg-type]
