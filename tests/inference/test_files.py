"""Model files keep every number and name, and hold nothing else; lists of arrays of other packages become models."""

from __future__ import annotations

import contextlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mfmarl.errors import CheckpointError, ConfigError, ResourceFault
from mfmarl.inference import counts as learning
from mfmarl.inference.files import from_lists, load, save, to_lists
from mfmarl.inference.model import GenerativeModel
from tests.inference.test_model import columns, tangled

TEXTS = ("A_factors", "B_factors", "B_controls", "controls", "timed", "modalities", "factors", "states")


def full() -> GenerativeModel:
    model = tangled()
    return replace(
        model,
        E=columns(1, 6),
        C=tuple(torch.stack([c, 2 * c]) for c in model.C),
        timed=True,
        states=(("left", "right"), ("dry", "wet", "Schnee — ❄")),
    )


def same(one: GenerativeModel, other: GenerativeModel) -> None:
    for letter in "ABCD":
        for x, y in zip(getattr(one, letter), getattr(other, letter), strict=True):
            assert torch.equal(x, y) and x.dtype == y.dtype
    assert (one.E is None) == (other.E is None) and (one.E is None or torch.equal(one.E, other.E))  # type: ignore[arg-type]
    for name in TEXTS:
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_model_and_its_counts_come_back_as_they_were(tmp_path: Path, ending: str, dtype: torch.dtype) -> None:
    for name, model in (("all", full()), ("each", tangled(lead=(3, 1))), ("flat", tangled().joint())):
        model = model.to(dtype=dtype)
        counts = learning.begin(model, "ABCDE", scale=3.0, zeros="filled", lead=(3, 1))
        counts = replace(counts, B=(None, *(counts.B or ())[1:]))
        path = save(model, tmp_path / f"{name}.{ending}", counts)
        back = load(path)
        same(back.model, model)
        assert back.counts is not None and back.counts.zeros == "filled" and back.counts.learned in ("ABCDE", "ACDE")
        for letter in "ABCD":
            for x, y in zip(getattr(counts, letter), getattr(back.counts, letter) or (None,), strict=True):
                assert (x is None and y is None) or torch.equal(x, y)
        assert torch.equal(counts.E, back.counts.E)  # type: ignore[arg-type]
        assert load(save(model, path)).counts is None
        assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_what_was_written_is_what_is_read_by_plain_numpy(tmp_path: Path) -> None:
    with np.load(save(full(), tmp_path / "m.npz"), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["B_1"], full().B[1].numpy())
        assert arrays["factors"].tolist() == ["place", "weather"] and arrays["B_controls_1"].tolist() == [1, 0]


def test_an_archive_of_arrays_made_by_another_tool_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, A_0=np.eye(2, dtype=int), B_0=np.eye(2)[:, :, None], C_0=np.array([0, 3]), D_0=np.array([0.5, 0.5]))
    model = load(path).model
    assert model.sizes == (2,) and model.controls == (1,) and model.dtype == torch.float64 and model.C[0][1] == 3


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "short": content[:5],
        "cut": content[: len(content) // 2],
        "end": content[:-1],
        "noise": bytes(range(256)) * 8,
        "text": b"A = [[1, 0], [0, 1]]\n",
        "pickle": np.eye(2).dumps(),
        "huge": (2**62).to_bytes(8, "little") + content[8:],
    }


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("kind", ["empty", "short", "cut", "end", "noise", "text", "pickle", "huge"])
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / f"m.{ending}"
    content = save(full(), path).read_bytes()
    path.write_bytes(damaged(content)[kind])
    if ending == "npz" and kind == "huge":
        path.write_bytes(content[:60] + b"\xff" * 40 + content[100:])
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_any_flipped_byte_of_a_header_is_refused_or_leaves_a_model(tmp_path: Path) -> None:
    """No reader is to fall over with an error of its own."""
    path = tmp_path / "m.safetensors"
    content = save(full(), path).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in range(0, header, 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :])
        with contextlib.suppress(CheckpointError, ConfigError):
            assert isinstance(load(path).model, GenerativeModel)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Bomb()], dtype=object)
    np.savez("bomb.npz", A_0=objects, B_0=np.eye(2)[:, :, None])
    with pytest.raises(CheckpointError, match="Python objects in 'A_0', which may hide code"):
        load("bomb.npz")
    Path("bomb.safetensors").write_bytes(objects.dumps())
    torch.save(Bomb(), "bomb.pt")
    for name in ("bomb.safetensors", "bomb.pt"):
        with pytest.raises(CheckpointError):
            load(name)
    assert not Path("exploded").exists()


