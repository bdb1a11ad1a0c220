"""One run in its folder: begun or gone on with, saved when asked to stop, and nothing finished ever lost."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError, EnvironmentFault, MfmarlError, RankLost, ResourceFault
from mfmarl.learning import checkpoint, run_folder
from mfmarl.learning.build import Built, build, known_answers, versions
from mfmarl.learning.config import difference, digest
from mfmarl.learning.run_config import RunConfig
from mfmarl.learning.run_folder import RunFolder
from mfmarl.learning.training import Training
from mfmarl.population.ranks import ALONE, Ranks

Row = dict[str, Any]
# A Box population has no action in force before its first step: NaN is its mark.
_MAY_BE_NAN = ("train.env.timestep.action", "evaluation.env.timestep.action")
# What may change when a run goes on: it does not touch the course of the run.
_FREE = ("run.steps", "run.checkpoint_seconds", "run.tensorboard", "run.workers", "run.device", "run.ranks",
         "run.divide", "versions")  # fmt: skip


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
) -> RunFolder:
    """Train as the config says, in that folder; returns the (closed) folder.

    `ranks` are those who play the run together, this process among them: each calls this, the first alone writes.
    Where the config wants several and this process is alone, it starts them here, with the user's `imports`.

    `resume` goes on with a run that is there, or says that it is done; a changed config is refused with
    the difference. Raises MfmarlError; whatever happens, the rows and checkpoints up to then are kept, and
    status.json says how it ended. SIGINT and SIGTERM finish the step in hand, save, and raise Interrupted.
    """
    if config.run.ranks > 1 and ranks.count == 1:
        from mfmarl.learning.launch import run_on_ranks

        if run_folder.is_run(path) and not resume:
            raise run_folder.exists(path)
        if not resume or not _is_done(config, path):
            return run_on_ranks(config, path, resume, on_row, imports)
    config = replace(config, run=replace(config.run, ranks=ranks.count))
    built: Built | None = None
    folder: RunFolder | None = None
    try:
        # Everything that can be refused is refused before the folder is made.
        done = resume and ranks.first and _is_done(config, path)
        if not done:
            built = _build(config, ranks)
        if ranks.first:
            folder = _open_folder(config, path, resume)
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
                _go(config, path, folder, built, on_row, ranks)
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


def _is_done(config: RunConfig, path: Path) -> bool:
    """Whether the run there has ended as this config wants it. Raises ConfigError where it is another run."""
    if not run_folder.is_run(path):
        return False
    _refuse_changes(config, path)
    return run_folder.read_status(path)["state"] == "done" and _steps_of(path) == config.run.steps


def _open_folder(config: RunConfig, path: Path, resume: bool) -> RunFolder:
    if resume and run_folder.is_run(path):
        return run_folder.reopen(path)
    return run_folder.create(path, {**config.to_table(), "versions": versions()})


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
    stored = run_folder.read_config(path)
    wanted = config.to_table()
    old = {k: v for k, v in stored.items() if k in wanted}
    # Compared as complete values, so that a default written out is no change.
    told = [
        line
        for line in difference(RunConfig.from_table(old, str(path)).to_table(), wanted)
        if not line.startswith(_FREE)
    ]
    if told:
        raise ConfigError(
            f"{path} was begun with another configuration ({'; '.join(told[:8])}); go on with the old one, or start a new run."
        )


def _write_reference(folder: RunFolder, built: Built) -> None:
    known = known_answers(built.env, built.players)
    folder.write_json("reference.json", {name: k._asdict() for name, k in known.items()})


class _Stop:
    """Signals ask once to finish the step and save; a second one leaves at once."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.signal = 0
        self.old: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _frame: Any) -> None:
        if self.signal:
            for old_number, handler in self.old.items():
                signal.signal(old_number, handler)
            raise KeyboardInterrupt
        self.signal = number
        self.training.stopping = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def _go(
    config: RunConfig,
    path: Path,
    folder: RunFolder | None,
    built: Built,
    on_row: Callable[[Row], None] | None,
    ranks: Ranks,
) -> None:
    """The run itself. `folder` is None on all ranks but the first, who do the same and write nothing."""
    training = built.training
    table_digest = digest({k: v for k, v in config.to_table().items() if k != "run"})
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
        )

    def save() -> None:
        tensors, plain = training.state_dict()  # all ranks', on the first
        if folder is None:
            return
        plain["metrics"] = folder.committed
        checkpoint.save(
            folder.checkpoints, training.tick, tensors, plain, config_digest=table_digest, nonfinite=_MAY_BE_NAN
        )

    try:
        if ranks.agree(ranks.first and bool(checkpoint.list_checkpoints(path / "checkpoints"))):
            _load(path, folder, training, ranks)
        elif folder is not None:
            folder.truncate_to(0)
        status("running")
        saved, traffic = time.monotonic(), _Traffic(ranks, training.tick)
        with _Stop(training) as stop, board as writer:
            for row in training.rows():
                if folder is not None:
                    row |= traffic.since(training.tick)
                    folder.append(row)
                    if writer is not None:
                        _to_tensorboard(writer, row)
                    if on_row is not None:
                        on_row(row)
                if ranks.agree(ranks.first and time.monotonic() - saved >= config.run.checkpoint_seconds):
                    save()
                    status("running")
                    saved = time.monotonic()
                if ranks.agree(bool(stop.signal)):
                    break
            save()
            asked = int(ranks.largest(torch.tensor(int(stop.signal)), "word"))
            if asked and training.tick < config.run.steps:
                code = 130 if asked == signal.SIGINT else 143
                status("interrupted", "asked to stop", code)
                error = Interrupted(
                    f"Stopped at step {training.tick} of {config.run.steps} and saved; go on with: mfmarl train --resume {path}"
                )
                error.exit_code = code
                raise error
        if folder is not None and training.episode.env.division.whole:
            _picture(folder, built)
        status("done")
    except Interrupted:
        raise
    except MfmarlError as error:
        if _is_memory(error):
            _try_status(status, "out of memory", 8)
            raise ResourceFault(_NO_MEMORY) from error
        _try_status(status, str(error), error.exit_code)
        raise
    except KeyboardInterrupt:
        _try_status(status, "interrupted twice: stopped at once", 130)
        raise
    except Exception as error:
        if _is_memory(error):
            _try_status(status, "out of memory", 8)
            raise ResourceFault(_NO_MEMORY) from error
        _try_status(status, f"{type(error).__name__}: {error}", 3)
        raise EnvironmentFault(_told(error, training)) from error


