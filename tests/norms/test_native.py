"""Native l1, linf, top k and range: few passes, little saved, the values and gradients of the readable code."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx

import normstab as ns
from normstab.norms import op_by_op
from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.modules import BatchNorm1d, BatchNorm2d, GroupNorm, InstanceNorm2d, LayerNorm, Normalizing
from normstab.norms.reduction import Reduction
from normstab.norms.unrounded import compiled, few_passes
from normstab.norms.unrounded.native_norm import NATIVE, code_for, normalize_native

NAMES = ("l1", "linf", "top3", "range")
SHAPE = (4, 6, 3, 5)
REDUCTIONS: dict[str, Callable[[tuple[int, ...]], Reduction]] = {
    "batch": Reduction.of_batch,
    "instance": Reduction.of_instance,
    "group": lambda shape: Reduction.of_group(shape, 2),
    "layer": lambda shape: Reduction.of_layer(shape, shape[1:]),
}
UNIT = 2.0**-24


def drawn(*shape: int) -> Tensor:
    """Return numbers around 1, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + 1


def scheme_of(name: str, *, centres: bool = True, eps: float = 1e-5) -> Scheme:
    """Return the scheme of a layer that tracks statistics."""
    return Scheme(parse_norm(name), eps, 1.0, centres, True)


def parameters_of(reduction: Reduction) -> tuple[Tensor, Tensor]:
    """Return a gamma and a beta."""
    count = torch.Size(reduction.parameters).numel()
    return drawn(2, count).unbind()  # type: ignore[return-value]


SUMS = 4  # on the way to a result: of the mean, the dispersion, and the two of the gradient


def assert_within_the_sums(found: Tensor, expected: Tensor, terms: int, magnitude: float | None = None) -> None:
    """Assert that two float32 results differ by less than the sums of `terms` numbers in other orders can.

    To first order each sum errs by at most the unit roundoff, once for every term, of the sum of what is summed
    (Higham 2002, equation 4.4), which here is of the size of the largest result, or of `magnitude`.
    """
    if magnitude is None:
        finite = expected[expected.isfinite()].abs()
        magnitude = float(finite.max()) if finite.numel() else 0.0
    bound = 2 * UNIT * terms * magnitude  # of two results, neither of which is exact
    torch.testing.assert_close(found, expected, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["batch", "instance"])
def test_the_compiled_forward_has_the_bits_of_the_readable_one_where_every_sum_is_exact(name: str, where: str) -> None:
    # Whole numbers below 2^7, 256 of them to a mean: sums of x and of abs(d) have at most 24 bits, in any order.
    shape = (16, 3, 4, 4) if where == "batch" else (2, 3, 16, 16)
    x = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(2)).float()
    reduction, scheme = REDUCTIONS[where](shape), scheme_of(name)
    gamma, beta = parameters_of(reduction)
    assert code_for(x, scheme, reduction) is compiled
    z, stored, saved = compiled.forward(x, gamma, beta, scheme, reduction)
    readable = op_by_op.forward(x, gamma, beta, scheme, reduction, NATIVE)
    assert torch.equal(z, readable.output)
    assert torch.equal(stored, readable.stored)
    assert torch.equal(saved.mean, readable.mean)
    assert torch.equal(saved.scale, readable.saved.scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("where", "centres"), list(product(REDUCTIONS, (True, False))))
def test_values_and_gradients_are_those_of_the_closed_forms_in_float64(name: str, where: str, centres: bool) -> None:
    reduction, scheme = REDUCTIONS[where](SHAPE), scheme_of(name, centres=centres)
    x, grad, (gamma, beta) = drawn(*SHAPE), drawn(*SHAPE[::-1]).reshape(SHAPE), parameters_of(reduction)
    wide = op_by_op.forward(x.double(), gamma.double(), beta.double(), scheme, reduction, NATIVE)
    expected = op_by_op.backward(grad.double(), wide.saved, scheme, reduction, NATIVE)
    codes = [few_passes, *([compiled] if where in ("batch", "instance") else [])]
    assert code_for(x, scheme, reduction) is codes[-1]
    for code in codes:
        z, stored, saved = code.forward(x, gamma, beta, scheme, reduction)
        found = code.backward(grad, saved, scheme, reduction, needs_input=True)
        # A dozen roundings of each term, whose largest is that of g / s; sums of at most 120 in float32 add as many.
        terms = float((gamma.abs().max() * grad.abs().max() * reduction.n) / wide.saved.scale.min())
        close(z, wide.output, 16 * UNIT * float(wide.output.abs().max()))
        close(stored, wide.stored, 64 * UNIT * float(wide.stored.abs().max()))
        close(found.input, expected.input, 16 * UNIT * terms)
        for mine, its in ((found.gamma, expected.gamma), (found.beta, expected.beta)):
            close(mine.flatten(), its.flatten(), 16 * UNIT * 120 * float(grad.abs().max()))


