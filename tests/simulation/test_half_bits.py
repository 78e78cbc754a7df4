"""Where it is promised, a simulated operation has the bits of torch's native half operation."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from normstab.simulation import simulate

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
}
UNARY = {
    "neg": torch.neg,
    "abs": torch.abs,
    "relu": torch.relu,
    "clamp": lambda x: torch.clamp(x, -1.5, 2.0),
    "clamp_at_zero": lambda x: torch.clamp(x, min=0.0),
    "hardtanh": nn.functional.hardtanh,
    "where": lambda x: torch.where(x > 0, x, -2.0 * torch.ones_like(x)),
    "compare": lambda x: (x > 0.5).to(x.dtype),
    "cat": lambda x: torch.cat([x, x.flip(0)]),
}


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def every_value(dtype: torch.dtype) -> Tensor:
    """All 65536 bit patterns."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = every_value(dtype)
    generator = torch.Generator().manual_seed(0)
    shuffled = [values[torch.randperm(len(values), generator=generator)] for _ in range(4)]
    near = values.roll(1)
    return values.repeat(5), torch.cat([*shuffled, near])


def assert_same_bits(found: Tensor, expected: Tensor, *, but_zero_signs: bool = False) -> None:
    same = found.to(expected.dtype).view(torch.int16) == expected.view(torch.int16)
    same |= found.isnan() & expected.isnan()
    if but_zero_signs:
        same |= (found == 0) & (expected == 0)
    assert bool(same.all()), (found[~same][:5], expected[~same][:5])


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("precision", HALF)
def test_binary_operations_have_the_bits_of_native_half(precision, name):
    a, b = pairs(HALF[precision])
    function = BINARY[name]
    model = Apply(function)
    with simulate(model, precision), torch.no_grad():
        found = model(a.float(), b.float())
    assert_same_bits(found, function(a, b), but_zero_signs=name in ("minimum", "maximum"))


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("precision", HALF)
def test_unary_operations_have_the_bits_of_native_half(precision, name):
    x = every_value(HALF[precision])
    model = Apply(UNARY[name])
    with simulate(model, precision), torch.no_grad():
        found = model(x.float())
    assert_same_bits(found, UNARY[name](x), but_zero_signs=name in ("relu", "clamp_at_zero", "clamp"))


def test_relu_minimum_maximum_give_zero_the_sign_that_numerics_fixes():
    zeros = torch.tensor([0.0, -0.0, 0.0, -0.0] * 8), torch.tensor([0.0, 0.0, -0.0, -0.0] * 8)
    with simulate(nn.Identity(), "uniform:fp16"):
        assert not torch.signbit(torch.relu(zeros[0])).any()
        assert not torch.signbit(torch.relu_(zeros[0].clone())).any()
        assert torch.signbit(torch.maximum(*zeros)).tolist() == [False, False, False, True] * 8
        assert torch.signbit(torch.minimum(*zeros)).tolist() == [False, True, True, True] * 8


SINGLE_ROUNDING = {
    "add with alpha": (lambda a, b: torch.add(a, b, alpha=0.25), lambda a, b: a + 0.25 * b),
    "mul by a scalar": (lambda a, b: a * 0.1, lambda a, b: a * 0.1),
    "addcmul": (lambda a, b: torch.addcmul(a, a, b, value=0.75), lambda a, b: a + 0.75 * a * b),
    "lerp": (lambda a, b: torch.lerp(a, b, 0.3), lambda a, b: torch.lerp(a, b, 0.3)),
    "sqrt": (lambda a, b: torch.sqrt(a.abs()), lambda a, b: torch.sqrt(a.abs())),
    "gelu": (lambda a, b: nn.functional.gelu(a), lambda a, b: nn.functional.gelu(a)),
    "pow": (lambda a, b: a.abs().pow(1.3), lambda a, b: a.abs().pow(1.3)),
}


@pytest.mark.parametrize("name", SINGLE_ROUNDING)
def test_where_torchs_half_kernels_round_otherwise_ours_is_the_single_rounding(name):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4096, generator=generator).half() for _ in range(2))
    ours, wide = SINGLE_ROUNDING[name]
    with simulate(nn.Identity(), "uniform:fp16"):
        found = ours(a.float(), b.float())
    exact = wide(a.double(), b.double())
    assert torch.equal(found.double(), rounded_once(exact))


def test_a_factor_of_53_bits_is_rounded_with_its_product_and_its_sum_once():
    # 0.3 lies a little below 3/10, so that sums near a tie are none; float64 itself would say that they are.
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(512, generator=generator).half() for _ in range(2))
    with simulate(nn.Identity(), "uniform:fp16"):
        found = torch.add(a.float(), b.float(), alpha=0.3)
    for x, y, z in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
        exact = Fraction(x) + Fraction(0.3) * Fraction(y)
        quantum = Fraction(2) ** (max(math.frexp(float(exact))[1], -13) - 11)
        assert Fraction(z) == round(exact / quantum) * quantum  # round() of a Fraction goes to even


def rounded_once(x: Tensor) -> Tensor:
    """Nearest fp16 of float64 in the normal range, ties to even; torch's own conversion rounds twice."""
    quantum = torch.exp2(torch.frexp(x)[1].clamp(min=-13) - 11.0)
    return torch.round(x / quantum) * quantum


def test_torchs_half_kernel_of_mul_by_a_scalar_differs_from_the_single_rounding_of_float64():
    x = every_value(torch.float16)
    x = x[x.isfinite()]
    with simulate(nn.Identity(), "uniform:fp16"):
        found = x.float() * 0.1
    assert not torch.equal(found.half(), x * torch.tensor(0.1).half())
