"""Every name of torch that torch does not document, in one place, each with what serves where a version lacks it.

    TorchDispatchMode, modes_off, mode_stack   operations below autograd; without them nothing can be simulated
    autograd_node, next_node_number            which part of the network a backward pass is in
    ...                                        the rest costs a feature, or speed, and never a right result

A name that is missing is listed in MISSING, which `normstab doctor` shows. What torch's objects keep under an
underscore (`x._version`, `module._parameters`) is only gathered here: nothing could stand for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from normstab.errors import NormstabError
from normstab.trees import leaves, mapped, mapped_only

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = [
    "MISSING", "REENTRANT", "TorchDispatchMode", "aot_backend", "autocasts_of", "autograd_node", "backend_of",
    "backward_pass", "break_graph", "compiled_call", "compiles_under_modes", "decomposition", "decompositions_like",
    "default_store", "flat_weights", "function_mode", "has_modes", "is_batched", "is_composite",
    "is_traced_by_a_mode", "is_transformed", "is_transforming", "is_zero_tensor", "mode_stack", "modes_off",
    "next_node_number", "node_number", "original_module", "overload_name", "saved_order", "saved_tensor_hooks",
    "schema_of", "set_compiler", "sparse_parts", "storage_key", "switches_free", "tables_of", "tracing_state",
    "tree_leaves", "tree_map", "tree_map_only", "version_of", "without_autocast",
]  # fmt: skip

MISSING: list[str] = []
"""The private names that this torch does not have."""


def _found(path: str, otherwise: Any) -> Any:
    """Return what torch has at a dotted path, a module's or an object's; where it has nothing, note that."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(_place(module), name)
    except (AttributeError, ImportError):
        if path not in MISSING:
            MISSING.append(path)
        return otherwise


def _place(path: str) -> Any:
    """Return a module, or an object in one (parts of torch's C library are attributes, and no modules)."""
    try:
        return import_module(path)
    except ImportError:
        outer, _, name = path.rpartition(".")
        return getattr(_place(outer), name)


def _nothing(*_: Any) -> None:
    """Say that there is none."""


# ------------------------------------------------------------------------------ modes: operations below autograd


class _NoMode:
    """Stands where this torch has no dispatch modes."""

    def __init__(self) -> None:
        raise NormstabError(
            f"torch {torch.__version__} lacks torch.utils._python_dispatch.TorchDispatchMode, through which normstab "
            "sees operations; `normstab doctor` names the versions that were tested"
        )


@contextlib.contextmanager
def _cannot_leave() -> Iterator[None]:
    """Stand for the context that leaves every mode: without modes there is none to leave."""
    yield


if not TYPE_CHECKING:
    TorchDispatchMode = _found("torch.utils._python_dispatch.TorchDispatchMode", _NoMode)
    tree_leaves = _found("torch.utils._pytree.tree_leaves", leaves)
    tree_map = _found("torch.utils._pytree.tree_map", mapped)
    tree_map_only = _found("torch.utils._pytree.tree_map_only", mapped_only)

modes_off: Callable[[], contextlib.AbstractContextManager[Any]] = _found(
    "torch.utils._python_dispatch._disable_current_modes", _cannot_leave
)
"""A context in which no mode sees what is computed."""
mode_stack: Callable[[], list[Any]] = _found("torch.utils._python_dispatch._get_current_dispatch_mode_stack", list)
"""Return this thread's modes, the outermost first."""
has_modes: Callable[[], int] = _found("torch._C._len_torch_dispatch_stack", lambda: len(mode_stack()))
"""Return how many modes this thread has."""
set_compiler: Callable[[Any], Any] = _found("torch._C._dynamo.eval_frame.set_eval_frame", _nothing)
"""Set what compiles this thread's frames (None: nothing does) and return what did before.

torch's own guard against being compiled costs more than a dispatch; without this name frames of ours may be compiled.
"""
function_mode: Callable[[], Any] = _found("torch.overrides._get_current_function_mode", _nothing)
"""Return this thread's innermost mode of functions, or None."""

