"""Products with an emulated accumulator of CUDA tensors have the bits and the counters of the reference.

As in test_cuda_sums they run on a GPU, or else in Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the oracle's own module imports

from normstab.numerics.kernels.cuda.sums import cuda_products, products_kernel
from normstab.numerics.kernels.cuda.sums.ordered_steps import How
from tests.numerics.test_accumulate_kernels import wild
from tests.numerics.test_cuda_kernels import IS_INTERPRETED, needs_device
from tests.numerics.test_cuda_sums import (
    EDGED,
    IN_32,
    KAHAN,
    MAGIC,
    ORDERS,
    check,
    check_compiled,
    kernels,  # noqa: F401  # every test here needs the fixture
    run_interpreted,
)
from tests.numerics.test_float32_kernels import at_the_edges

FUSED = ("sequential+fused", "blocked2+fused")
FORMATS = (
    "nearest/fp16", "nearest/fp32", "down/bf16", "stochastic/fp16", "nearest/fp64", "up/q3.4:wrap",
    "stochastic:8/e4m3fn", "stochastic:28/tf32", "stochastic:30/e8m21",
)  # fmt: skip


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", ["not every", pytest.param("every", marks=pytest.mark.nightly)])
def test_products_equal_the_reference_in_tritons_interpreter(chosen):
    run_interpreted(__file__, chosen)


def check_product(a, b, mode, accumulation, **options):
    compute = lambda ar, both: ar.matmul(*both)  # noqa: E731
    check(compute, (a, b), f"fp16/{mode};matmul={accumulation}", what=cuda_products, **options)


@needs_device
@pytest.mark.parametrize("order", ["sequential", "lanes2", "blocked2", "pairwise", "sequential+kahan", *FUSED])
def test_products_equal_the_reference(order):
    for i, format in enumerate(FORMATS[len(order) % 3 :: 3]):
        mode, _, accumulator = format.partition("/")
        if "kahan" not in order or mode == "nearest":
            check_product(wild(2, 3, 4, seed=i), wild(4, 3, seed=i + 1), mode, f"{accumulator}:{order}")


@needs_device
def test_operands_broadcast_and_are_read_where_they_lie():
    shapes = [((4,), (4,)), ((3, 4), (4,)), ((4,), (2, 4, 3)), ((2, 1, 3, 4), (3, 4, 2))]
    for i, (of_a, of_b) in enumerate(shapes):
        a, b = wild(*of_a, seed=i, share=0.0), wild(*of_b, seed=i, share=0.0)
        b = b.mT.contiguous().mT if b.dim() > 1 and i % 2 else b
        check_product(a, b, "stochastic", "bf16:lanes2")
    check_product(wild(3, 4).double(), wild(4, 3), "nearest", "fp16:lanes2", histogram=True)


@needs_device
@pytest.mark.parametrize("format", EDGED)
def test_a_product_at_the_edges_of_float32_equals_the_reference(format):
    a, b = (x.view(-1, 1, 1) for x in at_the_edges(4000))
    b = torch.where(torch.arange(4000).view(-1, 1, 1) % 3 == 0, 2.0**-60, 1.0) * b
    mode, _, accumulator = format.partition("/")
    check_product(a, b, mode, f"{accumulator}:sequential")
    check_product(a.abs() ** 0.5, a.abs() ** 0.5, mode, f"{accumulator}:sequential")
    both = torch.cat([a, a.roll(7)], dim=2), torch.cat([b, -b.roll(3)], dim=1)
    check_product(*both, mode, f"{accumulator}:sequential+fused")


@needs_device
@pytest.mark.parametrize("format", ["fp16", "bf16", "tf32", "fp32", "fp64", "e4m3fn", "q7.8", "q3.4:wrap"])
@pytest.mark.parametrize("mode", ["nearest", "up", "to-odd", "stochastic:20"])
def test_every_format_and_mode_of_products_equals_the_reference(format, mode):
    for order in (*ORDERS, *FUSED, *(KAHAN if mode == "nearest" else ())):
        check_product(wild(2, 3, 9), wild(9, 4, seed=1), mode, f"{format}:{order}")


COMPILED = {
    "fp16": IN_32 | How.LOADS | MAGIC,
    "fp32": IN_32 | How.LOADS | How.WHOLE,
    "directed": IN_32 | How.LOADS | How.DOWN,
    "kahan": IN_32 | How.LOADS | How.KAHAN | MAGIC,
    "stochastic": IN_32 | How.LOADS | 16,
    "stochastic, wide": How.FOLDS | How.COUNTS | How.LOADS | 16,
    "fused": IN_32 | How.LOADS | How.FUSED,
    "fused, stochastic": IN_32 | How.LOADS | How.FUSED | 16,
    "fused, wide": How.FOLDS | How.COUNTS | How.LOADS | How.FUSED | 16,
}
CASES = [(name, width, sm) for name in COMPILED for width in (1, 64, 128) for sm in (80, 90)]
CASES = [case for case in CASES if case[1] == 1 or not case[0].startswith(("kahan", "fused"))]
QUICK = (("fp16", 1, 90), ("fp32", 1, 80), ("stochastic", 1, 90), ("fused", 1, 90))


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize(
    ("name", "width", "capability"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.nightly) for case in CASES],
)
def test_products_compile_without_fused_operations_or_spills(name, width, capability, tmp_path, monkeypatch):
    kernel = products_kernel.products_kernel
    check_compiled(kernel, COMPILED[name], width, capability, tmp_path, monkeypatch)
