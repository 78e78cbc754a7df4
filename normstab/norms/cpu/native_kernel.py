"""Native l1, linf, top k and range on the CPU: a group is read once, and stays in the cache until it is written.

    forward     x -> values, sum | values - mean, sum of abs, or the members | values / s -> z
    backward    x, grad -> d, dz, their sums | h -> dx

Sums are float64 in LANES lanes, rounded once; every other operation is float32's own, in the order of `op_by_op`.
So a result depends on no number of threads, and on no width of vectors.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.environment import floats, integers
from normstab.norms.cpu.members import first_ends, largest_members
from normstab.norms.fused.layer_table import KINDS
from normstab.numerics.kernels.cpu.bits import MAGNITUDE32
from normstab.numerics.kernels.cpu.compile import as_float32, device, kernel, outside, view

__all__ = ["BUFFERS", "FIELDS", "backward_groups", "buffer_bytes", "forward_groups"]

# What a kernel is told, an int64 each: numbers of the layer, then the addresses of its tensors and buffers.
FIELDS = (
    "n", "runs", "run_stride", "length", "group_stride", "period", "kind", "k", "centres", "has_eps", "needs_input",
    "x", "z", "gamma", "beta", "mean", "scale", "stored", "members", "constants", "grad", "dx", "d_gamma", "d_beta",
    "values", "grads", "lanes", "found",
)  # fmt: skip
BUFFERS = ("values", "grads", "lanes", "found")  # the last of the fields: memory of one thread
(
    N, RUNS, RUN_STRIDE, LENGTH, GROUP_STRIDE, PERIOD, KIND, K, CENTRES, HAS_EPS, NEEDS_INPUT,
    X, Z, GAMMA, BETA, MEAN, SCALE, STORED, MEMBERS, CONSTANTS, GRAD, DX, D_GAMMA, D_BETA,
    VALUES, GRADS, LANES_AT, FOUND,
) = range(len(FIELDS))  # fmt: skip
L1, LINF, TOPK, RANGE = (KINDS[name] for name in ("l1", "linf", "topk", "range"))
LANES = 256  # of an open sum: value i of a piece is added to lane i
PIECE = 2048  # values that are summed while they are in the first-level cache
f32, f64, u32 = np.float32, np.float64, np.uint32
NEGATIVE_ZERO = f32(-0.0)
EVERY = u32(0xFFFFFFFF)


def buffer_bytes(n: int, k: int) -> dict[str, int]:
    """Return the bytes of each buffer of a thread."""
    return {"values": 4 * n, "grads": 4 * n, "lanes": 8 * LANES, "found": 4 * max(k, 1)}


@kernel
def forward_groups(row, first, last):  # pragma: no cover - compiled
    """Normalize groups first .. last - 1 of x into z."""
    n, values, constants = field(row, N), field(row, VALUES), floats(field(row, CONSTANTS), 2)
    for group in range(first, last):
        gather(row, X, group, values)
        mu = f32(0.0)
        if field(row, CENTRES):
            mu = f32(total(row, values, n, EVERY) / f64(n))
            floats(field(row, MEAN), group + 1)[group] = mu
        spread = ends(row, values, group)
        subtract(values, n, mu)
        s = f32(constants[0] * magnitude(row, values, group, spread))
        floats(field(row, STORED), group + 1)[group] = s
        if field(row, HAS_EPS):
            s = f32(s + constants[1])
        floats(field(row, SCALE), group + 1)[group] = s
        # No beta is -0 and not +0: x + (-0) is x, whichever zero x is.
        gamma, beta = parameter(row, GAMMA, group, f32(1.0)), parameter(row, BETA, group, NEGATIVE_ZERO)
        length = field(row, LENGTH)
        for run in range(field(row, RUNS)):
            finish(values + 4 * run * length, place(row, Z, group, run), length, s, gamma, beta)


@kernel
def backward_groups(row, first, last):  # pragma: no cover - compiled
    """Write the gradients of groups first .. last - 1: of gamma and beta one per group, and of the input."""
    n, values, grads, lanes = field(row, N), field(row, VALUES), field(row, GRADS), field(row, LANES_AT)
    for group in range(first, last):
        s, mu = floats(field(row, SCALE), group + 1)[group], f32(0.0)
        if field(row, CENTRES):
            mu = floats(field(row, MEAN), group + 1)[group]
        gather(row, X, group, values)
        subtract(values, n, mu)
        gather(row, GRAD, group, grads)
        clear(lanes)
        for at in range(0, n, PIECE):
            add_products(values + 4 * at, grads + 4 * at, min(PIECE, n - at), s, lanes)
        product, of_grad = close(lanes), total(row, grads, n, EVERY)
        floats(field(row, D_GAMMA), group + 1)[group] = product
        floats(field(row, D_BETA), group + 1)[group] = of_grad
        if field(row, NEEDS_INPUT):
            gamma = parameter(row, GAMMA, group, f32(1.0))
            mean = f32(f64(gamma) * of_grad / f64(n)) if field(row, CENTRES) else f32(0.0)
            flow_to_input(row, group, gamma, mean, f64(gamma) * product, s)


@outside
def flow_to_input(row, group, gamma, mean, product, s):  # pragma: no cover - compiled
    """Write ((g - mean(g)) - the flow through s) / s, from d in `values` and dz in `grads`."""
    n, length, values, grads = field(row, N), field(row, LENGTH), field(row, VALUES), field(row, GRADS)
    factor = floats(field(row, CONSTANTS), 1)[0]
    if field(row, KIND) == L1:
        weight = f32(factor * f32(product / f64(n)))
        sign = f32(total_sign(row, values, n) / f64(n)) if field(row, CENTRES) else f32(0.0)
        for run in range(field(row, RUNS)):
            at = 4 * run * length
            finish_l1(values + at, grads + at, place(row, DX, group, run), length, gamma, mean, weight, sign, s)
        return
    elsewhere = f32(f32(product) * slope(row, group, -1, factor))
    for run in range(field(row, RUNS)):
        finish_few(grads + 4 * run * length, place(row, DX, group, run), length, gamma, mean, elsewhere, s)
    # All places were written as if they were no members; those few are written over.
    members = integers(field(row, MEMBERS) + 8 * field(row, K) * group, field(row, K))
    for i in range(field(row, K)):
        run, offset = members[i] // length, members[i] % length
        at_member = f32(f32(product) * slope(row, group, i, factor))
        h = f32(f32(gamma * floats(grads, n)[members[i]]) - mean)
        floats(place(row, DX, group, run), length)[offset] = f32(f32(h - at_member) / s)


@outside
def slope(row, group, which, factor):  # pragma: no cover - compiled
    """Return ds/dx at a member of linf, top k or range, or, for -1, at every other place. See dispersion.slopes."""
    k, kind, n = field(row, K), field(row, KIND), field(row, N)
    members, d = integers(field(row, MEMBERS) + 8 * k * group, k), floats(field(row, VALUES), n)
    if kind == RANGE:
        if which < 0 or members[0] == members[1]:
            return f32(0.0)
        return factor if which == 0 else f32(-factor)
    share = f32(f32(1.0) / f32(n)) if field(row, CENTRES) else f32(0.0)
    if kind == LINF:
        return f32(f32(factor * sign_of(d[members[0]])) * f32(f32(which >= 0) - share))
    signs, own = f32(0.0), f32(0.0)
    for i in range(k):
        sign = sign_of(d[members[i]])
        signs = f32(signs + sign)
        if i == which:
            own = sign
    return f32(f32(factor / f32(k)) * f32(own - f32(share * signs)))


@outside
def ends(row, values, group):  # pragma: no cover - compiled
    """Return max x - min x, and note where both are; 0 for another norm than range."""
    if field(row, KIND) != RANGE:
        return f32(0.0)
    members, n = field(row, MEMBERS) + 16 * group, field(row, N)
    first_ends(values, n, members)
    found, x = integers(members, 2), floats(values, n)
    return f32(x[found[0]] - x[found[1]])


@outside
def magnitude(row, values, group, spread):  # pragma: no cover - compiled
    """Return what the constant multiplies: mean(abs d), the mean of the k largest, or the spread."""
    n, k, kind = field(row, N), field(row, K), field(row, KIND)
    if kind == L1:
        return f32(total(row, values, n, MAGNITUDE32) / f64(n))
    if kind == RANGE:
        return spread
    largest_members(values, n, field(row, MEMBERS) + 8 * k * group, field(row, FOUND), k)
    found, few = floats(field(row, FOUND), k), 0.0
    for i in range(k):
        few += f64(found[i])
    return f32(few / f64(k))


# ------------------------------------------------------------------------------------------------- memory


@device
def field(row, which):
    """Return a field."""
    return view(row, len(FIELDS), np.int64)[which]


@device
def place(row, tensor, group, run):
    """Return the address of a run of a group's values in a tensor."""
    return field(row, tensor) + 4 * (group * field(row, GROUP_STRIDE) + run * field(row, RUN_STRIDE))


