"""Which layers the fused kernels compute, and which of them in float32; everything else is computed op by op.

Covered, forward and backward: any norm, by its traced program (norms.program), and on a CPU linf, topK and range by
kernels of their own, for their few members are found there on the way. Float and fixed-point formats of p <= 24 in
every role, every rounding, sums in every order in a format of p <= 24, means of one sum. In float32 on a CPU: nearest
rounding in fp16, bf16, the fp8 formats and their like in every role, and sums in lanes of fp32.

Left out on a CPU where it is slower than op by op: Kahan's sums and, in narrow formats, sums one after another, which
have vector kernels of their own (numerics.kernels.cpu.sums.sum_tiles).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.fused.layer_table import BLOCK
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import is_served
from normstab.numerics.formats import FORMATS, Format
from normstab.numerics.kernels.cpu.openmp import flushes_subnormals
from normstab.numerics.kernels.format_table import PLAN, plan
from normstab.numerics.kernels.shortcut_table import GENERIC, INTEGER, LANE32
from normstab.numerics.precision import Precision, Rounding

__all__ = ["covers", "covers_program", "is_fast"]

LARGEST_K = 64  # members of a top k are kept sorted by insertion
LARGEST_WIDE_PRECISION = 8  # with subnormals as small as float32's, a longer product is not exact there (tf32)
COVERED_KINDS = ("linf", "topk", "range")
STYLE = PLAN.index("style")
ROLES = ("square", "sum", "variance", "reciprocal", "gradient")
NEAREST = Rounding("nearest")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def covers(x: Tensor, scheme: Scheme, ar: Arithmetic, *, parameters: tuple[Tensor | None, ...] = ()) -> bool:
    """Whether kernels of its own compute this layer of `x` and of gamma and beta, forward and backward."""
    spec = scheme.spec
    is_written = spec is not None and spec.kind in COVERED_KINDS and spec.k <= LARGEST_K
    return is_written and x.device.type == "cpu" and covers_arithmetic(x, ar, parameters)


def covers_program(x: Tensor, ar: Arithmetic, *, parameters: tuple[Tensor | None, ...] = ()) -> bool:
    """Whether traced programs of layers of `x` and of gamma and beta are run in this arithmetic."""
    return x.device.type in ("cpu", "cuda") and covers_arithmetic(x, ar, parameters)


def covers_arithmetic(x: Tensor, ar: Arithmetic, parameters: tuple[Tensor | None, ...]) -> bool:
    """Whether kernels compute in this arithmetic on such tensors."""
    return (
        all(tensor is None or tensor.dtype in DTYPES for tensor in (x, *parameters))
        and 0 < x.numel() < 2**31
        and (ar.ledger is None or not (ar.ledger.counts_histogram or ar.ledger.counts_losses))
        and ar.role is None
        and ar.rules is None
        and covers_precision(ar.precision, x.device.type)
    )


@lru_cache(maxsize=256)
def covers_precision(precision: Precision, device_type: str) -> bool:
    """Whether float32 tensors hold every result of this precision, and nothing else has its sums faster."""
    formats = [precision.compute, precision.accumulation.format, *(getattr(precision, role) for role in ROLES)]
    return (
        precision.accumulation.kind == "rounded"
        and all(format is None or (format.fits_float32 and is_served(format, precision.rounding)) for format in formats)
        and precision.mean == "sum"
        and not (device_type == "cpu" and has_faster_sums(precision))
    )


def has_faster_sums(precision: Precision) -> bool:
    """Whether sums go one after another here, and many rows at once on their own: Kahan's, and nearest ones."""
    from normstab.numerics.kernels.nearest import spec_table  # which needs numba, as CUDA does not

    sums = precision.accumulation
    if sums.kahan:
        return True
    if sums.order == "lanes" or precision.rounding != NEAREST:
        return False
    return sums.format is not None and spec_table(sums.format) is not None


def is_fast(ar: Arithmetic) -> bool:
    """Whether float32 carries this arithmetic: every product, quotient and sum in it is rounded once, and counted."""
    precision = ar.precision
    if not carries(precision) or (ar.ledger is not None and ar.ledger.counts_inexact):
        return False
    # Where float32's subnormals are numbers of the format, a processor that flushes them loses results.
    return not (is_wide_ranged(precision) and flushes_subnormals())


@lru_cache(maxsize=256)
def carries(precision: Precision) -> bool:
    """Whether float32 carries this precision while its subnormals are not flushed."""
    compute, sums = precision.compute, precision.accumulation
    if not isinstance(compute, Format) or compute.precision > 11 or precision.rounding != NEAREST:
        return False
    if is_wide_ranged(precision) and compute.precision > LARGEST_WIDE_PRECISION:
        return False
    return (
        plan(compute, NEAREST, LANE32)[STYLE] != GENERIC
        and all(getattr(precision, role) in (None, compute) for role in ROLES)
        and precision.sum is None
        and sums.format == FORMATS["fp32"]
        and sums.order == "lanes"
        and BLOCK % sums.width == 0
    )


def is_wide_ranged(precision: Precision) -> bool:
    """Whether subnormals of the format are subnormals of float32, as in bf16."""
    assert precision.compute is not None
    return bool(plan(precision.compute, NEAREST, LANE32)[STYLE] == INTEGER)
