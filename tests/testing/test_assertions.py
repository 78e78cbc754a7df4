"""assert_stable: what passes, what fails, and whom the failure blames."""

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.numerics.bounds import Step, unit_roundoff
from normstab.testing.assertions import assert_stable, check_stable
from normstab.testing.tolerances import derive_tolerance


class RMSNorm(nn.Module):
    """As transformers write it: x^2 in the compute format."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), RMSNorm(32), nn.Tanh(), nn.Linear(32, 4))


X = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "e6m9", "bf16/stochastic"])
def test_a_sound_network_is_stable_within_the_derived_tolerance(network, precision):
    assert_stable(network, X, precision=precision)


def test_an_overflowing_square_is_blamed_at_its_site(network):
    with pytest.raises(AssertionError) as failure:
        assert_stable(network, X * 5000, precision="fp16")
    text = str(failure.value)
    assert "Tensor-likes are not close!" in text and "Made at: 1.pow[forward] overflowed first" in text
    for part in (
        "Greatest absolute difference",
        "at index",
        "ulps",
        "0x",
        "neighbours in fp16",
        "Precision: fp16/nearest",
    ):
        assert part in text


def test_the_operation_that_lost_most_is_named_when_nothing_overflowed():
    class Cancelling(nn.Module):
        def forward(self, x):
            return (x + 1000.0) - 1000.0

    found = check_stable(Cancelling(), X, precision="fp16", grad=False)
    assert not found.passed
    assert found.culprit.startswith("Made at: add[forward], by rounding; seen at sub[forward]")
    first_line = str(found).splitlines()[0]
    assert first_line.startswith("DEGRADED in fp16: output off by") and first_line.endswith(
        "ulps, made at add[forward]"
    )


def test_outputs_that_are_all_flushed_to_zero_are_collapsed_not_within_a_tolerance():
    found = check_stable(nn.Tanh(), torch.linspace(1e-7, 1e-6, 16), precision="e5m2", grad=False)
    assert found.verdict == "COLLAPSED" and not found.passed
    with pytest.raises(AssertionError, match="COLLAPSED in e5m2"):
        assert_stable(nn.Tanh(), torch.linspace(1e-7, 1e-6, 16), precision="e5m2", grad=False)


def test_no_tolerance_excuses_an_error_of_a_tenth_of_the_spread():
    class Offset(nn.Module):
        def forward(self, x):
            return (x + 100.0) - 100.0

    found = check_stable(Offset(), X, precision="bf16", grad=False)
    assert found.verdict == "DEGRADED" and "of its spread" in found.reason


def test_a_bound_above_a_tenth_of_the_spread_is_inconclusive_and_passes():
    found = check_stable(nn.Sequential(*[nn.LeakyReLU(0.5)] * 20), X, precision="bf16", grad=False)
    assert found.verdict == "INCONCLUSIVE" and found.passed and str(found).startswith("inconclusive in bf16")


def test_a_one_pass_variance_is_blamed_on_its_subtraction_with_gradients_as_without():
    class OnePass(nn.Module):
        def forward(self, x):
            variance = x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()
            return x / (variance.abs() + 1e-3).sqrt()

    x = 40 + X
    for grad in (False, True):
        found = check_stable(OnePass(), x, precision="fp16", grad=grad)
        assert not found.passed and found.site.direction == "forward"
        assert "seen at sub[forward]" in found.culprit


def test_a_bias_before_a_centring_may_have_a_gradient_of_noise():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    torch.manual_seed(0)
    assert_stable(nn.Sequential(nn.Linear(16, 8), Centred()), X, precision="fp16")


def test_the_given_tolerance_is_the_one_that_judges(network):
    assert check_stable(network, X, precision="fp16", rtol=1.0, atol=1.0).passed
    assert not check_stable(network, X, precision="fp16", rtol=0.0, atol=0.0).passed
    with pytest.raises(ns.NormstabError, match="go together"):
        assert_stable(network, X, rtol=0.1)


def test_the_module_is_left_as_it_was(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_stable(network, X, precision="bf16")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_arguments_may_be_a_tuple_or_a_mapping():
    class Two(nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "product": a * b}

    for x in ((X, X), {"a": X, "b": X}):
        found = check_stable(Two(), x, precision="fp16")
        assert found.passed and {d.name for d in found.differences} >= {"output 0", "output 1", "gradient of input 1"}


def test_msg_replaces_the_text(network):
    with pytest.raises(AssertionError, match=r"^mine$"):
        assert_stable(network, X, precision="e5m2", rtol=0.0, atol=0.0, msg="mine")


def test_native_is_refused_and_so_is_a_module_without_a_floating_output():
    class Index(nn.Module):
        def forward(self, x):
            return x.argmax()

    with pytest.raises(ns.NormstabError, match="native"):
        check_stable(nn.Identity(), X, precision="native")
    with pytest.raises(ns.NormstabError, match="no floating-point tensor"):
        check_stable(Index(), X, grad=False)


def test_the_tolerance_grows_with_the_root_of_the_roundings():
    fp16, u = ns.Precision.parse("fp16"), unit_roundoff(ns.parse_format("fp16"))
    few = derive_tolerance(fp16, [Step(100, u)], elements=100, scale=1.0)
    many = derive_tolerance(fp16, [Step(100, u)] * 4, elements=100, scale=1.0)
    assert many.atol == pytest.approx(2 * few.atol, rel=0.05)  # expm1 is linear for small arguments
    directed = derive_tolerance(ns.Precision.parse("fp16/up"), [Step(400, u)], elements=100, scale=1.0)
    assert directed.atol == pytest.approx(400 * u / (1 - 400 * u))  # what drifts has no other bound
    assert derive_tolerance(fp16, [Step(10**6, u)], elements=100, scale=3.0).atol == 3.0  # never more than all of it
