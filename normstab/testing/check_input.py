"""What `normstab check` is told on the command line: the inputs to make and the factory to call.

`SHAPE[:DTYPE[:LOW..HIGH]]`, or `name=SHAPE...`; SHAPE is 8x3x32x32.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from normstab.errors import NormstabError, near
from normstab.experiment.network.users_code import users_code

__all__ = ["InputSpec", "build", "parse_inputs", "parse_rules"]

FLOATING = ("float16", "bfloat16", "float32", "float64")
WHOLE = ("bool", "uint8", "int32", "int64")
_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?::(?P<range>.+))?\Z")
_RANGE = re.compile(r"(-?[\d.]+(?:e[-+]?\d+)?)\.\.(-?[\d.]+(?:e[-+]?\d+)?)\Z")
GRAMMAR = "[name=]SHAPE[:DTYPE[:LOW..HIGH]], such as 8x3x32x32, ids=2x16:int64:0..1000 or 4x8:float32:-1..1"
MOST_ELEMENTS = 2**31


@dataclass(frozen=True)
class InputSpec:
    """One input: floating ones are N(0, 1), or uniform in `low .. high`; whole ones uniform in low .. high - 1."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None
    low: float | None = None
    high: float | None = None

    def make(self, generator: Any) -> Any:
        """Return the tensor, drawn from a torch generator."""
        import torch

        dtype = getattr(torch, self.dtype)
        if self.dtype in WHOLE:
            low, high = int(self.low or 0), int(2 if self.high is None else self.high)
            return torch.randint(low, high, self.shape, generator=generator).to(dtype)
        if self.low is None or self.high is None:
            return torch.randn(self.shape, generator=generator).to(dtype)
        return (torch.rand(self.shape, generator=generator) * (self.high - self.low) + self.low).to(dtype)


def parse_inputs(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Return the inputs that `--input` named, in order; raise NormstabError for one that does not parse."""
    specs = tuple(_parse(text) for text in texts)
    names = [spec.name for spec in specs if spec.name]
    if twice := {name for name in names if names.count(name) > 1}:
        raise NormstabError(f"--input: {', '.join(sorted(twice))} is given twice")
    return specs


def _parse(text: str) -> InputSpec:
    """Return one input."""
    match = _INPUT.match(text.strip())
    if match is None:
        raise NormstabError(f"--input {text!r}: expected {GRAMMAR}")
    shape = tuple(int(size) for size in match["shape"].split("x"))
    dtype = match["dtype"] or "float32"
    if dtype not in FLOATING + WHOLE:
        allowed = FLOATING + WHOLE
        raise NormstabError(f"--input {text!r}: unknown dtype {dtype!r}{near(dtype, allowed)} ({', '.join(allowed)})")
    elements = 1
    for size in shape:
        elements *= size
    if not 0 < elements < MOST_ELEMENTS:
        raise NormstabError(f"--input {text!r}: {elements} elements; allowed: 1 .. {MOST_ELEMENTS - 1}")
    low = high = None
    if match["range"]:
        bounds = _RANGE.match(match["range"])
        if bounds is None or float(bounds[1]) >= float(bounds[2]):
            raise NormstabError(f"--input {text!r}: a range is LOW..HIGH with LOW < HIGH, found {match['range']!r}")
        low, high = float(bounds[1]), float(bounds[2])
    return InputSpec(shape, dtype, match["name"], low, high)


def parse_rules(texts: Sequence[str]) -> dict[str, str]:
    """Return the rules of `--rules MODULE=PRECISION`; the module may be a `re:` pattern or `_default`."""
    rules = {}
    for text in texts:
        name, equals, precision = text.partition("=")
        if not equals or not precision:
            raise NormstabError(f"--rules {text!r}: expected MODULE=PRECISION, such as layer1=fp32 or re:.*norm.*=fp32")
        rules[name] = precision
    return rules


def build(factory: Callable[[], Any], seed: int) -> Any:
    """Return what the factory makes, with the generators of torch, numpy and Python seeded."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a factory may draw from numpy's global generator
    torch.manual_seed(seed)
    with users_code(f"the factory {getattr(factory, '__name__', factory)} failed"):
        return factory()