def _told(error: Exception, training: Training) -> str:
    rules = getattr(training.episode.env, "env", None)
    name = type(rules).__name__ if rules is not None else "the environment"
    return f"{name} or its agents raised {type(error).__name__} at step {training.tick}: {error}"


def _try_status(status: Callable[[str, str, int], None], error: str, code: int) -> None:
    with contextlib.suppress(ResourceFault):  # the disk may be the trouble itself
        status("failed", error, code)


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


def _load(path: Path, folder: RunFolder | None, training: Training, ranks: Ranks) -> None:
    found = checkpoint.load(path / "checkpoints")
    step = torch.tensor(int(found.state["tick"]))
    if int(ranks.largest(step, "word")) != -int(ranks.largest(-step, "word")):
        raise CheckpointError(
            f"Rank {ranks.rank} finds another checkpoint in {path} than the others: a run that is divided over machines "
            "needs its folder on storage that all of them share."
        )
    try:
        training.load_state_dict(found.tensors, found.state)
    except MfmarlError:
        raise
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{found.path} does not fit this run ({type(error).__name__}: {str(error)[:200]}); "
            "it was made by another agent, environment or version: start a new run."
        ) from error
    if folder is not None:
        folder.truncate_to(int(found.state["metrics"]))
    if found.torch != str(torch.__version__):
        warnings.warn(
            f"This run was begun with torch {found.torch} and goes on with {torch.__version__}: not bitwise from here.",
            stacklevel=2,
        )


def _picture(folder: RunFolder, built: Built) -> None:
    """A picture of the population at the end, where the environment draws one."""
    source = built.evaluation or built.env
    picture = source.render(0)
    if picture is not None:
        save_png(picture, folder.figures / "population.png")


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


def load_training(path: Path) -> tuple[RunConfig, Built]:
    """A trained run as it was at its last checkpoint, for evaluation and pictures; nothing is written.

    Raises ConfigError, CheckpointError.
    """
    table = run_folder.read_config(path)
    config = RunConfig.from_table({k: v for k, v in table.items() if k != "versions"}, str(path))
    built = build(config)
    try:
        found = checkpoint.load(path)
        built.training.load_state_dict(found.tensors, found.state)
    except MfmarlError:
        built.close()
        raise
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        built.close()
        raise CheckpointError(f"{path} does not fit its own configuration ({error}); was it edited?") from error
    return config, built
