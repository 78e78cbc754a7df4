"""Which implementation computes: the kernels of a tensor's device where they can run, else the reference.

A kernels module offers `round_into(x, out, call) -> bool` and `pointwise(operation, operands, call, dtype, out)
-> Tensor | None`; a refusal means that the reference serves. Nothing here computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import import_module
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.errors import DtypeError
from normstab.numerics.call import Call
from normstab.numerics.first_calls import FIRST_CALLS
from normstab.numerics.formats import FORMATS, AnyFormat, FixedFormat
from normstab.numerics.kernels.huge_pages import widened_copy
from normstab.numerics.ledger import Ledger, Row
from normstab.numerics.rounding_modes import Rounding
from normstab.numerics.tallies.repeats import Repeats
from normstab.numerics.version import beyond_tested
from normstab.torch_private import (
    break_graph,
    has_modes,
    is_traced_by_a_mode,
    is_transformed,
    is_transforming,
    is_zero_tensor,
    modes_off,
    tracing_state,
)

__all__ = [
    "Kernels", "Later", "carried", "carried_operand", "is_served", "is_traced", "kernels_for", "later_for", "opaque",
    "plain", "served",
]  # fmt: skip

Found = TypeVar("Found")
Take = Callable[[NDArray[np.int64], Repeats], None]
# Devices that compute while the host goes on.
LATER = {"cuda": "cuda.attribution"}


class Kernels(Protocol):
    """What a kernels module offers."""

    def round_into(self, x: Tensor, out: Tensor, call: Call) -> bool:
        """Round `x` into `out` (which may be `x`) and count; False: not covered, nothing was written."""

    def pointwise(
        self, operation: str, operands: tuple[Tensor | float, ...], call: Call, dtype: torch.dtype, out: Tensor | None
    ) -> Tensor | None:
        """Compute and round in one pass; None: not covered, nothing was written."""


class Later(Protocol):
    """What devices offer on which nobody waits for a number: it is asked for now and taken in when someone looks.

    Their kernels also ask the operands of a Call whose a NaN is.
    """

    def keep(self, number: Tensor, take: Take, asked_by: Sequence[Row | Ledger]) -> None:
        """Have `take` called with a number of the device, at [:, 0, 0], before `asked_by` are read."""

    def keep_specials(
        self, x: Tensor, operands: Sequence[Tensor], take: Take, asked_by: Sequence[Row | Ledger]
    ) -> None:
        """Have `take` called with counters at [:, 0]: the NaNs and infinities of `x`, and whether operands have any."""


def later_for(x: Tensor, *calls: Call | None) -> Later | None:
    """Return how numbers of the device of `x` are asked for, where kernels serve `calls` there; None: at once."""
    place = LATER.get(x.device.type)
    is_plain = type(x).__torch_dispatch__ is PLAIN_DISPATCH and x.layout is torch.strided
    if place is None or not is_plain or kernels_for(x, *calls) is None:
        return None
    found: Later = import_module(f"normstab.numerics.kernels.{place}")  # type: ignore[assignment]
    return found


def kernels_for(x: Tensor, *calls: Call | None) -> Kernels | None:
    """Return the kernels that serve the device of `x` and every one of `calls`, or None for the reference."""
    for call in calls:
        if call is not None and not is_served(call.format, call.rounding):
            return None
    if not FIRST_CALLS.are_over and FIRST_CALLS.serve(x):
        return None
    return _kernels(x.device.type)


@cache
def is_served(format: AnyFormat, rounding: Rounding) -> bool:
    """Whether there are kernels of this format and rounding; the others the reference computes, and a warning says so.

    Once for each, with the neighbour that has kernels.
    """
    neighbour = _neighbour(format, rounding)
    if neighbour:
        warnings.warn(
            f"normstab: there are no kernels for {format} / {rounding}: the torch reference serves, with the same "
            f"results on every machine, hundreds of times slower; {neighbour} has kernels",
            RuntimeWarning,
            stacklevel=2,
        )
    return not neighbour


def _neighbour(format: AnyFormat, rounding: Rounding) -> str:
    """Return what has kernels beside a format and rounding that have none; empty where they have."""
    if rounding.is_unbiased:
        return f"stochastic:{rounding.bits}"
    if not isinstance(format, FixedFormat):
        return ""
    if not format.is_signed:
        return "the signed format qI.F with an integer bit more"
    if format.overflow == "saturate-zero":
        return "overflow 'saturate'"
    is_within = min(format.integer_bits, format.fraction_bits) >= 0
    return "" if is_within or format.overflow != "wrap" else "overflow 'saturate', or a point inside the bits,"


def plain(x: Tensor) -> Tensor:
    """Return `x` with the values it reads as in its memory: the door to every kernel.

    A lazily negated view and torch's tensor of zeros are written out. Raises DtypeError, by name, for a
    tensor whose memory does not hold its values: sparse, nested, fake or distributed, another subclass with
    insides of its own, or one that torch.func has wrapped.
    """
    if not isinstance(x, Tensor):
        raise DtypeError(f"expected a tensor, found {type(x).__name__}: {x!r:.60}")
    if type(x).__torch_dispatch__ is not PLAIN_DISPATCH or x.layout is not torch.strided or x.is_nested:
        raise DtypeError(f"{_described(x)} has no plain memory to compute on{_advice(x)}")
    if is_transforming() and is_transformed(x):
        raise DtypeError(
            "an Arithmetic computes on numbers, and under torch.func.grad, vmap or jvp a tensor stands for others; of "
            "normstab only cast works there: differentiate with backward() or torch.autograd.grad, batch by an axis"
        )
    if x.dtype.is_complex:
        raise DtypeError(f"expected real numbers, found {x.dtype}; compute on x.real and x.imag")
    if has_modes() and is_traced(x):
        raise DtypeError(
            "an Arithmetic computes on numbers, and tracing (make_fx, FakeTensorMode) would lose its rounding "
            "without a word; call normstab.cast, which is traced as one operation"
        )
    if x.is_neg():
        return x.resolve_neg()
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device) if is_zero_tensor(x) else x


def is_traced(x: Tensor) -> bool:
    """Whether operations are recorded rather than computed: by torch.jit.trace, make_fx, or on fake tensors."""
    if type(x) is not Tensor and hasattr(x, "fake_mode"):
        return True
    if tracing_state() is not None:
        return True
    if not has_modes():
        return False
    return is_traced_by_a_mode()


P = ParamSpec("P")
R = TypeVar("R")
WHY_OPAQUE = "an emulated operation counts and draws, so it is called as it is: the graph is broken here"


def opaque(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, a method of something with `is_native`, that torch.compile calls without looking inside.

    The graph breaks there, with a note; under `native` it is traced as plain torch. Nothing here imports the compiler.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling() and not args[0].is_native:  # type: ignore[attr-defined]
            break_graph(f"normstab: {WHY_OPAQUE}")
            return torch.compiler.disable(function, reason=WHY_OPAQUE)(*args, **kwargs)  # type: ignore[no-any-return]
        return function(*args, **kwargs)

    return called


PLAIN_DISPATCH = Tensor.__torch_dispatch__  # which says "this tensor does nothing of its own"


def carried(x: Tensor) -> Tensor:
    """Return `plain(x)` in a dtype that the kernels read: narrower ones are widened, once."""
    x = plain(x)
    if x.dtype is torch.float32 or x.dtype is torch.float64:
        return x
    return widened_copy(x, torch.float32 if x.dtype in NARROW else torch.float64)


def carried_operand(x: Tensor) -> Tensor:
    """Return `carried(x)` for an operation, whose result has another dtype: short whole numbers go in float32.

    Kernels take three times as long for operands in float64, which may have all its digits. Other devices are not
    asked what numbers they hold, for the host would wait.
    """
    x = plain(x)
    if x.dtype in WHOLE and x.device.type == "cpu" and x.numel():
        least, greatest = (int(bound) for bound in x.aminmax())
        if max(-least, greatest) <= LARGEST_SHORT:
            return widened_copy(x, torch.float32)
    return carried(x)


# Whose every value float32 has; of which it has those up to the last.
NARROW = (torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.bool)
WHOLE, LARGEST_SHORT = (torch.int32, torch.int64), 1 << 24


def _described(x: Tensor) -> str:
    """Return what kind of tensor `x` is, in words."""
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"a {type(x).__name__}"
    return "a nested tensor" if x.is_nested else f"a tensor of layout {x.layout}"


def _advice(x: Tensor) -> str:
    """Return what to pass instead."""
    if x.is_nested:
        return "; pass its values: x.values()"
    if hasattr(x, "to_local"):
        return "; pass its local part: x.to_local()"
    return "; pass x.to_dense()" if x.layout is not torch.strided else "; pass a plain tensor"


def served(load: Callable[[], Found], what: str) -> Found | None:
    """Return what `load` gives; where it raises, warn once and return None, so that the reference serves.

    Whatever it raises: a compiler that lacks an option says KeyError, one without a C compiler RuntimeError, a
    library of another version AttributeError. A cast that is slower is better than one that is impossible.
    """
    try:
        return load()
    except Exception as reason:
        said = f"{type(reason).__name__}: {reason}".partition("\n")[0]
        warnings.warn(
            f"normstab: no compiled kernels for {what} ({said}); the torch reference serves, with the same results, "
            f"slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


@cache
def warn_beyond_tested() -> None:
    """Warn, once in a process and in one sentence, of libraries in other versions than those tested."""
    if beyond := "; ".join(beyond_tested()):
        advice = "`normstab selftest` says whether the numbers are right"
        warnings.warn(f"normstab: {beyond}; {advice}", RuntimeWarning, stacklevel=2)


@cache
def _kernels(device_type: str) -> Kernels | None:
    """Return the kernels of a device, imported and tried once; None where there are none, or they do not run."""
    warn_beyond_tested()
    module = {"cpu": "cpu.cpu_tensors", "cuda": "cuda.cuda_tensors"}.get(device_type)
    return None if module is None else served(lambda: _tried(module, device_type), device_type)


def _tried(module: str, device_type: str) -> Kernels:
    """Import the kernels, and launch one: many a compiler fails only there."""
    found: Kernels = import_module(f"normstab.numerics.kernels.{module}")
    with modes_off():  # a mode of the caller's would see, or fake, the tensor of this trial
        x = torch.zeros(1, dtype=torch.float32, device=device_type)
        found.round_into(x, x, Call(FORMATS["fp16"]))
    return found
