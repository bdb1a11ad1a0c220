"""The loops behind `compiled`: what everybody's others do, counted in a pass or two over the actions.

All need numba (the extra `fast`) and are compiled on first use, in the process's memory only. Whole numbers are counted
and then looked up among quotients, or divided, as torch divides them: no bit differs.

An agent's code, one byte, is its class or, where groups are kept apart, group (C + 1) + class, with class C for who has
none; DEAD for the dead. A lane counts the agents of one code.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

DEAD = 255
_U8, _U64, _F32 = np.uint8, np.uint64, np.float32

_jit = nb.njit(nogil=True, error_model="numpy")


@_jit
def encode(classes: Any, alive: Any, everyone: bool, ends: Any, count: int, out: Any) -> None:
    """Codes, bytes [E, N], of classes [E, N] of which there are `count`; groups end where `ends` say."""
    for e in range(len(classes)):
        start = 0
        for group in range(len(ends)):
            first = group * (count + 1)
            for i in range(start, ends[group]):
                c = classes[e, i]
                out[e, i] = _U8(first + (c if 0 <= c < count else count))
            start = ends[group]
        if not everyone:
            for i in range(start):
                out[e, i] = out[e, i] if alive[e, i] else _U8(DEAD)


# ------------------------------------------------------------------------------------------------ everyone


@_jit
def histogram(code: Any, out: Any) -> None:
    """How many have each code: int64 [E, 256] of bytes [E, N]."""
    copies, agents = code.shape
    # Four counters each: one alone would wait for its own last addition wherever neighbours are alike.
    parts = np.zeros((4, 256), np.int64)
    for e in range(copies):
        parts[:] = 0
        whole = agents // 4 * 4
        for i in range(0, whole, 4):
            parts[0, code[e, i]] += 1
            parts[1, code[e, i + 1]] += 1
            parts[2, code[e, i + 2]] += 1
            parts[3, code[e, i + 3]] += 1
        for i in range(whole, agents):
            parts[0, code[e, i]] += 1
        for c in range(256):
            out[e, c] = parts[0, c] + parts[1, c] + parts[2, c] + parts[3, c]


@_jit
def look_up(code: Any, first: int, table: Any, out: Any) -> None:
    """out [E, n, F] = table[e, code[e, first + i]], of tables [E, 256, F]."""
    copies, agents, width = out.shape
    for e in range(copies):
        # Short rows by hand: a loop over two columns costs more than the columns.
        if width == 2:
            for i in range(agents):
                c = code[e, first + i]
                out[e, i, 0] = table[e, c, 0]
                out[e, i, 1] = table[e, c, 1]
        elif width == 3:
            for i in range(agents):
                c = code[e, first + i]
                out[e, i, 0] = table[e, c, 0]
                out[e, i, 1] = table[e, c, 1]
                out[e, i, 2] = table[e, c, 2]
        elif width == 4:
            for i in range(agents):
                c = code[e, first + i]
                out[e, i, 0] = table[e, c, 0]
                out[e, i, 1] = table[e, c, 1]
                out[e, i, 2] = table[e, c, 2]
                out[e, i, 3] = table[e, c, 3]
        else:
            for i in range(agents):
                c = code[e, first + i]
                for f in range(width):
                    out[e, i, f] = table[e, c, f]


# ---------------------------------------------------------------------------------------------- neighbours


@_jit
def torus_means(
    code: Any, near: Any, side: int, groups: int, count: int, shares: Any, everyone: bool, first: int, out: Any
) -> None:
    """The shares of each class among the neighbours on a torus, out [E, n, groups * count], from agent `first` on.

    The torus lies in lines of `side` sites; near [lines, K] are the lines before and after along the other axes.
    shares[n, k] is k / n. Each lane's counts are made a line at a time, in bytes: dozens of sites by an instruction.
    """
    last = first + out.shape[1]
    whole = everyone and groups == 1  # nobody's neighbours need be counted
    lanes = count if whole else groups * (count + 1)
    tally, living = np.empty((lanes, side), _U8), np.empty(side, _U8)
    living[:] = near.shape[1] + 2
    for e in range(len(code)):
        for line in range(first // side, (last + side - 1) // side):
            here = code[e, line * side : (line + 1) * side]
            for lane in range(lanes):
                mark, row = _U8(lane), tally[lane]
                for x in range(1, side - 1):
                    row[x] = _U8(here[x - 1] == mark) + _U8(here[x + 1] == mark)
                row[0] = _U8(here[side - 1] == mark) + _U8(here[1] == mark)
                row[side - 1] = _U8(here[side - 2] == mark) + _U8(here[0] == mark)
                for k in range(near.shape[1]):
                    there = code[e, near[line, k] * side : (near[line, k] + 1) * side]
                    for x in range(side):
                        row[x] += _U8(there[x] == mark)
            low, high = max(first - line * side, 0), min(last - line * side, side)
            to = line * side - first
            for group in range(groups):
                base = group * (count + 1)
                if not whole:
                    living[:] = 0
                    for lane in range(base, base + count + 1):
                        row = tally[lane]
                        for x in range(side):
                            living[x] += row[x]
                for c in range(count):
                    row, column = tally[base + c], group * count + c
                    for x in range(low, high):
                        out[e, to + x, column] = shares[living[x], row[x]]
            if not everyone:
                for x in range(low, high):
                    if here[x] == DEAD:
                        for f in range(groups * count):
                            out[e, to + x, f] = 0.0


@_jit
def few_lanes_means(
    code: Any, begins: Any, target: Any, groups: int, count: int, shares: Any, everyone: bool, first: int, out: Any
) -> None:
    """The same on a graph of at most 255 links each: agent i feels target[begins[i] : begins[i + 1]].

    At most eight lanes, side by side in one word.
    """
    whole = everyone and groups == 1
    words, byte = np.zeros(256, np.uint64), _U64(255)
    for lane in range(groups * (count + 1)):
        words[lane] = _U64(1) << _U64(8 * lane)
    for e in range(len(code)):
        here = code[e]
        for i in range(first, first + out.shape[1]):
            total = _U64(0)
            for k in range(begins[i], begins[i + 1]):
                total += words[here[target[k]]]
            if here[i] == DEAD:
                total = _U64(0)
            living = _U64(begins[i + 1] - begins[i])
            for group in range(groups):
                base = group * (count + 1)
                if not whole:
                    living = _U64(0)
                    for lane in range(base, base + count + 1):
                        living += (total >> _U64(8 * lane)) & byte
                for c in range(count):
                    out[e, i - first, group * count + c] = shares[living, (total >> _U64(8 * (base + c))) & byte]


@_jit
def many_lanes_means(code: Any, begins: Any, target: Any, groups: int, count: int, first: int, out: Any) -> None:
    """The same, of any number of lanes and links."""
    tally, living = np.zeros(256, np.int64), np.zeros(groups, np.int64)
    for e in range(len(code)):
        here = code[e]
        for i in range(first, first + out.shape[1]):
            row = out[e, i - first]
            row[:] = 0.0
            if here[i] == DEAD:
                continue
            living[:] = 0
            for k in range(begins[i], begins[i + 1]):
                c = here[target[k]]
                tally[c] += 1
                if c != DEAD:
                    living[c // (count + 1)] += 1
            for k in range(begins[i], begins[i + 1]):
                c = here[target[k]]
                group = c // (count + 1)
                if tally[c] and c != DEAD and c % (count + 1) < count:
                    row[c - group] = _F32(tally[c]) / _F32(living[group])
                tally[c] = 0


@_jit
def torus_alike(state: Any, near: Any, side: int, out: Any) -> None:
    """How many neighbours on a torus are in one's own state: bytes [E, N] of bytes [E, N]."""
    for e in range(len(state)):
        for line in range(len(near)):
            here = state[e, line * side : (line + 1) * side]
            row = out[e, line * side : (line + 1) * side]
            for x in range(1, side - 1):
                row[x] = _U8(here[x - 1] == here[x]) + _U8(here[x + 1] == here[x])
            row[0] = _U8(here[side - 1] == here[0]) + _U8(here[1] == here[0])
            row[side - 1] = _U8(here[side - 2] == here[side - 1]) + _U8(here[0] == here[side - 1])
            for k in range(near.shape[1]):
                there = state[e, near[line, k] * side : (near[line, k] + 1) * side]
                for x in range(side):
                    row[x] += _U8(there[x] == here[x])


@_jit
def linked_alike(state: Any, begins: Any, target: Any, out: Any) -> None:
    """The same over links, int32."""
    for e in range(len(state)):
        here = state[e]
        for i in range(len(begins) - 1):
            total = 0
            for k in range(begins[i], begins[i + 1]):
                total += here[target[k]] == here[i]
            out[e, i] = total
