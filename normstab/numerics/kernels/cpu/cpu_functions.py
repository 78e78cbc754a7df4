"""Functions rounded once, on the CPU: float32 as float64 and back, and whole roots rounded to odd.

A root is an estimate y, made better by two steps of Newton's iteration, and then a question: on which side of y does
the real root lie? y^p is formed in two words, high + low, whose error is below p 2^-98 of it, so that (high - x) + low,
of which high - x is exact, tells the side unless it is smaller; of a y so short that float64 holds y^p, always. The few
numbers of which it does not are left to the readable code.

    x = 2^(k p) s, 1/2 <= s < 2^(p - 1)    so that no power leaves the range
    y = s^(1/p)                            torch's, within a few units of float32's last place
    y = y - (y^p - s) y / (p y^p)          in float64: within p 2^-46 of the root
    y = y - (y^p - s) y / (p y^p)          with y^p in two words: within 0.51 units of the last place
    root = 2^k (y rounded to odd)
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.kernels.cpu.bits import INF32, INF64, MAGNITUDE32, MAGNITUDE64, SIGN64, U31
from normstab.numerics.kernels.cpu.blocks import widened32
from normstab.numerics.kernels.cpu.compile import as_float64, as_int64, device, kernel, outside, right32, view
from normstab.numerics.kernels.cpu.counting import _towards_zero32
from normstab.numerics.kernels.cpu.to_odd import folded, product_error
from normstab.numerics.readable.operations import exact_root

__all__ = ["narrow", "root", "widen"]

u32 = np.uint32
NAN32 = u32(0x7FC00000)
BLOCK = 256  # of which all that is kept lies in the first-level cache
MOST_DEGREE = 64  # of a root whose powers stay in float64's range
HALF_CODE, MIN_NORMAL64, ONE64, NAN64, UNSURE = 1022, 1 << 52, 1023 << 52, 0x7FF8 << 48, 2.0**-98
LIFT = 1100  # degrees above the least exponent, so that what is divided is not negative


def widen(x: Tensor) -> Tensor:
    """Return `x` as float64; subnormals survive flush-to-zero."""
    if x.dtype != torch.float32:
        return x.to(torch.float64)
    source = x.detach().contiguous()
    target = torch.empty(x.shape, dtype=torch.float64, device=x.device)
    widen32(source.data_ptr(), target.data_ptr(), source.numel())
    return target


def narrow(x: Tensor) -> Tensor:
    """Return float64 `x`, all of whose numbers float32 has, as float32; every NaN is the canonical one."""
    source = x.contiguous()
    target = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    narrow64(source.data_ptr(), target.data_ptr(), source.numel())
    return target


def root(x: Tensor, p: int) -> Tensor:
    """Return the real p-th root of float64 `x`, rounded to odd; negative x as in readable.exact_root."""
    if p > MOST_DEGREE:
        return exact_root(x, p)
    given = x.detach().contiguous().view(-1)
    scaled, powers, roots = (torch.empty_like(given, dtype=dtype) for dtype in (None, torch.int64, None))
    estimates, unsure = (torch.empty_like(given, dtype=dtype) for dtype in (torch.float32, torch.bool))
    places = (given, scaled, powers, estimates, roots, unsure)
    addresses = [place.data_ptr() for place in places]
    scale_for_root(*addresses[:4], p, len(given))
    estimates.log_().mul_(1.0 / p).exp_()  # torch.pow takes three times as long
    if finish_roots(*addresses, p, len(given)):
        left, where = torch.unique(given[unsure].view(torch.int64), return_inverse=True)
        roots[unsure] = exact_root(left.view(torch.float64), p)[where]
    return roots.view(x.shape)


@kernel
def widen32(source, target, n):  # pragma: no cover - compiled
    """Write float32 as float64, by integers."""
    x, y = view(source, n, u32), view(target, n, np.int64)
    for i in range(n):
        y[i] = widened32(u32(x[i] & MAGNITUDE32)) | (np.int64(right32(x[i], U31)) << 63)


@kernel
def narrow64(source, target, n):  # pragma: no cover - compiled
    """Write float64 as the float32 that they are, by integers."""
    x, y = view(source, n, np.int64), view(target, n, u32)
    for i in range(n):
        a = x[i] & MAGNITUDE64
        bits = u32(_towards_zero32(a)) if a < INF64 else (INF32 if a == INF64 else NAN32)
        sign = u32(u32(x[i] < 0 and a <= INF64) << U31)
        y[i] = u32(bits | sign)


@kernel
def scale_for_root(source, target, powers, estimates, p, n):  # pragma: no cover - compiled
    """Write abs(x) as 2^(k p) s: s to `target`, and in float32 to `estimates`, and k to `powers`; else s = 1."""
    x, s, k = view(source, n, np.int64), view(target, n, np.float64), view(powers, n, np.int64)
    short, reciprocal = view(estimates, n, np.float32), (1 << 32) // p + 1
    for i in range(n):
        a = x[i] & MAGNITUDE64
        is_normal = (a >= MIN_NORMAL64) & (a < INF64)
        exponent = (a >> 52) - HALF_CODE
        # exponent // p, as a division has no lanes: of numbers below 2^17 and p up to 64 the product is near enough.
        whole = ((exponent + LIFT * p) * reciprocal >> 32) - LIFT
        bits = (a & (MIN_NORMAL64 - 1)) | ((HALF_CODE + exponent - whole * p) << 52)
        s[i] = as_float64(bits if is_normal else ONE64)
        k[i] = whole if is_normal else 0
        short[i] = np.float32(s[i])


@kernel
def finish_roots(source, scaled, powers, estimates, roots, unsure, p, n):  # pragma: no cover - compiled
    """Make roots of x, rounded to odd, of estimates of those of s; mark and count those that are not sure."""
    x, k, is_unsure = view(source, n, np.int64), view(powers, n, np.int64), view(unsure, n, np.uint8)
    short, high, low, degree, left = view(estimates, n, np.float32), np.empty(BLOCK), np.empty(BLOCK), np.float64(p), 0
    is_odd, beyond = (p & 1) != 0, (1 << (53 - max(53 // p, 1))) - 1  # the digits of y that a short one has not
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        own, of = view(roots + 8 * start, m, np.float64), view(scaled + 8 * start, m, np.float64)
        for i in range(m):
            own[i], high[i] = np.float64(short[start + i]), np.float64(short[start + i])
        for _ in range(p - 1):
            for i in range(m):
                high[i] = high[i] * own[i]
        for i in range(m):
            own[i] = own[i] - (high[i] - of[i]) * own[i] / (degree * high[i])
        raise_to(own, high, low, p, m)
        for i in range(m):
            own[i] = own[i] - ((high[i] - of[i]) + low[i]) * own[i] / (degree * high[i])
        raise_to(own, high, low, p, m)
        for i in range(m):
            excess = (high[i] - of[i]) + low[i]
            a, negative = x[start + i] & MAGNITUDE64, x[start + i] & SIGN64
            is_normal = (a >= MIN_NORMAL64) & (a < INF64)
            is_none = (negative != 0) & (not is_odd) & (a != 0) & (a <= INF64)
            is_near = (abs(excess) <= degree * UNSURE * of[i]) & ((as_int64(own[i]) & beyond) != 0)
            found = as_int64(folded(own[i], -excess)) + (k[start + i] << 52)
            found = (found if is_normal else a) | negative
            own[i] = as_float64(NAN64 if is_none else found)
            is_left = (is_near if is_normal else (a != 0) & (a < MIN_NORMAL64)) & (not is_none)
            is_unsure[start + i] = is_left
            left += np.int64(is_left)
    return left


@outside
def raise_to(y, high, low, p, n):  # pragma: no cover - compiled
    """Set high + low to y^p. Source: Dekker 1971."""
    for i in range(n):
        high[i], low[i] = y[i], 0.0
    for _ in range(p - 1):
        for i in range(n):
            high[i], low[i] = times(high[i], low[i], y[i])


@device
def times(high, low, y):
    """Return (high + low) y in two words."""
    product = high * y
    error = product_error(high, y, product) + low * y
    total = product + error
    return total, error - (total - product)
