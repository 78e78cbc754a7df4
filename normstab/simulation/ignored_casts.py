"""Casts to a wider type on a machine that has none (`casts=ignore`): counted by site, for torch drops them unseen.

On such a machine every tensor lives in float32, so `.float()` is no operation at all below autograd: it is seen where
torch is called. A cast back, `.to(x.dtype)`, names the type that numbers have there, and counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from normstab.numerics.ledger import Site
from normstab.simulation.around.places import ModuleTracker
from normstab.torch_private import function_mode, has_modes

__all__ = ["WIDE", "IgnoredCasts", "counted", "wanted"]

WIDE = (torch.float32, torch.float64)  # the types to which a cast is wider than any simulated one
OF_NAME = {Tensor.float: torch.float32, Tensor.double: torch.float64}
LIKE_ANOTHER = (Tensor.to, Tensor.type_as)
TYPE_NAMES = {"torch.FloatTensor": torch.float32, "torch.DoubleTensor": torch.float64}


class IgnoredCasts(TorchFunctionMode):
    """Counts in `ignored`, by site, casts to float32 or float64 of what holds numbers of a narrower format."""

    def __init__(self, tracker: ModuleTracker, ignored: dict[str, int]) -> None:
        super().__init__()
        self._tracker = tracker
        self._ignored = ignored
        self.is_over = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        holds_numbers = bool(args) and isinstance(args[0], Tensor) and args[0].dtype in WIDE
        if holds_numbers and not self.is_over and wanted(func, args, kwargs) in WIDE and self._is_ignored():
            place = self._tracker.here()
            site = str(Site(place.name, getattr(func, "__name__", "to"), place.direction))
            self._ignored[site] = self._ignored.get(site, 0) + 1
        return func(*args, **kwargs)

    def _is_ignored(self) -> bool:
        """Whether the place is one of the machine that ignores casts, and what runs there is not our own code."""
        if not has_modes():
            return False
        place = self._tracker.here()
        return not place.passes and place.arithmetic.precision.casts == "ignore"


def wanted(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the dtype that a call asks for: `.float()`, `.to(torch.float32)`, `softmax(..., dtype=torch.float32)`."""
    if func in OF_NAME:
        return OF_NAME[func]
    if func in LIKE_ANOTHER:
        others = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, Tensor)]
        if others:
            return others[0].dtype
    name = getattr(func, "__name__", "")
    if name.endswith("_like") or name.startswith("new_"):
        return None  # a tensor of its own is made, none is cast
    given = (kwargs.get("dtype"), *(TYPE_NAMES.get(x, x) if isinstance(x, str) else x for x in args[1:]))
    return next((x for x in given if isinstance(x, torch.dtype)), None)


@contextmanager
def counted(tracker: ModuleTracker, ignored: dict[str, int]) -> Iterator[None]:
    """Count until the context ends; closed out of order, the mode passes everything through from then on."""
    mode = IgnoredCasts(tracker, ignored)
    mode.__enter__()
    try:
        yield
    finally:
        mode.is_over = True
        while isinstance(top := function_mode(), IgnoredCasts) and top.is_over:
            top.__exit__(None, None, None)
