"""One run in its folder: begun or gone on with, saved when asked to stop, and nothing finished ever lost."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError, EnvironmentFault, MfmarlError, RankLost, ResourceFault
from mfmarl.learning import checkpoint, run_folder
from mfmarl.learning.build import Built, build, known_answers, versions
from mfmarl.learning.config import difference, digest, write_toml
from mfmarl.learning.durable import read_limited
from mfmarl.learning.fit import about, load_into
from mfmarl.learning.run_config import RunConfig
from mfmarl.learning.run_folder import RunFolder
from mfmarl.learning.training import Training
from mfmarl.population.ranks import ALONE, Ranks

Row = dict[str, Any]
# A Box population has no action in force before its first step: NaN is its mark.
_MAY_BE_NAN = ("train.env.timestep.action", "evaluation.env.timestep.action")
# What may change when a run goes on: how long, how it is carried out and what is written down of it.
_FREE = ("run.steps", "run.checkpoint_seconds", "run.tensorboard", "run.workers", "run.device", "run.ranks", "run.divide",
         "run.threads", "run.timeout", "run.on_fault", "run.environment_restarts", "run.reward_limit", "run.max_memory")  # fmt: skip
# Of these, what sums are added up by: the run is another from there on, though not by more than rounding.
_ROUNDING = ("run.device", "run.ranks", "run.divide", "run.threads")
_NOT_ROUNDING = ("python", "platform", "git_commit")
_INTERVAL = 60.0


@dataclass(frozen=True)
class Trust:
    """What is taken of a run's checkpoints when it goes on."""

    strict: bool = False
    """Only the one that latest.json names: no older one in its place."""
    nonfinite: bool = False
    """NaN and infinities too, to look at what went wrong."""


USUAL = Trust()


class Interrupted(MfmarlError):
    """The run was asked to stop; it is saved and can go on."""

    exit_code = 130
    code = "interrupted"


def run_in_folder(
    config: RunConfig,
    path: Path,
    resume: bool = False,
    on_row: Callable[[Row], None] | None = None,
    on_start: Callable[[Built], None] | None = None,
    ranks: Ranks = ALONE,
    imports: Sequence[str] = (),
    trust: Trust = USUAL,
) -> RunFolder:
    """Train as the config says, in that folder; returns the (closed) folder.

    `ranks` are those who play the run together, this process among them: each calls this, the first alone writes.
    Where the config wants several and this process is alone, it starts them here, with the user's `imports`.

    `resume` goes on with a run that is there, or says that it is done; a changed config is refused with
    the difference. Raises MfmarlError; whatever happens, the rows and checkpoints up to then are kept, and
    status.json says how it ended. SIGINT, SIGTERM and SIGHUP finish the step in hand, save, and raise Interrupted;
    a second one leaves at once, and the last checkpoint stands.
    """
    if config.run.ranks > 1 and ranks.count == 1:
        from mfmarl.learning.launch import run_on_ranks

        if run_folder.is_run(path) and not resume:
            raise run_folder.exists(path)
        if not resume or not is_done(config, path):
            return run_on_ranks(config, path, resume, on_row, imports, asdict(trust))
    config = replace(config, run=replace(config.run, ranks=ranks.count))
    with _Stop() as stop:
        try:
            return _carry_out(config, path, resume, on_row, on_start, ranks, stop, trust)
        except KeyboardInterrupt:
            if not stop.signal:
                raise
            raise stop.interrupted(f"{path} was not begun: stopped before its first step.") from None


