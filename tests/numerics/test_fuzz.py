"""Random formats, modes, dtypes, shapes and strides against oracles that share no code with the package.

In every run a short form of a fixed seed; nightly a million casts and as many operations, of fresh seeds.
"""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from normstab import Arithmetic, FixedFormat, Ledger, cast, parse_format
from normstab.numerics.formats import AnyFormat
from tests.numerics.fraction_oracle import OPERANDS, exact, rounded
from tests.numerics.kernel_oracle import patterns
from tests.numerics.oracles import MODES, round_by_quantum, same_bits

SHARDS, CASES = 20, 50_000
PRESETS = ["fp32", "tf32", "fp16", "bf16", "e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e3m4", "e2m3", "e3m2", "e2m1"]
DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]


def any_format(chance: random.Random) -> AnyFormat:
    """Return a preset, or a format of the grammar, with any policy, perhaps without subnormals."""
    kind = chance.choice(["preset", "float", "fixed"])
    if kind == "fixed":
        bits = chance.randint(1, 24)
        fraction = chance.randint(-6, 30)
        policy = chance.choice(["saturate", "saturate-symmetric", "saturate-zero", "wrap"])
        sign = "u" if policy != "saturate-symmetric" and chance.random() < 0.3 else "q"
        return parse_format(f"{sign}{bits - fraction}.{fraction}:{policy}")
    name = chance.choice(PRESETS) if kind == "preset" else f"e{chance.randint(2, 8)}m{chance.randint(1, 23)}"
    policy = chance.choice(["", ":inf", ":nan", ":saturate"])
    return parse_format(name + policy + (":flush" if chance.random() < 0.2 else ""))


