"""Traced programs by the Triton kernels against the readable code: on a GPU, or else in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported. So without it these tests need a GPU, and one of them runs this
file once more, with it, in a process of its own, where the kernels take CPU tensors.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the tests of the other kernels import

import triton

from normstab.norms import op_by_op
from normstab.norms.catalogue import parse_norm
from normstab.norms.cuda import cuda_walks
from normstab.norms.cuda.walk_kernel import walk_kernel
from normstab.norms.functional import Reduction, Scheme
from normstab.norms.fused import coverage
from normstab.norms.program import launch_program
from normstab.norms.program.layer_outline import Outline
from normstab.norms.program.recomputed import SavedAgain
from normstab.norms.program.segments import Plan
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.ledger import Ledger, Row
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision
from tests.norms.test_fused import LAYOUTS, SPECIAL, assert_same_ledger, is_same, reduction_of
from tests.norms.test_program import own  # noqa: F401 - a fixture
from tests.numerics.test_float32_kernels import FORBIDDEN, check_resources

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
KINDS = ["l2", "l1", "linf", "top3", "range", "lp3", None]
PRECISIONS = [
    "fp16",
    "bf16/stochastic:8/bf16:blocked4",
    "fp16/down/fp16:lanes6",
    "e4m3fn/to-odd/e5m2:sequential",
    "q7.8/stochastic:20/q7.8:lanes16",
    "fp32/nearest-away",
    "fp16/stochastic:32/fp16:blocked64;square=fp32;sum=fp16;variance=fp32;reciprocal=tf32;gradient=bf16;divide=reciprocal",
]

# Two groups of about twenty values each: the interpreter takes seconds for a layer.
SHAPES = {"batch": (3, 2, 7), "layer": (2, 21), "rms": (2, 21), "group": (1, 4, 11), "instance": (1, 2, 3, 7)}


def needs_device(test: Callable[..., None]) -> Callable[..., None]:
    """Mark what runs on a GPU, or in the interpreter."""
    if IS_INTERPRETED:
        return test
    reason = "needs a GPU, or TRITON_INTERPRET=1"
    skipped: Callable[..., None] = pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(test)
    return pytest.mark.gpu(skipped)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors go to the Triton kernels too; the interpreter computes with numpy, which warns of overflows."""
    monkeypatch.setitem(launch_program.RUNNERS, "cpu", launch_program.RUNNERS["cuda"])
    with np.errstate(all="ignore"):
        yield


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", ["readable_code and 0-", pytest.param("", marks=pytest.mark.nightly)])
def test_the_kernels_equal_the_readable_code_in_tritons_interpreter(chosen: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen, __file__]
    done = subprocess.run(command, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def assert_same(
    x: Tensor,
    grad: Tensor,
    parameters: tuple[Tensor | None, Tensor | None],
    scheme: Scheme,
    reduction: Reduction,
    precision: str,
    needs: tuple[bool, bool, bool] = (True, True, True),
    *,
    later: int = 0,
) -> None:
    """Compare every bit of every result and every entry of the ledger, forward and, so many steps later, backward."""
    fused, readable = (Arithmetic(precision, ledger=Ledger(), key=Key(seed=5)).at("bn") for _ in range(2))
    assert coverage.covers_precision(fused.precision, "cuda")
    on_device = [None if value is None else value.to(DEVICE) for value in (x, grad, *parameters)]
    source, upstream, *moved = on_device
    assert source is not None and upstream is not None
    done = launch_program.forward(source, moved[0], moved[1], scheme, reduction, fused)
    expected = op_by_op.forward(x, *parameters, scheme, reduction, readable)
    assert done is not None
    assert is_same_there(done.output, expected.output)
    assert is_same_there(done.mean, expected.mean)
    assert is_same_there(done.scale, expected.saved.scale)
    assert is_same_there(done.stored, expected.stored)
    for ar in (fused, readable):
        ar.clock.step += later
    gradients = launch_program.backward(upstream, done.saved, scheme, reduction, fused, needs)
    assert gradients is not None
    wanted = op_by_op.backward(grad, expected.saved, scheme, reduction, readable, needs)
    assert [is_same_there(a, b) for a, b in zip(gradients, wanted, strict=True)] == [True] * 3
    assert_same_ledger(fused, readable)


def is_same_there(found: Tensor | None, expected: Tensor | None) -> bool:
    """Whether a result on the device has the shape and the bits of the expected one."""
    return is_same(None if found is None else found.cpu(), expected)


def scheme_of(kind: str | None, layout: str = "batch", eps: float = 1e-5) -> Scheme:
    return Scheme(None if kind is None else parse_norm(kind), eps, centres=layout != "rms", tracks=True)


@needs_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", range(3))
def test_the_kernels_equal_the_readable_code(turn: int, kind: str | None) -> None:
    # Every norm meets three of the precisions and of the layouts.
    number = KINDS.index(kind) + 2 * turn
    precision, layout = PRECISIONS[number % len(PRECISIONS)], LAYOUTS[number % len(LAYOUTS)]
    torch.manual_seed(number)
    scale = (1.0, 300.0, 1e-6)[turn]
    x = torch.randn(SHAPES[layout]) * scale + scale / 2
    reduction, channels = reduction_of(layout, x.shape)
    parameters = torch.randn(channels), torch.randn(channels)
    assert_same(x, torch.randn_like(x), parameters, scheme_of(kind, layout), reduction, precision)


@needs_device
@pytest.mark.parametrize("kind", ["l2", "l1", "top3", "range"])
def test_several_blocks_and_gradients_that_are_not_needed(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_walks, "BLOCK", 16)
    x = torch.randn(3, 1, 13) * 1e-3
    reduction, channels = reduction_of("batch", x.shape)
    grad, gamma = torch.randn_like(x) * 1e-4, torch.randn(channels)
    scheme = scheme_of(kind, eps=0.0)
    assert_same(x, grad, (gamma, None), scheme, reduction, "fp16/nearest/fp16:blocked5", (True, True, False))
    assert_same(x, grad, (gamma, None), scheme, reduction, "bf16", (False, True, False))


@needs_device
def test_a_backward_pass_in_a_later_step_draws_once_more_what_the_forward_pass_drew() -> None:
    x = torch.randn(3, 2, 7)
    reduction, channels = reduction_of("batch", x.shape)
    parameters, precision = (torch.randn(channels), torch.randn(channels)), "fp16/stochastic/fp16"
    assert_same(x, torch.randn_like(x), parameters, scheme_of("l2"), reduction, precision, later=1)


@needs_device
@pytest.mark.parametrize("kind", KINDS)
def test_special_values(kind: str | None) -> None:
    generator, special = torch.Generator().manual_seed(3), torch.tensor(SPECIAL)
    for precision, eps, layout in (("fp16", 1e-12, "batch"), ("e5m2:saturate/stochastic/fp16:lanes4", 0.0, "group")):
        x, grad = (special[torch.randint(len(SPECIAL), (2, 2, 7), generator=generator)] for _ in range(2))
        reduction, channels = reduction_of(layout, x.shape)
        ones, zeros = torch.ones(channels), torch.zeros(channels)
        assert_same(x, grad, (ones, zeros), scheme_of(kind, layout, eps), reduction, precision)


@needs_device
@pytest.mark.parametrize("kind", ["l2", "l1", "linf", "top1", "range", None])
def test_one_value_per_channel_and_constant_channels(kind: str | None) -> None:
    for x in (torch.randn(1, 3), torch.full((3, 3), 7.0), torch.full((3, 3), math.nan)):
        reduction, channels = reduction_of("batch", x.shape)
        assert_same(
            x, torch.randn_like(x), (torch.ones(channels), torch.zeros(channels)), scheme_of(kind), reduction, "fp16"
        )


@needs_device
def test_every_order_of_sums_is_served() -> None:
    for order in ("pairwise", "blocked4+kahan", "lanes2048"):
        x = torch.randn(3, 2, 7)
        reduction, channels = reduction_of("batch", x.shape)
        parameters = torch.randn(channels), torch.randn(channels)
        assert_same(x, torch.randn_like(x), parameters, scheme_of("l2"), reduction, f"fp16/nearest/fp16:{order}")


@needs_device
@pytest.mark.parametrize("kind", ["roots", "median", "zeros"])
def test_a_norm_of_ones_own_runs_there(kind: str, own: None) -> None:  # noqa: F811
    x = torch.randn(3, 2, 7)
    reduction, channels = reduction_of("batch", x.shape)
    assert_same(x, torch.randn_like(x), (torch.randn(channels), None), scheme_of(kind), reduction, "fp16")


@needs_device
def test_an_input_of_16_bits_is_read_as_it_lies_and_kept_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.dtype] = []
    compiled_in = cuda_walks.compiled_in
    monkeypatch.setattr(cuda_walks, "compiled_in", lambda *given: read.extend(given[2]) or compiled_in(*given))
    x, grad = (torch.randn(3, 2, 7, device=DEVICE).half() for _ in range(2))
    reduction, scheme = Reduction.of_batch(x.shape), scheme_of("l2")
    ars = [Arithmetic("fp16").at("bn") for _ in range(2)]
    done = launch_program.forward(x, None, None, scheme, reduction, ars[0])
    expected = op_by_op.forward(x.cpu(), None, None, scheme, reduction, ars[1])
    assert done is not None
    assert is_same_there(done.output, expected.output)
    assert isinstance(done.saved, SavedAgain)
    assert done.saved.input.data_ptr() == x.data_ptr()
    found = launch_program.backward(grad, done.saved, scheme, reduction, ars[0], (True, False, False))
    wanted = op_by_op.backward(grad.cpu(), expected.saved, scheme, reduction, ars[1], (True, False, False))
    assert found is not None
    assert is_same_there(found.input, wanted.input)
    assert read.count(torch.float16) == 3  # forward x, backward x and grad


