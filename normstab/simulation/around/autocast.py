"""torch.autocast with the lists of CUDA, for tensors on the CPU: `autocast=cuda-fp16` and `cuda-bf16`.

Autocast stands above autograd in torch's dispatcher: a cast is an operation with a gradient, and what it casts is
then seen by the simulation. Here torch's own machinery is used, with kernels for its key that follow CUDA's lists;
they are registered while a simulation with autocast is open, and taken away with it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.formats import FORMATS
from normstab.numerics.precision import Precision
from normstab.simulation.around.places import ModuleTracker
from normstab.simulation.aten import autocast_lists as lists
from normstab.simulation.aten.scaled_operands import mark_weight
from normstab.torch_private import autocasts_of, schema_of, tree_leaves, version_of, without_autocast

__all__ = ["begin_autocast", "dtype_of", "lowered", "refuse_autocast"]

KEY = "AutocastCPU"
DTYPES = {"cuda-fp16": torch.float16, "cuda-bf16": torch.bfloat16}
FORMAT_OF = {torch.float16: FORMATS["fp16"], torch.bfloat16: FORMATS["bf16"]}
Kernel = Callable[..., Any]


def dtype_of(precision: Precision) -> torch.dtype | None:
    """Return the 16-bit type that a precision autocasts to, or None."""
    return DTYPES.get(precision.autocast)


def lowered(precision: Precision) -> Precision:
    """Return how results in the 16-bit type are computed under a precision with autocast; any other passes."""
    dtype = dtype_of(precision)
    return precision if dtype is None else replace(precision, compute=FORMAT_OF[dtype], recipe="")


def begin_autocast(dtype: torch.dtype, device: str, tracker: ModuleTracker, stack: ExitStack) -> None:
    """Autocast to `dtype` until `stack` is closed; on a CPU by CUDA's lists."""
    if device == "cpu":
        stack.callback(_register(Caster(dtype, tracker))._destroy)
    stack.enter_context(torch.autocast(device, dtype=dtype))


