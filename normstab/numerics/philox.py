"""Counter-based random bits: Philox 4x32-10, keyed by (seed, site, step, element index).

The readable torch version, on every device. No generator of torch is read or advanced, and no two elements
share bits. The layout is documented at `random_fields`.
"""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.errors import DtypeError, NormstabError
from normstab.numerics.steps.capturing import refuse_captured

__all__ = ["Draw", "Key", "philox", "random_fields", "signed_step"]

# Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, table 2 and
# the Random123 distribution (philox.h).
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
MASK = 0xFFFFFFFF
LARGEST_WORD = 2**64 - 1


@dataclass(frozen=True)
class Key:
    """Names a stream of random bits: the same key gives the same bits on every device.

    `seed` and `step` are in 0 .. 2^64 - 1; `site` is any text, hashed to 64 bits.
    """

    seed: int = 0
    site: str = ""
    step: int = 0

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("step", self.step)):
            try:
                found = operator.index(value)  # numpy's whole numbers are whole numbers too
            except TypeError:
                found = -1
            if not 0 <= found <= LARGEST_WORD:
                raise NormstabError(f"Key: {name} is a whole number in 0 .. 2^64 - 1, found {value!r}")
            object.__setattr__(self, name, found)
        if not isinstance(self.site, str):
            raise DtypeError(f"Key: site is a name, found {type(self.site).__name__}: {self.site!r:.60}")

    def at(self, site: str) -> Key:
        """Return the key of another site, with the same seed and step."""
        return replace(self, site=site)

    @property
    def word(self) -> int:
        """The 64-bit Philox key: the first 8 bytes, little endian, of BLAKE2b(seed || site)."""
        return key_word(self.seed, self.site)

    @property
    def draw(self) -> Draw:
        """The Draw of this key, from its first element on."""
        return Draw(self.word, self.step, 0)


class Draw(NamedTuple):
    """Where a tensor's random bits come from: Philox key, step, and the index of its first element."""

    word: int
    step: int
    first_index: int = 0


def signed_step(step: int) -> int:
    """Return the int64 of the same bits as a step in 0 .. 2^64 - 1."""
    return step - 2**64 if step >= 2**63 else step


@lru_cache(maxsize=65536)
def key_word(seed: int, site: str) -> int:
    """Return the 64-bit Philox key of (seed, site)."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + site.encode()).digest()
    return int.from_bytes(digest[:8], "little")


def philox(word: int, step: int, block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four 32-bit words (as int64) of Philox 4x32-10 for each `block` (int64).

    Key (low, high) of `word`; counter (block low, block high, step low, step high).
    """
    refuse_captured("random bits drawn by the torch reference")
    k0, k1 = word & MASK, word >> 32
    c0, c1 = block & MASK, (block >> 32) & MASK
    c2, c3 = torch.full_like(block, step & MASK), torch.full_like(block, step >> 32)
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2^64, which keeps the bits: the masked shift is the high word.
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        high_0, low_0 = (product_0 >> 32) & MASK, product_0 & MASK
        high_1, low_1 = (product_1 >> 32) & MASK, product_1 & MASK
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


def field_width(bits: int) -> int:
    """Return w, the width of an element's field: the least of 8, 16, 32 that holds `bits`."""
    return 8 if bits <= 8 else 16 if bits <= 16 else 32


def random_fields(draw: Draw, index: Tensor, bits: int) -> Tensor:
    """Return U, uniform on 0 .. 2^bits - 1, for each element `index` (int64, counted from the draw's first).

    Layout: with w the field width, element i uses block i div (128/w), j = i mod (128/w), word
    j div (32/w), bits from (j mod (32/w)) w upward; U is the top `bits` of that field.
    """
    width = field_width(bits)
    per_word = 32 // width
    i = index + draw.first_index
    block, j = i // (4 * per_word), i % (4 * per_word)
    words = torch.stack(philox(draw.word, draw.step, block))
    word = words.gather(0, (j // per_word).unsqueeze(0)).squeeze(0)
    field = (word >> ((j % per_word) * width)) & ((1 << width) - 1)
    return field >> (width - bits)
