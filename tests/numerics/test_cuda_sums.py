"""Ordered sums of CUDA tensors have the bits and the counters of the reference, and are float32 in the PTX where told.

As in test_cuda_kernels they run on a GPU, or else in Triton's interpreter, in a process of its own. The interpreter
takes milliseconds for every step, whatever the size of a tile, so chains are short here and tiles large.
"""

from __future__ import annotations

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
import triton.language as tl

import normstab as ns
from normstab.numerics import accumulate
from normstab.numerics.kernels import shortcut_table
from normstab.numerics.kernels.cuda import float32_tensors
from normstab.numerics.kernels.cuda.sums import cuda_sums, ordered_kernel, sum_launches, sum_passes
from normstab.numerics.kernels.cuda.sums.ordered_steps import How
from normstab.numerics.sums import kernels_of_sums, matmul
from tests.numerics.kernel_oracle import call_of
from tests.numerics.test_accumulate_kernels import wild
from tests.numerics.test_cuda_kernels import DEVICE, IS_INTERPRETED, needs_device
from tests.numerics.test_float32_kernels import FORBIDDEN, at_the_edges, check_resources

ORDERS = ("sequential", "pairwise", "blocked3", "lanes2", "lanes64")
KAHAN = ("sequential+kahan", "blocked4+kahan")
# Of each way to round in 32 bits: its shortcuts, a directed mode, no -0, saturation, float32's own digits, fixed point,
# random bits of each width, looked for in float32's own bits or behind them.
NARROW = (
    "nearest/fp16", "nearest/bf16", "down/bf16", "to-odd/fp16", "nearest/e4m3fnuz", "nearest-away/e2m1", "up/q7.8",
    "nearest/fp32", "nearest/e8m23:saturate", "toward-zero/tf32", "stochastic:5/fp16", "stochastic/bf16",
    "stochastic/fp16", "stochastic:29/e8m21", "stochastic:3/q7.8",
)  # fmt: skip
# What float64 computes: more random bits or digits, what wraps, a directed float32.
WIDE = (
    "stochastic:30/e8m21",
    "up/q3.4:wrap",
    "stochastic:24/fp32",
    "nearest/fp64",
    "stochastic:6/q3.4:wrap",
    "up/fp32",
)


# At the edges of float32's range.
EDGED = (
    "nearest/fp32",
    "nearest/e8m23:saturate",
    "nearest/fp16",
    "up/bf16",
    "stochastic:20/bf16",
    "stochastic:4/e8m21",
)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """CPU tensors go to the Triton kernel too, a tile holds all sums; numpy is silent about infinities."""
    if IS_INTERPRETED:
        for what in ("sums", "matmul"):
            monkeypatch.setitem(kernels_of_sums.KERNELS, ("cpu", what), kernels_of_sums.KERNELS["cuda", what])
        for name in ("CHAINS", "FEW_CHAINS", "JOINED"):
            monkeypatch.setattr(sum_launches, name, 2048)
    with np.errstate(all="ignore"):
        yield


def run_interpreted(file, chosen):
    """Run the tests of a file whose names `chosen` picks once more, in Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen, file]
    done = subprocess.run(command, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", ["not every", pytest.param("every", marks=pytest.mark.nightly)])
def test_ordered_sums_equal_the_reference_in_tritons_interpreter(chosen):
    run_interpreted(__file__, chosen)


def outcome(compute, x, precision, options):
    """The bits of the result, all tallies, and where each offence was first."""
    ledger = ns.Ledger(**options)
    result = compute(ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=3)), x).cpu()
    integer = torch.int32 if result.dtype == torch.float32 else torch.int64
    firsts = {str(site): ledger.row(site).first_stamp.tolist() for site in ledger}
    return result.contiguous().view(integer).tolist(), dict(ledger), firsts


def check(compute, x, precision, *, what=cuda_sums, calls=1, **options):
    """Compare a computation of `x` by the kernels `what` with the reference's, bit by bit and count by count."""
    served = []
    with pytest.MonkeyPatch.context() as patch:
        for name in what.__all__:
            own = getattr(what, name)
            spy = lambda *given, own=own: served.append(own(*given)) or served[-1]  # noqa: E731
            patch.setattr(what, name, spy)
        found = outcome(compute, moved(x), precision, options or {"inexact": True})
    assert len(served) >= calls and all(total is not None for total in served)
    with pytest.MonkeyPatch.context() as patch:
        for module in (accumulate, matmul):
            patch.setattr(module, "kernels_for", lambda *_: None)
        assert found == outcome(compute, x, precision, options or {"inexact": True}), precision


def moved(x):
    """A tensor, or several, on the device."""
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else tuple(each.to(DEVICE) for each in x)


def check_sum(x, dims, accumulation, **options):
    check(lambda ar, x: ar.sum(x, dims), x, f"fp32/{accumulation}", **options)