def _carry_out(
    config: RunConfig,
    path: Path,
    resume: bool,
    on_row: Callable[[Row], None] | None,
    on_start: Callable[[Built], None] | None,
    ranks: Ranks,
    stop: _Stop,
    trust: Trust,
) -> RunFolder:
    built: Built | None = None
    folder: RunFolder | None = None
    changes: list[str] = []
    try:
        # Everything that can be refused is refused before the folder is made.
        done = resume and ranks.first and is_done(config, path)
        if not done:
            built = _build(config, ranks)
            stop.training = built.training
        if ranks.first:
            folder, changes = _open_folder(config, path, resume)
    except BaseException:
        if built is not None:
            built.close()
        _tell_how(ranks, "failed")
        raise
    how = _tell_how(ranks, "done" if done else "ready")
    with folder or contextlib.nullcontext():
        try:
            if how == "ready":
                assert built is not None
                if folder is not None:
                    if on_start is not None:
                        on_start(built)
                    _write_reference(folder, built)
                _go(config, path, folder, built, on_row, ranks, stop, changes, trust)
        finally:
            if built is not None:
                built.close()
    return folder or RunFolder(path, -1, -1, 0)


_HOW = ("ready", "done", "failed")


def _tell_how(ranks: Ranks, how: str) -> str:
    """How it stands with all ranks: the worst of them. Raises RankLost where another has failed and said why."""
    worst = _HOW[int(ranks.largest(torch.tensor(_HOW.index(how)), "word"))]
    if worst == "failed" != how:
        raise RankLost(f"Rank {ranks.rank} of {ranks.count} stopped, because another rank could not begin.")
    return worst


def is_done(config: RunConfig, path: Path) -> bool:
    """Whether the run there has ended as this config wants it. Raises ConfigError where it is another run."""
    if not run_folder.is_run(path):
        return False
    _refuse_changes(config, path)
    return run_folder.read_status(path)["state"] == "done" and _steps_of(path) == config.run.steps


def _open_folder(config: RunConfig, path: Path, resume: bool) -> tuple[RunFolder, list[str]]:
    """The folder, and in what this run now differs from the one that was begun there."""
    table = {**config.to_table(), "versions": versions()}
    if not (resume and run_folder.is_run(path)):
        try:
            return run_folder.create(path, table), []
        except ConfigError as error:
            if not resume or error.code != "run-exists":  # else another process made it since we looked
                raise
    folder = run_folder.reopen(path)
    try:
        stored = folder.config()
        if "fork" in stored and not checkpoint.list_checkpoints(folder.checkpoints):
            raise CheckpointError(
                f"{path} was cut short while it was forked from {stored['fork'].get('from')}: delete it, and fork again.",
                "no-checkpoint",
            )
        changes = difference(_complete(stored, path), config.to_table())
        changes += [
            f"versions.{line}"
            for line in difference(stored.get("versions", {}), versions())
            if "(absent) ->" not in line
        ]
        if changes:
            write_toml(path / run_folder.CONFIG, {**stored, **table})
    except BaseException:
        folder.close()
        raise
    return folder, changes


def _complete(stored: dict[str, Any], path: Path) -> dict[str, Any]:
    """A stored configuration with every default written out, so that one written out is no change."""
    known: dict[str, Any] = {name: stored[name] for name in ("run", "environment", "agents") if name in stored}
    return RunConfig.from_table(known, str(path)).to_table()


def _rounding(changes: list[str]) -> list[str]:
    """Those changes that sums are added up by."""
    keys = [line.partition(":")[0] for line in changes]
    return [
        line
        for line, key in zip(changes, keys, strict=True)
        if key in _ROUNDING or (key.startswith("versions.") and key.removeprefix("versions.") not in _NOT_ROUNDING)
    ]


_NO_MEMORY = "There is not enough memory for this population: use fewer agents, copies, or a smaller network."


