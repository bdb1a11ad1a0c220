"""`check_env`: everything that is wrong with an environment, as a list of findings with codes and remedies.

Two plays of the same seeds and actions are compared to the last bit. In the second one all is different that must make no
difference: the global generators and clocks, another instance beside it, what becomes of observations that were returned,
how often one looks. Where the two part, each of these is tried alone, and named.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfmarl import registry
from mfmarl.errors import ConfigError, EnvironmentFault, MfmarlError
from mfmarl.options import from_table
from mfmarl.population import third_party
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.single import layout_of, takes_turns
from mfmarl.registry import Entry
from mfmarl.testing.apart import Told
from mfmarl.testing.apart import apart as in_a_child
from mfmarl.testing.contract import Ledger
from mfmarl.testing.finding import Finding, Findings, Level
from mfmarl.testing.inspection import Inspection
from mfmarl.testing.play import Alone, Disturbance, Episode, Moment, Play, TurnPlay, play_of, remember, replay
from mfmarl.testing.surroundings import Broken, Watch, children, files_open, last_line
from mfmarl.testing.values import breach, frozen, shown

EPISODES = 2
MAX_STEPS = 500
BUDGET = 0.7  # CPU seconds of the first play, where no number of steps is asked for
_BY_CHANCE = 1e-4  # what is likelier than this, were turns drawn, is no error
_SHORT = 50  # steps of the plays that look for one thing

_SAME = Disturbance("not-repeatable", generators=11)
_DISTURBANCES = (
    Disturbance("global-random-decides", generators=12),
    Disturbance("clock-decides", generators=11, skew=7_654_321.25),
    Disturbance("instances-share-state", generators=11, beside=True),
    Disturbance("observation-is-internal", generators=11, spoil=True),
    Disturbance("looking-changes-it", generators=11, look=True),
    Disturbance("int-actions-differ", generators=11, plain=True),
)


@dataclass(frozen=True)
class Subject:
    """An environment to be checked: its name, and what makes instances of it."""

    name: str
    maker: third_party.Maker | None = None
    rules: PopulationEnv | None = None
    turns: bool = False
    """Of rules: their agent-by-agent face."""
    foreign: bool = False
    """Another library's: it is not asked to play what no one should ask of it."""

    def make(self, **extra: Any) -> Any:
        """A new instance (or the only one). Raises MfmarlError."""
        if self.rules is not None:
            if self.turns:
                from mfmarl.population.aec import PopulationAECEnv

                return PopulationAECEnv(self.rules, **extra)
            from mfmarl.population.parallel import PopulationParallelEnv

            return PopulationParallelEnv(self.rules, **extra)
        import gymnasium

        assert self.maker is not None
        with third_party.quiet():
            try:
                made = self.maker.make(**{**self.maker.options, **extra})
            except MfmarlError:
                raise
            except Exception as error:
                raise EnvironmentFault(f"making it raised {type(error).__name__}: {error}") from error
        return Alone(made) if isinstance(made, gymnasium.Env) else made

    @property
    def pictures(self) -> bool:
        return self.rules is not None or (self.maker is not None and self.maker.pictures)


def check_env(
    env: Any,
    *,
    episodes: int = EPISODES,
    max_steps: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    patience: float = 30.0,
    apart: bool = False,
    elsewhere: bool = False,
) -> Findings:
    """Everything that is wrong with an environment.

    `env` is a name (`ising`, `mpe2/simple_spread_v3`, `my_env.py:MyEnv`), a `ParallelEnv`, `AECEnv`, `gymnasium.Env` or
    `PopulationEnv`, its class, or a function that makes one. A ready-made instance is checked as well as one can be: what
    needs a second one is left out. `options` are its fields or keyword arguments.

    `episodes` are played, of at most `max_steps` steps (without it 500, and as many as some 3 CPU seconds allow; with it
    what is reported does not depend on the machine). A call that takes longer than `patience` seconds hangs. With `apart`
    it is played in a child process (where there is fork), so that one that crashes or leaves is a finding too. With
    `elsewhere` its first steps are also played by a second interpreter, whose texts have other hashes (that takes a second
    or two, and a class or function that can be imported).

    Raises ConfigError for a name, class or option that cannot be had. The environment's faults are never raised.
    """
    _demand(episodes, max_steps, seed, patience)

    def check(told: Told) -> Findings:
        return _checked(subjects_of(env, options), episodes, max_steps, seed, patience, told, elsewhere)

    if not apart:
        return check(lambda where: None)
    name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
    return in_a_child(check, name, died, patience)


