"""Operands of up to 53 bits, float64 tensors and Python scalars: the exact result rounded once, by fractions.

The law that would have caught what was wrong: for every finite float64 operand, not only for those of 24 bits.
"""

from __future__ import annotations

import math
import random

import pytest
import torch

from normstab import Arithmetic, Key, Ledger, parse_format
from normstab.numerics import execute
from normstab.numerics.ledger import COUNTERS
from tests.numerics.fraction_oracle import OPERANDS, exact, rounded

FORMATS = ["fp16", "bf16", "e4m3fn", "fp32", "e9m20", "fp64", "e5m2:saturate", "q7.8", "q7.8:wrap", "q15.12:wrap"]
MODES = ["nearest", "nearest-away", "toward-zero", "up", "down", "to-odd", "half-up"]


def number(chance: random.Random, kind: str) -> float:
    """Return a number: any, next to a tie, in the corners of float64, or of 24 bits."""
    sign = chance.choice([-1, 1])
    if kind == "tie":
        fraction = 1 + chance.choice([0, 1, 2, 3, 5, 7]) * 2.0 ** -chance.choice([3, 4, 8, 9, 11, 12, 24])
        return sign * math.ldexp(fraction + chance.choice([0, 1, -1]) * 2.0**-52, chance.randint(-20, 14))
    if kind == "corner":
        return sign * math.ldexp(chance.uniform(1, 2), chance.randint(-1060, 1022))
    wide = sign * math.ldexp(chance.uniform(0.5, 1), chance.randint(-30, 30))
    return wide if kind == "any" else float(torch.tensor(wide, dtype=torch.float32))


def rows(operation: str, n: int, seed: str) -> list[list[float]]:
    chance = random.Random(seed)
    kinds = ["any", "tie", "tie", "corner", "narrow"]
    made = [[number(chance, chance.choice(kinds)) for _ in range(n)] for _ in range(OPERANDS[operation])]
    if operation == "mul":  # products within an ulp of float64 of a tie
        made[0][: n // 3] = [number(chance, "any") for _ in range(n // 3)]
        made[1][: n // 3] = [math.nextafter((1 + 2.0**-11) / x, chance.choice([0, 9.0])) for x in made[0][: n // 3]]
    return [[abs(x) for x in row] for row in made] if operation == "sqrt" else made


def check(operation: str, name: str, mode: str, n: int, seed: str) -> None:
    format, numbers = parse_format(name), rows(operation, n, seed)
    found = getattr(Arithmetic(f"{name}/{mode}"), operation)(*(torch.tensor(x, dtype=torch.float64) for x in numbers))
    for i, y in enumerate(found.tolist()):
        x = exact(operation, [row[i] for row in numbers])
        if x == 0:
            assert y == 0
            continue
        expected = rounded(x, format, mode)
        same = y == expected or (math.isnan(y) and math.isnan(expected))
        assert same, (operation, name, mode, [row[i].hex() for row in numbers], y.hex(), expected.hex())


@pytest.mark.parametrize("operation", OPERANDS)
@pytest.mark.parametrize("name", FORMATS)
def test_the_exact_result_of_float64_operands_is_rounded_once(name: str, operation: str) -> None:
    for mode in MODES:
        check(operation, name, mode, 12, f"{name}{mode}{operation}")


@pytest.mark.nightly
@pytest.mark.parametrize("operation", OPERANDS)
@pytest.mark.parametrize("name", FORMATS)
def test_so_it_is_of_many(name: str, operation: str) -> None:
    for mode in MODES:
        check(operation, name, mode, 1000, f"many{name}{mode}{operation}")


@pytest.mark.parametrize("mode", ["nearest", "down", "to-odd", "stochastic"])
@pytest.mark.parametrize("name", ["fp16", "fp32", "q7.8:wrap"])
@pytest.mark.parametrize("operation", OPERANDS)
@pytest.mark.parametrize("kinds", [("any", "narrow"), ("corner", "tie")])
def test_the_kernel_gives_the_bits_and_counts_of_the_reference(
    operation: str, name: str, mode: str, kinds: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"{operation}{name}{mode}")
    numbers = [[number(chance, chance.choice(kinds)) for _ in range(120)] for _ in range(OPERANDS[operation])]
    tensors = [torch.tensor(row, dtype=torch.float64) for row in numbers]
    tensors = [x.abs() for x in tensors] if operation == "sqrt" else tensors
    given = [*tensors[:-1], 0.1] if operation != "sqrt" else tensors
    outcomes = []
    for uses_kernels in (True, False):
        if not uses_kernels:
            monkeypatch.setattr(execute.backends, "kernels_for", lambda *_: None)
        ledger = Ledger(inexact=True, histogram=True)
        ar = Arithmetic(f"{name}/{mode}", ledger=ledger, key=Key(1))
        found = [getattr(ar, operation)(*tensors), getattr(ar, operation)(*given)]
        target = tensors[0].clone()
        same = [target, *tensors[1:]]
        found.append(getattr(ar, operation)(*same, out=target))
        outcomes.append(([x.double().view(torch.int64) for x in found], ledger[operation]))
    assert all(torch.equal(a, b) for a, b in zip(outcomes[0][0], outcomes[1][0], strict=True))
    for counter in (*COUNTERS, "histogram", "largest", "smallest"):
        assert getattr(outcomes[0][1], counter) == getattr(outcomes[1][1], counter), counter


@pytest.mark.parametrize("scalar", [0.1, 1 / 3, 1e-300, 1e300, math.pi])
def test_a_python_scalar_is_used_with_all_of_its_bits(scalar: float) -> None:
    chance = random.Random(3)
    x = torch.tensor([number(chance, "narrow") for _ in range(200)])
    for name in ("fp16", "bf16", "fp32"):
        for mode in MODES:
            ar, format = Arithmetic(f"{name}/{mode}"), parse_format(name)
            for operation in ("add", "mul", "div"):
                for a, y in zip(x.tolist(), getattr(ar, operation)(x, scalar).tolist(), strict=True):
                    expected = rounded(exact(operation, [a, scalar]), format, mode)
                    assert abs(y) == abs(expected), (name, mode, operation, a)


def test_fma_in_fp64_is_rounded_once() -> None:
    a, b = torch.tensor(1 + 2.0**-30, dtype=torch.float64), 1 - 2.0**-30
    # 1 - 2^-60: the product alone would be 1.
    assert float(Arithmetic("fp64").fma(a, b, -1.0)) == -(2.0**-60)


def test_products_beyond_float64_overflow_as_the_direction_says() -> None:
    x = torch.tensor([1e200, -1e200], dtype=torch.float64)
    ledger = Ledger()
    assert Arithmetic("fp16/toward-zero", ledger=ledger).mul(x, 1e200).tolist() == [65504.0, -65504.0]
    assert Arithmetic("fp16/nearest", ledger=ledger).mul(x, 1e200).tolist() == [math.inf, -math.inf]
    assert ledger["mul"].overflow == 4 and ledger["mul"].inf_propagated == 0
    small = torch.tensor([1e-200, -1e-200], dtype=torch.float64)
    assert Arithmetic("fp16/up", ledger=ledger).mul(small, 1e-200).tolist() == [2.0**-24, -0.0]
    assert ledger["mul"].underflow == 1