def _build(config: RunConfig, ranks: Ranks = ALONE) -> Built:
    """`build`, with what an environment or agent raises when it is made told as such."""
    try:
        return build(config, ranks)
    except Exception as error:
        if _is_memory(error):
            raise ResourceFault(_NO_MEMORY) from error
        if isinstance(error, MfmarlError):
            raise
        told = str(error) or "it does not say why"
        raise EnvironmentFault(
            f"{config.environment.name} and its agents cannot be made: {type(error).__name__}: {told}"
        ) from error


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out, here or in an environment whose fault was named."""
    if isinstance(error, MfmarlError):
        return error.__cause__ is not None and _is_memory(error.__cause__)
    text = str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in text and "memory" in text)


def _steps_of(path: Path) -> int:
    return int(run_folder.read_config(path).get("run", {}).get("steps", 0))


def _refuse_changes(config: RunConfig, path: Path) -> None:
    """Raises ConfigError where the config differs in more than what is free to change."""
    changes = difference(_complete(run_folder.read_config(path), path), config.to_table())
    told = [line for line in changes if line.partition(":")[0] not in _FREE]
    if told:
        raise ConfigError(
            f"{path} was begun with another configuration ({'; '.join(told[:8])}); go on with the old one, or begin a new "
            f"run from its checkpoint: mfmarl train --resume {shlex.quote(str(path))} --fork NAME.",
            "config-changed",
        )


def _write_reference(folder: RunFolder, built: Built) -> None:
    known = known_answers(built.env, built.players)
    folder.write_json("reference.json", {name: k._asdict() for name, k in known.items()})


class _Stop:
    """Signals ask once to finish the step and save; a second one leaves at once. Without a run in hand, the first does."""

    def __init__(self) -> None:
        self.training: Training | None = None
        self.signal = 0
        self.old: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Who is begun by nohup lives on when the terminal is closed.
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self.old[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _frame: Any) -> None:
        again, self.signal = bool(self.signal), number
        if again or self.training is None:
            self._give_back()
            raise KeyboardInterrupt
        self.training.stopping = True

    def _give_back(self) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def interrupted(self, message: str, number: int = 0) -> Interrupted:
        """What is raised then, with the exit code that shells know that signal by."""
        error = Interrupted(message)
        error.exit_code = 128 + (number or self.signal)
        return error


_SIGNALS = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])


def _go(
    config: RunConfig,
    path: Path,
    folder: RunFolder | None,
    built: Built,
    on_row: Callable[[Row], None] | None,
    ranks: Ranks,
    stop: _Stop,
    changes: list[str],
    trust: Trust,
) -> None:
    """The run itself. `folder` is None on all ranks but the first, who do the same and write nothing."""
    training = built.training
    table_digest = _digest(config)
    board = _tensorboard(folder) if config.run.tensorboard and folder is not None else contextlib.nullcontext()

    def status(state: str, error: str = "", code: int = 0) -> None:
        if folder is None:
            return
        folder.write_status(
            state,
            error=error,
            exit_code=code,
            step=training.tick,
            wall=training.wall,
            cpu=training.cpu,
            agent_steps=training.agent_steps,
            diverged=training.diverged,
        )

    def save(place: RunFolder | None = None) -> None:
        begun = time.monotonic()
        tensors, plain = training.state_dict()  # all ranks', on the first
        place = place or folder
        if place is not None:
            plain["metrics"] = place.committed
            if place.waiting:
                plain["waiting"] = place.waiting
            checkpoint.save(
                place.checkpoints,
                training.tick,
                tensors,
                plain,
                config_digest=table_digest,
                nonfinite=_MAY_BE_NAN,
                of=about(training),
            )
        # A tenth of the time at most is spent on saving.
        now = time.monotonic()
        training.leave_at = now + max(config.run.checkpoint_seconds or _INTERVAL, 10 * (now - begun), 1.0)

    def keep(row: Row) -> None:
        assert folder is not None
        try:
            folder.append(row)
        except ResourceFault:
            if ranks.count == 1:  # who are several save together, or not at all
                with contextlib.suppress(MfmarlError):
                    save()
            raise

    try:
        if ranks.agree(ranks.first and bool(checkpoint.list_checkpoints(path / "checkpoints"))):
            _load(path, folder, training, ranks, trust)
        elif folder is not None:
            folder.truncate_to(0)
        if folder is not None:
            _remark(folder, changes, training.tick)
        status("running")
        saved, traffic = time.monotonic(), _Traffic(ranks, training.tick)
        training.leave_at = saved + max(config.run.checkpoint_seconds or _INTERVAL, 1.0)
        asked = 0
        with board as writer:
            while True:
                # Left in between too, so that a kill costs no more than an interval however rare the reports are.
                for row in training.rows():
                    if folder is not None:
                        row |= traffic.since(training.tick)
                        keep(row)
                        if writer is not None:
                            _to_tensorboard(writer, row)
                        if on_row is not None:
                            on_row(row)
                        _demand_folder(folder)
                    if ranks.agree(ranks.first and time.monotonic() - saved >= config.run.checkpoint_seconds):
                        save()
                        status("running")
                        saved = time.monotonic()
                    if ranks.agree(bool(stop.signal)):
                        break
                save()
                saved = time.monotonic()
                asked = int(ranks.largest(torch.tensor(int(stop.signal)), "word"))
                if asked or training.tick >= config.run.steps:
                    break
                status("running")
                training.stopping = False
                training.stopping = bool(stop.signal)  # it may have come in between
        if asked and training.tick < config.run.steps:
            status("interrupted", "asked to stop", 128 + asked)
            raise stop.interrupted(
                f"Stopped at step {training.tick} of {config.run.steps} and saved; go on with: "
                f"mfmarl train --resume {shlex.quote(str(path))}",
                asked,
            )
        if folder is not None:
            folder.write_all_rows()
        status("done")
        if folder is not None and training.episode.env.division.whole:
            _picture(folder, built)
        if ranks.count == 1 and stop.signal:
            raise stop.interrupted(
                f"{path} is done, and nothing was begun after it; for its report: mfmarl report {shlex.quote(str(path))}"
            )
    except Interrupted:
        raise
    except MfmarlError as error:
        if _is_memory(error):
            _try_status(status, "out of memory", 8)
            raise ResourceFault(_NO_MEMORY) from error
        if folder is not None and ranks.count == 1 and not folder.is_there():
            raise _rescued(config, folder, training, save) from error
        _try_status(status, str(error), error.exit_code)
        _keep_traceback(folder, error)
        raise
    except KeyboardInterrupt:
        if not stop.signal:
            _try_status(status, "interrupted", 130, "interrupted")
            raise
        _try_status(status, "asked twice to stop: stopped at once", 128 + stop.signal, "interrupted")
        raise stop.interrupted(
            f"Stopped at once at step {training.tick}; the last checkpoint stands: mfmarl train --resume "
            f"{shlex.quote(str(path))}"
        ) from None
    except Exception as error:
        if _is_memory(error):
            _try_status(status, "out of memory", 8)
            raise ResourceFault(_NO_MEMORY) from error
        _try_status(status, f"{type(error).__name__}: {error}", 3)
        raise EnvironmentFault(_told(error, training)) from error


def _remark(folder: RunFolder, changes: list[str], step: int) -> None:
    """Say and keep that a run goes on under other conditions."""
    told = _rounding(changes)
    if told:
        remark = f"from step {step} on not bitwise the run that was begun: {'; '.join(told)}"
        folder.remarks.append(remark)
        warnings.warn(f"{folder.path}: {remark}.", run_folder.RunWarning, stacklevel=3)


def _demand_folder(folder: RunFolder) -> None:
    if not folder.is_there():
        raise ResourceFault(f"{folder.path} was deleted, moved or replaced while it was being written.", "run-deleted")


def _rescued(
    config: RunConfig, folder: RunFolder, training: Training, save: Callable[[RunFolder], None]
) -> ResourceFault:
    """Keep the last state beside a folder that is gone, as a run that can go on; what to say of it."""
    gone = f"{folder.path} was deleted, moved or replaced while it was being written"
    for parent in (folder.path.parent, Path(tempfile.gettempdir())):
        path = _unused(parent, f"{folder.path.name[:150]}-rescued")
        try:
            with run_folder.create(path, {**config.to_table(), "versions": versions()}) as beside:
                beside.begin_with(folder.rows_as_written())
                beside.remarks = [*folder.remarks, f"rescued at step {training.tick}: {gone}"]
                save(beside)
                beside.write_status(
                    "interrupted", error=gone, exit_code=8, step=training.tick, wall=training.wall, cpu=training.cpu,
                    agent_steps=training.agent_steps,
                )  # fmt: skip
        except (MfmarlError, OSError):
            continue
        return ResourceFault(
            f"{gone}; step {training.tick} was saved in {path}: mfmarl train --resume {shlex.quote(str(path))}",
            "run-deleted",
        )
    return ResourceFault(f"{gone}, and its last state could be saved neither beside it nor elsewhere.", "run-deleted")


def _unused(parent: Path, name: str) -> Path:
    return next(path for k in range(1, 10**6) if not (path := parent / (f"{name}-{k}" if k > 1 else name)).exists())


def _told(error: Exception, training: Training) -> str:
    rules = getattr(training.episode.env, "env", None)
    name = type(rules).__name__ if rules is not None else "the environment"
    return f"{name} or its agents raised {type(error).__name__} at step {training.tick}: {error}"


def _keep_traceback(folder: RunFolder | None, error: MfmarlError) -> None:
    """What somebody else's code raised, in full, for its author: the sentence says only what and where."""
    if folder is not None and isinstance(error, EnvironmentFault) and error.__cause__ is not None:
        told = "".join(traceback.format_exception(error.__cause__))[-100_000:]
        with contextlib.suppress(ResourceFault):
            folder.write_json("fault.json", {"error": str(error), "code": error.code, "traceback": told.splitlines()})