def check_named(
    name: str,
    options: Callable[[], Mapping[str, Any]],
    *,
    episodes: int = EPISODES,
    max_steps: int | None = None,
    seed: int = 0,
    patience: float = 30.0,
    elsewhere: bool = True,
) -> Findings:
    """`check_env` of a name, in a child process; `options` are asked for there, since the user's file is read for them.

    Raises ConfigError for a name, class or option that cannot be had.
    """
    _demand(episodes, max_steps, seed, patience)

    def check(told: Told) -> Findings:
        told("reading the file")
        given = options()
        return _checked(subjects_of(name, given), episodes, max_steps, seed, patience, told, elsewhere)

    return in_a_child(check, name, died, patience)


def _demand(episodes: int, max_steps: int | None, seed: int, patience: float) -> None:
    for name, number in (("episodes", episodes), ("max_steps", 1 if max_steps is None else max_steps)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < 1 << 40:
            raise ConfigError(f"{name} must be a whole number from 1, not {number!r}.", code="bounds")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 31:
        raise ConfigError(f"seed must be a whole number from 0 to 2147483647, not {seed!r}.", code="bounds")
    if not 0 < patience < 1e6:
        raise ConfigError(f"patience must be a positive number of seconds, not {patience!r}.", code="bounds")


def died(code: str, said: str) -> Finding:
    """The finding of an environment that took its process with it."""
    ledger = Ledger()
    ledger.note(code, said)
    return ledger.findings()[0]


def _checked(
    subjects: list[Subject],
    episodes: int,
    max_steps: int | None,
    seed: int,
    patience: float,
    told: Told,
    elsewhere: bool,
) -> Findings:
    ledger = Ledger()
    steps = agents = played = 0
    further: list[Finding] = []
    for subject in subjects:
        watch = Watch(ledger, patience, told)
        checked = _Check(subject, watch, episodes, max_steps, seed, BUDGET / len(subjects), elsewhere)
        checked.run()
        steps, agents, played = steps + checked.steps, max(agents, checked.agents), played + checked.played
    if subjects[0].rules is not None:
        further = _rules(subjects[0].rules, seed, told)
    known = {f.code for f in ledger.findings()}
    found = sorted([*ledger.findings(), *(f for f in further if f.code not in known)], key=lambda f: f.level != "error")
    return Findings(subjects[0].name, tuple(found), played, steps, agents)


def _rules(rules: PopulationEnv, seed: int, told: Told) -> list[Finding]:
    from mfmarl.testing.check_rules import check_rules

    return check_rules(rules, seed=seed, told=told)


def subjects_of(env: Any, options: Mapping[str, Any] | None = None) -> list[Subject]:
    """What is to be checked. Rules of ours are played in both of PettingZoo's forms. Raises ConfigError."""
    target, name, foreign = env, "", False
    if isinstance(env, str):
        if env in registry.entries("agent") and env not in registry.entries("environment"):
            raise ConfigError(
                f"{env!r} is an agent; expected an environment, see `mfmarl list environments`.", "unknown-name"
            )
        target = registry.lookup("environment", env)
    if isinstance(target, Entry):
        name, options = target.name, {**dict(target.overrides), **dict(options or {})}
        if target.target is None and name.partition("/")[0] in registry.NAMESPACES:
            return [Subject(name, third_party.maker(name, options), foreign=True)]
        target = target.load()
    if isinstance(target, type) and issubclass(target, PopulationEnv):
        if not hasattr(target, "__dataclass_fields__"):
            raise ConfigError(
                f"{target.__name__} must be a frozen dataclass, whose fields are its options.", "not-an-environment"
            )
        target = from_table(target, dict(options or {}), name or target.__name__)
        return _faces(target, name)
    if isinstance(target, PopulationEnv):
        if options:
            raise ConfigError(f"{type(target).__name__} is made already, so it takes no options; give its class.")
        return _faces(target, name)
    if isinstance(target, type) and not _plays(target):
        raise ConfigError(
            f"{target.__name__} is no environment: a class with reset and step was expected (PettingZoo's ParallelEnv or "
            "AECEnv, gymnasium's Env, or mfmarl's PopulationEnv).",
            "not-an-environment",
        )
    if not callable(target) and not _plays(type(target)):
        raise ConfigError(
            f"{shown(target)} is no environment: expected a name, a class, a function that makes one, or an instance.",
            "not-an-environment",
        )
    maker = third_party.maker_of(target, options, name)
    if callable(target) and not isinstance(target, type):
        with _kept():
            try:
                made = maker.make(**maker.options)
            except Exception:  # noqa: BLE001 - found, and said, where it is played
                made = None
        if isinstance(made, PopulationEnv):
            return _faces(made, maker.name)
        if made is not None and not _plays(type(made)):
            raise ConfigError(
                f"{maker.name} made {shown(made)}, which is no environment: it has no reset and step.",
                "not-an-environment",
            )
        with contextlib.suppress(Exception):
            made.close()
    return [Subject(maker.name, maker, foreign=foreign)]


@contextlib.contextmanager
def _kept() -> Any:
    with Watch(Ledger(), 1.0):
        yield


def _plays(cls: type) -> bool:
    return all(callable(getattr(cls, part, None)) for part in ("reset", "step"))


def _faces(rules: PopulationEnv, name: str) -> list[Subject]:
    name = name or type(rules).__name__
    return [Subject(name, rules=rules), Subject(name, rules=rules, turns=True)]


class _Check:
    """One subject, checked into a ledger."""

    def __init__(
        self,
        subject: Subject,
        watch: Watch,
        episodes: int,
        max_steps: int | None,
        seed: int,
        budget: float,
        elsewhere: bool,
    ) -> None:
        self.elsewhere = elsewhere and not subject.foreign
        self.subject, self.ledger, self.watch, self.seed = subject, watch.ledger, watch, seed
        self.episodes, self.most = episodes, max_steps or MAX_STEPS
        self.budget = None if max_steps else budget
        self.steps = self.agents = self.played = 0
        self.record: list[Episode] = []
        self.files: set[str] = set()
        self.single = False
        """There is one instance, or a second cannot be made."""

    def run(self) -> None:
        with third_party.quiet():
            # What our own door and PettingZoo's set in the environment is not the subject's doing.
            importlib.import_module("pettingzoo")
        with self.watch:
            threads, processes, files = set(threading.enumerate()), children(), files_open()
            try:
                self._all()
            except Broken as error:
                self._note(error)
            except MfmarlError:
                raise
            except Exception as error:  # noqa: BLE001 - what an environment can answer has no end
                self.ledger.note(
                    "unforeseen", f"{type(error).__name__}: {error} in {last_line(error)}", self.watch.where
                )
            self.watch.where = ""
            self.watch.settle()
            self.watch.compare_surroundings("play")
            self._left(threads, processes, files)

    def _note(self, error: Broken) -> None:
        self.ledger.note(error.code, error.said, self.watch.where)

    def _all(self) -> None:
        self.watch.seed(_SAME.generators)
        play = self._made()
        if play is None:
            return
        possible = self._interface(play)
        if possible is None:
            return
        whole = self._first_play(play, possible)
        hung = "hangs" in self.ledger
        if hung:
            return
        self.watch.compare_surroundings("play")
        if self.record and self.record[0].seen and not self.record[0].empty:
            self._repeat(play)
            if whole and not self._unrepeatable:
                self._again(play)
            self._elsewhere()
            self._effects(play)
            self._probes(play)
        for _ in range(2):
            self._do("close-raises", play.close)
        self.watch.compare_surroundings("close")
        self.files = files_open()  # before what is left of the instance is collected

    # ----------------------------------------------------------------------------------------------- making

    def _made(self, **extra: Any) -> Play | None:
        """A new instance, ready to be played."""
        self.watch.where = "making"
        try:
            env = self.watch.call("making", lambda: self.subject.make(**extra))
        except Broken as error:
            cause = error.__cause__
            if isinstance(cause, ConfigError):
                raise cause from None
            inner = cause.__cause__ if isinstance(cause, EnvironmentFault) and cause.__cause__ else cause
            said = error.said.removeprefix("making raised EnvironmentFault: ")
            if error.code == "raises-elsewhere":
                self.ledger.note("cannot-be-made-twice" if self.record else "raises-at-making", said, _place(inner))
            else:
                self._note(error)
            return None
        return play_of(env, self.watch)

    def _another(self, play: Play) -> Play | None:
        """A second instance, where there can be one."""
        if self.single:
            return None
        made = self._made()
        if made is None:
            self.single = True
        elif made.env is play.env:
            self.single = True
            if self.subject.maker is None or self.subject.maker.instance is None:
                self.ledger.note("same-object-twice", "two calls made the same object")
            return None
        return made

    def _interface(self, play: Play) -> list[Any] | None:
        """The possible agents; None: it cannot be played."""
        from pettingzoo import AECEnv, ParallelEnv

        env = play.env
        needed = ["reset", "step", "observation_space", "action_space"]
        needed += ["observe", "last", "agent_iter"] if takes_turns(env) else []
        missing = [n for n in needed if not callable(getattr(env, n, None))]
        for name in missing:
            self.ledger.note("attribute-missing", f"there is no method {name}")
        if missing:
            return None
        ours = isinstance(env, Alone)
        if not ours and not isinstance(env, AECEnv | ParallelEnv):
            self.ledger.note("not-of-pettingzoo", f"{type(env).__name__} derives neither ParallelEnv nor AECEnv")
        metadata = getattr(env, "metadata", None)
        if not isinstance(metadata, Mapping) or (not ours and not isinstance(metadata.get("name"), str)):
            self.ledger.note("no-metadata", f"metadata is {shown(metadata)}, without a name")
        possible = getattr(env, "possible_agents", None)
        if possible is None:
            self.ledger.note("attribute-missing", "there is no list possible_agents", level="warning")
            return []
        possible = list(possible)
        if not possible:
            self.ledger.note("possible-agents-empty", "possible_agents is empty")
        if len(set(possible)) != len(possible):
            self.ledger.note("agent-listed-twice", "possible_agents lists an agent twice")
        odd = [a for a in possible if not isinstance(a, str)]
        if odd:
            self.ledger.note("agent-name", f"the name of agent {shown(odd[0])} is a {type(odd[0]).__name__}")
        return possible

    # ------------------------------------------------------------------------------------------- first play

    def _first_play(self, play: Play, possible: list[Any]) -> bool:
        """Play the episodes, look at everything, remember it. False: it broke."""
        begun, whole = time.process_time(), True
        look = Inspection(play, self.ledger, possible)
        cut = False
        for number in range(self.episodes):
            # The last of several begins without a seed, as most episodes of a training do.
            episode = Episode(self.seed + number)
            self.record.append(episode)
            rng = np.random.default_rng([self.seed, number])
            try:
                cut = self._episode(play, look, episode, number, rng, begun) or cut
            except Broken as error:
                self._broke_off(play, look, episode, error)
                episode.broken = error.code
                whole = False
                if error.code == "hangs" or not episode.seen:
                    break
            look.forget()
            look.compare_spaces()
            self.agents = max(self.agents, len(look.possible))
            if self.budget and time.process_time() - begun > self.budget:
                break
        if play.env is not None and whole:
            self._ends(look, cut)
        return whole

    def _broke_off(self, play: Play, look: Inspection, episode: Episode, error: Broken) -> None:
        """Say why: what an AEC environment holds may explain why its step or last() raised."""
        explained = False
        if isinstance(play, TurnPlay) and episode.seen and error.code.startswith("raises"):
            with contextlib.suppress(Broken):
                look.glance(play.partial())
            explained = any(code in self.ledger for code in _EXPLAINS)
            if not explained and error.said.startswith("last "):
                error = Broken("observation-missing", error.said)
        if not explained:
            self._note(error)

    def _episode(
        self, play: Play, look: Inspection, episode: Episode, number: int, rng: np.random.Generator, begun: float
    ) -> bool:
        """One episode. True: it was cut short for want of time. Raises Broken."""
        self.watch.where = look.where = f"reset of episode {number + 1}"
        try:
            moment = play.reset(episode.seed)
        except Broken as error:
            if error.code == "raises-at-reset" and "unexpected keyword argument 'seed'" in error.said:
                raise Broken("reset-without-seed", "reset does not take seed") from error
            raise
        self.played += 1
        if not look.possible:
            look.possible = list(moment.agents)
        if number == 0:
            self.agents = len(look.possible)
            look.look_at_spaces([*look.possible, *(a for a in moment.agents if a not in look.possible)])
            self._trainable(play, look.possible)
        episode.seen.append(look.begin(moment))
        most = self.most * (max(len(moment.agents), 1) if look.turns else 1)
        # An AEC environment may play choices once everybody has chosen.
        given: deque[Any] = deque(maxlen=min(len(moment.agents) + 1, 16) if look.turns else 1)
        for step in range(1, most + 1):
            if moment.over:
                episode.ended = True
                return False
            if self.budget and time.process_time() - begun > self.budget:
                return True
            self.watch.where = look.where = f"step {step} of episode {number + 1}"
            actions = play.draw(moment, rng)
            given.append((actions, {agent: frozen(action) for agent, action in actions.items()}))
            episode.actions.append({a: x.copy() if isinstance(x, np.ndarray) else x for a, x in actions.items()})
            after = play.step(actions)
            self.steps += 1
            for one, kept in given:
                if {agent: frozen(action) for agent, action in one.items()} != kept:
                    look.note("actions-mutated", "step wrote into actions that it was given")
            episode.seen.append(look.after(moment, actions, after))
            moment = after
            if step == 3 and number == 0:
                look.compare_spaces()
        episode.ended = moment.over
        return False

    def _ends(self, look: Inspection, cut: bool) -> None:
        ended = [e for e in self.record if e.ended]
        longest = max((len(e.actions) for e in self.record), default=0)
        if not ended and (not cut or longest >= min(self.most, MAX_STEPS)):
            self.ledger.note("no-end", f"no episode ended within {longest} steps")
        # Everyone's turn, and a last one to leave.
        short = 2 * max(self.agents, 1) if look.turns else 1
        if self.record and all(e.ended and 0 < len(e.actions) <= short for e in self.record):
            self.ledger.note("episode-of-one-step", "every episode ended with its first step")
        if look.turns:
            never = [a for a in look.began if not look.asked_for[a]]
            if never and max(look.asked_for.values(), default=0) >= 5:
                # Turns that are drawn pass over somebody now and then.
                agents, turns = len(look.began), sum(look.asked_for.values())
                by_chance = agents * math.exp(-turns / agents) > _BY_CHANCE
                level: Level | None = "warning" if by_chance else None
                self.ledger.note("agent-never-asked", f"agent {never[0]} never had a turn to act", level=level)

    def _trainable(self, play: Play, possible: list[Any]) -> None:
        try:
            if isinstance(play.env, Alone):
                from mfmarl.population.gymnasium_in import OneAgent

                layout_of(OneAgent(play.env.env, self.subject.name), self.subject.name, [Alone.AGENT])
            elif possible:
                layout_of(play.env, self.subject.name, possible)
        except MfmarlError as error:
            self.ledger.note("cannot-be-trained", str(error).removeprefix(f"{self.subject.name}: ").rstrip("."))
        except Exception:  # noqa: BLE001 - spaces that are none are found elsewhere
            return

    # ------------------------------------------------------------------------------------------- repetition

    @property
    def _unrepeatable(self) -> bool:
        codes = (_SAME, *_DISTURBANCES)
        return any(d.code in self.ledger for d in codes)

    def _repeat(self, play: Play) -> None:
        """A second play in which everything that must not matter is another."""
        everything = _DISTURBANCES[0]
        for disturbance in _DISTURBANCES[1:]:
            everything = everything | disturbance
        parted = self._play_again(play, everything, self.most * 10**6)
        if parted is None:
            return
        episode, step, part = parted
        if self._blame(play, _SAME, episode, step):
            return
        blamed = []
        for disturbance in _DISTURBANCES:
            # Another instance draws from the global generators too.
            if disturbance.beside and "global-random-decides" in self.ledger:
                continue
            if self._blame(play, disturbance, episode, step):
                blamed.append(disturbance)
        if not blamed:
            self.ledger.note("not-repeatable", f"with the same seed and actions {part} is another", _at(episode, step))

    def _blame(self, play: Play, disturbance: Disturbance, episode: int, step: int) -> bool:
        parted = self._play_again(play, disturbance, step + _SHORT)
        if parted is None:
            return False
        episode, step, part = parted
        self.ledger.note(disturbance.code, f"{_HOW[disturbance.code]} {part} is another", _at(episode, step))
        return True

    def _play_again(self, first: Play, how: Disturbance, most: int) -> tuple[int, int, str] | None:
        """Play the record again: episode, step and part in which it parts from what was seen."""
        self.watch.seed(how.generators)
        play = self._another(first)
        fresh = play is not None
        play = play or first
        beside = self._another(first) if how.beside and fresh else None
        self.watch.skew = how.skew
        self.watch.check_generators = how.generators != _SAME.generators
        try:
            for number, episode in enumerate(self.record):
                if not episode.seen:
                    continue
                self.watch.where = f"reset of episode {number + 1}"
                step, part, infos = replay(play, episode, how, beside, most)
                if step >= 0:
                    return number, step, part
                if infos:
                    self.ledger.note(
                        "infos-not-repeatable", "the same seed and actions give other infos", _at(number, 0)
                    )
        finally:
            self.watch.skew, self.watch.check_generators = 0.0, True
            for one in (play if fresh else None, beside):
                if one is not None:
                    self._do("close-raises", one.close)
        return None

    def _again(self, play: Play) -> None:
        """The instance that has been played: an abandoned episode, then the first one again."""
        first = self.record[0]
        self.watch.where = "a reset with the seed of the first episode"
        self.watch.seed(_SAME.generators)
        one, two = (remember(play.reset(first.seed)) for _ in range(2))
        part = one.differs(two)
        if part:
            self.ledger.note("reset-not-repeatable", f"after a second reset with the same seed {part} is another")
            return
        self.watch.where = "an abandoned episode"
        rng = np.random.default_rng(self.seed + 5)
        moment = play.reset(self.seed + 7)
        for _ in range(3):
            if moment.over:
                break
            moment = play.step(play.draw(moment, rng))
        self.watch.where = "the first episode again"
        self.watch.seed(_SAME.generators)
        step, part, _ = replay(play, first, _SAME, None, _SHORT)
        if step >= 0:
            self.ledger.note("episode-leaks", f"after other episodes {part} is another", _at(0, step))

    def _elsewhere(self) -> None:
        """The first steps, in another interpreter."""
        maker, first = self.subject.maker, self.record[0]
        if not self.elsewhere or maker is None or first.broken or self._unrepeatable:
            return
        from mfmarl.testing.elsewhere import digest, digests_elsewhere

        seen = digests_elsewhere(maker, first, _SAME.generators, self.watch.patience)
        for step, one in enumerate(seen or []):
            if one != digest(first.seen[step]):
                self.ledger.note("process-decides", "another process sees something else", _at(0, step))
                return

    def _effects(self, play: Play) -> None:
        """Whether seeds and actions make a difference."""
        first = self.record[0]
        if first.broken or self._unrepeatable or not first.actions:
            return
        # Choices may be played once everybody has chosen: less than two rounds say nothing.
        rounds = 2 * self.agents + 1 if _turns(play) else 1
        if len(first.actions) < rounds and not first.ended:
            return
        most = max(_SHORT, rounds)
        if all(e.seen and not first.seen[0].differs(e.seen[0]) for e in self.record):
            self._seed_matters(play, first, most)
        self.watch.seed(_SAME.generators)
        self.watch.where = "another choice of actions"
        rng = np.random.default_rng(self.seed + 99)
        with contextlib.suppress(Broken):
            moment = play.reset(first.seed)
            changed = False
            for step in range(min(most, len(first.actions))):
                actions = play.draw(moment, rng)
                changed = changed or frozen(actions) != frozen(first.actions[step])
                moment = play.step(actions)
                if first.seen[step + 1].differs(remember(moment)):
                    return
                if moment.over:
                    break
            if changed:
                self.ledger.note("actions-ignored", "another choice of actions gives the same trajectory")

    def _seed_matters(self, play: Play, first: Episode, most: int) -> None:
        """The same actions after another seed, as long as they are legal."""
        self.watch.seed(_SAME.generators)
        other = Episode(self.seed + 12345, first.actions, first.seen)
        step, _, _ = replay(play, other, _SAME, None, most)
        if step < 0:
            self.ledger.note("seed-without-effect", "another seed gives the same trajectory")

    # ----------------------------------------------------------------------------------------------- probes

    def _do(self, code: str, function: Any) -> None:
        try:
            function()
        except Broken as error:
            self.ledger.note(error.code if error.code in ("hangs", "exits") else code, error.said, self.watch.where)

    def _probes(self, play: Play) -> None:
        """What nobody should do, and what everybody may."""
        self.watch.where = "reset with options"
        try:
            self.watch.call("reset", play.env.reset, seed=self.seed, options={})
        except Broken as error:
            if "unexpected keyword argument 'options'" in error.said:
                self.ledger.note("reset-without-options", "reset does not take options")
            elif not any(e.broken for e in self.record):
                self.ledger.note("raises-at-reset", error.said, self.watch.where)
        self._state(play)
        if isinstance(play, TurnPlay):
            self._unasked(play)
        if not any(e.broken for e in self.record):
            self.watch.where = "reset without a seed"
            self._do("raises-at-reset", lambda: play.reset(None))
        if not self.single:
            self._drawn(play)
        if self.subject.foreign or self.record[0].broken:
            return
        fresh = None if self.single else self._another(play)
        if fresh is not None:
            self.watch.where = "a step before the first reset"
            self._tolerated("step-before-reset", "a step before the first reset is played", fresh)
            self._do("close-raises", fresh.close)
        self._misuse(play)

    def _unasked(self, play: Play) -> None:
        """Whether last(observe=False) shows nothing."""
        with contextlib.suppress(Broken):
            play.reset(self.seed)
            shows = self.watch.call("last", play.env.last, observe=False)[0]
            if shows is not None:
                self.ledger.note("last-disagrees", f"last(observe=False) shows {shown(shows)}, expected None")

    def _state(self, play: Play) -> None:
        """Whether `state()` is one of `state_space`."""
        space = getattr(play.env, "state_space", None)
        if space is None or not callable(getattr(play.env, "state", None)):
            return
        try:
            found = breach(space, self.watch.call("state", play.env.state))
        except Broken:
            return
        if found is not None:
            level = None if found.grave else "warning"
            self.ledger.note("state-outside-space", f"state() {found.said}", level=level)  # type: ignore[arg-type]

    def _tolerated(self, code: str, said: str, play: Play) -> None:
        first = self.record[0]
        with contextlib.suppress(Broken):
            if not first.actions:
                return
            action = next(iter(first.actions[0].values()))
            self.watch.call("step", play.env.step, action if _turns(play) else dict(first.actions[0]))
            # PettingZoo's own wrapper lets an AEC environment's step after the end pass, and nothing comes of it.
            if code == "step-before-reset" or not _turns(play) or getattr(play.env, "agents", None):
                self.ledger.note(code, f"{said} without an error")

    def _misuse(self, play: Play) -> None:
        first = self.record[0]
        self.watch.where = "misuse"
        self.watch.seed(_SAME.generators)
        with contextlib.suppress(Broken):
            moment = play.reset(first.seed)
            moment = self._to_first_end(play, first, moment)
            if first.ended and not self._unrepeatable:
                self._dead(play, first, moment)
        if first.ended and not self._unrepeatable and not isinstance(play.env, Alone):
            with contextlib.suppress(Broken):
                moment = play.reset(first.seed)
                for actions in first.actions:
                    moment = play.step(dict(actions))
                if moment.over:
                    self._tolerated("step-after-end", "a step after the end is played", play)
        with contextlib.suppress(Broken):
            moment = play.reset(first.seed)
            agent = moment.asked[0]
            wrong = _outside(play.space("action", agent))
            if wrong is not None:
                actions = {**play.draw(moment, np.random.default_rng(3)), agent: wrong}
                play.step(actions)
                self.ledger.note(
                    "invalid-action", f"the action {shown(wrong)} of agent {agent} is played without an error"
                )

    def _to_first_end(self, play: Play, first: Episode, moment: Moment) -> Moment:
        """Play until the first agent is over (or, at once, together, has left)."""
        everyone = len(moment.agents)
        for actions in first.actions:
            over = play.is_over(moment.asked[0]) if _turns(play) else len(moment.agents) < everyone
            if over:
                break
            moment = play.step(dict(actions))
            if moment.over:
                break
        return moment

    def _dead(self, play: Play, first: Episode, moment: Moment) -> None:
        if moment.over or not _turns(play) or not play.is_over(moment.asked[0]):
            return
        agent = moment.asked[0]
        action = next((a[agent] for a in first.actions if a.get(agent) is not None), None)
        if action is None:
            return
        self.watch.call("step", play.env.step, action)
        self.ledger.note("dead-may-act", f"agent {agent} is over, and its action is played without an error")

    def _drawn(self, first: Play) -> None:
        """Pictures: there, of the right kind, and nothing is changed by drawing them."""
        metadata = getattr(first.env, "metadata", None)
        modes = metadata.get("render_modes", []) if isinstance(metadata, Mapping) else []
        if "rgb_array" not in (modes or []) or not self.subject.pictures:
            return
        self.watch.seed(_SAME.generators)
        try:
            play = self._made(render_mode="rgb_array")
        except MfmarlError:
            return
        if play is None:
            return
        self.watch.where = "rendering"
        episode = self.record[0]
        try:
            moment = play.reset(episode.seed)
            for step, seen in enumerate(episode.seen[:5]):
                if not self._unrepeatable and (part := seen.differs(remember(moment))):
                    self.ledger.note("rendering-changes-it", f"where it is drawn {part} is another", _at(0, step))
                    break
                picture = self.watch.call("render", play.env.render)
                if not _is_picture(picture):
                    kind = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else shown(picture)
                    self.ledger.note("render-returns", f"render of rgb_array returned {kind}", _at(0, step))
                    break
                if step >= len(episode.actions) or moment.over:
                    break
                moment = play.step(dict(episode.actions[step]))
        except Broken as error:
            if "DependencyNotInstalled" not in error.said and "render" in error.said:
                self.ledger.note("render-raises", error.said)
        self._do("close-raises", play.close)

    def _left(self, threads: set[threading.Thread], processes: set[str], files: set[str]) -> None:
        """What is still there after everything was closed."""
        more = [t for t in threading.enumerate() if t not in threads and t.is_alive()]
        for thread in more:
            thread.join(0.05)
        more = [t for t in more if t.is_alive()]
        if more:
            self.ledger.note("leaves-threads", f"the thread {more[0].name} goes on after close")
        born = children() - processes
        opened = sorted(self.files - files)
        if opened:
            path = opened[0].partition(" ")[2]
            self.ledger.note("leaves-files-open", f"{path} stays open after close, one of {len(opened)} files")
        if born:
            self.ledger.note("leaves-processes", f"{len(born)} child process goes on after close")


_EXPLAINS = ("keys-not-agents", "reward-type", "reward-array", "flag-type", "info-type", "not-a-dictionary")
"""What makes PettingZoo's own methods raise."""

_HOW = {
    "not-repeatable": "with the same seed and actions",
    "global-random-decides": "with other global random generators (random, numpy, torch)",
    "clock-decides": "at another time of day",
    "instances-share-state": "while another instance is played",
    "observation-is-internal": "after writing into observations that were returned",
    "looking-changes-it": "after looking at it (observe, last, state)",
    "int-actions-differ": "with actions as Python's int",
}


def _at(episode: int, step: int) -> str:
    return f"step {step} of episode {episode + 1}" if step else f"reset of episode {episode + 1}"


def _place(error: BaseException | None) -> str:
    from mfmarl.testing.surroundings import last_line

    return last_line(error) if error is not None else ""


def _turns(play: Play) -> bool:
    return takes_turns(play.env)


def _outside(space: Any) -> Any:
    """An action that is none of the space's."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return np.int64(int(space.start) + int(space.n) + 3)
    if isinstance(space, spaces.Box) and space.is_bounded():
        return (np.asarray(space.high, np.float64) * 2 + 10).astype(space.dtype)
    return None


def _is_picture(picture: Any) -> bool:
    return (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] in (3, 4)
        and picture.size > 0
    )
