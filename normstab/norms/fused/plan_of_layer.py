"""What the fused kernels are told about a layer: where its values lie, what it does, the sites it counts at.

No numba here. The integers of a layer and the order of its sites are named once, for both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from normstab.norms.catalogue import Scheme
from normstab.norms.fused.coverage import BLOCK, is_fast
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, Step, Value
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat, Format
from normstab.numerics.kernels.cpu.openmp import flushes_subnormals

__all__ = [
    "BACKWARD",
    "FIELDS",
    "FORWARD",
    "KINDS",
    "Sites",
    "fitting_loads",
    "groups_of",
    "layer_fields",
]

# Kind of a norm -> its code in the kernels; None is mean-only.
KINDS = {None: 0, "l2": 1, "l1": 2, "linf": 3, "topk": 4, "range": 5}
ORDERS = {"sequential": 0, "pairwise": 1, "blocked": 2, "lanes": 3}

#     batch norm of (N, C, S)    [ group 0 | group 1 | .. ][ group 0 | group 1 | .. ] ..    N runs of S, C S apart
#     layer norm of (M, K)       [ group 0                ][ group 1                ] ..    one run of K
#
# A group is what shares a mean: `runs` stretches of `length` values, `run_stride` apart, the first at
# group * group_stride. Parameter number (group % period) * step + j // repeat belongs to its value j.
FIELDS = (
    "n", "runs", "run_stride", "length", "group_stride", "period", "step", "repeat", "kind", "k", "centres",
    "tracks", "reciprocal", "has_gamma", "has_beta", "width", "has_eps", "sums_parameters", "needs_input",
    "needs_gamma", "needs_beta", "order", "is_fast", "lanes_fit", "counts_inexact", "flushes",
)  # fmt: skip


def _with_sums(*names: str) -> tuple[str, ...]:
    """Return the names, each sum followed by the sites of its loads, of Kahan's corrections and of its cast."""
    suffixes = {True: ("", ".load", ".kahan", ".cast"), False: ("",)}
    return tuple(name + suffix for name in names for suffix in suffixes[name.endswith(".sum")])


# The sites of the forward and of the backward pass: their contexts' places in the kernels.
FORWARD = _with_sums(
    "input", "mean.sum", "mean.div", "centre", "square", "max", "dispersion.sum", "dispersion.div", "constant", "eps",
    "sqrt", "running_var", "reciprocal", "divide", "scale", "shift",
)  # fmt: skip
BACKWARD = _with_sums(
    "grad", "dbeta.sum", "dbeta", "dgamma.product", "dgamma.sum", "dgamma", "scale", "mean.sum", "mean.div", "centre",
    "product", "product.sum", "product.div", "constant", "slope.sum", "slope.div", "slope", "project",
    "project.elsewhere", "subtract", "divide", "silent.input", "silent.centre", "silent.divide",
)  # fmt: skip


# The values of sign(d): -1, 0 and 1, which the narrowest accumulator may lack.
SIGNS = Format("sign", 1, 0, 0, 1.0, has_subnormals=False)


class Sites:
    """The calls of one direction, by the names of their places in the kernels."""

    def __init__(self, names: Sequence[str], ar: Arithmetic) -> None:
        self._index = {name: index for index, name in enumerate(names)}
        self._ar = ar
        self.calls: list[Call | None] = [None] * len(names)

    def __getitem__(self, name: str) -> Call | None:
        return self.calls[self._index[name]]

    def __setitem__(self, name: str, call: Call | None) -> None:
        self.calls[self._index[name]] = call

    def make(self, step: Step, fitting: frozenset[str] = frozenset()) -> None:
        """Make the calls of a step of a traced program, in its order.

        A second result of one operation has a place of its own, `.elsewhere`. Addends of a sum that is among the
        `fitting` are not cast: the call of their load is made, and then left out.
        """
        for called in step.calls:
            name = called.operation
            name = f"{name}.elsewhere" if self[name] is not None else name
            self[name] = self._ar.in_format(called.role).call(called.operation, called.format)
            if name in fitting:
                self[name] = None