def _try_status(
    status: Callable[[str, str, int], None], error: str, code: int, state: Literal["failed", "interrupted"] = "failed"
) -> None:
    with contextlib.suppress(ResourceFault):  # the disk may be the trouble itself
        status(state, error, code)


class _Traffic:
    """Bytes that this rank has handed over per step, since the last report."""

    def __init__(self, ranks: Ranks, tick: int) -> None:
        self.ranks, self.tick, self.before = ranks, tick, dict(ranks.sent)

    def since(self, tick: int) -> dict[str, float]:
        """By purpose; empty of one that is alone."""
        steps, sent = max(1, tick - self.tick), self.ranks.sent
        found = {f"sent/{name}": (total - self.before.get(name, 0)) / steps for name, total in sent.items()}
        self.tick, self.before = tick, dict(sent)
        return found


def _load(path: Path, folder: RunFolder | None, training: Training, ranks: Ranks, trust: Trust) -> None:
    found = checkpoint.load(path / "checkpoints", strict=trust.strict)
    step = torch.tensor(found.step)
    if int(ranks.largest(step, "word")) != -int(ranks.largest(-step, "word")):
        raise CheckpointError(
            f"Rank {ranks.rank} finds another checkpoint in {path} than the others: a run that is divided over machines "
            "needs its folder on storage that all of them share."
        )
    if "metrics" not in found.state:
        raise CheckpointError(
            f"{found.path} does not say how many rows there were: it is of no run.", "misfit-checkpoint"
        )
    # A fork may have another seed than the run that its population began in.
    own = "fork" not in run_folder.read_config(path)
    load_into(training, found, allow_nonfinite=trust.nonfinite, same_seed=own)
    if run_folder.is_run(path):
        training.diverged = str(run_folder.read_status(path).get("diverged", ""))
    if folder is not None:
        folder.truncate_to(found.state["metrics"])
        folder.take_up(found.state.get("waiting", []))


