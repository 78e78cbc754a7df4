"""What follows a norm layer may work in place, as torch's ReLU(inplace=True) does in every published ResNet."""

import pytest
import torch
from torch import nn

from normstab.norms import catalogue
from normstab.norms.modules import BatchNorm2d


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm", catalogue.NORMS)
def test_an_in_place_relu_after_an_emulated_norm_changes_no_gradient(norm: str, affine: bool) -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    results = []
    for inplace in (False, True):
        layer = BatchNorm2d(3, norm=norm, affine=affine)
        layer.arithmetic = "fp16"
        leaf = x.clone().requires_grad_()
        out = nn.ReLU(inplace=inplace)(layer(leaf))
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
