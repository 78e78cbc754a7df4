"""Where the norms break: the story of l2 in half precision, and inputs that nobody wishes for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normstab.norms import modules as norms
from normstab.norms.catalogue import NORMS
from normstab.norms.scale_range import scale_range
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import First, Ledger, Site


def run(norm: str, precision: str, x: Tensor, eps: float = 1e-5) -> tuple[Ledger, Tensor, Tensor]:
    """Run a batch norm forward and backward; return its ledger, output and input gradient."""
    layer, ledger = norms.BatchNorm1d(x.shape[1], norm=norm, eps=eps), Ledger()
    layer.arithmetic = Arithmetic(precision, ledger=ledger).at("bn")
    leaf = x.clone().requires_grad_()
    z = layer(leaf)
    z.backward(torch.linspace(-1, 1, x.numel()).view_as(x))
    assert leaf.grad is not None
    return ledger, z.detach(), leaf.grad


def test_l2_overflows_at_its_square_where_l1_and_linf_do_not() -> None:
    x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0)) * 300
    ledger, z, grad = run("l2", "fp16/nearest/fp32", x)
    assert ledger["bn.square"].overflow > 0
    assert ledger.first("overflow") == First(Site("bn", "square"), 0)
    assert torch.equal(z, torch.zeros_like(z))
    assert grad.isfinite().all()
    assert z.isfinite().all()
    for norm in ("l1", "linf", "top10", "range"):
        ledger, z, grad = run(norm, "fp16/nearest/fp32", x)
        assert ledger.total().overflow == 0
        assert 0.5 < float(z.std()) < 1.5
        assert grad.isfinite().all()
    ledger, z, _ = run("l2", "fp16/nearest/fp32;square=fp32;variance=fp32", x)
    assert ledger.total().overflow == 0
    assert abs(float(z.std()) - 1) < 0.01


def test_l1_keeps_ten_more_binades_than_l2_in_half_precision() -> None:
    # Measured with an independent script.
    for precision, least_l1, most_l2 in (
        ("fp16/nearest/fp16:blocked64;mean=blockwise64", 26, 18),
        ("fp16/nearest/fp16:blocked64", 19, 15),
    ):
        l1, l2 = (scale_range(norm, precision, n=16384) for norm in ("l1", "l2"))
        assert l1.width() >= least_l1
        assert l2.width() <= most_l2
        if "blockwise" in precision:
            assert l1.width() - l2.width() >= 9


def test_below_four_fifths_of_sigma_the_l1_sum_overflows_before_that_of_l2() -> None:
    # n = 200000, sigma = 1/2: the sum of abs d is 79800, that of d d 50000.
    x = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(1)) * 0.5
    precision = "fp16/nearest/fp32;sum=fp16"
    assert run("l1", precision, x)[0]["bn.dispersion.sum.cast"].overflow == 1
    assert run("l2", precision, x)[0]["bn.dispersion.sum.cast"].overflow == 0


def test_a_sequential_half_accumulator_stalls_instead_of_overflowing() -> None:
    x = torch.ones(4096, 1)
    ledger, _, _ = run("l1", "fp16/nearest/fp16:sequential", x)
    assert ledger["bn.mean.sum"].overflow == 0
    assert ledger["bn.mean.sum"].largest == 2049.0


@pytest.mark.parametrize("norm", NORMS)
def test_an_infinite_input_is_named_where_it_becomes_nan(norm: str) -> None:
    x = torch.randn(32, 2)
    x[3, 1] = math.inf
    ledger, z, _ = run(norm, "fp16/nearest/fp32", x)
    assert ledger.first("nan_produced") == First(Site("bn", "centre"), 0)
    assert z[:, 0].isfinite().all()
    assert ledger["bn.mean.sum"].inf_propagated > 0


@pytest.mark.parametrize("norm", NORMS)
def test_a_nan_in_the_input_is_propagated_and_never_blamed_on_the_layer(norm: str) -> None:
    x = torch.randn(32, 2)
    x[3, 1] = math.nan
    ledger, z, grad = run(norm, "fp16/nearest/fp32", x)
    assert ledger.total().nan_produced == 0
    assert ledger["bn.input"].nan_propagated == 1
    assert z[:, 1].isnan().all()
    assert grad[:, 0].isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_constant_channel_gives_zeros_with_eps_and_names_the_division_without(norm: str) -> None:
    for value in (0.0, 7.0):
        x = torch.full((32, 2), value)
        ledger, z, grad = run(norm, "fp16/nearest/fp32", x)
        assert torch.equal(z, torch.zeros_like(z))
        assert ledger.total().nan_produced == 0
        ledger, z, grad = run(norm, "fp16/nearest/fp32", x, eps=0.0)
        assert ledger.first("nan_produced") == First(Site("bn", "divide"), 0)
        assert z.isnan().all()
        assert grad.isnan().any()


@pytest.mark.parametrize("norm", NORMS)
def test_an_eps_that_is_zero_in_the_format_is_an_underflow_of_its_constant(norm: str) -> None:
    ledger, z, _ = run(norm, "fp16/nearest/fp32", torch.randn(32, 2), eps=1e-12)
    assert ledger["bn.eps.const"].underflow == 1
    assert z.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_sum_beyond_the_format_is_named_with_its_direction(norm: str) -> None:
    x = torch.full((4096, 1), 100.0) + torch.arange(4096).view(-1, 1) % 7
    ledger, z, _ = run(norm, "fp16/nearest/fp16:pairwise", x)
    assert ledger.first("overflow") == First(Site("bn", "mean.sum"), 0)
    assert not z.isfinite().all()
    layer, ledger = norms.BatchNorm1d(1, norm=norm), Ledger()
    layer.arithmetic = Arithmetic("fp16/nearest/fp16:pairwise", ledger=ledger).at("bn")
    leaf = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer(leaf).backward(torch.full((4096, 1), 1000.0))
    assert ledger.first("overflow") == First(Site("bn", "dbeta.sum", "backward"), 0)


def test_gradients_that_vanish_are_counted_in_the_backward_direction() -> None:
    x = torch.randn(64, 2)
    layer, ledger = norms.BatchNorm1d(2, norm="l1"), Ledger()
    layer.arithmetic = Arithmetic("fp16", ledger=ledger).at("bn")
    leaf = x.requires_grad_()
    layer(leaf).backward(torch.full_like(x, 1e-9))
    assert ledger.first("underflow") == First(Site("bn", "grad", "backward"), 0)
    assert torch.equal(leaf.grad, torch.zeros_like(x))


def test_in_fixed_point_l2_holds_half_the_binades_of_the_norms_without_squares() -> None:
    widths = {norm: scale_range(norm, "q6.9", 4096).width() for norm in ("l2", "l1", "range", "linf", "top10")}
    assert widths == {"l2": 4, "l1": 8, "range": 8, "linf": 8, "top10": 7}


def test_scale_range_is_empty_where_nothing_holds_and_rejects_what_has_no_range() -> None:
    # A sequential sum in e4m3fn stalls at 16.
    assert scale_range("l1", "e4m3fn/nearest/e4m3fn:sequential", 4096).accurate == (0, -1)
    wide = scale_range("l1", "bf16/nearest/fp32", 64)
    assert wide.accurate[0] < -100
    assert wide.accurate[1] > 100
    for arguments, message in (
        (("l2", "native", 64), "number format"),
        (("l2", "fp16", 0), "at least one"),
        (("top10", "fp16", 4), "only 4"),
        (("l9", "fp16", 4), "unknown norm"),
    ):
        with pytest.raises(ValueError, match=message):
            scale_range(*arguments)


def test_welfords_variance_is_formed_without_squares_and_cast_once() -> None:
    # d d of the tails and M2 are beyond fp16, M2 / n is not: the accumulator is fp32.
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0)) * 200
    ledger, z, _ = run("l2", "fp16/nearest/fp32;mean=welford", x)
    assert ledger.total().overflow == 0
    assert "bn.square" not in {site.path for site in ledger}
    assert ledger["bn.variance"].count == 2
    assert ledger["bn.mean.m2"].largest > 65504
    torch.testing.assert_close(z, (x - x.mean(0)) / x.std(0, correction=0), rtol=2e-3, atol=2e-3)