tracing_state: Callable[[], Any] = _found("torch._C._get_tracing_state", _nothing)
"""Return what torch.jit.trace keeps while it records this thread's operations, or None."""


def is_traced_by_a_mode() -> bool:
    """Whether operations are recorded or run on fake tensors: by make_fx, export or FakeTensorMode."""
    keys, mode_of = _TRACING
    return any(mode_of(key) is not None for key in keys)


_KEYS = _found("torch._C._TorchDispatchModeKey", None)
_TRACING = ((_KEYS.FAKE, _KEYS.PROXY) if _KEYS else (), _found("torch._C._get_dispatch_mode", _nothing))

# ------------------------------------------------------------------------------------------------------- autograd

autograd_node: Callable[[], Any] = _found("torch._C._current_autograd_node", _nothing)
"""Return the node of the backward pass that is being evaluated, or None outside of one.

Without it what runs in a backward pass is counted as part of the forward one.
"""
next_node_number: Callable[[], int] = _found("torch._C._autograd._get_sequence_nr", lambda: 0)
"""Return the number that the next node of this thread gets; nodes are numbered in order of creation."""
backward_pass: Callable[[], int] = _found("torch._C._current_graph_task_id", lambda: -1)
"""Return the number of the backward pass that runs in this thread; -1: none."""
saved_tensor_hooks: Callable[[bool], Any] = _found("torch._C._autograd._top_saved_tensors_default_hooks", _nothing)
"""Return the innermost pair of hooks for saved tensors, or None; the argument: whether tracing is to be overlooked."""
REENTRANT: Any = getattr(checkpoint.CheckpointFunction, "_backward_cls", None)
"""The type of the node of a reentrant checkpoint."""


def node_number(node: Any) -> int:
    """Return the number of a node."""
    return int(node._sequence_nr())


def saved_order(node: Any) -> Any:
    """Return the order of the norm that a node of `torch.dist` keeps."""
    return node._saved_p


is_transforming: Callable[[], bool] = _found("torch._C._are_functorch_transforms_active", lambda: False)
"""Whether a transform of torch.func is being evaluated."""
is_transformed: Callable[[Tensor], bool] = _found("torch._C._functorch.is_functorch_wrapped_tensor", lambda x: False)
"""Whether a transform of torch.func has wrapped a tensor."""
_is_batched: Callable[[Tensor], bool] = _found("torch._C._functorch.is_batchedtensor", lambda x: False)
_is_batch: Callable[[Tensor], bool] = _found("torch._C._functorch.is_legacy_batchedtensor", lambda x: False)


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for many: under vmap, or as a gradient of `grad(is_grads_batched=True)`."""
    return _is_batched(tensor) or _is_batch(tensor)


# ------------------------------------------------------------------------------------------- operations by name


def schema_of(operation: Any) -> Any:
    """Return the schema of an overload: its name, its arguments, its results."""
    return operation._schema


def overload_name(operation: Any) -> str:
    """Return the name of an overload without that of its operation: `dim` of `aten.sum.dim`."""
    return str(operation._overloadname)


_has_kernel: Callable[[str, str], bool] = _found("torch._C._dispatch_has_kernel_for_dispatch_key", lambda *_: False)
_registered: Callable[[str], list[str]] = _found(
    "torch._C._dispatch_get_registrations_for_dispatch_key", lambda key: []
)
_excluding: Any = _found("torch._C._ExcludeDispatchKeyGuard", None)


def is_composite(operation: Any) -> bool:
    """Whether torch itself makes an operation of smaller ones."""
    return _has_kernel(operation.name(), "CompositeImplicitAutograd")


def decomposition(operation: Any) -> Callable[..., Any] | None:
    """Return torch's own function that computes an operation by smaller ones, or None."""
    known = _found("torch._decomp.get_decompositions", lambda operations: {})([operation])
    found: Callable[..., Any] | None = known.get(operation)
    return found


