"""The torch mode of `record`: torch computes, and the exponents of every result are counted at its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from normstab.norms.functional import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.formats import AnyFormat, format_of_dtype
from normstab.simulation.around.dispatch_mode import Arguments, DispatchMode, Named
from normstab.simulation.around.places import Place
from normstab.simulation.aten.norm_ops import NORM_OPERATIONS
from normstab.simulation.aten.overloads import Plan
from normstab.simulation.aten.parts.complex_parts import as_real
from normstab.simulation.aten.round_and_attribute import settle
from normstab.simulation.unsimulated import has_numbers

__all__ = ["Observation"]

# The results of operations that have several, as `simulate` names them.
RESULTS = {
    "convolution_backward": (".input", ".weight", ".bias"),
    "nll_loss_forward": ("",),
    "nll_loss2d_forward": ("",),
    "multilabel_margin_loss_forward": ("",),
}
ATTENTION, ATTENDED = "_scaled_dot_product", (".query", ".key", ".value", ".bias")


class Observation(DispatchMode):
    """Counts what every operation returns; changes nothing."""

    def run_at(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named | None) -> Any:
        """Let torch compute, and count what came out."""
        result = func(*args, **kwargs) if kwargs else func(*args)
        if plan.kind in ("rounded", "unknown", "foreach", "parts"):
            self.sources.note(place, plan.name)
            self._count(plan, place.arithmetic, args, result)
        return result

    @staticmethod
    def format_of(x: Tensor) -> AnyFormat | None:
        """Return the format that holds every value of the dtype of `x`."""
        return format_of_dtype(x.dtype)

    def _count(self, plan: Plan, ar: Arithmetic, args: Any, result: Any) -> None:
        """Count the floating results of one operation."""
        for site, numbers in self._values(plan, args, result):
            value = as_real(numbers)
            format = format_of_dtype(value.dtype)
            if format is not None and value.numel() and value.layout == torch.strided and not _overlaps(value):
                settle(value.detach(), ar.call(site, format), args)

    def _values(self, plan: Plan, args: Any, result: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the sites and values that an operation shows."""
        if plan.name in NORM_OPERATIONS:
            yield from _inside_norm(plan.name, args, result)
        elif plan.name == "mean" and args and isinstance(args[0], Tensor) and result.numel():
            yield "mean.sum", result * (args[0].numel() / result.numel())
            yield "mean.div", result
        elif isinstance(result, Tensor):
            yield plan.name, result
        elif isinstance(result, list | tuple):
            tensors = [x if isinstance(x, Tensor) and has_numbers(x) else None for x in result]
            is_single = sum(x is not None for x in tensors) == 1
            if plan.name.startswith(ATTENTION):
                names: tuple[str, ...] = ATTENDED if plan.name.endswith("backward") else ("",)
            else:
                names = RESULTS.get(plan.name) or tuple("" if is_single else f".{i}" for i in range(len(tensors)))
            yield from ((plan.name + name, x) for name, x in zip(names, tensors, strict=False) if x is not None)


def _overlaps(x: Tensor) -> bool:
    """Whether several elements share one place in memory."""
    return any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))


# ---------------------------------------------------------------------------------------- inside norm operations


def _inside_norm(name: str, args: Any, result: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield what a norm operation forms inside, computed anew from its statistics, at the sites of norms/."""
    if name.endswith("_backward"):
        names = ("divide", "dgamma", "dbeta")
        yield "grad", args[0]
        yield from ((site, x) for site, x in zip(names, result, strict=False) if isinstance(x, Tensor))
        return
    x = args[0]
    reduction = _reduction(name, args)
    viewed = x.detach().reshape(reduction.view)
    mean = viewed.mean(reduction.axes, keepdim=True) if "rms" not in name else None
    d = viewed if mean is None else viewed - mean
    if mean is not None:
        yield "mean.sum", mean * float(reduction.n)
        yield "mean.div", mean
        yield "centre", d
    square = d * d
    yield "square", square
    total = square.sum(reduction.axes, keepdim=True)
    del square  # a tensor of the input's size, as d is
    yield "dispersion.sum", total
    scale = (total / float(reduction.n)).sqrt()
    yield "sqrt", scale
    yield "divide", d / scale
    yield "shift", result[0]


def _reduction(name: str, args: Any) -> Reduction:
    """Return which values share a mean."""
    x = args[0]
    if "group_norm" in name:
        return Reduction.of_group((args[3], args[4], args[5]), args[6])
    if "layer_norm" in name or "rms_norm" in name:
        return Reduction.of_layer(x.shape, args[1])
    return Reduction.of_batch(x.shape)
