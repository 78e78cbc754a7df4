"""The CUDA kernels in float32 have the bits and the counters of the reference, and are float32 in the PTX.

As in test_cuda_kernels they run on a GPU, or else in Triton's interpreter, in a process of its own; there a tile is
made as large as the tensor, for the interpreter takes as long over a small one.
"""

import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the oracle's own module imports

import triton
import triton.language as tl

from normstab import FORMATS, parse_format
from normstab.numerics.kernels import shortcut_table
from normstab.numerics.kernels.cuda import (
    cuda_kernels,
    cuda_tensors,
    float32_exact,
    float32_fused,
    float32_kernels,
    float32_tensors,
)
from normstab.numerics.ledger import Row
from normstab.numerics.philox import Draw
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.reference import contains, holds
from tests.numerics.kernel_oracle import ALL_FORMATS, call_of, contents, patterns
from tests.numerics.test_cuda_kernels import (
    ARITY,
    DEVICE,
    IS_INTERPRETED,
    all_kinds,
    check_operation,
    check_rounding,
    needs_device,
)

N = 2**16
ROUNDED = [Rounding(), Rounding("to-odd"), Rounding("stochastic", 16)]
OPERATIONS = ("add", "sub", "mul", "div", "sqrt", "fma")
STOCHASTIC = (Rounding("stochastic", 3), Rounding("stochastic", 16), Rounding("stochastic", 29))
# Of each kind: plain, narrow, float32's own range, the widest that is served, no -0, no subnormals, fixed point.
OPERATED = ["fp16", "e2m1", "bf16", "e8m21", "e4m3fnuz", "flushed", "q7.8"]


@pytest.fixture(autouse=True)
def one_tile(monkeypatch):
    """A tile that holds a whole tensor; numpy, which the interpreter computes with, is silent about infinities."""
    if IS_INTERPRETED:
        monkeypatch.setattr(float32_tensors, "BLOCK32", 2 * N)
    with np.errstate(all="ignore"):
        yield


