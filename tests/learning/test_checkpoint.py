"""Checkpoints survive: kills at every byte and call, failing disks, damage of every kind, hostile files.

The promises are those of a database: what `save` has acknowledged is there, what is there is whole, and a state is
the old one or the new one. `docs` of the format: mfmarl/learning/checkpoint.py.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import math
import os
import resource
import shlex
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, MfmarlError, NumericFault, ResourceFault
from mfmarl.learning import checkpoint, durable
from mfmarl.learning.checkpoint import LATEST, SCHEMA, Checkpoint, CheckpointWarning, list_checkpoints, load, save
from mfmarl.selftest.corruption import header_of, with_header
from mfmarl.selftest.crashes import in_child

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
        "schema": SCHEMA,
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


# Kills: see tests/selftest/test_crashes.py


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

    assert in_child(limited) == 42
    assert len(os.listdir(tmp_path)) == 2
    _assert_is(load(tmp_path), 1)


def test_a_deleted_run_folder_is_told_and_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(ResourceFault, match="gone"):
        _save(tmp_path / "run" / "checkpoints", 1)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceFault):
        _save(tmp_path / "file" / "checkpoints", 1)
    with pytest.raises(ResourceFault, match=r"file cannot be written: File exists\.$"):
        _save(tmp_path / "file", 1)


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


# Hostile files: see tests/selftest/test_corruption.py


def test_the_forged_document_would_load_but_for_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(with_header(header_of(state={"a": 1})))
    assert load(tmp_path / "x.safetensors").state == {"a": 1}


def test_what_is_not_a_plain_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    real = _save(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "link.safetensors").symlink_to(real)
    with (tmp_path / "sparse.safetensors").open("wb") as file:
        file.truncate(2**40)
    with (tmp_path / "sparse2.safetensors").open("wb") as file:
        file.write(with_header(header_of()))
        file.truncate(2**40)
    names = ["pipe.safetensors", "link.safetensors", "sparse.safetensors", "sparse2.safetensors", "none.safetensors"]
    for path in [*(tmp_path / name for name in names), Path("/dev/zero"), Path("/dev/null"), tmp_path / "a\0b"]:
        with pytest.raises(CheckpointError):
            load(path)


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


# Each reason to refuse, with its code and its sentence


def _forged(folder: Path, content: bytes) -> CheckpointError:
    """What is said of a file that stands alone."""
    (folder / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load(folder / "x.safetensors")
    text = str(caught.value)
    assert text.startswith(str(folder / "x.safetensors")) and text.endswith(
        "There is no other good checkpoint beside it."
    )
    return caught.value


TAR = b"name".ljust(257, b"\0") + b"ustar\x0000" + bytes(300)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "damaged-checkpoint", "has 0 bytes; expected a safetensors file"),
        (bytes(9), "damaged-checkpoint", "has 9 bytes; expected"),
        (bytes(10), "damaged-checkpoint", "declares a header of 0 bytes in a file of 10"),
        (struct.pack("<Q", 3) + b"{}", "damaged-checkpoint", "declares a header of 3 bytes in a file of 10"),
        (struct.pack("<Q", 2) + b"{}", "foreign-checkpoint", "its metadata has none, expected only 'state'"),
        (struct.pack("<Q", 3) + b"{\xff}", "damaged-checkpoint", "is damaged (UnicodeDecodeError"),
        (b"PK\x03\x04" + bytes(20), "foreign-checkpoint", "is a zip archive, perhaps of torch.save"),
        (b"\x80\x05" + bytes(20), "foreign-checkpoint", "is a pickle; expected a safetensors file. Nothing in it was run"),
        (b"\x1f\x8b" + bytes(20), "foreign-checkpoint", "is a gzip archive"),
        (b"\x93NUMPY" + bytes(20), "foreign-checkpoint", "is a numpy file"),
        (b'{"a": 1, "b": 2}', "foreign-checkpoint", "is a JSON file"),
        (TAR, "foreign-checkpoint", "is a tar archive"),
        (TAR.replace(b"ustar", b"vstar"), "damaged-checkpoint", "declares a header of"),
        (with_header([1]), "damaged-checkpoint", "declares a header"),
        (with_header({"__metadata__": {}}), "foreign-checkpoint", "its metadata has [], expected only 'state'"),
        (with_header({"__metadata__": {"state": 1}}), "foreign-checkpoint", "its metadata has ['state']"),
        (with_header({"__metadata__": {"state": "{}", "a": "b"}}), "foreign-checkpoint", "has ['a', 'state']"),
        (with_header({"__metadata__": {"state": "[]"}}), "foreign-checkpoint", "its state has no schema number"),
        (with_header({"__metadata__": {"state": "{}"}}), "foreign-checkpoint", "its state has no schema number"),
        (with_header(header_of(schema="1")), "foreign-checkpoint", "its state has no schema number"),
        (with_header(header_of(schema=0)), "foreign-checkpoint", "has the unknown schema 0; expected 1 to 2"),
        (with_header(header_of(schema=True)), "foreign-checkpoint", "has the unknown schema True"),
        (with_header(header_of(schema=3)), "newer-checkpoint", "has the newer schema 3, written by mfmarl 0; this is"),
        (with_header(header_of(schema=2)), "foreign-checkpoint", "mfmarl: 'of' is not as expected"),
        (with_header(header_of(extra=1)), "foreign-checkpoint", "mfmarl: 'extra' is not as expected"),
        (with_header(header_of(step=...)), "foreign-checkpoint", "mfmarl: 'step' is not as expected"),
        (with_header(header_of(step=True)), "foreign-checkpoint", "mfmarl: 'step' is not as expected"),
        (with_header(header_of(step=-1)), "foreign-checkpoint", "mfmarl: step is not as expected"),
        (with_header(header_of(step=2**63)), "foreign-checkpoint", "mfmarl: step is not as expected"),
        (with_header(header_of(state=[])), "foreign-checkpoint", "mfmarl: 'state' is not as expected"),
        (with_header(b'{"__metadata__": {"state": "{\\"schema\\": NaN}"}}'), "damaged-checkpoint", "NaN where a finite"),
        (with_header(b'{"__metadata__": {"state": "{\\"a\\": 1e999}"}}'), "damaged-checkpoint", "1e999 where a finite"),
        (with_header(b'{"a": 1, "a": 2}'), "damaged-checkpoint", "a key occurs twice"),
    ],
)  # fmt: skip
def test_each_reason_to_refuse_a_file_is_told_with_its_code(
    content: bytes, code: str, words: str, tmp_path: Path
) -> None:
    error = _forged(tmp_path, content)
    assert words in str(error) and error.code == code


@pytest.mark.parametrize(("step", "schema"), [(0, 1), (2**63 - 1, 1)])
def test_the_first_and_the_last_step_are_steps(step: int, schema: int, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(with_header(header_of(step=step, schema=schema)))
    assert load(tmp_path / "x.safetensors").step == step


def test_a_type_that_is_never_written_is_not_read(tmp_path: Path) -> None:
    raw = bytes(4)
    header = header_of(("w", "F8_E4M3", [4], raw))
    header["w"] = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    assert "holds F8_E4M3; expected the dtypes BOOL, U8" in str(_forged(tmp_path, with_header(header, raw)))
    header = header_of(("w", "U8", [4], raw))
    header["w"] = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    (tmp_path / "x.safetensors").write_bytes(with_header(header, raw))
    assert load(tmp_path / "x.safetensors").tensors["w"].tolist() == [0, 0, 0, 0]
    changed = with_header(header, b"\0\0\1\0")
    assert "its contents do not have the digest that it states" in str(_forged(tmp_path, changed))


def test_what_does_not_fit_in_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: bytes) -> Any:
        raise MemoryError

    content = with_header(header_of())
    monkeypatch.setattr(checkpoint.safetensors, "deserialize", full)
    assert "x.safetensors does not fit in memory." in str(_forged(tmp_path, content))


def test_a_name_that_no_file_can_hold_is_refused_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^The state of step 7 cannot be stored: ") as caught:
        save(tmp_path, 7, {"\ud800": torch.ones(1)}, {})
    assert caught.value.code == "unstorable-state" and os.listdir(tmp_path) == []


def test_a_state_may_be_forty_deep_and_no_deeper(tmp_path: Path) -> None:
    assert (checkpoint.MAX_DEPTH, checkpoint.MAX_HEADER, checkpoint.MAX_BYTES) == (40, 64 << 20, 64 << 30)

    def nested(depth: int) -> Any:
        return {"x": nested(depth - 1)} if depth else 1

    room = checkpoint.MAX_DEPTH - 1  # the document is a table around the state
    found = load(save(tmp_path, 1, {}, nested(room)))
    assert found.state == nested(room)
    with pytest.raises(CheckpointError, match="nested deeper than 40"):
        save(tmp_path, 2, {}, nested(room + 1))
    with pytest.raises(CheckpointError, match="nested deeper than 40"):
        save(tmp_path, 2, {}, {"x": [nested(room)], "y": ({},)})


def test_every_refusal_to_save_has_its_code(tmp_path: Path) -> None:
    for tensors, state, step in (
        ({"z": torch.ones(2, dtype=torch.complex64)}, {}, 1),
        ({"__metadata__": torch.ones(1)}, {}, 1),
        ({}, {"x": {1}}, 1),
        ({}, {}, -1),
    ):
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, step, tensors, state)
        assert caught.value.code == "unstorable-state"
    with pytest.raises(NumericFault, match=r"in a, b, c, d, e, f, g, h, i, j: this is not saved") as caught_:
        save(tmp_path, 1, {name: torch.tensor([0.0, math.inf]) for name in "abcdefghijkl"}, {})
    assert caught_.value.code == "nonfinite-state"
    many = {"sim.a": torch.tensor(math.nan), "sib": torch.tensor(math.inf)}
    with pytest.raises(NumericFault, match="in sib:"):
        save(tmp_path, 1, many, {}, nonfinite=("sim.", "other"))


def test_as_many_are_kept_as_asked_for_and_never_none(tmp_path: Path) -> None:
    for keep, left in ((3, [6, 5, 4]), (2, [7, 6]), (1, [8]), (0, [9])):
        for step in range(1, left[0] + 1) if keep == 3 else [left[0]]:
            save(tmp_path, step, {}, {"n": step}, keep=keep)
        assert [load(path).step for path in list_checkpoints(tmp_path)] == left


def test_what_a_checkpoint_says_of_itself_comes_back(tmp_path: Path) -> None:
    of = {"environment": "Ising", "agents": {"all": "MFQ"}}
    found = load(save(tmp_path, 3, {}, {}, of=of, config_digest="d"))
    assert (found.of, found.config_digest, found.torch) == (of, "d", torch.__version__)
    assert found.mfmarl == checkpoint.mfmarl.__version__
    assert load(save(tmp_path, 4, {}, {})).of == {}
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_advice_names_the_run_whatever_folder_is_asked(tmp_path: Path) -> None:
    """Of checkpoints that lie in a run, the run; of any other folder, that folder."""
    flat = tmp_path / "flat"
    flat.mkdir()
    good = _save(flat, 1)
    bad = _save(flat, 2)
    bad.write_bytes(b"x")
    said = _refused(flat)
    assert f"The last good one is {good.name}" in said
    assert said.endswith(f"rm {bad} && mfmarl train --resume {flat}")
    (flat / LATEST).unlink()
    with pytest.raises(CheckpointError) as caught:
        load(flat, strict=True)
    assert str(caught.value).endswith(f"to go on from it: mfmarl train --resume {flat}")
    assert caught.value.code == "damaged-checkpoint"
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "gone" / "x.safetensors")
    assert "There is no other good checkpoint beside it" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="There is no checkpoint in") as caught:
        load(tmp_path / "empty")
    assert caught.value.code == "no-checkpoint"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"file": 3}, "it names no checkpoint"),
        ({"sha256": 3}, "it names no checkpoint"),
        ({"bytes": "3"}, "it names no checkpoint"),
        ({"file": "step-1-00000000.safetensors"}, "it names no checkpoint"),
        ({"file": "step-000000000009-00000000.safetensors"}, "points to step-000000000009-00000000"),
    ],
)
def test_an_entry_that_is_half_right_is_not_followed(entry: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    latest = json.loads((tmp_path / LATEST).read_text())
    (tmp_path / LATEST).write_text(json.dumps({**latest, **entry}))
    with pytest.warns(CheckpointWarning, match=words):
        _assert_is(load(tmp_path), 1)
    (tmp_path / LATEST).write_text(json.dumps({**latest, "file": path.name.replace("1-", "2-", 1)}))
    with pytest.warns(CheckpointWarning, match="missing"):
        _assert_is(load(tmp_path), 1)


def test_a_link_is_refused_where_it_points_to_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(_save(tmp_path, 1))
    with pytest.raises(CheckpointError, match=r"link\.safetensors is a symbolic link") as caught:
        load(tmp_path / "link.safetensors")
    assert caught.value.code == "foreign-checkpoint"
