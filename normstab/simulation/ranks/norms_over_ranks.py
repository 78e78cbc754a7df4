"""SyncBatchNorm in a simulation: statistics over processes, formed in the norm's own arithmetic.

Each process sums its own values, in the format and order of its accumulation. The partial sums, one per channel, are
joined as gradients are, by the stated collective: forward at `mean.all_reduce` and `dispersion.all_reduce`, backward at
`mean.all_reduce` and `product.all_reduce`. Everything else is batch norm as `norms` has it. torch's own kernels, which
are for GPUs alone, are not used, but where a rule leaves the layer native on one.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normstab.errors import NormstabError
from normstab.norms.catalogue import parse_norm
from normstab.norms.functional import (
    Reduction,
    Scheme,
    normalize_backward,
    normalize_forward,
    update_running,
)
from normstab.norms.modules import BatchForward
from normstab.norms.unrounded.outputs import own
from normstab.norms.wide_norm import INSIDE
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.formats import AnyFormat
from normstab.numerics.sums.means import Shared
from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.overloads import Plan, plan_of
from normstab.simulation.ranks.exchange import all_reduced
from normstab.simulation.ranks.joining import Joining
from normstab.simulation.simulated_session import Simulation
from normstab.torch_private import modes_off

__all__ = ["synchronize_norms"]

L2 = parse_norm("l2")
FORWARD = plan_of(torch.ops.aten.native_batch_norm.default)
# Our backward is given the gradient alone: the rest is kept by the node itself.
BACKWARD = plan_of(torch.ops.aten.native_batch_norm_backward.default)._replace(raw=(), cast_inside=())
HALVES = (torch.float16, torch.bfloat16)


def synchronize_norms(session: Simulation, stack: ExitStack) -> None:
    """Let the SyncBatchNorms of a network form their statistics in its arithmetics until `stack` is closed.

    Raises NormstabError for one whose forward pass is not torch's own.
    """
    for name, module in session.model.named_modules():
        if not isinstance(module, nn.SyncBatchNorm):
            continue
        owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
        if owner is not nn.SyncBatchNorm:
            raise NormstabError(
                f"simulate: module {name or '(root)'!r}: {owner.__name__} is a SyncBatchNorm with a forward pass of "
                "its own, in which no arithmetic can form the statistics over processes; use torch.nn.SyncBatchNorm "
                "itself, and a module of its own for what comes after it"
            )
        before = module.__dict__.get("forward")
        # A method, which a copy of the network has of the copy.
        module.forward = MethodType(_forward_in(session), module)  # type: ignore[method-assign]
        stack.callback(_give_back, module, before)


def _give_back(module: nn.Module, before: Any) -> None:
    """Give a module the forward pass that it had."""
    module.__dict__.pop("forward", None)
    if before is not None:
        module.forward = before  # type: ignore[method-assign]


def _forward_in(session: Simulation) -> Any:
    """Return the forward pass of a SyncBatchNorm within a session; torch's own where nothing is synchronized."""

    def forward(self: Any, x: Tensor) -> Any:
        group = _group_of(self)
        place = session.tracker.here()
        is_torchs = place.passes and x.device.type != "cpu"
        if session.is_idle or is_torchs or group is None or not self.training:
            return type(self).forward(self, x)
        self._check_input_dim(x)
        self._check_non_zero_input_channels(x)
        running = BatchForward._running(self)
        norm = _Norm(session, group, self.eps, running.momentum, (running.mean, running.var))
        return _OverRanks.apply(x, self.weight, self.bias, norm)  # type: ignore[no-untyped-call]

    return forward


