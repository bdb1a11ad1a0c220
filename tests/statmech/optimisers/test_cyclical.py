from __future__ import annotations

from itertools import pairwise

import pytest

from mfmarl.errors import ConfigError
from mfmarl.statmech.optimisers.cyclical import cosine_cycle


def test_every_cycle_begins_in_strides_and_ends_in_samples():
    found = [cosine_cycle(t, 40, 4) for t in range(40)]
    assert [share for share, _ in found[::10]] == [1.0] * 4
    assert found[5][0] == pytest.approx(0.5) and found[5][1]
    assert [sampling for _, sampling in found[:10]] == [False] * 5 + [True] * 5
    assert all(a > b for (a, _), (b, _) in pairwise(found[:10]))


def test_a_cycle_that_is_none_is_refused():
    for step, steps, cycles in ((0, 3, 4), (5, 5, 1), (0, 5, 0), (-1, 5, 1)):
        with pytest.raises(ConfigError, match="cycles"):
            cosine_cycle(step, steps, cycles)
