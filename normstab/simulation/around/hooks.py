"""Hooks on a model's modules and on optimizers: they tell the simulation where it is, and cast root inputs.

Each does nothing once its session has ended, so that a copy of the model made meanwhile is a plain model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.execute import round_tensor
from normstab.numerics.readable.reference import contains, holds
from normstab.simulation.around.compilation import inside_compiled, unseen
from normstab.simulation.around.dispatch_mode import drop_ended_modes
from normstab.simulation.around.places import Place
from normstab.simulation.around.session import Session
from normstab.simulation.run import Run
from normstab.torch_private import autograd_node, has_modes, modes_off, tree_map_only

__all__ = ["hook_crossing", "put_in_place"]


def put_in_place(session: Session, stack: ExitStack) -> None:
    """Put a session's hooks on its model and on optimizers; closing `stack` takes them away and ends the session."""
    drop_ended_modes()
    stack.callback(session.end)
    for held in session.held:
        if held.is_parameter:
            session.tracker.own(held.tensor, held.place)
    hook_modules(session, stack)
    hook_optimizers(session, stack)


def hook_modules(session: Session, stack: ExitStack) -> None:
    """Note where every module is entered and left until `stack` is closed."""
    thread, model = threading.get_ident(), session.model
    inside = inside_compiled(model)
    for module, place in session.places.items():
        enter, leave = _module_hooks(place, session, thread, is_root=module is model)
        if module in inside:  # a hook that is always called has a number, for which the compiler makes a graph anew
            enter, leave = unseen(enter), unseen(leave)
        stack.callback(module.register_forward_hook(leave, always_call=module not in inside).remove)
        stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
    root = _root_hook(session.places[model], session, thread)
    root = unseen(root) if model in inside else root
    stack.callback(model.register_forward_pre_hook(root, prepend=True, with_kwargs=True).remove)


def _module_hooks(
    place: Place, session: Session, thread: int, *, is_root: bool
) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Return what is called before and after the forward of one module."""
    tracker = session.tracker
    kept: list[bool] = []  # whether oneDNN was on: it runs a recurrent layer as one operation

    def enter(module: nn.Module, args: Any) -> Any:
        if session.is_idle or not _is_ours(session, thread, place):
            return None
        session.ensure_entered()
        cast = None
        if not tracker.is_inside_module:
            session.begin_module()
            if place.shown is not None and not is_root and not is_recomputing():
                cast = Caster(place, session.run).cast(args)
        tracker.enter(place)
        if isinstance(module, nn.RNNBase) and not place.passes:
            kept.append(torch.backends.mkldnn.set_flags(_enabled=False)[0])
        return cast

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if kept:
            torch.backends.mkldnn.set_flags(_enabled=kept.pop())
        was_inside = tracker.is_inside_module
        tracker.leave(place)
        if was_inside and not tracker.is_inside_module:
            session.end_module()

    return enter, leave


def _root_hook(place: Place, session: Session, thread: int) -> Callable[..., Any]:
    """Return what is called before the forward of the root: it counts steps and casts floating inputs."""

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if session.is_idle or threading.get_ident() != thread:
            return None
        if session.tracker.is_inside_module:
            return None
        if is_recomputing():
            if place.shown is None or not session.casts_inputs:
                return None
        else:
            session.begin_root_forward()
        if place.passes or not session.casts_inputs:
            return None
        caster = Caster(place, session.run)
        return caster.cast(args), caster.cast(kwargs)

    return begin


def is_recomputing() -> bool:
    """Whether a backward pass is running: a module that begins there is run once more for its gradient."""
    return autograd_node() is not None


def _is_ours(session: Session, thread: int, place: Place) -> bool:
    """Whether this thread is simulated: torch modes belong to the thread that entered them, and to its backward."""
    if threading.get_ident() == thread or has_modes() > 0:
        return True
    session.run.note(f"module {place.name or '(root)'!r} ran in a thread that is not simulated")
    return False


class Caster:
    """Casts the floating tensors among a root module's arguments at the site `input`."""

    def __init__(self, place: Place, run: Run) -> None:
        self.arithmetic = place.arithmetic
        self.shown = place.shown
        self.run = run

    def cast(self, x: Any) -> Any:
        """Return `x` with every floating tensor in it cast, in lists, tuples and dicts too."""
        if isinstance(x, Tensor):
            return self._cast_tensor(x)
        if type(x) is dict:
            return {name: self.cast(value) for name, value in x.items()}
        if type(x) in (list, tuple):
            return type(x)(self.cast(value) for value in x)
        return x

    def _cast_tensor(self, x: Tensor) -> Tensor:
        """Return one tensor cast; the gradient passes straight through."""
        format = self.arithmetic.format
        if x.is_complex() and self.shown is None and x.layout == torch.strided:
            return torch.view_as_complex(self._cast_tensor(torch.view_as_real(x.resolve_conj())).contiguous())
        if not x.is_floating_point():
            return x
        if x.layout != torch.strided or x.is_nested:
            self.run.note("an input that is no dense tensor was cast by torch to the network's dtype, uncounted")
            return x if self.shown is None else x.to(self.shown)
        if self.shown is not None:
            shown: Tensor = _InDtype.apply(x, self.arithmetic, self.shown)
            return shown
        if not (holds(x.dtype, format) or contains(format, x.dtype)):
            self.run.note(f"an input of dtype {x.dtype} cannot hold {format} and was used as it came")
            return x
        if not format.fits_float32 and x.dtype != torch.float64:
            self.run.note(f"an input of dtype {x.dtype} holds fewer bits than {format}; use model.double()")
        result: Tensor = _StraightThrough.apply(x, self.arithmetic)
        return result


