"""Keyed noise: pinned values, independence in every direction, and the same numbers in every split."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key, bits, exponential, integers, normal, uniform
from tests.statistical import beyond, statistical

N = 200_000
IDS = agent_ids(4, N // 4).reshape(-1)


def standard_scores(x: torch.Tensor, y: torch.Tensor) -> float:
    """Correlation of two equally long samples, in standard errors."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()) * math.sqrt(len(x))


def chi_square_score(counts: torch.Tensor) -> float:
    """Chi-square of equal expectations, as a standard normal (Wilson-Hilferty)."""
    expected = counts.sum().double() / counts.numel()
    freedom = counts.numel() - 1
    chi = float(((counts.double() - expected).square() / expected).sum())
    return ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


# ------------------------------------------------------------------------------------- golden values


def test_the_numbers_never_change_from_one_version_to_the_next() -> None:
    """A checkpoint resumes bitwise only if these hold: change them and every stored run goes another way."""
    assert Key.of(0).value == 9370218965779684112
    assert Key.of(7).fold("act", 3).value == 18224261281474894029
    assert Key.of(2**64 - 1).value == 7976546960481259097
    assert Key.of(0).fold("").value == 17703698457836560727
    assert Key.of(0).fold(-1).value == 660717682816424094
    ids = torch.tensor([0, 1, 2, 1 << 32, (5 << 32) + 999_999])
    key = Key.of(0)
    assert bits(key, ids).tolist() == [
        5583584317903763951,
        2913821792548334164,
        -2820806701881299971,
        8875096251282350121,
        7569686117267477898,
    ]
    assert uniform(key, ids, 2).tolist() == [
        [0.8026867508888245, 0.6245604157447815],
        [0.6579585671424866, 0.3611336350440979],
        [0.3470837473869324, 0.34893161058425903],
        [0.9811199307441711, 0.6708250641822815],
        [0.9103534817695618, 0.052635014057159424],
    ]
    assert integers(key, ids, 1000).tolist() == [605, 315, 694, 962, 820]
    assert integers(key, ids, 2**31, 2)[-1].tolist() == [1762454890, 226065703]


