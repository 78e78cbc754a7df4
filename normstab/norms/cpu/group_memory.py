"""Blocks of a group's values and parameters, gathered from and scattered to where they lie.

    batch norm, channel c of (N, C, S)   .. [ c: S values ] .. [ c: S values ] .. [ c: S values ] ..   runs, C S apart
    a block                                 [ ........ 1024 values, run after run ........ ]

What is computed on blocks needs no strides, and its operands are neighbours.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from normstab.norms.cpu.environment import field, floats, index_of
from normstab.norms.fused.layer_table import BLOCK, FIELDS
from normstab.numerics.kernels.cpu.compile import device, outside

__all__ = ["copy", "fill", "gather", "gather_parameters", "scatter"]

LENGTH, RUN_STRIDE, PERIOD, STEP, REPEAT, N = (
    FIELDS.index(name) for name in ("length", "run_stride", "period", "step", "repeat", "n")
)


@outside
def copy(source, target, n):  # pragma: no cover - compiled
    """Copy n values from one address to another."""
    x, y = floats(source, n), floats(target, n)
    for i in range(n):
        y[i] = x[i]


@outside
def fill(block, value):  # pragma: no cover - compiled
    """Set a whole block to one value."""
    floats(block, BLOCK)[:] = value


@outside
def gather(x, group, first, n, block, env):  # pragma: no cover - compiled
    """Copy values first .. first + n - 1 of a group of the tensor at x into a block."""
    move(x, block, group, first, n, True, env)


@outside
def scatter(block, group, first, n, z, env):  # pragma: no cover - compiled
    """Copy a block to values first .. first + n - 1 of a group of the tensor at z."""
    move(z, block, group, first, n, False, env)


@device
def move(tensor, block, group, first, n, gathers, env):
    """Copy between a group's values in the tensor and a block, run by run; a run may be of a few values only."""
    length, stride, done = field(env, LENGTH), 4 * field(env, RUN_STRIDE), 0
    skipped = first % length
    address = tensor + 4 * index_of(env, group, first - skipped)
    while done < n:
        m = min(length - skipped, n - done)
        x, y = floats(address + 4 * skipped, m), floats(block + 4 * done, m)
        for i in range(m):
            if gathers:
                y[i] = x[i]
            else:
                x[i] = y[i]
        done, skipped, address = done + m, 0, address + stride


@outside
def gather_parameters(values, group, first, n, block, env):  # pragma: no cover - compiled
    """Copy the parameters of values first .. first + n - 1 of a group into a block; one that all share, once."""
    repeat = field(env, REPEAT)
    start = group % field(env, PERIOD) * field(env, STEP)
    if repeat >= field(env, N):
        # `fill` covers the whole block, which later blocks of the group find as it is.
        if first == 0:
            fill(block, floats(values, start + 1)[start])
    # A parameter for each value, as in layer norm.
    elif repeat == 1:
        copy(values + 4 * (start + first), block, n)
    else:
        target, parameters = floats(block, n), floats(values + 4 * start, (first + n - 1) // repeat + 1)
        for i in range(n):
            target[i] = parameters[(first + i) // repeat]