@device
def parameter(row, which, group, otherwise):
    """Return a group's gamma or beta."""
    channel = group % field(row, PERIOD)
    return otherwise if field(row, which) == 0 else floats(field(row, which), channel + 1)[channel]


@outside
def gather(row, tensor, group, values):  # pragma: no cover - compiled
    """Copy a group's values, run after run."""
    length, source, stride = field(row, LENGTH), place(row, tensor, group, 0), 4 * field(row, RUN_STRIDE)
    for run in range(field(row, RUNS)):
        x, y = floats(source + run * stride, length), floats(values + 4 * run * length, length)
        for i in range(length):
            y[i] = x[i]


# ---------------------------------------------------------------------------------------------- open sums


@device
def sign_of(x):
    """Return sign(x) as float32."""
    return f32(f32(x > 0) - f32(x < 0))


@outside
def clear(lanes):  # pragma: no cover - compiled
    """Set every lane to zero."""
    view(lanes, LANES, f64)[:] = 0.0


@outside
def close(lanes):  # pragma: no cover - compiled
    """Return the sum of the lanes, by halves."""
    sums, half = view(lanes, LANES, f64), LANES // 2
    while half:
        for i in range(half):
            sums[i] += sums[half + i]
        half //= 2
    return sums[0]


@outside
def total(row, values, n, mask):  # pragma: no cover - compiled
    """Return the sum of n values, or with the mask MAGNITUDE32 of their magnitudes."""
    lanes = field(row, LANES_AT)
    clear(lanes)
    for at in range(0, n, LANES):
        m = min(LANES, n - at)
        x, sums = view(values + 4 * at, m, u32), view(lanes, m, f64)
        for i in range(m):
            sums[i] += f64(as_float32(u32(x[i] & mask)))
    return close(lanes)