def _group_of(module: nn.SyncBatchNorm) -> dist.ProcessGroup | None:
    """Return the processes of a SyncBatchNorm, None where there are no others."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    group: Any = module.process_group if module.process_group is not None else dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


class _Norm(NamedTuple):
    """One call of a SyncBatchNorm: its session and processes, and what torch's batch norm is told."""

    session: Simulation
    group: dist.ProcessGroup
    eps: float
    momentum: float
    running: tuple[Tensor | None, Tensor | None]

    def count(self, x: Tensor) -> int:
        """Return how many values of a channel all processes have."""
        n = torch.tensor(Reduction.of_batch(x.shape).n, dtype=torch.int64, device=x.device)
        dist.all_reduce(n, group=self.group)
        return int(n)

    def run(self, plan: Plan, compute: Handler, arguments: tuple[Any, ...]) -> Any:
        """Return what `compute` makes of the arguments at the place that runs now, as the mode runs any operation."""
        place = self.session.tracker.here()

        def as_torch(*args: Any) -> Result:
            if not place.passes and any(isinstance(x, Tensor) and x.dtype in HALVES for x in args[:2]):
                raise RuntimeError("no batch norm takes numbers of 16 bits beside wide ones")
            return compute(Operation(plan.name, as_torch, args, {}, INSIDE))

        return self.session.mode.run_at(as_torch, plan._replace(handler=compute), place, arguments, {})

    def forward(self, op: Operation, n: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the output, and what backward needs; `n` values of each channel there are in all processes."""
        x, gamma, beta, running_mean, running_var, *_ = op.args
        reduction = Reduction.of_batch(x.shape).over(self._shared(op.ar, n))
        scheme = Scheme(L2, eps=self.eps, tracks=running_var is not None)
        done = normalize_forward(x.float() if x.dtype in HALVES else x, gamma, beta, scheme, reduction, op.ar)
        for buffer, new, name in ((running_mean, done.mean, "running_mean"), (running_var, done.stored, "running_var")):
            if buffer is not None and new is not None:
                update_running(buffer, new, self.momentum, reduction, op.ar, operation=name)
        return own(done.output.to(x.dtype), done.saved), done.saved

    def backward(self, op: Operation, n: int, saved: Any, needs: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, gamma and beta."""
        grad = op.args[0]
        reduction = Reduction.of_batch(grad.shape).over(self._shared(op.ar, n))
        wide = grad.float() if grad.dtype in HALVES else grad
        found = normalize_backward(wide, saved, Scheme(L2, eps=self.eps), reduction, op.ar, needs)
        d_input = None if found.input is None else found.input.to(grad.dtype)
        return d_input, *(None if g is None else g.reshape(-1) for g in (found.gamma, found.beta))

    def _shared(self, ar: Arithmetic, n: int) -> Shared:
        """Return how partial sums are joined: as the precision of `ar` says, counted in `ar`."""
        size, collective = dist.get_world_size(self.group), ar.precision.collective
        is_uncounted = ar.is_native or (ar.precision.norm == "wide" and collective is None)

        def join(partial: Tensor, format: AnyFormat, operation: str) -> Tensor:
            name, rounding = f"{operation}.all_reduce", ar.precision.rounding
            joining = Joining(name, ar, collective, format, size, kept_rounding=rounding)
            if is_uncounted:
                joining = Joining(name, None, None, None, size)
            return all_reduced([partial], [joining], self.group)[0].to(partial.dtype)

        return Shared(n, join)


class _OverRanks(torch.autograd.Function):
    """Batch norm over processes: one operation forward and one backward, at the places where they run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, norm: _Norm) -> Tensor:
        ctx.norm = norm
        with modes_off():
            ctx.n = norm.count(x)
            if ctx.n == 0:  # no process has a value: there is nothing to normalize, and nothing to normalize by
                return x.clone()
            kept: list[Any] = []

            def compute(op: Operation) -> Result:
                output, saved = norm.forward(op, ctx.n)
                kept.append(saved)
                return (output,)

            arguments = (x, gamma, beta, *norm.running, True, norm.momentum, norm.eps)
            output: Tensor = norm.run(FORWARD, compute, arguments)[0]
        ctx.kind = type(kept[-1])
        ctx.save_for_backward(*kept[-1])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors  # a checkpoint runs its forward again here, under the modes
        with modes_off():
            needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
            if ctx.n == 0:
                nothing = [torch.zeros(grad.shape[1], device=grad.device) if need else None for need in needs[1:]]
                return grad.clone(), *nothing, None
            saved = ctx.kind(*kept)
            gradients = ctx.norm.run(BACKWARD, lambda op: ctx.norm.backward(op, ctx.n, saved, needs), (grad,))
        return *gradients, None
