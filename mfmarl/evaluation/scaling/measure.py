"""What one point of a sweep costs: made, warmed up, timed and weighed in a process of its own.

    python -m mfmarl.evaluation.scaling.measure     one order (JSON) on standard input, one answer (JSON) on standard output

    in:  {"plan": Plan, "point": Point, "seconds": 2.0, "limit": 300.0, "imports": ["my_env.py"]}
    out: Measured

What is timed are the steps of a training as `mfmarl train` makes them: acting, the environment, the memory, learning
in its true share (whole rollouts, whole cycles of updates), and the order parameters that a run of default length
asks for; not reports and evaluations, which a run makes as seldom as it likes.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, MfmarlError, ResourceFault, nearest
from mfmarl.evaluation.scaling.phases import on_device, phases
from mfmarl.evaluation.scaling.points import Measured, Plan, Point
from mfmarl.learning.build import Built, build, choose_device, set_threads
from mfmarl.learning.memory import Replay
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training
from mfmarl.learning.worker import PARENT
from mfmarl.registry import import_user_code, lookup

SECONDS = 2.0
"""Wall time that the timed steps take at least, where the plan names no number."""
CYCLES = 4
"""Whole cycles that are timed at least, if that does not take too long: one alone is at the mercy of chance."""
LIMIT = 300.0
"""Wall time after which a point is given up."""
GRACE = 30.0
"""What a process has beyond that, for its start and its last step."""
STACKED = ("iql", "ippo")
"""The independent learners of ours that are also measured with a mind for each agent."""


class TooSlow(MfmarlError):
    """A point that would take longer than it may."""


# ------------------------------------------------------------------------------------------- what a point is


def config_of(point: Point, plan: Plan) -> RunConfig:
    """The run that a point is: the plan's environment at the point's size, with what the point varies set.

    Raises ConfigError for an environment whose size is no option, an option that is nobody's, or an unknown label.
    """
    varied = dict(point.varied)
    _refuse_ambiguous(point, plan)
    environment, varied = sized(plan.environment, point.num_agents, varied)
    team, varied = _team(point, plan, varied)
    if varied:
        name = next(iter(varied))
        raise ConfigError(
            f"Neither {plan.environment.name} nor {point.agent} has an option {name!r} that can be varied."
        )
    options = RunOptions(
        copies=point.copies,
        sharing="none" if point.kind == "stacked" else "group",
        evaluation_copies=0,
        exploitability="off",
        device=plan.device,
        threads=plan.threads,
    )
    return RunConfig(environment, team, options)


def size_option(environment: Choice) -> str:
    """The option that says how many agents an environment has. Raises ConfigError where there is none."""
    names = option_names("environment", environment.name)
    for name in ("num_agents", "N"):
        if name in names:
            return name
    raise ConfigError(f"The number of agents of {environment.name} is no option of it, so its size cannot be swept.")


def option_names(kind: Any, name: str) -> set[str]:
    """The options of an environment or agent by name."""
    entry = lookup(kind, name)
    if kind == "agent":
        return {f.name for f in fields(entry.load().Config)} - {fixed for fixed, _ in entry.overrides}
    target = entry.load() if entry.target is not None or not entry.where.startswith("third party") else None
    if isinstance(target, type) and is_dataclass(target):
        return {f.name for f in fields(target)}
    from mfmarl.population import third_party

    maker = third_party.maker(entry.name) if target is None else third_party.maker_of(target, {}, entry.name)
    return set(maker.keywords)


def sized(choice: Choice, size: int, varied: dict[str, Any]) -> tuple[Choice, dict[str, Any]]:
    """The environment with so many agents and what of `varied` is its own, and the rest of `varied`."""
    known = option_names("environment", choice.name)
    options = {**choice.options, size_option(choice): size}
    left = {}
    for name, value in varied.items():
        scope, dot, option = name.partition(".")
        option = option if dot else name
        if scope in ("env", "environment", choice.name, name) and option in known:
            options[option] = value
        else:
            left[name] = value
    return replace(choice, options=options), left


def _refuse_ambiguous(point: Point, plan: Plan) -> None:
    """What an environment and an agent both have means two things (`field`: a magnet's, and what is felt)."""
    if point.kind != "mfmarl" or not point.varied:
        return
    place = option_names("environment", plan.environment.name)
    for name in point.varied:
        for choice in plan.agents.get(point.agent, {}).values():
            if name in place and name in option_names("agent", choice.name):
                raise ConfigError(
                    f"{name!r} could be the environment's ({plan.environment.name}) or the agent's ({choice.name}): "
                    f"write env.{name} or agent.{name}."
                )


def _team(point: Point, plan: Plan, varied: dict[str, Any]) -> tuple[dict[str, Choice], dict[str, Any]]:
    if point.kind == "mfmarl":
        if point.agent not in plan.agents:
            raise ConfigError(f"The plan has no agent {point.agent!r}.{nearest(point.agent, plan.agents)}")
        team = dict(plan.agents[point.agent])
    elif point.kind == "stacked":
        team = {"all": Choice(point.agent)}
    else:
        team = {"all": Choice("sb3", {"algorithm": "ppo"})}
    left = dict(varied)
    for group, choice in team.items():
        names = option_names("agent", choice.name)
        for name, value in varied.items():
            scope, dot, option = name.partition(".")
            option = option if dot else name
            if scope in ("agent", choice.name, group, point.agent, name) and option in names:
                choice = replace(choice, options={**choice.options, option: value})
                left.pop(name, None)
            elif point.kind != "mfmarl":
                left.pop(name, None)  # a peer has not all the options of ours
        team[group] = choice
    return team, left


# ---------------------------------------------------------------------------------------------- what it costs


@dataclass(frozen=True)
class Runner:
    """Something that plays and learns: ours, or a peer's."""

    advance: Callable[[int], None]
    """Play so many environment steps, with the learning that falls due."""
    unit: int
    """Steps of one whole cycle: after them every kind of work has been done as often as it is done for ever."""
    warm: Callable[[], None]
    """Play until everything has been done once and memory has its final size."""
    played: Callable[[], int]
    """Steps until now."""
    num_agents: int
    weights: int
    device: torch.device
    phases: Callable[[int], dict[str, float]]
    close: Callable[[], None]


def measure(point: Point, plan: Plan, seconds: float = SECONDS, limit: float = LIMIT) -> Measured:
    """The cost of a point, in this process: call it in a fresh one. Raises MfmarlError, TooSlow past `limit` seconds."""
    deadline = time.monotonic() + limit
    prepare(point, plan)
    base = reset_peak()
    begun = time.process_time()
    runner = make_runner(point, plan, deadline)
    try:
        built = time.process_time() - begun
        if runner.num_agents != point.num_agents:
            raise ConfigError(
                f"{plan.environment.name} has {runner.num_agents} agents where {point.num_agents} were asked for."
            )
        runner.warm()
        warmed = runner.played()
        steps, wall, cpu = timed(runner, plan.steps, seconds, deadline)
        peak = peak_bytes()
        shares: dict[str, float] = {}
        phase_steps = 0
        if point.repeat == 0 and time.monotonic() + wall * runner.unit / steps < deadline:
            phase_steps = max(runner.unit, steps // 4 // runner.unit * runner.unit)
            shares = runner.phases(phase_steps)
        return Measured(
            point, "done", "", steps, wall, cpu, built, peak, base, shares, phase_steps if shares else 0,
            runner.weights,
            machine(runner.device, plan.threads) | {"unit": runner.unit, "warm_steps": warmed},
        )  # fmt: skip
    finally:
        runner.close()


def timed(runner: Runner, steps: int, seconds: float, deadline: float = math.inf) -> tuple[int, float, float]:
    """(steps, wall seconds, CPU-seconds) of at least `steps` steps, or of at least so many seconds; whole cycles.

    By the clock, CYCLES are timed at least, unless they take longer than CYCLES times the seconds that were asked for.
    """
    clock = on_device(runner.device, time.monotonic)
    done, cycle = 0, runner.unit
    size = cycle
    wall, cpu = clock(), time.process_time()
    while True:
        runner.advance(size)
        done += size
        passed = clock() - wall
        if done >= steps if steps else _enough(done // cycle, passed, seconds):
            return done, passed, time.process_time() - cpu
        if time.monotonic() > deadline:
            raise TooSlow(f"{done} steps took {passed:.0f} s, and the time for this point was over.")
        # As few looks at the clock as possible, and not much more than was asked.
        missing = steps - done if steps else (seconds - passed) / max(passed, 1e-9) * done
        size = cycle * max(1, min(math.ceil(missing / cycle), 4 * done // cycle))


def _enough(cycles: int, passed: float, seconds: float) -> bool:
    return passed >= seconds and (cycles >= CYCLES or passed >= CYCLES * seconds)


def make_runner(point: Point, plan: Plan, deadline: float = math.inf) -> Runner:
    """Whoever is measured at this point, ready to play."""
    if point.kind == "loop":
        from mfmarl.evaluation.scaling.baselines import loop

        return loop(point, plan, deadline)
    return runner_of(build(config_of(point, plan)), deadline)


def runner_of(built: Built, deadline: float = math.inf) -> Runner:
    """A training of ours (or of stable-baselines3 within ours)."""
    training = built.training
    interval = training.options.report_interval

    def advance(steps: int) -> None:
        left = steps
        while left:
            part = min(left, interval - training.tick % interval)
            if training.players[0].agent.memory == "self":
                training._advance_alone(training.tick + part)
            else:
                for _ in range(part):
                    training.step()
            left -= part
            if training.tick % interval == 0:
                # What a report would do with its sums.
                training.tally.clear()
                training.numbers.clear()
            if time.monotonic() > deadline:
                raise TooSlow(f"{training.tick} steps, with the warm-up, took all the time for this point.")

    return Runner(
        advance,
        unit(training),
        lambda: warm(training, advance),
        lambda: training.tick,
        training.episode.env.spec.num_agents,
        weights(training),
        training.episode.env.device,
        lambda steps: phases(training, steps),
        built.close,
    )


def unit(training: Training) -> int:
    """Steps of a whole cycle of learning of all players."""
    cycle = 1
    for player in training.players:
        config = player.agent.config
        if player.agent.memory == "self":
            # stable-baselines3's: as its agent chooses where nothing is chosen.
            usual = {"ppo": 16, "a2c": 5}.get(getattr(config, "algorithm", ""), 1)
            cycle = math.lcm(cycle, getattr(config, "n_steps", 0) or usual)
        elif player.agent.memory == "rollout":
            cycle = math.lcm(cycle, config.rollout)
        elif player.agent.memory == "replay":
            cycle = math.lcm(cycle, config.learn_every)
    return cycle


def warm(training: Training, advance: Callable[[int], None]) -> None:
    """Play until everybody has learned, and replay lies in memory whole."""
    cycle = unit(training)
    advance(max(cycle, 3))
    replays = [(p.memory, p.agent.config.warm_up) for p in training.players if isinstance(p.memory, Replay)]
    while any(memory.least < enough for memory, enough in replays):
        advance(cycle)
    for memory, _ in replays:
        touch(memory)
    if replays:
        advance(cycle)
    if training.tick % cycle:
        advance(cycle - training.tick % cycle)


def touch(memory: Replay) -> None:
    """Write every page of a replay that is not full: it fills as a run goes on, and would weigh less than it will."""
    for store in memory.ring.values():
        rows = int(memory.size.max())
        store[:, rows:] = 0


def weights(training: Training) -> int:
    """Numbers that are learned; networks that only follow others are not counted."""
    total = 0
    for player in training.players:
        named = [(n, p) for n, p in player.agent.named_parameters() if not n.startswith("target")]
        learned: list[Tensor] = [p for _, p in named if p.requires_grad] or [p for _, p in named]
        learned = learned or _tables(player.agent)
        total += sum(p.numel() for p in learned)
    return total


def _tables(agent: torch.nn.Module) -> list[Tensor]:
    return [b for b in agent.buffers() if b.is_floating_point() and b.ndim >= 2]


# ------------------------------------------------------------------------------------------- the process itself


def prepare(point: Point, plan: Plan) -> None:
    """Import what the point needs and use torch once, so that neither is charged to it."""
    device = choose_device(plan.device)
    set_threads(plan.threads)
    lookup("environment", plan.environment.name).load()
    names = {c.name for c in plan.agents.get(point.agent, {}).values()} if point.kind == "mfmarl" else {point.agent}
    names = {"sb3"} if point.kind == "sb3" else names if point.kind != "loop" else set()
    for name in names:
        lookup("agent", name).load()
    if point.kind == "loop":
        from mfmarl.evaluation.scaling import baselines
        from mfmarl.population import parallel

        del baselines, parallel  # imported, that is all
    layer = torch.nn.Linear(4, 4).to(device)
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.zeros(4, 4, device=device)).sum().backward()
    optimiser.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def reset_peak() -> int:
    """Resident bytes now, which from here on the peak is counted from, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The most resident memory since `reset_peak`; where that could not be, since the process began."""
    return _status("VmHWM") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Where it was measured."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "torch": torch.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def fresh(
    point: Point, plan: Plan, seconds: float = SECONDS, limit: float = LIMIT, imports: Sequence[str] = ()
) -> Measured:
    """`measure` in a new process. However that ends, there is an answer; only an interrupt passes through.

    `machine["seconds"]` of the answer is the wall time of everything, from the start of Python on.
    """
    order = {"plan": plan.to_table(), "point": asdict(point), "seconds": seconds, "limit": limit, "imports": [*imports]}
    threads = str(plan.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    environment[PARENT] = str(os.getpid())
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "mfmarl.evaluation.scaling.measure"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )
    try:
        told, complaints = process.communicate(json.dumps(order), timeout=limit + GRACE)
    except subprocess.TimeoutExpired:
        return Measured(point, "skipped", f"It was not done after {limit + GRACE:.0f} s, and was ended.")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    try:
        found = Measured.from_table(json.loads(told))
    except (ValueError, KeyError, TypeError):
        return Measured(point, "failed", _death(process.returncode, complaints))
    return replace(found, machine={**found.machine, "seconds": round(time.monotonic() - begun, 3)})


def _death(code: int, complaints: str) -> str:
    """How a process ended that gave no answer."""
    last = next((line.strip() for line in reversed(complaints.splitlines()) if line.strip()), "")
    if code == -signal.SIGKILL:
        return "Its process was killed (SIGKILL), as a system does whose memory runs out."
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"Its process died {how}{f': {last}' if last else ''}."


def answer(order: dict[str, Any]) -> Measured:
    """What an order asks for; whatever goes wrong is a `Measured` that says so."""
    plan, point = Plan.from_table(order["plan"]), Point(**order["point"])
    try:
        for name in order.get("imports", []):
            import_user_code(name)
        return measure(point, plan, order.get("seconds", SECONDS), order.get("limit", LIMIT))
    except TooSlow as error:
        return Measured(point, "skipped", str(error))
    except MfmarlError as error:
        return Measured(point, "failed", str(error))
    except MemoryError:
        return Measured(point, "failed", NO_MEMORY)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the sweep goes on
        if isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error):
            return Measured(point, "failed", NO_MEMORY)
        return Measured(point, "failed", f"{type(error).__name__}: {error}")


NO_MEMORY = str(ResourceFault("There was not enough memory."))


def main() -> None:
    """What `python -m mfmarl.evaluation.scaling.measure` does. Whatever prints, prints to standard error."""
    from mfmarl.learning.worker import leave_with

    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    leave_with(int(os.environ.pop(PARENT, "0")) or os.getppid())
    try:
        # Should memory run out in spite of all estimates, it is this process that goes.
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass
    reports.write(json.dumps(answer(json.loads(sys.stdin.read())).to_table()) + "\n")
    reports.flush()


if __name__ == "__main__":
    main()
