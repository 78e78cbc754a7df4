"""Laws of normalization that hold bit for bit, or within a bound derived here, in emulated arithmetic."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normstab.norms import modules as norms
from normstab.norms.catalogue import NORMS, parse_norm
from normstab.norms.functional import Forward, Reduction, Scheme, normalize_backward, normalize_forward
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key

PRECISIONS = ["fp16", "bf16", "fp16/up/fp16:pairwise", "fp16/stochastic/fp32", "bf16/to-odd/bf16:blocked8", "tf32"]


def integers(n: int, seed: int, channels: int = 3) -> Tensor:
    """Return (n, channels) nonzero integers of at most 7 bits in units of 2^-6."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(1, 128, (n, channels), generator=generator)
    sign = torch.randint(0, 2, (n, channels), generator=generator) * 2 - 1
    return (magnitude * sign).float() * 2.0**-6


def normalized(x: Tensor, norm: str, precision: str, ledger: Ledger | None = None) -> Forward:
    """Return the batch-normalized x with eps = 0."""
    ar = Arithmetic(precision, ledger=ledger, key=Key(seed=1)).at("bn")
    return normalize_forward(x, None, None, Scheme(parse_norm(norm), eps=0.0), Reduction.of_batch(x.shape), ar)


@settings(max_examples=150)
@given(
    norm=st.sampled_from([*NORMS, "top3"]),
    precision=st.sampled_from(PRECISIONS),
    k=st.integers(-12, 12),
    n=st.sampled_from([16, 17, 96]),
    seed=st.integers(0, 1000),
)
def test_scaling_by_a_power_of_two_scales_s_and_leaves_y(norm: str, precision: str, k: int, n: int, seed: int) -> None:
    # Whenever neither ledger shows an overflow, an underflow to zero or a subnormal.
    x, ledgers = integers(n, seed), (Ledger(), Ledger())
    found = [
        normalized(x * factor, norm, precision, ledger) for factor, ledger in zip((1.0, 2.0**k), ledgers, strict=True)
    ]
    totals = [ledger.total() for ledger in ledgers]
    assume(all(t.overflow == t.underflow == t.subnormal == 0 for t in totals))
    assert torch.equal(found[1].output, found[0].output)
    assert torch.equal(found[1].scale, found[0].scale * 2.0**k)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_condition_of_the_scaling_law_is_met_by_ordinary_values(norm: str, precision: str) -> None:
    ledger = Ledger()
    x = integers(64, 0).sign() * (1.0 + integers(64, 0).abs())
    normalized(x, norm, precision, ledger)
    total = ledger.total()
    assert total.overflow == total.underflow == 0


@settings(max_examples=60)
@given(
    norm=st.sampled_from([*NORMS, "top3"]),
    precision=st.sampled_from(["fp16", "fp16/up", "fp16/nearest/exact", "tf32"]),
    shift=st.integers(-8, 8),
    seed=st.integers(0, 1000),
)
def test_a_shift_that_every_step_represents_changes_nothing(norm: str, precision: str, shift: int, seed: int) -> None:
    # Each channel sums to zero and x + shift has at most 10 bits, so mean and difference are exact.
    half = integers(32, seed)
    x = torch.cat([half, -half])
    assert torch.equal(normalized(x + shift, norm, precision).output, normalized(x, norm, precision).output)


@settings(max_examples=60)
@given(
    norm=st.sampled_from(["l2", "l1", "linf", "range", "lp3"]),
    precision=st.sampled_from(["fp16/nearest/exact", "bf16/down/exact", "e4m3fn/nearest/exact"]),
    seed=st.integers(0, 1000),
)
def test_with_exact_sums_a_permuted_batch_gives_the_permuted_output(norm: str, precision: str, seed: int) -> None:
    x = integers(48, seed)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(normalized(x[order], norm, precision).output, normalized(x, norm, precision).output[order])


