"""The CUDA kernels have the bits and the counters of the reference: on a GPU, or else in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported. So without it these tests need a GPU, and one of them runs this
file once more, with it, in a process of its own, where the kernels take CPU tensors.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the oracle's own module imports

import triton

from normstab import FORMATS
from normstab.numerics.execute import add_counts, carrier_dtype
from normstab.numerics.kernels.cuda import cuda_kernels, float32_tensors
from normstab.numerics.kernels.cuda import cuda_tensors as cuda
from normstab.numerics.ledger import Row
from normstab.numerics.philox import Draw
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.operations import OPERATIONS, carry
from normstab.numerics.readable.reference import contains, encode, holds, round_reference
from tests.numerics.kernel_oracle import (
    ALL_FORMATS,
    ALL_ROUNDINGS,
    DRAW,
    DTYPES,
    bits_of,
    by_reference,
    call_of,
    contents,
    fields_of,
    layouts,
    patterns,
)

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
# Every mode, and one number of random bits of each field width.
ROUNDED = [rounding for rounding in ALL_ROUNDINGS if rounding.bits not in (8, 31) or not rounding.is_stochastic]
SOME_ROUNDINGS = [Rounding(), Rounding("down"), Rounding("to-odd"), Rounding("stochastic", 8)]
ARITY = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}
# Of each kind: a plain and a narrow one, no -0, no subnormals, fixed point, one as wide as the operands, no rounding.
OPERATED = ["fp16", "e4m3fnuz", "flushed", "q7.8:wrap", "fp32", "fp64"]
N = 1000  # with the draw's offset one program
# By day, of rounding in every mode: a format of each kind.
CHOSEN = "not every_mode or fp16 or e8m21 or e4m3fnuz or flushed or q7.8"


def needs_device(test):
    """Mark what runs on a GPU, or in the interpreter."""
    if IS_INTERPRETED:
        return test
    reason = "needs a GPU, or TRITON_INTERPRET=1"
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(test))


@pytest.fixture(autouse=True)
def silent():
    """The interpreter computes with numpy, which warns where bits overflow or a result is not finite."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", [CHOSEN, pytest.param("", marks=pytest.mark.nightly)], ids=["some", "all"])
def test_the_kernels_equal_the_reference_in_tritons_interpreter(chosen):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def on_device(x):
    """`x` on the device, with its strides."""
    return x if x.device.type == DEVICE else x.to(DEVICE)


def check_rounding(x, format, rounding, *, draw=DRAW, histogram=False, out=None):
    """Compare one rounding with the reference: bits, counters, strides."""
    expected, expected_row = by_reference(x, format, rounding, draw=draw, histogram=histogram)
    row = Row(with_histogram=histogram)
    found = torch.empty_like(on_device(x)) if out is None else out
    assert cuda.round_into(on_device(x), found, call_of(format, rounding, row, draw=draw))
    assert torch.equal(bits_of(found.cpu()), bits_of(expected)), rounding
    assert contents(row) == contents(expected_row), rounding
    return found


@needs_device
@pytest.mark.parametrize("name", ALL_FORMATS)
def test_rounding_float32_equals_the_reference_in_every_mode(name):
    if not (holds(torch.float32, ALL_FORMATS[name]) or contains(ALL_FORMATS[name], torch.float32)):
        pytest.skip(f"float32 cannot hold {name}")
    for rounding in ROUNDED:
        check_rounding(patterns(torch.float32, N, seed=1), ALL_FORMATS[name], rounding)


@needs_device
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32], ids=str)
def test_rounding_other_dtypes_equals_the_reference(dtype):
    for format in ALL_FORMATS.values():
        if holds(dtype, format) or contains(format, dtype):
            for rounding in (Rounding("up"), Rounding("stochastic", 16)):
                check_rounding(patterns(dtype, N, seed=2), format, rounding)


@needs_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exponents_are_counted_in_the_bins_of_the_ledger(dtype):
    check_rounding(patterns(dtype, N, seed=3), FORMATS["e5m2"], Rounding(), histogram=True)


@needs_device
def test_every_subnormal_and_every_power_of_two_is_rounded_as_by_the_reference():
    powers = torch.arange(1, 255, dtype=torch.int32) << 23
    around = torch.cat([powers - 1, powers, powers + 1, torch.arange(1, 255, dtype=torch.int32) * 32639])
    for name in ("fp16", "bf16", "e8m1", "e5m2", "q0.24"):
        for rounding in (Rounding(), Rounding("stochastic", 32)):
            check_rounding(around.view(torch.float32), ALL_FORMATS[name], rounding)