def run_interpreted(chosen):
    """Run the tests of this file whose names `chosen` picks once more, in Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
def test_the_float32_kernels_equal_the_reference_in_tritons_interpreter():
    run_interpreted("scalars or tiles or cell or exact_ones or up_to or (every_kind and (fp16 or bf16 or q7.8))")


@pytest.mark.nightly
@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
def test_every_half_pattern_and_format_equals_the_reference_in_tritons_interpreter():
    run_interpreted("every")


@needs_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_pattern_of_sixteen_bits_is_rounded_as_by_the_reference(name, dtype):
    if not (holds(dtype, FORMATS[name]) or contains(FORMATS[name], dtype)):
        pytest.skip(f"{dtype} cannot hold {name}")
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    for rounding in ROUNDED[:1] if contains(FORMATS[name], dtype) else ROUNDED:
        check_rounding(every, FORMATS[name], rounding)


@needs_device
@pytest.mark.parametrize("name", FORMATS)
def test_every_half_and_its_neighbours_in_float32_are_rounded_as_by_the_reference(name):
    if not (holds(torch.float32, FORMATS[name]) or contains(FORMATS[name], torch.float32)):
        pytest.skip(f"float32 cannot hold {name}")
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float().view(torch.int32)
    beside = halves + torch.tensor([-1, 0, 1, 2**12]).int().repeat(N // 4)
    for x in (beside.view(torch.float32), patterns(torch.float32, N, seed=31)):
        for rounding in ROUNDED:
            check_rounding(x, FORMATS[name], rounding)


def at_the_edges(n):
    """Two operands of every class, many beside 2^128 and 2^-126, where sums and products leave float32's range."""
    torch.manual_seed(5)
    a, b = patterns(torch.float32, n, seed=32), patterns(torch.float32, n, seed=33)
    largest = torch.tensor(2**31 - 2**23 - 1, dtype=torch.int32)
    near = (largest - torch.randint(0, 3, (n,)).int()) * (torch.rand(n) < 0.1)
    a = torch.where(near > 0, near, a.view(torch.int32)).view(torch.float32)
    ulps = torch.exp2(torch.randint(100, 106, (n,)).float()) * torch.tensor([1.0, -1.0]).repeat(n // 2)
    b = torch.where(near > 0, ulps * torch.randint(1, 8, (n,)), b)
    deep = torch.rand(n) < 0.3
    scale = torch.exp2(torch.randint(-100, -30, (n,)).float())
    return torch.where(deep, torch.randn(n) * scale, a), torch.where(deep, torch.randn(n) * scale / 2**10, b)


def three_of_every_kind():
    """Three operands: as of `all_kinds`, then at the edges, the last about the product of both or as the first."""
    a, b = at_the_edges(N // 16)
    near = torch.where(torch.rand(a.numel()) < 0.5, -(a * b), a.roll(1))
    return tuple(torch.cat(kind) for kind in zip(all_kinds(N // 32), (a, b, near), strict=True))


@needs_device
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", OPERATED)
def test_operations_equal_the_reference_on_operands_of_every_kind(name, operation):
    operands = three_of_every_kind()[: ARITY[operation]]
    # Seven random bits: with the widest format the most that divisions and roots take.
    modes = (Rounding(), Rounding("down"), Rounding("toward-zero"), Rounding("stochastic", 7))
    for rounding in (*modes, *(() if operation in ("div", "sqrt") else STOCHASTIC)):
        format = ALL_FORMATS.get(name) or parse_format(name)
        assert is_served(operation, operands, format, rounding)
        check_operation(operation, operands, format, rounding)


def is_served(operation, operands, format, rounding):
    """Whether the kernel in float32 computes an operation."""
    tensors = [x.to(DEVICE) for x in operands]
    return float32_tensors.computes32(operation, tensors, call_of(format, rounding), tensors[0])


@needs_device
@pytest.mark.parametrize("operation", ["div", "sqrt"])
@pytest.mark.parametrize(("name", "bits"), [("fp16", 16), ("bf16", 16), ("bf16", 21), ("e2m1", 26), ("e4m3fn", 8)])
def test_quotients_and_roots_take_random_bits_up_to_29_with_the_formats_own(name, bits, operation):
    operands = all_kinds(N // 16)[: ARITY[operation]]
    format = FORMATS[name]
    assert is_served(operation, operands, format, Rounding("stochastic", bits))
    assert not is_served(operation, operands, format, Rounding("stochastic", 30 - format.precision))
    check_operation(operation, operands, format, Rounding("stochastic", bits))


def test_no_quotient_in_float64_carries_into_thirty_bits():
    torch.manual_seed(7)
    for n in (torch.randint(2**23, 2**24, (4000,)) | 1).tolist():
        # t n = 1 modulo 2^29: m / n lies as little below t / 2^29 as a quotient can.
        t = pow(n, -1, 2**29) + 2**29
        m = (t * n - 1) >> 29
        assert m >= 2**24 or math.floor(m / n * 2**29) == t - 1


def test_no_root_in_float64_carries_into_thirty_bits():
    for odd in (0, 1):
        m = np.arange(2**23, 2**24, dtype=np.int64) << odd
        t = (np.sqrt(m / 2**23) * 2**29).astype(np.int64)
        assert np.all(t * t <= m << 35)


@triton.jit
def parts_kernel(found, a, b, c, n, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    """Write x, seen, tail and is_forced of n results, one after another."""
    index = tl.arange(0, BLOCK)
    inside = index < n
    first, second = tl.load(a + index, inside, other=0), tl.load(b + index, inside, other=0)
    if OPERATION == FMA:
        parts = float32_fused.fused32(first, second, tl.load(c + index, inside, other=0), False)
    else:
        parts = float32_exact.exact32(first, second, OPERATION, False)
    x, seen, tail, is_forced = parts
    tl.store(found + index, x.to(tl.int64), inside)
    tl.store(found + n + index, seen.to(tl.int64), inside)
    tl.store(found + 2 * n + index, tail.to(tl.int64), inside)
    tl.store(found + 3 * n + index, is_forced.to(tl.int64), inside)


EXACT = {
    "add": lambda a, b, c: abs(a + b),
    "sub": lambda a, b, c: abs(a - b),
    "mul": lambda a, b, c: abs(a * b),
    "div": lambda a, b, c: abs(a / b),
    "fma": lambda a, b, c: abs(a * b + c),
}
FMA = tl.constexpr(cuda_kernels.CODES["fma"])


def exact_units(operation, operands, unit):
    """How many `unit`s the exact magnitude has, its fraction cut off."""
    if operation == "sqrt":
        return math.isqrt(math.floor(operands[0] / unit**2))
    return math.floor(EXACT[operation](*operands) / unit)


@needs_device
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_bits_of_a_result_and_those_cut_off_are_the_exact_ones(operation):
    a, b, c = (x[:: 1 + x.numel() // 4096] for x in three_of_every_kind())
    a = a.abs() if operation == "sqrt" else a
    is_plain = a.isfinite() & b.isfinite() & c.isfinite() & (a != 0) & (b != 0)
    a, b, c = a[is_plain], b[is_plain], c[is_plain]
    n, code = a.numel(), tl.constexpr(cuda_kernels.CODES[operation])
    found = torch.empty(4, n, dtype=torch.int64, device=DEVICE)
    moved = [x.to(DEVICE).view(torch.int32) for x in (a, b, c)]
    parts_kernel[(1,)](found, *moved, n, OPERATION=code, BLOCK=triton.next_power_of_2(n), enable_fp_fusion=False)
    numbers = [[Fraction(x) for x in each.tolist()] for each in (a, b, c)]
    for *operands, x, seen, tail, is_forced in zip(*numbers, *found.tolist(), strict=True):
        exponent = max(seen >> 23, 1)
        unit = Fraction(2) ** (exponent - 150 - 32)
        exact = exact_units(operation, operands, unit)
        assert is_forced == (exact >= 2**56), operands
        if is_forced:
            continue
        significand = seen - ((exponent - 1) << 23)
        # Of a quotient and a root 30 bits.
        unseen = max(exact.bit_length() - 30, 0) if operation in ("div", "sqrt") else 0
        assert ((significand << 32) + tail) >> unseen == exact >> unseen, operands
        value = significand * unit * 2**32
        is_cut = value**2 != operands[0] if operation == "sqrt" else value != EXACT[operation](*operands)
        assert x & (2**31 - 1) == seen | is_cut, operands


@needs_device
def test_scalars_that_float32_holds_are_operands_of_float32():
    x = patterns(torch.float32, N // 8, seed=34)
    for scalar in (0.5, 3, -1e30, float("inf"), 0.1):
        check_operation("div", (x, scalar), FORMATS["fp16"], Rounding())
        check_operation("sub", (scalar, x), FORMATS["bf16"], Rounding("up"))


@needs_device
def test_a_cell_that_counts_its_most_does_not_run_over(monkeypatch):
    monkeypatch.setattr(float32_tensors, "BLOCK32", 32)
    monkeypatch.setattr(float32_tensors, "RESIDENT", 0)
    n = 32 * 255
    assert float32_tensors.programs32(n, torch.device(DEVICE), tile=32) == (1,)
    assert float32_tensors.programs32(n + 1, torch.device(DEVICE), tile=32) == (2,)
    check_rounding(torch.full((n,), 1e6), FORMATS["fp16"], Rounding())  # each one overflows and is inexact


@needs_device
@pytest.mark.parametrize("rounding", [Rounding(), Rounding("stochastic", 16)], ids=str)
def test_tiles_are_shared_among_programs_without_a_trace(rounding, monkeypatch):
    x = patterns(torch.float32, 1000, seed=35)
    whole, row = torch.empty_like(x, device=DEVICE), Row(with_histogram=False)
    call = call_of(FORMATS["fp16"], rounding, row)
    assert cuda_tensors.round_into(x.to(DEVICE), whole, call)
    monkeypatch.setattr(float32_tensors, "BLOCK32", 128)
    shared, shared_row = torch.empty_like(x, device=DEVICE), Row(with_histogram=False)
    cuda_tensors.round_into(x.to(DEVICE), shared, call._replace(row=shared_row))
    assert torch.equal(whole.view(torch.int32), shared.view(torch.int32))
    assert contents(row) == contents(shared_row)
    operands = x.cpu(), x.cpu().flip(0)
    for first in (0, 5, 2**33 + 3):
        check_operation("mul", operands, FORMATS["fp16"], rounding, draw=Draw(11, 12, first))


def compiled(kernel, constants, capability, folder, monkeypatch):
    """The PTX of a kernel in float32, its pointers and numbers of elements multiples of 16, as torch's are."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    pointers = {"table": "*i32", "counts": "*i64", "later": "*i64"} | dict.fromkeys(
        ("source", "target", "left", "right", "last"), "*i32"
    )
    if not constants.get("WIDTH") and "later" in kernel.arg_names:
        constants = {**constants, "later": None}
    types = pointers | dict.fromkeys(float32_kernels.VARYING32, "i64") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    even = [name for name, type in signature.items() if type.startswith("*") or name in ("n", "begin")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in even}
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=places, attrs=attributes)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]


def check_resources(ptx, folder, *, most=128):
    """Assert that nothing spills, in so many registers: with 128 at least four programs fit a multiprocessor."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = next((tools / name for name in ("ptxas-blackwell", "ptxas") if (tools / name).exists()), None)
    if ptxas is None:
        pytest.skip("this Triton has no ptxas")
    (folder / "kernel.ptx").write_text(ptx)
    architecture = re.search(r"\.target (\w+)", ptx)[1]
    command = [ptxas, "-v", f"-arch={architecture}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    assert int(re.search(r"Used (\d+) registers", said)[1]) <= most, "too few programs would fit"


FORBIDDEN = r"\bfma\.|\.approx|\.ftz|\.full|f64"


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("style", "width"), [("MAGIC", 0), ("INTEGER", 0), ("SPREAD", 16), ("GENERIC", 32)])
def test_rounding_compiles_to_float32_alone_that_moves_sixteen_bytes_at_once(
    style, width, capability, tmp_path, monkeypatch
):
    constants = {"DIGITS": 23, "COPIES": False, "STYLE": getattr(shortcut_table, style), "WIDTH": width}
    constants |= {"COUNTS": True, "BLOCK": float32_tensors.BLOCK32}
    ptx = compiled(float32_kernels.round32_kernel, constants, capability, tmp_path, monkeypatch)
    assert not re.search(FORBIDDEN, ptx)
    assert re.search(r"ld\.global\S*\.v4", ptx) and re.search(r"st\.global\S*\.v4", ptx)
    check_resources(ptx, tmp_path)


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("operation", "instruction"),
    [("add", "add.f32"), ("mul", "mul"), ("div", "div.rn.f32"), ("sqrt", "sqrt.rn.f32"), ("fma", "mul")],
)
@pytest.mark.parametrize("width", [0, 16])
def test_operations_compile_to_those_of_ieee_in_float32(
    width, operation, instruction, capability, tmp_path, monkeypatch
):
    constants = {"OPERATION": cuda_kernels.CODES[operation], "ROUNDS_DOWN": width == 0, "STYLE": shortcut_table.GENERIC}
    constants |= {"FLAT": True, "WIDTH": width, "COUNTS": True, "BLOCK": float32_tensors.tile_of(operation)}
    ptx = compiled(float32_kernels.pointwise32_kernel, constants, capability, tmp_path, monkeypatch)
    assert instruction in ptx.replace("add.rn.f32", "add.f32") and not re.search(FORBIDDEN, ptx)
    check_resources(ptx, tmp_path)
