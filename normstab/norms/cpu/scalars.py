"""One rounded operation on the scalars of a group: its mean, its scale, the flow through the scale.

Each is computed in float64, rounded once and counted in the context of its site (see numerics.kernels.cpu.sums.steps).
There is one of each for a whole group: so they take the general way, in every format and mode.
`leaf` is the scalar's row-major index in the tensor of all of them, which places its random bits.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.environment import context_at, integers
from normstab.numerics.kernels.cpu.bits import rule64
from normstab.numerics.kernels.cpu.compile import as_float64, as_int64, outside
from normstab.numerics.kernels.cpu.counting import round_counted64
from normstab.numerics.kernels.cpu.philox_cpu import field_of
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, KEY, SCRATCH_AT, STEP, add_step

__all__ = ["add_scalars", "cast_scalar", "div_scalars", "mul_scalars", "ratio_scalar", "sqrt_scalar"]


@outside
def settle_scalar(c, has_nan, has_inf, zero_divided, leaf, site, env):  # pragma: no cover - compiled
    """Return c rounded and counted."""
    context = integers(context_at(env, site), CONTEXT)
    rule = rule64(context)
    drawn = np.int64(field_of(context[KEY], context[STEP], leaf, rule.field_width)) << 30
    bits = round_counted64(context[SCRATCH_AT:], as_int64(c), drawn, has_nan, has_inf, zero_divided, rule)
    return as_float64(bits)


@outside
def add_scalars(a, b, leaf, site, env):  # pragma: no cover - compiled
    """Return a + b."""
    return add_step(a, b, leaf, integers(context_at(env, site), CONTEXT))


@outside
def mul_scalars(a, b, leaf, site, env):  # pragma: no cover - compiled
    """Return a b."""
    return settle_scalar(a * b, a != a or b != b, abs(a) == np.inf or abs(b) == np.inf, False, leaf, site, env)


@outside
def div_scalars(a, b, leaf, site, env):  # pragma: no cover - compiled
    """Return a / b."""
    has_nan, has_inf = a != a or b != b, abs(a) == np.inf or abs(b) == np.inf
    zero_divided = b == 0.0 and a != 0.0 and not has_nan and not has_inf
    return settle_scalar(a / b, has_nan, has_inf, zero_divided, leaf, site, env)


@outside
def sqrt_scalar(a, leaf, site, env):  # pragma: no cover - compiled
    """Return the square root of a."""
    return settle_scalar(np.sqrt(a), a != a, abs(a) == np.inf, False, leaf, site, env)


@outside
def cast_scalar(a, leaf, site, env):  # pragma: no cover - compiled
    """Return cast(a)."""
    return settle_scalar(a, a != a, abs(a) == np.inf, False, leaf, site, env)


@outside
def ratio_scalar(v, n, m, leaf, site, env):  # pragma: no cover - compiled
    """Return (v n) / m: see `reduction.Ratio`."""
    return settle_scalar((v * n) / m, v != v, abs(v) == np.inf, False, leaf, site, env)
