"""What the fused kernels are told about a layer: where its values lie, what it does, the sites it counts at.

No numba here. Their names are those of `layer_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from normstab.norms.catalogue import Scheme
from normstab.norms.fused.coverage import is_fast
from normstab.norms.fused.layer_table import BLOCK, FIELDS, KINDS, ORDERS
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Step
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.openmp import flushes_subnormals

__all__ = ["Layer", "Sites", "fields_of", "groups_of", "layer_fields", "where"]


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


class Layer(NamedTuple):
    """What the kernels of a pass are told: the calls of its sites, its arithmetic, its fields, and C and eps."""

    sites: Sites
    ar: Arithmetic
    fields: NDArray[np.int64]
    constants: NDArray[np.float64]


def layer_fields(scheme: Scheme, reduction: Reduction, ar: Arithmetic, **flags: bool | int) -> NDArray[np.int64]:
    """Return the integers of a layer in the order of FIELDS."""
    spec = scheme.spec
    assert spec is not None
    return fields_of(
        reduction,
        ar,
        is_fast=is_fast(ar),
        kind=KINDS[spec.kind],
        k={"linf": 1, "range": 2}.get(spec.kind, spec.k),
        centres=scheme.centres,
        has_eps=scheme.eps != 0,
        reciprocal=ar.precision.divide == "reciprocal",
        **flags,
    )


def fields_of(reduction: Reduction, ar: Arithmetic, **more: bool | int) -> NDArray[np.int64]:
    """Return the integers in the order of FIELDS: those of groups and of an arithmetic, and `more`; others are 0."""
    sums = ar.precision.accumulation
    found: dict[str, int] = dict.fromkeys(FIELDS, 0) | where(reduction)
    found |= {
        "n": reduction.n,
        "width": sums.width,
        "order": ORDERS[sums.order],
        "flushes": flushes_subnormals(),
        "counts_inexact": ar.ledger is not None and ar.ledger.counts_inexact,
        "lanes_fit": sums.order == "lanes" and BLOCK % sums.width == 0,
    }
    found |= {name: int(value) for name, value in more.items()}
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
