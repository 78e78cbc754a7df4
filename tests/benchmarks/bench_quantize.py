"""Scaled formats beside a copy of the same array, in one run: amax, scales, values and codes.

Nothing is asserted.
"""

import torch

import normstab as ns
from normstab.numerics import dispatch as backends
from tests.benchmarks.timing import Work, begin, in_turns, print_table

TURNS = {10**6: 40, 10**7: 9}
FORMATS = ("mxfp8", "e4m3fn@row", "nvfp4", "e4m3fn@tensor", "mxfp4", "mxint8", "int8@row")


def quantizations(n: int) -> dict[str, Work]:
    """Quantizing `n` float32 in rows of 1000, by format, `copy_` first."""
    x, out, ledger = torch.randn(n // 1000, 1000), torch.empty(n // 1000, 1000), ns.Ledger()
    works: dict[str, Work] = {"copy_": lambda: out.copy_(x)}
    for name in FORMATS:
        works[name] = lambda name=name: ns.quantize(x, name)
    works["mxfp8 with ledger"] = lambda: ns.quantize(x, "mxfp8", ledger=ledger, site="a")
    return works


def main() -> None:
    """Print the table."""
    begin("Quantizing", turns=None)
    assert backends.kernels_for(torch.empty(0)) is not None, "the compiled kernels are missing"
    print_table("quantize", {f"{n:,}": in_turns(quantizations(n), turns) for n, turns in TURNS.items()}, "copy_")


if __name__ == "__main__":
    main()
