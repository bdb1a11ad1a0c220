"""The loops behind `compiled`: spins 64 to a word, or 64 chains to a word, or many chains side by side in vectors.

All need numba (the extra `fast`) and are compiled on first use, in the process's memory only. Each lane of each loop
draws from a generator of its own: xoroshiro128++ (64 bits, for words) and xoshiro128++ (32 bits, for numbers), by
Blackman and Vigna 2021 (ACM Trans. Math. Softw. 47, 36), seeded by the keyed mixer of `mfmarl.random`. Their output
is not linear over GF(2), so no bit of a word is a plain shift register; periods are 2^128 - 1.

A probability p is met by comparing a random number with it, bit by bit from the lowest: `below = (below | r) if the
bit of p is 1 else (below & r)`, where r are words of complemented random bits. After PLANES words, each of the 64 bits
of `below` says whether its own number of PLANES bits lies below p.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

PLANES = 32  # bits of the random numbers: a multiple of 4

_U = np.uint64
_jit = nb.njit(nogil=True, error_model="numpy")
_inline = nb.njit(inline="always", error_model="numpy")

_intrinsic: Any = intrinsic


@_intrinsic
def _float_of_bits(_: Any, number: Any) -> Any:
    """The float32 with these 32 bits."""

    def build(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), build


@_intrinsic
def _bits_of_float(_: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def build(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), build


@_inline
def _step64(x: Any, y: Any) -> Any:
    """xoroshiro128++: the next 64 bits and state."""
    total = x + y
    out = ((total << _U(17)) | (total >> _U(47))) + x
    y ^= x
    x = ((x << _U(49)) | (x >> _U(15))) ^ y ^ (y << _U(21))
    y = (y << _U(28)) | (y >> _U(36))
    return out, x, y


@_jit
def _four_planes_of_three(
    first: Any, second: Any, a: Any, b: Any, c: Any, coin: Any, bits: Any, plane: int, size: int
) -> None:
    """Four planes of the comparison with three thresholds (bits [3, PLANES], all ones or zeros), `size` words each.

    `coin` gets the last words drawn: after the last plane, whose numbers lie below 1/2.
    """
    a0, a1, a2, a3 = bits[0, plane], bits[0, plane + 1], bits[0, plane + 2], bits[0, plane + 3]
    b0, b1, b2, b3 = bits[1, plane], bits[1, plane + 1], bits[1, plane + 2], bits[1, plane + 3]
    c0, c1, c2, c3 = bits[2, plane], bits[2, plane + 1], bits[2, plane + 2], bits[2, plane + 3]
    for j in range(size):
        x, y, u, v, w = first[j], second[j], a[j], b[j], c[j]
        r, x, y = _step64(x, y)
        u, v, w = (u & r) | (a0 & (u | r)), (v & r) | (b0 & (v | r)), (w & r) | (c0 & (w | r))
        r, x, y = _step64(x, y)
        u, v, w = (u & r) | (a1 & (u | r)), (v & r) | (b1 & (v | r)), (w & r) | (c1 & (w | r))
        r, x, y = _step64(x, y)
        u, v, w = (u & r) | (a2 & (u | r)), (v & r) | (b2 & (v | r)), (w & r) | (c2 & (w | r))
        r, x, y = _step64(x, y)
        u, v, w = (u & r) | (a3 & (u | r)), (v & r) | (b3 & (v | r)), (w & r) | (c3 & (w | r))
        first[j], second[j], a[j], b[j], c[j], coin[j] = x, y, u, v, w, r


@_jit
def _four_planes_of_two(first: Any, second: Any, a: Any, b: Any, coin: Any, bits: Any, plane: int, size: int) -> None:
    """The same for two thresholds."""
    a0, a1, a2, a3 = bits[0, plane], bits[0, plane + 1], bits[0, plane + 2], bits[0, plane + 3]
    b0, b1, b2, b3 = bits[1, plane], bits[1, plane + 1], bits[1, plane + 2], bits[1, plane + 3]
    for j in range(size):
        x, y, u, v = first[j], second[j], a[j], b[j]
        r, x, y = _step64(x, y)
        u, v = (u & r) | (a0 & (u | r)), (v & r) | (b0 & (v | r))
        r, x, y = _step64(x, y)
        u, v = (u & r) | (a1 & (u | r)), (v & r) | (b1 & (v | r))
        r, x, y = _step64(x, y)
        u, v = (u & r) | (a2 & (u | r)), (v & r) | (b2 & (v | r))
        r, x, y = _step64(x, y)
        u, v = (u & r) | (a3 & (u | r)), (v & r) | (b3 & (v | r))
        first[j], second[j], a[j], b[j], coin[j] = x, y, u, v, r


# -------------------------------------------------------------------------------- the square lattice, packed


@_jit
def torus(words: Any, sweeps: int, bits: Any, metropolis: bool, seeds: Any) -> None:
    """Sweeps of words [2 colours, L/64 rows, L/2 columns]: bit b of row i is the lattice's row b L/64 + i.

    Bits [2, PLANES] are those of the two chances that matter; seeds [2, L/2] are the generators, one per column.
    """
    _, rows, size = words.shape
    first, second = seeds[0], seeds[1]
    a, b, coin = np.empty(size, _U), np.empty(size, _U), np.empty(size, _U)
    side, up, down = np.empty(size, _U), np.empty(size, _U), np.empty(size, _U)
    for _ in range(sweeps):
        for colour in range(2):
            for i in range(rows):
                here, there = words[colour, i], words[1 - colour, i]
                # The other neighbour in the row: one to the left where columns are even, to the right where odd.
                if (colour + i) % 2 == 0:
                    side[0] = there[size - 1]
                    side[1:] = there[:-1]
                else:
                    side[:-1] = there[1:]
                    side[size - 1] = there[0]
                above = words[1 - colour, i - 1 if i > 0 else rows - 1]
                below = words[1 - colour, i + 1 if i < rows - 1 else 0]
                if i == 0:  # the neighbour lies in the segment before: one bit down
                    for j in range(size):
                        up[j] = (above[j] << _U(1)) | (above[j] >> _U(63))
                else:
                    up[:] = above
                if i == rows - 1:
                    for j in range(size):
                        down[j] = (below[j] >> _U(1)) | (below[j] << _U(63))
                else:
                    down[:] = below
                a[:] = 0
                b[:] = 0
                for plane in range(0, PLANES, 4):
                    _four_planes_of_two(first, second, a, b, coin, bits, plane, size)
                if metropolis:
                    for j in range(size):
                        s = here[j]
                        n, e, w, z = up[j] ^ ~s, there[j] ^ ~s, side[j] ^ ~s, down[j] ^ ~s  # who agrees
                        p, q = n ^ z, e ^ w
                        ones, two, four = p ^ q, (n & z) ^ (e & w) ^ (p & q), n & z & e & w
                        here[j] = s ^ ((four & a[j]) | (two & ones & b[j]) | ~(four | (two & ones)))
                else:
                    for j in range(size):
                        n, e, w, z = up[j], there[j], side[j], down[j]
                        p, q = n ^ z, e ^ w
                        ones, two, four = p ^ q, (n & z) ^ (e & w) ^ (p & q), n & z & e & w
                        many = (four & ~a[j]) | (two & ones & ~b[j]) | (two & ~ones & coin[j])
                        here[j] = many | (ones & ~two & b[j]) | (~(ones | two | four) & a[j])


@_jit
def pack_torus(s: Any, words: Any) -> None:
    """Spins int8 [L, L] into the words of `torus`."""
    _, rows, size = words.shape
    words[:] = 0
    for segment in range(64):
        for i in range(rows):
            line = s[segment * rows + i]
            for column in range(2 * size):
                if line[column] > 0:
                    words[(i + column) % 2, i, column // 2] |= _U(1) << _U(segment)


@_jit
def unpack_torus(words: Any, s: Any) -> None:
    """The words of `torus` into spins int8 [L, L]."""
    _, rows, size = words.shape
    for segment in range(64):
        for i in range(rows):
            line = s[segment * rows + i]
            for column in range(2 * size):
                word = words[(i + column) % 2, i, column // 2]
                line[column] = 1 if (word >> _U(segment)) & _U(1) else -1


# ------------------------------------------------------------------- any graph, 64 chains to a word

COIN, NEVER = -2, -1  # entries of `pick` in place of a threshold


@_jit
def replicas(
    words: Any,
    sweeps: int,
    near: Any,
    flipped: Any,
    degree: Any,
    kind: Any,
    groups: Any,
    bits: Any,
    pick: Any,
    invert: Any,
    metropolis: bool,
    seeds: Any,
) -> None:
    """Sweeps, site after site, of words [n, W]: bit b of word w is chain 64 w + b.

    near uint32 [n, K], flipped uint64 [n, K] (all ones where J < 0) and degree [n] are the graph; kind [n] is what the
    chances of a site depend on. Kind c compares with the thresholds bits[t, groups[c] .. groups[c + 1], 3, PLANES] in
    sweep t (the last t stays); where k neighbours favour +1 (Metropolis: agree) it takes threshold pick[c, k] of
    them, inverted where invert[c, k] is all ones. seeds [2, W] are the generators.
    """
    n, num_words = words.shape
    planes = 0
    while (1 << planes) <= near.shape[1]:
        planes += 1
    block = 64
    count = np.empty((planes, block), _U)
    below = np.empty((3, block), _U)
    carry, coin, new, some = np.empty(block, _U), np.empty(block, _U), np.empty(block, _U), np.empty(block, _U)
    for low in range(0, num_words, block):
        size = min(block, num_words - low)
        first, second = seeds[0, low : low + size], seeds[1, low : low + size]
        for sweep in range(sweeps):
            row = min(sweep, bits.shape[0] - 1)
            for i in range(n):
                here = words[i, low : low + size]
                count[:] = 0
                for slot in range(degree[i]):
                    other, turn = words[near[i, slot], low : low + size], flipped[i, slot]
                    if metropolis:
                        for j in range(size):
                            carry[j] = other[j] ^ turn ^ ~here[j]
                    else:
                        for j in range(size):
                            carry[j] = other[j] ^ turn
                    for plane in range(planes):
                        digit = count[plane]
                        for j in range(size):
                            over = digit[j] & carry[j]
                            digit[j] ^= carry[j]
                            carry[j] = over
                new[:] = 0
                c = kind[i]
                for group in range(groups[c], groups[c + 1]):
                    below[:] = 0
                    for plane in range(0, PLANES, 4):
                        _four_planes_of_three(
                            first, second, below[0], below[1], below[2], coin, bits[row, group], plane, size
                        )
                    for k in range(degree[i] + 1):
                        which = pick[c, k] - 3 * (group - groups[c])
                        if pick[c, k] < 0:
                            if group > groups[c]:
                                continue
                        elif which < 0 or which > 2:
                            continue
                        some[:] = _U(0xFFFFFFFFFFFFFFFF)
                        for plane in range(planes):
                            want = _U(0) if (k >> plane) & 1 else _U(0xFFFFFFFFFFFFFFFF)
                            digit = count[plane]
                            for j in range(size):
                                some[j] &= digit[j] ^ want
                        turn = invert[c, k]
                        if pick[c, k] == NEVER:
                            for j in range(size):
                                new[j] |= some[j] & turn
                        else:
                            chance = coin if pick[c, k] == COIN else below[which]
                            for j in range(size):
                                new[j] |= some[j] & (chance[j] ^ turn)
                if metropolis:
                    for j in range(size):
                        here[j] ^= new[j]
                else:
                    for j in range(size):
                        here[j] = new[j]


@_jit
def pack_chains(s: Any, lanes: Any, words: Any) -> None:
    """Spins int8 [B, n] into bits: chain b becomes bit lanes[b] % 64 of the words [n, W] of number lanes[b] // 64."""
    words[:] = 0
    for chain in range(s.shape[0]):
        word, bit = lanes[chain] >> 6, _U(lanes[chain] & 63)
        for i in range(s.shape[1]):
            if s[chain, i] > 0:
                words[i, word] |= _U(1) << bit


