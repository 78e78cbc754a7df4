"""What a simulated or recorded training step holds in memory, beside the plain one: with activation checkpointing too.

    held    what torch has allocated at the worst moment, above what there is between two plain steps:
            everything that a simulation keeps from step to step is in it
    copies  of that, float32 copies of parameters which the network itself does not have

torch's allocator is asked, not the kernel: on a CPU resident memory rises by what the C library has not given back,
which is as much again and differs from run to run.
"""

import contextlib
import gc
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

import normstab as ns
from normstab.experiment.network.networks import BasicBlock
from normstab.simulation import record
from tests.benchmarks.bench_simulate import Step, resnet, transformer
from tests.benchmarks.timing import begin
from tests.simulation.allocations import most_allocated

MB = 2**20
PLAIN = "plain float32"
CONTEXTS: dict[str, Callable[[nn.Module], Any]] = {
    PLAIN: lambda model: contextlib.nullcontext(),
    "simulate fp16": lambda model: ns.simulate(model, "fp16"),
    "simulate uniform:fp16": lambda model: ns.simulate(model, "uniform:fp16"),
    "simulate half": lambda model: ns.simulate(model, "half"),
    "simulate amp-fp16": lambda model: ns.simulate(model, "amp-fp16"),
    "simulate tf32": lambda model: ns.simulate(model, "tf32"),
    "record(every=1)": lambda model: record(model, every=1),
}
CHECKPOINTED = (PLAIN, "simulate fp16", "simulate half", "record(every=1)")
BLOCKS = (BasicBlock, nn.TransformerEncoderLayer)


class Checkpointed(nn.Module):
    """A block whose activations are computed once more for its gradient instead of kept."""

    def __init__(self, block: nn.Module, *, use_reentrant: bool) -> None:
        super().__init__()
        self.block, self.use_reentrant = block, use_reentrant

    def __getattr__(self, name: str) -> Any:
        """Return what the block has: torch's encoder asks its first layer how it is made."""
        return super().__getattr__(name) if name == "block" else getattr(self.block, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.use_reentrant:  # which takes no keywords
            return checkpoint(lambda *given: self.block(*given, **kwargs), *args, use_reentrant=True)
        return checkpoint(self.block, *args, use_reentrant=False, **kwargs)


def checkpointed(step: Step, *, use_reentrant: bool) -> Step:
    """Return the step with every block of its network checkpointed."""
    for module in list(step.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BLOCKS):
                setattr(module, name, Checkpointed(child, use_reentrant=use_reentrant))
    step.x.requires_grad_()  # else the first block of a reentrant checkpoint has no gradient
    return step


def held_bytes(step: Step, context: Callable[[nn.Module], Any]) -> tuple[int, int]:
    """Return what two steps in a context hold at most, and what of it are float32 copies of parameters."""
    step()
    step.optimizer.zero_grad()
    gc.collect()
    copies = [0]

    def steps() -> None:
        with context(step.model) as run:
            step()
            step.optimizer.zero_grad()
            step()
            copies.extend(held.copy.nbytes for held in getattr(run, "parameters", ()) if held.copy is not None)

    return most_allocated(steps), sum(copies)


def rows(title: str, make: Callable[[], Step], names: Iterable[str]) -> None:
    """Print a row for each context, in ratio to the plain step of the same network."""
    plain = 0
    for name in names:
        held, copies = held_bytes(make(), CONTEXTS[name])
        plain = plain or held
        apart = f"{(held - copies) / plain:.2f}x" if copies else ""
        cells = [title, name, f"{held / MB:.1f}", f"{held / plain:.2f}x", f"{copies / MB:.1f}" if copies else "", apart]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table."""
    begin("Memory of a simulated training step", turns=None)
    print("\n| network | step | held, MB | of plain | of it copies, MB | without them |\n|---" + "|---" * 5 + "|")
    networks: dict[str, Callable[[], Step]] = {
        "ResNet-18, width 64, 32x32, batch 32": lambda: resnet(64, 32, 32),
        "transformer, width 256, 16 x 128 tokens": lambda: transformer(256, 128, 16),
    }
    for title, make in networks.items():
        rows(title, make, CONTEXTS)
        for kind, is_reentrant in {"reentrant": True, "not reentrant": False}.items():
            rows(f"{title}, checkpointed, {kind}", _checkpointed(make, use_reentrant=is_reentrant), CHECKPOINTED)


def _checkpointed(make: Callable[[], Step], *, use_reentrant: bool) -> Callable[[], Step]:
    return lambda: checkpointed(make(), use_reentrant=use_reentrant)


if __name__ == "__main__":
    main()
