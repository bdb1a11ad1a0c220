"""Checkpoints survive: kills at every byte and call, failing disks, damage of every kind, hostile files.

The promises are those of a database: what `save` has acknowledged is there, what is there is whole, and a state is
the old one or the new one. `docs` of the format: mfmarl/learning/checkpoint.py.
"""

from __future__ import annotations

import ast
import errno
import gzip
import hashlib
import io
import json
import os
import pickle  # noqa: TID251 - to make hostile files
import random
import resource
import shlex
import signal
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, MfmarlError, NumericFault, ResourceFault
from mfmarl.learning import checkpoint, durable
from mfmarl.learning.checkpoint import LATEST, Checkpoint, CheckpointWarning, list_checkpoints, load, save

DATA = Path(__file__).parent / "data"


def _tensors(fill: float = 0.5) -> dict[str, Tensor]:
    return {"policy.weight": torch.full((2, 3), fill), "optimiser.step": torch.tensor(7), "rng": torch.arange(5).byte()}


def _state(step: int) -> dict[str, Any]:
    return {"step": step, "metrics": 120 * step, "agents": {"all": {"temperature": 1 / 3, "updates": 2**53 + step}}}


def _save(folder: Path, step: int) -> Path:
    return save(folder, step, _tensors(float(step)), _state(step), config_digest="abc")


def _assert_is(found: Checkpoint, step: int) -> None:
    assert found.step == step and found.state == _state(step) and found.config_digest == "abc"
    assert found.tensors.keys() == _tensors().keys()
    for name, tensor in _tensors(float(step)).items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype


def _in_child(action: Callable[[], object]) -> int:
    """What a forked process that does this ends with: 0, 1 for an exception, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def _calls_counted(monkeypatch: pytest.MonkeyPatch, before: Callable[[int, str], None]) -> Iterator[None]:
    """Every call that changes the disk is announced before it is made, with its number and name."""
    count = 0

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            before(count, name)
            return real(*args, **keywords)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "write", "fsync", "close", "replace", "unlink", "mkdir"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield


# What is saved is what is loaded

ODD_TENSORS = {
    "bool": torch.tensor([[True], [False]]),
    "uint8": torch.arange(256).byte(),
    "int8": torch.tensor([-128, 127], dtype=torch.int8),
    "int16": torch.tensor([-(2**15)], dtype=torch.int16),
    "int32": torch.tensor([2**31 - 1], dtype=torch.int32),
    "int64": torch.tensor([2**63 - 1, -(2**63)]),
    "half": torch.tensor([1 / 3]).half(),
    "bfloat": torch.tensor([1 / 3]).bfloat16(),
    "float": torch.tensor([1e-45, -0.0, 3.4e38]),
    "double": torch.tensor([1 / 3, 5e-324], dtype=torch.float64),
    "scalar": torch.tensor(2.5),
    "scalar.bool": torch.tensor(True),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "strided": torch.arange(12)[::3],
    "expanded": torch.tensor(3.0).expand(4, 4),
    "flipped": torch.arange(4).flip(0),
    "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "generator": torch.Generator().manual_seed(5).get_state(),
    'name with ü, "quotes" and /': torch.ones(1),
}


def test_tensors_of_every_type_and_layout_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.arange(10.0)
    tensors = {**ODD_TENSORS, "shared": shared, "again": shared, "slice": shared[2:5]}
    found = load(save(tmp_path, 0, tensors, {}))
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = found.tensors[name]
        assert back.dtype == tensor.dtype and back.shape == tensor.shape, name
        bits = [
            t.detach().reshape(-1).contiguous().numpy(force=True).tobytes()
            if t.dtype != torch.bfloat16
            else t.view(torch.int16).numpy().tobytes()
            for t in (back, tensor)
        ]
        assert bits[0] == bits[1], name
    found.tensors["float"].add_(1)  # what is loaded can be written to
    assert load(tmp_path).tensors["float"][1] == 0


@pytest.mark.parametrize("step", [0, 1, 2**53 + 1, 2**63 - 1])
def test_whole_numbers_stay_whole_numbers(step: int, tmp_path: Path) -> None:
    state = {"n": step, "negative": -step, "huge": 2**200 + 1, "list": [1, 1.0, True, None, "ü\n"], "": {}}
    found = load(save(tmp_path, step, {}, state))
    assert found.step == step
    assert json.dumps(found.state, sort_keys=True) == json.dumps(state, sort_keys=True)
    assert type(found.state["list"][1]) is float and type(found.state["list"][0]) is int


def test_the_same_state_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    reversed_ = dict(reversed(ODD_TENSORS.items()))
    one = save(tmp_path / "a", 3, ODD_TENSORS, {"x": 1, "y": {"p": 1, "q": 2}})
    other = save(tmp_path / "b", 3, reversed_, {"y": {"q": 2, "p": 1}, "x": 1})
    assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_latest_json_says_what_the_format_promises(tmp_path: Path) -> None:
    path = _save(tmp_path, 4)
    entry = json.loads((tmp_path / LATEST).read_text())
    content = path.read_bytes()
    assert entry.pop("mfmarl") and entry.pop("torch") == torch.__version__
    digest = hashlib.sha256(content).hexdigest()
    assert entry == {
        "file": path.name,
        "step": 4,
        "sha256": digest,
        "bytes": len(content),
        "schema": 1,
        "config_digest": "abc",
    }
    with safetensors.safe_open(path, "pt") as file:  # any safetensors reader can open it
        assert set(file.keys()) == set(_tensors())
        assert list(file.metadata()) == ["state"]
        assert json.loads(file.metadata()["state"])["state"] == _state(4)


def test_a_run_folder_a_checkpoint_folder_and_a_file_can_be_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = _save(folder, 1)
    for given in (tmp_path, folder, path):
        found = load(given)
        _assert_is(found, 1)
        assert found.path == path


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 999_999_999_999, 1_000_000_000_000):
        _save(tmp_path, step)
    assert [load(path).step for path in list_checkpoints(tmp_path)] == [1_000_000_000_000, 999_999_999_999]
    save(tmp_path, 2**53, _tensors(), {}, keep=1)
    assert [path.name[:21] for path in list_checkpoints(tmp_path)] == ["step-9007199254740992"]


def test_going_on_from_an_older_file_drops_the_course_that_was_abandoned(tmp_path: Path) -> None:
    for step in (100, 200):
        _save(tmp_path, step)
    _save(tmp_path, 150)
    assert [load(path).step for path in list_checkpoints(tmp_path)] == [150, 100]
    assert load(tmp_path).step == 150


def test_saving_a_step_twice_keeps_the_second(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    _save(tmp_path, 5)
    assert len(list_checkpoints(tmp_path)) == 1
    save(tmp_path, 5, _tensors(9.0), {"other": 1})
    assert load(tmp_path).state == {"other": 1}


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "step-000000000001-00000000.safetensors.tmp").write_bytes(b"torn")
    (tmp_path / "latest.json.tmp").write_bytes(b"torn")
    keep = ["notes.tmp", "best.safetensors", "step-1.safetensors", "x.safetensors.tmp.txt"]
    for name in keep:
        (tmp_path / name).write_text("mine")
    for step in range(4):
        _save(tmp_path, step)
    left = set(os.listdir(tmp_path)) - {path.name for path in list_checkpoints(tmp_path)} - {LATEST}
    assert left == set(keep)


# What is not saved


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_diverged_state_never_replaces_a_good_one(value: float, tmp_path: Path) -> None:
    _save(tmp_path, 1)
    with pytest.raises(NumericFault, match=r"step 2 in bad"):
        save(tmp_path, 2, {"good": torch.ones(2), "bad": torch.tensor([0.0, value])}, {})
    with pytest.raises(CheckpointError, match="JSON"):
        save(tmp_path, 2, {}, {"x": [value]})
    _assert_is(load(tmp_path), 1)


def test_infinities_are_stored_where_they_are_allowed(tmp_path: Path) -> None:
    tensors = {"simulation.energy": torch.tensor([float("inf"), float("nan")])}
    found = load(save(tmp_path, 2, tensors, {}, nonfinite=["simulation."]))
    assert found.tensors["simulation.energy"][0] == float("inf")
    found.check_fit(tensors, nonfinite=["simulation."])
    with pytest.raises(CheckpointError, match=r"simulation\.energy holds NaN"):
        found.check_fit(tensors)


@pytest.mark.parametrize(
    ("tensors", "state", "step"),
    [
        ({"z": torch.ones(2, dtype=torch.complex64)}, {}, 1),
        ({"z": torch.eye(2).to_sparse()}, {}, 1),
        ({}, {"x": object()}, 1),
        ({}, {"x": {1, 2}}, 1),
        ({}, {"x": json.loads("[" * 50 + "]" * 50)}, 1),
        ({}, {"x": torch.ones(1)}, 1),
        ({}, {}, -1),
        ({}, {}, 1.0),
        ({}, {}, True),
        ({}, {}, 2**63),
        ({"__metadata__": torch.ones(1)}, {}, 1),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_changes(
    tensors: Any, state: Any, step: Any, tmp_path: Path
) -> None:
    _save(tmp_path, 0)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(CheckpointError):
        save(tmp_path, step, tensors, state)
    assert sorted(os.listdir(tmp_path)) == before


# Kills


class _Dead(BaseException):
    """The process is no more: it cleans nothing up, for every later call that changes the disk dies too."""


@contextmanager
def _dying_at_byte(last: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a kill after `last` bytes were written looks to the disk, a hundred times cheaper than one."""
    left, dead = last, False
    real_write = os.write

    def write(descriptor: int, content: bytes) -> int:
        nonlocal left, dead
        done = 0 if dead else real_write(descriptor, content[:left])
        left -= done
        if done < len(content):
            dead = True
            raise _Dead
        return done

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if dead:
                raise _Dead
            return real(*args, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        for name in ("open", "fsync", "replace", "unlink", "mkdir"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        yield


def test_a_death_at_any_byte_leaves_the_old_state_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte through both files: that of the tensors and latest.json."""
    tensors = _save(tmp_path, 1).stat().st_size
    leftovers = set()
    for last in range(10_000):
        try:
            with _dying_at_byte(last, monkeypatch):
                _save(tmp_path, 2)
            break
        except _Dead:
            _assert_is(load(tmp_path), 1)
            leftovers |= {path.name for path in tmp_path.glob("*.tmp")}
    assert last > tensors + 200  # so both files were cut
    assert len(leftovers) == 2
    _assert_is(load(tmp_path), 2)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_kill_at_a_byte_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with real processes and real kills, at some of the bytes."""
    _save(tmp_path, 1)
    real = os.write
    kills = 0
    for last in range(0, 2000, 83):
        written = 0

        def write(descriptor: int, content: bytes, last: int = last) -> int:
            nonlocal written
            done = real(descriptor, content[: last - written])
            written += done
            if done < len(content):
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            code = _in_child(lambda: _save(tmp_path, 2))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        _assert_is(load(tmp_path), 1)
        assert list(tmp_path.glob("*.tmp"))
        kills += 1
    assert code == 0 and kills > 8
    _assert_is(load(tmp_path), 2)
    assert not list(tmp_path.glob("*.tmp"))


def test_the_kernels_own_limit_kills_in_mid_write(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the process dies by SIGXFSZ at that byte of a file, with no code of ours involved."""
    size = _save(tmp_path, 1).stat().st_size

    def limited(last: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (last, last))
        _save(tmp_path, 2)

    for last in range(0, size, 97):
        assert _in_child(partial(limited, last)) == -signal.SIGXFSZ
        _assert_is(load(tmp_path), 1)


def test_a_kill_before_any_call_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once `save` has returned, the new one."""
    acknowledged = False
    seen: set[int] = set()
    for number in range(1, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        _save(folder, 0)
        _save(folder, 1)

        def kill(count: int, name: str, number: int = number) -> None:
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        with _calls_counted(monkeypatch, kill):
            code = _in_child(partial(_save, folder, 2))
        assert code in (0, -signal.SIGKILL)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # latest.json is always whole
            found = load(folder)
        _assert_is(found, found.step)
        seen.add(found.step)
        assert found.step in (1, 2)
        assert len(list_checkpoints(folder)) >= 2
        for path in list_checkpoints(folder):
            _assert_is(load(path), checkpoint._step_of(path))
        if code == 0:
            assert found.step == 2
            acknowledged = True
            break
        _save(folder, 3)  # and the next run goes on, and cleans up
        _assert_is(load(folder), 3)
        assert not list(folder.glob("*.tmp"))
    assert acknowledged and seen == {1, 2} and number > 12


def test_data_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against power cuts: fsync(file), rename, fsync(folder), and only then the same for latest.json."""
    order: list[str] = []
    names: dict[int, str] = {}
    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

    def opened(path: Any, *args: Any, **keywords: Any) -> int:
        descriptor = real_open(path, *args, **keywords)
        names[descriptor] = Path(path).name
        return descriptor

    def synced(descriptor: int) -> None:
        order.append(f"fsync {names[descriptor]}")
        real_fsync(descriptor)

    def replaced(old: Any, new: Any) -> None:
        order.append(f"rename {Path(old).name} {Path(new).name}")
        real_replace(old, new)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    name = _save(tmp_path, 1).name
    wanted = []
    for file in (name, LATEST):
        wanted += [f"fsync {file}.tmp", f"rename {file}.tmp {file}", f"fsync {tmp_path.name}"]
    assert order == wanted


def test_an_interrupt_while_saving_leaves_a_state_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)
    for number in range(1, 20):

        def interrupt(count: int, name: str, number: int = number) -> None:
            if count == number:
                raise KeyboardInterrupt

        try:
            with _calls_counted(monkeypatch, interrupt):
                _save(tmp_path, 2)
        except KeyboardInterrupt:
            found = load(tmp_path)
            _assert_is(found, found.step)
            assert found.step in (1, 2)
        else:
            break
    _save(tmp_path, 3)
    _assert_is(load(tmp_path), 3)


# Failing disks


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM, errno.EXDEV, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_an_error_of_the_disk_is_told_and_never_called_saved(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call it is that fails: of the file, of its folder, of latest.json."""
    for nth in range(1, 9):
        folder = tmp_path / str(nth)
        folder.mkdir()
        _save(folder, 1)
        calls = 0

        def fail(_: int, name: str, nth: int = nth) -> None:
            nonlocal calls
            calls += name == call
            if name == call and calls == nth:
                raise OSError(number, os.strerror(number))

        told = ""
        try:
            with _calls_counted(monkeypatch, fail):
                _save(folder, 2)
        except ResourceFault as error:
            told = str(error)
        found = load(folder)
        _assert_is(found, found.step)
        if not told:
            assert found.step == 2
            assert nth > 2  # every save makes each of these calls at least twice
            return
        assert os.strerror(number) in told and "\n" not in told
        assert found.step in (1, 2)
        assert not list(folder.glob("*.tmp"))
    raise AssertionError("never saved")


def test_a_full_disk_is_refused_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)
    usage = durable.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda _: usage._replace(free=70_000))
    with pytest.raises(ResourceFault, match=r"full: 4,00\d,\d{3} bytes are to be written and 70,000 are free"):
        save(tmp_path, 2, {"big": torch.zeros(1_000_000)}, {})
    _assert_is(load(tmp_path), 1)
    assert len(os.listdir(tmp_path)) == 2


def test_a_quota_in_mid_write_leaves_the_old_state_and_no_leftover(tmp_path: Path) -> None:
    _save(tmp_path, 1)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        try:
            _save(tmp_path, 2)
        except ResourceFault as error:
            os._exit(42 if "Free some space" in str(error) else 1)

    assert _in_child(limited) == 42
    assert len(os.listdir(tmp_path)) == 2
    _assert_is(load(tmp_path), 1)


def test_a_deleted_run_folder_is_told_and_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(ResourceFault, match="gone"):
        _save(tmp_path / "run" / "checkpoints", 1)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceFault):
        _save(tmp_path / "file" / "checkpoints", 1)


# Damage


def _refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text and str(path.parent) in text
    return text


def test_truncated_at_any_byte_it_is_refused_and_the_good_one_named(tmp_path: Path) -> None:
    good = _save(tmp_path, 1)
    path = _save(tmp_path, 2)
    content = path.read_bytes()
    elsewhere = tmp_path / "copy.safetensors"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        text = _refused(tmp_path)
        assert str(path) in text and f"The last good one is {good.name}" in text
        elsewhere.write_bytes(content[:size])
        _refused(elsewhere)


def test_the_command_that_is_offered_goes_on_from_the_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "a run" / "checkpoints"
    folder.mkdir(parents=True)
    _save(folder, 1)
    path = _save(folder, 2)
    path.write_bytes(b"x")
    command = _refused(tmp_path / "a run").split("to go on from it: ")[1]
    rm, file, then, *train = shlex.split(command)
    assert (rm, then, train) == ("rm", "&&", ["mfmarl", "train", "--resume", str(tmp_path / "a run")])
    Path(file).unlink()
    with pytest.warns(CheckpointWarning, match="Going on from step-000000000001"):
        _assert_is(load(Path(train[-1])), 1)


def _mutated(content: bytes, random_: random.Random) -> bytes:
    text = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 3))):
        at = random_.randrange(len(text))
        kind = random_.randrange(6)
        if kind <= 2:
            text[at] ^= 1 << random_.randrange(8)
        elif kind == 3:
            del text[at : at + random_.randint(1, 40)]
        elif kind == 4:
            text[at:at] = random_.randbytes(random_.randint(1, 8))
        else:
            text[at : at + 8] = random_.choice((b"\xff" * 8, b"\0" * 8, b'"F64","X', b"[0,9999]"))
    return bytes(text)


