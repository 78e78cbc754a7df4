"""Sums in a stated format and order: the readable torch reference, and the choice of a kernel.

Every addition is one rounding, counted and keyed. `matmul` and `means` build on it. It does not cast the sum
to the compute format: the caller does, if the precision says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.execute import add_counts, carrier_dtype, finish
from normstab.numerics.formats import AnyFormat
from normstab.numerics.philox import random_fields
from normstab.numerics.precision import Accumulation
from normstab.numerics.readable.exact_sum import exact_sum
from normstab.numerics.readable.losses import count_losses_of_sum
from normstab.numerics.readable.operations import Carried, carry, widened
from normstab.numerics.readable.reference import encode, round_reference
from normstab.numerics.sums.kernels_of_sums import addends, kernels_for
from normstab.numerics.sums.reduced_axes import canonical_dims, kept_shape

__all__ = [
    "Calls",
    "SumCalls",
    "Terms",
    "accumulate",
    "add_terms",
    "block_sums",
    "round_terms",
    "sum_terms",
    "terms_of",
]

# Given a suffix of the operation's site ("", ".load", ".kahan") and a format, the Call that rounds there.
Calls = Callable[[str, AnyFormat], Call]

# Shapes: K kept positions (row-major), n reduced ones (row-major), m partial sums.


class SumCalls(NamedTuple):
    """The calls of one sum: its additions, the casts of addends that do not fit, Kahan's three corrections."""

    add: Call
    load: Call | None
    kahan: Call | None


class Terms(NamedTuple):
    """Partial sums (K, m) in float64, and for each the index of its first leaf in the whole tensor."""

    value: Tensor
    leaf: Tensor

    def at(self, columns: slice | int) -> Terms:
        """Return the partial sums of some columns."""
        return Terms(self.value[:, columns], self.leaf[:, columns])

    @property
    def m(self) -> int:
        """How many partial sums each kept position has."""
        return self.value.shape[1]


def accumulate(
    x: Tensor,
    dims: int | Sequence[int] | None,
    *,
    keepdim: bool = False,
    accumulation: Accumulation,
    calls: Calls,
    format: AnyFormat,
) -> Tensor:
    """Return the sum of `x` over `dims` (None: all), added in the order and format of `accumulation`.

    The reduced axes are flattened in logical row-major order. Kind `rounded`: the sum is a value of the
    accumulator format; `exact`: the exact sum rounded once to `format`; `native`: torch's own sum, not
    rounded. An empty sum is +0. `x` is of any dtype; the result is float64 for a float64 `x` and for
    formats wider than float32, else float32.

    Additions are counted at the operation's own site. Addends are first cast to the accumulator format at
    `.load`, where only those that do not fit count. An addition that joins two partial sums draws the random
    bits of the first leaf of its right operand, by its row-major index in `x`.
    """
    x = addends(x)
    reduced = canonical_dims(dims, x.dim())
    shape = kept_shape(x, reduced, keepdim=keepdim)
    if x.numel() == 0 or x.device.type == "meta":
        # Nothing is added, nothing counts: the kernels need not know of it.
        result = accumulation.format if accumulation.format is not None else format
        return x.new_zeros(shape, dtype=carrier_dtype((x,), result))
    if accumulation.kind == "native":
        wide = x.to(carrier_dtype((x,), format))
        return wide.sum(dim=reduced, keepdim=keepdim) if reduced else wide.clone()
    if accumulation.kind == "exact":
        return _exact(x, reduced, calls("", format)).view(shape)
    at = sum_calls(accumulation, calls)
    kernels = kernels_for(x, at.add)
    total = None if kernels is None else kernels.accumulate(x, reduced, accumulation, at)
    if total is None:
        terms = round_loads(terms_of(x, reduced), at.load)
        total = encode(sum_terms(terms, accumulation, at), carrier_dtype((x,), at.add.format))
    return total.view(shape)