@needs_device
@pytest.mark.parametrize("bits", [3, 16, 32])
@pytest.mark.parametrize("first", [1, 2**33 + 5])
def test_random_bits_depend_on_the_index_alone(first, bits, monkeypatch):
    x, rounding = torch.randn(1100), Rounding("stochastic", bits)
    whole = check_rounding(x, FORMATS["fp16"], rounding, draw=Draw(11, 12, first))
    part = check_rounding(x[234:].clone(), FORMATS["fp16"], rounding, draw=Draw(11, 12, first + 234))
    assert torch.equal(part, whole[234:])
    monkeypatch.setattr(float32_tensors, "BLOCK32", 512)
    assert torch.equal(check_rounding(x, FORMATS["fp16"], rounding, draw=Draw(11, 12, first)), whole)


@needs_device
@pytest.mark.parametrize("layout", layouts())
def test_layouts_change_nothing_and_are_kept(layout):
    x = layouts()[layout]
    for rounding in (Rounding(), Rounding("stochastic", 16)):
        found = check_rounding(x, FORMATS["fp16"], rounding)
        assert found.stride() == torch.empty_like(x).stride()
        if layout != "expanded":
            in_place = on_device(x.clone())
            cuda.round_into(in_place, in_place, call_of(FORMATS["fp16"], rounding))
            assert torch.equal(bits_of(in_place), bits_of(found))


@needs_device
def test_an_overlapping_out_reads_every_element_before_it_is_written():
    memory = torch.randn(3001, device=DEVICE)
    expected, _ = by_reference(memory[:-1].cpu(), FORMATS["bf16"], Rounding())
    cuda.round_into(memory[:-1], memory[1:], call_of(FORMATS["bf16"], Rounding()))
    assert torch.equal(memory[1:].cpu(), expected)


@needs_device
def test_empty_and_zero_dimensional_tensors():
    check_rounding(torch.empty(0, 3), FORMATS["fp16"], Rounding())
    row, scalar = Row(with_histogram=False), torch.tensor(70000.0, device=DEVICE)
    cuda.round_into(scalar, scalar, call_of(FORMATS["fp16"], Rounding(), row))
    assert scalar.shape == () and scalar.isinf() and row.counts[1] == 1


@needs_device
def test_inexact_is_counted_only_on_request():
    row, x = Row(with_histogram=False), torch.full((10,), 0.1, device=DEVICE)
    cuda.round_into(x, x, call_of(FORMATS["fp16"], Rounding(), row)._replace(inexact=False))
    assert row.counts.tolist() == [10] + [0] * 9


def check_operation(operation, operands, format, rounding, *, draw=DRAW, out=None, histogram=False):
    """Compare one operation with the reference: bits, counters, shape."""
    expected_row, row = Row(with_histogram=histogram), Row(with_histogram=histogram)
    call = call_of(format, rounding, expected_row, draw=draw)
    carried = carry(operation, operands, rounds_down=rounding.mode == "down", is_rounded=format.precision <= 51)
    rounded = round_reference(carried.value, format, rounding, fields=fields_of(carried.value.shape, call))
    add_counts(call, carried, rounded)
    dtype = carrier_dtype(operands, format)
    expected = encode(rounded.value, dtype).view(carried.value.shape)
    moved = tuple(on_device(x) if isinstance(x, torch.Tensor) else x for x in operands)
    found = cuda.pointwise(operation, moved, call._replace(row=row), dtype, out)
    assert found is not None and found.shape == expected.shape and found.dtype == dtype
    assert torch.equal(bits_of(found.cpu()), bits_of(expected)), (operation, rounding)
    assert contents(row) == contents(expected_row), (operation, rounding)
    assert out is None or found is out


def all_kinds(n):
    """Three operands: near and exact cancellation, short significands, then bits of every class."""
    torch.manual_seed(9)
    a = torch.randn(n) * torch.exp2(torch.randint(-12, 12, (n,)).float())
    choice = torch.rand(n)
    b = torch.where(choice < 0.3, a, torch.where(choice < 0.6, -a, torch.randn(n) * (choice < 0.95)))
    kinds = [(x, x.half().float(), patterns(torch.float32, n, seed=i)) for i, x in enumerate((a, b, -(a * b)))]
    return [torch.cat(kind) for kind in kinds]