def close(found: Tensor, expected: Tensor, bound: float) -> None:
    """Assert that no element is further off than `bound`."""
    assert found.shape == expected.shape
    assert float((found.double() - expected).abs().max()) <= bound


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", [lambda n: BatchNorm2d(6, norm=n), lambda n: LayerNorm(SHAPE[1:], norm=n)])
def test_what_is_saved_is_what_torchs_l2_saves_and_the_members(name: str, build: Callable[[str], nn.Module]) -> None:
    layer, x = build(name), drawn(*SHAPE).requires_grad_()
    stock = nn.BatchNorm2d(6) if isinstance(layer, BatchNorm2d) else nn.LayerNorm(SHAPE[1:])
    rows = 6 if isinstance(layer, BatchNorm2d) else SHAPE[0]
    members = rows * {"l1": 0, "linf": 1, "range": 2, "top3": 3}[name] * 8
    # The statistics of our layer share one piece of memory with what is stored, one float more for each row.
    assert saved_bytes(layer, x) <= saved_bytes(stock, x) + members + 4 * rows


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Return the bytes of memory, each piece once, that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_bit_depends_on_the_number_of_threads_or_on_strides(name: str) -> None:
    x, grad = drawn(16, 5, 24, 24), drawn(24, 16, 24, 5).reshape(16, 5, 24, 24)
    found, before = [], torch.get_num_threads()
    try:
        for threads, given in ((1, x), (2, x), (4, x), (1, x.to(memory_format=torch.channels_last))):
            torch.set_num_threads(threads)
            found.append(step(BatchNorm2d(5, norm=name), given, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def step(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the output and every gradient of a forward and a backward pass, and the buffers."""
    leaf = x.detach().clone().requires_grad_()
    z = layer(leaf)
    z.backward(grad)
    return [z.detach(), leaf.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", ["ties", "nan", "inf", "constant"])
def test_ties_and_special_values_give_what_the_readable_code_gives(name: str, values: str) -> None:
    x = drawn(4, 3, 4, 4)
    if values == "ties":
        x = x.round().clamp(-1, 2)
    elif values == "constant":
        x[:, 1] = 2.0
    else:
        x[1, 1, 2, 2] = float(values)
    grad, gamma, beta = drawn(3, 4, 4, 4).reshape(4, 3, 4, 4), drawn(3), drawn(3)[[2, 0, 1]]
    reduction, scheme = Reduction.of_batch(x.shape), scheme_of(name)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, gamma, beta)]
    done = op_by_op.forward(*leaves, scheme, reduction, NATIVE)
    readable, expected = done.output, op_by_op.backward(grad, done.saved, scheme, reduction, NATIVE)
    if values in ("ties", "constant"):  # and what torch derives; of infinities that makes fewer NaNs
        expected = torch.autograd.grad(readable, leaves, grad)
    for code in (compiled, few_passes):
        z, _, saved = code.forward(x, gamma, beta, scheme, reduction)
        found = code.backward(grad, saved, scheme, reduction, needs_input=True)
        assert_within_the_sums(z, readable.detach(), SUMS * reduction.n)
        for mine, its in zip(found, expected, strict=True):
            assert_within_the_sums(mine.reshape(its.shape), its.detach(), SUMS * reduction.n)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("affine", [True, False])
def test_second_derivatives_are_right(name: str, affine: bool) -> None:
    layer = BatchNorm2d(2, norm=name, affine=affine, track_running_stats=False).double()
    x = drawn(3, 2, 2, 2).double().requires_grad_()
    assert gradgradcheck(layer, x, fast_mode=True)
    narrow, leaf = BatchNorm2d(2, norm=name, affine=affine, track_running_stats=False), x.detach().float()
    leaf.requires_grad_()
    first = torch.autograd.grad(narrow(leaf).pow(3).sum(), leaf, create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), leaf)[0]
    wide = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)[0]
    expected = torch.autograd.grad(wide.pow(2).sum(), x)[0]
    assert_within_the_sums(second.double(), expected, 2 * SUMS * 12)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_sees_the_layer_and_changes_no_bit_of_it(name: str) -> None:
    x, grad = drawn(*SHAPE), drawn(*SHAPE[::-1]).reshape(SHAPE)
    plain = step(nn.Sequential(BatchNorm2d(6, norm=name)), x, grad)
    net = nn.Sequential(BatchNorm2d(6, norm=name))
    with ns.record(net) as log:
        recorded = step(net, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    directions = {str(site).rpartition("[")[2] for site in log.ledger if str(site).startswith("0.")}
    assert {"forward]", "backward]"} <= directions


@pytest.mark.parametrize("name", NAMES)
def test_what_torch_transforms_or_traces_is_the_readable_code(name: str) -> None:
    layer, x = BatchNorm2d(6, norm=name, track_running_stats=False), drawn(*SHAPE)
    expected = step(layer, x, torch.ones(SHAPE))
    found = torch.func.grad(lambda x: layer(x).sum())(x)
    n, size = 60, float(x.abs().max())
    assert_within_the_sums(found, expected[1], SUMS * n, magnitude=1.0)  # of ones, whose mean is taken off
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, torch.ones_like(x)))
        tangent = forward_ad.unpack_dual(dual).tangent.detach()
    assert_within_the_sums(tangent, torch.zeros(SHAPE), SUMS * n, magnitude=1.0)  # adding a constant changes nothing
    traced = make_fx(layer)(x)
    assert_within_the_sums(traced(2 * x), layer(2 * x), SUMS * n, magnitude=size)
    leaf = x.clone().requires_grad_()
    many = torch.stack([torch.ones(SHAPE), drawn(*SHAPE)])
    batched = torch.autograd.grad(layer(leaf), leaf, many, is_grads_batched=True)[0]
    for one, grad in zip(batched, many, strict=True):
        assert_within_the_sums(one, step(layer, x, grad)[1], SUMS * n, magnitude=float(grad.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_gradients_that_are_needed_are_made(name: str) -> None:
    grad = drawn(*SHAPE)
    layer = InstanceNorm2d(6, norm=name, affine=True)
    layer(drawn(*SHAPE)).backward(grad)
    assert layer.bias.grad is not None
    assert_within_the_sums(layer.bias.grad, grad.sum((0, 2, 3)), 60, magnitude=float(grad.abs().max()))
    frozen, leaf = BatchNorm1d(6, norm=name).requires_grad_(False), drawn(7, 6).requires_grad_()
    frozen(leaf).sum().backward()
    assert leaf.grad is not None
    assert frozen.weight.grad is None


def within(precision: str, layer: Normalizing) -> Normalizing:
    """Return `layer`, which then computes in `precision`."""
    layer.arithmetic = precision
    return layer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["native", "fp16"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_torch_s_default_dtype_changes_no_bit(name: str, precision: str, default: torch.dtype) -> None:
    x, grad = drawn(*SHAPE), drawn(*SHAPE[::-1]).reshape(SHAPE)
    expected = step(within(precision, BatchNorm2d(6, norm=name)), x, grad)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = step(within(precision, BatchNorm2d(6, norm=name, dtype=torch.float32)), x, grad)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", (*NAMES, "l2"))
@pytest.mark.parametrize("precision", ["native", "fp16"])
@pytest.mark.parametrize(
    "make",
    [
        lambda norm: BatchNorm2d(6, norm=norm),
        lambda norm: BatchNorm2d(6, norm=norm, dtype=torch.float64),
        lambda norm: LayerNorm((6, 3, 5), norm=norm),
        lambda norm: GroupNorm(2, 6, norm=norm),
        lambda norm: InstanceNorm2d(6, norm=norm, affine=True),
    ],
    ids=["batch", "double", "layer", "group", "instance"],
)
def test_what_follows_may_write_to_the_output(name: str, precision: str, make: Callable[[str], Normalizing]) -> None:
    layer = within(precision, make(name))
    x = drawn(*SHAPE).to(next(layer.parameters()).dtype)
    results = []
    for in_place in (False, True):
        leaf = x.clone().requires_grad_()
        z = nn.functional.relu(layer(leaf), inplace=in_place)
        z.square().sum().backward()
        results.append((z.detach(), leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_where_gamma_is_made_from_the_input(name: str) -> None:
    reduction, scheme = Reduction.of_batch((5, 3)), scheme_of(name)

    def normed(x: Tensor) -> Tensor:
        return normalize_native(x, x.mean(0).exp(), None, scheme, reduction)[0]

    x = drawn(5, 3).double().requires_grad_()
    assert gradcheck(normed, x)
    assert gradgradcheck(normed, x)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_float64_is_as_wide(name: str) -> None:
    layer, x = BatchNorm1d(3, norm=name, track_running_stats=False, dtype=torch.float64), drawn(7, 3).double()
    leaf = x.requires_grad_()
    layer(leaf).pow(3).sum().backward()
    readable = op_by_op.forward(x, None, None, scheme_of(name), Reduction.of_batch(x.shape), NATIVE).output
    expected = torch.autograd.grad(readable.pow(3).sum(), x)[0]
    assert leaf.grad is not None
    bound = 2.0**-52 * 2 * SUMS * 7 * float(expected.abs().max())
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=bound)
