"""Checkpoints that are damaged, foreign, hostile or old."""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError, MfmarlError, NumericFault
from mfmarl.learning import checkpoint, fit, run_folder
from mfmarl.learning.build import build
from mfmarl.learning.checkpoint import LATEST, Checkpoint, CheckpointWarning, list_checkpoints, load
from mfmarl.learning.run import _FREE as FREE
from mfmarl.learning.run import is_done, load_training
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.options import Option, from_table, options_of, to_table, with_option
from mfmarl.registry import entries, lookup
from mfmarl.selftest.case import Case, case, expect
from mfmarl.selftest.catalogue.storage import resume, train
from mfmarl.selftest.command import forked
from mfmarl.selftest.corruption import document_of, hostile_files, place, with_header
from mfmarl.selftest.crashes import save_at
from mfmarl.selftest.golden import RECIPES, Unavailable, folders, try_release
from mfmarl.selftest.resume import differences

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def _trained(folder: Path, name: str = "run") -> Path:
    train(folder, name).expect(0)
    return folder / "runs" / name


def _give(run: Path, content: bytes, step: int = 20) -> Path:
    """Put a file in the place of the run's latest checkpoint, with right digests in every place outside it."""
    home = run / "checkpoints"
    for path in home.iterdir():
        path.unlink()
    return place(home, content, step, 0)


def _forge(run: Path, change: Change) -> Path:
    """Change the latest checkpoint as one who makes every digest right again."""
    found = load(run)
    document, tensors = document_of(found), dict(found.tensors)
    change(document, tensors)
    return _give(run, checkpoint.serialise(document, tensors), found.step)


def _refused(path: Path) -> str:
    """What a checkpoint is refused with; empty: it was loaded."""
    try:
        load(path)
    except CheckpointError as error:
        return str(error)
    return ""


@case(25, "a pickle, zip or tar with a payload as checkpoint", "S1", "exit 4 by its first bytes; nothing in it is run")
def payloads(folder: Path) -> None:
    run, marker = _trained(folder), folder / "executed"
    corpus = hostile_files(marker, 100)
    attacks = [name for name, content in corpus.items() if b"posix\nmkdir" in content]
    attacks += ["torch zip", "stable-baselines3", "gzip", "zip bomb", "torchscript"]
    expect(len(attacks) >= 12, f"only {len(attacks)} payloads")
    for name in attacks:
        path = _give(run, corpus[name])
        expect(bool(_refused(path)) and bool(_refused(run)), f"{name} was loaded")
    for name in ("pickle", "torch zip"):
        _give(run, corpus[name])
        resume(folder, "run", "--steps", "30").expect(4, "foreign-checkpoint", "Nothing in it was run")
    expect(not marker.exists(), "a payload was run")


@case(26, "a callable named in a checkpoint", "S1", "exit 4: an unknown key, whatever it names")
def named_callables(folder: Path) -> None:
    run = _trained(folder)
    kept = run.with_name("kept")
    shutil.copytree(run, kept)
    keys = (
        "_target_",
        "_instantiator",
        "__class__",
        "__reduce__",
        "!!python/object/apply:os.system",
        "py/object",
        "_partial_",
    )
    for key in keys:
        for value in ("os.system", {"_target_": "os.system"}, ["os.system", "true"]):
            found = load(kept)
            document, named = document_of(found), {key: value}
            whole = checkpoint.serialise({**document, **named}, found.tensors)
            expect(bool(_refused(_give(run, whole))), f"{key} beside the document was taken")
            inside = checkpoint.serialise({**document, "state": {**found.state, **named}}, found.tensors)
            _give(run, inside)
            try:
                _, built = load_training(run)
                built.close()
                expect(False, f"{key} in the state was taken")
            except CheckpointError:
                pass
    resume(folder, "run", "--steps", "30").expect(4, "misfit-checkpoint", "is not wanted")


@case(27, "a file that ends too early", "S1", "exit 4; the one before is named, with the command that uses it")
def truncated(folder: Path) -> None:
    home = folder / "small"
    home.mkdir()
    good, path = save_at(home, 1), save_at(home, 2)
    content = path.read_bytes()
    for size in range(0, len(content), 3):
        path.write_bytes(content[:size])
        told = _refused(home)
        expect(good.name in told, f"cut at {size} bytes: {told!r} does not name {good.name}")
    run = _trained(folder)
    newest, before = list_checkpoints(run / "checkpoints")[:2]
    newest.write_bytes(newest.read_bytes()[:-100])
    answer = resume(folder, "run", "--steps", "30").expect(
        4, "damaged-checkpoint", before.name, "to go on from it: rm "
    )
    command = shlex.split(answer.err.split("to go on from it: ")[1].rsplit(" [", 1)[0])
    expect(command[2] == "&&" and command[3:6] == ["mfmarl", "train", "--resume"], f"the command is {command}")
    (folder / command[1]).unlink()
    forked([*command[4:], "--quiet"], folder).expect(0)


