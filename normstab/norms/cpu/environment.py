"""The environment of a kernel: one row of the fields of a layer and of addresses, which every part reads.

    env   [ n | kind | ... | flushes ]  [ address of x | of z | ... | of found ]     int64 all
            FIELDS                        SLOTS

Parts take addresses and numbers alone, so that they compile quickly and count no references.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.fused.layer_table import FIELDS
from normstab.numerics.kernels.cpu.bits import INF32
from normstab.numerics.kernels.cpu.compile import device, kernel, view
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, ROW

__all__ = ["SLOTS", "context_at", "field", "floats", "index_of", "integers", "mark_at", "read_marks", "slot"]

# After the fields: tensors of the layer; what its sites need; buffers of a group, a block, open sums; a program.
SLOTS = (
    "x", "z", "gamma", "beta", "mean", "scale", "reciprocal", "stored", "members", "signs", "grad", "slope", "dx",
    "d_gamma", "d_beta", "grad_cast", "product", "table", "contexts", "marks", "constants", "values", "block",
    "drawn", "words", "p", "q", "exact", "rounded", "lanes", "before", "partial", "leaves", "state", "found",
    "rows", "places", "numbers",
)  # fmt: skip
AT_CONTEXTS, AT_MARKS = (SLOTS.index(name) for name in ("contexts", "marks"))
RUN_STRIDE, LENGTH, GROUP_STRIDE = (FIELDS.index(name) for name in ("run_stride", "length", "group_stride"))
FIRST_SLOT = len(FIELDS)
LENGTH_OF_ROW = FIRST_SLOT + len(SLOTS)


@device
def slot(env, which):
    """Return the address in a slot."""
    return view(env, LENGTH_OF_ROW, np.int64)[FIRST_SLOT + which]


@device
def field(env, which):
    """Return a field of the layer."""
    return view(env, LENGTH_OF_ROW, np.int64)[which]


@device
def context_at(env, site):
    """Return the address of a site's context."""
    return slot(env, AT_CONTEXTS) + 8 * CONTEXT * site


@device
def mark_at(env, site):
    """Return the address of a site's largest and smallest magnitude."""
    return slot(env, AT_MARKS) + 8 * site


@device
def floats(address, n):
    """Return n float32 at an address."""
    return view(address, n, np.float32)


@device
def integers(address, n):
    """Return n int64 at an address."""
    return view(address, n, np.int64)


@device
def index_of(env, group, position):
    """Return the row-major index, in the whole tensor, of a value of a group."""
    run, offset = position // field(env, LENGTH), position % field(env, LENGTH)
    return group * field(env, GROUP_STRIDE) + run * field(env, RUN_STRIDE) + offset


@kernel
def read_marks(rows, sites, marks):  # pragma: no cover - compiled
    """Set the mark of each site to the largest and the smallest magnitude that its ledger row has seen."""
    table, found = view(rows, ROW * sites, np.int64), view(marks, 2 * sites, np.uint32)
    for i in range(sites):
        row = table[ROW * i]
        found[2 * i], found[2 * i + 1] = np.uint32(0), INF32
        if row != 0:
            # Behind 30 int64 of a row lie its two magnitudes (counter_row.Row).
            seen = view(row + 240, 2, np.uint32)
            found[2 * i], found[2 * i + 1] = seen[0], seen[1]