def test_thousands_of_damaged_files_are_all_refused(tmp_path: Path) -> None:
    """The latest one, an older one, and a copy under another name that only its own contents vouch for."""
    random_ = random.Random(28)
    older, latest = _save(tmp_path, 1), _save(tmp_path, 2)
    copy = tmp_path / "copy.safetensors"
    loaded = 0
    for path in (older, latest):
        content = path.read_bytes()
        for _ in range(600):
            path.write_bytes(damaged := _mutated(content, random_))
            if damaged != content:
                with pytest.raises(CheckpointError):
                    load(path)
        path.write_bytes(content)
    for _ in range(1200):
        copy.write_bytes(_mutated(content, random_))
        try:
            found = load(copy)
        except CheckpointError:
            continue
        loaded += 1  # a blank of the header's padding
        _assert_is(found, 2)
    assert loaded < 40


def test_every_single_bit_of_a_file_counts(tmp_path: Path) -> None:
    path = _save(tmp_path, 2)
    (tmp_path / LATEST).unlink()
    content = path.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load(path)


def test_each_of_the_three_proofs_refuses_on_its_own(tmp_path: Path) -> None:
    """Size and sha256 in latest.json, the digest in the name: even for a change that alters no value."""
    path = _save(tmp_path, 2)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    padded = struct.pack("<Q", size + 8) + content[8 : 8 + size] + b" " * 8 + content[8 + size :]
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(padded)
    _assert_is(load(copy), 2)

    path.write_bytes(padded)
    assert f"has {len(padded):,} bytes, expected {len(content):,}" in _refused(path)
    (tmp_path / LATEST).rename(tmp_path / "away.json")
    assert "as in its name" in _refused(path)
    path.write_bytes(content)
    entry = json.loads((tmp_path / "away.json").read_text())
    (tmp_path / LATEST).write_text(json.dumps({**entry, "sha256": "0" * 64}))
    assert f"sha256 is {entry['sha256']}, expected 000" in _refused(path)
    (tmp_path / LATEST).write_text(json.dumps(entry))
    _assert_is(load(path), 2)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\0" * 200,
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"file": "step-000000000009-00000000.safetensors", "sha256": "0", "bytes": 3}',
        b'{"file": "../../etc/passwd", "sha256": "0", "bytes": 3}',
        b'{"file": "/etc/passwd", "sha256": "0", "bytes": 3}',
        b'{"file": ["x"], "sha256": "0", "bytes": 3}',
        b'{"file": "a", "file": "b"}',
        b'{"bytes": NaN}',
        b'{"bytes": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b" " * 2_000_000,
    ],
    ids=range(16),
)
def test_a_damaged_latest_json_gives_way_to_the_newest_good_file(damage: bytes, tmp_path: Path) -> None:
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2)
    (tmp_path / LATEST).write_bytes(damage)
    with pytest.warns(CheckpointWarning, match=newest.name):
        _assert_is(load(tmp_path), 2)
    with pytest.raises(CheckpointError, match=newest.name):
        load(tmp_path, strict=True)
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(CheckpointWarning):
        _assert_is(load(tmp_path), 1)