@needs_device
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", OPERATED)
def test_operations_equal_the_reference(name, operation):
    operands = tuple(all_kinds(N // 3)[: ARITY[operation]])
    for rounding in SOME_ROUNDINGS:
        check_operation(operation, operands, ALL_FORMATS[name], rounding)


@needs_device
@pytest.mark.parametrize("operation", OPERATIONS)
def test_float64_and_scalar_operands_are_used_as_they_come(operation):
    a, b, c = all_kinds(N // 3)
    wide = tuple(patterns(torch.float64, N, seed=20 + i) for i in range(3))
    for operands in (wide, (a, 1.1e-8, b), (a, -1e300, 0.3), (0.3, a, c)):
        if isinstance(operands[0], torch.Tensor) or ARITY[operation] > 1:
            check_operation(operation, operands[: ARITY[operation]], FORMATS["fp16"], Rounding("up"), histogram=True)


@needs_device
@pytest.mark.parametrize("shape", [(5, 1, 1), (4, 1, 6, 8), (1, 5, 1, 8)], ids=str)
@pytest.mark.parametrize("layout", layouts())
def test_operands_broadcast_without_changing_a_bit(layout, shape):
    x, y = layouts()[layout], torch.randn(shape)
    check_operation("add", (x, y), FORMATS["fp16"], Rounding())
    check_operation("fma", (x, y, x), FORMATS["fp16"], Rounding("stochastic", 16))
    turned = torch.empty(8, 6, 5, 4, device=DEVICE).permute(3, 2, 1, 0)
    check_operation("div", (y, x), FORMATS["fp16"], Rounding("stochastic", 16), out=turned)


@needs_device
def test_an_operation_in_place_has_the_bits_of_one_into_fresh_memory():
    x = torch.randn(5, 7, device=DEVICE)
    call = call_of(FORMATS["fp16"], Rounding())
    sum_of_both = cuda.pointwise("add", (x, x[0]), call, torch.float32, None)
    in_place = x.clone()
    found = cuda.pointwise("add", (in_place, in_place[0]), call, torch.float32, in_place)
    assert found is in_place and torch.equal(in_place, sum_of_both)


@needs_device
def test_other_dtypes_are_left_to_the_reference():
    whole = torch.arange(3, device=DEVICE)
    assert cuda.pointwise("add", (whole, whole), call_of(FORMATS["fp16"], Rounding()), torch.float32, None) is None


def compiled(kernel, constants, pointers, folder, monkeypatch):
    """The PTX of a kernel for compute capability 9.0, for which no GPU is needed."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    signature = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(cuda_kernels.VARYING, "i64") | pointers
    signature |= dict.fromkeys(("table", "counts", "bins", "later"), "*i64") | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=places)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]


OPTIONS = {"WIDTH": 16, "COUNTS": True, "HISTOGRAM": True, "BLOCK": cuda_kernels.BLOCK}


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize(("operation", "instruction"), [("fma", "mul"), ("div", "div"), ("sqrt", "sqrt")])
def test_compiled_operations_are_those_of_ieee(operation, instruction, tmp_path, monkeypatch):
    constants = {"OPERATION": cuda_kernels.CODES[operation], "FOLDS": True, "ROUNDS_DOWN": True, **OPTIONS}
    pointers = dict.fromkeys(("target", "first", "second", "third"), "*i32")
    ptx = compiled(cuda_kernels.pointwise_kernel, constants, pointers, tmp_path, monkeypatch)
    assert f"{instruction}.rn.f64" in ptx
    assert not re.search(r"\bfma\.|\.approx|\.ftz|\.full|\.f32", ptx)


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_compiles_for_every_dtype_without_a_float32_operation(dtype, tmp_path, monkeypatch):
    bits_of_dtype = cuda.layout(dtype)
    places = {"DIGITS": bits_of_dtype.fraction_bits, "BIAS": bits_of_dtype.bias}
    pointers = dict.fromkeys(("source", "target"), f"*i{8 * dtype.itemsize}")
    ptx = compiled(cuda_kernels.round_kernel, {"COPIES": False, **places, **OPTIONS}, pointers, tmp_path, monkeypatch)
    assert "st.global" in ptx and not re.search(r"\bfma\.|\.ftz|\.f32", ptx)
