"""Noise that is drawn as stochastic rounding draws, and added to a tensor as a constant.

A value's noise follows from the seed, the layer's site, the step and the value's index alone: torch's generators are
neither read nor advanced, strides and threads change nothing, and a resumed run needs no more than its step.

To differentiation the noise is a constant, as rounding is under `cast`: gradients pass unchanged, and are disturbed
only where `where` says so.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.norms.noise.norm_noise import NormNoise
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import kernels_for
from normstab.numerics.formats import AnyFormat, FixedFormat
from normstab.numerics.ledger import site_of
from normstab.numerics.philox import Draw, key_word, philox, signed_step
from normstab.torch_private import modes_off

__all__ = ["disturb_gradient", "disturbed", "noise_of", "quantum", "uniform_fields"]

# Bits of a draw: u = (2 U + 1 - 2^24) / 2^25 is then a float32 as it is, odd and so never zero, symmetric around it.
BITS, UNIT = 24, 2.0**-25
# The deviation of a variable uniform on (-1/2, 1/2) is 1 / sqrt(12).
WIDTH = math.sqrt(12.0)


def disturbed(t: Tensor, noise: NormNoise | None, ar: Arithmetic, operation: str) -> Tensor:
    """Return `t` plus its noise, drawn at the site of `operation`; `t` itself where there is no noise.

    The sum is formed in float32 (float64 for float64) and returned in the dtype of `t`. NaN and infinity pass.
    Raises NormstabError where the arithmetic has no key.
    """
    if noise is None:
        return t
    if torch.compiler.is_dynamo_compiling():
        return torch.compiler.disable(disturbed)(t, noise, ar, operation)  # type: ignore[no-any-return]
    draw = next_draw(ar, f"noise.{operation}")
    carrier = torch.float64 if t.dtype == torch.float64 else torch.float32
    with torch.no_grad(), modes_off():
        added = noise_of(t.detach().to(carrier), noise, draw)
    return (t.to(carrier) + added).to(t.dtype)


def disturb_gradient(x: Tensor, noise: NormNoise | None, ar: Arithmetic) -> Tensor:
    """Return `x`, whose gradient will be disturbed on its way out of the layer."""
    if noise is None or not torch.is_grad_enabled():
        return x
    passed: Tensor = _OfGradient.apply(x, noise, ar)  # type: ignore[no-untyped-call]
    return passed


class _OfGradient(torch.autograd.Function):
    """Pass a tensor; disturb its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: NormNoise, ar: Arithmetic) -> Tensor:
        ctx.noise, ctx.ar = noise, ar
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return disturbed(grad, ctx.noise, ctx.ar.towards("backward"), "gradient"), None, None


def next_draw(ar: Arithmetic, operation: str) -> Draw:
    """Return the random bits of the next call of `operation` within the step, as a stochastic rounding there has."""
    if ar.key is None:
        raise NormstabError(
            "norm_noise needs a key: layer.arithmetic = ns.Arithmetic('native', key=ns.Key(seed=0)).at('the layer')"
        )
    ar.clock.replay.follow()  # a forward that is run again is disturbed as it was
    site = str(site_of(ar.site, operation, ar.direction))
    n = ar.clock.number(site)
    return Draw(key_word(ar.key.seed, f"{site}#{n}" if n else site), ar.clock.step)


def noise_of(t: Tensor, noise: NormNoise, draw: Draw) -> Tensor:
    """Return the noise of each value of `t` (float32 or float64); zero where a value is not finite."""
    u = uniform_fields(draw, t.numel(), device=t.device).reshape(t.shape).to(t.dtype)
    format = noise.format
    if noise.kind == "uniform":
        width = WIDTH * noise.sigma if noise.sigma is not None else 0.0
        added = u * width if format is None else u * quantum(t, format)
    else:
        width = WIDTH * noise.sigma if noise.sigma is not None else 0.0
        added = t * (u * (width if format is None else matched_width(t, format)))
    return torch.where(t.isfinite(), added, 0.0)


def uniform_fields(draw: Draw, n: int, *, device: torch.device) -> Tensor:
    """Return n values uniform on (-1/2, 1/2), float32: (2 U + 1 - 2^24) / 2^25 of `random_fields(draw, i, 24)`.

    Their mean is zero and their variance (1 - 2^-48) / 12. Four elements share a block of Philox, so a block is
    computed once for the four, in their order: by a kernel on a CPU, with the same bits.
    """
    if device.type == "cpu" and kernels_for(torch.empty(0)) is not None:
        from normstab.norms.cpu.uniform_kernel import fill_uniform

        out = torch.empty(n, dtype=torch.float32)
        fill_uniform(out.data_ptr(), n, signed_step(draw.word), signed_step(draw.step))
        return out
    return uniform_by_torch(draw, n, device)


def uniform_by_torch(draw: Draw, n: int, device: torch.device) -> Tensor:
    """Return what `uniform_fields` does, on any device."""
    blocks = torch.arange(-(-n // 4), dtype=torch.int64, device=device)
    words = torch.stack(philox(draw.word, draw.step, blocks), dim=1).reshape(-1)[:n]
    odd: Tensor = 2 * (words >> (32 - BITS)) + (1 - 2**BITS)
    return odd.to(torch.float32) * UNIT


def quantum(t: Tensor, format: AnyFormat) -> Tensor:
    """Return the distance between neighbours of the format at each value, its range left aside.

    2^-F in fixed point; 2^(e - p + 1) in binade e of a float, and that of the least normal binade below it (the least
    normal number itself where there are no subnormals).
    """
    if isinstance(format, FixedFormat):
        return torch.full_like(t, 2.0**-format.fraction_bits)
    words, exponent = (torch.int32, 0x7F800000) if t.dtype == torch.float32 else (torch.int64, 0x7FF << 52)
    # The bits of the exponent alone are the power of two at or below a normal number, and zero for a subnormal one.
    binade: Tensor = (t.contiguous().view(words) & exponent).view(t.dtype)
    spacing = binade * 2.0 ** (1 - format.precision)
    least = torch.full_like(t, format.min_subnormal)
    if not format.has_subnormals:
        return torch.where(t.abs() < format.min_normal, least, spacing)
    return torch.maximum(spacing, least)


def matched_width(t: Tensor, format: AnyFormat) -> float:
    """Return the width of zeta: sqrt(sum(q^2) / sum(t^2)) over the finite values, 0 where all are zero."""
    finite = torch.where(t.isfinite(), t, 0.0).double()
    q = torch.where(t.isfinite(), quantum(t, format), 0.0).double()
    power = halving_sum(finite * finite)
    return math.sqrt(halving_sum(q * q) / power) if power > 0 else 0.0


def halving_sum(x: Tensor) -> float:
    """Return the sum of a float64 tensor, halves added to halves: the same order on every machine."""
    rest = x.reshape(-1)
    while rest.numel() > 1:
        half, odd = divmod(rest.numel(), 2)
        summed = rest[:half] + rest[half : 2 * half]
        rest = torch.cat([summed, rest[-1:]]) if odd else summed
    return float(rest[0]) if rest.numel() else 0.0
