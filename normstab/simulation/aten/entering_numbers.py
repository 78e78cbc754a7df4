"""Numbers that enter a tensor of the network's dtype from outside: fills, bounds, pads, factories.

Each is cast once to the format, nearest-even, and counted at `operation.const`. Where the dtype is the format's
own, torch's operation casts it (and raises for one that does not fit); elsewhere the operation is given the cast
number, a finite one beyond the range as the largest of its sign, so that a mask stays a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.formats import FORMATS, AnyFormat
from normstab.torch_private import schema_of

__all__ = ["FILLS", "constant_positions", "is_own_format", "with_constants"]

# Operations one of whose numbers becomes an element of the result (a comparison's does not).
FILLS = frozenset(
    [
        "full",
        "full_like",
        "new_full",
        "scalar_tensor",
        "fill",
        "masked_fill",
        "clamp",
        "clamp_min",
        "clamp_max",
        "hardtanh",
        "threshold",
        "constant_pad_nd",
        "index_fill",
        "nan_to_num",
        "scatter",
        "fill_diagonal",
    ]
)
FILLED_BY = frozenset(("fill_value", "value", "s", "min", "max", "min_val", "max_val", "nan", "posinf", "neginf"))
WHERE = frozenset(("self", "other"))
OWN_FORMAT = {torch.float16: FORMATS["fp16"], torch.bfloat16: FORMATS["bf16"]}


class Positions(NamedTuple):
    """Where an overload takes such numbers: positions and names of arguments."""

    by_position: tuple[int, ...]
    names: frozenset[str]


@lru_cache(maxsize=256)
def constant_positions(func: Any) -> Positions:
    """Return where an overload of FILLS takes the numbers that it writes."""
    names = WHERE if schema_of(func).name == "aten::where" else FILLED_BY
    found = [(i, argument.name) for i, argument in enumerate(schema_of(func).arguments) if argument.name in names]
    return Positions(tuple(i for i, _ in found), frozenset(name for _, name in found))


def is_own_format(format: AnyFormat, dtype: torch.dtype) -> bool:
    """Whether `dtype` has exactly the numbers of `format`."""
    return format == OWN_FORMAT.get(dtype)


def with_constants(
    ar: Arithmetic, name: str, where: Positions, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments with the numbers that enter cast to the format of `ar`, and count them."""
    passes = is_own_format(ar.format, dtype)
    cast = [_cast(ar, name, x, passes=passes) if i in where.by_position else x for i, x in enumerate(args)]
    named = {key: _cast(ar, name, x, passes=passes) if key in where.names else x for key, x in kwargs.items()}
    return tuple(cast), named


def _cast(ar: Arithmetic, name: str, x: Any, *, passes: bool) -> Any:
    """Return one number cast and counted; `passes`: torch casts it itself."""
    if isinstance(x, Tensor) and (x.dim() or not x.is_floating_point() or x.dtype in OWN_FORMAT):
        return x  # of the network's dtype already, and counted where it was made
    if isinstance(x, bool) or not isinstance(x, int | float | Tensor):
        return x
    value = float(x)
    rounded = ar.constant(value, name)
    if passes:
        return x
    if math.isfinite(value) and not math.isfinite(rounded):
        rounded = math.copysign(ar.format.max, value)
    return torch.tensor(rounded, dtype=x.dtype) if isinstance(x, Tensor) else rounded
