"""torch.compile beside a torch mode: which modules it made, what they are called, and frames that it leaves alone.

Nothing here imports the compiler: where nobody has, there is nothing to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from normstab.torch_private import compiled_call, original_module, set_compiler

__all__ = ["are_fake", "inside_compiled", "is_compiled", "keep_uncompiled", "named_modules", "unseen"]

WRAPPED = "_orig_mod"  # what torch.compile calls the module in its wrapper


def keep_uncompiled(mode_type: Any) -> None:
    """Tell the compiler, if it is loaded, to leave the dispatch of a mode alone."""
    leave_alone(mode_type.__torch_dispatch__)


def leave_alone(function: Any) -> None:
    """Tell the compiler, if it is loaded, not to compile the frames of a function by themselves."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None:
        compiler.skip_code(function.__code__)  # type: ignore[attr-defined]


def unseen(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that is no part of a compiled graph, and that runs as it is where no graph runs its module."""

    def run(*args: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return None  # the compiler reads this frame into the graph of a module around it: there no hook is run
        compiler = set_compiler(None)
        try:
            return hook(*args)
        finally:
            set_compiler(compiler)

    leave_alone(run)
    return run


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a network by the names that they have before torch.compile wraps any."""
    for name, module in model.named_modules():
        yield ".".join(part for part in name.split(".") if part != WRAPPED), module


def inside_compiled(model: nn.Module) -> frozenset[nn.Module]:
    """Return the modules whose calls the compiler may read: those inside what it made, those that compile their own."""
    outer = [module for module in model.modules() if original_module(module) is not None]
    own = [module for module in model.modules() if compiled_call(module) is not None]
    found = {inner for module in outer for inner in module.modules() if inner is not module}
    return frozenset(found.union(inner for module in own for inner in module.modules()))


def are_fake(types: Any) -> bool:
    """Whether tensors of shapes without numbers are among those of `types`: DTensors ask torch for results' shapes."""
    kind = getattr(sys.modules.get("torch._subclasses.fake_tensor"), "FakeTensor", None)
    return kind is not None and any(issubclass(found, kind) for found in types)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was made by torch.compile, or compiles its forward."""
    return original_module(module) is not None or compiled_call(module) is not None