@pytest.mark.parametrize("order", ["sequential", "pairwise", "blocked8", "lanes8"])
def test_with_ordered_sums_a_permutation_moves_the_mean_by_no_more_than_two_sum_errors(order: str) -> None:
    n, u = 256, 2.0**-11
    height = {"sequential": n - 1, "pairwise": 8, "blocked8": 7 + 31, "lanes8": 31 + 3}[order]
    for seed in range(20):
        x = integers(n, seed)
        permuted = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        found = [normalized(v, "l1", f"fp16/nearest/fp16:{order}").mean.double() for v in (x, permuted)]
        gamma = height * u / (1 - height * u)
        bound = 2 * (gamma * (1 + u) + u) * x.abs().double().mean(0).view(1, -1, 1)
        assert ((found[0] - found[1]).abs() <= bound).all()


@settings(max_examples=40)
@given(
    norm=st.sampled_from(["l2", "l1", "lp3", "lp2"]),
    precision=st.sampled_from(["fp16/nearest/exact", "fp16/up/exact", "bf16/nearest/exact"]),
    seed=st.integers(0, 1000),
)
def test_with_exact_sums_a_duplicated_batch_gives_the_output_twice(norm: str, precision: str, seed: int) -> None:
    x = integers(33, seed)
    once, twice = normalized(x, norm, precision), normalized(torch.cat([x, x]), norm, precision)
    assert torch.equal(twice.output, torch.cat([once.output, once.output]))
    assert torch.equal(twice.scale, once.scale)


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "range", "lp3"])
def test_the_gradient_of_the_input_is_that_of_fp64_within_a_small_multiple_of_the_unit_roundoff(norm: str) -> None:
    # Seven roundings of terms bounded by max |g| (1 + |y| C): a factor 64 covers them for |y| <= 4.
    generator = torch.Generator().manual_seed(3)
    x, grad = torch.randn(64, 4, generator=generator), torch.randn(64, 4, generator=generator)
    scheme, reduction = Scheme(parse_norm(norm), eps=0.0), Reduction.of_batch(x.shape)
    found = []
    for precision in ("fp64", "tf32/nearest/fp32"):
        ar = Arithmetic(precision)
        values = Arithmetic("tf32").cast(x), Arithmetic("tf32").cast(grad)
        wide = [v.double() if precision == "fp64" else v for v in values]
        done = normalize_forward(wide[0], None, None, scheme, reduction, ar)
        found.append(normalize_backward(wide[1], done.saved, scheme, reduction, ar).input.double())
    assert (found[1] - found[0]).abs().max() <= 64 * 2.0**-11 * grad.abs().max()


class Net(nn.Module):
    """Two layers under a norm with eps = 0, and a head."""

    def __init__(self, norm: str, precision: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn1 = norms.BatchNorm2d(8, norm=norm, eps=0.0)
        self.linear = nn.Linear(8 * 36, 16)
        self.bn2 = norms.BatchNorm1d(16, norm=norm, eps=0.0)
        self.head = nn.Linear(16, 4)
        for layer in (self.bn1, self.bn2):
            layer.arithmetic = precision

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv(x)).relu().flatten(1)
        return self.head(self.bn2(self.linear(x)).relu())


def losses_of(net: Net, a: float, momentum: float) -> list[float]:
    """Train with the weights under a norm scaled by `a` and their learning rate by a^2; return every loss."""
    scaled = [*net.conv.parameters(), *net.linear.parameters()]
    for parameter in scaled:
        parameter.data.mul_(a)
    others = [p for p in net.parameters() if not any(p is q for q in scaled)]
    groups = [{"params": scaled, "lr": 0.05 * a * a}, {"params": others, "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=momentum, foreach=False)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(5):
        x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "top10", "range", "lp3"])
@pytest.mark.parametrize("precision", ["native", "bf16", "fp32/nearest/fp32"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaled_weights_and_squared_learning_rate_follow_the_same_trajectory(
    norm: str, precision: str, momentum: float
) -> None:
    # torch's native l2 layer does not take eps = 0, ours does.
    torch.manual_seed(1)
    net = Net(norm, precision)
    expected = losses_of(copy.deepcopy(net), 1.0, momentum)
    assert all(math.isfinite(loss) for loss in expected)
    assert len(set(expected)) == 5
    for a in (0.25, 8.0):
        assert losses_of(copy.deepcopy(net), a, momentum) == expected
