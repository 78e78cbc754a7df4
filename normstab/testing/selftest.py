"""Conformance on the user's own machine and device: what rounds here rounds as everywhere.

Compares the implementation in use with the torch reference and with published or stored answers. It prints
nothing and measures no time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.accumulate import sum_calls, sum_terms, terms_of
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.execute import carrier_dtype, compute
from normstab.numerics.first_calls import FIRST_CALLS
from normstab.numerics.formats import FORMATS, AnyFormat, parse_format
from normstab.numerics.ledger import Ledger, Row
from normstab.numerics.philox import Key, philox, random_fields
from normstab.numerics.precision import ROUNDINGS, Accumulation, Rounding
from normstab.numerics.readable.event_counts import count
from normstab.numerics.readable.operations import carry
from normstab.numerics.readable.reference import LAYOUTS, encode, holds, round_reference
from normstab.numerics.rounding import cast
from normstab.numerics.scaled.quantize import quantize, quantize_readably, scaled_format

__all__ = ["Check", "run_selftest"]

PATTERNS = 20_000
NAMES = (*FORMATS, "e6m9", "q7.8", "q3.4:wrap", "fp16:saturate")
SCALED = ("mxfp8", "mxfp4", "mxint8", "nvfp4", "fp8-rowwise", "int8@row")
KEY = Key(seed=2018, site="selftest", step=7)
# sha256 over every cast of `_digest`: the bits that every machine must give (since NUMERICS_VERSION 1).
GOLDEN = "4d206428e9e4f4dae1b16c52dced7b7eed27e574db6c908a276d2ff6e5afb994"
# Random123, kat_vectors: philox 4x32-10 of zeros.
PHILOX_OF_ZEROS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@dataclass(frozen=True)
class Check:
    """One line of the self-test: what was compared with what, how many results, how many differed."""

    subject: str
    against: str
    compared: int
    mismatches: int

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing differed."""
        return self.compared > 0 and self.mismatches == 0