def any_layout(x: Tensor, chance: random.Random) -> Tensor:
    """Return some of the values of `x` in a random shape and random strides."""
    rank = chance.randint(0, 3)
    shape = [chance.choice([1, 1, 2, 3, 5, 8, 0]) if chance.random() < 0.9 else 17 for _ in range(rank)]
    size = math.prod(shape)
    if size == 0 or size > x.numel():
        return x[:size].reshape(shape) if size == 0 else x[: x.numel() // 2 * 2 : 2]
    y = x[:size].reshape(shape)
    match chance.choice(["dense", "permuted", "strided", "expanded", "flipped"]):
        case "permuted":
            order = chance.sample(range(rank), rank)
            return y.permute(order).contiguous().permute([order.index(i) for i in range(rank)])
        case "strided":
            return x[: 2 * size : 2].reshape(shape) if 2 * size <= x.numel() else y
        case "expanded":
            return y.unsqueeze(0).expand(chance.randint(1, 3), *shape)
        case "flipped":
            return y.flip(list(range(rank))).mT if rank >= 2 else y
    return y


def cast_by_oracle(x: np.ndarray, format: AnyFormat, mode: str) -> tuple[np.ndarray, dict[str, int]]:
    """Return the values of a cast, and its counters, by two neighbours and their distances."""
    y = round_by_quantum(x, format, mode)
    if not getattr(format, "has_subnormals", True):
        y = np.where(np.abs(y) < format.min_normal, np.copysign(0.0, y), y)  # type: ignore[union-attr]
        y = y if getattr(format, "has_negative_zero", True) else np.where(y == 0, 0.0, y)
    unbounded = _without_end(x, format, mode)
    finite = np.isfinite(x)
    least = getattr(format, "min", -format.max)
    beyond = finite & ((unbounded > format.max) | (unbounded < least))
    tiny = 0.0 if isinstance(format, FixedFormat) else format.min_normal
    nan = np.isnan(y)
    counts = {
        "count": x.size,
        "overflow": int(beyond.sum()),
        "underflow": int((finite & (x != 0) & (y == 0)).sum()),
        "subnormal": int(((y != 0) & (np.abs(y) < tiny)).sum()),
        "nan_propagated": int(np.isnan(x).sum()),
        "nan_produced": int((nan & ~np.isnan(x)).sum()),
        "inexact": int((finite & ~((y == x) | nan)).sum() + (finite & nan).sum()),
    }
    return y, counts


def _without_end(x: np.ndarray, format: AnyFormat, mode: str) -> np.ndarray:
    """Return the rounded values as if there were no largest one."""
    if isinstance(format, FixedFormat):
        whole = np.abs(np.where(np.isfinite(x), x, 0.0)) * 2.0**format.fraction_bits
        fraction = whole - np.floor(whole)
        up = {
            "nearest": (fraction > 0.5) | ((fraction == 0.5) & (np.floor(whole) % 2 == 1)),
            "nearest-away": fraction >= 0.5,
            "toward-zero": np.zeros_like(fraction, dtype=bool),
            "up": (fraction > 0) & ~np.signbit(x),
            "down": (fraction > 0) & np.signbit(x),
            "to-odd": (fraction > 0) & (np.floor(whole) % 2 == 0),
            "half-up": (fraction > 0.5) | ((fraction == 0.5) & ~np.signbit(x)),
            "half-down": (fraction > 0.5) | ((fraction == 0.5) & np.signbit(x)),
            "half-toward-zero": fraction > 0.5,
        }[mode]
        return np.copysign((np.floor(whole) + up) * 2.0**-format.fraction_bits, x)
    endless = SimpleNamespace(precision=format.precision, emin=format.emin, max=np.inf, overflow="inf", min=-np.inf)
    return round_by_quantum(x, endless, mode)


def check_cast(chance: random.Random) -> None:
    """Cast one random tensor into a random format, counted, and compare."""
    format, mode, dtype = any_format(chance), chance.choice(MODES), chance.choice(DTYPES)
    values = patterns(dtype, 64, seed=chance.getrandbits(32))
    if dtype == torch.float64 or format.overflow == "wrap":
        # The oracle computes in float64, in which a number of quanta has to be exact.
        far = values.isfinite() & (values.double().abs() / format.min_subnormal > 2.0**40)
        values = values.masked_fill(far, 1.0)
    x = any_layout(values, chance)
    ledger = Ledger(inexact=True)
    try:
        y = cast(x, format, rounding=mode, ledger=ledger, site="fuzz")
    except TypeError:
        assert dtype in (torch.float16, torch.bfloat16)
        return
    what = (str(format), mode, dtype, tuple(x.shape), x.stride())
    expected, counts = cast_by_oracle(x.double().numpy(), format, mode)
    assert y.shape == x.shape and y.dtype == x.dtype, what
    assert same_bits(y.double().numpy(), expected).all(), what
    plain = cast(x, format, rounding=mode)
    assert same_bits(plain.double().numpy(), expected).all(), what
    if x.numel():
        assert {name: getattr(ledger["fuzz"], name) for name in counts} == counts, what


def check_operation(chance: random.Random) -> None:
    """Compute one random operation of random tensors and scalars, and compare a few elements with fractions."""
    format, mode, operation = any_format(chance), chance.choice(MODES), chance.choice(list(OPERANDS))
    scale = 2.0 ** chance.randint(-12, 12)
    n = chance.choice([1, 3, 8, 33])
    operands: list[Any] = []
    for _ in range(OPERANDS[operation]):
        dtype = chance.choice(DTYPES)
        x = torch.tensor([chance.gauss(0, 1) * scale for _ in range(2 * n)], dtype=torch.float64).to(dtype)
        operands.append(chance.choice([x[:n], x[::2], x[:n].flip(0), x[:1].expand(n)]))
    if len(operands) > 1 and chance.random() < 0.3:
        operands[-1] = chance.choice([0.1, -1 / 3, 2.0, 1e-5, 7])
    if operation == "sqrt":
        operands = [operands[0].abs()]
    ledger = Ledger(inexact=chance.random() < 0.5) if chance.random() < 0.7 else None
    y = getattr(Arithmetic(f"{format}/{mode}", ledger=ledger), operation)(*operands)
    for i in {0, n - 1, chance.randrange(n)}:
        numbers = [float(x[i]) if isinstance(x, Tensor) else float(x) for x in operands]
        if operation == "div" and numbers[1] == 0:
            continue
        x = exact(operation, numbers)
        expected = 0.0 if x == 0 else rounded(x, format, mode)
        found = float(y[i])
        same = found == expected or (math.isnan(found) and math.isnan(expected))
        assert same, (str(format), mode, operation, [number.hex() for number in numbers], found, expected)


@pytest.mark.parametrize("check", [check_cast, check_operation])
def test_a_few_random_cases(check: Any) -> None:
    chance = random.Random(1402)
    for _ in range(400):
        check(chance)


@pytest.mark.nightly
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("check", [check_cast, check_operation])
def test_a_million_random_cases(check: Any, shard: int) -> None:
    seed = random.SystemRandom().getrandbits(64)
    chance = random.Random(seed)
    for i in range(CASES):
        try:
            check(chance)
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {i} of shard {shard}: {error}") from error
