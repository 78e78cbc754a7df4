"""A simulated training step beside the plain one of the same network, in one run; qtorch if installed.

Then the same step of a network that is compiled with the backend normstab, beside the eager one. A row is measured in
turns with its yardstick and printed at once; stderr says which one is measured.

ResNet-18 in two sizes, and a small transformer, where the cost of each operation in Python is what counts. What a
step holds in memory is in `bench_memory`. Nothing is asserted.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn import functional

import normstab as ns
from normstab.experiment.network.models import MODELS
from normstab.experiment.network.networks import Task
from normstab.simulation import record
from normstab.simulation.compiled.dynamo_backend import normstab_backend
from tests.benchmarks.timing import Samples, begin, cell, print_heads, print_row, progress

# Width, side of the images, batch, turns.
SIZES = {"width 16, 16x16, batch 64": (16, 16, 64, 12), "width 64, 32x32, batch 32": (64, 32, 32, 4)}
Context = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[object]]
CONTEXTS: dict[str, Context] = {
    "plain float32": lambda model, optimizer: contextlib.nullcontext(),
    'simulate "native"': lambda model, optimizer: ns.simulate(model, "native"),
    "simulate fp16": lambda model, optimizer: ns.simulate(model, "fp16"),
    "simulate uniform:fp16": lambda model, optimizer: ns.simulate(model, "uniform:fp16"),
    "simulate half": lambda model, optimizer: ns.simulate(model, "half"),
    "simulate amp-fp16": lambda model, optimizer: ns.simulate(model, "amp-fp16"),
    "simulate amp-bf16": lambda model, optimizer: ns.simulate(model, "amp-bf16"),
    "simulate fp16, optimizer too": lambda model, optimizer: ns.simulate(model, "fp16", optimizer=optimizer),
    "simulate fp16/stochastic": lambda model, optimizer: ns.simulate(model, "fp16/stochastic"),
    "record(every=10), ten steps": lambda model, optimizer: record(model, every=10),
}
# Timed steps of a sample, 2 elsewhere; as many are made before them in the same context.
STEPS = {"record(every=10), ten steps": 10}
PLAIN = "plain float32"
# Simulated eagerly and compiled.
COMPILED = ("simulate fp16", "simulate uniform:fp16", "simulate half", "simulate fp16/stochastic")


class Step:
    """A training step of a network of its own."""

    def __init__(self, model: nn.Module, x: torch.Tensor, classes: int = 10) -> None:
        self.model, self.x, self.y = model, x, torch.randint(0, classes, (len(x),))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.x).float(), self.y).backward()
        self.optimizer.step()


def resnet(width: int, side: int, batch: int) -> Step:
    torch.manual_seed(0)
    return Step(MODELS["resnet18"].build(Task(1, side, 10), width, "small"), torch.randn(batch, 1, side, side))


class FirstToken(nn.Module):
    """Two layers of a transformer's encoder, and logits of the first token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x)[:, 0])
        return logits


def transformer(width: int, tokens: int, batch: int) -> Step:
    torch.manual_seed(0)
    return Step(FirstToken(width), torch.randn(batch, tokens, width))


def seconds(step: Step, context: Context, steps: int) -> float:
    """Return the seconds per step inside a context, as in the middle of a training."""
    with context(step.model, step.optimizer):
        for _ in range(steps):
            step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps


def compare(works: dict[str, tuple[Step, Context]], turns: int) -> Samples:
    """Return the seconds per step of each work, in turns, after one warm-up."""
    taken: Samples = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, (step, context) in works.items():
            took = seconds(step, context, STEPS.get(name, 2))
            if turn:
                taken[name].append(took)
    return taken


def with_qtorch(step: Step) -> Step | None:
    """Quantize input and gradient of every norm to fp16 by qtorch, the nearest its users come; None without it."""
    try:
        from qtorch import FloatingPoint
        from qtorch.quant import Quantizer
    except ImportError:
        print("qtorch: left out")
        return None
    for module in list(step.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                half = FloatingPoint(exp=5, man=10)
                border = [Quantizer(half, half, "nearest", "nearest") for _ in range(2)]
                setattr(module, name, nn.Sequential(border[0], child, border[1]))
    return step


def compiled(step: Step) -> Step:
    step.model = torch.compile(step.model, backend=normstab_backend)
    return step


def print_simulated(title: str, make: Callable[[], Step], turns: int) -> None:
    """Print the table of a network: each context in turns with plain steps of the same network."""
    print_heads("seconds per step", [title])
    plain = (make(), CONTEXTS[PLAIN])
    for name, context in CONTEXTS.items():
        progress(f"{title}: {name}")
        taken = compare({PLAIN: plain} if name == PLAIN else {PLAIN: plain, name: (make(), context)}, turns)
        print_row(name, [cell(taken[name], taken[PLAIN], name == PLAIN)])
    peer = with_qtorch(make())
    if peer is not None:
        taken = compare({PLAIN: plain, "peer": (peer, CONTEXTS[PLAIN])}, turns)
        print_row("qtorch at the borders of the norms only", [cell(taken["peer"], taken[PLAIN], False)])


def print_compiled(title: str, make: Callable[[], Step], turns: int) -> None:
    """Print the table of a network that is compiled, each context beside the same one of the eager network."""
    print_heads("compiled, in ratio to eager, seconds per step", [title, "eager"])
    for name in COMPILED:
        progress(f"{title}, compiled: {name}")
        torch.compiler.reset()  # a precision more is a graph more, and torch gives up after eight
        works = {"eager": (make(), CONTEXTS[name]), "compiled": (compiled(make()), CONTEXTS[name])}
        taken = compare(works, turns)
        print_row(name, [cell(taken["compiled"], taken["eager"], False), cell(taken["eager"], taken["eager"], True)])


def main() -> None:
    """Print the tables."""
    begin("A simulated training step", turns=None)
    for title, (width, side, batch, turns) in SIZES.items():
        print_simulated(f"ResNet-18, {title}", functools.partial(resnet, width, side, batch), turns)
    small = functools.partial(transformer, 64, 32, 4)
    print_simulated("transformer, width 64, 4 x 32 tokens", small, 12)
    print_compiled("ResNet-18, width 16, 16x16, batch 64", functools.partial(resnet, 16, 16, 64), 8)
    print_compiled("transformer, width 64, 4 x 32 tokens", small, 16)


if __name__ == "__main__":
    main()