def fork(source: Path, path: Path, config: RunConfig) -> None:
    """Make a new run of another's last checkpoint, with other options; `run_in_folder` goes on with it (`resume`).

    The new folder says in its config.toml where it comes from. Raises CheckpointError where the checkpoint does not
    fit these options, ConfigError, ResourceFault: nothing is made then, and `source` is never changed.
    """
    run_folder.demand_run(source)
    found = checkpoint.load(source)
    built = _build(replace(config, run=replace(config.run, ranks=1)))
    try:
        load_into(built.training, found, same_seed=False)
        of = about(built.training)
    finally:
        built.close()
    changes = difference(_complete(run_folder.read_config(source), source), config.to_table())
    content = read_limited(found.path, checkpoint.MAX_BYTES, CheckpointError)
    origin = {
        "from": str(source.resolve()),
        "step": int(found.state["tick"]),
        "sha256": hashlib.sha256(content).hexdigest(),
        "changes": changes,
    }
    rows = read_limited(source / run_folder.METRICS, run_folder.MAX_METRICS, CheckpointError)
    state = dict(found.state)
    with run_folder.create(path, {**config.to_table(), "versions": versions(), "fork": origin}) as folder:
        folder.begin_with(rows[: int(state["metrics"])])
        folder.take_up(state.pop("waiting", []))
        state["metrics"] = folder.committed
        told = "; ".join(changes) or "nothing changed"
        folder.remarks = [f"forked at step {origin['step']} from {source.name}: {told}"]
        checkpoint.save(
            folder.checkpoints,
            found.step,
            found.tensors,
            state,
            config_digest=_digest(config),
            nonfinite=_MAY_BE_NAN,
            of=of,
        )
        folder.write_status(
            "interrupted", error="forked, not yet gone on with", step=found.step, wall=float(state["wall"]), cpu=float(state["cpu"]),
            agent_steps=int(state["agent_steps"]),
        )  # fmt: skip


