"""Philox 4x32-10 for the CPU kernels: the random field of one element, or of a run of them.

    block b   [  word 0  ][  word 1  ][  word 2  ][  word 3  ]      a function of key, step and b alone
    w = 32         0           1           2           3            which element of the block has which bits;
    w = 16       1   0       3   2       5   4       7   6          the first has the lowest bits of a word
    w = 8      3 2 1 0     7 6 5 4   11 10 9 8  15 14 13 12

No generator goes from one number to the next: any element's bits can be computed first, by any thread.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, and Random123. Which field an
element takes is the layout of numerics section 8: element i, fields of w bits, 128/w of them in a block.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import device, outside

__all__ = ["draw_fields", "draw_runs", "field_of", "philox_block"]

u32, u64 = np.uint32, np.uint64
# Constants of Random123's philox.h: multipliers, what keys grow by in a round, rounds.
MULTIPLIER_0, MULTIPLIER_1 = u64(0xD2511F53), u64(0xCD9E8D57)
WEYL_0, WEYL_1 = u64(0x9E3779B9), u64(0xBB67AE85)
ROUNDS = 10
HALF, LOW = u64(32), u64(2**32 - 1)


@device
def philox_block(key, step, block):
    """Return the four words of one block, each in the low half of a uint64 whose high half means nothing.

    `key`, `step` and `block` are 64-bit words, as int64 or uint64.
    """
    k0, k1 = u64(key) & LOW, u64(key) >> HALF
    c0, c1 = u64(block), u64(block) >> HALF
    c2, c3 = u64(step), u64(step) >> HALF
    for _ in range(ROUNDS):
        # Only factors are cut to 32 bits: what else lies in a high half is cut when it becomes one.
        p0, p1 = (c0 & LOW) * MULTIPLIER_0, (c2 & LOW) * MULTIPLIER_1
        c0, c2 = (p1 >> HALF) ^ c1 ^ k0, (p0 >> HALF) ^ c3 ^ k1
        c1, c3 = p1, p0
        k0, k1 = (k0 + WEYL_0) & LOW, (k1 + WEYL_1) & LOW
    return c0, c1, c2, c3


@device
def field_of(key, step, index, width):
    """Return the `width` random bits of element `index`, in the topmost bits of a uint32.

    `width` is 8, 16 or 32; 0 (a deterministic rounding) gives 0 without work. A plan's `drawn` masks the
    top R bits of it; lane 64 takes it shifted left by 30.
    """
    if width == 0:
        return u32(0)
    per_block = 128 // width
    place = index % per_block
    word = place // (32 // width)
    c0, c1, c2, c3 = philox_block(key, step, index // per_block)
    # Comparisons, not an index: the four words stay in registers.
    chosen = u32((c0 if word == 0 else c1) if word < 2 else (c2 if word == 2 else c3))
    # To the top of the word, where the lanes' masks of random bits lie.
    low = (place % (32 // width)) * width
    return u32(u32(chosen >> u32(low)) << u32(32 - width))


@outside
def draw_fields(fields, words, key, step, first, n, width):
    """Fill fields[:n] with field_of elements first .. first + n - 1; `words` is room for 4 (n / per_block + 2)."""
    if width == 0:
        return
    per_block = 128 // width
    start = first // per_block
    blocks = (first + n + per_block - 1) // per_block - start
    draw_words(words, key, step, start, 1, blocks)
    skipped = first - start * per_block
    # Slices start at zero: an index that could be negative would not be read in lanes.
    if width == 32:
        own = words[skipped:]
        for i in range(n):
            fields[i] = own[i]
    elif width == 16:
        halves = words.view(np.uint16)[skipped:]
        for i in range(n):
            fields[i] = u32(u32(halves[i]) << u32(16))
    else:
        octets = words.view(np.uint8)[skipped:]
        for i in range(n):
            fields[i] = u32(u32(octets[i]) << u32(24))


@outside
def draw_runs(fields, words, key, step, first, runs, n, stride, width):
    """Fill `fields` with those of `runs` runs of n elements, which begin `stride` apart: a whole number of blocks.

    A run takes the same places of its blocks as the others, so that they are drawn side by side: of short runs one
    after the other most of what a block costs would be lost.

        words    [ block 0 of run 0 | of run 1 | ... ][ block 1 of run 0 | of run 1 | ... ]
    """
    per_block = 128 // width
    skipped = first % per_block
    blocks = (skipped + n + per_block - 1) // per_block
    at_once = len(words) // (4 * blocks)
    for begin in range(0, runs, at_once):
        m = min(at_once, runs - begin)
        for b in range(blocks):
            start = (first + begin * stride) // per_block + b
            draw_words(words[4 * m * b :], key, step, start, stride // per_block, m)
        for i in range(n):
            place = (skipped + i) % per_block
            word, low = place // (32 // width), place % (32 // width) * width
            source, target = words[4 * m * ((skipped + i) // per_block) + word :], fields[begin * n + i :]
            for r in range(m):
                target[r * n] = u32(u32(source[4 * r] >> u32(low)) << u32(32 - width))


@device
def draw_words(words, key, step, start, apart, blocks):
    """Fill words[: 4 * blocks] with those of the blocks number start, start + apart, ..."""
    pairs = words.view(np.uint64)  # little-endian: the low word of a pair comes first
    for b in range(blocks):
        c0, c1, c2, c3 = philox_block(key, step, start + b * apart)
        pairs[2 * b], pairs[2 * b + 1] = (c0 & LOW) | (c1 << HALF), (c2 & LOW) | (c3 << HALF)