@outside
def total_sign(row, values, n):  # pragma: no cover - compiled
    """Return the sum of the signs of n values."""
    lanes = field(row, LANES_AT)
    clear(lanes)
    for at in range(0, n, LANES):
        m = min(LANES, n - at)
        x, sums = floats(values + 4 * at, m), view(lanes, m, f64)
        for i in range(m):
            sums[i] += f64(sign_of(x[i]))
    return close(lanes)


@outside
def add_products(values, grads, n, s, lanes):  # pragma: no cover - compiled
    """Add the products dz (d / s) to the lanes."""
    for at in range(0, n, LANES):
        m = min(LANES, n - at)
        d, dz, sums = floats(values + 4 * at, m), floats(grads + 4 * at, m), view(lanes, m, f64)
        for i in range(m):
            sums[i] += f64(f32(dz[i] * f32(d[i] / s)))


# ------------------------------------------------------------------------------------- element by element


@outside
def subtract(values, n, mu):  # pragma: no cover - compiled
    """Replace the values by d = x - mu."""
    x = floats(values, n)
    for i in range(n):
        x[i] = x[i] - mu


@outside
def finish(values, z, n, s, gamma, beta):  # pragma: no cover - compiled
    """Write gamma (d / s) + beta."""
    d, out = floats(values, n), floats(z, n)
    for i in range(n):
        out[i] = f32(f32(gamma * f32(d[i] / s)) + beta)


@outside
def finish_l1(values, grads, dx, n, gamma, mean, weight, sign, s):  # pragma: no cover - compiled
    """Write ((g - mean(g)) - weight (sign(d) - mean(sign(d)))) / s."""
    d, dz, out = floats(values, n), floats(grads, n), floats(dx, n)
    for i in range(n):
        h = f32(f32(gamma * dz[i]) - mean)
        out[i] = f32(f32(h - f32(weight * f32(sign_of(d[i]) - sign))) / s)


@outside
def finish_few(grads, dx, n, gamma, mean, elsewhere, s):  # pragma: no cover - compiled
    """Write ((g - mean(g)) - elsewhere) / s."""
    dz, out = floats(grads, n), floats(dx, n)
    for i in range(n):
        out[i] = f32(f32(f32(f32(gamma * dz[i]) - mean) - elsewhere) / s)