def sum_calls(accumulation: Accumulation, calls: Calls) -> SumCalls:
    """Return the calls of a sum in the accumulator format."""
    format = accumulation.format
    assert format is not None, "a rounded accumulation has a format"
    kahan = calls(".kahan", format) if accumulation.kahan else None
    return SumCalls(calls("", format), calls(".load", format), kahan)


def block_sums(x: Tensor, dims: Sequence[int], width: int, at: SumCalls) -> Tensor:
    """Return the sequential sums (K, blocks) of consecutive blocks of `width` addends, the last one shorter."""
    x = addends(x)
    kernels = kernels_for(x, at.add) if x.numel() else None
    sums = None if kernels is None else kernels.block_sums(x, dims, width, at)
    if sums is None:
        terms = round_loads(terms_of(x, dims), at.load)
        sums = encode(_blocks(terms, width, at).value, carrier_dtype((x,), at.add.format))
    return sums


def terms_of(x: Tensor, reduced: Sequence[int]) -> Terms:
    """Return `x` as (K, n) terms: kept axes and reduced axes each flattened in logical row-major order."""
    kept = [axis for axis in range(x.dim()) if axis not in reduced]
    n = math.prod(x.shape[axis] for axis in reduced)
    k = math.prod(x.shape[axis] for axis in kept)
    index = torch.arange(x.numel(), dtype=torch.int64, device=x.device).view(x.shape)
    order = (*kept, *reduced)
    return Terms(widened(x.permute(order).reshape(k, n)), index.permute(order).reshape(k, n))


def round_loads(terms: Terms, call: Call | None) -> Terms:
    """Cast each addend to the accumulator format; an addend that fits is no event and is not counted."""
    if call is None:
        return terms
    x = terms.value
    rounded = round_reference(x, call.format, call.rounding, fields=_fields(terms.leaf, call))
    is_changed = ~((rounded.value == x) | x.isnan())
    if is_changed.any():
        changed = Terms(x[is_changed].unsqueeze(0), terms.leaf[is_changed].unsqueeze(0))
        round_terms(Carried(changed.value, changed.value.isnan(), changed.value.isinf(), None), changed.leaf, call)
    return terms._replace(value=rounded.value)


def sum_terms(terms: Terms, accumulation: Accumulation, at: SumCalls) -> Tensor:
    """Return the sums (K,) of terms (K, n) that already are in the accumulator format."""
    if terms.m == 0:
        return torch.zeros(len(terms.value), dtype=torch.float64, device=terms.value.device)
    match accumulation.order:
        case "sequential":
            total = _chain(terms, at)
        case "pairwise":
            total = _pairwise(terms, at)
        case "blocked":
            total = _chain(_blocks(terms, accumulation.width, at), at)
        case _:
            total = _pairwise(_lanes(terms, accumulation.width, at), at)
    return total.value[:, 0]


def _chain(terms: Terms, at: SumCalls) -> Terms:
    """Return a = x_0; a = a + x_i, compensated where Kahan's call is given."""
    if at.kahan is None:
        return _rows_added(terms, 1, at.add)
    total = terms.at(slice(0, 1))
    lost = Terms(torch.zeros_like(total.value), total.leaf)
    for i in range(1, terms.m):
        y = add_terms(terms.at(slice(i, i + 1)), negated(lost), at.kahan)
        t = add_terms(total, y, at.add)
        lost = add_terms(add_terms(t, negated(total), at.kahan), negated(y), at.kahan)
        total = t
    return total


def _pairwise(terms: Terms, at: SumCalls) -> Terms:
    """Return the root of the tree t_i = x_2i + x_2i+1, an odd last element moving up unchanged."""
    while terms.m > 1:
        even, odd = terms.at(slice(0, None, 2)), terms.at(slice(1, None, 2))
        joined = add_terms(even.at(slice(0, odd.m)), odd, at.add)
        terms = joined if even.m == odd.m else beside(joined, even.at(slice(odd.m, None)))
    return terms