def run_selftest(device: str = "cpu", *, progress: Callable[[Check], None] = lambda _: None) -> list[Check]:
    """Run every check on `device`, telling `progress` each one as it ends; about half a minute on a CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise NormstabError("selftest: no CUDA device is available to torch; allowed here: cpu")
    FIRST_CALLS.end()  # the kernels are what is asked about
    checks = []
    for check in _checks(torch.device(device)):
        checks.append(check)
        progress(check)
    return checks


def _checks(device: torch.device) -> Iterator[Check]:
    """Yield the checks in the order of the table."""
    words = tuple(int(word) for word in philox(0, 0, torch.zeros(1, dtype=torch.int64, device=device)))
    yield Check(
        "random bits", "Random123's vector", 4, sum(a != b for a, b in zip(words, PHILOX_OF_ZEROS, strict=True))
    )
    for name in NAMES:
        yield _casts(name, device)
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        x = patterns(torch.float32)
        wrong = _differing(cast(x.to(device), name).cpu(), x.to(dtype).float())
        yield Check(f"cast to {name}, nearest", "torch's own cast", len(x), wrong)
    for operation in ("add", "sub", "mul", "div", "sqrt", "fma"):
        yield _operations(operation, device)
    for order in ("sequential", "pairwise", "blocked8", "lanes16", "sequential+kahan"):
        yield _sums(order, device)
    for name in SCALED:
        yield _scaled(name, device)
    yield Check("bits of all casts", "the stored digest", 1, int(_digest(device) != GOLDEN))


def patterns(dtype: torch.dtype, salt: str = "") -> Tensor:
    """Return PATTERNS random bit patterns of `dtype`: every exponent, subnormals, infinities and NaNs."""
    index = torch.arange(PATTERNS)
    low, high = (random_fields(Key(0, f"patterns{salt}.{part}").draw, index, 32) for part in ("low", "high"))
    match dtype:
        case torch.float64:
            return (low | (high << 32)).view(dtype)
        case torch.float32:
            return low.to(torch.int32).view(dtype)
    return (low & 0xFFFF).to(torch.int16).view(dtype)


def _casts(name: str, device: torch.device) -> Check:
    """Compare every mode and dtype with the reference, counters included."""
    format, compared, wrong = parse_format(name), 0, 0
    for dtype in LAYOUTS:
        if not holds(dtype, format):
            continue
        x = patterns(dtype)
        for mode in ROUNDINGS:
            rounding = Rounding.parse(mode)
            ledger = Ledger(inexact=True, histogram=True)
            found = cast(x.to(device), format, rounding=rounding, key=KEY, ledger=ledger, site="x").cpu()
            row = Row(with_histogram=True)
            expected = _referred(x, format, rounding, row)
            compared += len(x) + 1
            wrong += _differing(found, expected) + (ledger["x"] != row.tally(with_inexact=True))
    return Check(f"cast to {name}, every mode", "the torch reference", compared, wrong)


def _scaled(name: str, device: torch.device) -> Check:
    """Compare values, scales and codes of a scaled format with the reference, in rows of 100."""
    finite = torch.where(patterns(torch.float32).isfinite(), patterns(torch.float32), 1.0)
    x, scaled = finite.view(-1, 100), scaled_format(name)
    found = quantize(x.to(device), scaled)
    expected = quantize_readably(x, scaled, Call(FORMATS["fp32"]))
    pairs = list(zip(found, expected, strict=True))
    wrong = sum(int((a.cpu() != b).sum()) for a, b in pairs)
    return Check(f"quantize to {name}", "the torch reference", sum(b.numel() for _, b in pairs), wrong)


def _referred(x: Tensor, format: AnyFormat, rounding: Rounding, row: Row) -> Tensor:
    """Round `x` by the reference alone, counting into `row`."""
    fields = random_fields(KEY.draw, torch.arange(len(x)), rounding.bits) if rounding.is_stochastic else None
    rounded = round_reference(x, format, rounding, fields=fields)
    counts = count(rounded, operand_nan=x.isnan(), operand_inf=x.isinf())
    row.add(counts.counts, counts.largest, counts.smallest, stamp=1, step=KEY.step)
    row.add_bins(counts.histogram)
    return rounded.value


def _operations(operation: str, device: torch.device) -> Check:
    """Compare an operation with the reference in two formats and every mode."""
    arity = {"sqrt": 1, "fma": 3}.get(operation, 2)
    raw = tuple(patterns(torch.float32, salt) for salt in ("", "b", "c")[:arity])
    compared = wrong = 0
    for name in ("fp16", "bf16", "e4m3fn", "fp32", "q7.8"):
        operands = tuple(cast(x, name) for x in raw)
        for mode in ROUNDINGS:
            call = Call(parse_format(name), Rounding.parse(mode), draw=KEY.draw)
            found = compute(operation, tuple(x.to(device) for x in operands), call).cpu()
            carried = carry(operation, operands, rounds_down=mode == "down")
            fields = random_fields(KEY.draw, torch.arange(PATTERNS), call.rounding.bits) if call.rounding.bits else None
            rounded = round_reference(carried.value, call.format, call.rounding, fields=fields)
            expected = encode(rounded.value, carrier_dtype(operands, call.format))
            compared += PATTERNS
            wrong += _differing(found, expected)
    return Check(f"{operation}, every mode", "the torch reference", compared, wrong)


def _sums(order: str, device: torch.device) -> Check:
    """Compare sums in one order with the reference, in three accumulator formats."""
    x = cast(torch.sin(torch.arange(64 * 300, dtype=torch.float64)).view(64, 300).float() * 3, "e5m2")
    compared = wrong = 0
    for name in ("fp16", "bf16", "fp32"):
        spec = Accumulation.parse(f"{name}:{order}")
        arithmetic = Arithmetic("fp16", accumulate=spec, key=KEY)
        found = arithmetic.sum(x.to(device), 1).cpu()
        expected = sum_terms(terms_of(x, (1,)), spec, sum_calls(spec, arithmetic.calls("sum")))
        compared += 64
        wrong += _differing(found.double(), expected)
    return Check(f"sum, {order}", "the torch reference", compared, wrong)


def _digest(device: torch.device) -> str:
    """Return the sha256 over the casts of fixed patterns in every format and mode."""
    digest = hashlib.sha256()
    x = patterns(torch.float32).to(device)
    for name in NAMES:
        for mode in ROUNDINGS:
            found = cast(x, name, rounding=mode, key=KEY).cpu()
            # One NaN is as good as another here: fp32 and fp64 copy payloads.
            digest.update(np.where(found.isnan(), np.float32(np.nan), found.numpy()).tobytes())
    return digest.hexdigest()


def _differing(found: Tensor, expected: Tensor) -> int:
    """Return how many elements differ, the signs of zeros included; NaN equals NaN."""
    same = (found == expected) & (torch.signbit(found) == torch.signbit(expected))
    return int((~(same | (found.isnan() & expected.isnan()))).sum())
