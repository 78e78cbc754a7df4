"""Rounding beside a copy of the same array, and beside the other emulators, in one run.

Nothing is asserted.
"""

import statistics

import torch

import normstab as ns
from normstab.numerics import dispatch as backends
from tests.benchmarks.timing import Work, begin, in_turns, print_table

KEY = ns.Key(seed=1, site="benchmark", step=2)
TURNS = {10**4: 2000, 10**6: 200, 16 * 10**6: 20}
PEER_ELEMENTS, PEER_TURNS = 10**6, 7


def casts(n: int) -> dict[str, Work]:
    """The casts of `n` float32 by name, `copy_` first."""
    x, out, ledger = torch.randn(n), torch.empty(n), ns.Ledger()
    return {
        "copy_": lambda: out.copy_(x),
        "nearest fp16, out=": lambda: ns.cast(x, "fp16", out=out),
        "nearest fp16, in place": lambda: ns.cast(out, "fp16", out=out),
        "nearest fp16, fresh output": lambda: ns.cast(x, "fp16"),
        "nearest bf16, out=": lambda: ns.cast(x, "bf16", out=out),
        "nearest e4m3fn, out=": lambda: ns.cast(x, "e4m3fn", out=out),
        "nearest fp16 with ledger": lambda: ns.cast(x, "fp16", out=out, ledger=ledger, site="a"),
        "stochastic:16 fp16, out=": lambda: ns.cast(x, "fp16", rounding="stochastic", key=KEY, out=out),
        "stochastic:16 bf16, out=": lambda: ns.cast(x, "bf16", rounding="stochastic", key=KEY, out=out),
        "toward-zero fp16, out=": lambda: ns.cast(x, "fp16", rounding="toward-zero", out=out),
        "nearest q7.8, out=": lambda: ns.cast(x, "q7.8", out=out),
        "torch x.half().float()": lambda: x.half().float(),
    }


def operations(n: int) -> dict[str, Work]:
    """The operations on `n` float32, each rounded to fp16, by name."""
    x, y, out = torch.randn(n), torch.randn(n), torch.empty(n)
    positive = x.abs()
    plain, counting = ns.Arithmetic("fp16"), ns.Arithmetic("fp16", ledger=ns.Ledger()).at("a")
    up = ns.Arithmetic("fp16/up")
    return {
        "copy_": lambda: out.copy_(x),
        "torch.add, float32": lambda: torch.add(x, y, out=out),
        "add": lambda: plain.add(x, y, out=out),
        "add with ledger": lambda: counting.add(x, y, out=out),
        "add, rounded up": lambda: up.add(x, y, out=out),
        "mul": lambda: plain.mul(x, y, out=out),
        "div": lambda: plain.div(x, y, out=out),
        "sqrt": lambda: plain.sqrt(positive, out=out),
        "fma": lambda: plain.fma(x, y, x, out=out),
    }


def peers(n: int) -> dict[str, Work]:
    """The same rounding by other libraries, those that are installed."""
    x, out = torch.randn(n), torch.empty(n)
    works: dict[str, Work] = {
        "copy_": lambda: out.copy_(x),
        "normstab nearest": lambda: ns.cast(x, "fp16", out=out),
        "normstab stochastic": lambda: ns.cast(x, "fp16", rounding="stochastic", key=KEY, out=out),
    }
    try:
        from qtorch.quant import float_quantize

        works["qtorch nearest"] = lambda: float_quantize(x, 5, 10, "nearest")
        works["qtorch stochastic"] = lambda: float_quantize(x, 5, 10, "stochastic")
    except (ImportError, RuntimeError, OSError) as reason:
        print(f"qtorch: left out ({type(reason).__name__})")
    try:
        import pychop

        pychop.backend("torch")
        chop = pychop.Chop(exp_bits=5, sig_bits=10, rmode=1)
        works["pychop nearest"] = lambda: chop(x)
    except ImportError:
        print("pychop: left out")
    try:
        import gfloat
        from gfloat.formats import format_info_binary16

        values = x.double().numpy()
        works["gfloat nearest"] = lambda: gfloat.round_ndarray(format_info_binary16, values)
    except ImportError:
        print("gfloat: left out")
    try:
        import ml_dtypes
        import numpy as np

        array = x.numpy()
        works["ml_dtypes bfloat16 round trip"] = lambda: array.astype(ml_dtypes.bfloat16).astype(np.float32)
    except ImportError:
        print("ml_dtypes: left out")
    return works


def main() -> None:
    """Print the tables."""
    options = begin("Rounding", "--no-peers", turns=None)
    assert backends.kernels_for(torch.empty(0)) is not None, "the compiled kernels are missing"
    print_table("cast", {f"{n:,}": in_turns(casts(n), turns) for n, turns in TURNS.items()}, "copy_")
    print_table(
        "operations in fp16",
        {f"{n:,}": in_turns(operations(n), max(turns // 2, 5)) for n, turns in TURNS.items()},
        "copy_",
    )
    small = torch.randn(10**4)
    fresh = in_turns({"cast": lambda: ns.cast(small, "fp16")}, 3000)["cast"]
    print(
        f"\nA cast of 10,000 float32, eagerly: {1e6 * statistics.median(fresh):.1f} us (least {1e6 * min(fresh):.1f})"
    )
    if not options.no_peers:
        print_table("peers, fp16", {f"{PEER_ELEMENTS:,}": in_turns(peers(PEER_ELEMENTS), PEER_TURNS)}, "copy_")


if __name__ == "__main__":
    main()