@needs_device
@pytest.mark.parametrize("precision", ["fp16", "bf16/stochastic:12/bf16"])
def test_a_layer_takes_few_launches(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    launch = cuda_walks.launch
    monkeypatch.setattr(cuda_walks, "launch", lambda *given: launched.append(given[4]) or launch(*given))
    x = torch.randn(3, 2, 7, device=DEVICE)
    reduction, scheme, ar = (
        Reduction.of_batch(x.shape),
        scheme_of("l2"),
        Arithmetic(precision, ledger=Ledger(), key=Key(seed=5)).at("bn"),
    )
    done = launch_program.forward(x, None, None, scheme, reduction, ar)
    assert done is not None
    assert launched == [42, 2, 42, 2, 42]  # values and groups in turn: the sums are launches between them
    launched.clear()
    launch_program.backward(x, done.saved, scheme, reduction, ar, (True, False, False))
    assert launched == [42, 2, 42]


def ptx_of(plan: Plan, place: tuple[int, int, bool], precision: Precision, capability: int, folder: Path) -> str:
    """The PTX of the kernel of a walk, every site of which counts; no GPU is needed."""
    told = cuda_walks.walk_plan(plan, *place)
    rows = [Row(with_histogram=False) if step.again is None else None for step, _ in told.steps]
    calls = [
        Call(step.calls[0].format, precision.rounding, row=row) if step.calls else None
        for (step, _), row in zip(told.steps, rows, strict=True)
    ]
    dtypes = [torch.float32] * len(told.reads)
    constants, _ = cuda_walks.compiled_in(told, calls, dtypes, torch.device("cpu"))
    types = {"sources": ("*i32",) * len(told.reads), "targets": ("*i32",) * len(told.writes), "period": ("i32",) * 4}
    types |= dict.fromkeys(("numbers", "tables"), "*i32") | dict.fromkeys(("keys", "later", "counts"), "*i64")
    types |= {"step": "i64", "n": "i32"}
    constants |= {} if told.constants else {"numbers": None}
    constants |= {} if constants["WIDTH"] else {"keys": None, "later": None}
    names = walk_kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    # Addresses and sizes of which 16 divides each, as torch's are.
    even = [(names.index(name),) for name in ("numbers", "tables", "keys", "counts", "n") if name not in constants]
    even += [(names.index(name), i) for name in ("sources", "targets") for i in range(len(types[name]))]
    divisible = {place: [["tt.divisibility", 16]] for place in even}
    source = triton.compiler.ASTSource(walk_kernel, signature=signature, constexprs=places, attrs=divisible)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"enable_fp_fusion": False, "num_warps": cuda_walks.WARPS, "maxnreg": cuda_walks.REGISTERS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        return str(triton.compile(source, target=target, options=options).asm["ptx"])


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("kind", ["l2", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS[1:])])
@pytest.mark.parametrize("name", ["fp16", "fp16/stochastic"])
def test_walks_compile_to_float32_alone_and_spill_nothing(
    name: str, kind: str | None, capability: int, tmp_path: Path
) -> None:
    reduction = Reduction.of_batch((64, 64, 32, 32))
    precision = Precision.parse(name)
    outline = Outline(scheme_of(kind), reduction, precision)
    plans = launch_program.forward_plan(outline), launch_program.backward_plan(outline, (True, True, True), True)
    for plan in plans:
        assert plan is not None
        for i, segment in enumerate(plan.segments):
            for j in range(len(segment.passes)):
                if cuda_walks.walk_plan(plan, i, j, False).steps:
                    ptx = ptx_of(plan, (i, j, False), precision, capability, tmp_path)
                    assert "st.global.v2" in ptx and not re.search(FORBIDDEN, ptx)
                    check_resources(ptx, tmp_path, most=cuda_walks.REGISTERS)
