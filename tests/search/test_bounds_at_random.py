"""No deterministic bound is violated over random cases of every kind, a probabilistic one no more often than stated.

A case is one result: of a sum, a mean, a product, a softmax, or the scale of a norm. In every run some thousands of
each kind; nightly a million of each. `python -m tests.search.test_bounds_at_random CASES` prints the counts.
"""

import math
import sys

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.reduction import Reduction
from normstab.search.bound_cases import CASES, Bounding, norm_cases

FAILURE = 1e-3
LENGTHS = (1, 2, 7, 64, 300)
aten = torch.ops.aten


def summed(x, bounding, ar):
    return CASES["sum"](bounding, aten.sum.dim_IntList, (x, [1]), {}, ar.cast(ar.sum(x, 1)))


def averaged(x, bounding, ar):
    return CASES["mean"](bounding, aten.mean.dim, (x, [1]), {}, ar.mean(x, 1))


def multiplied(x, bounding, ar):
    half = max(1, math.isqrt(len(x)))
    a, b = x[:half], x[-half:].T
    return CASES["mm"](bounding, aten.mm.default, (a, b), {}, ar.matmul(a, b))


def softmaxed(x, bounding, ar):
    model = nn.Softmax(1)
    with ns.simulate(model, bounding.precision, seed=1):
        found = model(x.clamp(-60000, 60000)).float()
    return CASES["_softmax"](bounding, aten._softmax.default, (x, 1, False), {}, found)


def normalized(norm):
    def measure(x, bounding, ar):
        reduction = Reduction.of_layer(x.shape, (x.shape[1],))
        return norm_cases(bounding, x, Scheme(parse_norm(norm), eps=1e-3), reduction, ns.Key(3, norm))

    return measure


KINDS = {
    **{f"sum {order}": (summed, f"fp16:{order}") for order in ("sequential", "pairwise", "blocked16", "lanes8")},
    **{f"mean {order}": (averaged, f"fp16:{order}") for order in ("sequential", "pairwise")},
    "mean blockwise": (averaged, "fp16:sequential;mean=blockwise16"),
    **{f"product {order}": (multiplied, f"fp32;matmul=fp16:{order}") for order in ("sequential", "pairwise")},
    "softmax": (softmaxed, "fp32"),
    **{f"norm {norm}": (normalized(norm), "fp16:lanes8") for norm in ("l2", "l1", "linf")},
}


def drawn(ar, rows, n, generator):
    """Return rows of n numbers of the format, of a random scale and offset, some of them subnormal."""
    scale = 2.0 ** float(torch.randint(-16, 4, (1,), generator=generator))
    offset = float(torch.randint(-1, 2, (1,), generator=generator))
    return ar.cast((torch.randn(rows, n, generator=generator) + offset) * scale)


def violations(kind, rounding, cases):
    """Return how many results were compared, and how many lie beyond the deterministic and the probabilistic bound."""
    measure, accumulation = KINDS[kind]
    precision = ns.Precision.parse(f"fp16/{rounding}/{accumulation}")
    bounding, generator = Bounding(precision, FAILURE), torch.Generator().manual_seed(len(kind))
    compared = beyond = unlikely = draw = 0
    rows = min(max(64, cases // 20), 20_000)
    while compared < cases:
        ar = ns.Arithmetic(precision, key=ns.Key(draw, kind))
        x = drawn(ar, rows, LENGTHS[draw % len(LENGTHS)], generator)
        for case in measure(x, bounding, ar):
            fits = case.found.isfinite() & (case.condition.reshape(case.found.shape) < 65504.0 / 2)
            error = (case.found - case.exact).abs()
            if case.has_overflowed:
                continue
            compared += int(fits.sum())
            beyond += int((error > case.worst)[fits].sum())
            unlikely += int((error > case.likely)[fits].sum())
        draw += 1
    return compared, beyond, unlikely


@pytest.mark.parametrize("cases", [4000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_is_violated_more_often_than_stated(kind, rounding, cases):
    compared, beyond, unlikely = violations(kind, rounding, cases)
    assert compared >= cases and beyond == 0
    assert unlikely <= FAILURE * compared + 4 * math.sqrt(FAILURE * compared)


def test_the_bound_of_another_order_is_violated():
    """What a pairwise sum may err by is too little for one addition after another."""
    ar = ns.Arithmetic("fp16/nearest/fp16:sequential")
    x = ar.cast(torch.full((1, 300), 1.1))
    case = summed(x, Bounding(ns.Precision.parse("fp16/nearest/fp16:pairwise"), FAILURE), ar)[0]
    assert bool(((case.found - case.exact).abs() > case.worst).all())


if __name__ == "__main__":
    for kind in KINDS:
        for rounding in ("nearest", "stochastic"):
            print(kind, rounding, *violations(kind, rounding, int(sys.argv[1])), flush=True)