def fitting_loads(program: Program) -> frozenset[str]:
    """Return the loads of a program's sums whose addends are values of the accumulator's format already."""
    formats: dict[int, tuple[AnyFormat, bool]] = {}  # of a value: its format, and whether it is a magnitude
    found = set()
    for step in program.steps:
        operand = next((x for x in step.operands if isinstance(x, Value)), None)
        known = None if operand is None else formats.get(operand.number)
        for result in step.results:
            if step.calls:
                formats[result.number] = step.calls[-1].format, False
            elif step.kind == "sign":
                formats[result.number] = SIGNS, False
            elif known is not None:
                formats[result.number] = known[0], known[1] or step.kind == "abs"
        if step.kind == "accumulate" and known is not None:
            load = step.calls[-1]
            if fits(known[0], load.format, are_magnitudes=known[1]):
                found.add(load.operation)
    return frozenset(found)


def fits(addends: AnyFormat, sums: AnyFormat, *, are_magnitudes: bool) -> bool:
    """Whether every value of one format, or its magnitude, is a value of the other, infinities and -0 among them."""
    if addends == sums:
        # The magnitude of the least fixed-point number is no fixed-point number.
        return isinstance(addends, Format) or not are_magnitudes
    if not isinstance(sums, Format) or sums.overflow != "inf" or not sums.has_negative_zero:
        return False
    return (
        sums.precision >= addends.precision
        and sums.min_subnormal <= addends.min_subnormal
        and sums.max >= max(addends.max, abs(getattr(addends, "min", 0.0)))
    )


def layer_fields(scheme: Scheme, reduction: Reduction, ar: Arithmetic, **flags: bool | int) -> NDArray[np.int64]:
    """Return the integers of a layer in the order of FIELDS."""
    spec, sums = scheme.spec, ar.precision.accumulation
    found: dict[str, int] = dict.fromkeys(FIELDS, 0)
    found |= where(reduction)
    found |= {
        "n": reduction.n,
        "kind": KINDS[None if spec is None else spec.kind],
        "k": 0 if spec is None else {"linf": 1, "range": 2}.get(spec.kind, spec.k),
        "centres": scheme.centres,
        "tracks": scheme.tracks,
        "has_eps": scheme.eps != 0,
        "reciprocal": ar.precision.divide == "reciprocal",
        "width": sums.width,
        "order": ORDERS[sums.order],
        "is_fast": is_fast(ar),
        "flushes": flushes_subnormals(),
        "counts_inexact": ar.ledger is not None and ar.ledger.counts_inexact,
        "lanes_fit": sums.order == "lanes" and BLOCK % sums.width == 0,
    }
    found |= {name: int(value) for name, value in flags.items()}
    return np.array([found[name] for name in FIELDS], np.int64)


def where(reduction: Reduction) -> dict[str, int]:
    """Return where the values and parameters of a group lie."""
    view, n = reduction.view, reduction.n
    if reduction.axes == (0, 2):  # batch: (N, C, S)
        place = {"runs": view[0], "run_stride": view[1] * view[2], "length": view[2], "group_stride": view[2]}
        return place | {"period": view[1], "step": 1, "repeat": n}
    place = {"runs": 1, "run_stride": 0, "length": n, "group_stride": n}
    if reduction.axes == (1,):  # layer: (M, K), parameters (1, K)
        return place | {"period": 1, "step": 0, "repeat": 1}
    if reduction.axes == (2,):  # instance: (N, C, S), parameters (1, C, 1)
        return place | {"period": view[1], "step": 1, "repeat": n}
    assert reduction.axes == (2, 3), reduction.axes  # group: (N, G, C/G, S), parameters (1, G, C/G, 1)
    return place | {"period": view[1], "step": view[2], "repeat": view[3]}


def groups_of(reduction: Reduction) -> int:
    """Return how many groups of values share a mean."""
    total = 1
    for axis in reduction.kept:
        total *= reduction.view[axis]
    return total
