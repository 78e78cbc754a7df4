"""Reductions over nothing: an empty sum is +0, an empty mean NaN, and running statistics stay as they were.

The law: a reduction's result does not depend on which implementation serves, also where there is nothing to
reduce. Every case runs with the default precision too, whose kernels are the ones that users meet.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normstab as ns

PRECISIONS = (
    "fp16",
    "fp32",
    "fp64",
    "q7.8",
    "bf16/nearest/bf16:sequential",
    "fp16/up",
    "fp16/nearest/exact",
    "fp16/nearest/native",
    "fp16/nearest/fp16:pairwise",
    "fp16/nearest/fp16:blocked4+kahan",
    "fp16;mean=welford",
    "fp16;mean=blockwise4",
)
SHAPES = (((0, 5), 0), ((5, 0), 1), ((0, 5), 1), ((0,), None), ((2, 0, 3), (0, 1)), ((2, 0, 3), 1))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def dirty_memory():
    """Leave memory that is not zero behind, which an unwritten result would show."""
    for size in (1, 5, 6, 64):
        torch.full((size,), 7.0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_empty_sum_is_plus_zero_and_an_empty_mean_is_nan(precision, dtype):
    ledger = ns.Ledger()
    ar = ns.Arithmetic(precision, ledger=ledger)
    for shape, dim in SHAPES:
        x = torch.zeros(shape, dtype=dtype)
        expected = x.double().sum(dim)
        total, mean = ar.sum(x, dim), ar.mean(x, dim)
        assert total.shape == mean.shape == expected.shape
        assert (total == 0).all() and not torch.signbit(total).any()
        assert mean.isnan().all()
    roundings = ["mean"] if "native" not in precision else ["mean", "sum"]  # torch's own sum is rounded once
    assert ledger.total().count == sum(ledger[name].count for name in roundings)


@pytest.mark.parametrize("matmul", ("native", "exact", "fp16", "fp32:sequential", "fp16:blocked2+fused", "q7.8"))
def test_a_product_over_nothing_is_plus_zero(matmul):
    ar = ns.Arithmetic(f"fp16;matmul={matmul}")
    for a, b in (((3, 0), (0, 2)), ((0, 3), (3, 2)), ((2, 3), (3, 0)), ((0,), (0,)), ((2, 3, 0), (2, 0, 4))):
        found, expected = ar.matmul(torch.zeros(a), torch.zeros(b)), torch.zeros(a) @ torch.zeros(b)
        assert found.shape == expected.shape and torch.equal(found, expected)


@pytest.mark.parametrize("norm", ("l2", "l1", "linf", "top2", "range", "lp3"))
@pytest.mark.parametrize("precision", ("fp16", "fp16/nearest/fp16:sequential", "fp16/up", "fp16;mean=welford"))
def test_a_norm_of_an_empty_batch_leaves_statistics_and_parameters_alone(norm, precision):
    net = nn.Sequential(nn.BatchNorm2d(3))
    ns.replace_norms_(net, norm)
    net[0].arithmetic = precision
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    y = net(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert net[0].running_mean.tolist() == [0.0] * 3 and net[0].running_var.tolist() == [1.0] * 3
    assert net[0].weight.grad.tolist() == net[0].bias.grad.tolist() == [0.0] * 3


@pytest.mark.parametrize("norm", ("l2", "l1"))
def test_a_layer_norm_of_no_rows_gives_zero_gradients(norm):
    net = nn.Sequential(nn.LayerNorm(4))
    ns.replace_norms_(net, norm)
    net[0].arithmetic = "fp16"
    net(torch.zeros(0, 4)).sum().backward()
    assert net[0].weight.grad.tolist() == net[0].bias.grad.tolist() == [0.0] * 4
