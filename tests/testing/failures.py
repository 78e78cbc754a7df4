"""Failures that people reported in public, rebuilt as small modules with the same arithmetic.

Each factory returns (module, batch, loss). Numbers are those of the issues named.
"""

import torch
from torch import nn


class RMSNorm(nn.Module):
    """x rsqrt(mean(x^2) + eps), as in pytorch #133085 and #134106 and nntrainer #3935: x^2 leaves half's range."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps))


class ChannelsFirstLayerNorm(nn.Module):
    """ConvNeXt's LayerNorm over channels, written out (ConvNeXt #80): (x - u)^2 leaves half's range."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class NormalizedByTinyEps(nn.Module):
    """x rsqrt(x^2 + 1e-12), as in diffusers #13316: 1e-12 is zero in half, and a row of zeros becomes NaN."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


class BesselCorrected(nn.Module):
    """var n / (n - 1) with n in the compute format, as in tensorflow #30230: n = 65,536 is infinite, inf / inf NaN."""

    def forward(self, x):
        n = torch.ones_like(x).sum()
        variance = (x - x.mean()).square().mean()
        return x * torch.rsqrt(variance * (n / (n - 1)) + 1e-5)


class LinearThenBatchNorm(nn.Module):
    """A product beyond 65,504 before a batch norm (pytorch #115500): the norm only shows what came in."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 16)
        self.bn = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.bn(self.fc(x))


def _batch(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


def rms_norm():
    """RMSNorm on activations of magnitude 300 and more."""
    return RMSNorm(64), _batch(4, 10, 64, scale=500), torch.sum


def convnext_layer_norm():
    """ConvNeXt's norm on activations of magnitude 300 and more."""
    return ChannelsFirstLayerNorm(16), _batch(2, 16, 8, 8, scale=500), torch.sum


def tiny_eps():
    """A batch with a row of zeros."""
    x = _batch(4, 32)
    x[1] = 0
    return NormalizedByTinyEps(), x, torch.sum


def bessel():
    """A tensor of 65,536 elements."""
    return BesselCorrected(), _batch(256, 256), torch.sum


def inf_before_batch_norm():
    """Inputs whose product with the weights leaves half's range."""
    torch.manual_seed(0)
    return LinearThenBatchNorm(), _batch(32, 64, scale=1e5).clamp(-6e4, 6e4), torch.sum
