"""Blocks of a group's values and parameters, gathered from and scattered to where they lie."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from normstab.norms.fused.coverage import BLOCK
from normstab.norms.fused.environment import field, floats, index_of
from normstab.norms.fused.plan_of_layer import FIELDS
from normstab.numerics.kernels.compiled import outside

__all__ = ["copy", "fill", "gather", "gather_parameters", "scatter"]

LENGTH, PERIOD, STEP, REPEAT, N = (FIELDS.index(name) for name in ("length", "period", "step", "repeat", "n"))


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
    length, done = field(env, LENGTH), 0
    while done < n:
        m = min(length - (first + done) % length, n - done)
        copy(x + 4 * index_of(env, group, first + done), block + 4 * done, m)
        done += m


@outside
def scatter(block, group, first, n, z, env):  # pragma: no cover - compiled
    """Copy a block to values first .. first + n - 1 of a group of the tensor at z."""
    length, done = field(env, LENGTH), 0
    while done < n:
        m = min(length - (first + done) % length, n - done)
        copy(block + 4 * done, z + 4 * index_of(env, group, first + done), m)
        done += m


@outside
def gather_parameters(values, group, first, n, block, env):  # pragma: no cover - compiled
    """Copy the parameters of values first .. first + n - 1 of a group into a block; once where all are the same."""
    repeat = field(env, REPEAT)
    start = group % field(env, PERIOD) * field(env, STEP)
    if repeat >= field(env, N):
        if first == 0:
            fill(block, floats(values, start + 1)[start])
    elif repeat == 1:
        copy(values + 4 * (start + first), block, n)
    else:
        target, parameters = floats(block, n), floats(values + 4 * start, (first + n - 1) // repeat + 1)
        for i in range(n):
            target[i] = parameters[(first + i) // repeat]