@_jit
def unpack_chains(words: Any, lanes: Any, s: Any) -> None:
    """The other way round."""
    for chain in range(s.shape[0]):
        word, bit = lanes[chain] >> 6, _U(lanes[chain] & 63)
        for i in range(s.shape[1]):
            s[chain, i] = 1 if (words[i, word] >> bit) & _U(1) else -1


# --------------------------------------------------------------------- any graph and couplings, chains in vectors

_W = np.uint32
_F = np.float32


@_inline
def _step32(a: Any, b: Any, c: Any, d: Any) -> Any:
    """xoshiro128++: the next 32 bits and state."""
    total = _W(a + d)
    out = _W(_W(_W(total << _W(7)) | _W(total >> _W(25))) + a)
    shifted = _W(b << _W(9))
    c = _W(c ^ a)
    d = _W(d ^ b)
    b = _W(b ^ c)
    a = _W(a ^ d)
    c = _W(c ^ shifted)
    d = _W(_W(d << _W(11)) | _W(d >> _W(21)))
    return out, a, b, c, d


@_inline
def _log(y: Any) -> Any:
    """log(y) of a normal float32, to its last place (Moshier's Cephes, `logf`)."""
    root = np.int32(0x3F3504F3)  # sqrt(1/2)
    whole = np.int32(_bits_of_float(y) - root)
    e = _F(np.int32(whole >> np.int32(23)))
    f = _F(_float_of_bits(np.int32(np.int32(whole & np.int32(0x7FFFFF)) + root)) - _F(1))
    z = _F(f * f)
    p = _F(_F(_F(7.0376836292e-2) * f) - _F(1.1514610310e-1))
    p = _F(_F(p * f) + _F(1.1676998740e-1))
    p = _F(_F(p * f) - _F(1.2420140846e-1))
    p = _F(_F(p * f) + _F(1.4249322787e-1))
    p = _F(_F(p * f) - _F(1.6668057665e-1))
    p = _F(_F(p * f) + _F(2.0000714765e-1))
    p = _F(_F(p * f) - _F(2.4999993993e-1))
    p = _F(_F(p * f) + _F(3.3333331174e-1))
    p = _F(_F(_F(_F(p * f) * z) - _F(_F(0.5) * z)) - _F(e * _F(2.12194440e-4)))
    return _F(_F(f + p) + _F(e * _F(0.693359375)))