def test_a_latest_json_that_points_to_no_file_gives_way_too(tmp_path: Path) -> None:
    good = _save(tmp_path, 1)
    _save(tmp_path, 2).unlink()
    with pytest.warns(CheckpointWarning, match=f"missing. Going on from {good.name}"):
        _assert_is(load(tmp_path), 1)
    (tmp_path / LATEST).unlink()
    with pytest.warns(CheckpointWarning):
        _assert_is(load(tmp_path), 1)
    good.write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the checkpoints beside it is whole"):
        load(tmp_path)
    good.unlink()
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load(tmp_path)


def test_what_does_not_fit_is_listed_all_at_once(tmp_path: Path) -> None:
    found = load(_save(tmp_path, 1))
    found.check_fit(_tensors())
    expected = {
        "policy.weight": torch.zeros(3, 2, dtype=torch.float64),
        "optimiser.step": torch.tensor(7.0),
        "policy.bias": torch.zeros(3),
    }
    with pytest.raises(CheckpointError) as caught:
        found.check_fit(expected)
    text = str(caught.value)
    for part in (
        "policy.bias is missing",
        "rng is not wanted",
        "policy.weight has shape (2, 3), expected (3, 2)",
        "policy.weight is float32, expected float64",
        "optimiser.step is int64, expected float32",
    ):
        assert part in text
    with pytest.raises(CheckpointError, match="and 960 more"):
        found.check_fit({**_tensors(), **{f"x{i}": torch.ones(1) for i in range(1000)}})