def _blocks(terms: Terms, width: int, at: SumCalls) -> Terms:
    """Return the sums of consecutive blocks of `width`, each sequential; the last block may be shorter."""
    k, full = len(terms.value), terms.m // width
    found = []
    if full:
        whole = [part[:, : full * width].reshape(k * full, width) for part in terms]
        found.append(Terms(*(part.reshape(k, full) for part in _chain(Terms(*whole), at))))
    if terms.m % width:
        found.append(_chain(terms.at(slice(full * width, None)), at))
    return beside(*found)


def _lanes(terms: Terms, width: int, at: SumCalls) -> Terms:
    """Return the lane sums: lane j adds x_j, x_j+k, x_j+2k ... sequentially."""
    whole = terms.m // width * width
    if not whole:
        return terms
    lanes, addends = _rows_added(terms.at(slice(0, whole)), width, at.add), terms.at(slice(whole, None))
    joined = add_terms(lanes.at(slice(0, addends.m)), addends, at.add) if addends.m else addends
    return beside(joined, lanes.at(slice(addends.m, None)))


def _rows_added(terms: Terms, width: int, call: Call) -> Terms:
    """Return the sums of consecutive rows of `width` terms, one row added after another."""
    k, n = len(terms.value), terms.m // width
    x, leaf = (part.reshape(k, n, width) for part in terms)
    total = Terms(x[:, 0], leaf[:, 0])
    for i in range(1, n):
        total = add_terms(total, Terms(x[:, i], leaf[:, i]), call)
    return total


def beside(*parts: Terms) -> Terms:
    """Return the columns of all `parts`, side by side."""
    return Terms(torch.cat([p.value for p in parts], 1), torch.cat([p.leaf for p in parts], 1))


def negated(terms: Terms) -> Terms:
    """Return the terms with their signs changed, which is exact."""
    return terms._replace(value=-terms.value)


def add_terms(a: Terms, b: Terms, call: Call) -> Terms:
    """Return a + b, each sum rounded once; it keeps the first leaf of `a` and draws by that of `b`."""
    rounds_down = call.rounding.mode == "down"
    carried = carry("add", (a.value, b.value), rounds_down=rounds_down, is_rounded=call.format.precision <= 51)
    total = round_terms(carried, b.leaf, call)
    count_losses_of_sum(a.value, b.value, total, call)
    return Terms(total, a.leaf)


def round_terms(carried: Carried, index: Tensor, call: Call) -> Tensor:
    """Round results that are still in float64 once, count them, and return them, in float64."""
    rounded = round_reference(carried.value, call.format, call.rounding, fields=_fields(index, call))
    add_counts(call, carried, rounded)
    return rounded.value


def _fields(index: Tensor, call: Call) -> Tensor | None:
    """Return U for each element index for stochastic rounding; else None."""
    if not call.rounding.is_stochastic:
        return None
    assert call.draw is not None, "stochastic rounding needs a draw"
    return random_fields(call.draw, index, call.rounding.bits)


def _exact(x: Tensor, reduced: Sequence[int], call: Call) -> Tensor:
    """Return the exact sums (K,) of `x`, each rounded once, its random bits by its own row-major index."""
    rounds_down, to_odd = call.rounding.mode == "down", call.format.precision <= 51
    dtype = carrier_dtype((x,), call.format)
    rounding_too = kernels_for(x, call, "exact, rounded")
    result: Tensor | None = None if rounding_too is None else rounding_too.sums(x, reduced, call, dtype)
    if result is not None:
        return result
    kernels = kernels_for(x, call, "exact")
    found = None if kernels is None else kernels.sums(x, reduced, to_odd=to_odd, rounds_down=rounds_down)
    if found is not None:
        return finish(found, call, dtype=dtype)
    values = terms_of(x, reduced).value
    total = exact_sum(values, to_odd=to_odd, rounds_down=rounds_down)
    carried = Carried(total, values.isnan().any(1), values.isinf().any(1), None)
    return encode(round_terms(carried, torch.arange(len(total), device=x.device), call), dtype)