@needs_device
@pytest.mark.parametrize("order", ORDERS)
def test_sums_in_32_bits_equal_the_reference_over_any_axes(order):
    for i, accumulation in enumerate(NARROW[ORDERS.index(order) % 3 :: 3]):
        x = wild(2, 2, 5, seed=i, share=(0.0, 0.05)[i % 2])
        check_sum(x, [(0, 2), (1,), (2,), (0, 1), None][i % 5], f"{accumulation}:{order}")


@needs_device
@pytest.mark.parametrize("order", ORDERS)
def test_sums_in_64_bits_equal_the_reference_over_any_axes(order):
    for i, accumulation in enumerate(WIDE[ORDERS.index(order) % 3 :: 3]):
        x = wild(2, 2, 5, seed=i, share=(0.0, 0.05)[i % 2])
        check_sum(x, [(0, 2), (0,), (2,), (0, 1), None][i % 5], f"{accumulation}:{order}")


def test_32_bits_serve_what_they_are_said_to():
    for accumulations, is_narrow in ((NARROW, True), (WIDE, False)):
        for accumulation in accumulations:
            mode, _, format = accumulation.partition("/")
            call = call_of(ns.parse_format(format), ns.Rounding.parse(mode))
            assert float32_tensors.computes_sums32(torch.float32, call) == is_narrow, accumulation


@needs_device
@pytest.mark.parametrize("order", KAHAN)
def test_kahans_sums_equal_the_reference(order):
    for accumulation in ("nearest/fp16", "nearest/fp32", "nearest/fp64"):
        check_sum(wild(7, 4), (1,), f"{accumulation}:{order}")


@needs_device
@pytest.mark.parametrize("accumulation", ["nearest/fp16", "nearest/fp32", "stochastic/bf16", "stochastic:24/fp32"])
def test_partial_sums_of_several_passes_draw_and_join_as_the_reference(accumulation, monkeypatch):
    monkeypatch.setattr(sum_passes, "WIDEST", 4)
    assert len(sum_passes.passes_of("pairwise", 0, 37)) == 3
    assert len(sum_passes.passes_of("lanes", 6, 37)) == 3
    for order in ("pairwise", "lanes6"):
        x = wild(3, 37).t() if order == "pairwise" else wild(3, 37)
        check_sum(x, x.shape.index(37), f"{accumulation}:{order}")


@needs_device
@pytest.mark.parametrize("accumulation", EDGED)
def test_an_addition_at_the_edges_of_float32_equals_the_reference(accumulation):
    x = torch.stack(at_the_edges(4000))
    check_sum(x, 0, f"{accumulation}:lanes2")


@needs_device
def test_cells_are_settled_before_they_run_over(monkeypatch):
    monkeypatch.setattr(ordered_kernel, "MOST", tl.constexpr(2))
    check_sum(torch.full((3, 7), 60000.0), 1, "nearest/fp16:sequential")
    check_sum(wild(3, 7), 1, "stochastic/fp16:sequential")


@needs_device
def test_tiles_are_shared_among_programs_without_a_trace(monkeypatch):
    for order in ("blocked3", "lanes2"):
        for name, size in (("CHAINS", 8), ("FEW_CHAINS", 8), ("JOINED", 8)):
            monkeypatch.setattr(sum_launches, name, size)
        check_sum(wild(5, 7), 1, f"stochastic/fp16:{order}")


@needs_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_equal_the_reference(dtype, monkeypatch):
    monkeypatch.setattr(kernels_of_sums, "READING_HALVES", ["cuda", "cpu"])
    x = wild(5, 11, share=0.0).to(dtype)
    for accumulation in ("nearest/fp16:lanes4", "nearest/fp32:lanes4", "down/bf16:pairwise"):
        check_sum(x, 1, accumulation)


@needs_device
def test_a_single_addend_is_cast_and_a_nan_is_the_canonical_one():
    x = torch.tensor([0x7FC12345, -1, 0x3DCCCCCD, -(2**31)], dtype=torch.int32).view(torch.float32).view(4, 1)
    for accumulation in ("nearest/fp32:sequential", "nearest/e4m3fnuz:pairwise", "nearest/fp64:lanes64"):
        check_sum(x, 1, accumulation)


@needs_device
def test_strides_of_every_kind_are_walked_in_logical_order():
    x = wild(2, 4, 3, 2, share=0.0)
    layouts = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "turned": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "every second": wild(4, 4, 3, 4)[::2, :, :, ::2],
        "expanded": x[:, :1].expand(2, 4, 3, 2),
        "negated": torch._neg_view(x),
    }
    for layout in layouts.values():
        check_sum(layout, (0, 2, 3), "stochastic/fp16:lanes8")


@needs_device
def test_histograms_and_ledgers_without_inexact_equal_the_reference():
    x = wild(3, 40)
    check_sum(x, 1, "nearest/fp16:pairwise", inexact=True, histogram=True)
    check_sum(x, 1, "nearest/fp16:lanes8", inexact=False)
    check_sum(torch.zeros(3, 4), 1, "nearest/fp16:pairwise", inexact=False)


