"""Matrix products whose accumulator is emulated: every product and every addition rounded, or fused.

Memory is bounded: the virtual tensor of products is formed a few rows at a time. Native accumulation is
torch's own product, not rounded here: the caller rounds it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.accumulate import (
    Calls,
    SumCalls,
    Terms,
    add_terms,
    beside,
    round_terms,
    sum_terms,
)
from normstab.numerics.call import Call
from normstab.numerics.dispatch import carried
from normstab.numerics.execute import carrier_dtype, finish
from normstab.numerics.formats import AnyFormat
from normstab.numerics.precision import NEAREST, Accumulation
from normstab.numerics.readable.exact_sum import exact_sum
from normstab.numerics.readable.losses import count_losses, counts_losses
from normstab.numerics.readable.operations import Carried, carry, widened
from normstab.numerics.readable.reference import encode
from normstab.numerics.sums.kernels_of_sums import kernels_for

if TYPE_CHECKING:
    from normstab.numerics.arithmetic import Arithmetic

__all__ = ["Shapes", "matmul"]

# Shapes: a (B, M, K), b (B, K, N), products (B, M, N, K); R rows of the flattened (B, M, N) at a time.
PRODUCTS_AT_ONCE = 1 << 22


class Shapes(NamedTuple):
    """The sizes of a product of matrices, and the shape that torch.matmul gives the result."""

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    result: tuple[int, ...]


def matmul(ar: Arithmetic, a: Tensor, b: Tensor, *, operation: str = "matmul") -> Tensor:
    """Return `a @ b` in the accumulation `ar.precision.matmul`, each result cast to the format of results."""
    kind = ar.precision.matmul
    total = accumulate_matmul(a, b, accumulation=kind, calls=ar.calls(operation), format=ar.format)
    return total if kind.kind == "exact" else ar.cast(total, operation)


def accumulate_matmul(a: Tensor, b: Tensor, *, accumulation: Accumulation, calls: Calls, format: AnyFormat) -> Tensor:
    """Return `a @ b` with its sums over k as `accumulation` says; shapes as torch.matmul has them.

    Kind `rounded`: products are rounded to the accumulator format at `.mul`, additions at `.sum`; `fused`:
    each product but the first of a chain is added unrounded, at `.sum`. Kind `exact`: the exact sum of exact
    products, rounded once to `format` at the operation's own site. Kind `native`: torch's product, unrounded.
    Operands are float32 (p <= 24) or float64. Random bits by the index in the virtual (..., M, N, K).
    """
    a, b = carried(a), carried(b)
    shapes = shapes_of(a, b)
    if accumulation.kind == "native":
        dtype = carrier_dtype((a, b), format)
        return a.to(dtype) @ b.to(dtype)
    if accumulation.kind == "exact":
        return _exact(a, b, shapes, calls("", format)).view(shapes.result)
    assert accumulation.format is not None, "a rounded accumulation has a format"
    product = calls(".mul", accumulation.format)
    kahan = calls(".sum.kahan", accumulation.format) if accumulation.kahan else None
    at = SumCalls(calls(".sum", accumulation.format), None, kahan)
    # The loss of a fused addition is by its product to nearest, of which the kernels have only what they round to.
    is_known = not (accumulation.fused and counts_losses(product)) or product.rounding == NEAREST
    kernels = kernels_for(a, product, "matmul") if is_known else None
    found: Tensor | None = None if kernels is None else kernels.matmul(a, b, shapes, accumulation, product, at)
    if found is None:
        sums = [_rows(x, y, index, accumulation, product, at) for x, y, index in _factors(a, b, shapes)]
        joined = torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64, device=a.device)
        found = encode(joined, carrier_dtype((a, b), accumulation.format))
    return found.view(shapes.result)


def shapes_of(a: Tensor, b: Tensor) -> Shapes:
    """Return the sizes of `a @ b`, as torch.matmul broadcasts them; raise NormstabError where they do not fit."""
    found = f"matmul of shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if a.dim() == 0 or b.dim() == 0:
        raise NormstabError(f"{found}; allowed: vectors, matrices and batches of matrices, no scalars")
    rows = a.shape if a.dim() > 1 else (1, *a.shape)
    columns = b.shape if b.dim() > 1 else (*b.shape, 1)
    if rows[-1] != columns[-2]:
        raise NormstabError(f"{found}: the inner sizes {rows[-1]} and {columns[-2]} differ")
    try:
        batch = tuple(torch.broadcast_shapes(rows[:-2], columns[:-2]))
    except RuntimeError:
        raise NormstabError(f"{found}: the batch sizes do not broadcast") from None
    m, n = rows[-2], columns[-1]
    result = (*batch, *((m,) if a.dim() > 1 else ()), *((n,) if b.dim() > 1 else ()))
    return Shapes(batch, m, n, rows[-1], result)


def _factors(a: Tensor, b: Tensor, shapes: Shapes) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows (R, K) of both factors in float64, row-major over (B, M, N), with their indices (R, K)."""
    m, n, k = shapes.m, shapes.n, shapes.k
    b_size = math.prod(shapes.batch)
    a_BMK = widened(a if a.dim() > 1 else a.unsqueeze(0)).expand(*shapes.batch, m, k).reshape(b_size, m, k)
    b_BNK = widened(b if b.dim() > 1 else b.unsqueeze(1)).expand(*shapes.batch, k, n).reshape(b_size, k, n).mT
    rows = b_size * m * n
    at_once = max(1, PRODUCTS_AT_ONCE // max(k, 1))
    for start in range(0, rows, at_once):
        row = torch.arange(start, min(start + at_once, rows), device=a.device)
        batch, rest = row // (m * n), row % (m * n)
        index = row.unsqueeze(1) * k + torch.arange(k, device=a.device)
        yield a_BMK[batch, rest // n], b_BNK[batch, rest % n], index


def _rows(a: Tensor, b: Tensor, index: Tensor, accumulation: Accumulation, product: Call, at: SumCalls) -> Tensor:
    """Return the R sums over k of the products of rows `a` and `b`."""
    if accumulation.fused and index.shape[1]:
        return _fused(a, b, index, accumulation, product, at)
    terms = Terms(round_terms(carry("mul", (a, b)), index, product) if index.numel() else a, index)
    return sum_terms(terms, accumulation, at)


def _fused(a: Tensor, b: Tensor, index: Tensor, accumulation: Accumulation, product: Call, at: SumCalls) -> Tensor:
    """Return the R sums with a = cast(a_0 b_0); a = fma(a_i, b_i, a); block sums are added sequentially."""
    k = index.shape[1]
    width = accumulation.width if accumulation.order == "blocked" else k
    sums = []
    for start in range(0, k, width):
        first = slice(start, start + 1)
        total = round_terms(carry("mul", (a[:, first], b[:, first])), index[:, first], product)
        for i in range(start + 1, min(start + width, k)):
            one = slice(i, i + 1)
            down = at.add.rounding.mode == "down"
            factors = a[:, one], b[:, one], total
            total = round_terms(carry("fma", factors, rounds_down=down), index[:, one], at.add)
            count_losses("fma", factors, total, at.add)
        sums.append(Terms(total, index[:, first]))
    blocks = beside(*sums)
    total_terms = blocks.at(slice(0, 1))
    for i in range(1, blocks.m):
        total_terms = add_terms(total_terms, blocks.at(slice(i, i + 1)), at.add)
    return total_terms.value[:, 0]


def _exact(a: Tensor, b: Tensor, shapes: Shapes, call: Call) -> Tensor:
    """Return the exact sums over k, flattened over (B, M, N), rounded once."""
    down, to_odd = call.rounding.mode == "down", call.format.precision <= 51
    dtype = carrier_dtype((a, b), call.format)
    rounding_too = kernels_for(a, call, "exact, rounded")
    result: Tensor | None = None if rounding_too is None else rounding_too.products(a, b, shapes, call, dtype)
    if result is not None:
        return result
    kernels = kernels_for(a, call, "exact") if shapes.k else None
    found: Carried | None = None if kernels is None else kernels.products(a, b, shapes, to_odd=to_odd, rounds_down=down)
    if found is not None:
        return finish(found, call, dtype=dtype)
    sums = []
    for x, y, index in _factors(a, b, shapes):
        products = carry("mul", (x, y))
        total = exact_sum(products.value, to_odd=to_odd, rounds_down=down)
        operands = products._replace(
            value=total, operand_nan=products.operand_nan.any(1), operand_inf=products.operand_inf.any(1)
        )
        row = index[:, 0] // shapes.k if shapes.k else torch.arange(len(total), device=a.device)
        sums.append(round_terms(operands, row, call) if shapes.k else total)
    total = torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64, device=a.device)
    return encode(total, dtype)
