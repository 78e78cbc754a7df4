"""Exact sums and exact sums of products on the CPU: the layout and threads of the compiled accumulator.

The sums come back in float64, rounded so that one more rounding is the only one, with what their operands were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.kernels.cpu.exact.cut_products import cut_products
from normstab.numerics.kernels.cpu.exact.exact_rows import (
    FLAGS,
    HAS_INF,
    HAS_NAN,
    MOST_ADDENDS,
    exact_products,
    exact_rows,
)
from normstab.numerics.kernels.cpu.sums.cpu_matmul import factors
from normstab.numerics.kernels.cpu.sums.cpu_sums import CARRIERS, narrowed
from normstab.numerics.kernels.cpu.sums.geometry import geometry
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.readable.operations import Carried
from normstab.numerics.sums.matmul import Shapes

__all__ = ["products", "sums"]

# Work below which a thread is not worth waking.
ADDENDS_A_THREAD = 1 << 14


def sums(x: Tensor, reduced: Sequence[int], *, to_odd: bool, rounds_down: bool) -> Carried | None:
    """Return the exact sums (K,) of `x` over the axes `reduced`, or None."""
    where = geometry(x, reduced)
    # More addends than a limb has room for carries.
    if x.dtype not in CARRIERS or where.n >= MOST_ADDENDS:
        return None

    def run(out: int, noted: int, first: int, last: int) -> None:
        exact_rows(
            x.data_ptr(), CARRIERS[x.dtype], out, noted, first, last, where.kept_at, where.outer_at, len(where.outer),
            where.n_inner, where.inner_memory, to_odd, rounds_down,
        )  # fmt: skip

    return _run(run, where.rows, where.n)


def products(a: Tensor, b: Tensor, shapes: Shapes, *, to_odd: bool, rounds_down: bool) -> Carried | None:
    """Return the B M N exact sums over k of the float64 products, or None."""
    if a.dtype not in CARRIERS or b.dtype not in CARRIERS or b.device != a.device or shapes.k >= MOST_ADDENDS:
        return None
    a, b = a if a.dim() > 1 else a.unsqueeze(0), b if b.dim() > 1 else b.unsqueeze(1)
    if to_odd and a.numel() and b.numel():
        narrow = [x if x.dtype == torch.float32 else narrowed(x) for x in (a, b)]
        if narrow[0] is not None and narrow[1] is not None:
            found = cut_products(narrow[0], narrow[1], shapes, rounds_down=rounds_down)
            if found is not None:
                return found
    left, right = factors(a, b, shapes)

    def run(out: int, noted: int, first: int, last: int) -> None:
        exact_products(
            a.data_ptr(), left.size, left.offsets.ctypes.data, left.step, b.data_ptr(), right.size,
            right.offsets.ctypes.data, right.step, out, noted, first, last, shapes.m, shapes.n, shapes.k, to_odd,
            rounds_down,
        )  # fmt: skip

    return _run(run, len(left.offsets) * shapes.n, shapes.k)


def _run(run: Callable[[int, int, int, int], None], rows: int, n: int) -> Carried:
    """Call run(out, noted, first, last) over all rows, in threads if worth it."""
    total = torch.empty(rows, dtype=torch.float64, device="cpu")
    noted = np.empty((rows, FLAGS), np.int64)
    pieces = max(1, min(torch.get_num_threads(), rows, rows * n // ADDENDS_A_THREAD))
    bounds = [rows * i // pieces for i in range(pieces + 1)]
    run_chunks(lambda i: run(total.data_ptr(), noted.ctypes.data, bounds[i], bounds[i + 1]), pieces)
    seen = torch.from_numpy(noted != 0)
    return Carried(total, seen[:, HAS_NAN], seen[:, HAS_INF], None)
