"""The tolerance of a test: each operation's own bound, with its n, order and unit roundoff, carried to the output."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import normstab as ns
from normstab.norms.replace import replace_norms_
from normstab.numerics.bounds import Step, worst_bound
from normstab.testing.assertions import assert_stable, check_stable
from normstab.testing.check import check
from normstab.testing.error_bounds.relative_steps import Quanta
from normstab.testing.error_bounds.run_errors import RunErrors


class Calls(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def linf_norm(width):
    model = nn.Sequential(nn.BatchNorm1d(width))
    replace_norms_(model, "linf")
    return model


ONE_OPERATION = {
    "sum": lambda: Calls(lambda x: x.sum(1)),
    "mean": lambda: Calls(lambda x: x.mean(0)),
    "product": lambda: Calls(lambda x: x @ x.T),
    "linear": lambda: nn.Linear(96, 7),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (6, 16)), nn.Conv1d(6, 5, 3)),
    "transposed convolution": lambda: nn.Sequential(nn.Unflatten(1, (6, 16)), nn.ConvTranspose1d(6, 5, 3)),
    "variance": lambda: Calls(lambda x: x.var(1)),
    "cube": lambda: Calls(lambda x: x.pow(3)),
    "softmax": lambda: nn.Softmax(1),
    "layer norm": lambda: nn.LayerNorm(96),
    "batch norm": lambda: nn.BatchNorm1d(96),
    "evaluated norm": lambda: nn.BatchNorm1d(96).eval(),
    "group norm": lambda: nn.GroupNorm(4, 96),
    "rms norm": lambda: nn.RMSNorm(96, eps=1e-5),
    "linf norm": lambda: linf_norm(96),
    "attention": lambda: Calls(lambda x: functional.scaled_dot_product_attention(*[x.view(4, 8, 96)] * 3)),
}
PRECISIONS = [
    "fp16",
    "bf16;matmul=bf16:sequential",
    "fp16/nearest/fp16:sequential;matmul=fp16:pairwise",
    "fp16/up/fp16:lanes8;matmul=fp16:sequential",
    "fp16/stochastic/bf16:pairwise",
    "e8m12/nearest/e8m12:sequential",
]


def run_in(model, x, precision):
    """Return the output and the steps of its forward operations; operands are numbers of the format already."""
    bounds = RunErrors()
    bounds.watch(model)
    with ns.simulate(model, precision, watcher=bounds.see) as run:
        found = model(x).detach().double()
    # What torch itself computes wide inside 16 bits has but the cast of its result.
    steps = bounds.steps.get("forward") or bounds.of_outputs(run.ledger, ns.Precision.parse(precision))
    return found, [s.beside(float(found.abs().max())) if isinstance(s, Quanta) else s for s in steps]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ONE_OPERATION)
def test_no_operation_errs_by_more_than_its_own_deterministic_bound(name, precision):
    for seed in (0, 1, 3):
        torch.manual_seed(seed)
        model, format = ONE_OPERATION[name](), ns.Precision.parse(precision).format()
        x = ns.cast(torch.randn(32, 96) * 2.0 ** (seed - 2) + (seed == 3), format)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(ns.cast(p, format))
        found, steps = run_in(model, x, precision)
        exact = model.double()(x.double()).detach()
        assert steps
        error = float((found - exact).abs().max() / exact.abs().max())
        assert error <= worst_bound(steps).relative * (1 + 2.0**-20)


SCALED_ADDENDS = {
    "addmm": lambda x: torch.addmm(x[:, :32], x, x.T, beta=-2.5, alpha=-0.3),
    "addbmm": lambda x: torch.addbmm(x[:, :32], *[x.view(32, 3, 32).transpose(0, 1)] * 2, beta=-1.5, alpha=0.7),
    "baddbmm": lambda x: torch.baddbmm(x[:, :32].expand(3, 32, 32), *[x.view(32, 3, 32).transpose(0, 1)] * 2, alpha=-3),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SCALED_ADDENDS)
def test_negative_factors_and_the_sum_over_a_batch_are_in_the_bound(name, precision):
    """The condition was formed with the factors' signs: alpha = -0.3 made it smaller than the result."""
    for seed in range(3):
        torch.manual_seed(seed)
        x = ns.cast(torch.rand(32, 96), ns.Precision.parse(precision).format())
        found, steps = run_in(Calls(SCALED_ADDENDS[name]), x, precision)
        exact = SCALED_ADDENDS[name](x.double())
        error = float((found - exact).abs().max() / exact.abs().max())
        assert error <= worst_bound(steps).relative * (1 + 2.0**-20)


