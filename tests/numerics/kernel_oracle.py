"""What the CPU kernels are fed with and compared by: formats, bit patterns, the reference's answer, the kernel's."""

from __future__ import annotations

import numpy as np
import torch

from normstab import FORMATS, Format, parse_format
from normstab.numerics.call import Call
from normstab.numerics.execute import add_counts
from normstab.numerics.kernels.cpu import cpu_tensors as cpu
from normstab.numerics.ledger import Row
from normstab.numerics.philox import Draw, random_fields
from normstab.numerics.precision import ROUNDINGS, Rounding
from normstab.numerics.readable.operations import Carried
from normstab.numerics.readable.reference import round_reference

GRAMMAR = ["e6m9", "e7m23", "e8m1", "e5m2:nan", "e5m10:saturate", "e4m3fn:saturate", "e2m1:inf", "e9m10"]
GRAMMAR += ["e8m1:p=1:max=1.7014118346046923e+38"]
FIXED = ["q7.8", "q0.4", "q0.24", "q24.0:wrap", "q7.8:wrap", "q7.8:saturate-symmetric", "q-2.12", "q20.-8", "q15.16"]
NO_SUBNORMALS = Format("fp16 flushed", 11, -14, 15, 65504.0, has_subnormals=False)
ALL_FORMATS = {**FORMATS, **{name: parse_format(name) for name in GRAMMAR + FIXED}, "flushed": NO_SUBNORMALS}
MODES = [mode for mode in ROUNDINGS if mode != "stochastic"]
ALL_ROUNDINGS = [Rounding(mode) for mode in MODES] + [Rounding("stochastic", bits) for bits in (1, 8, 16, 31, 32)]
DTYPES = {torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.float32: np.uint32, torch.float64: np.uint64}
DRAW = Draw(word=2**64 - 5, step=2**63 + 3, first_index=7)


def patterns(dtype, n, *, seed=0):
    """Random bits: every exponent and class, many with short significands; float64 mostly in float32's range."""
    rng = np.random.default_rng(seed)
    unsigned = DTYPES[dtype]
    size = unsigned().itemsize * 8
    bits = rng.integers(0, 2**size, n, dtype=unsigned)
    dropped = {16: 7, 32: 20, 64: 49}[size]
    bits[::3] &= unsigned(2**size - 2**dropped)
    if dtype == torch.float64:
        exponent = rng.integers(1023 - 160, 1023 + 140, n // 2, dtype=np.uint64) << np.uint64(52)
        bits[: n // 2] = (bits[: n // 2] & unsigned(2**64 - 1 - (2047 << 52))) | exponent
    infinity = {torch.float16: 31 << 10, torch.bfloat16: 255 << 7, torch.float32: 255 << 23, torch.float64: 2047 << 52}
    special = infinity[dtype]
    bits[:7] = [0, 1 << (size - 1), special, special | 1 << (size - 1), special | 1, 1, special - 1]
    return torch.from_numpy(bits.view(f"i{size // 8}")).view(dtype)


def bits_of(x):
    return x.contiguous().view(torch.uint8)


def contents(row):
    """What a row holds, as plain values."""
    histogram = None if row.histogram is None else row.histogram.tolist()
    return row.buffer.tolist(), histogram


def call_of(format, rounding, row=None, *, draw=DRAW):
    draw = draw if rounding.is_stochastic else None
    return Call(format, rounding, row, stamp=5, step=9, draw=draw, inexact=True)


def fields_of(shape, call):
    if call.draw is None:
        return None
    return random_fields(call.draw, torch.arange(shape.numel()), call.rounding.bits).view(shape)


def by_reference(x, format, rounding, *, draw=DRAW, histogram=True):
    """The reference's rounding of `x`, and the row it fills."""
    row = Row(with_histogram=histogram)
    call = call_of(format, rounding, row, draw=draw)
    rounded = round_reference(x, format, rounding, fields=fields_of(x.shape, call))
    add_counts(call, Carried(x, x.isnan(), x.isinf(), None), rounded)
    return rounded.value, row


def by_kernel(x, format, rounding, *, draw=DRAW, histogram=True, out=None):
    """The kernel's rounding of `x`, and the row it fills."""
    row = Row(with_histogram=histogram)
    out = torch.empty_like(x) if out is None else out
    assert cpu.round_into(x, out, call_of(format, rounding, row, draw=draw))
    return out, row


def layouts():
    """Tensors of shape (4, 5, 6, 8) in every kind of layout."""
    x = patterns(torch.float32, 4 * 5 * 6 * 8, seed=6).view(4, 5, 6, 8)
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": patterns(torch.float32, 16 * 5 * 6 * 8, seed=7).view(8, 5, 6, 16)[::2, :, :, ::2],
        "expanded": x[:, :1].expand(4, 5, 6, 8),
    }
