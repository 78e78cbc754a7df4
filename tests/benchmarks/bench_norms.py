"""Norm layers, forward and backward, beside torch's own float32 batch norm, in one run.

Samples are interleaved, one of each per turn; a figure is the ratio of medians (in brackets: of minima). With
`--qtorch` the same l1 layer built from qtorch's quantizers runs beside them (it compiles C++ on first import).
Nothing is asserted.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

import normstab as ns

SHAPES = [(64, 64, 32, 32), (128, 16, 16, 16)]
# Name -> norm, precision, and what is to be reached.
LAYERS = {
    "native l2": ("l2", "native", "1.3x"),
    "l1, fp16/nearest/fp32, ledger": ("l1", "fp16/nearest/fp32", "2.5x / 3.5x"),
    "l2, fp16/nearest/fp32, ledger": ("l2", "fp16/nearest/fp32", "2.5x / 3.5x"),
    "linf, fp16/nearest/fp32, ledger": ("linf", "fp16/nearest/fp32", "2.5x / 3.5x"),
    "top10, fp16/nearest/fp32, ledger": ("top10", "fp16/nearest/fp32", "5x"),
    "range, fp16/nearest/fp32, ledger": ("range", "fp16/nearest/fp32", ""),
    "l1, bf16/nearest/fp32, ledger": ("l1", "bf16/nearest/fp32", ""),
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


def layers_of(channels: int, chosen: list[str], with_qtorch: bool) -> dict[str, nn.Module]:
    """The layers by name, torch's own first."""
    found: dict[str, nn.Module] = {"torch.nn.BatchNorm2d": nn.BatchNorm2d(channels)}
    for name in chosen:
        norm, precision, _ = LAYERS[name]
        layer = ns.BatchNorm2d(channels, norm=norm)
        layer.arithmetic = ns.Arithmetic(precision, ledger=ns.Ledger(), key=ns.Key(seed=1)).at("bn")
        found[name] = layer
    if with_qtorch:
        found["l1 of qtorch quantizers"] = QtorchL1(channels)
    return found


def samples(layers: dict[str, nn.Module], shape: tuple[int, ...], turns: int) -> dict[str, list[float]]:
    """Return the seconds of a forward and a backward pass of each layer, taken in turns after one warm-up."""
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(turns + 1):
        for name, layer in layers.items():
            start = time.perf_counter()
            layer(x).backward(grad)
            elapsed = time.perf_counter() - start
            x.grad = None
            if turn:
                taken[name].append(elapsed)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", default="", help="measure only the layers whose name holds this text")
    parser.add_argument("--qtorch", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = [name for name in LAYERS if options.only in name]
    tables = {}
    for shape in SHAPES:
        taken = samples(layers_of(shape[1], chosen, options.qtorch), shape, options.turns)
        tables[shape] = {name: (statistics.median(times), min(times)) for name, times in taken.items()}
    print(f"Norm layers, forward + backward, {options.threads} threads, ratio to torch.nn.BatchNorm2d\n")
    print("| layer | " + " | ".join("x".join(map(str, shape)) for shape in SHAPES) + " | to reach |")
    print("|---" * (len(SHAPES) + 2) + "|")
    for name in tables[SHAPES[0]]:
        cells = []
        for shape in SHAPES:
            (stock, stock_least), (median, least) = tables[shape]["torch.nn.BatchNorm2d"], tables[shape][name]
            is_stock = name.startswith("torch")
            cells.append(
                f"{median * 1e3:.1f} ms" if is_stock else f"{median / stock:.2f}x ({least / stock_least:.2f}x)"
            )
        print(f"| {name} | {' | '.join(cells)} | {LAYERS.get(name, ('', '', ''))[2]} |")


if __name__ == "__main__":
    main()
