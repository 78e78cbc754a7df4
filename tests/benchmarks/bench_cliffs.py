"""Calls one word apart: how many times as long as its fast neighbour each slower call takes, in one run.

A row is one call and its neighbour: the same operation on the same sizes, in the form that has the fastest kernel.
Nothing is asserted.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import normstab as ns
from normstab.numerics.first_calls import FIRST_CALLS
from tests.benchmarks.timing import Work

ROWS, COLUMNS, SIDE, POINTS, IMAGES = 256, 1024, 128, 1 << 18, (16, 16, 16, 16)
SECONDS, MOST_TURNS = 0.4, 15  # of one side of a row
FAST_SUM, FAST_PRODUCT = "fp16/nearest/fp16:lanes64", "fp16;matmul=fp16:blocked64"
COLD = """
import time, torch, normstab as ns
layer = ns.BatchNorm2d({shape[1]}, norm='{norm}')
layer.arithmetic = ns.Arithmetic('{precision}', ledger=ns.Ledger()).at('bn')
x = torch.randn({shape}, requires_grad=True)
start = time.perf_counter()
layer(x).sum().backward()
print(time.perf_counter() - start)
"""


class Row(NamedTuple):
    """One cliff: what is called, what is to be reached, the call and its fast neighbour."""

    name: str
    to_reach: str
    call: Work
    neighbour: Work


def arithmetic(precision: str, ledger: ns.Ledger | None = None) -> ns.Arithmetic:
    """An Arithmetic with a key, so that it may round stochastically."""
    return ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=1)).at("a")


def odd_dtypes() -> Iterator[Row]:
    """Tensors of 16 bits and of whole numbers."""
    x, fast = ns.cast(torch.randn(ROWS, COLUMNS), "bf16"), arithmetic(FAST_SUM)
    a = ns.cast(torch.randn(SIDE, SIDE), "bf16")
    points = ns.cast(torch.rand(POINTS), "bf16") + 1
    product, sequential = arithmetic(FAST_PRODUCT), arithmetic("fp16/nearest/fp16:sequential")
    for dtype in (torch.float16, torch.bfloat16):
        name, x_16, a_16, points_16 = str(dtype).removeprefix("torch."), x.to(dtype), a.to(dtype), points.to(dtype)
        yield Row(f"sum of {name}", "3", lambda x=x_16: fast.sum(x, 1), lambda: fast.sum(x, 1))
        yield Row(f"... sequential, {name}", "3", lambda x=x_16: sequential.sum(x, 1), lambda: sequential.sum(x, 1))
        yield Row(f"matmul of {name}", "3", lambda a=a_16: product.matmul(a, a), lambda: product.matmul(a, a))
        yield Row(f"add, {name}", "4", lambda x=points_16: fast.add(x, x), lambda: fast.add(points, points))
        yield Row(f"mul, {name}", "4", lambda x=points_16: fast.mul(x, x), lambda: fast.mul(points, points))
        yield Row(f"sqrt, {name}", "4", lambda x=points_16: fast.sqrt(x), lambda: fast.sqrt(points))
    whole = torch.arange(POINTS) % 100
    yield Row("mul by whole numbers", "4", lambda: fast.mul(points, whole), lambda: fast.mul(points, points))


def spoiled(x: Tensor, column: slice | int, value: float) -> Tensor:
    """A copy with one column of another value."""
    copied = x.clone()
    copied[:, column] = value
    return copied


def products() -> Iterator[Row]:
    """Matrix products with an emulated accumulator, beside the same in fp16:blocked64 of operands in fp16."""
    a, b = (ns.cast(torch.randn(SIDE, SIDE), "fp16") for _ in range(2))
    fast = arithmetic(FAST_PRODUCT)

    def neighbour() -> Tensor:
        return fast.matmul(a, b)

    one_nan, one_inf = a.clone(), a.clone()
    one_nan[0, 0], one_inf[0, 0] = torch.nan, torch.inf
    operands = {
        "operand off the format": torch.randn(SIDE, SIDE),
        "one NaN": one_nan,
        "one inf": one_inf,
        "a tiny column": spoiled(a, 0, 1e-30),
    }
    for name, x in operands.items():
        yield Row(f"matmul, {name}", "3", lambda x=x: fast.matmul(x, b), neighbour)
    for name, ledger in (("inexact", ns.Ledger(inexact=True)), ("histogram", ns.Ledger(histogram=True))):
        counting = arithmetic(FAST_PRODUCT, ledger)
        yield Row(f"matmul, ledger with {name}", "3", lambda ar=counting: ar.matmul(a, b), neighbour)
    for name, precision in {
        "toward-zero": "fp16/toward-zero/fp32;matmul=fp16:blocked64",
        "stochastic": "fp16/stochastic/fp32;matmul=fp16:blocked64",
        "kahan": "fp16;matmul=fp16:blocked64+kahan",
        "fused": "fp16;matmul=fp16:blocked64+fused",
        "exact": "fp16;matmul=exact",
        "q7.8": "q7.8/nearest/fp32;matmul=q7.8:blocked64",
        "tf32 operands": "tf32;matmul=e8m10:blocked64",
        "p = 13": "fp16;matmul=e6m12:blocked64",
        "fp32 accumulator": "fp16;matmul=fp32:blocked64",
    }.items():
        ar = arithmetic(precision)
        yield Row(f"matmul, {name}", "10", lambda ar=ar: ar.matmul(a, b), neighbour)


def after_an_overflow() -> Iterator[Row]:
    """A network whose activations have overflowed, beside the same where they have not."""
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    x = torch.randn(64, 128)

    def step(x: Tensor) -> None:
        with torch.no_grad(), ns.simulate(model, FAST_PRODUCT):
            model(x)

    yield Row("simulate(;matmul=) after an overflow", "3", lambda: step(1e5 * x), lambda: step(x))


def sums() -> Iterator[Row]:
    """Sums of rows, beside those in fp16:lanes64."""
    x = ns.cast(torch.randn(ROWS, COLUMNS), "fp16")
    fast = arithmetic(FAST_SUM)
    for name, precision in {
        "q7.8": "q7.8/nearest/q7.8:lanes64",
        "e4m3fnuz": "fp16/nearest/e4m3fnuz:lanes64",
        "e2m1": "fp16/nearest/e2m1:lanes64",
        "e8m15": "fp16/nearest/e8m15:lanes64",
        "fp64": "fp16/nearest/fp64:lanes64",
        "toward-zero": "fp16/toward-zero/fp16:lanes64",
        "stochastic": "fp16/stochastic/fp16:lanes64",
        "kahan": "fp16/nearest/fp16:blocked64+kahan",
        "exact": "fp16/nearest/exact",
    }.items():
        reach, ar = "30" if name == "exact" else "8", arithmetic(precision)
        yield Row(f"sum, {name}", reach, lambda ar=ar: ar.sum(x, 1), lambda: fast.sum(x, 1))
    wide = x.double()
    yield Row("sum, float64 tensor", "8", lambda: fast.sum(wide, 1), lambda: fast.sum(x, 1))
    counting = arithmetic(FAST_SUM, ns.Ledger(inexact=True))
    yield Row("sum, ledger with inexact", "8", lambda: counting.sum(x, 1), lambda: fast.sum(x, 1))


def means_and_functions() -> Iterator[Row]:
    """Means in other forms, beside a mean of one sum; roots and functions beside sqrt."""
    x = ns.cast(torch.randn(ROWS, COLUMNS), "fp16")
    fast = arithmetic(FAST_SUM)
    for form in ("welford", "blockwise64"):
        ar = arithmetic(f"{FAST_SUM};mean={form}")
        yield Row(f"mean, {form}", "10", lambda ar=ar: ar.mean(x, 1), lambda: fast.mean(x, 1))
    points = ns.cast(torch.rand(POINTS // 4) + 1, "fp16")
    for name, call in {
        "root(3)": lambda: fast.root(points, 3),
        "power(2.5)": lambda: fast.power(points, 2.5),
        "apply(exp)": lambda: fast.apply(torch.exp, points, operation="exp"),
    }.items():
        yield Row(name, "10", call, lambda: fast.sqrt(points))


def casts() -> Iterator[Row]:
    """Casts, beside one to fp16, nearest, of float32."""
    x = torch.randn(512, POINTS // 512)
    key, wide = ns.Key(seed=1), x.double()
    for name, call in {
        "q7.8:wrap": lambda: ns.cast(x, "q7.8:wrap"),
        "float64": lambda: ns.cast(wide, "fp16"),
        "transposed, stochastic": lambda: ns.cast(x.T, "fp16", rounding="stochastic", key=key),
        "toward-zero": lambda: ns.cast(x, "fp16", rounding="toward-zero"),
        "stochastic": lambda: ns.cast(x, "fp16", rounding="stochastic", key=key),
        "stochastic:17": lambda: ns.cast(x, "fp16", rounding="stochastic:17", key=key),
    }.items():
        yield Row(f"cast, {name}", "4", call, lambda: ns.cast(x, "fp16"))


def forward_and_backward(layer: nn.Module, x: Tensor) -> None:
    """One step of a layer."""
    layer(x).sum().backward()
    x.grad = None


def emulated(layer: nn.Module, precision: str) -> nn.Module:
    """The layer in this precision."""
    layer.arithmetic = arithmetic(precision)
    return layer


def emulated_norms() -> Iterator[Row]:
    """Emulated norm layers, beside the same layer in fp16/nearest/fp32."""
    x, rows = torch.randn(IMAGES, requires_grad=True), torch.randn(256, 256, requires_grad=True)
    fast = emulated(ns.BatchNorm2d(IMAGES[1]), "fp16/nearest/fp32")

    def neighbour() -> None:
        forward_and_backward(fast, x)

    for name, (norm, precision) in {
        "welford": ("l2", "fp16/nearest/fp32;mean=welford"),
        "exact": ("l2", "fp16/nearest/exact"),
        "kahan": ("l2", "fp16/nearest/fp32:blocked64+kahan"),
        "fp64": ("l2", "fp64/nearest/fp64"),
        "lp3": ("lp3", "fp16/nearest/fp32"),
    }.items():
        layer = emulated(ns.BatchNorm2d(IMAGES[1], norm=norm), precision)
        yield Row(f"BatchNorm2d, {name}", "15", lambda layer=layer: forward_and_backward(layer, x), neighbour)
    wide = x.detach().double().requires_grad_()
    yield Row("BatchNorm2d, float64 input", "15", lambda: forward_and_backward(fast, wide), neighbour)
    fast_rows = emulated(ns.LayerNorm(256), "fp16/nearest/fp32")
    for name, precision in {"stochastic": "fp16/stochastic/fp32", "welford": "fp16/nearest/fp32;mean=welford"}.items():
        layer = emulated(ns.LayerNorm(256), precision)
        yield Row(
            f"LayerNorm, {name}", "15", lambda layer=layer: forward_and_backward(layer, rows),
            lambda: forward_and_backward(fast_rows, rows),
        )  # fmt: skip


def native_norms() -> Iterator[Row]:
    """Norm layers without rounding, beside torch's own."""
    x = torch.randn(32, 64, 32, 32, requires_grad=True)
    stock = nn.BatchNorm2d(64)
    for norm in ("l2", "l1", "linf", "range", "top10"):
        reach, layer = "3" if norm == "top10" else "1.3", ns.BatchNorm2d(64, norm=norm)
        yield Row(
            f"native BatchNorm2d, {norm}", reach, lambda layer=layer: forward_and_backward(layer, x),
            lambda: forward_and_backward(stock, x),
        )  # fmt: skip