@needs_device
def test_means_of_sums_and_of_blocks_equal_the_reference():
    x = wild(3, 2, 3)
    for i, mean in enumerate(("sum", "blockwise4")):
        precision = f"fp32/{('up', 'stochastic')[i]}/fp16;mean={mean}"
        check(lambda ar, x: ar.mean(x, (0, 2)), x, precision, calls=1 + i)


@needs_device
@pytest.mark.parametrize("mode", ["nearest", "half-up", "toward-zero", "up", "down", "to-odd", "stochastic:20"])
@pytest.mark.parametrize("format", ["fp16", "bf16", "tf32", "fp32", "e5m2", "e6m9", "e5m15", "e8m21", "e9m10", "q0.24"])
def test_every_format_and_mode_equals_the_reference(format, mode):
    for i, order in enumerate((*ORDERS, *(KAHAN if mode == "nearest" else ()))):
        check_sum(wild(2, 5, 37, seed=i), (0, 2), f"{mode}/{format}:{order}")


def test_sums_and_products_of_cuda_tensors_are_told_to_take_the_kernels():
    assert kernels_of_sums.KERNELS["cuda", "sums"] == "cuda.sums.cuda_sums"
    assert kernels_of_sums.KERNELS["cuda", "matmul"] == "cuda.sums.cuda_products"


def compiled(kernel, how, width, capability, folder, monkeypatch):
    """The PTX for a tile of sums, `width` lanes each; a lone lane walks two axes."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    is_narrow = bool(how & How.NARROW)
    tile = sum_launches.tile_of_sums(2**20, width, torch.device("cpu"), is_narrow=is_narrow)
    constants = {"DIGITS": 23, "BIAS": 127, "HOW": how, "BY_ROWS": width == 1, "IS_LONG": False}
    constants |= {"ROWS": tile.rows, "LANES": tile.lanes, "LEVELS": tile.lanes.bit_length() - 1}
    pointers = {"table": "*i32" if is_narrow else "*i64"} | dict.fromkeys(("counts", "bins", "later"), "*i64")
    types = pointers | dict.fromkeys(("source", "first", "second", "target"), "*i32")
    constants |= {} if how & How.WIDTHS else {"later": None}
    types |= dict.fromkeys(constants, "constexpr") | dict.fromkeys(ordered_kernel.VARYING[-4:], "i64")
    one, two = ((), ("i32",)), (("i32",), ("i32", "i32"))
    index = one if how & How.WIDTHS else ((), ())
    axes = (
        {"kept": one, "reduced": two} if "source" in kernel.arg_names else {"kept": (two, two), "reduced": (one, one)}
    )
    types |= axes | {"kept_index": index, "reduced_index": index}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=places)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"enable_fp_fusion": False, "num_warps": tile.num_warps, "maxnreg": tile.maxnreg}
    return triton.compile(source, target=target, options=options).asm["ptx"], tile


def check_compiled(kernel, how, width, capability, folder, monkeypatch):
    """Assert that a kernel compiles without a fused operation, to float32 alone where told so, and does not spill."""
    ptx, tile = compiled(kernel, how, width, capability, folder, monkeypatch)
    assert not re.search(FORBIDDEN if how & How.NARROW else FORBIDDEN.replace("|f64", ""), ptx)
    check_resources(ptx, folder, most=tile.maxnreg)


IN_32 = How.NARROW | How.COUNTS
MAGIC = shortcut_table.MAGIC << How.STYLE_AT
COMPILED = {
    "fp16": (IN_32 | How.LOADS | MAGIC, (1, 64, 128)),
    "fp32": (IN_32 | How.WHOLE, (1, 64, 128)),
    "directed": (IN_32 | How.LOADS | How.DOWN, (1, 128)),
    "kahan": (IN_32 | How.LOADS | How.KAHAN | MAGIC, (1,)),
    "stochastic": (IN_32 | How.LOADS | 16, (1, 64, 128)),
    "stochastic, wide": (How.FOLDS | How.COUNTS | How.LOADS | 16, (1, 64, 128)),
    "histogram": (How.FOLDS | How.COUNTS | How.LOADS | How.HISTOGRAM, (1, 128)),
}
QUICK = (("fp16", 1, 90), ("fp32", 64, 80), ("stochastic", 1, 90), ("stochastic", 128, 80))
CASES = [(name, width, sm) for name, (_, widths) in COMPILED.items() for width in widths for sm in (80, 90)]


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize(
    ("name", "width", "capability"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.nightly) for case in CASES],
)
def test_sums_compile_without_fused_operations_or_spills(name, width, capability, tmp_path, monkeypatch):
    kernel = ordered_kernel.ordered_kernel
    check_compiled(kernel, COMPILED[name][0], width, capability, tmp_path, monkeypatch)