@case(28, "one bit flipped", "S2", "exit 4 at every byte of the file, wherever it lies")
def flipped(folder: Path) -> None:
    home = folder / "small"
    home.mkdir()
    path = save_at(home, 2)
    content = path.read_bytes()
    (folder / "copied").mkdir()
    for at in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        for where in (path, folder / "copied" / "copy.safetensors"):
            where.write_bytes(damaged)
            if not _refused(where):
                same = load(where)
                expect(
                    same.step == 2
                    and bool(torch.equal(same.tensors["rng"], load_bytes(folder, content).tensors["rng"])),
                    f"byte {at}",
                )
    run = _trained(folder)
    newest = list_checkpoints(run / "checkpoints")[0]
    raw = bytearray(newest.read_bytes())
    raw[-7] ^= 16
    newest.write_bytes(raw)
    resume(folder, "run", "--steps", "30").expect(4, "damaged-checkpoint", "sha256", "The last good one is")


def load_bytes(folder: Path, content: bytes) -> Checkpoint:
    path = folder / "whole.safetensors"
    path.write_bytes(content)
    return load(path)


@case(29, "wrong shape, missing, extra, wrong type", "S2", "exit 4, all differences in one message, nothing loaded")
def misfits(folder: Path) -> None:
    run = _trained(folder)

    def change(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        names = sorted(n for n in tensors if n.startswith("player.0.agent.") and tensors[n].ndim > 1)
        told.extend(names[:3])
        tensors[names[0]] = tensors[names[0]].mT.contiguous().unsqueeze(0)
        tensors[names[1]] = tensors[names[1]].to(torch.float64)
        del tensors[names[2]]
        tensors["player.0.agent.extra"] = torch.ones(1)

    told: list[str] = []
    _forge(run, change)
    resume(folder, "run", "--steps", "30").expect(
        4, "misfit-checkpoint", f"{told[0]} has shape", f"{told[1]} is float64, expected float32", f"{told[2]} is missing",
        "player.0.agent.extra is not wanted",
    )  # fmt: skip


@case(30, "NaN or infinity in weights or optimiser", "S2", "never saved; exit 4 unless --allow-nonfinite")
def not_finite(folder: Path) -> None:
    run = _trained(folder)
    good = load(run)
    for part in (".agent.", ".optimiser."):
        name = next(n for n in sorted(good.tensors) if part in n and good.tensors[n].ndim > 1)
        bad = good.tensors[name].clone()
        bad.view(-1)[0] = float("nan") if part == ".agent." else float("inf")
        try:
            checkpoint.save(folder, 1, {name: bad}, {})
            expect(False, f"{name} was saved with NaN")
        except NumericFault as fault:
            expect(fault.code == "nonfinite-state", f"the code is {fault.code}")
        _forge(run, lambda _, tensors, name=name, bad=bad: tensors.update({name: bad}))  # type: ignore[misc]
        resume(folder, "run", "--steps", "30").expect(4, "nonfinite-checkpoint", name, "--allow-nonfinite")
        _, built = load_training(run, allow_nonfinite=True)
        built.close()
        _give(run, checkpoint.serialise(document_of(good), good.tensors))
    resume(folder, "run", "--steps", "30").expect(0)


@case(31, "a checkpoint of another agent, environment or population", "S2", "exit 4, naming both")
def of_another(folder: Path) -> None:
    run = _trained(folder)
    table = [
        *("train", "congestion", "--num-agents", "6", "--agent", "mfac", "--copies", "1", "--evaluation-copies", "0")
    ]
    forked([*table, "--steps", "10", "--warm-up", "8", "--name", "other", "--quiet"], folder).expect(0)
    other = load(folder / "runs" / "other")
    _give(run, other.path.read_bytes(), other.step)
    answer = resume(folder, "run", "--steps", "30").expect(
        4, "misfit-checkpoint", "MFAC", "MFQ", "6 agents", "4 agents"
    )
    expect(len(answer.err) < 6000, "the message has no end")
    every: dict[str, tuple[Any, Checkpoint]] = {}
    options = RunOptions(steps=9, copies=1, evaluation_copies=0, exploitability="off")
    for environment, choice in (
        ("left_right", {"num_agents": 4}),
        ("congestion", {"num_agents": 4}),
        ("left_right", {"num_agents": 6}),
    ):
        for name in entries("agent"):
            try:
                built = build(RunConfig(Choice(environment, choice), {"all": Choice(name)}, options))
            except MfmarlError:
                continue
            tensors, plain = built.training.state_dict()
            label = f"{name} in {environment} of {choice['num_agents']}"
            every[label] = (
                built,
                Checkpoint(0, tensors, plain, Path(f"{label}.safetensors"), of=fit.about(built.training)),
            )
    expect(len(every) >= 20, f"only {len(every)} runs could be made")
    for one, (built, own) in every.items():
        fit.check(built.training, own)
        for label, (_, found) in every.items():
            alike = found.tensors.keys() == own.tensors.keys() and all(
                found.tensors[n].shape == t.shape for n, t in own.tensors.items()
            )
            try:
                fit.check(built.training, found)
                expect(label == one or (alike and found.of == own.of), f"a checkpoint of {label} was taken by {one}")
            except CheckpointError as error:
                expect(label != one and error.code == "misfit-checkpoint", f"{one} refused its own: {error}")
    for built, _ in every.values():
        built.close()


@case(32, "a changed configuration", "S2", "exit 2 with the difference and how to fork; what is free to change goes on")
def changed(folder: Path) -> None:
    """Every option of the run, its environment and its agent, each changed once."""
    run = _trained(folder)
    stored = {k: v for k, v in run_folder.read_config(run).items() if k in ("run", "environment", "agents")}
    config, tried = RunConfig.from_table(stored, str(run)), 0
    parts: dict[str, tuple[type, dict[str, Any]]] = {
        "run": (RunOptions, stored["run"]),
        "environment": (lookup("environment", "congestion").load(), config.environment.options),
        "agents.all": (lookup("agent", "mfq").load().Config, config.agents["all"].options),
    }
    for part, (kind, table) in parts.items():
        for option in options_of(kind):
            other, key = _with_another(kind, table, option), f"{part}.{option.name}"
            if other is None:
                expect(not option.settable, f"no other value of {key} is known here: it was not changed")
                continue
            tried += 1
            if key in FREE:
                is_done(_with_part(config, part, other), run)
                continue
            try:
                is_done(_with_part(config, part, other), run)
                expect(False, f"another {key} was taken without a word")
            except ConfigError as error:
                told = error.code == "config-changed" and f"{key}: " in str(error) and "--fork" in str(error)
                expect(told, f"the change of {key} is not named: {error}")
    expect(tried >= 45, f"only {tried} options were changed")
    for name, value in (("seed", "5"), ("horizon", "7"), ("batch-size", "9")):
        resume(folder, "run", f"--{name}", value).expect(2, "config-changed", name.replace("-", "_"), "--fork")
    resume(folder, "run", "--steps", "30", "--threads", "2").expect(0)
    resume(folder, "run", "--fork", "forked", "--seed", "5", "--steps", "40", "--threads", "1").expect(0)
    expect(
        load(folder / "runs" / "forked").step == 40 and load(run).step == 30, "the fork did not go on, or the run did"
    )


_VALUES = ("1", "2", "5", "0.5", "0.25", "0.001", "0", "3,5", "3,5,3,5", "cuda", "none", "nothing", "linear(0.5, 0.25)")
_ALONG = {"weight_temperature": {"optimiser": "sgld"}}  # what an option is refused without


def _with_another(kind: type, table: dict[str, Any], option: Option) -> dict[str, Any] | None:
    """The table with another value of one option that it may have; None: there is none that is known here."""
    now = to_table(from_table(kind, table))
    for text in (*option.choices, *_VALUES):
        try:
            other = {**_ALONG.get(option.name, {}), **with_option(kind, table, option.name, text)}
            if to_table(from_table(kind, other)) != now:
                return other
        except MfmarlError:
            continue
    return None


def _with_part(config: RunConfig, part: str, table: dict[str, Any]) -> RunConfig:
    if part == "run":
        return replace(config, run=from_table(RunOptions, table))
    if part == "environment":
        return replace(config, environment=Choice(config.environment.name, table))
    return replace(config, agents={"all": Choice(config.agents["all"].name, table)})


@case(
    33,
    "a checkpoint of an older or newer version",
    "S1",
    "older: brought forward and gone on with; newer: exit 4, naming it",
)
def versions(folder: Path) -> None:
    tried = 0
    for source in folders()[:4]:
        try:
            try_release(source, folder / source.name)
            tried += 1
        except Unavailable:
            continue
    expect(tried > 0, "there is no run folder of a release")
    run = _trained(folder)
    found = load(run)
    newer = {**document_of(found), "schema": checkpoint.SCHEMA + 1, "mfmarl": "9.8.7"}
    _give(run, checkpoint.serialise(newer, found.tensors))
    resume(folder, "run", "--steps", "30").expect(4, "newer-checkpoint", "9.8.7", f"up to {checkpoint.SCHEMA}")


@case(
    34, "another torch, processor or number of threads", "S2", "goes on, and says once that it is not bitwise from here"
)
def other_machine(folder: Path) -> None:
    run = _trained(folder)
    text = (run / "config.toml").read_text(encoding="utf-8")
    version = run_folder.read_config(run)["versions"]["torch"]
    (run / "config.toml").write_text(text.replace(f'torch = "{version}"', 'torch = "2.8.0"'), encoding="utf-8")
    answer = resume(folder, "run", "--steps", "30", "--threads", "2").expect(0, "", "not bitwise", "2.8.0", "threads")
    expect(answer.err.count("not bitwise") == 1, "it is said more than once")
    again = resume(folder, "run", "--steps", "40", "--threads", "2").expect(0)
    expect("not bitwise" not in again.err, "it is said again where nothing changed")


@case(35, "sizes that cannot be", "S1", "exit 4 from the size of the file, in no memory")
def huge(folder: Path) -> None:
    run = _trained(folder)
    corpus = hostile_files(folder / "never", 20_000)
    process = psutil.Process()
    _refused(_give(run, corpus["header of 8 PiB"]))
    before = process.memory_info().rss
    for name, content in corpus.items():
        if "header of" in name or "tensor" in name or "offsets" in name or "digits" in name:
            expect(bool(_refused(_give(run, content))), f"{name} was loaded")
    with (folder / "sparse.safetensors").open("wb") as file:
        file.write(with_header({"__metadata__": {"state": "{}"}}))
        file.truncate(2**40)
    expect(bool(_refused(folder / "sparse.safetensors")), "a file of a terabyte was loaded")
    growth = (process.memory_info().rss - before) / 2**20
    expect(growth < 50, f"memory grew by {growth:.0f} MB")
    _give(run, corpus["header of 8 PiB"])
    resume(folder, "run", "--steps", "30").expect(
        4, "damaged-checkpoint", "declares a header of 9,007,199,254,740,992 bytes"
    )


@case(36, "latest.json names a file that is not there", "S1", "the newest whole one, with a warning; --strict: exit 4")
def latest_lost(folder: Path) -> None:
    run = _trained(folder)
    newest, before = list_checkpoints(run / "checkpoints")[:2]
    (run / "checkpoints" / LATEST).unlink()
    resume(folder, "run", "--strict", "--steps", "30").expect(4, "damaged-checkpoint", newest.name)
    newest.unlink()
    entry = {"file": newest.name, "sha256": "0" * 64, "bytes": 5}
    (run / "checkpoints" / LATEST).write_text(json.dumps(entry), encoding="utf-8")
    resume(folder, "run", "--strict", "--steps", "30").expect(4, "damaged-checkpoint", before.name)
    answer = resume(folder, "run", "--steps", "30").expect(0, "", "Going on from", before.name)
    expect(answer.err.count("Going on from") == 1, "the warning is not one")
    for damage in (
        b"",
        b"{",
        b"[" * 10_000,
        b'{"file": "../../etc/passwd", "sha256": "0", "bytes": 3}',
        b'{"bytes": NaN}',
    ):
        (run / "checkpoints" / LATEST).write_bytes(damage)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            expect(load(run).step == 30, "not the newest was taken")
        expect(any(issubclass(w.category, CheckpointWarning) for w in heard), f"{damage[:20]!r}: nothing was said")


@case(37, "state of random numbers that cannot be", "S2", "exit 4: too short, all zero, negative, of another seed")
def other_noise(folder: Path) -> None:
    run = _trained(folder)
    for halves in ([0, 0], [-1, 5], [2**32, 5], [2**63 - 1, -(2**63)]):
        whole = load(run).path.read_bytes()
        _forge(run, lambda _, tensors, halves=halves: tensors.update({"train.env.key": torch.tensor(halves)}))  # type: ignore[misc]
        try:
            _, built = load_training(run)
            built.close()
            expect(False, f"the noise {halves} was taken")
        except CheckpointError as error:
            expect("train.env.key" in str(error), f"{error} does not name it")
        if halves[0] != 2**63 - 1:
            _give(run, whole)
    resume(folder, "run", "--steps", "30").expect(4, "misfit-checkpoint", "train.env.key")
    config = RECIPES["weights_with_noise"].config()
    fresh, built = build(config), build(config)
    for _ in range(6):
        built.training.step()
    tensors, plain = built.training.state_dict()
    name = next(n for n in tensors if n.endswith(".noise"))
    fit.check(fresh.training, Checkpoint(6, tensors, plain, Path("noise")))
    for wrong in (torch.zeros_like(tensors[name]), tensors[name][:100], tensors[name].float(), tensors[name].flip(0)):
        try:
            fit.check(fresh.training, Checkpoint(6, {**tensors, name: wrong}, plain, Path("noise")))
            expect(False, f"a generator of {tuple(wrong.shape)} {wrong.dtype} was taken")
        except CheckpointError:
            pass
    fresh.close()
    built.close()


_WALK = """
import gymnasium, numpy as np
from pettingzoo import ParallelEnv

class Walk(ParallelEnv):
    metadata = {"name": "walk"}

    def __init__(self, shaken=False):
        self.possible_agents = ["a", "b", "c"]
        self.shaken = shaken

    def observation_space(self, agent):
        return gymnasium.spaces.Box(-100.0, 100.0, (2,))

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(3)

    def _seen(self):
        return {a: np.array([self.place[a], self.clock], np.float32) for a in self.agents}

    def reset(self, seed=None, options=None):
        self.noise = np.random.default_rng(None if self.shaken else seed)
        self.agents, self.clock = list(self.possible_agents), 0
        self.place = {a: float(self.noise.normal()) for a in self.agents}
        return self._seen(), {a: {} for a in self.agents}

    def step(self, actions):
        self.clock += 1
        for a in self.agents:
            self.place[a] += actions[a] - 1 + 0.1 * float(self.noise.normal())
        paid = {a: -abs(self.place[a]) for a in self.agents}
        seen, over = self._seen(), self.clock >= 9
        flags = {a: over for a in self.agents}
        told = seen, paid, {a: False for a in self.agents}, flags, {a: {} for a in self.agents}
        self.agents = [] if over else self.agents
        return told
"""


@case(
    38, "a third-party environment in the middle of an episode", "S2", "its actions are played again: bitwise the same"
)
def mid_episode(folder: Path) -> None:
    (folder / "walk.py").write_text(_WALK, encoding="utf-8")
    table = [
        *(
            "train",
            "walk.py:Walk",
            "--agent",
            "mfq",
            "--hidden",
            "4",
            "--capacity",
            "24",
            "--warm-up",
            "8",
            "--batch-size",
            "8",
        )
    ]
    table += [
        *("--copies", "2", "--evaluation-copies", "1", "--report-every", "4", "--checkpoint-seconds", "0", "--quiet")
    ]
    forked([*table, "--steps", "14", "--name", "cut"], folder).expect(0)
    found = load(folder / "runs" / "cut")
    expect(len(found.tensors["train.env.log.0"]) == 5, "the run was not left in the middle of an episode")
    resume(folder, "cut", "--import", "walk.py", "--steps", "24").expect(0)
    forked([*table, "--steps", "14", "--name", "whole"], folder).expect(0)
    resume(folder, "whole", "--import", "walk.py", "--steps", "24").expect(0)
    unlike = differences(folder / "runs" / "cut", folder / "runs" / "whole")
    expect(not unlike, f"it did not go on as it would have: {unlike[:5]}")
    forked([*table, "--steps", "14", "--name", "shaken", "--shaken", "true"], folder).expect(0)
    resume(folder, "shaken", "--import", "walk.py", "--steps", "24").expect(4, "", "led elsewhere")


CASES: list[Case] = [
    payloads,
    named_callables,
    truncated,
    flipped,
    misfits,
    not_finite,
    of_another,
    changed,
    versions,
    other_machine,
    huge,
    latest_lost,
    other_noise,
    mid_episode,
]