def _digest(config: RunConfig) -> str:
    """Of what a run plays, whatever it is carried out with."""
    return digest({k: v for k, v in config.to_table().items() if k != "run"})


def _picture(folder: RunFolder, built: Built) -> None:
    """A picture of the population at the end, where the environment draws one. The run is done whether it can or not."""
    source = built.evaluation or built.env
    try:
        picture = source.render(0)
        if picture is not None:
            save_png(picture, folder.figures / "population.png")
    except Exception as error:  # noqa: BLE001 - an environment may raise anything
        warnings.warn(
            f"{folder.path} is done and kept, but its picture could not be drawn: {type(error).__name__}: {error}",
            run_folder.RunWarning,
            stacklevel=2,
        )


def save_png(picture: Tensor, path: Path) -> None:
    """uint8 [H, W, 3] as a PNG file. Raises ResourceFault."""
    import io

    from PIL import Image

    from mfmarl.learning.durable import write_atomic

    buffer = io.BytesIO()
    Image.fromarray(picture.cpu().numpy()).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


@contextlib.contextmanager
def _tensorboard(folder: RunFolder) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard is not installed: pip install 'mfmarl[tensorboard]'.") from error
    writer = SummaryWriter(str(folder.path / "tensorboard"))
    try:
        yield writer
    finally:
        writer.close()


def _to_tensorboard(writer: Any, row: Row) -> None:
    for name, value in row.items():
        if isinstance(value, float | int):
            writer.add_scalar(name, value, row["step"])


def load_training(path: Path, allow_nonfinite: bool = False) -> tuple[RunConfig, Built]:
    """A trained run as it was at its last checkpoint, for evaluation and pictures; nothing is written.

    `allow_nonfinite` loads NaN and infinities too, to look at what went wrong.

    Raises ConfigError, CheckpointError.
    """
    table = run_folder.read_config(path)
    config = RunConfig.from_table({k: v for k, v in table.items() if k != "versions"}, str(path))
    config.demand_typed(str(path))
    built = build(config)
    try:
        found = checkpoint.load(path)
        load_into(built.training, found, allow_nonfinite=allow_nonfinite, same_seed="fork" not in table)
    except BaseException:
        built.close()
        raise
    return config, built
