"""What a CUDA graph does, for tests without a GPU: a step's operations and launches, run again at the same addresses.

While a step is recorded, every operation below autograd and every launch in Triton's interpreter is noted with the
memory of its arguments and results; what it wrote is taken back, and what it made is spoilt. A replay runs them in
order. So whatever a step does on the host, or reads from where the recording left it, shows.
"""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from triton.runtime.interpreter import InterpretedFunction

from normstab import torch_private
from normstab.norms import running
from normstab.numerics.sums import kernels_of_sums
from normstab.simulation.captured import cuda_graph

# What torch refuses while a stream is captured, for it waits for the device, or copies from the host.
REFUSED = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "lift_fresh")


class FakeGraph(TorchDispatchMode):
    """Records while `is_recording`; it lies below every other mode, and is there when those are off."""

    def __init__(self):
        super().__init__()
        self.is_recording = False
        self.noted, self.before, self.made = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.is_recording:
            return func(*args, **kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in REFUSED:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        self.keep((args, kwargs))
        addresses = tree_map_only(torch.Tensor, lambda x: x.data, (args, kwargs))
        results = func(*args, **kwargs)
        read = {storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        fresh = [x for x in tree_leaves(results) if isinstance(x, torch.Tensor) and storage(x) not in read]
        self.made |= {storage(x): x.data for x in fresh}
        is_empty = name.startswith(("empty", "new_empty"))
        self.noted.append(lambda: None if is_empty else again(func, *addresses, results))
        return results

    def keep(self, tree):
        """Remember what is in memory that was there before the recording."""
        for x in tree_leaves(tree):
            if isinstance(x, torch.Tensor) and storage(x) not in self.made and storage(x) not in self.before:
                self.before[storage(x)] = x.untyped_storage(), x.untyped_storage().clone()

    def launch(self, run, args, kwargs):
        """Run a kernel, and note it."""
        if not self.is_recording:
            return run(*args, **kwargs)
        with self.unseen():  # the interpreter computes by operations of its own
            self.keep((args, kwargs))
            given = tree_map_only(torch.Tensor, lambda x: x.data, (args, kwargs))
            self.noted.append(lambda: run(*given[0], **given[1]))
            return run(*args, **kwargs)

    @contextmanager
    def unseen(self):
        """Record nothing inside."""
        was, self.is_recording = self.is_recording, False
        try:
            yield
        finally:
            self.is_recording = was

    def recorded(self, step, device):
        """Stand for `cuda_graph.recorded`."""
        self.noted, self.before, self.made = noted, before, made = [], {}, {}
        self.is_recording = True
        try:
            outputs = step()
        finally:
            self.is_recording = False
            for memory, was in before.values():
                memory.copy_(was)
            for x in made.values():
                x.untyped_storage().fill_(0x7B)

        def replay():
            with torch.no_grad():
                for each in noted:
                    each()

        return replay, outputs


def storage(x):
    """What two tensors have in common that share memory."""
    return x.untyped_storage()._cdata


def again(func, args, kwargs, results):
    """Run an operation once more, its new results written where the recorded ones lie."""
    found = func(*args, **kwargs)
    for new, old in zip(tree_leaves(found), tree_leaves(results), strict=True):
        if isinstance(new, torch.Tensor) and storage(new) != storage(old):
            old.data.copy_(new)


@contextmanager
def fake_graphs():
    """Have steps recorded by a fake graph, which is yielded, instead of CUDA's."""
    graph, own = FakeGraph(), InterpretedFunction.run

    @contextmanager
    def seen_off():
        with modes_off(), graph:
            yield

    def from_numpy(array):
        with graph.unseen():  # a tensor of the host, which no device reads
            return own_from_numpy(array)

    modes_off, own_from_numpy = torch_private.modes_off, torch.from_numpy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            InterpretedFunction,
            "run",
            lambda kernel, *a, **kw: graph.launch(lambda *given, **named: own(kernel, *given, **named), a, kw),
        )
        for module in [m for name, m in sys.modules.items() if name.startswith("normstab")]:
            if getattr(module, "modes_off", None) is modes_off:
                patch.setattr(module, "modes_off", seen_off)
        patch.setattr(torch, "from_numpy", from_numpy)
        # Kernels of the CPU that a device has not: they are no launches, and would not be seen.
        patch.setattr(running, "_by_kernel", lambda *given: False)
        patch.delitem(kernels_of_sums.KERNELS, ("cpu", "functions"))
        patch.setitem(kernels_of_sums.KERNELS, ("cpu", "welford"), kernels_of_sums.KERNELS["cuda", "welford"])
        patch.setattr(cuda_graph, "recorded", graph.recorded)
        with graph:
            yield graph