def measured(row: Row) -> str:
    """The least time of the neighbour, and how many times as long the least of the call is."""
    slow, fast = least(row.call), least(row.neighbour)
    return f"| {row.name} | {1e3 * fast:.2f} | {slow / fast:.1f} | {row.to_reach} |"


def least(work: Work) -> float:
    """The least seconds of a few runs after one that warms up; of one run where that is long."""
    work()
    taken: list[float] = []
    while not taken or (len(taken) < MOST_TURNS and sum(taken) < SECONDS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def cold(norm: str, precision: str, shape: tuple[int, ...]) -> float:
    """Seconds of the first emulated step of a batch norm in a process with no compiled kernel on disk."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        code = COLD.format(norm=norm, precision=precision, shape=shape)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


GROUPS = (
    odd_dtypes, products, after_an_overflow, sums, means_and_functions, casts, emulated_norms, native_norms,
)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Cliffs")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    FIRST_CALLS.end()
    torch.manual_seed(0)
    print("## Cliffs, 1 thread\n\n| call | neighbour, ms | ratio | to reach |\n|---|---|---|---|", flush=True)
    for group in GROUPS:
        for row in group():
            if only in row.name:
                print(measured(row), flush=True)
    if only in "first step, cold cache":
        for shape in ((4, 8, 8, 8), IMAGES):
            what = f"first step, cold cache: emulated BatchNorm2d of {math.prod(shape):,} numbers"
            print(f"| {what} | | {cold('l1', 'fp16/nearest/fp32', shape):.1f} s | 4 s |", flush=True)


if __name__ == "__main__":
    main()
