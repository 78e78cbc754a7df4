"""torch.compile beside a torch mode: our own frames are never to be compiled, what runs inside is not.

Nothing here imports the compiler: where nobody has, there is nothing to do.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from normstab.torch_private import compiled_call

__all__ = ["are_fake", "is_compiled", "keep_uncompiled"]


def keep_uncompiled(mode_type: Any) -> None:
    """Tell the compiler, if it is loaded, to leave the dispatch of a mode alone."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None:
        compiler.skip_code(mode_type.__torch_dispatch__.__code__)  # type: ignore[attr-defined]


def are_fake(types: Any) -> bool:
    """Whether tensors of shapes without numbers are among those of `types`: DTensors ask torch for results' shapes."""
    kind = getattr(sys.modules.get("torch._subclasses.fake_tensor"), "FakeTensor", None)
    return kind is not None and any(issubclass(found, kind) for found in types)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was made by torch.compile, or compiles its forward."""
    return type(module).__name__ == "OptimizedModule" or compiled_call(module) is not None
