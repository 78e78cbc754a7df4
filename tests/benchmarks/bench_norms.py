"""Norm layers, forward and backward, beside torch's own float32 batch norm, in one run.

Where qtorch is installed, the same l1 layer built from its quantizers runs beside them. Nothing is asserted.
"""

import torch
from torch import Tensor, nn

import normstab as ns
from tests.benchmarks.timing import Work, begin, in_turns, print_table

Chosen = dict[str, tuple[str, str, str]]
STOCK = "torch.nn.BatchNorm2d"
SHAPES = [(64, 64, 32, 32), (128, 16, 16, 16)]
# Name -> norm, precision, and what is to be reached.
LAYERS = {
    "native l2": ("l2", "native", "1.3x"),
    "native l1": ("l1", "native", "1.3x"),
    "native linf": ("linf", "native", "1.3x"),
    "native range": ("range", "native", "1.3x"),
    "native top10": ("top10", "native", "3x"),
    "l1, fp16/nearest/fp32, ledger": ("l1", "fp16/nearest/fp32", "2.5x / 3.5x"),
    "l2, fp16/nearest/fp32, ledger": ("l2", "fp16/nearest/fp32", "2.5x / 3.5x"),
    "linf, fp16/nearest/fp32, ledger": ("linf", "fp16/nearest/fp32", "2.5x / 3.5x"),
    "top10, fp16/nearest/fp32, ledger": ("top10", "fp16/nearest/fp32", "5x"),
    "range, fp16/nearest/fp32, ledger": ("range", "fp16/nearest/fp32", ""),
    "l1, bf16/nearest/fp32, ledger": ("l1", "bf16/nearest/fp32", ""),
    "lp3, fp16/nearest/fp32, ledger": ("lp3", "fp16/nearest/fp32", ""),
}
# What takes several times as long runs apart, as it would push the others out of the cache.
SLOWER_LAYERS = {
    "l1, fp16/stochastic/fp32, ledger": ("l1", "fp16/stochastic/fp32", "8x"),
    "l1, fp16/toward-zero/fp32, ledger": ("l1", "fp16/toward-zero/fp32", ""),
    "l1, fp16/nearest/fp16:blocked64, ledger": ("l1", "fp16/nearest/fp16:blocked64", ""),
}


class QtorchL1(nn.Module):
    """An l1 batch norm of qtorch quantizers: every result rounded to fp16, forward and backward, nothing counted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from qtorch import FloatingPoint
        from qtorch.quant import Quantizer

        half = FloatingPoint(5, 10)
        self.q = Quantizer(half, half, "nearest", "nearest")
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        q, axes = self.q, (0, 2, 3)
        x = q(x)
        d = q(x - q(x.mean(axes, keepdim=True)))
        s = q(q(1.2533141373 * q(d.abs().mean(axes, keepdim=True))) + 1e-5)
        return q(q(self.weight.view(1, -1, 1, 1) * q(d / s)) + self.bias.view(1, -1, 1, 1))


def layers_of(channels: int, chosen: Chosen) -> dict[str, nn.Module]:
    """The layers by name, torch's own first; among the slower ones that of qtorch."""
    found: dict[str, nn.Module] = {STOCK: nn.BatchNorm2d(channels)}
    for name, (norm, precision, _) in chosen.items():
        layer = ns.BatchNorm2d(channels, norm=norm)
        layer.arithmetic = ns.Arithmetic(precision, ledger=ns.Ledger(), key=ns.Key(seed=1)).at("bn")
        found[name] = layer
    if chosen is LAYERS:
        return found
    try:
        found["l1 of qtorch quantizers"] = QtorchL1(channels)
    except (ImportError, RuntimeError, OSError) as reason:
        print(f"qtorch: left out ({type(reason).__name__})")
    return found


def passes(layers: dict[str, nn.Module], shape: tuple[int, ...]) -> dict[str, Work]:
    """A forward and a backward pass of each layer."""
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def forward_and_backward(layer: nn.Module) -> None:
        layer(x).backward(grad)
        x.grad = None

    return {name: lambda layer=layer: forward_and_backward(layer) for name, layer in layers.items()}


def main() -> None:
    """Print the table."""
    options = begin("Norm layers")
    for title, chosen in (("forward and backward", LAYERS), ("other rounding and accumulation", SLOWER_LAYERS)):
        columns = {
            "x".join(map(str, shape)): in_turns(passes(layers_of(shape[1], chosen), shape), options.turns)
            for shape in SHAPES
        }
        print_table(title, columns, STOCK, {name: text for name, (_, _, text) in chosen.items()})


if __name__ == "__main__":
    main()
