"""The pointwise kernel of the CPU has the bits and the counters of the readable reference."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("numba")

from normstab import FORMATS
from normstab.numerics.call import Call
from normstab.numerics.execute import add_counts, carrier_dtype
from normstab.numerics.kernels.cpu import cpu_tensors as cpu
from normstab.numerics.ledger import Row
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.carriers import WIDEST_FOLDED, are_wide, carried_for, wraps
from normstab.numerics.readable.operations import OPERATIONS
from normstab.numerics.readable.reference import decode, encode, round_reference
from tests.numerics.kernel_oracle import (
    ALL_FORMATS,
    ALL_ROUNDINGS,
    bits_of,
    call_of,
    contents,
    fields_of,
    layouts,
    patterns,
)
from tests.thinned import thinned

ARITY = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}


def check_operation(operation, operands, format, rounding, *, histogram=False, out=None, is_served=False):
    """Compare one operation with the reference: bits, counters, shape; `is_served`: the kernel may not refuse."""
    expected_row, row = Row(with_histogram=histogram), Row(with_histogram=histogram)
    call = call_of(format, rounding, expected_row)
    carried, shown = carried_for(operation, operands, call)
    rounded = round_reference(carried.value, format, rounding, fields=fields_of(carried.value.shape, call))
    add_counts(call, carried, rounded if shown is None else replace(rounded, exact=decode(shown)))
    dtype = carrier_dtype(operands, format)
    expected = encode(rounded.value, dtype).view(carried.value.shape)
    found = cpu.pointwise(operation, operands, call._replace(row=row), dtype, out)
    if found is None:  # what takes whole numbers is left to the reference
        assert not is_served and (wraps(format) or are_wide(operands) or format.precision > WIDEST_FOLDED)
        assert row.counts[0] == 0
        return
    assert found is not None and found.shape == expected.shape and found.dtype == dtype
    assert torch.equal(bits_of(found), bits_of(expected)), (operation, rounding)
    assert contents(row) == contents(expected_row), (operation, rounding)
    assert out is None or found is out


def cancelling(n, seed):
    """Pairs that often cancel exactly or nearly, and their product's negative."""
    torch.manual_seed(seed)
    a = torch.randn(n) * torch.exp2(torch.randint(-12, 12, (n,)).float())
    choice = torch.rand(n)
    b = torch.where(choice < 0.3, a, torch.where(choice < 0.6, -a, torch.randn(n) * (choice < 0.95)))
    return a, b, -(a * b)


@pytest.mark.parametrize(("name", "operation"), thinned(ALL_FORMATS, OPERATIONS, every=2))
def test_operations_equal_the_reference_in_every_mode(name, operation):
    format, n = ALL_FORMATS[name], ARITY[operation]
    a, b, c = cancelling(1000, seed=9)
    shorts = tuple(x.half().float() for x in (a, b, c))
    wild = tuple(patterns(torch.float32, 1000, seed=10 + i) for i in range(3))
    wide = tuple(patterns(torch.float64, 1000, seed=20 + i) for i in range(3))
    usual = tuple(torch.randn(1000, dtype=torch.float64) for _ in range(3))
    for rounding in ALL_ROUNDINGS:
        check_operation(operation, (a, b, c)[:n], format, rounding)
        check_operation(operation, shorts[:n], format, rounding)
        check_operation(operation, wild[:n], format, rounding, histogram=True)
        check_operation(operation, (a, 1.1e-8, b)[:n], format, rounding)
        check_operation(operation, (a, -1e300, 0.3)[:n], format, rounding)
        if n > 1:
            check_operation(operation, (0.3, wild[0], c)[:n], format, rounding)
        if format.precision > 24 or rounding in (Rounding(), Rounding("up")):
            check_operation(operation, wide[:n], format, rounding)
            is_served = not wraps(format) and format.precision <= WIDEST_FOLDED
            check_operation(operation, usual[:n], format, rounding, is_served=is_served)


@pytest.mark.parametrize("shape", [(5, 1, 1), (8,), (4, 1, 6, 8), (1, 5, 1, 8), (1,), (), (4, 5, 6, 1)], ids=str)
@pytest.mark.parametrize("layout", layouts())
def test_operands_broadcast_without_changing_a_bit(layout, shape):
    x, y = layouts()[layout], torch.randn(shape)
    for operation, operands in {"add": (x, y), "fma": (x, y, x), "div": (y, x)}.items():
        for rounding in (Rounding(), Rounding("stochastic", 16)):
            check_operation(operation, operands, FORMATS["fp16"], rounding)
            check_operation(operation, operands, FORMATS["fp16"], rounding, out=torch.empty(x.shape))
            turned = torch.empty(8, 6, 5, 4).permute(3, 2, 1, 0)
            check_operation(operation, operands, FORMATS["fp16"], rounding, out=turned)


def test_an_operation_in_place_has_the_bits_of_one_into_fresh_memory():
    x = torch.randn(5, 7)
    sum_of_both = cpu.pointwise("add", (x, x[0]), Call(FORMATS["fp16"]), torch.float32, None)
    in_place = x.clone()
    found = cpu.pointwise("add", (in_place, in_place[0]), Call(FORMATS["fp16"]), torch.float32, in_place)
    assert found is in_place and torch.equal(in_place, sum_of_both)


def test_other_dtypes_are_left_to_the_reference():
    whole = torch.arange(3)
    assert cpu.pointwise("add", (whole, whole), Call(FORMATS["fp16"]), torch.float32, None) is None
