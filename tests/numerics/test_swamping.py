"""The variance that a narrow accumulator keeps, as predicted, against normstab's own sums in that accumulator."""

import pytest
import torch

import normstab as ns
from normstab.numerics.bounds import accumulator_bits, variance_retention
from normstab.numerics.precision import Accumulation
from normstab.numerics.sums.steps_of_sums import chunks

TRIALS = 4000  # the standard error of a variance over them is sqrt(2 / 4000) = 2.2 % of it
NOISE = (2 / TRIALS) ** 0.5


def retained(bits, n, *, addend=23, rounding="nearest", order="sequential"):
    """The variance of sums of `n` normal numbers in an accumulator of `bits` trailing bits, as a share of the exact."""
    x = ns.cast(torch.randn(TRIALS, n, generator=torch.Generator().manual_seed(n)), f"e8m{addend}")
    ar = ns.Arithmetic(f"fp32/{rounding}/e8m{bits}:{order}")
    return float(ar.sum(x, 1).double().var() / x.double().sum(1).var())


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_the_predicted_bits_keep_the_variance_and_four_fewer_lose_it(n):
    bits = accumulator_bits(n)
    assert retained(bits, n) == pytest.approx(1.0, abs=4 * NOISE)
    assert retained(bits - 4, n) < 0.9
    assert variance_retention(bits - 4, n) < 0.9


@pytest.mark.parametrize("addend", [None, 2, 5, 10])
def test_the_prediction_promises_no_more_than_is_kept(addend):
    """Both forms are safe for sums to nearest, whose addends lose nothing on average where they are swamped in part.

    Below three bits they are not: a sum that stalled there still counts as what it had reached.
    """
    for bits in range(3, 9):
        kept = retained(bits, 1024, addend=addend or 23)
        assert variance_retention(bits, 1024, addend) <= kept + 4 * NOISE


def test_partial_swamping_loses_more_the_more_bits_an_addend_has():
    for bits in range(2, 12):
        full = variance_retention(bits, 1024)
        kept = [variance_retention(bits, 1024, addend) for addend in (1, 2, 4, bits)]
        assert all(0.0 < share <= full + 1e-12 for share in kept)
    with_stages = [variance_retention(bits, 1024, 5) for bits in range(1, 12)]
    assert with_stages == sorted(with_stages) and with_stages[-1] == pytest.approx(1.0, abs=1e-6)


def test_what_is_lost_is_the_mean_square_of_the_bits_that_are_cut_off():
    """Of j bits of a magnitude, all equally likely: the mean of k^2 over k below 2^j."""
    for j in range(1, 8):
        cut = torch.arange(2**j, dtype=torch.float64)
        assert float(cut.square().mean()) == (2**j - 1) * (2 ** (j + 1) - 1) / 6


def test_truncating_accumulators_lose_far_more_than_is_predicted():
    """Toward zero every addition errs to one side: the prediction is not for them, and limits.md says so."""
    bits = accumulator_bits(1024, 5)
    assert retained(bits, 1024, addend=5, rounding="toward-zero") < 0.5 < variance_retention(bits, 1024, 5)
    assert retained(bits, 1024, addend=5) > 0.95


def test_chunks_need_fewer_bits_and_their_sums_keep_the_variance():
    assert chunks(1000, Accumulation.parse("fp16:sequential")) == (1000,)
    assert chunks(1000, Accumulation.parse("fp16:blocked64")) == (64, 16)
    assert chunks(1000, Accumulation.parse("fp16:lanes64")) == (16, *(2,) * 6)
    assert chunks(1000, Accumulation.parse("fp16:pairwise")) == (2,) * 10
    bits = accumulator_bits(4096, 5, (64, 64))
    assert bits < accumulator_bits(4096, 5)
    assert retained(bits, 4096, addend=5, order="blocked64") == pytest.approx(1.0, abs=4 * NOISE)


# Table 1 of Sakr et al., ResNet-18, forward: bits of one sum, and of chunks of 64. The published pairs are from a
# reading of the paper by others, not from the paper; the lengths are 9 times the channels of the residual blocks.
PUBLISHED = {576: (7, 5), 1152: (8, 5), 2304: (8, 5), 4608: (9, 6)}


@pytest.mark.parametrize(("n", "bits"), PUBLISHED.items())
def test_published_bits_are_met_within_one(n, bits):
    """Products of FP8 numbers (1, 5, 2) have 5 trailing bits."""
    found = (accumulator_bits(n, 5), accumulator_bits(n, 5, (64, n // 64)))
    assert all(abs(ours - theirs) <= 1 for ours, theirs in zip(found, bits, strict=True))
