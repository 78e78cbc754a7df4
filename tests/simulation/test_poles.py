"""A pole of a finite operand is a division by zero, never an overflow (IEEE 754-2019, 7.3)."""

import pytest
import torch
from torch import nn

import normstab as ns


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


POLES = {
    "log": (torch.log, 0.0),
    "log2": (torch.log2, 0.0),
    "log10": (torch.log10, 0.0),
    "log1p": (torch.log1p, -1.0),
    "rsqrt": (torch.rsqrt, 0.0),
    "atanh": (torch.atanh, 1.0),
    "lgamma": (torch.lgamma, 0.0),
    "reciprocal": (torch.reciprocal, 0.0),
    "pow": (lambda x: x**-1.5, 0.0),
    "div": (lambda x: torch.ones_like(x) / x, 0.0),
}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", POLES)
def test_a_pole_is_a_division_by_zero(name, precision):
    function, pole = POLES[name]
    model = Function(function)
    with ns.simulate(model, precision) as run:
        result = model(torch.tensor([pole, 0.5, pole]))
    tally = run.ledger[name]
    assert result.isinf().tolist() == [True, False, True]
    assert (tally.divide_by_zero, tally.overflow, tally.inf_propagated) == (2, 0, 0)
    assert run.first("overflow") is None and run.first("divide_by_zero").site.operation == name


@pytest.mark.parametrize("name", ["log", "rsqrt"])
def test_an_infinity_that_comes_in_at_another_place_is_only_passed_on(name):
    model = Function(POLES[name][0])
    with ns.simulate(model, "fp16") as run:
        model(torch.tensor([0.0, torch.inf]))
    tally = run.ledger[name]
    assert (tally.divide_by_zero, tally.overflow) == (1, 0)
    assert tally.inf_propagated == (1 if name == "log" else 0)


def test_a_result_beyond_the_range_stays_an_overflow():
    model = Function(lambda x: torch.exp(x))
    with ns.simulate(model, "fp16") as run:
        model(torch.tensor([12.0, 1000.0]))
    assert (run.ledger["exp"].overflow, run.ledger["exp"].divide_by_zero) == (2, 0)
