"""Complex numbers in a simulation: both parts of every result are rounded once, and none is made real."""

import pytest
import torch
from torch import Tensor, nn

import normstab as ns


class Product(nn.Module):
    """A product with a complex weight, and its modulus."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs()


def parts_rounded(z: Tensor, spelling: str = "fp16") -> Tensor:
    """Return a complex tensor with both parts cast, by the real cast alone."""
    return torch.complex(ns.cast(z.real.contiguous(), spelling), ns.cast(z.imag.contiguous(), spelling))


def run_outside(function, *operands, precision: str = "uniform:fp16"):
    """Run a function outside every module of a model, and return its result and the run."""
    with ns.simulate(nn.Identity(), precision) as run:
        result = function(*operands)
    return result, run


PAIRS = [torch.randn(5, 7, dtype=torch.complex64, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_operations_of_two_complex_numbers_round_each_part_once(name: str) -> None:
    a, b = (parts_rounded(x) for x in PAIRS)
    result, run = run_outside(getattr(torch, name), a, b)
    exact = getattr(torch, name)(a.to(torch.complex128), b.to(torch.complex128))
    assert torch.equal(result, parts_rounded(exact).to(torch.complex64))
    assert not run.unrecognised
    assert run.ledger[f"(outside).{name}"].count == 2 * a.numel()


@pytest.mark.parametrize("name", ["exp", "sqrt", "reciprocal", "sin", "abs", "angle", "sgn"])
def test_functions_of_a_complex_number(name: str) -> None:
    z = parts_rounded(PAIRS[0])
    result, run = run_outside(getattr(torch, name), z)
    exact = getattr(torch, name)(z.to(torch.complex128))
    expected = parts_rounded(exact) if exact.is_complex() else ns.cast(exact, "fp16")
    assert torch.equal(result, expected.to(result.dtype))
    assert not run.unrecognised


def test_sums_follow_the_accumulation_part_by_part() -> None:
    z = torch.full((4096,), 1 + 2j, dtype=torch.complex64)
    result, run = run_outside(torch.sum, z, precision="uniform:fp16/nearest/fp16:sequential")
    assert result == 2048 + 4096j  # where adding 1 to 2048, and 2 to 4096, changes nothing in fp16
    result, run = run_outside(lambda z: z.mean(0), z, precision="uniform:fp16/nearest/fp16:sequential")
    assert result == 0.5 + 1j
    assert not run.unrecognised


def test_transforms_are_torchs_with_one_rounding() -> None:
    x = ns.cast(torch.randn(4, 16, generator=torch.Generator().manual_seed(3)), "fp16")
    result, run = run_outside(torch.fft.rfft, x)
    assert torch.equal(result, parts_rounded(torch.fft.rfft(x)))
    back, run = run_outside(lambda z: torch.fft.irfft(z, n=16), result)
    assert torch.equal(back, ns.cast(torch.fft.irfft(result, n=16), "fp16"))
    assert not run.unrecognised


def test_an_overflow_of_a_part_is_counted_and_a_nan_told_from_one_passed_on() -> None:
    z = torch.tensor([300 + 0j, 1 + 1j])
    result, run = run_outside(torch.mul, z, z)
    assert result[0].real == float("inf")
    tally = run.ledger["(outside).mul"]
    assert (tally.overflow, tally.nan_produced) == (1, 0)
    z = torch.tensor([complex(float("nan"), 0), 1 + 1j])
    _, run = run_outside(torch.mul, z, torch.ones_like(z))
    tally = run.ledger["(outside).mul"]
    assert tally.nan_produced == 0 and tally.nan_propagated >= 1


def test_a_complex_parameter_is_cast_on_use_and_its_gradient_rounded() -> None:
    torch.manual_seed(0)
    model, x = Product(), torch.randn(4, 8)
    before = model.weight.detach().clone()
    with ns.simulate(model, "uniform:fp16") as run:
        y = model(x)
        y.square().sum().backward()
    expected = ns.cast((parts_rounded(ns.cast(x, "fp16").to(torch.complex64) @ parts_rounded(before))).abs(), "fp16")
    assert torch.equal(y, expected)
    assert torch.equal(model.weight, before)
    assert not run.unrecognised and run.share_not_simulated == 0
    assert torch.equal(model.weight.grad, parts_rounded(model.weight.grad))
    assert run.ledger["weight"].count == 2 * before.numel()


@pytest.mark.parametrize("precision", ["half", "fp16", "bf16", "amp-fp16", "mxfp8"])
def test_where_dtypes_are_honoured_complex64_is_wide(precision: str) -> None:
    torch.manual_seed(0)
    model, x = Product(), torch.randn(4, 8)
    with ns.simulate(model, precision) as run:
        y = model(x)
        y.sum().backward()
    shown = {"bf16": torch.bfloat16, "mxfp8": torch.bfloat16, "amp-fp16": torch.float32}.get(precision, torch.float16)
    assert torch.equal(y, (x.to(shown).to(torch.complex64) @ model.weight).abs())
    assert not run.unrecognised and run.share_not_simulated == 0


class Turn(nn.Module):
    """A turn in the plane, twice."""

    def forward(self, r: Tensor, angle: Tensor) -> Tensor:
        z = torch.polar(r, angle)
        return torch.view_as_real(z * z)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex32_holds_two_rounded_parts() -> None:
    r, angle = torch.rand(6) + 1, torch.randn(6)
    with ns.simulate(turn := Turn(), "half") as run:
        result = turn(r, angle)
    assert result.dtype == torch.float16 and not run.unrecognised
    z = parts_rounded(torch.polar(r.half().double(), angle.half().double()))
    assert torch.equal(result.float(), torch.view_as_real(parts_rounded(z * z)).float())
    assert run.ledger["mul"].count == run.ledger["polar"].count == 2 * 6


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01, eps=1e-3)]
)
@pytest.mark.parametrize("master", ["on", "off"])
def test_optimizers_of_complex_parameters(make, master: str) -> None:
    torch.manual_seed(0)
    model = Product()
    optimizer = make(model.parameters())
    with ns.simulate(model, f"uniform:fp16;master={master}", optimizer=optimizer) as run:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
    assert model.weight.isfinite().all() and not run.unrecognised
    is_rounded = torch.equal(model.weight.detach(), parts_rounded(model.weight.detach()))
    assert is_rounded == (master == "off")


@pytest.mark.parametrize("precision", ["uniform:fp16", "half"])
def test_assert_stable_compares_complex_outputs_and_gradients(precision: str) -> None:
    class Linear(Product):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(self.weight.dtype) @ self.weight

    torch.manual_seed(0)
    model = Linear()
    ns.testing.assert_stable(model, torch.randn(4, 8), precision=precision)
    assert model.weight.is_complex()

    class Cancelling(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x).real.to(x.dtype) + 1000) - 1000

    with pytest.raises(AssertionError):
        ns.testing.assert_stable(Cancelling(), torch.randn(4, 8), precision=precision)


def test_a_recording_counts_both_parts() -> None:
    model = Product()
    with ns.record(model) as log:
        model(torch.randn(4, 8)).sum().backward()
    assert log.ledger["weight"].count == 2 * 64
    assert log.ledger["mm"].count > 0


def test_a_complex_input_is_cast_on_entering() -> None:
    z = torch.randn(4, 8, dtype=torch.complex64)
    with ns.simulate(model := nn.Identity(), "uniform:fp16") as run:
        assert torch.equal(model(z), parts_rounded(z))
    assert run.ledger["input"].count == 2 * 32


@pytest.mark.parametrize(
    "view", [lambda w: w.conj(), lambda w: w.mH, lambda w: torch.view_as_real(w), lambda w: w.imag]
)
def test_views_of_a_complex_parameter_are_views_of_its_copy(view) -> None:
    model = Product()
    with ns.simulate(model, "uniform:fp16"):
        found = view(model.weight) + 0
        negated = model.weight.conj().imag + 0
    rounded = parts_rounded(model.weight.detach())
    assert torch.equal(found, view(rounded))
    assert torch.equal(negated, -rounded.imag)


def test_the_gradient_of_a_product_takes_the_conjugate() -> None:
    model, x, pulled = Product(), torch.randn(4, 8), torch.randn(4, 8, 2)
    x = ns.cast(x, "fp16").requires_grad_()
    with torch.no_grad():
        model.weight.copy_(parts_rounded(model.weight))
    torch.view_as_real(x.to(torch.complex64) @ model.weight).backward(pulled)
    expected, x.grad = x.grad, None
    with ns.simulate(model, "uniform:fp16"):
        torch.view_as_real(x.to(torch.complex64) @ model.weight).backward(pulled)
    assert float((x.grad - expected).abs().max()) <= 2**-11 * float(expected.abs().max())


@pytest.mark.parametrize("machine", ["uniform:fp16", "half", "bf16"])
@pytest.mark.parametrize(
    "function", [lambda x: x * 1j, lambda x: 1j / (x + 2), lambda x: torch.exp(1j * x)], ids=["mul", "div", "exp"]
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_complex_number_of_python_s_makes_a_complex_result(machine: str, function) -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    x = ns.cast(torch.rand(4), "bf16" if machine == "bf16" else "fp16")
    with ns.simulate(model := Calls(), machine) as run:
        found = model(x)
    assert found.is_complex() and not run.unrecognised
    expected = function(x.to(torch.float64))
    u = 2**-8 if machine == "bf16" else 2**-11  # of each part, and so of the modulus; at most two roundings
    assert torch.allclose(found.to(torch.complex128), expected, rtol=2 * u / (1 - u), atol=0)


def test_a_sum_and_a_mean_of_one_complex_number() -> None:
    z = torch.tensor(1 + 2j)
    for function in (torch.sum, torch.mean, lambda z: z.sum(0)):
        found, run = run_outside(function, z)
        assert found == z and found.dim() == 0 and not run.unrecognised
    wide, _ = run_outside(lambda z: z.sum(dtype=torch.complex128), PAIRS[0])
    assert wide.dtype == torch.complex128


def test_complex32_stays_so_without_honoured_dtypes() -> None:
    z = PAIRS[0].to(torch.complex32)
    found, run = run_outside(lambda z: z * 2, z)
    assert found.dtype == torch.complex32 and not run.unrecognised


def test_a_recording_tells_a_complex_nan_from_one_that_is_passed_on() -> None:
    class Twice(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return (z * 2).exp()

    with ns.record(model := Twice()) as log:
        model(torch.tensor([complex(float("nan"), 0)]))
    assert all(tally.nan_produced == 0 for tally in log.ledger.values())


def test_an_overflow_of_finite_parts_near_the_end_of_float32_is_one() -> None:
    z = torch.tensor([3e38 + 3e38j, 3e38 + 3e38j])
    _, run = run_outside(lambda z: z.cumsum(0), z, precision="uniform:bf16")
    assert run.ledger["(outside).cumsum"].overflow == 2


@pytest.mark.parametrize("mark", [lambda z: z.conj(), lambda z: z.conj().imag], ids=["conjugated", "negated"])
def test_views_of_a_buffer_that_is_lazily_marked_have_its_sign(mark) -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", mark(torch.tensor([1 + 2j, 3 + 4j])))

        def forward(self, x: Tensor) -> Tensor:
            return self.w[0] * x

    x = torch.ones(1)
    with ns.simulate(model := Scales(), "uniform:fp16"):
        assert torch.equal(model(x), Scales()(x))


def test_pairs_of_a_real_parameter_are_cast_on_use() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_complex(self.w) * x

    torch.manual_seed(0)
    with ns.simulate(model := Pairs(), "uniform:fp16") as run:
        found = model(torch.ones(4))
    assert run.ledger["w"].count == 8
    assert torch.equal(found, torch.view_as_complex(ns.cast(model.w.detach(), "fp16")))


def test_a_transposed_complex_parameter_is_cast_once() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64).t())

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex64) @ self.w.t() @ self.w.t()).abs()

    with ns.simulate(model := Transposed(), "uniform:fp16") as run:
        model(torch.ones(2, 3))
    assert run.ledger["w"].count == 18


def test_a_sparse_complex_input_is_named_and_computed_as_torch_does() -> None:
    class Densifies(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.to_dense() * 2

    z = PAIRS[0].to_sparse()
    with ns.simulate(model := Densifies(), "uniform:fp16"):
        assert model(z).shape == PAIRS[0].shape