class _StraightThrough(torch.autograd.Function):
    """Cast at the site `input`; the gradient passes unchanged."""

    @staticmethod
    def forward(x: Tensor, arithmetic: Any) -> Tensor:
        with modes_off():
            return round_tensor(x, arithmetic.call("input"))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing; no gradient stays none (that of a count, say), and does not become zeros."""
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, arithmetic: Any) -> tuple[Tensor, Any]:
        """Cast a batch of inputs as one tensor."""
        return _StraightThrough.apply(x, arithmetic), in_dims[0]  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _InDtype(torch.autograd.Function):
    """Cast at the site `input`, to the network's dtype; the gradient comes back in the dtype of the input."""

    @staticmethod
    def forward(x: Tensor, arithmetic: Arithmetic, dtype: torch.dtype) -> Tensor:
        with modes_off():
            wide = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
            return round_tensor(wide, arithmetic.call("input")).to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the dtype of the input."""
        ctx.dtype = inputs[0].dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, arithmetic: Arithmetic, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """Cast a batch of inputs as one tensor."""
        return _InDtype.apply(x, arithmetic, dtype), in_dims[0]  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        with modes_off():
            return None if grads[0] is None else grads[0].to(ctx.dtype), None, None


def hook_crossing(module: nn.Module, inside: Place, outside: Place, stack: ExitStack, *, casts_back: bool) -> None:
    """Widen what enters a module whose rule is wider than the network's dtype, and cast back what leaves it.

    Not so under autocast: there a wide tensor is as good as another.
    """

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        into, out_of = inside.shown or torch.float32, outside.shown or torch.float32
        return _moved(args, out_of, into), _moved(kwargs, out_of, into)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return _moved(output, inside.shown or torch.float32, outside.shown or torch.float32)

    stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
    if casts_back:
        stack.callback(module.register_forward_hook(leave).remove)


def _moved(tree: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Return `tree` with every tensor of the dtype `old` in `new`."""
    return tree_map_only(Tensor, lambda x: x.to(new) if x.dtype == old else x, tree)


def hook_optimizers(session: Session, stack: ExitStack) -> None:
    """Note the steps of every optimizer of torch that runs in this thread until `stack` is closed."""
    thread = threading.get_ident()

    def begin(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not session.is_idle and threading.get_ident() == thread:
            session.begin_optimizer_step(optimizer)

    def end(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not session.is_idle and threading.get_ident() == thread:
            session.end_optimizer_step(optimizer)

    stack.callback(register_optimizer_step_pre_hook(begin).remove)
    stack.callback(register_optimizer_step_post_hook(end).remove)
