"""The fused Triton kernels against the readable code: on a GPU, or else in Triton's interpreter.

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
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the tests of the other kernels import

import triton

from normstab.norms import op_by_op
from normstab.norms.catalogue import parse_norm
from normstab.norms.cuda import cuda_run
from normstab.norms.functional import Reduction, Scheme
from normstab.norms.fused import coverage, launch, launch_backward
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from tests.norms.test_fused import LAYOUTS, SPECIAL, is_same, reduction_of

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
KINDS = ["l2", "l1", "linf", "top3", "range", None]
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
    monkeypatch.setitem(launch.RUNNERS, "cpu", launch.RUNNERS["cuda"])
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
) -> None:
    """Compare every bit of every result and every entry of the ledger, forward and backward."""
    fused, readable = (Arithmetic(precision, ledger=Ledger(), key=Key(seed=5)).at("bn") for _ in range(2))
    assert coverage.covers_precision(fused.precision, "cuda")
    on_device = [None if value is None else value.to(DEVICE) for value in (x, grad, *parameters)]
    source, upstream, *moved = on_device
    assert source is not None and upstream is not None
    z, mean, scale, stored, saved = launch.forward(source, moved[0], moved[1], scheme, reduction, fused)
    expected = op_by_op.forward(x, *parameters, scheme, reduction, readable)
    assert is_same_there(z, expected.output)
    assert is_same_there(mean, expected.mean)
    assert is_same_there(scale, expected.saved.scale)
    assert is_same_there(stored, expected.stored)
    gradients = launch_backward.backward(upstream, saved, scheme, reduction, fused, needs)
    wanted = op_by_op.backward(grad, expected.saved, scheme, reduction, readable, needs)
    assert [is_same_there(a, b) for a, b in zip(gradients, wanted, strict=True)] == [True] * 3
    assert fused.ledger is not None and readable.ledger is not None
    assert list(fused.ledger) == list(readable.ledger)
    assert dict(fused.ledger) == dict(readable.ledger)
    for site in readable.ledger:
        assert (fused.ledger.row(site).first_stamp == readable.ledger.row(site).first_stamp).all(), site


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
    monkeypatch.setattr(cuda_run, "BLOCK", 16)
    monkeypatch.setattr(cuda_run, "BLOCKS", 4)
    x = torch.randn(3, 1, 13) * 1e-3
    reduction, channels = reduction_of("batch", x.shape)
    grad, gamma = torch.randn_like(x) * 1e-4, torch.randn(channels)
    scheme = scheme_of(kind, eps=0.0)
    assert_same(x, grad, (gamma, None), scheme, reduction, "fp16/nearest/fp16:blocked5", (True, True, False))
    assert_same(x, grad, (gamma, None), scheme, reduction, "bf16", (False, True, False))


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


@pytest.mark.parametrize(
    "precision", ["fp16/nearest/fp32:pairwise", "fp16/nearest/fp16:blocked4+kahan", "fp16/nearest/fp32:lanes2048"]
)
def test_other_sums_are_computed_op_by_op_there(precision: str) -> None:
    assert not coverage.covers_precision(Arithmetic(precision).precision, "cuda")


def ptx_of(kernel: Any, layer: launch.Layer, folder: Path, monkeypatch: pytest.MonkeyPatch, *absent: str) -> str:
    """The PTX of a kernel for compute capability 9.0, for which no GPU is needed."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    constants = cuda_run.options_of(layer) | dict.fromkeys(absent)
    signature = dict.fromkeys(kernel.arg_names, "*i32") | dict.fromkeys(("members", "layer"), "*i64")
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=places)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return str(triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"])


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize(
    ("precision", "kind", "layout"),
    [
        pytest.param("fp16", "l1", "batch", marks=pytest.mark.nightly),
        pytest.param("fp16/stochastic;divide=reciprocal", "top3", "batch", marks=pytest.mark.nightly),
        ("fp16/stochastic/fp16:blocked64", None, "layer"),
    ],
)
def test_the_kernels_compile_without_a_float32_operation(
    precision: str, kind: str | None, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: dict[str, launch.Layer] = {}
    monkeypatch.setattr(launch, "runner_of", lambda x: Caught(layers))
    monkeypatch.setattr(launch_backward, "runner_of", lambda x: Caught(layers))
    x, ar = torch.randn(3, 2, 7), Arithmetic(precision, ledger=Ledger(), key=Key(seed=5))
    (reduction, channels), scheme = reduction_of(layout, x.shape), scheme_of(kind)
    *_, saved = launch.forward(x, torch.ones(channels), torch.zeros(channels), scheme, reduction, ar)
    launch_backward.backward(x, saved, scheme, reduction, ar, (True, True, True))
    forward = ptx_of(cuda_run.forward_kernel, layers["forward"], tmp_path, monkeypatch)
    absent = ("product", "grad_cast") if layout == "batch" else ("d_gamma", "d_beta")
    backward = ptx_of(cuda_run.backward_kernel, layers["backward"], tmp_path, monkeypatch, *absent)
    for ptx in (forward, backward):
        assert "st.global" in ptx and not re.search(r"\bfma\.|\.approx|\.ftz|\.full|\.f32", ptx)


class Caught:
    """A runner that keeps the layers and computes nothing."""

    def __init__(self, layers: dict[str, launch.Layer]) -> None:
        self.layers = layers

    def run_forward(self, layer: launch.Layer, groups: int, tensors: Any) -> None:
        self.layers["forward"] = layer

    def run_backward(self, layer: launch.Layer, groups: int, tensors: Any) -> None:
        self.layers["backward"] = layer
