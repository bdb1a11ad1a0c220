"""G5: a checkpoint that is damaged, forged or hostile is refused, with one class of error, and nothing in it is run.

`damage` is chance: bits, bytes, blocks, cuts and splices of a whole file, found by the digests. `forgery` is a hand that
makes every digest right again: what it changed must be refused by what a checkpoint of that run may hold. `hostile` files
carry payloads, lie about their sizes, or name something to be called. A file that loads after all must be the same, to the
last bit of every number.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import safetensors
import torch
from torch import Tensor

from mfmarl.errors import CheckpointError
from mfmarl.learning import checkpoint
from mfmarl.learning.build import build
from mfmarl.learning.checkpoint import LATEST, Checkpoint, load
from mfmarl.learning.fit import Fit, about, expected
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.selftest.goal import Order, Outcome

TARGET = 100_000
MOST_MEMORY = 100 * 2**20
MOST_SECONDS = 20.0
_FORGED = 5  # one in so many
_SAMPLED = 500


# ---------------------------------------------------------------------------------------------- a specimen


@dataclass(frozen=True)
class Specimen:
    """A checkpoint of a small run: its file, an earlier one, and what every checkpoint of that run must hold."""

    content: bytes
    earlier: bytes
    found: Checkpoint
    fit: Fit


def specimen(folder: Path) -> Specimen:
    """Train for a moment, and save twice."""
    options: dict[str, Any] = {"hidden": [2], "capacity": 8, "warm_up": 4, "batch_size": 4}
    run = RunOptions(steps=40, report_every=20, copies=1, evaluation_copies=0, exploitability="off")
    config = RunConfig(Choice("congestion", {"num_agents": 3}), {"all": Choice("mfq", options)}, run)
    fresh, built = build(config), build(config)
    try:
        fit, training, contents = expected(fresh.training), built.training, []
        for _ in range(2):
            for _ in range(6):
                training.step()
            tensors, plain = training.state_dict()
            plain["metrics"] = 0
            path = checkpoint.save(folder, training.tick, tensors, plain, nonfinite=("train.env",), of=about(training))
            contents.append(path.read_bytes())
        return Specimen(contents[1], contents[0], load(path), fit)
    finally:
        fresh.close()
        built.close()


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints hold the same, bit for bit, wherever they lie."""
    told = [(c.step, c.state, c.config_digest, c.mfmarl, c.torch, c.of, c.tensors.keys()) for c in (one, other)]
    return told[0] == told[1] and all(_same(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)] if one.numel() else [one, one]
    return torch.equal(*raw)


# ------------------------------------------------------------------------------------------------- damage


def damaged(content: bytes, earlier: bytes, draw: random.Random) -> bytes:
    """A file as disks, networks and editors leave it."""
    text = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 3))):
        at, kind = draw.randrange(max(1, len(text))), draw.randrange(10)
        if kind <= 2:
            text[at : at + 1] = bytes([text[at] ^ 1 << draw.randrange(8)]) if text else b""
        elif kind == 3:
            del text[at : at + draw.randint(1, 40)]
        elif kind == 4:
            text[at:at] = draw.randbytes(draw.randint(1, 8))
        elif kind == 5:
            text[at : at + 8] = draw.choice((b"\xff" * 8, b"\0" * 8, b'"F64","X', b"[0,9999]", b"NaN,1e99"))
        elif kind == 6:
            del text[at:]
        elif kind == 7:  # the end of another save
            text[at:] = earlier[at:]
        elif kind == 8:  # a block that never reached the disk
            size = draw.choice((16, 64, 512))
            text[at : at + size] = bytes(len(text[at : at + size]))
        else:
            size, to = draw.randint(1, 64), draw.randrange(max(1, len(text)))
            text[to : to + size] = text[at : at + size]
    return bytes(text)


# ------------------------------------------------------------------------------------------------ forgery

Parts = tuple[dict[str, Any], dict[str, Tensor]]


