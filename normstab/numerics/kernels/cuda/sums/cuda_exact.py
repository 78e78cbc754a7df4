"""Exact sums and exact sums of products of CUDA tensors, rounded once: which calls are served, their launches.

Every format, rounding and counter is served, operands read where they lie; None is returned for 2^30 addends of one
sum or more. Importing it needs Triton; under its interpreter it serves CPU tensors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.cuda_tensors import NAMES, table64
from normstab.numerics.kernels.cuda.device_log import multiprocessors
from normstab.numerics.kernels.cuda.launches import Launch, prepared, settle, signed
from normstab.numerics.kernels.cuda.sums.exact_digits import DIGIT_BITS, Kind, bits_of_addend, unit_of
from normstab.numerics.kernels.cuda.sums.exact_kernel import exact_kernel, settle_exact_kernel
from normstab.numerics.kernels.cuda.sums.sum_passes import Walk, walk_of, walked_factors
from normstab.numerics.readable.reference import layout
from normstab.numerics.sums.matmul import Shapes

__all__ = ["products", "sums"]

# Numbers of a tile, and the most rows of it; rows of a program that rounds.
TILE, MOST_ROWS, SETTLED_ROWS = 512, 128, 128
WARPS = 8
MOST_ADDENDS = 1 << 30
# Programs for each multiprocessor that few rows are cut among, and the fewest addends of one.
BUSY, LEAST_SPAN = 4, 4096
WIDEST_ODD = 51  # significand bits up to which the sum is rounded to odd, for it is rounded again
# From the highest digit of an addend on, what 2^30 of them carry.
CARRIES = 2


def sums(x: Tensor, reduced: Sequence[int], call: Call, dtype: torch.dtype) -> Tensor | None:
    """Return the exact sums (K,) of `x` over the axes `reduced`, each rounded once, in `dtype`; or None."""
    x = x.detach().resolve_neg()
    walk = walk_of(tuple(x.shape), x.stride(), tuple(reduced))
    return _rounded([x], [walk], call, dtype)


def products(a: Tensor, b: Tensor, shapes: Shapes, call: Call, dtype: torch.dtype) -> Tensor | None:
    """Return the exact sums over k of the products of float64, flattened over (B, M, N), each rounded once; or None."""
    walked = walked_factors(a, b, shapes)
    return None if walked is None else _rounded(*walked, call, dtype)


class Cut(NamedTuple):
    """The rows and the lanes of a tile, powers of two; the chunks of a row, each of `span` addends."""

    rows: int
    lanes: int
    chunks: int
    span: int


def cut_of(walk: Walk, device: torch.device) -> Cut:
    """Return the tile, its threads beside each other where memory is, and the chunks that few rows are cut into."""
    n = 1 << (walk.n - 1).bit_length()
    rows = min(1 << (walk.rows - 1).bit_length(), MOST_ROWS)
    if walk.kept.strides[0] != 1:
        rows = min(rows, max(TILE // n, 1))
    lanes = min(TILE // rows, n)
    missing = BUSY * multiprocessors(device) // -(-walk.rows // rows)
    chunks = max(min(missing, walk.n // LEAST_SPAN), 1)
    span = -(-walk.n // (chunks * lanes)) * lanes
    return Cut(rows, lanes, -(-walk.n // span), span)


def kind_of(dtype: torch.dtype, call: Call, *, is_product: bool) -> int:
    """Return what is compiled in of addends of a dtype and of the rounding, as bits of Kind."""
    flags = {
        Kind.WIDE: dtype == torch.float64,
        Kind.PRODUCT: is_product,
        Kind.TO_ODD: call.format.precision <= WIDEST_ODD,
        Kind.DOWN: call.rounding.mode == "down",
    }
    return sum(flag for flag, is_set in flags.items() if is_set)


def places_of(kind: int) -> int:
    """Return how many digits every sum of a kind has room in."""
    highest = (2045 if kind & Kind.WIDE else 506 if kind & Kind.PRODUCT else 253) + bits_of_addend(kind) - 1
    return highest // DIGIT_BITS + 1 + CARRIES


def _rounded(sources: list[Tensor], walks: list[Walk], call: Call, dtype: torch.dtype) -> Tensor | None:
    """Return the sums of one tensor, or of the products of two, each with its walk; and count."""
    source, walk = sources[0], walks[-1]
    if source.dtype not in NAMES or walk.n >= MOST_ADDENDS:
        return None
    target = torch.empty(walk.rows, dtype=dtype, device=source.device)
    kind, cut = kind_of(source.dtype, call, is_product=len(sources) > 1), cut_of(walk, source.device)
    places = places_of(kind) if cut.chunks > 1 else 0
    digits = torch.zeros(max(places * walk.rows, 1), dtype=torch.int64, device=source.device)
    noted = torch.zeros(walk.rows if places else 1, dtype=torch.int32, device=source.device)
    launch = prepared(walk.rows, call, source.device)
    to, bits = target.view(layout(dtype).integer), layout(source.dtype)
    table = table64(call.format, call.rounding, False, source.device)
    given, options = (to, table, launch.counts, launch.bins, digits, noted, walk.rows), _options(launch, kind, places)
    factors, kept, reduced = (
        [x.view(bits.integer) for x in sources],
        [w.kept for w in walks],
        [w.reduced for w in walks],
    )
    with torch.cuda.device_of(source):
        exact_kernel[(-(-walk.rows // cut.rows), cut.chunks)](
            factors[0], factors[-1], *given, walk.n, cut.span, (kept[0], kept[-1]), (reduced[0], reduced[-1]),
            *_drawn(call, launch), DIGITS=bits.fraction_bits, BIAS=bits.bias, SIGNIFICAND=bits_of_addend(kind),
            ROWS=cut.rows, LANES=cut.lanes, **options,
        )  # fmt: skip
        if places:
            settle_exact_kernel[(-(-walk.rows // SETTLED_ROWS),)](
                *given, *_drawn(call, launch), ROWS=SETTLED_ROWS, **options
            )
    settle(launch, walk.rows, call, target)
    return target


def _options(launch: Launch, kind: int, places: int) -> dict[str, Any]:
    """Return what both kernels have compiled in."""
    own = {"KIND": tl.constexpr(kind), "UNIT": unit_of(kind), "PLACES": places, "HISTOGRAM": launch.bins is not None}
    return own | launch.options | {"num_warps": WARPS}


def _drawn(call: Call, launch: Launch) -> tuple[int, int, int, Tensor | None]:
    """Return the words of Philox, the index of the first sum, and where lies how much later; zeros without a draw."""
    draw, later = call.draw if call.rounding.is_stochastic else None, launch.place[-1]
    return (0, 0, 0, later) if draw is None else (signed(draw.word), signed(draw.step), draw.first_index, later)
