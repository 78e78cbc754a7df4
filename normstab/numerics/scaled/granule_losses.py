"""What the granules of one call lost: those of zeros, those flushed, the range of the scales, squares on request."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from normstab.numerics.readable.operations import widened
from normstab.numerics.scaled.granule_counts import GranuleCounts, Squares
from normstab.numerics.scaled.granules import amax_of
from normstab.numerics.scaled.scales import Scales
from normstab.numerics.tallies.counter_row import COUNTING, Row

__all__ = ["GranuleLosses", "count_granules"]


class GranuleLosses(NamedTuple):
    """What the granules of one call lost: the tensor, its values, the elements' numbers, the scales."""

    x: Tensor
    values: Tensor
    numbers: Tensor
    scales: Scales
    extents: tuple[int, ...]


def count_granules(row: Row, losses: GranuleLosses) -> None:
    """Add zero and dead granules, the range of the scales, and, on request, squares to the row."""
    amax = amax_of(losses.x.abs(), losses.extents)
    kept = amax_of(losses.numbers.abs(), losses.extents)
    is_used = amax.isfinite() & (amax != 0)
    used = losses.scales.value.expand(amax.shape)[is_used]
    used = used[used > 0]
    squares = None
    if row.counts_squares:
        error = (widened(losses.x) - widened(losses.values))[losses.x.isfinite() & losses.values.isfinite()]
        signal = widened(losses.x)[losses.x.isfinite() & losses.values.isfinite()]
        squares = Squares(float(error.square().sum()), float(signal.square().sum()), error.numel())
    found = GranuleCounts(
        zero_granules=int((amax == 0).sum()),
        dead_granules=int((is_used & (kept == 0)).sum()),
        largest_scale=float(used.max()) if used.numel() else 0.0,
        smallest_scale=float(used.min()) if used.numel() else float("inf"),
        squares=squares,
    )
    with COUNTING:
        row.granules = found if row.granules is None else row.granules + found
