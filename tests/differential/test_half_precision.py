"""`half` and `bfloat16` against torch's own half precision on the CPU, for architectures that nobody here wrote."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import normstab as ns
from tests.differential.architectures import ARCHITECTURES

pytestmark = pytest.mark.models

MACHINES = {"half": torch.float16, "bfloat16": torch.bfloat16}


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Return the floating tensors of the output, after a backward pass of their mean square."""
    output = model(**inputs)
    leaves = pytree.tree_leaves(output if isinstance(output, Tensor) else dict(output))
    found = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    sum(x.float().square().mean() for x in found if x.requires_grad).backward()
    return [x.detach() for x in found]


def cast(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_lie_within_two_spreads_of_torch_s_own_and_gradients_are_finite_where_its_are(
    name: str, machine: str
) -> None:
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name]()
    model.eval()
    wide, real = copy.deepcopy(model), copy.deepcopy(model).to(MACHINES[machine])
    exact = outputs_of(wide, inputs)
    expected = outputs_of(real, cast(inputs, MACHINES[machine]))
    with ns.simulate(model, machine) as run:
        found = outputs_of(model, inputs)
    assert not run.unrecognised
    assert len(found) == len(expected) == len(exact)
    for ours, half, float32 in zip(found, expected, exact, strict=True):
        assert ours.dtype == half.dtype
        assert torch.equal(ours.isfinite(), half.isfinite())
        spread = (half.float() - float32.float()).norm()
        assert (ours.float() - half.float()).norm() <= 2 * spread
    for ours, half in zip(model.parameters(), real.parameters(), strict=True):
        assert (ours.grad is None) == (half.grad is None)
        if ours.grad is not None:
            assert bool(ours.grad.isfinite().all()) or not bool(half.grad.isfinite().all())