@_inline
def _exponential(raw: Any) -> Any:
    """Exponential noise: a flip of cost x is taken where it is at least x, so with chance exp(-x)."""
    return -_log(_F(_F(_F(raw) + _F(0.5)) * _F(2.0**-32)))


@_inline
def _logistic(raw: Any) -> Any:
    """Logistic noise: it lies below x with chance 1/(1 + exp(-x)). One bit is the sign, the rest the size."""
    size = _log(_F(_F(_F(2) / _F(_F(_F(_W(raw >> _W(1))) + _F(0.5)) * _F(2.0**-31))) - _F(1)))
    return size if _W(raw & _W(1)) else -size


@_jit
def sparse(
    s: Any,
    fields: Any,
    near: Any,
    couplings: Any,
    degree: Any,
    betas: Any,
    metropolis: bool,
    seeds: Any,
) -> None:
    """Sweeps, site after site, of spins int8 [n, B] at betas float32 [sweeps, B or 1]; each local field is summed anew."""
    n, chains = s.shape
    block = 64
    local, twice = np.empty(block, _F), np.empty(block, _F)
    own = betas.shape[1] > 1
    for low in range(0, chains, block):
        size = min(block, chains - low)
        g0, g1, g2, g3 = (
            seeds[0, low : low + size],
            seeds[1, low : low + size],
            seeds[2, low : low + size],
            seeds[3, low : low + size],
        )
        for sweep in range(betas.shape[0]):
            for j in range(size):
                twice[j] = _F(2) * betas[sweep, low + j if own else 0]
            for i in range(n):
                here = s[i, low : low + size]
                slot, field = 0, fields[i]
                if degree[i] >= 4:
                    n0, n1 = s[near[i, 0], low : low + size], s[near[i, 1], low : low + size]
                    n2, n3 = s[near[i, 2], low : low + size], s[near[i, 3], low : low + size]
                    c0, c1, c2, c3 = couplings[i, 0], couplings[i, 1], couplings[i, 2], couplings[i, 3]
                    for j in range(size):
                        local[j] = _F(
                            _F(field + _F(c0 * _F(n0[j])))
                            + _F(_F(c1 * _F(n1[j])) + _F(_F(c2 * _F(n2[j])) + _F(c3 * _F(n3[j]))))
                        )
                    slot = 4
                else:
                    for j in range(size):
                        local[j] = field
                while slot < degree[i]:
                    other, strength = s[near[i, slot], low : low + size], couplings[i, slot]
                    for j in range(size):
                        local[j] += _F(strength * _F(other[j]))
                    slot += 1
                if metropolis:
                    for j in range(size):
                        raw, g0[j], g1[j], g2[j], g3[j] = _step32(g0[j], g1[j], g2[j], g3[j])
                        cost = _F(_F(twice[j] * local[j]) * _F(here[j]))
                        here[j] = -here[j] if _exponential(raw) >= cost else here[j]
                else:
                    for j in range(size):
                        raw, g0[j], g1[j], g2[j], g3[j] = _step32(g0[j], g1[j], g2[j], g3[j])
                        here[j] = 1 if _logistic(raw) < _F(twice[j] * local[j]) else -1