def autocasts_of(key: str) -> list[str]:
    """Return the names of the operations for which torch has a kernel under a key of autocast."""
    return list(_registered(key))


def without_autocast(key: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which torch's dispatcher passes over a key of autocast."""
    if _excluding is None:
        raise NormstabError(
            f"torch {torch.__version__} lacks torch._C._ExcludeDispatchKeyGuard, so autocast cannot be emulated; "
            "simulate a machine without autocast, such as half or fp16"
        )
    context: contextlib.AbstractContextManager[Any] = _excluding(
        torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    )
    return context


switches_free: Callable[[], Any] = _found("torch.backends.__allow_nonbracketed_mutation", contextlib.nullcontext)
"""A context in which the switches of torch.backends can be set, also after `torch.backends.disable_global_flags`."""


# ----------------------------------------------------------------------------------------- tensors and modules


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to; inference tensors are not counted: 0."""
    return 0 if tensor.is_inference() else tensor._version


def storage_key(tensor: Tensor) -> int | None:
    """Return what tells a tensor's memory from any other while it lives; None for sparse tensors and wrapped ones."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # torch says by raising alone that there is no memory
        return None


def is_zero_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is torch's own of zeros, which has no memory."""
    return bool(tensor._is_zerotensor())


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices and values of a sparse tensor as they are kept, those of one place not yet added up."""
    return tensor._indices(), tensor._values()


def tables_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the dictionaries where a module looks up its parameters and its buffers."""
    return module._parameters, module._buffers


def flat_weights(module: nn.RNNBase) -> list[Any]:
    """Return the list where a recurrent layer looks up its weights."""
    weights: list[Any] = module._flat_weights
    return weights


def default_store() -> Any:
    """Return the store at which the processes of torch.distributed met; None where this torch does not say.

    Without it a process that is gone is named by torch's own errors alone.
    """
    return _found("torch.distributed.distributed_c10d._get_default_store", _nothing)()


# ------------------------------------------------------------------------------------------------- torch.compile

compiles_under_modes = bool(_found("torch.utils._python_dispatch.TorchDispatchMode.ignore_compile_internals", None))
"""Whether torch compiles frames under a mode that allows it; where not, a compiled module is run uncompiled."""


def break_graph(reason: str) -> None:
    """Tell torch.compile, which is reading this frame, to end its graph here."""
    torch._dynamo.graph_break(msg=reason)  # type: ignore[no-untyped-call]


def compiled_call(module: nn.Module) -> Any:
    """Return what `module.compile()` calls instead of its forward, or None."""
    return getattr(module, "_compiled_call_impl", None)


def original_module(module: nn.Module) -> nn.Module | None:
    """Return the module that torch.compile has wrapped in `module`, or None."""
    return getattr(module, "_orig_mod", None) if type(module).__name__ == "OptimizedModule" else None


def backend_of(module: nn.Module) -> tuple[str, Any]:
    """Return the name of the backend of a module that torch.compile made, and the backend itself."""
    found: Any = getattr(module.dynamo_ctx, "callback", None)
    while hasattr(found, "_torchdynamo_orig_backend"):
        found = found._torchdynamo_orig_backend
    return str(getattr(found, "compiler_name", found)), getattr(found, "compiler_fn", found)


def aot_backend(**how: Any) -> Any:
    """Return a backend of torch.compile whose graphs are of aten operations, a forward and a backward one."""
    if (make := _found("torch._dynamo.backends.common.aot_autograd", None)) is None:
        raise NormstabError(f"torch {torch.__version__} lacks aot_autograd: the backend normstab cannot lower graphs")
    return make(**how)


def decompositions_like(compiler: str) -> Any:
    """Return what torch takes operations apart into: its "core" set, or the set of its compiler "inductor"."""
    names = {"core": "_decomp.core_aten_decompositions", "inductor": "_inductor.decomposition.select_decomp_table"}
    return _found(f"torch.{names[compiler]}", dict)()