def document_of(found: Checkpoint) -> dict[str, Any]:
    """All that a checkpoint says, save its digest."""
    return {
        "schema": checkpoint.SCHEMA,
        "step": found.step,
        "config_digest": found.config_digest,
        "mfmarl": found.mfmarl,
        "torch": found.torch,
        "of": dict(found.of),
        "state": dict(found.state),
    }


_LOOSE = ("tally.", "numbers.")  # sums of the open interval: any number of them


def _a_tensor(tensors: dict[str, Tensor], draw: random.Random, floats: bool = False) -> str:
    names = [n for n, t in tensors.items() if not n.startswith(_LOOSE) and (not floats or t.is_floating_point())]
    return draw.choice([n for n in names if not floats or tensors[n].numel()])


def _missing(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = _a_tensor(tensors, draw)
    del tensors[name]
    return f"without {name}"


def _renamed(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = _a_tensor(tensors, draw)
    tensors[f"{name}{draw.choice(('.', '_', 'x', '0', '/..'))}"] = tensors.pop(name)
    return f"{name} renamed"


def _added(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = draw.choice(
        ("_target_", "player.1.agent.x", "os.system", "train.env.state.extra", "player.0.optimiser.x.0.step")
    )
    tensors[name] = torch.zeros(draw.randint(0, 3))
    return f"with {name}"


def _reshaped(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = _a_tensor(tensors, draw)
    tensor, kind = tensors[name], draw.randrange(4)
    if kind == 0 or tensor.ndim == 0:
        tensors[name] = tensor.unsqueeze(0)
    elif kind == 1:
        tensors[name] = torch.cat(
            [tensor.reshape(-1), tensor.reshape(-1)[:1] if tensor.numel() else tensor.new_zeros(1)]
        )
        if tensors[name].shape == tensor.shape:
            tensors[name] = tensor.unsqueeze(-1)
    elif kind == 2 and tensor.ndim > 1:
        tensors[name] = tensor.flatten()
    else:
        tensors[name] = tensor.unsqueeze(-1)
    return f"{name} as {list(tensors[name].shape)}"


_TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def _cast(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = _a_tensor(tensors, draw)
    kind = draw.choice([dtype for dtype in _TYPES if dtype != tensors[name].dtype])
    tensors[name] = (
        tensors[name].nan_to_num(0.0, 0.0, 0.0).to(kind)
        if tensors[name].is_floating_point()
        else tensors[name].to(kind)
    )
    return f"{name} as {kind}"


def _infinite(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = _a_tensor(tensors, draw, floats=True)
    tensor = tensors[name].clone()
    tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice((float("nan"), float("inf"), float("-inf")))
    tensors[name] = tensor
    return f"{name} not finite"


def _of_other_noise(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    halves = [draw.choice((0, -1, 2**32, 2**63 - 1, draw.randrange(2**32))) for _ in range(2)]
    tensors["train.env.key"] = torch.tensor(halves)
    return f"noise {halves}"


def _other_step(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    document["step"] = draw.choice((0, document["step"] + 1, 2**63 - 1, -1, 2**63, 1.5, "7", True, None))
    return f"step {document['step']!r}"


def _other_numbers(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = draw.choice(("agent_steps", "tick", "wall", "cpu", "metrics"))
    value: Any = draw.choice((-1, 2**70, "7", None, True, [], {}, ...))
    if value is ... and name != "metrics":
        del document["state"][name]
    else:
        document["state"][name] = -1.5 if value is ... else value
    return f"{name} = {document['state'].get(name, 'nothing')!r}"


def _named_callable(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    key = draw.choice(
        ("_target_", "_instantiator", "__class__", "__reduce__", "!!python/object/apply", "py/object", "module")
    )
    where = draw.choice((document, document["state"]))
    where[key] = draw.choice(("os.system", ["os.system", "x"], {"_target_": "builtins.eval"}))
    return f"{key} named"


def _other_document(document: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    name = draw.choice(list(document))
    value: Any = draw.choice((None, 1.5, [], -1, ..., "x" if type(document[name]) is not str else 0))
    if value is ...:
        del document[name]
    else:
        document[name] = value
    return f"{name} {'left out' if value is ... else f'= {value!r}'}"


FORGERIES: tuple[Callable[[dict[str, Any], dict[str, Tensor], random.Random], str], ...] = (
    _missing,
    _renamed,
    _added,
    _reshaped,
    _cast,
    _infinite,
    _of_other_noise,
    _other_step,
    _other_numbers,
    _named_callable,
    _other_document,
)
"""Each changes a document or tensors to what no run would have saved, and says what it did."""


def forged(found: Checkpoint, draw: random.Random) -> tuple[str, bytes]:
    """What was changed, and the file with every digest right again."""
    document, tensors = document_of(found), dict(found.tensors)
    told = draw.choice(FORGERIES)(document, tensors, draw)
    return told, checkpoint.serialise(document, tensors)


# ------------------------------------------------------------------------------------------------- judging


@dataclass
class Tally:
    """What became of the files so far."""

    failures: list[str] = field(default_factory=list)
    refused: int = 0
    harmless: int = 0
    slowest: float = 0.0
    lone: int = 0
    """How many of the damaged files the file format alone would have loaded, with other numbers."""

    def judge(self, path: Path, original: Checkpoint, fit: Fit | None, told: str) -> None:
        """Load one file, and note what came of it. It must be refused, or hold what the original held."""
        begun = time.monotonic()
        try:
            found = load(path)
            if fit is not None and any(fit.refusals(found)):
                raise CheckpointError("it does not fit")
            if same(found, original):
                self.harmless += 1
            else:
                self.failures.append(f"{told}: it was loaded, and is not what was saved")
        except CheckpointError as error:
            self.refused += 1
            if "\n" in str(error):
                self.failures.append(f"{told}: the error has more than one line: {str(error)[:200]!r}")
        except Exception as error:  # noqa: BLE001 - any other class of error is what is looked for
            self.failures.append(f"{told}: {type(error).__name__} instead of CheckpointError: {str(error)[:200]}")
        took = time.monotonic() - begun
        self.slowest = max(self.slowest, took)
        if took > MOST_SECONDS:
            self.failures.append(f"{told}: it took {took:.0f} seconds to be judged")


def place(folder: Path, content: bytes, step: int, how: int) -> Path:
    """Put a file where its digest is in latest.json too (0), in its name (1), or inside alone (2), all of them right."""
    digest = hashlib.sha256(content).hexdigest()
    path = folder / ("copy.safetensors" if how == 2 else f"step-{step:012d}-{digest[:8]}.safetensors")
    path.write_bytes(content)
    if how == 0:
        entry = {"file": path.name, "sha256": digest, "bytes": len(content)}
        (folder / LATEST).write_text(json.dumps(entry), encoding="utf-8")
    return path


def mutations(one: Specimen, folder: Path, order: Order, trials: int, tally: Tally) -> Iterator[None]:
    """Damage and forge so many files, each told to the tally."""
    draw = random.Random(order.seed)  # noqa: S311 - mutations are to be repeatable, not secret
    whole = safetensors.deserialize(one.content)
    homes = [folder / name for name in ("latest", "named", "copied")]
    paths = []
    for how, home in enumerate(homes):
        home.mkdir()
        paths.append(place(home, one.content, one.found.step, how))
    (folder / "forged").mkdir()
    for trial in range(trials):
        if trial % _FORGED == 0:
            told, content = forged(one.found, draw)
            home = folder / "forged"
            path = place(home, content, max(0, one.found.step), draw.randrange(3))
            tally.judge(path, one.found, one.fit, f"forgery {trial} of seed {order.seed} ({told})")
            path.unlink()
            (home / LATEST).unlink(missing_ok=True)
        else:
            path, content = paths[trial % 3], damaged(one.content, one.earlier, draw)
            path.write_bytes(content)
            tally.judge(path, one.found, None, f"damage {trial} of seed {order.seed}")
            tally.lone += _loaded_otherwise(content, whole)
        yield


def _loaded_otherwise(content: bytes, whole: list[Any]) -> bool:
    try:
        return bool(sorted(safetensors.deserialize(content), key=_name) != sorted(whole, key=_name))
    except (safetensors.SafetensorError, ValueError):
        return False


def _name(item: tuple[str, Any]) -> str:
    return item[0]


# -------------------------------------------------------------------------------------------- hostile files


def payload(marker: Path) -> bytes:
    """A pickle that makes a folder when it is loaded. Written by hand: nothing here can make or load one."""
    name = str(marker).encode()
    return b"\x80\x02cposix\nmkdir\nX" + struct.pack("<I", len(name)) + name + b"\x85R."


def with_header(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of that header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_of(arrays: tuple[str, str, list[int], bytes] | None = None, **changes: Any) -> dict[str, Any]:
    """A header whose digest is right, so that only what it says can be refused. `...` leaves a key out."""
    body = {"schema": 1, "step": 1, "config_digest": "", "mfmarl": "0", "torch": "2", "state": {}, **changes}
    body = {key: value for key, value in body.items() if value is not ...}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    parts = {} if arrays is None else {arrays[0]: (arrays[1], arrays[2], memoryview(arrays[3]))}
    digest = checkpoint.contents_digest(text, parts)
    return {"__metadata__": {"state": json.dumps({**body, "contents": digest})}}


def _with_key(key: str) -> dict[str, Any]:
    more: dict[str, Any] = {key: "os.system"}
    return header_of(**more)


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def _tar(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def hostile_files(marker: Path, many: int = 100_000) -> dict[str, bytes]:
    """At least 60 files that no run wrote; those with a payload would make `marker`, one has so `many` tensors."""
    attack = payload(marker)
    text_attack = f"cposix\nmkdir\n(V{marker}\ntR.".encode()
    meta = header_of()["__metadata__"]
    keys = ("_target_", "_instantiator", "__class__", "__reduce__", "!!python/object/apply:os.system", "py/object")
    named = {f"{key} in the document": with_header(_with_key(key)) for key in keys}
    numpy_header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return {
        "pickle": attack,
        "pickle, protocol 0": text_attack,
        "pickle as safetensors header": with_header(attack),
        "pickle after a header": with_header(
            {"x": {**_ONE, "dtype": "U8", "shape": [len(attack)], "data_offsets": [0, len(attack)]}}, attack
        ),
        "torch zip": _zip({"archive/data.pkl": attack, "archive/version": b"3"}),
        "torch legacy": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + attack,
        "torchscript": _zip({"archive/code/__torch__.py": b"import os", "archive/constants.pkl": attack}),
        "numpy object": b"\x93NUMPY\x01\x00v\x00" + numpy_header + attack,
        "stable-baselines3": _zip(
            {"data": json.dumps({"policy": {":serialized:": "gASV"}}).encode(), "policy.pth": attack}
        ),
        "zip bomb": _zip({"archive/data.pkl": bytes(20_000_000)}),
        "zip that climbs": _zip({"../../evil": b"x"}),
        "tar": _tar("pickle", attack),
        "tar that climbs": _tar("../../evil", attack),
        "gzip": gzip.compress(attack),
        "json": b'{"_target_": "os.system"}',
        "yaml": b"!!python/object/apply:os.system ['true']\n",
        "toml": b'_target_ = "os.system"\n',
        "python": b"import os; os.mkdir('x')\n" * 8,
        "shell": b"#!/bin/sh\nmkdir x\n",
        "elf": b"\x7fELF\x02\x01\x01" + bytes(120),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(120),
        "empty": b"",
        "one byte": b"\x80",
        "zeros": bytes(4096),
        "noise": random.Random(5).randbytes(4096),  # noqa: S311
        "header of 8 PiB": struct.pack("<Q", 2**53) + b"{}",
        "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
        "header of 2^64": b"\xff" * 8 + b"{}",
        "header of 100 MB": struct.pack("<Q", 100_000_000) + b"{" * 1000,
        "header longer than the file": struct.pack("<Q", 11) + b"{}        ",
        "header empty": struct.pack("<Q", 0) + b"{}{}{}{}",
        "header not JSON": with_header(b"{" + b"x" * 100),
        "header not UTF-8": with_header(b'{"\xff\xfe": 1}'),
        "header with NUL": with_header(b'{"\x00": 1}'),
        "header nested": with_header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "header a list": with_header(b"[1, 2, 3, 4]"),
        "header with 10^6 digits": with_header(b'{"x": ' + b"9" * 1_000_000 + b"}"),
        "no metadata": with_header({"x": _ONE}, b"1234"),
        "metadata a list": with_header({"__metadata__": ["state"]}),
        "metadata a number": with_header({"__metadata__": {"state": 5}}),
        "metadata nested": with_header({"__metadata__": {"state": "[" * 100_000}}),
        "metadata not JSON": with_header({"__metadata__": {"state": "import os"}}),
        "metadata NaN": with_header({"__metadata__": {"state": '{"schema": NaN}'}}),
        "metadata with 10^5 digits": with_header({"__metadata__": {"state": '{"schema": ' + "1" * 100_000 + "}"}}),
        "_target_ beside": with_header({"__metadata__": {**meta, "_target_": "os.system"}}),
        "_target_ instead": with_header({"__metadata__": {"_target_": "os.system"}}),
        **named,
        "a key missing": with_header(header_of(torch=...)),
        "schema of the future": with_header(header_of(schema=99)),
        "schema 2 without its key": with_header(header_of(schema=2)),
        "schema 0": with_header(header_of(schema=0)),
        "schema a word": with_header(header_of(schema="1")),
        "schema true": with_header(header_of(schema=True)),
        "state nested": with_header(header_of(state={"a": json.loads("[" * 100 + "]" * 100)})),
        "state infinite": with_header({"__metadata__": {"state": meta["state"].replace("{}", '{"a":1e999}')}}),
        "state a list": with_header(header_of(state=[])),
        "step negative": with_header(header_of(step=-1)),
        "step a float": with_header(header_of(step=1.0)),
        "step true": with_header(header_of(step=True)),
        "step beyond": with_header(header_of(step=2**63)),
        "version a command": with_header(header_of(mfmarl=["rm"])),
        "tensor unvouched": with_header({**header_of(), "x": _ONE}, b"1234"),
        "tensor of 2^62": with_header({**header_of(), "x": {**_ONE, "shape": [2**62, 4]}}, b"1234"),
        "tensor negative": with_header({**header_of(), "x": {**_ONE, "shape": [-1]}}, b"1234"),
        "offsets overlap": with_header({**header_of(), "x": _ONE, "y": {**_ONE, "data_offsets": [2, 6]}}, b"123456"),
        "offsets beyond": with_header({**header_of(), "x": {**_ONE, "data_offsets": [0, 2**60]}}, b"1234"),
        "offsets backward": with_header({**header_of(), "x": {**_ONE, "data_offsets": [4, 0]}}, b"1234"),
        "bytes after the end": with_header({**header_of(), "x": _ONE}, b"1234" + attack),
        "dtype unknown": with_header({**header_of(), "x": {**_ONE, "dtype": "PICKLE"}}, b"1234"),
        "dtype complex": with_header(
            {**header_of(), "x": {**_ONE, "dtype": "C64", "data_offsets": [0, 8]}}, b"12345678"
        ),
        "dtype of 8 bits": with_header(
            {**header_of(("x", "F8_E4M3", [4], b"1234")), "x": {**_ONE, "dtype": "F8_E4M3", "shape": [4]}}, b"1234"
        ),
        "a key twice": with_header(b'{"__metadata__": {"state": "1"}, "__metadata__": {"state": "2"}}'),
        "a key twice inside": with_header({"__metadata__": {"state": '{"schema": 1, ' + meta["state"][1:]}}),
        "a tensor called metadata": with_header({"__metadata__": _ONE}, b"1234"),
        "very many tensors": with_header(
            {f"t{i}": {**_ONE, "shape": [0], "data_offsets": [0, 0]} for i in range(many)}
        ),
    }


_WATCHED = ("pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "subprocess.Popen",
            "socket.connect", "socket.bind", "ctypes.dlopen", "compile", "exec", "import", "code.__new__")  # fmt: skip
_seen: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in _WATCHED:
        _seen.append(f"{event} {str(arguments)[:80]}")


def hostile(
    folder: Path, marker: Path, load_one: Callable[[Path], object] = load, many: int = 100_000
) -> tuple[int, list[str]]:
    """Load each hostile file in every place; returns how many there are, and what went wrong or was run."""
    global _seen
    corpus, failures = hostile_files(marker, many), []
    home = folder / "hostile"
    home.mkdir()
    if not _HOOKED:
        sys.addaudithook(_hear)
        _HOOKED.append(True)
    for name, content in corpus.items():
        for how in range(3):
            path = place(home, content, 5, how)
            _seen = []
            for given in (path, home) if how == 0 else (path,):
                try:
                    load_one(given)
                    failures.append(f"{name}: it was loaded")
                except CheckpointError as error:
                    if "\n" in str(error) or len(str(error)) > 1000:
                        failures.append(f"{name}: the error is not one short line")
                except Exception as error:  # noqa: BLE001 - any other class of error is what is looked for
                    failures.append(f"{name}: {type(error).__name__} instead of CheckpointError: {str(error)[:200]}")
            failures += [f"{name}: it ran something: {event}" for event in _seen]
            _seen = None
            path.unlink()
            (home / LATEST).unlink(missing_ok=True)
    if marker.exists():
        failures.append("a payload was run: it made its marker")
    return len(corpus), failures


_HOOKED: list[bool] = []  # a hook cannot be taken away: one, that mostly hears nothing


# ------------------------------------------------------------------------------------------------ the trial


def mutated_checkpoints(order: Order) -> Outcome:
    """G5. At a share of 1, 100,000 files; the hostile ones are few, and all are tried at any share."""
    (order.folder / "run").mkdir()
    one = specimen(order.folder / "run")
    process, tally, trials = psutil.Process(), Tally(), order.trials(TARGET, 200)
    count, hurt = hostile(order.folder, order.folder / "executed")
    tally.failures += [f"hostile file, {line}" for line in hurt]
    for trial, _ in enumerate(mutations(one, order.folder, order, min(trials, _SAMPLED), Tally()), 1):
        order.watch(trial, trials + _SAMPLED)  # what is imported and cached once is no growth
    for name in ("latest", "named", "copied", "forged"):
        (order.folder / name).rename(order.folder / f"before-{name}")
    before = most = process.memory_info().rss
    for trial, _ in enumerate(mutations(one, order.folder, order, trials, tally), 1):
        if trial % _SAMPLED == 0:
            most = max(most, process.memory_info().rss)
            order.watch(trial + _SAMPLED, trials + _SAMPLED)
    growth = most - before
    if growth > MOST_MEMORY:
        tally.failures.append(f"memory grew by {growth / 2**20:.0f} MB, of at most {MOST_MEMORY / 2**20:.0f}")
    if count < 60:
        tally.failures.append(f"only {count} hostile files were tried, of 60")
    damage = trials - -(-trials // _FORGED)
    return Outcome(
        not tally.failures,
        f"{trials - tally.refused - tally.harmless} of {trials:,} mutated files were loaded with other numbers or raised "
        f"something else; of {count} hostile files {len(hurt)} did anything; memory grew by {growth / 2**20:.0f} MB",
        trials + count,
        tuple(tally.failures),
        beside={"safetensors alone": f"{tally.lone:,} of {damage:,} damaged files loaded with other contents"},
        figures={
            "refused": tally.refused,
            "harmless": tally.harmless,
            "hostile": count,
            "growth_mb": growth / 2**20,
            "slowest_seconds": tally.slowest,
            "safetensors_silent": tally.lone / max(1, damage),
        },
    )
