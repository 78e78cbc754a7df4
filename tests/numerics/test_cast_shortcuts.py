"""The shortcuts of casts have the bits and counters of the slow kernel and the reference, and serve all they should."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import normstab as ns
from normstab.numerics.kernels.cpu import cpu_tensors as cpu
from normstab.numerics.kernels.cpu.cpu_round import round32_chunk
from normstab.numerics.kernels.format_table import plan
from normstab.numerics.kernels.shortcut_table import LANE32
from normstab.numerics.kernels.strides import turned
from normstab.numerics.philox import Draw
from normstab.numerics.precision import Rounding
from tests.numerics.kernel_oracle import (
    ALL_FORMATS,
    ALL_ROUNDINGS,
    bits_of,
    by_kernel,
    by_reference,
    call_of,
    contents,
    patterns,
)

# Of each kind: subnormals far above float32's, no -0, no subnormals, fixed point that saturates, that wraps.
SHORT = ["fp16", "e4m3fn", "e2m1", "e4m3fnuz", "e5m2fnuz", "flushed", "q7.8", "q0.24", "q7.8:wrap", "q24.0:wrap"]
DRAW = Draw(word=2**64 - 5, step=2**63 + 3, first_index=0)
# Shapes, the order of their axes in memory, and the matrices that those are.
TURNED = {
    "a matrix": ((64, 48), (1, 0), (1, 64, 48)),
    "channels_last": ((3, 40, 8, 4), (0, 2, 3, 1), (3, 40, 32)),
    "more than a strip": ((700, 32), (1, 0), (1, 700, 32)),
    "two axes across": ((4, 10, 16), (2, 0, 1), (1, 40, 16)),
    "columns that share blocks": ((40, 7), (1, 0), (1, 40, 7)),
}


def generic(bits, format, rounding):
    """Round float32 bits by the kernel that knows no shortcut."""
    out, counts = np.empty_like(bits), np.empty(12, np.int64)
    words = cpu.words_of(DRAW if rounding.is_stochastic else None)
    table = plan(format, rounding, LANE32)
    round32_chunk(bits.ctypes.data, out.ctypes.data, 2, len(bits), table, counts.ctypes.data, *words)
    return out


@pytest.mark.parametrize("name", SHORT)
def test_every_shortcut_equals_the_generic_kernel_over_all_exponents(name):
    """By the hundred thousand: a shortcut and the generic code share nothing but the format."""
    bits = np.random.default_rng(3).integers(0, 2**32, 2**17, dtype=np.uint32)
    bits[::2] = bits[::2] & 0x87FFFFFF | (0x38000000 + (bits[::2] & 0x07000000))  # about 1, where formats end
    x = torch.from_numpy(bits.view(np.float32))
    for rounding in ALL_ROUNDINGS:
        found = torch.empty_like(x)
        cpu.round_into(x, found, call_of(ALL_FORMATS[name], rounding, draw=DRAW))
        assert np.array_equal(found.numpy().view(np.uint32), generic(bits, ALL_FORMATS[name], rounding)), rounding


@pytest.mark.parametrize("name", ["fp16", "e4m3fnuz", "q7.8", "q7.8:wrap"])
def test_flush_to_zero_changes_no_shortcut(name):
    x = patterns(torch.float32, 2000, seed=4)
    x[::2] = x[::2].view(torch.int32).bitwise_and_(-(2**31) | (2**24 - 1)).view(torch.float32)  # subnormals, mostly
    expected = [by_reference(x, ALL_FORMATS[name], rounding)[0] for rounding in ALL_ROUNDINGS]
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor does not flush subnormals")
    try:
        found = [by_kernel(x, ALL_FORMATS[name], rounding)[0] for rounding in ALL_ROUNDINGS]
        for result, rounding in zip(found, ALL_ROUNDINGS, strict=True):
            uncounted = torch.empty_like(x)
            cpu.round_into(x, uncounted, call_of(ALL_FORMATS[name], rounding))
            assert torch.equal(bits_of(uncounted), bits_of(result)), rounding
    finally:
        torch.set_flush_denormal(False)
    for result, wanted, rounding in zip(found, expected, ALL_ROUNDINGS, strict=True):
        assert torch.equal(bits_of(result), bits_of(wanted)), rounding


@pytest.mark.parametrize("bits", [5, 16, 17, 32])
@pytest.mark.parametrize("kind", TURNED)
def test_turned_tensors_draw_by_their_logical_index(kind, bits):
    shape, order, matrices = TURNED[kind]
    stored = patterns(torch.float32, int(np.prod(shape)), seed=5).view([shape[axis] for axis in order])
    x = stored.permute([order.index(axis) for axis in range(len(order))])
    assert x.shape == shape and turned(x) == matrices
    rounding = Rounding("stochastic", bits)
    for name in ("fp16", "bf16", "e4m3fnuz"):
        for draw in (DRAW, Draw(3, 4, 7)):
            expected, expected_row = by_reference(x, ALL_FORMATS[name], rounding, draw=draw)
            found, row = by_kernel(x, ALL_FORMATS[name], rounding, draw=draw)
            assert found.stride() == x.stride() and torch.equal(bits_of(found), bits_of(expected)), name
            assert contents(row) == contents(expected_row), name
            in_place = x.clone()
            cpu.round_into(in_place, in_place, call_of(ALL_FORMATS[name], rounding, draw=draw))
            assert torch.equal(bits_of(in_place), bits_of(expected)), name


def test_turned_tensors_do_not_depend_on_threads():
    x = patterns(torch.float32, 2**18, seed=6).view(256, 1024).T
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            result, row = by_kernel(x, ALL_FORMATS["fp16"], Rounding("stochastic", 16), draw=DRAW, histogram=False)
            found.append((bits_of(result).numpy().tobytes(), contents(row)))
    finally:
        torch.set_num_threads(before)
    assert found[1:] == found[:-1]


def test_other_orders_are_not_turned():
    x = torch.empty(4, 5, 6)
    assert turned(x) is None and turned(x.transpose(0, 2)) is None and turned(x[:, ::2].transpose(1, 2)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_no_common_cast_reaches_the_generic_kernels(dtype, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a generic kernel was reached")

    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    is_wide, key = dtype is torch.float64, ns.Key(seed=1)
    monkeypatch.setattr(cpu, "round32_chunk", refuse)
    formats = ["e4m3fn"] if is_wide else ["e4m3fn", "e2m1", "e4m3fnuz", "q3.2", "q3.2:wrap"]
    roundings = ["nearest"] if is_wide else [str(rounding) for rounding in ALL_ROUNDINGS]
    if is_wide:
        monkeypatch.setattr(cpu, "round64_chunk", refuse)
    for name in formats:
        for rounding in roundings:
            if not (name.endswith("wrap") and rounding.startswith("stochastic")):
                ns.cast(x, name, rounding=rounding, key=key)
                if not is_wide:
                    ns.cast(x, name, rounding=rounding, key=key, ledger=ns.Ledger())


def test_a_transposed_cast_is_not_copied(monkeypatch):
    calls = []
    kernel = cpu.turned32
    monkeypatch.setattr(cpu, "turned32", lambda *args: calls.append(args) or kernel(*args))
    x = torch.randn(64, 48)
    for shown in (x.T, torch.randn(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)):
        ns.cast(shown, "fp16", rounding="stochastic", key=ns.Key(seed=1))
    assert len(calls) == 2
