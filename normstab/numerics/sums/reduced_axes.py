"""The axes that a sum is over, and the shape that remains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from normstab.errors import NormstabError

__all__ = ["canonical_dims", "kept_shape"]


def canonical_dims(dims: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Return `dims` as distinct axes 0 .. rank - 1 in ascending order; None means all of them."""
    if dims is None:
        return tuple(range(rank))
    wanted = (dims,) if isinstance(dims, int) else tuple(dims)
    limit = max(rank, 1)
    for dim in wanted:
        if not -limit <= dim < limit:
            raise NormstabError(f"dim {dim} is out of range; allowed: {-limit} .. {limit - 1} for {rank} axes")
    found = sorted({dim % limit for dim in wanted})
    if len(found) != len(wanted):
        raise NormstabError(f"dim {list(wanted)} names an axis twice; each axis is summed once")
    return tuple(found) if rank else ()


def kept_shape(x: Tensor, reduced: Sequence[int], *, keepdim: bool) -> list[int]:
    """Return the shape that remains when the axes `reduced` are summed."""
    return [1 if axis in reduced else size for axis, size in enumerate(x.shape) if keepdim or axis not in reduced]