class Caster:
    """The kernels of autocast. They let backward passes and places of a wide rule pass as they are."""

    def __init__(self, dtype: torch.dtype, tracker: ModuleTracker) -> None:
        self.dtype = dtype
        self.tracker = tracker
        self._cached: dict[int, tuple[int, Tensor, Tensor]] = {}

    def lower(self, op: Any) -> Kernel:
        """Return `op` on operands of the 16-bit type."""
        return self._kernel(op, lambda args, kwargs: (self._cast(args, self.dtype), self._cast(kwargs, self.dtype)))

    def float32(self, op: Any) -> Kernel:
        """Return `op` on operands of float32."""
        return self._kernel(
            op, lambda args, kwargs: (self._cast(args, torch.float32), self._cast(kwargs, torch.float32))
        )

    def float32_by_dtype(self, op: Any) -> Kernel:
        """Return `op` asked for a result in float32, unless the caller asks for another."""
        position = [argument.name for argument in schema_of(op).arguments].index("dtype")
        is_keyword = schema_of(op).arguments[position].kwarg_only

        def prepare(args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
            given = kwargs.get("dtype") if is_keyword or len(args) <= position else args[position]
            if given is not None or not _is_eligible(args[0]):
                return args, kwargs
            return (args if is_keyword else args[:position]), {**kwargs, "dtype": torch.float32}

        return self._kernel(op, prepare)

    def float32_appended(self, op: Any, with_dtype: Any) -> Kernel:
        """Return `op` as the overload that takes the dtype of its result: float32 where the operand is cast at all."""
        defaults = [argument.default_value for argument in schema_of(op).arguments]

        def prepare(args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
            whole = (*args, *defaults[len(args) :])
            return whole, {**kwargs, "dtype": torch.float32 if _is_eligible(args[0]) else args[0].dtype}

        return self._kernel(with_dtype, prepare, otherwise=op)

    def promote(self, op: Any) -> Kernel:
        """Return `op` on operands of the widest type among them."""

        def prepare(args: Any, kwargs: Any) -> tuple[Any, Any]:
            found = {x.dtype for x in _tensors((args, kwargs)) if x.is_floating_point()}
            widest = next((d for d in (torch.float64, torch.float32) if d in found), self.dtype)
            return self._cast(args, widest), self._cast(kwargs, widest)

        return self._kernel(op, prepare)

    def banned(self, op: Any, why: str) -> Kernel:
        """Return a kernel that refuses, in torch's words."""

        def prepare(args: Any, kwargs: Any) -> tuple[Any, Any]:
            raise RuntimeError(why)

        return self._kernel(op, prepare)

    def _kernel(self, op: Any, prepare: Callable[[Any, Any], tuple[Any, Any]], *, otherwise: Any = None) -> Kernel:
        """Return the kernel that prepares the arguments and runs `op` below autocast."""

        def kernel(*args: Any, **kwargs: Any) -> Any:
            with without_autocast(KEY):
                if not self.tracker.autocasts_here():
                    return (otherwise or op)(*args, **kwargs)
                args, kwargs = prepare(args, kwargs)
                return op(*args, **kwargs)

        return kernel

    def _cast(self, tree: Any, dtype: torch.dtype) -> Any:
        """Return `tree` with every tensor that autocast casts in `dtype`."""
        if isinstance(tree, Tensor):
            return self._cast_tensor(tree, dtype) if _is_eligible(tree) and tree.dtype != dtype else tree
        if isinstance(tree, dict):
            return {name: self._cast(x, dtype) for name, x in tree.items()}
        return type(tree)(self._cast(x, dtype) for x in tree) if isinstance(tree, list | tuple) else tree

    def _cast_tensor(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a tensor cast; a parameter's cast is kept until the parameter changes or the next forward begins."""
        is_kept = dtype == self.dtype and x.dtype == torch.float32 and x.requires_grad and x.is_leaf
        if not is_kept or x._is_view() or not torch.is_grad_enabled():
            return x.to(dtype)
        kept = self._cached.get(id(x))
        if kept is None or kept[0] != version_of(x) or kept[1] is not x:
            kept = self._cached[id(x)] = version_of(x), x, x.to(dtype)
            mark_weight(kept[2])
        return kept[2]

    def forget(self) -> None:
        """Forget the casts of parameters: a forward of the root begins."""
        self._cached.clear()


def _register(caster: Caster) -> torch.library.Library:
    """Register CUDA's lists for the CPU's key, and let what only the CPU's lists have pass."""
    library = torch.library.Library("aten", "IMPL", KEY)
    caster.tracker.on_restart = caster.forget
    kernels = _kernels(caster)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a kernel is replaced, as is wanted
        for name, kernel in kernels.items():
            library.impl(name, kernel, **_ALLOWED)
        for name in _names_of_the_cpu():
            if name not in kernels:
                library.impl(name, torch.library.fallthrough_kernel, **_ALLOWED)
    return library


def _kernels(caster: Caster) -> dict[str, Kernel]:
    """Return a kernel for every operation in CUDA's lists that this torch has."""
    made = {name: caster.lower(op) for name in lists.LOWER if (op := _overload(name)) is not None}
    made |= {name: caster.float32(op) for name in lists.FLOAT32 if (op := _overload(name)) is not None}
    made |= {
        name: caster.float32_by_dtype(op) for name in lists.FLOAT32_BY_DTYPE if (op := _overload(name)) is not None
    }
    made |= {name: caster.promote(op) for name in lists.PROMOTE if (op := _overload(name)) is not None}
    for name, why in lists.BANNED.items():
        made[name] = caster.banned(_overload(name), why)
    for name, other in lists.FLOAT32_APPENDED.items():
        made[name] = caster.float32_appended(_overload(name), _overload(other))
    return made


@cache
def _names_of_the_cpu() -> tuple[str, ...]:
    """Return the operations for which torch itself autocasts on the CPU."""
    found = autocasts_of(KEY)
    return tuple(name.removeprefix("aten::") for name in found if name.startswith("aten::"))


def _overload(name: str) -> Any:
    """Return the operation of a name of the lists, or None where this torch does not have it."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)


def _is_eligible(x: Any) -> bool:
    """Whether autocast casts an operand: floating, on the CPU, and no float64."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 and x.device.type == "cpu"


def _tensors(tree: Any) -> list[Tensor]:
    """Return every tensor in a tree of arguments."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


# Older versions of torch do not ask whether a kernel may be replaced.
_ALLOWED = (
    {"allow_override": True} if "allow_override" in inspect.signature(torch.library.Library.impl).parameters else {}
)


def autocast_depth() -> int:
    """Return how many contexts of autocast are open; below them in the dispatcher torch says that none is."""
    depth: int = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def refuse_autocast(name: str, found: torch.dtype, machine: object) -> None:
    """Raise for an operation on another 16-bit type where code of the network's own turned autocast on."""
    if found in (torch.float16, torch.bfloat16) and autocast_depth():
        kind = "fp16" if found == torch.float16 else "bf16"
        raise NormstabError(
            f"{name}: torch.autocast to {str(found).removeprefix('torch.')} inside a simulation of {machine} is not "
            f"emulated; simulate amp-{kind}, or switch autocast off in the code"
        )