def test_the_tensor_mixer_is_the_whole_number_formula() -> None:
    """The docstring's formula in Python's unbounded integers, against the tensors."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15
    for seed, agent, draw in itertools.product((0, 1, 2**63), (0, 1, (7 << 32) + 5), (0, 1, 9)):
        k = Key.of(seed).value
        inner = random._mix_int(agent * golden + k)
        wanted = random._mix_int(inner + random._mix_int(k ^ random._ROUND_TWO) + draw * golden)
        u = ((wanted >> 41) ^ (1 << 22)) + 0.5  # the top 23 bits, their highest turned over
        ids = torch.tensor([agent])
        if draw == 0:
            assert int(bits(Key(k), ids)) & mask == wanted
        assert uniform(Key(k), ids, 10)[0, draw].item() == u * 2.0**-23


# -------------------------------------------------------------------------------- order and splitting


def test_a_slice_of_the_crowd_draws_the_numbers_of_the_whole() -> None:
    key = Key.of(3)
    ids = agent_ids(3, 70_000)  # more than the chunks the mixer works in
    for draw in (bits, uniform, normal, exponential, lambda k, i: uniform(k, i, 3), lambda k, i: integers(k, i, 10)):
        whole = draw(key, ids)
        assert torch.equal(draw(key, ids[1:2, 137:60_001]), whole[1:2, 137:60_001])
        assert torch.equal(draw(key, ids.flip(1)), whole.flip(1))
        assert torch.equal(draw(key, ids.t()[:, 0]), whole[0])


@pytest.mark.parametrize("chunk", [1, 7, 1 << 10, 1 << 30])
def test_the_size_of_a_chunk_changes_no_bit(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = agent_ids(2, 500)
    wanted = [uniform(Key.of(1), ids), normal(Key.of(1), ids, 3), integers(Key.of(1), ids, 9, 2)]
    monkeypatch.setattr(random, "_CHUNK", chunk)
    got = [uniform(Key.of(1), ids), normal(Key.of(1), ids, 3), integers(Key.of(1), ids, 9, 2)]
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


def test_the_first_of_several_draws_is_the_single_draw() -> None:
    assert torch.equal(uniform(Key.of(5), IDS[:100], 4)[:, 0], uniform(Key.of(5), IDS[:100]))
    assert torch.equal(uniform(Key.of(5), IDS[:100], 4)[:, :2], uniform(Key.of(5), IDS[:100], 2))
    assert torch.equal(bits(Key.of(5), IDS[:100], 4)[:, 0], bits(Key.of(5), IDS[:100]))


def test_drawing_leaves_the_ids_and_the_global_generator_alone() -> None:
    ids, state = agent_ids(1, 50_000), torch.random.get_rng_state()
    uniform(Key.of(1), ids, 2)
    assert torch.equal(ids, agent_ids(1, 50_000))
    assert torch.equal(state, torch.random.get_rng_state())


# ------------------------------------------------------------------------------------------- keys


def test_seed_and_fold_do_not_change_places() -> None:
    """Found in review: when a fold only xored, Key.of(1).fold(1) was Key.of(0)."""
    small = range(-40, 40)
    keys = [Key.of(seed).value for seed in small]
    keys += [Key.of(seed).fold(part).value for seed in small for part in small]
    keys += [Key.of(99).fold(a, b).value for a in small for b in small]
    assert len(set(keys)) == 80 + 6400 + 6400


def test_no_key_of_a_two_level_tree_is_a_key_of_another_level() -> None:
    levels = [
        [Key.of(s).value for s in range(60)],
        [Key.of(s).fold(a).value for s in range(60) for a in range(60)],
        [Key.of(s).fold(a, b).value for s in range(20) for a in range(20) for b in range(20)],
        [Key.of(s).fold(w, a).value for s in range(60) for w in ("reset", "step", "act", "") for a in range(60)],
    ]
    flat = [key for level in levels for key in level]
    assert len(set(flat)) == len(flat)


def test_a_million_folded_keys_are_all_different() -> None:
    key = Key.of(0)
    assert len({key.fold(step).value for step in range(1_000_000)}) == 1_000_000


def test_no_two_keys_share_numbers_shifted_by_an_agent_and_a_draw() -> None:
    """Found in review: with one key in both rounds, keys k and k + G gave draw d+1 of id i+1 = draw d of id i."""
    golden = 0x9E3779B97F4A7C15
    ids = torch.arange(1000)
    first = uniform(Key(12345), ids, 8)
    for multiple in (1, 2, -1):
        other = uniform(Key((12345 + multiple * golden) % 2**64), ids, 8)
        for agent, draw in itertools.product((-2, -1, 0, 1, 2), repeat=2):
            same = (first.roll((agent, draw), (0, 1)) == other).double().mean()
            assert same < 1e-2, (multiple, agent, draw)


@given(st.integers(-(2**70), 2**70), st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=5), max_size=4))
@settings(max_examples=100, deadline=None)
def test_folding_by_parts_is_folding_at_once(seed: int, parts: list[int | str]) -> None:
    key = Key.of(seed)
    for part in parts:
        key = key.fold(part)
    assert key == Key.of(seed).fold(*parts)
    assert 0 <= key.value < 2**64
    assert 0 <= random.seed_for(key) < 2**31


def test_numpy_numbers_are_numbers_and_fractions_are_refused() -> None:
    assert Key.of(np.int64(5)).fold(np.int32(3)) == Key.of(5).fold(3)
    assert Key.of(5).fold("3") != Key.of(5).fold(3)
    with pytest.raises(TypeError):
        Key.of(5).fold(1.5)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- statistics


def streams() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of samples that an unlucky construction would tie together."""
    key = Key.of(0)
    draws = uniform(key, IDS, 3)
    by_copy = uniform(key, agent_ids(4, N // 4))
    return {
        "neighbouring ids": (uniform(key, IDS)[:-1], uniform(key, IDS)[1:]),
        "neighbouring copies": (by_copy[:-1].reshape(-1), by_copy[1:].reshape(-1)),
        "neighbouring draws": (draws[:, 0], draws[:, 1]),
        "a draw and the next id's draw before": (draws[:-1, 1], draws[1:, 0]),
        "neighbouring steps": (uniform(key.fold("step", 7), IDS), uniform(key.fold("step", 8), IDS)),
        "a step and the next id's step before": (
            uniform(key.fold("step", 7), IDS)[1:],
            uniform(key.fold("step", 8), IDS)[:-1],
        ),
        "neighbouring seeds": (uniform(Key.of(1), IDS), uniform(Key.of(2), IDS)),
        "purposes": (uniform(key.fold("act"), IDS), uniform(key.fold("env"), IDS)),
        "a key and its fold": (uniform(key, IDS), uniform(key.fold(0), IDS)),
        "the same id under many keys": tuple(  # type: ignore[dict-item]
            torch.cat([uniform(key.fold("step", t), IDS[i : i + 1]) for t in range(4000)]) for i in (5, 6)
        ),
    }


STREAMS = streams()


@pytest.mark.parametrize("pair", STREAMS)
def test_streams_are_uncorrelated_and_jointly_uniform(pair: str) -> None:
    x, y = STREAMS[pair]
    for a, b in ((x, y), (x * 64 % 1, y * 64 % 1), ((x - 0.5).square(), (y - 0.5).square())):
        assert abs(standard_scores(a, b)) < 5
    cells = 8 if len(x) < 10_000 else 32
    joint = (x * cells).long() * cells + (y * cells).long()
    assert abs(chi_square_score(torch.bincount(joint, minlength=cells * cells))) < 5


@statistical(alpha=beyond(5, 2), bugs=("uniforms-lean", "pairs-share-noise"))
def test_uniforms_are_uniform_and_open() -> None:
    u = uniform(Key.of(11), agent_ids(1, 3_000_000).reshape(-1))
    assert abs(chi_square_score(torch.bincount((u * 4096).long(), minlength=4096))) < 5
    assert abs(float(u.double().mean()) - 0.5) < 5 * math.sqrt(1 / 12 / len(u))
    assert 0 < float(u.min()) < 1e-5 and 1 - 1e-5 < float(u.max()) < 1
    # The ends of the range, of the bits that lead there.
    ends = random._unit(torch.tensor([-(2**63), 2**63 - 1, 0, -1]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24, 0.5 + 2.0**-24, 0.5 - 2.0**-24]


@statistical(alpha=beyond(5.5, 6720), bugs=("bits-lean", "pairs-share-noise"))
def test_every_bit_is_fair_and_ids_that_differ_in_one_bit_share_half_their_bits() -> None:
    """Avalanche: each input bit of id or key turns each of the 64 output bits over with probability 1/2."""
    ids = agent_ids(1, 4000).reshape(-1)
    place = torch.arange(64)
    base = bits(Key.of(5), ids)
    ones = ((base.unsqueeze(-1) >> place) & 1).double().mean(0)
    limit = 5.5 * 0.5 / math.sqrt(len(ids))  # 64 x (1 + 40 + 64) comparisons: 5.5 sigma for the worst
    assert float((ones - 0.5).abs().max()) < limit
    for bit in range(40):
        turned = base ^ bits(Key.of(5), ids ^ (1 << bit))
        assert float((((turned.unsqueeze(-1) >> place) & 1).double().mean(0) - 0.5).abs().max()) < limit, bit
    for bit in range(64):
        turned = base ^ bits(Key(Key.of(5).value ^ (1 << bit)), ids)
        assert float((((turned.unsqueeze(-1) >> place) & 1).double().mean(0) - 0.5).abs().max()) < limit, bit


def test_bits_of_different_ids_never_meet_within_a_key() -> None:
    assert len(torch.unique(bits(Key.of(0), agent_ids(4, 250_000)))) == 1_000_000


@statistical(alpha=beyond(5, 10), bugs=("uniforms-lean", "wide-normals"))
def test_normals_and_exponentials_have_their_moments_and_tails() -> None:
    ids = agent_ids(1, 1_000_000).reshape(-1)
    z, e = normal(Key.of(2), ids).double(), exponential(Key.of(3), ids).double()
    root = math.sqrt(len(ids))
    assert torch.isfinite(z).all() and torch.isfinite(e).all() and float(e.min()) > 0
    assert abs(z.mean()) < 5 / root
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2) / root
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96) / root
    tail = 0.00134990  # P(z > 3)
    assert abs((z > 3).double().mean() - tail) < 5 * math.sqrt(tail) / root
    assert abs(e.mean() - 1) < 5 / root
    assert abs((e > 3).double().mean() - math.exp(-3)) < 5 * math.sqrt(math.exp(-3)) / root


@pytest.mark.parametrize("high", [1, 2, 3, 10, 1000])
def test_whole_numbers_are_uniform(high: int) -> None:
    counts = torch.bincount(integers(Key.of(4), IDS, high), minlength=high)
    assert len(counts) == high and int(counts.sum()) == N
    if high > 1:
        assert abs(chi_square_score(counts)) < 5


@given(st.integers(1, 2**31), st.integers(0, 2**62))
@settings(max_examples=60, deadline=None)
def test_whole_numbers_stay_in_range_and_are_the_exact_share_of_63_bits(high: int, start: int) -> None:
    ids = start + torch.arange(50)
    drawn = integers(Key.of(8), ids, high).tolist()
    wanted = [((r & (2**63 - 1)) * high) >> 63 for r in bits(Key.of(8), ids).tolist()]
    assert drawn == wanted and all(0 <= d < high for d in drawn)


def test_wrong_calls_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="expected 1 to"):
        integers(Key.of(0), IDS, 0)
    with pytest.raises(ConfigError, match="int64"):
        uniform(Key.of(0), torch.arange(3, dtype=torch.int32))


def test_the_generator_and_the_seed_belong_to_the_key() -> None:
    key = Key.of(9).fold("shuffle")
    first = torch.randperm(100, generator=random.generator(key))
    assert torch.equal(first, torch.randperm(100, generator=random.generator(key)))
    assert not torch.equal(first, torch.randperm(100, generator=random.generator(key.fold(1))))


def test_empty_and_single_crowds_draw() -> None:
    assert uniform(Key.of(0), torch.empty((2, 0), dtype=torch.int64), 3).shape == (2, 0, 3)
    assert uniform(Key.of(0), torch.tensor(5)).shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_bits_and_uniforms() -> None:
    ids = agent_ids(3, 50_000)
    key = Key.of(1)
    assert torch.equal(bits(key, ids.cuda()).cpu(), bits(key, ids))
    assert torch.equal(uniform(key, ids.cuda(), 3).cpu(), uniform(key, ids, 3))
    assert torch.equal(integers(key, ids.cuda(), 1000).cpu(), integers(key, ids, 1000))
    torch.testing.assert_close(normal(key, ids.cuda()).cpu(), normal(key, ids), rtol=2e-6, atol=2e-6)