def test_archives_that_unpack_to_too_much_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfmarl.inference import files

    path = tmp_path / "big.npz"
    np.savez_compressed(path, A_0=np.zeros((1000, 1000)))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(files, "_MOST_BYTES", 1_000_000)
    with pytest.raises(CheckpointError, match="unpack to more than 1,000,000"):
        load(path)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("A_0.txt", "1 0")
    with pytest.raises(CheckpointError, match="other things than arrays"):
        load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"A_factors": [["x"]]}, "whole numbers"),
        ({"A_factors": [[0.5]]}, "whole numbers"),
        ({"B_controls": 3}, "whole numbers"),
        ({"controls": [True]}, "whole numbers"),
        ({"A_factors": [[0, 1], [1], [9]]}, "name some of"),
        ({"modalities": [1]}, "names of at most"),
        ({"factors": ["x" * 1000]}, "names of at most"),
        ({"timed": "no"}, "true or false"),
        ({"schema": 2}, "another version"),
        ({"code": "import os"}, "with 'code'"),
        ({"zeros": "gone"}, "'kept' or 'filled'"),
    ],
)
def test_what_a_file_says_of_its_tables_is_checked(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "m.safetensors"
    content = save(full(), path, learning.begin(full(), "A")).read_bytes()
    tensors = safetensors.torch.load(content)
    about = json.loads(
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["mfmarl_model"]
    )
    path.write_bytes(safetensors.torch.save(tensors, {"mfmarl_model": json.dumps({**about, **change})}))
    with pytest.raises(ConfigError, match=told) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"A.0": None}, "tables A are A.1, A.2"),
        ({"D.0": None, "D.1": None}, "tables D are none"),
        ({"Q.0": torch.ones(2)}, "'Q.0', which is no part"),
        ({"A.0": torch.ones(4, 2, 3, dtype=torch.int64)}, "not floating-point"),
        ({"A.0": torch.ones(4, 2, 3).double()}, "'sight' must be a distribution"),
        ({"counts.A.0": torch.ones(4, 3, 2).double()}, "must end in the shape"),
        ({"counts.A.0": -torch.ones(4, 2, 3).double()}, "not negative"),
        ({"counts.A.7": torch.ones(4).double()}, "counts A.7 and 3 tables"),
    ],
)
def test_tables_of_a_file_are_checked(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "m.safetensors"
    content = save(full(), path, learning.begin(full(), "A")).read_bytes()
    tensors = {**safetensors.torch.load(content), **change}
    about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    path.write_bytes(safetensors.torch.save({k: x for k, x in tensors.items() if x is not None}, about))
    with pytest.raises(ConfigError, match=told):
        load(path)


def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no model file"):
        load(tmp_path / "none.npz")
    with pytest.raises(CheckpointError, match="There is no model file"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"NAME.safetensors or NAME.npz, not as 'm.pkl'"):
        save(full(), tmp_path / "m.pkl")
    with pytest.raises(ResourceFault, match="cannot be written"):
        save(full(), tmp_path / "nowhere" / "m.npz")
    (tmp_path / "odd.npz").write_bytes(b"")
    np.savez(tmp_path / "odd.npz", A_0=np.eye(2), B=np.eye(2))
    with pytest.raises(CheckpointError, match=r"'B', which is no part of a model. Did you mean"):
        load(tmp_path / "odd.npz")
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no generative model"):
        load(tmp_path / "weights.safetensors")


# ------------------------------------------------------------------------------------------ lists of arrays


def test_a_model_goes_to_lists_and_comes_back() -> None:
    for model in (tangled(), full(), tangled().joint(), tangled(lead=(3,))):
        bare = replace(model, modalities=(), factors=(), states=())
        back = from_lists(**to_lists(bare))
        same(replace(back, modalities=(), factors=()), bare)


def test_lists_in_pymdps_conventions_have_its_defaults() -> None:
    A = [columns(0, 3, 2, 4).numpy(), columns(1, 5, 2, 4).numpy()]
    B = [columns(2, 2, 2, 3).numpy(), columns(3, 4, 4, 1).numpy()]
    model = from_lists(A, B)
    assert model.A_factors == ((0, 1), (0, 1)) and model.B_controls == ((0,), (1,)) and model.controls == (3, 1)
    assert model.num_actions == 3 and torch.equal(model.D[1], torch.full((4,), 0.25).double())
    assert [c.tolist() for c in model.C] == [[0.0] * 3, [0.0] * 5]
    timed = from_lists(A, B, C=[np.ones((7, 3)), np.arange(5)])
    assert timed.timed and timed.preferences(4)[0].shape == (3,) and timed.preferences(9)[1].tolist() == [0, 1, 2, 3, 4]
    batch = from_lists(
        [np.stack([a, a]) for a in A], [np.stack([b, b]) for b in B], C=[np.zeros((2, 3)), np.zeros((2, 5))]
    )
    assert not batch.timed and batch.A[0].shape == (2, 3, 2, 4) and batch.outcomes == (3, 5)
    objects = np.empty(2, dtype=object)
    objects[:] = A
    assert torch.equal(from_lists(objects, B).A[1], model.A[1])  # pymdp's older object arrays


def test_lists_in_spms_conventions_are_counts_with_times_last() -> None:
    """Columns are normalised, C{g} is outcomes x times, vectors may be columns of a matrix, passive B has no third axis."""
    A = [np.array([[8.0, 0.0], [2.0, 3.0]])]
    B = [np.array([[0.0, 4.0], [4.0, 0.0]])]
    model = from_lists(
        A, B, C=[np.array([[0.0, 1.0, 2.0], [0.0, -1.0, -2.0]])], D=[np.array([[1.0], [3.0]])],
        E=np.array([[2.0]]), conventions="spm",
    )  # fmt: skip
    assert torch.allclose(model.A[0], torch.tensor([[0.8, 0.0], [0.2, 1.0]]).double())
    assert model.B[0].shape == (2, 2, 1) and model.D[0].tolist() == [0.25, 0.75]
    assert model.E is not None and model.E.tolist() == [1.0]
    assert model.timed and model.preferences(1)[0].tolist() == [1.0, -1.0]
    still = from_lists(A, B, C=[np.array([[0.0], [2.0]])], conventions="spm")
    assert not still.timed and still.C[0].tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"A": []}, "at least one array"),
        ({"A": [np.array([["a"]])]}, "array of numbers"),
        ({"A": [np.eye(2)[0]]}, r"A\[0\] must be \[outcomes"),
        ({"B": [np.eye(2)]}, r"B\[0\] must be \[next states"),
        ({"B": [np.ones((2, 2, 1))]}, "adds up to 2"),
        ({"C": [np.zeros(3)]}, r"C\[0\] must be \[2 outcomes\]"),
        ({"C": []}, "as many preferences"),
        ({"B_dependencies": [[0], [1]]}, "dependencies for 2"),
        ({"A_dependencies": [[0], [0]]}, "dependencies for 2"),
        ({"conventions": "spn"}, "Did you mean 'spm'"),
    ],
)
def test_lists_that_are_no_model_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        from_lists(**{"A": [np.eye(2)], "B": [np.eye(2)[:, :, None]], **change})
