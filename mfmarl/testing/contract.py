"""The contract of an environment, rule by rule: the code of its breach, how grave it is, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from mfmarl.testing.finding import Finding, Level


class Rule(NamedTuple):
    """One rule. `broken` says what a breach is, `remedy` what to change."""

    level: Level
    broken: str
    remedy: str


def _error(broken: str, remedy: str) -> Rule:
    return Rule("error", broken, remedy)


def _warning(broken: str, remedy: str) -> Rule:
    return Rule("warning", broken, remedy)


_SPACE = "Return what the space says, or mend the space."
_SEED = "Draw from one generator that reset(seed=...) makes: self.rng = numpy.random.default_rng(seed)."
_LEAVE = "Flag an agent in terminations or truncations in the step in which it leaves env.agents, and only then."
_COPY = "Return a copy: value.copy()."
_FLAGS = "Return Python's True or False."
_REWARD = "Return a finite float for each agent."
_DICT = "Return dictionaries by agent."
_MASK = "Return a numpy array of int8, as long as there are actions, 1 where an action is legal."
_OURS = "Set it back, or leave it to whoever runs the environment."

RULES: dict[str, Rule] = {
    # What it is
    "attribute-missing": _error("a part of the interface is missing", "Define it as PettingZoo's documentation says."),
    "not-of-pettingzoo": _warning("the class derives neither ParallelEnv nor AECEnv", "Derive one of them."),
    "no-metadata": _warning(
        "there is no metadata dictionary with a name", 'Write metadata = {"name": "my_env_v0", "render_modes": []}.'
    ),
    "possible-agents-empty": _error("possible_agents names nobody", "List every agent that can ever play."),
    "possible-agents-changed": _error(
        "possible_agents changed", "List every agent that can ever play, once; agents alone says who plays now."
    ),
    "agents-is-possible-agents": _error(
        "agents and possible_agents are one list, so who dies is forgotten",
        "Write self.agents = list(self.possible_agents) in reset.",
    ),
    "agents-not-a-list": _error("env.agents is no list", "Keep a list of the agents that play now."),
    "agent-listed-twice": _error("an agent is listed twice", "List every agent once."),
    "agent-name": _warning("an agent's name is no word", "Name agents player_0, player_1 ..."),
    "num-agents": _error("num_agents is not how many agents play", "Leave it to the base class: len(self.agents)."),
    "same-object-twice": _error("two environments made are one object", "Make a new one in every call."),
    "cannot-be-made-twice": _error(
        "a second environment cannot be made", "Keep nothing in the class or module that only one can have."
    ),
    "cannot-be-trained": _warning("mfmarl cannot train on it", "Wrap it, as the sentence says."),
    # Spaces
    "space-missing": _error(
        "an agent has no gymnasium space", "Return a gymnasium.spaces.Space from observation_space and action_space."
    ),
    "space-new-each-call": _error(
        "a space is a new object in every call, so seeding it is lost",
        "Make the spaces once, in __init__, and return those.",
    ),
    "space-changed": _error("a space changed while playing", "A space holds for the life of the environment."),
    "space-bounds": _error("a space's lower bound lies above its upper one", "Swap the bounds."),
    "space-not-comparable": _warning("a space is not equal to itself", "Use gymnasium's spaces."),
    "action-unbounded": _warning("an action has no finite bounds", "Give the Box finite low and high."),
    "action-single": _warning("there is but one action, so nothing to decide", "Leave such an agent out."),
    "action-start": _warning(
        "actions do not begin at 0, which many learners take for granted", "Let the Discrete space begin at 0."
    ),
    # Beginning
    "raises-at-making": _error("making it raised an exception", "Mend the line that raised."),
    "raises-at-reset": _error("reset raised an exception", "Mend the line that raised."),
    "reset-without-seed": _error("reset does not take seed", "Write def reset(self, seed=None, options=None)."),
    "reset-without-options": _error("reset does not take options", "Write def reset(self, seed=None, options=None)."),
    "reset-returns": _error("reset returns something else", "Return (observations, infos), two dictionaries by agent."),
    "no-agents-after-reset": _error("nobody plays after reset", "Set self.agents in reset."),
    "over-at-reset": _error("an agent is over right after reset", "Begin with every flag False."),
    # Stepping
    "raises-at-step": _error("step raised an exception", "Mend the line that raised."),
    "raises-elsewhere": _error("a call other than reset and step raised an exception", "Mend the line that raised."),
    "exits": _error("the environment tried to end the program", "Raise an Exception; never call sys.exit."),
    "interrupts": _error("the environment raised KeyboardInterrupt by itself", "Raise an Exception of another class."),
    "hangs": _error(
        "a call did not come back in time", "Look for a loop that never ends, or for something waited for."
    ),
    "unforeseen": _error("it answered in a way that the check could not go on from", "Mend the other findings first."),
    "died": _error("the process that played it died", "Look for the fault in compiled code, or for os._exit."),
    "step-returns": _error(
        "step returns something else",
        "Return (observations, rewards, terminations, truncations, infos), dictionaries by agent.",
    ),
    "coroutine": _error("a call returns a coroutine", "Write def, not async def."),
    "not-a-dictionary": _error("a dictionary by agent was expected", _DICT),
    "observation-missing": _error("a playing agent has no observation", _DICT),
    "reward-missing": _error("a playing agent has no reward", _DICT),
    "termination-missing": _error("a playing agent has no termination flag", _DICT),
    "truncation-missing": _error("a playing agent has no truncation flag", _DICT),
    "info-missing": _error("a playing agent has no info", "Return a dictionary, if empty, for every agent."),
    "value-for-a-stranger": _error("there is a value for somebody who is no agent", "Key by env.agents."),
    "value-for-the-dead": _error("there is a value for an agent that had left before", "Key by the living."),
    "info-type": _error("an info is no dictionary", "Return a dictionary, if empty, for every agent."),
    "actions-mutated": _error("step wrote into the actions it was given", "Copy what is to be changed."),
    # Observations
    "observation-none": _error("an observation is None", _SPACE),
    "observation-type": _error("an observation has a wrong type", _SPACE),
    "observation-dtype": _error("an observation has a wrong dtype", "Write value.astype(space.dtype)."),
    "observation-shape": _error("an observation has a wrong shape", _SPACE),
    "observation-keys": _error("an observation has other keys than its space", _SPACE),
    "observation-not-finite": _error("an observation holds NaN or infinity", "Look for a division by zero."),
    "observation-outside-space": _error("an observation lies outside its space", _SPACE),
    "observations-share-memory": _error("two agents' observations share memory", _COPY),
    "observation-is-internal": _warning("writing into an observation changes the environment", _COPY),
    "observation-changed-later": _error("an observation changed after it was returned", _COPY),
    "value-changed-later": _error("a dictionary or value changed after it was returned", _COPY),
    "info-changed-later": _warning("an info changed after it was returned", _COPY),
    # Rewards and flags
    "reward-type": _error("a reward is no real number", _REWARD),
    "reward-array": _error("a reward is an array", "Return a float: reward.item()."),
    "reward-bool": _warning("a reward is a truth value", "Write float(reward)."),
    "reward-not-finite": _error("a reward is NaN or infinite", "Look for a division by zero."),
    "reward-huge": _error("a reward's square is beyond float32", "Scale rewards to about 1."),
    "flag-type": _error("a flag is no truth value", _FLAGS),
    "both-flags": _warning("an agent is terminated and truncated at once", "Flag one: termination wins."),
    # Masks
    "mask-type": _error("an action mask has a wrong type", _MASK),
    "mask-dtype": _error("an action mask has a wrong dtype", _MASK),
    "mask-length": _error("an action mask has a wrong length", _MASK),
    "mask-value": _error("an action mask holds something else than 0 and 1", _MASK),
    "mask-empty": _error("no action is legal for an agent that is asked", "Offer an action that does nothing."),
    "mask-unused": _warning("there is a mask for actions that cannot be masked", "Leave it out."),
    "mask-gone": _error(
        "a mask that was shown before is missing", "Show a mask in every observation or info of an agent."
    ),
    "mask-late": _error(
        "a mask appears after a reset that showed none", "Show a mask in every observation or info, from reset on."
    ),
    # Life and death
    "agent-unknown": _error("an agent plays that possible_agents does not name", "Name it in possible_agents."),
    "agent-vanished": _error("an agent left env.agents without a flag", _LEAVE),
    "agent-stays-after-end": _error("an agent that is over stays in env.agents", _LEAVE),
    "agent-revived": _error("an agent came back after its end", "Give newcomers names that were not used before."),
    "agent-born": _warning("an agent joined in mid-episode", "This is allowed, but few learners expect it."),
    "no-end": _warning("no episode ended", "Truncate after a number of steps, or give max_steps where you train it."),
    "episode-of-one-step": _warning("episodes end with their first step", "Fine for a bandit; else look at the flags."),
    # Taking turns
    "selection-unknown": _error("agent_selection is not one of env.agents", "Select the next of the living."),
    "agent-never-asked": _error("a living agent is never selected", "Use pettingzoo.utils.AgentSelector."),
    "last-disagrees": _error(
        "last() differs from the environment's own dictionaries", "Leave last() to the base class."
    ),
    "cumulative-reward": _error(
        "what last() pays is not what was earned since the agent acted",
        "Zero _cumulative_rewards[agent] in its step, then call self._accumulate_rewards().",
    ),
    "keys-not-agents": _error(
        "rewards, flags and infos are not kept for exactly env.agents",
        "Let self._was_dead_step(action) bury who is over; keep entries for env.agents alone.",
    ),
    "step-returns-something": _error("step of an AEC environment returns a value", "Return nothing."),
    "dead-may-act": _warning("an agent that is over may still act", "Begin step with self._was_dead_step(action)."),
    # Repetition
    "not-repeatable": _error("the same seed and actions give another trajectory", _SEED),
    "reset-not-repeatable": _error("reset with the same seed twice gives another beginning", _SEED),
    "infos-not-repeatable": _warning("the same seed and actions give other infos", "Leave times and ids out of infos."),
    "clock-decides": _error("the trajectory depends on the time of day", _SEED),
    "process-decides": _error(
        "another process, with other hashes, gives another trajectory",
        "Sort a set before going through it: sorted(names); use no hash(), id() or process number.",
    ),
    "global-random-decides": _error("the trajectory depends on the global random generators", _SEED),
    "global-random-seeded": _error("the global random generators are seeded", _SEED),
    "global-random-drawn": _error("the global random generators are drawn from", _SEED),
    "instances-share-state": _error(
        "another instance of the class changes the trajectory", "Keep what changes in self, not in the class or module."
    ),
    "episode-leaks": _error("an earlier episode changes the trajectory", "Set everything that changes in reset."),
    "looking-changes-it": _error(
        "observe(), last() or state() changes the trajectory", "Draw and count in step and reset alone."
    ),
    "int-actions-differ": _error(
        "actions given as Python's int are not played as numpy's are", "Write int(action) where it is used."
    ),
    "seed-without-effect": _warning(
        "another seed gives the same trajectory", "Fine if nothing is random; else use the seed."
    ),
    "actions-ignored": _warning("other actions give the same trajectory", "Look whether step uses its actions."),
    # Drawing and closing
    "render-raises": _error("render raised an exception", "Mend the line that raised."),
    "render-returns": _error("render of rgb_array is no picture", "Return a numpy array, uint8 [H, W, 3]."),
    "rendering-changes-it": _error("rendering changes the trajectory", "Draw from a generator of its own."),
    "state-outside-space": _error("state() lies outside state_space", _SPACE),
    "close-raises": _error("close raised an exception", "Let close be called at any time, and twice."),
    # Around it
    "changes-folder": _error("the working folder was changed", _OURS),
    "changes-environment-variables": _error("environment variables were changed", _OURS),
    "changes-signals": _error("a signal handler was changed", _OURS),
    "changes-warnings": _error("the filters of warnings were changed", "Use warnings.catch_warnings()."),
    "changes-numeric-settings": _error("settings of numpy or torch were changed", _OURS),
    "changes-import-path": _warning("sys.path was changed", _OURS),
    "leaves-files-open": _warning("a file stays open after close", "Close it, or open it with a with statement."),
    "leaves-threads": _error("a thread goes on after close", "Stop and join it in close."),
    "leaves-processes": _error("a child process goes on after close", "Stop it in close."),
    "prints": _warning("it prints", "Use logging."),
    # Misuse
    "step-before-reset": _warning("a step before the first reset is played", "Raise an error that says to reset."),
    "step-after-end": _warning("a step after the end is played", "Raise an error that says to reset."),
    "invalid-action": _warning("an action outside its space is played", "Raise an error that names agent and action."),
    "dead-agents-action": _warning("an action of an agent that has left is played", "Ignore or refuse it."),
}
"""Every code that a check can find. A code is never given another meaning; those of rules on tensors are in `check_rules`."""


@dataclass
class Ledger:
    """What was found so far: each code once, with its first place and how often it was met."""

    def __post_init__(self) -> None:
        self.first: dict[str, Finding] = {}
        self.times: dict[str, int] = {}

    def note(self, code: str, said: str, where: str = "", level: Level | None = None) -> None:
        """Note a breach. An error takes the place of a warning with the same code."""
        level = level or RULES[code].level
        known = self.first.get(code)
        if known is None or (level == "error" and known.level == "warning"):
            sentence = f"{said[:1].upper()}{said[1:]}{f' ({where})' if where else ''}."
            self.first[code] = Finding(level, code, sentence, RULES[code].remedy, where)
        self.times[code] = self.times.get(code, 0) + 1

    def __contains__(self, code: str) -> bool:
        return code in self.first

    def findings(self) -> tuple[Finding, ...]:
        """Errors first, each kind in the order in which it was met."""
        told = [
            replace(f, message=f"{f.message[:-1]}; {n} times in all.") if (n := self.times[f.code]) > 1 else f
            for f in self.first.values()
        ]
        return tuple(sorted(told, key=lambda f: f.level != "error"))


def every_code() -> dict[str, dict[str, str]]:
    """Every code with its level, what it means and what mends it; those of rules on tensors have no meaning but their remedy."""
    from mfmarl.testing.notes import REMEDIES

    table = {code: rule._asdict() for code, rule in RULES.items()}
    rules = {code: {"level": "rules", "broken": "", "remedy": remedy} for code, remedy in REMEDIES.items()}
    return dict(sorted({**rules, **table}.items()))