# Hostile files


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def _forged(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _document(**changes: Any) -> dict[str, Any]:
    """A document whose digest is right, so that only what it says can be refused."""
    body = {"schema": 1, "step": 1, "config_digest": "", "mfmarl": "0", "torch": "2", "state": {}, **changes}
    body = {key: value for key, value in body.items() if value is not ...}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return {"__metadata__": {"state": json.dumps({**body, "contents": hashlib.sha256(text.encode()).hexdigest()})}}


def _twice(state: str) -> dict[str, Any]:
    """The same document with a key that strict readers see twice and lax ones once."""
    return {"__metadata__": {"state": '{"schema": 1, ' + state[1:]}}


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def _tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _saved_by(write: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def _corpus(marker: Path) -> dict[str, bytes]:
    payload = _Payload(marker)
    attack = pickle.dumps(payload)
    meta = _document()["__metadata__"]
    return {
        "pickle": attack,
        "pickle, protocol 0": pickle.dumps(payload, protocol=0),
        "torch zip": _saved_by(lambda out: torch.save({"state": payload}, out)),
        "torch legacy": _saved_by(lambda out: torch.save(payload, out, _use_new_zipfile_serialization=False)),
        "numpy object": _saved_by(lambda out: np.save(out, np.array([payload], dtype=object), allow_pickle=True)),
        "stable-baselines3": _zip(
            {"data": json.dumps({"policy": {":serialized:": "gASV"}}).encode(), "policy.pth": attack}
        ),
        "tar": _tar(attack),
        "gzip": gzip.compress(attack),
        "json": b'{"_target_": "os.system"}',
        "empty": b"",
        "one byte": b"\x80",
        "zeros": b"\0" * 4096,
        "header of 8 PiB": struct.pack("<Q", 2**53) + b"{}",
        "header of 2^64": b"\xff" * 8 + b"{}",
        "header of 100 MB": struct.pack("<Q", 100_000_000) + b"{" * 1000,
        "header longer than the file": struct.pack("<Q", 11) + b"{}        ",
        "header not JSON": _forged(b"{" + b"x" * 100),
        "header not UTF-8": _forged(b'{"\xff\xfe": 1}'),
        "header nested": _forged(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "header a list": _forged(b"[1, 2, 3, 4]"),
        "no metadata": _forged({"x": ONE}, b"1234"),
        "metadata a list": _forged({"__metadata__": ["state"]}),
        "metadata a number": _forged({"__metadata__": {"state": 5}}),
        "metadata nested": _forged({"__metadata__": {"state": "[" * 100_000}}),
        "metadata not JSON": _forged({"__metadata__": {"state": "import os"}}),
        "metadata NaN": _forged({"__metadata__": {"state": '{"schema": NaN}'}}),
        "_target_ beside": _forged({"__metadata__": {**meta, "_target_": "os.system"}}),
        "_target_ instead": _forged({"__metadata__": {"_target_": "os.system"}}),
        "_target_ inside": _forged(_document(_target_="os.system")),
        "_instantiator inside": _forged(_document(_instantiator="os.system")),
        "__class__ inside": _forged(_document(__class__="os.system")),
        "a key missing": _forged(_document(torch=...)),
        "schema of the future": _forged(_document(schema=99)),
        "schema a word": _forged(_document(schema="1")),
        "schema true": _forged(_document(schema=True)),
        "state nested": _forged(_document(state={"a": json.loads("[" * 100 + "]" * 100)})),
        "state infinite": _forged(
            {"__metadata__": {"state": _document()["__metadata__"]["state"].replace("{}", '{"a":1e999}')}}
        ),
        "step negative": _forged(_document(step=-1)),
        "step a float": _forged(_document(step=1.0)),
        "step true": _forged(_document(step=True)),
        "step beyond": _forged(_document(step=2**63)),
        "state a list": _forged(_document(state=[])),
        "tensor unvouched": _forged({**_document(), "x": ONE}, b"1234"),
        "tensor of 2^62": _forged({**_document(), "x": {**ONE, "shape": [2**62, 4]}}, b"1234"),
        "tensor negative": _forged({**_document(), "x": {**ONE, "shape": [-1]}}, b"1234"),
        "offsets overlap": _forged({**_document(), "x": ONE, "y": {**ONE, "data_offsets": [2, 6]}}, b"123456"),
        "offsets beyond": _forged({**_document(), "x": {**ONE, "data_offsets": [0, 2**60]}}, b"1234"),
        "bytes after the end": _forged({**_document(), "x": ONE}, b"1234" + attack),
        "dtype unknown": _forged({**_document(), "x": {**ONE, "dtype": "PICKLE"}}, b"1234"),
        "dtype complex": _forged({**_document(), "x": {**ONE, "dtype": "C64", "data_offsets": [0, 8]}}, b"12345678"),
        "a key twice": _forged(b'{"__metadata__": {"state": "1"}, "__metadata__": {"state": "2"}}'),
        "a key twice inside": _forged(_twice(meta["state"])),
        "20,000 tensors": _forged({f"t{i}": {**ONE, "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}),
        "safetensors of another": safetensors.torch.save({"x": torch.ones(1)}, {"format": "pt"}),
    }


def test_hostile_files_are_refused_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    corpus = _corpus(marker)
    assert len(corpus) > 45
    for name, content in corpus.items():
        path = tmp_path / "step-000000000005-00000000.safetensors"
        digest = hashlib.sha256(content).hexdigest()
        path = path.with_name(f"step-000000000005-{digest[:8]}.safetensors")
        path.write_bytes(content)  # with every digest outside the file right
        entry = {"file": path.name, "sha256": digest, "bytes": len(content)}
        (tmp_path / LATEST).write_text(json.dumps(entry))
        for given in (path, tmp_path):
            with pytest.raises(CheckpointError) as caught:
                load(given)
            assert path.name in str(caught.value), name
            assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value), name
        copy = tmp_path / "model.safetensors"
        copy.write_bytes(content)
        with pytest.raises(CheckpointError):
            load(copy)
        path.unlink()
    assert not marker.exists()
    pickle.loads(corpus["pickle"])
    assert marker.exists()  # the payload was live


def test_the_forged_document_would_load_but_for_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(_forged(_document(state={"a": 1})))
    assert load(tmp_path / "x.safetensors").state == {"a": 1}


@pytest.mark.parametrize(
    ("name", "word"), [("torch zip", "zip"), ("pickle", "pickle"), ("tar", "tar"), ("gzip", "gzip"), ("json", "JSON")]
)
def test_a_foreign_file_is_called_by_its_name(name: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_corpus(tmp_path / "never")[name])
    assert word in _refused(path)


def test_a_newer_schema_says_which_version_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_forged(_document(schema=2)))
    assert "newer schema 2" in _refused(path)


def test_what_is_not_a_plain_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    real = _save(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "link.safetensors").symlink_to(real)
    with (tmp_path / "sparse.safetensors").open("wb") as file:
        file.truncate(2**40)
    with (tmp_path / "sparse2.safetensors").open("wb") as file:
        file.write(_forged(_document()))
        file.truncate(2**40)
    names = ["pipe.safetensors", "link.safetensors", "sparse.safetensors", "sparse2.safetensors", "none.safetensors"]
    for path in [*(tmp_path / name for name in names), Path("/dev/zero"), Path("/dev/null"), tmp_path / "a\0b"]:
        with pytest.raises(CheckpointError):
            load(path)


def test_nan_in_a_file_with_right_digests_is_found_before_it_is_used(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"w": torch.tensor([float("nan")])}, {}, nonfinite=[""])
    with pytest.raises(CheckpointError, match="diverged: w holds NaN"):
        load(path).check_fit({"w": torch.zeros(1)})


# Compatibility and construction


def test_the_golden_checkpoint_of_schema_1_loads_for_ever() -> None:
    found = load(DATA / "checkpoint-schema-1.safetensors")
    assert found.step == 1200 and found.mfmarl == "0.1.0" and found.config_digest == "golden"
    assert found.state == {"metrics": 345, "agents": {"all": {"temperature": 1 / 3, "updates": 2**53 + 1}}}
    assert torch.equal(found.tensors["policy.weight"], torch.arange(6.0).reshape(2, 3) / 7)
    assert torch.equal(found.tensors["alive"], torch.tensor([True, False]))
    assert found.tensors["step"].item() == 2**53 + 1 and found.tensors["step"].shape == ()


def test_nothing_here_can_unpickle_or_evaluate() -> None:
    banned = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "eval", "exec", "compile"}
    for module in ("checkpoint", "durable", "run_folder", "config"):
        source = (Path(checkpoint.__file__).parent / f"{module}.py").read_text()
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names.append(node.func.id)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert ast.unparse(node.func) not in ("torch.load", "np.load", "torch.save"), module
            assert not banned & set(names), (module, names)


def test_all_errors_are_the_users_to_read() -> None:
    for error in (CheckpointError, ResourceFault, NumericFault):
        assert issubclass(error, MfmarlError)
    assert (CheckpointError.exit_code, ResourceFault.exit_code, NumericFault.exit_code) == (4, 8, 5)
