"""Sums and matrix products with an emulated accumulator, beside torch's float32 ones of the same arrays, in one run."""

from collections.abc import Iterable

import torch

import normstab as ns
from tests.benchmarks.timing import Work, begin, in_turns, print_table

# Accumulator -> what is to be reached for a sum of 512 x 4096.
SUMS = {
    "fp16:sequential": "20x",
    "fp16:pairwise": "5x",
    "fp16:blocked64": "5x",
    "fp16:lanes64": "5x",
    "bf16:blocked64": "",
    "fp32:lanes64": "",
}
# Exact and compensated sums have no vector kernel; they run apart, as they would push the others out of the cache.
CAREFUL_SUMS = {"fp16:sequential+kahan": "", "exact": ""}
PRODUCTS = {
    "native, rounded once": ("fp16", ""),
    "fp16:sequential": ("fp16;matmul=fp16:sequential", "15x"),
    "fp16:blocked64": ("fp16;matmul=fp16:blocked64", "15x"),
    "e6m9:blocked64": ("e5m2/nearest/fp32;matmul=e6m9:blocked64", ""),
}
ROWS, COLUMNS, SIDE = 512, 4096, 512


def sums(accumulators: Iterable[str]) -> dict[str, Work]:
    """The sums of the rows of one array, torch's first; without and with a ledger."""
    x = ns.cast(torch.randn(ROWS, COLUMNS), "fp16")
    works: dict[str, Work] = {"torch.sum, float32": lambda: x.sum(1)}
    for name in accumulators:
        plain = ns.Arithmetic("fp16", accumulate=name)
        works[name] = lambda plain=plain: plain.sum(x, 1)
        counting = ns.Arithmetic("fp16", accumulate=name, ledger=ns.Ledger()).at("a")
        works[f"{name}, ledger"] = lambda counting=counting: counting.sum(x, 1)
    return works


def products() -> dict[str, Work]:
    """The products of two square matrices, torch's first."""
    a, b = (ns.cast(torch.randn(SIDE, SIDE), "fp16") for _ in range(2))
    works: dict[str, Work] = {"torch.matmul, float32": lambda: a @ b}
    for name, (precision, _) in PRODUCTS.items():
        arithmetic = ns.Arithmetic(precision)
        works[name] = lambda arithmetic=arithmetic: arithmetic.matmul(a, b)
    return works


def main() -> None:
    """Print the tables."""
    options = begin("Sums and products")
    for title, accumulators in (("sums of rows", SUMS), ("careful sums of rows", CAREFUL_SUMS)):
        case = {f"{ROWS} x {COLUMNS}": in_turns(sums(accumulators), options.turns)}
        print_table(title, case, "torch.sum, float32", accumulators)
    case = {f"{SIDE}^3": in_turns(products(), options.turns)}
    reach = {name: text for name, (_, text) in PRODUCTS.items()}
    print_table("matrix products", case, "torch.matmul, float32", reach)


if __name__ == "__main__":
    main()