def test_a_bound_beyond_the_largest_number_is_infinite():
    assert worst_bound([Step(1, 0.9)] * 400).relative == math.inf
    assert worst_bound([Step(1, 0.9)] * 100).relative < math.inf


NOTHING = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "product": lambda x: x @ x.T @ x,
    "convolution": lambda x: functional.conv1d(x[:, None], torch.ones(2, 1, 3, requires_grad=True)),
}


@pytest.mark.parametrize("name", NOTHING)
def test_operations_on_nothing_have_a_bound(name):
    assert check_stable(Calls(NOTHING[name]), torch.zeros(0, 7), precision="fp16").verdict == "STABLE"


class Named(nn.Module):
    """Calls a norm by the name of its argument."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x=x)


def test_a_norm_called_by_keyword_is_seen():
    torch.manual_seed(0)
    x = torch.randn(32, 16)
    model = Named(linf_norm(16)[0])
    assert check_stable(model, x, precision="fp16").differences[0].tolerance == check_stable(
        linf_norm(16), x, precision="fp16").differences[0].tolerance  # fmt: skip
    assert any("norm" in site.site for site in ns.search.bounds(model, (x,), precision="fp16").sites)


def test_the_quanta_of_a_mean_grow_as_its_deviations_do():
    """In fixed point the error of a mean is divided by a small s afterwards."""
    torch.manual_seed(0)
    x = ns.cast(0.02 * torch.randn(64, 8), "q3.12")
    found, steps = run_in(nn.BatchNorm1d(8, eps=2.0**-12), x, "q3.12")
    exact = nn.BatchNorm1d(8, eps=2.0**-12).double()(x.double()).detach()
    error = float((found - exact).abs().max() / exact.abs().max())
    assert error <= worst_bound(steps).relative


@pytest.mark.parametrize("make", [
    lambda: nn.BatchNorm1d(16, eps=0.1), lambda: nn.LayerNorm(16, eps=0.1), lambda: nn.GroupNorm(4, 16, eps=0.1),
    lambda: nn.RMSNorm(16, eps=0.1),
])  # fmt: skip
def test_the_gradient_of_a_norm_knows_its_eps(make):
    """Without it a nearly constant input, whose scale eps decides, was allowed anything."""
    torch.manual_seed(0)
    x = 1e-3 * torch.randn(32, 16)
    wide = x.double().requires_grad_()
    make().double()(wide).backward(torch.randn(32, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    found = next(d for d in check_stable(make(), x, precision="fp16").differences if d.name == "gradient of input 0")
    assert found.passed and found.tolerance.atol < 0.05 * float(wide.grad.abs().max())


def test_a_given_tolerance_asks_for_no_bounds(monkeypatch):
    monkeypatch.setattr("normstab.testing.assertions.RunErrors", None)
    assert_stable(nn.Linear(4, 4), torch.randn(2, 4), precision="fp16", rtol=0.1, atol=0.1)


def allowed(model, x, precision, **options):
    return check_stable(model, x, precision=precision, grad=False, **options).differences[0].tolerance.atol


def test_the_tolerance_of_a_sum_knows_its_length_and_its_order():
    """Higham and Mary: sqrt(n) u for sums one after another, sqrt(log n) u for pairs."""
    torch.manual_seed(0)
    found = {}
    for order in ("sequential", "pairwise"):
        for n in (256, 4096):
            x = ns.cast(torch.rand(4, n), "bf16")
            exact = float(x.double().sum(1).max())
            found[order, n] = allowed(Calls(lambda x: x.sum(1)), x, f"fp32/nearest/bf16:{order}") / exact
    assert found["sequential", 4096] / found["sequential", 256] == pytest.approx(4.0, rel=0.25)
    assert found["pairwise", 4096] / found["pairwise", 256] == pytest.approx((12 / 8) ** 0.5, rel=0.1)


def test_a_long_product_in_a_narrow_accumulator_is_no_flaw_within_its_bound():
    """Counted as one rounding, whatever its length, it was DEGRADED for what its accumulator explains."""
    torch.manual_seed(0)
    model, x = nn.Linear(1024, 8, bias=False), torch.randn(16, 1024)
    found = check_stable(model, x, precision="e8m14;matmul=e8m14:sequential", grad=False)
    assert found.verdict == "STABLE", found.reason
    one_rounding = 6.0 * 2.0**-15
    assert found.differences[0].error > one_rounding * float(model(x).detach().abs().max())
    narrower = check_stable(model, x, precision="fp16;matmul=e5m7:sequential", grad=False)
    assert narrower.verdict in ("INCONCLUSIVE", "DEGRADED")  # the bound says nothing any more


def test_a_wide_rule_makes_the_tolerance_of_its_operations_small():
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Tanh()] * 30), torch.randn(8, 8)
    everywhere = allowed(model, x, "fp16")
    assert allowed(model, x, "fp16", rules={"_default": "fp32"}) < everywhere / 4


def test_outputs_do_not_profit_from_the_roundings_of_the_gradients():
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Linear(16, 16)] * 6), torch.randn(8, 16)
    with_gradients = check_stable(model, x, precision="fp16").differences
    # One more cast, of what is propagated back, enters outside the network.
    assert with_gradients[0].tolerance.atol == pytest.approx(allowed(model, x, "fp16"), rel=0.15)
    largest = {d.name: d.tolerance.derivation for d in with_gradients}
    assert largest["output"] != largest["gradient of input 0"]


@pytest.mark.parametrize("precision", ["e4m3fn", "e5m2", "fp16;matmul=e5m2:sequential", "q3.4"])
def test_no_tolerance_exceeds_the_whole(precision):
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Linear(64, 64)] * 12), torch.randn(8, 64)
    found = check_stable(model, x, precision=precision)
    assert all(d.tolerance.rtol <= 1.0 for d in found.differences)
    wide = check_stable(model, x, precision="fp32", rtol=1.0, atol=1.0)
    for d, w in zip(found.differences, wide.differences, strict=True):
        assert d.name == w.name
    answer = check((model, x, None), precision=precision)
    assert 0.0 < answer.allowed <= 1.0 and answer.verdict != "STABLE"


def test_known_flaws_are_told_and_sound_networks_pass():
    class Cancels(nn.Module):
        def forward(self, x):
            return (x + 1000) - 1000

    class Rotary(nn.Module):
        """Angles of large positions formed in the compute format."""

        def forward(self, x):
            angles = torch.arange(2048, 2048 + x.shape[0], dtype=x.dtype, device=x.device)[:, None] * 0.37
            return x * torch.cos(angles)

    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert check_stable(Cancels(), x, precision="fp16").verdict == "DEGRADED"
    assert check_stable(Rotary(), x, precision="bf16", grad=False).verdict == "DEGRADED"
    torch.manual_seed(0)
    layers = [nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.GroupNorm(2, 8)]
    assert_stable(nn.Sequential(*layers), x.unsqueeze(1), precision="fp16")


def test_the_quanta_of_a_small_branch_count_beside_the_residual_that_it_is_added_to():
    torch.manual_seed(0)
    model, x = Calls(lambda x: x + 1e-7 * x), torch.randn(4, 8)  # a layer scale whose products are subnormal in fp16
    answer = check((model, x, None), precision="fp16")
    assert answer.verdict == "STABLE" and answer.error < answer.allowed < 0.02, answer.reason
