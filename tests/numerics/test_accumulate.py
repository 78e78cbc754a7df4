"""Sums in stated formats and orders, against exact rational arithmetic and against their own definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

import normstab as ns
from normstab.numerics.precision import Accumulation
from tests.numerics.sum_oracles import kahan, round_rational, summed

ORDERS = ("sequential", "pairwise", "blocked1", "blocked4", "blocked64", "lanes1", "lanes4", "lanes64")
FORMATS = ("fp16", "bf16", "e4m3fn", "e5m2", "tf32", "fp32", "e6m9", "e5m15", "e2m3", "e4m3fnuz")
MODES = ("nearest", "nearest-away", "toward-zero", "up", "down", "to-odd")
LENGTHS = (1, 2, 3, 5, 7, 8, 9, 64, 65, 130)


def drawn(shape, format: str, *, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Values of `format` over many binades, with cancellation, some equal and some zero."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(-6, 3, shape, generator=generator).float()
    x = torch.randn(shape, generator=generator) * torch.exp2(spread) * scale
    x[torch.rand(shape, generator=generator) < 0.05] = 0.0
    return ns.cast(x, format)


def rows_of(x: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(value) for value in row] for row in x.double().tolist()]


def agrees(found: float, wanted: Fraction | float) -> bool:
    return (math.isnan(found) and math.isnan(wanted)) or found == wanted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("order", ORDERS)
def test_sums_equal_rational_arithmetic_rounded_at_every_addition(order, format, mode):
    target = ns.parse_format(format)
    plan = Accumulation.parse(f"{format}:{order}")
    x = drawn((3, 67), format, scale=min(1.0, target.max / 512))
    found = ns.Arithmetic(f"{format}/{mode}/{format}:{order}").sum(x, 1)

    def add(a, b):
        return round_rational(a + b, target, mode)

    wanted = [summed(row, plan.order, plan.width, add) for row in rows_of(x)]
    assert all(map(agrees, found.tolist(), wanted)), (found.tolist(), [float(w) for w in wanted])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_length_has_its_tree(order, n):
    plan, target = Accumulation.parse(f"fp16:{order}"), ns.parse_format("fp16")
    x = drawn((70, n), "fp16", seed=n)
    found = ns.Arithmetic(f"fp16/nearest/fp16:{order}").sum(x, 1)
    wanted = [
        summed(row, plan.order, plan.width, lambda a, b: round_rational(a + b, target, "nearest")) for row in rows_of(x)
    ]
    assert found.tolist() == [float(w) for w in wanted]


@pytest.mark.parametrize("format", ["fp16", "bf16", "fp32", "e4m3fn"])
@pytest.mark.parametrize("order", ["sequential", "blocked4"])
def test_kahan_sums_equal_rational_arithmetic(order, format):
    target = ns.parse_format(format)
    x = drawn((3, 33), format)
    found = ns.Arithmetic(f"{format}/nearest/{format}:{order}+kahan").sum(x, 1)

    def rounded(value):
        return round_rational(value, target, "nearest")

    width = 33 if order == "sequential" else 4
    blocks = [[kahan(row[i : i + width], rounded) for i in range(0, 33, width)] for row in rows_of(x)]
    assert found.tolist() == [float(kahan(sums, rounded)) for sums in blocks]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", ["fp16", "bf16", "e4m3fn", "fp32"])
def test_exact_sum_is_the_rational_sum_rounded_once(format, mode):
    x = drawn((5, 301), "fp32", scale=0.01) * torch.exp2(torch.linspace(-9, 3, 301))
    found = ns.Arithmetic(f"{format}/{mode}/exact").sum(x, 1)
    wanted = [round_rational(sum(row), ns.parse_format(format), mode) for row in rows_of(x)]
    assert all(map(agrees, found.tolist(), wanted))


def test_exact_sum_survives_cancellation_over_the_whole_range_of_float32():
    x = torch.tensor([[2.0**127, 2.0**-149, 1.0, -(2.0**127), 2.0**-149, -1.0], [2.0**100] * 3 + [-(2.0**100)] * 3])
    ar = ns.Arithmetic("fp32/nearest/exact")
    assert ar.sum(x, 1).tolist() == [2.0**-148, 0.0]
    assert ns.Arithmetic("fp64/nearest/exact").sum(x.double(), 1).tolist() == [2.0**-148, 0.0]


@pytest.mark.parametrize("order", ORDERS)
def test_empty_sums_are_positive_zero_and_single_sums_their_addend(order):
    ar = ns.Arithmetic(f"fp16/down/fp16:{order}")
    empty = ar.sum(torch.zeros(3, 0), 1)
    assert empty.tolist() == [0.0] * 3
    assert not torch.signbit(empty).any()
    single = torch.tensor([[-0.0], [65504.0], [2.0**-24], [math.inf]])
    assert torch.equal(ar.sum(single, 1), single[:, 0])
    assert torch.signbit(ar.sum(single, 1))[0]


@pytest.mark.parametrize(
    ("format", "stall"), [("bf16", 256), ("fp16", 2048), ("e4m3fn", 16), ("e5m2", 8), ("tf32", 2048)]
)
def test_a_sequential_sum_of_ones_stalls_at_two_to_the_precision(format, stall):
    assert ns.Arithmetic(format, accumulate=f"{format}:sequential").sum(torch.ones(1, 4 * stall), 1).item() == stall
    exact = min(4 * stall, ns.parse_format(format).max)
    assert ns.Arithmetic(format, accumulate=f"{format}:pairwise").sum(torch.ones(1, 4 * stall), 1).item() == exact


def height(order: str, n: int) -> int:
    """The greatest number of additions that any addend passes through."""
    plan = Accumulation.parse(f"fp16:{order}")
    match plan.order:
        case "sequential":
            return n - 1
        case "pairwise":
            return math.ceil(math.log2(n))
        case "blocked":
            return min(plan.width, n) - 1 + math.ceil(n / plan.width) - 1
    k = min(plan.width, n)
    return math.ceil(n / k) - 1 + math.ceil(math.log2(k))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", ["fp16", "bf16", "tf32", "fp32"])
@pytest.mark.parametrize("order", ["sequential", "pairwise", "blocked64", "blocked4", "lanes64"])
def test_errors_of_sums_stay_within_gamma_of_the_height(order, format, mode):
    n, p = 100, ns.parse_format(format).precision
    x = drawn((200, n), format, seed=3)
    found = ns.Arithmetic(f"{format}/{mode}/{format}:{order}").sum(x, 1).double()
    u = 2.0**-p if mode.startswith("nearest") else 2.0 ** (1 - p)
    h = height(order, n)
    gamma = h * u / (1 - h * u)
    assert (h * u) < 1
    exact = x.double().sum(1)  # at most 24 + 20 + 7 bits: exact in float64
    assert bool(((found - exact).abs() <= gamma * x.double().abs().sum(1)).all())


def test_addends_that_do_not_fit_are_rounded_first_and_only_they_are_counted():
    ledger = ns.Ledger()
    ar = ns.Arithmetic("fp32/nearest/fp16:sequential", ledger=ledger)
    x = torch.tensor([[1.0, 70000.0, 2049.0, 2.0**-26, 2.0**-24, math.inf, math.nan, 2.5]])
    ar.sum(x[:, :5], 1)
    load = ledger["sum.load"]
    assert (load.count, load.overflow, load.underflow, load.subnormal) == (3, 1, 1, 0)
    assert (load.largest, load.smallest) == (70000.0, 2.0**-26)
    ar.sum(x[:, 5:], 1)
    assert ledger["sum.load"].count == 3


def test_counters_of_additions_tell_producers_from_propagators():
    ledger = ns.Ledger(inexact=True)
    ar = ns.Arithmetic("fp16/nearest/fp16:sequential", ledger=ledger)
    ar.sum(torch.tensor([[65504.0, 65504.0, 1.0, -math.inf, 1.0], [2048.0, 1.0, 0.0, -2048.0, 2.0**-24]]), 1)
    tally = ledger[ns.Site("", "sum")]
    assert (tally.count, tally.overflow, tally.inf_propagated) == (8, 1, 1)
    assert (tally.nan_produced, tally.nan_propagated, tally.subnormal, tally.underflow) == (1, 1, 1, 0)
    assert (tally.inexact, tally.largest, tally.smallest) == (2, 131008.0, 2.0**-24)


SHAPES = [
    ((3, 5, 7), (0, 2)),
    ((3, 5, 7), (1,)),
    ((3, 5, 7), (0, 1)),
    ((2, 3, 4, 5), (0, 2, 3)),
    ((2, 3, 4, 5), (1, 3)),
    ((2, 3, 4, 5), None),
]


@pytest.mark.parametrize(("shape", "dims"), SHAPES)
@pytest.mark.parametrize("order", ["sequential", "pairwise", "blocked4", "lanes4"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_strides_do_not_matter(order, shape, dims, rounding):
    x = drawn(shape, "fp16")
    turned = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    gaps = torch.stack([x, x], -1)[..., 1]
    assert turned.stride() != x.stride() or x.dim() == 1
    results = []
    for values in (x, turned, gaps):
        ar = ns.Arithmetic(f"fp16/{rounding}/fp16:{order}", key=ns.Key(seed=1))
        results.append(ar.sum(values, dims, keepdim=True))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("shape", "dims"), SHAPES)
@pytest.mark.parametrize("order", ["sequential", "pairwise", "blocked4", "lanes4"])
def test_reduced_axes_are_flattened_in_row_major_order(order, shape, dims):
    x = drawn(shape, "fp16")
    ar = ns.Arithmetic("fp16", accumulate=f"fp16:{order}")
    axes = tuple(range(len(shape))) if dims is None else dims
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    flat = x.permute(*kept, *axes).reshape(*(shape[axis] for axis in kept), -1)
    assert torch.equal(ar.sum(x, dims), ar.sum(flat, -1))


def test_a_stochastic_addition_draws_by_the_first_leaf_of_its_right_operand():
    x = drawn((2, 3, 5), "fp16")
    key = ns.Key(seed=7)
    found = ns.Arithmetic("fp16/stochastic/fp16:pairwise", key=key).sum(x, (0, 2))
    # The site of the additions, as section 8 of the semantics spells it, and the element's index in x.
    site = key.at("sum[forward]")
    index = torch.arange(30).view(2, 3, 5)
    for channel in range(3):
        values, leaves = x[:, channel].flatten(), index[:, channel].flatten()
        while len(values) > 1:
            joined = []
            for i in range(0, len(values) - 1, 2):
                bits = torch.zeros(30, dtype=torch.float64)
                bits[leaves[i + 1]] = values[i].double() + values[i + 1].double()
                joined.append(ns.cast(bits, "fp16", rounding="stochastic", key=site)[leaves[i + 1]].float())
            odd = len(values) % 2
            values, leaves = torch.stack([*joined, *values[len(values) - odd :]]), leaves[::2]
        assert found[channel] == values[0]


def test_a_bad_axis_is_named():
    with pytest.raises(ns.NormstabError, match=r"dim 3 .* -2 \.\. 1"):
        ns.Arithmetic("fp16").sum(torch.zeros(2, 2), 3)
    with pytest.raises(ns.NormstabError, match="twice"):
        ns.Arithmetic("fp16").sum(torch.zeros(2, 2), (0, -2))
