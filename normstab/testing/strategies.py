"""Hypothesis strategies: formats, roundings, accumulations, precisions, and tensors that hurt.

Each tensor comes from a drawn kind and a drawn seed, so that a large one costs no more entropy than a small
one and a failing example replays from its repr. hypothesis finds this module through its entry point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def register() -> None:
    """Tell hypothesis how to make a Format, Rounding, Accumulation or Precision for `st.from_type`."""
    from hypothesis import strategies

    from normstab.numerics.formats import FixedFormat, Format
    from normstab.numerics.precision import Accumulation, Precision, Rounding

    strategies.register_type_strategy(Format, lambda _: formats(fixed_point=False))
    strategies.register_type_strategy(FixedFormat, lambda _: formats().filter(lambda f: isinstance(f, FixedFormat)))
    strategies.register_type_strategy(Rounding, lambda _: roundings())
    strategies.register_type_strategy(Accumulation, lambda _: accumulations())
    strategies.register_type_strategy(Precision, lambda _: precisions())


# hypothesis calls `register` while it is imported, and so while this module is, where nobody imported it before.
# ruff: noqa: E402
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from normstab.errors import lookup
from normstab.numerics.formats import FORMATS, AnyFormat, FixedFormat, Format, parse_format
from normstab.numerics.precision import FORMAT_ROLES, ROUNDINGS, Accumulation, Precision, Rounding

__all__ = [
    "KINDS",
    "accumulations",
    "formats",
    "precisions",
    "register",
    "roundings",
    "tensors_for_norms",
    "tensors_in",
    "tensors_near_ties",
]

Array = NDArray[np.float64]
Shape = tuple[int, ...]


@st.composite
def formats(draw: st.DrawFn, *, fixed_point: bool = True) -> AnyFormat:
    """Return presets, eXmY formats, and with `fixed_point` also qI.F formats."""
    kinds = ["preset", "eXmY", *(["qI.F"] if fixed_point else [])]
    match draw(st.sampled_from(kinds)):
        case "preset":
            return FORMATS[draw(st.sampled_from([name for name in FORMATS if name != "fp64"]))]
        case "eXmY":
            return parse_format(f"e{draw(st.integers(2, 8))}m{draw(st.integers(1, 23))}")
    whole = draw(st.integers(0, 12))
    return parse_format(f"q{whole}.{draw(st.integers(1, 12))}:{draw(st.sampled_from(['saturate', 'wrap']))}")


@st.composite
def roundings(draw: st.DrawFn, *, stochastic: bool = True) -> Rounding:
    """Return every rounding mode, stochastic with 1 to 32 random bits."""
    mode = draw(st.sampled_from([mode for mode in ROUNDINGS if stochastic or mode != "stochastic"]))
    return Rounding(mode, draw(st.integers(1, 32)) if mode == "stochastic" else 0)


@st.composite
def accumulations(draw: st.DrawFn) -> Accumulation:
    """Return exact, native, and every order in a floating-point format."""
    if draw(st.booleans()):
        return Accumulation.parse(draw(st.sampled_from(["exact", "native"])))
    name = draw(st.sampled_from(["fp16", "bf16", "fp32", "e6m9"]))
    order = draw(st.sampled_from(["sequential", "pairwise", "blocked", "lanes"]))
    width = draw(st.integers(1, 128)) if order in ("blocked", "lanes") else ""
    return Accumulation.parse(f"{name}:{order}{width}")


@st.composite
def precisions(draw: st.DrawFn, *, stochastic: bool = False) -> Precision:
    """Return Precisions: a compute format with a rounding, an accumulation, and now and then a role of its own.

    Stochastic ones need a key to compute with, so they come only when asked for.
    """
    text = f"{draw(formats(fixed_point=False))}/{draw(roundings(stochastic=stochastic))}/{draw(accumulations())}"
    for role in draw(st.lists(st.sampled_from(FORMAT_ROLES), unique=True, max_size=2)):
        text += f";{role}={draw(st.sampled_from(['fp16', 'bf16', 'fp32']))}"
    return Precision.parse(text)


def _random_values(format: AnyFormat, n: int, generator: np.random.Generator) -> Array:
    """Return values spread evenly over the codes: every binade as likely as the next."""
    if isinstance(format, FixedFormat):
        codes = 2**format.precision
        return generator.integers(-codes, codes, n).astype(np.float64) * format.min_subnormal
    exponent = generator.integers(format.emin, format.emax, n, endpoint=True)
    significand = generator.integers(2 ** (format.precision - 1), 2**format.precision, n)
    values = np.ldexp(significand.astype(np.float64), exponent - format.precision + 1)
    return generator.choice([-1.0, 1.0], n) * np.minimum(values, format.max)


def _near_overflow(format: AnyFormat, n: int, generator: np.random.Generator) -> Array:
    """Return the largest values, down to 1 % below the maximum."""
    return generator.choice([-1.0, 1.0], n) * format.max * generator.uniform(0.99, 1.0, n)


def _subnormal(format: AnyFormat, n: int, generator: np.random.Generator) -> Array:
    """Return values below the least normal one; in fixed point the few least quanta."""
    least = 8 if isinstance(format, FixedFormat) else 2 ** (format.precision - 1)
    return generator.integers(-least, least, n, endpoint=True).astype(np.float64) * format.min_subnormal


def _gaussian(format: AnyFormat, n: int, generator: np.random.Generator) -> Array:
    """Return N(0, 1) scaled by a power of two that the format covers."""
    top = min(int(np.log2(format.max)) - 3, 8)
    return generator.normal(size=n) * 2.0 ** generator.integers(min(-8, top), top, endpoint=True)


def _zeros(format: AnyFormat, n: int, generator: np.random.Generator) -> Array:
    """Return zeros of both signs."""
    return generator.choice([-0.0, 0.0], n)


# Kind of values -> what draws them.
KINDS: dict[str, Callable[[AnyFormat, int, np.random.Generator], Array]] = {
    "gaussian": _gaussian,
    "random values": _random_values,
    "near overflow": _near_overflow,
    "subnormal": _subnormal,
    "zeros": _zeros,
}


@st.composite
def tensors_in(
    draw: st.DrawFn,
    format: str | AnyFormat,
    *,
    shape: Shape | st.SearchStrategy[Shape],
    kind: str | None = None,
) -> Any:
    """Return float32 tensors (float64 for wide formats) all of whose elements are values of `format`.

    `kind` is a row of KINDS; None draws one. `shape` is a tuple or a strategy of tuples.
    """
    target, size = parse_format(format), _shape(draw, shape)
    make = lookup(KINDS, kind, what="kind of tensor") if kind else KINDS[draw(st.sampled_from(list(KINDS)))]
    return _tensor(make(target, int(np.prod(size)), _generator(draw)), size, target)


@st.composite
def tensors_near_ties(draw: st.DrawFn, format: str | AnyFormat, *, shape: Shape | st.SearchStrategy[Shape]) -> Any:
    """Return float64 tensors of midpoints between neighbouring values, and of their two float64 neighbours."""
    import torch

    target, size, generator = parse_format(format), _shape(draw, shape), _generator(draw)
    values = np.abs(_random_values(target, int(np.prod(size)), generator))
    if isinstance(target, Format):
        exponent = np.maximum(np.frexp(np.where(values == 0, 1.0, values))[1] - 1, target.emin)
        half = np.ldexp(0.5, exponent - target.precision + 1)
    else:
        half = np.full_like(values, target.min_subnormal / 2)
    ties = values + half
    sides = generator.integers(-1, 1, len(ties), endpoint=True)
    near = np.where(sides < 0, np.nextafter(ties, 0.0), np.where(sides > 0, np.nextafter(ties, np.inf), ties))
    return torch.from_numpy(near * generator.choice([-1.0, 1.0], len(near))).reshape(size)


@st.composite
def tensors_for_norms(draw: st.DrawFn, format: str | AnyFormat, *, shape: Shape | st.SearchStrategy[Shape]) -> Any:
    """Return (N, C, ...) tensors of values of `format` that norms fail on, another trouble in each channel.

    A huge mean with a small variance, one spike among small values, a constant, zeros, subnormals only, values
    whose squares overflow, and plain Gaussian ones.
    """
    target, size, generator = parse_format(format), _shape(draw, shape), _generator(draw)
    x = generator.normal(size=size)
    for channel in range(size[1]):
        trouble = _TROUBLES[draw(st.integers(0, len(_TROUBLES) - 1))]
        x[:, channel] = trouble(x[:, channel], target, generator)
    return _tensor(x.ravel(), size, target)


_TROUBLES: tuple[Callable[[Array, AnyFormat, np.random.Generator], Array], ...] = (
    lambda x, format, generator: x,
    lambda x, format, generator: format.max / 8 + x * format.max * 2.0**-10,
    lambda x, format, generator: np.where(np.arange(x.size).reshape(x.shape) == 0, format.max / 2, x * 2.0**-4),
    lambda x, format, generator: np.full_like(x, generator.normal()),
    lambda x, format, generator: np.zeros_like(x),
    lambda x, format, generator: np.rint(x * 3) * format.min_subnormal,
    lambda x, format, generator: x * np.sqrt(format.max) * 2,
)


def _shape(draw: st.DrawFn, shape: Shape | st.SearchStrategy[Shape]) -> Shape:
    """Return the shape, drawn if it is a strategy."""
    return draw(shape) if isinstance(shape, st.SearchStrategy) else tuple(shape)


def _generator(draw: st.DrawFn) -> np.random.Generator:
    """Return a generator whose seed hypothesis drew."""
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def _tensor(values: Array, shape: Shape, format: AnyFormat) -> Any:
    """Return `values`, rounded to `format`, as a tensor of the dtype that carries it."""
    import torch

    from normstab.numerics.rounding import cast

    wide = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).reshape(shape)
    finite = wide.clamp(-format.max, format.max)
    rounded = cast(finite, format)
    return rounded if not format.fits_float32 else rounded.to(torch.float32)