_AHEAD = 256  # numbers drawn at once


@_jit
def _draw_ahead(noise: Any, size: int, metropolis: bool, state: Any) -> None:
    """The next numbers of one chain."""
    g0, g1, g2, g3 = state[0], state[1], state[2], state[3]
    raw = np.empty(_AHEAD, _W)
    for j in range(size):
        raw[j], g0, g1, g2, g3 = _step32(g0, g1, g2, g3)
    if metropolis:
        for j in range(size):
            noise[j] = _exponential(raw[j])
    else:
        for j in range(size):
            noise[j] = _logistic(raw[j])
    state[0], state[1], state[2], state[3] = g0, g1, g2, g3


@_inline
def _local_field(spin: Any, field: Any, around: Any, strength: Any, links: Any) -> Any:
    """h + sum J s, in the order of `sparse`. Unsigned places need no check for counting from the end."""
    slot: Any = np.uint64(0)
    local = field
    if links >= np.uint64(4):
        local = _F(
            _F(local + _F(strength[0] * spin[around[0]]))
            + _F(
                _F(strength[1] * spin[around[1]])
                + _F(_F(strength[2] * spin[around[2]]) + _F(strength[3] * spin[around[3]]))
            )
        )
        slot = np.uint64(4)
    while slot < links:
        local = _F(local + _F(strength[slot] * spin[around[slot]]))
        slot += np.uint64(1)
    return local


