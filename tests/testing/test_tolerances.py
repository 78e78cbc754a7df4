"""The bound of a scaled operand's rounding, against what quantize does to numbers of every size."""

import pytest
import torch

import normstab as ns
from normstab.numerics.precision import Precision
from normstab.numerics.scaled.scaled_format import Scaled
from normstab.testing.error_bounds.operand_units import operand_unit

SCALED = [
    f"{element}@row:{scale}"
    for element in ("e4m3fn", "e5m2", "e2m1", "e3m2", "int8", "int4", "q1.6")
    for scale in ("fp32", "e8m0", "e8m0:even", "e8m0:ceil", "e8m0:rceil")
]


@pytest.mark.parametrize("name", SCALED)
def test_no_element_errs_by_more_and_some_by_half_as_much(name: str) -> None:
    torch.manual_seed(0)
    # Largest magnitudes all through a binade, and beside each a thousand numbers below it.
    largest = torch.exp2(torch.linspace(0, 2, 600)).unsqueeze(1)
    x = torch.cat([largest, largest * torch.rand(600, 1000)], 1)
    found = ((ns.quantize(x, name).values - x).abs() / largest).max().item()
    unit = operand_unit(Precision.parse(f"fp32;operand.input={name}"))
    assert 0.5 * unit < found <= unit * (1 + 2.0**-20)  # scales in float32 are rounded themselves


def test_the_parts_of_mx_are_bounded_by_what_the_rule_floor_cuts_off() -> None:
    assert operand_unit(Precision.parse("mxfp8")) == 1 - 448 / 512
    assert Scaled.parse("e4m3fn@block32:e8m0").rule == "floor"
