"""Gradients that torch finds by asking which operand equals the result: what was selected gets them, whatever rounds.

The law: where the operands are numbers of the format, the gradient is that of torch's own float32, since nothing in
it is computed but shares of ties; where they are not, it is still a share of one for each result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normstab as ns

INFINITY = math.inf
INDEX = torch.tensor([[0, 1, 0, 2, 1], [1, 1, 0, 2, 0], [2, 0, 0, 1, 2], [0, 0, 0, 0, 0]])
ROWS = torch.tensor([0, 2, 0, 3])

# Everything in derivatives.yaml that compares a saved result with an operand, and neighbours that use indices.
SELECTIONS: dict[str, Callable[..., Tensor]] = {
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(0),
    "max": lambda x: x.max(),
    "max(dim)": lambda x: x.max(1).values,
    "min": lambda x: x.min(),
    "median": lambda x: x.median(),
    "nanmedian": lambda x: x.nanmedian(),
    "median(dim)": lambda x: x.median(1).values,
    "kthvalue": lambda x: x.kthvalue(2, 1).values,
    "cummax": lambda x: x.cummax(1).values,
    "cummin": lambda x: x.cummin(1).values,
    "aminmax": lambda x: torch.stack(x.aminmax()),
    "norm(inf)": lambda x: x.norm(INFINITY),
    "norm(-inf)": lambda x: x.norm(-INFINITY),
    "norm(inf, dim)": lambda x: x.norm(INFINITY, dim=1),
    "vector_norm(inf)": lambda x: torch.linalg.vector_norm(x, INFINITY, dim=0),
    "vector_norm(-inf)": lambda x: torch.linalg.vector_norm(x, -INFINITY, dim=0),
    "_foreach_norm(inf)": lambda x: torch._foreach_norm([x], INFINITY)[0],
    "scatter_reduce(amax)": lambda x, y: x.scatter_reduce(1, INDEX, y, "amax"),
    "scatter_reduce(amin)": lambda x, y: x.scatter_reduce(1, INDEX, y, "amin", include_self=False),
    "scatter_reduce_(amax)": lambda x, y: x.clone().scatter_reduce_(1, INDEX, y, "amax"),
    "index_reduce(amax)": lambda x, y: x.index_reduce(0, ROWS, y, "amax"),
    "index_reduce(amin)": lambda x, y: x.index_reduce(0, ROWS, y, "amin", include_self=False),
}
# A difference, which is rounded, is selected.
DISTANCES: dict[str, Callable[..., Tensor]] = {
    "dist(inf)": lambda x, y: torch.dist(x, y, INFINITY),
    "dist(-inf)": lambda x, y: torch.dist(x, y, -INFINITY),
    "cdist(inf)": lambda x, y: torch.cdist(x, y, p=INFINITY),
    "cdist(inf), batched": lambda x, y: torch.cdist(x.expand(2, -1, -1), y.expand(2, -1, -1), p=INFINITY),
    "pdist(inf)": lambda x, y: torch.pdist(x + 0 * y, p=INFINITY),
}
MACHINES = [
    "fp32",
    "fp16",
    "half",
    "bf16",
    "fp16/stochastic",
    "bf16/up",
    "tf32",
    "e6m9/stochastic",
    "q7.8",
    "uniform:fp16",
]


class Calls(nn.Module):
    """A module that calls a function, of a parameter where it is given nothing else."""

    def __init__(self, function: Callable[..., Tensor], weight: Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        self.weight = None if weight is None else nn.Parameter(weight)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args) if self.weight is None else self.function(self.weight, *args)


def operands(function: Callable[..., Tensor], precision: str | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(4, 5, generator=generator) for _ in range(function.__code__.co_argcount)]
    if precision is not None:
        spec = ns.Precision.parse(precision)
        assert spec.compute is not None
        made = [ns.cast(x, spec.compute) for x in made]
    return [x.requires_grad_() for x in made]


def gradients(function: Callable[..., Tensor], precision: str, *, inside: bool, fits: bool) -> list[Tensor]:
    found = operands(function, precision if fits else None)
    model = Calls(function)
    with ns.simulate(model, precision):
        (model if inside else function)(*found).float().sum().backward()
    return [x.grad for x in found]


@pytest.mark.parametrize("precision", MACHINES)
@pytest.mark.parametrize("name", SELECTIONS)
def test_what_is_selected_gets_the_gradient(name: str, precision: str) -> None:
    function = SELECTIONS[name]
    expected = operands(function, precision)
    function(*expected).sum().backward()
    found = gradients(function, precision, inside=True, fits=True)
    for x, gradient in zip(expected, found, strict=True):
        assert torch.equal(gradient, x.grad)


@pytest.mark.parametrize("precision", MACHINES)
@pytest.mark.parametrize("name", SELECTIONS)
def test_outside_every_module_operands_that_are_not_of_the_format_get_it_too(name: str, precision: str) -> None:
    function = SELECTIONS[name]
    expected = operands(function)
    function(*expected).sum().backward()
    for x, gradient in zip(expected, gradients(function, precision, inside=False, fits=False), strict=True):
        assert torch.equal(gradient, x.grad)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("precision", MACHINES)
@pytest.mark.parametrize("name", [name for name in SELECTIONS if SELECTIONS[name].__code__.co_argcount == 1])
def test_of_a_parameter_too(name: str, precision: str, inside: bool) -> None:
    function = SELECTIONS[name]
    (weight,) = operands(function, precision)
    model = Calls(function, weight.detach() * (1 + 2.0**-14))  # in no format but fp32
    with ns.simulate(model, precision):
        (model() if inside else function(model.weight)).float().sum().backward()
    function(weight).sum().backward()
    assert torch.equal(model.weight.grad, weight.grad)


@pytest.mark.parametrize("precision", MACHINES)
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("inside", [True, False])
def test_the_greatest_difference_gets_the_gradient_however_it_was_rounded(
    name: str, precision: str, inside: bool
) -> None:
    function = DISTANCES[name]
    found = gradients(function, precision, inside=inside, fits=inside)
    assert all(gradient.isfinite().all() for gradient in found)
    # Each result hands out a gradient of 1, and minus that to the other operand; ties of dist share it.
    n = function(*operands(function)).numel()
    assert sum(float(gradient.abs().sum()) for gradient in found) > n
    if precision == "fp32":
        expected = operands(function, precision)
        function(*expected).sum().backward()
        assert all(torch.equal(x.grad, gradient) for x, gradient in zip(expected, found, strict=True))


def test_ties_of_float32_are_ties_in_fp32() -> None:
    # Both differences are 2^24 in float32, though not in float64.
    x, y = torch.tensor([[2.0**24, 2.0**24]]), torch.tensor([[0.0, 0.25]])
    model = Calls(lambda a, b: torch.cdist(a, b, p=INFINITY))
    expected, found = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.cdist(expected, y, p=INFINITY).sum().backward()
    with ns.simulate(model, "fp32"):
        model(found, y).sum().backward()
    assert torch.equal(expected.grad, torch.ones(1, 2)) and torch.equal(found.grad, expected.grad)