@_jit
def sparse_alone(
    s: Any,
    fields: Any,
    near: Any,
    couplings: Any,
    degree: Any,
    betas: Any,
    metropolis: bool,
    seeds: Any,
) -> None:
    """`sparse`, number for number, one chain after another: for few."""
    n, chains = s.shape
    own = betas.shape[1] > 1
    spin, noise = np.empty(n, _F), np.empty(_AHEAD, _F)
    for chain in range(chains):
        state = seeds[:, chain].copy()
        for i in range(n):
            spin[i] = _F(s[i, chain])
        turned = n
        for sweep in range(betas.shape[0]):
            twice = _F(2) * betas[sweep, chain if own else 0]
            # Where few spins turn a branch is best, for the next spin need not wait for this one; else a choice of
            # values, which cannot be guessed wrong.
            seldom, turned = turned * 8 < n, 0
            for start in range(0, n, _AHEAD):
                size = min(_AHEAD, n - start)
                _draw_ahead(noise, size, metropolis, state)
                for j in range(size):
                    site = np.uint64(start + j)
                    local = _F(
                        twice * _local_field(spin, fields[site], near[site], couplings[site], np.uint64(degree[site]))
                    )
                    old = spin[site]
                    turn = noise[j] >= _F(local * old) if metropolis else (noise[j] < local) != (old > 0)
                    turned += turn
                    if seldom:
                        if turn:
                            spin[site] = -old
                    else:
                        spin[site] = -old if turn else old
        for i in range(n):
            s[i, chain] = np.int8(spin[i])


@_jit
def dense(s: Any, fields: Any, couplings: Any, betas: Any, metropolis: bool, seeds: Any) -> None:
    """Sweeps, site after site, of spins int8 [B, n] at betas float32 [sweeps, B or 1]: a flip mends all local fields.

    couplings float32 [n, n]. The fields are summed anew every 16 sweeps, before rounding gathers.
    """
    chains, n = s.shape
    local, noise = np.empty(n, _F), np.empty(_AHEAD, _F)
    own = betas.shape[1] > 1
    for chain in range(chains):
        here, state = s[chain], seeds[:, chain].copy()
        for sweep in range(betas.shape[0]):
            if sweep % 16 == 0:
                local[:] = fields
                for i in range(n):
                    row, spin = couplings[i], _F(here[i])
                    for j in range(n):
                        local[j] += _F(row[j] * spin)
            twice = _F(2) * betas[sweep, chain if own else 0]
            for start in range(0, n, _AHEAD):
                size = min(_AHEAD, n - start)
                _draw_ahead(noise, size, metropolis, state)
                for step in range(size):
                    i = start + step
                    if metropolis:
                        flip = noise[step] >= _F(_F(twice * local[i]) * _F(here[i]))
                    else:
                        flip = (noise[step] < _F(twice * local[i])) != (here[i] > 0)
                    if flip:
                        row, change = couplings[i], _F(-2 * here[i])
                        here[i] = -here[i]
                        for j in range(n):
                            local[j] += _F(row[j] * change)
