"""The fused kernels against the readable code: every bit of every result, and every entry of the ledger."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normstab.norms import op_by_op
from normstab.norms.catalogue import parse_norm
from normstab.norms.functional import Reduction, Saved, Scheme, normalize_backward, normalize_forward
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key

pytest.importorskip("numba")
from normstab.norms.fused import coverage

FAST = ["fp16", "bf16", "e4m3fn", "e5m2:saturate", "fp16/nearest/fp32:lanes8", "fp16;divide=reciprocal"]
WIDE = [
    "fp16/stochastic",
    "bf16/stochastic:8/bf16:blocked4",
    "fp16/down/fp16:pairwise",
    "q7.8/nearest/q7.8:sequential",
    "e4m3fn/to-odd/e5m2:lanes8",
    "q7.8/stochastic:20/q7.8:lanes16",
    "fp32/nearest-away",
    "fp16;square=fp32;sum=fp16;variance=fp32;reciprocal=tf32;gradient=bf16;divide=reciprocal",
]
PRECISIONS = [*FAST, *WIDE]
KINDS = ["l2", "l1", "linf", "top1", "top10", "range", None]
LAYOUTS = ["batch", "layer", "group", "instance", "rms"]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 65504.0, 1e38, 1e-40, 6e-8, -3.0, 1.0]


def reduction_of(layout: str, shape: torch.Size) -> tuple[Reduction, int]:
    """Return the reduction of a layout, and how many parameters it has."""
    match layout:
        case "batch":
            return Reduction.of_batch(shape), shape[1]
        case "instance":
            return Reduction.of_instance(shape), shape[1]
        case "group":
            return Reduction.of_group(shape, 2), shape[1]
    return Reduction.of_layer(shape, shape[-1:]), shape[-1]


def is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors have the same shape and the same bits."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def assert_same(
    x: Tensor,
    grad: Tensor,
    parameters: tuple[Tensor | None, Tensor | None],
    scheme: Scheme,
    reduction: Reduction,
    precision: str,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> None:
    """Run both twice, so that the second run meets a ledger with marks, and compare everything."""
    fused, readable = (Arithmetic(precision, ledger=Ledger(), key=Key(seed=5)).at("bn") for _ in range(2))
    for _ in range(2):
        found = normalize_forward(x, *parameters, scheme, reduction, fused)
        expected = op_by_op.forward(x, *parameters, scheme, reduction, readable)
        assert not isinstance(found.saved, Saved)
        assert is_same(found.output, expected.output)
        assert is_same(found.mean, expected.mean)
        assert is_same(found.scale, expected.saved.scale)
        assert is_same(found.stored, expected.stored)
        gradients = normalize_backward(grad, found.saved, scheme, reduction, fused, needs)
        wanted = op_by_op.backward(grad, expected.saved, scheme, reduction, readable, needs)
        assert [is_same(a, b) for a, b in zip(gradients, wanted, strict=True)] == [True] * 3
    assert_same_ledger(fused, readable)


def assert_same_ledger(found: Arithmetic, wanted: Arithmetic) -> None:
    """Compare the sites, their tallies and the stamps of their first offences."""
    assert found.ledger is not None
    assert wanted.ledger is not None
    assert list(found.ledger) == list(wanted.ledger)
    assert dict(found.ledger) == dict(wanted.ledger)
    for site in wanted.ledger:
        assert (found.ledger.row(site).first_stamp == wanted.ledger.row(site).first_stamp).all(), site


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fused_kernels_equal_the_readable_code(precision: str, kind: str | None, layout: str) -> None:
    torch.manual_seed(len(f"{precision}{kind}{layout}"))
    scale = {0: 1.0, 1: 300.0, 2: 1e-6}[(len(layout) + len(str(kind))) % 3]
    x = torch.randn(4, 6, 5, 11) * scale + scale / 2
    reduction, channels = reduction_of(layout, x.shape)
    scheme = Scheme(None if kind is None else parse_norm(kind), 1e-5, centres=layout != "rms", tracks=True)
    assert coverage.covers_program(x, Arithmetic(precision))
    assert coverage.covers(x, scheme, Arithmetic(precision)) == (kind in ("linf", "top1", "top10", "range"))
    assert_same(x, torch.randn_like(x), (torch.randn(channels), torch.randn(channels)), scheme, reduction, precision)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_kernels_equal_the_readable_code_over_several_blocks(kind: str | None) -> None:
    x = torch.randn(6, 3, 20, 21).to(memory_format=torch.channels_last) * 1e-3
    reduction, channels = reduction_of("batch", x.shape)
    scheme = Scheme(None if kind is None else parse_norm(kind), 0.0)
    grad = torch.randn_like(x) * 1e-4
    assert_same(x, grad, (torch.randn(channels), None), scheme, reduction, "fp16", (True, True, False))
    assert_same(x, grad, (torch.randn(channels), None), scheme, reduction, "fp16", (False, True, False))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "precision",
    [
        "fp16/stochastic",
        "e4m3fn/stochastic:8/fp16:lanes16",
        "bf16/stochastic:20/fp32:blocked8",
        "fp16/up",
        "fp16/to-odd/fp16:lanes8",
        "fp16:flush/stochastic",
        "e5m1:p=1:max=32768.0/to-odd",
        "fp16;square=e5m1:p=1:max=32768.0;gradient=e5m2",
    ],
)
def test_short_runs_and_subnormal_results_are_fused_alike(precision: str, side: int) -> None:
    torch.manual_seed(side)
    # More than a block of short runs; their indices begin at multiples of a block of random bits, or do not.
    x = torch.randn(1100 // side**2 + 1, 8 if side < 5 else 3, side, side)
    reduction, channels = reduction_of("batch", x.shape)
    for scale in (1.0, 2e-5):
        parameters = torch.randn(channels), torch.randn(channels)
        grad = torch.randn_like(x) * scale * scale
        assert_same(x * scale, grad, parameters, Scheme(parse_norm("l2")), reduction, precision)


@settings(max_examples=60)
@given(
    values=st.lists(st.sampled_from(SPECIAL), min_size=12, max_size=12),
    grads=st.lists(st.sampled_from(SPECIAL), min_size=12, max_size=12),
    kind=st.sampled_from(["l2", "l1", "linf", "top2", "range", None]),
    layout=st.sampled_from(LAYOUTS),
    precision=st.sampled_from(PRECISIONS),
    eps=st.sampled_from([0.0, 1e-12, 1e-5]),
)
def test_the_fused_kernels_equal_the_readable_code_on_special_values(
    values: list[float], grads: list[float], kind: str | None, layout: str, precision: str, eps: float
) -> None:
    x, grad = torch.tensor(values).view(1, 4, 3), torch.tensor(grads).view(1, 4, 3)
    reduction, channels = reduction_of(layout, x.shape)
    scheme = Scheme(None if kind is None else parse_norm(kind), eps, centres=layout != "rms")
    assert_same(x, grad, (torch.ones(channels), torch.zeros(channels)), scheme, reduction, precision)


@pytest.mark.parametrize("kind", KINDS)
def test_one_value_per_channel_and_constant_channels_are_fused_alike(kind: str | None) -> None:
    if kind == "top10":
        pytest.skip("top10 needs ten values")
    for x in (torch.randn(1, 5), torch.full((3, 5), 7.0), torch.zeros(3, 5)):
        reduction, _ = reduction_of("batch", x.shape)
        scheme = Scheme(None if kind is None else parse_norm(kind), 1e-5, tracks=True)
        assert_same(x, torch.randn_like(x), (torch.ones(5), torch.zeros(5)), scheme, reduction, "fp16")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit_and_no_count(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(8, 5, 24, 24, generator=torch.Generator().manual_seed(1))
        reduction, _ = reduction_of("batch", x.shape)
        assert_same(x, x.flip(0), (torch.ones(5), torch.zeros(5)), Scheme(parse_norm("l1")), reduction, "fp16")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "precision",
    ["fp64", "fp16;mean=blockwise4", "fp16/nearest/exact", "fp16/nearest/native", "fp16/nearest/fp32:blocked64+kahan"],
)
def test_what_the_kernels_do_not_cover_is_computed_op_by_op(precision: str) -> None:
    x = torch.randn(4, 3, 5)
    scheme = Scheme(parse_norm("l2"))
    ar = Arithmetic(precision)
    assert not coverage.covers_program(x, ar)
    done = normalize_forward(x, None, None, scheme, Reduction.of_batch(x.shape), ar)
    assert isinstance(done.saved, Saved)
    assert not coverage.covers_program(x, Arithmetic("fp16", ledger=Ledger(histogram=True)))
    assert not coverage.covers(x, Scheme(parse_norm("lp3")), Arithmetic("fp16"))


@pytest.mark.parametrize(
    "precision",
    ["fp32", "fp16/up", "fp16/nearest/fp16", "fp16;square=fp32", "q7.8", "tf32", "e8m8", "fp16/nearest/fp32:lanes48"],
)
def test_float32_carries_only_what_it_rounds_once(precision: str) -> None:
    assert not coverage.is_fast(Arithmetic(precision))
    assert not coverage.is_fast(Arithmetic("fp16", ledger=Ledger(inexact=True)))
    assert coverage.is_fast(Arithmetic("fp16", ledger=Ledger()))


def test_flushing_subnormals_takes_bfloat16_out_of_float32() -> None:
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("the processor does not flush subnormals")
        assert not coverage.is_fast(Arithmetic("bf16"))
        assert coverage.is_fast(Arithmetic("fp16"))
    finally:
        torch.set_flush_denormal(False)


def test_parameters_in_float64_are_used_as_they_come() -> None:
    x, gamma = torch.randn(4, 3, 5), torch.rand(3, dtype=torch.float64) + 1.0
    scheme, reduction = Scheme(parse_norm("l1")), Reduction.of_batch(x.shape)
    found = normalize_forward(x, gamma, gamma, scheme, reduction, Arithmetic("fp16"))
    expected = op_by_op.forward(x, gamma, gamma, scheme, reduction, Arithmetic("fp16"))
    assert torch.equal(found.output, expected.output)
    assert torch.equal(
        found.output, normalize_forward(x, *[gamma.float()] * 2, scheme, reduction, Arithmetic("fp16")).output
    )
