"""Parameters and buffers as the network uses them: a copy cast to the `parameter` format, made once per step.

The tensors themselves stay as they are (master weights). A view of one is found by its address and gets the
same view of the copy, so that whatever reaches an operation was cast. Nothing here knows operations.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.simulation.around.places import Place
from normstab.simulation.aten.parts.complex_parts import as_real, part_dtype, round_complex
from normstab.torch_private import version_of

__all__ = ["Held", "Parameters"]

CARRIERS = (torch.float32, torch.float64)


class Held:
    """One parameter or buffer: where it lies, what it is called, and its rounded copy."""

    __slots__ = (
        *("_copied_at", "call", "copy", "end", "is_broken", "is_parameter", "local_name", "place", "start", "tensor"),
    )

    def __init__(self, tensor: Tensor, place: Place, local_name: str, *, is_parameter: bool) -> None:
        self.tensor = tensor
        self.place = place
        self.local_name = local_name
        self.is_parameter = is_parameter
        self.is_broken = False
        self.copy: Tensor | None = None
        self.call: Call | None = None  # of the last cast
        self._copied_at: tuple[int, int] | None = None
        self.relocate()

    def relocate(self) -> None:
        """Look up where the tensor lies now: `tensor.data = ...` and `model.to(...)` move it."""
        self.start = self.tensor.data_ptr()
        self.end = self.start + _extent(self.tensor)

    @property
    def moved(self) -> bool:
        """Whether the tensor lies elsewhere than when last looked up."""
        return self.tensor.data_ptr() != self.start

    @property
    def name(self) -> str:
        """The tensor's name in the model."""
        return f"{self.place.name}.{self.local_name}"

    @property
    def is_cast(self) -> bool:
        """Whether the tensor was cast as it is now: the next use will not count."""
        return self._copied_at == (version_of(self.tensor), self.place.arithmetic.clock.step)

    def invalidate(self) -> None:
        """Cast again on next use: the tensor was written to."""
        self._copied_at = None

    def rounded(self) -> Tensor:
        """Return the tensor cast to the `parameter` format, cast anew in each step and after each change."""
        arithmetic, x = self.place.arithmetic, self.tensor.detach()
        if not self.is_cast:
            self.call = arithmetic.in_format("parameter").call(self.local_name)
            has_room = self.copy is not None and self.copy.shape == x.shape and self.copy.dtype == x.dtype
            self.copy = round_complex(x, self.call, out=self.copy if has_room else None)
            self._copied_at = (version_of(self.tensor), arithmetic.clock.step)
        elif self.copy is None:  # released: the same cast again, with the same random bits, counted before
            assert self.call is not None
            self.copy = round_complex(x, self.call._replace(row=None))
        assert self.copy is not None
        return self.copy

    def take_over(self, copy: Tensor | None, call: Call) -> None:
        """Be cast now, by `call`, to `copy` (None: which was released): a step that was replayed has done so."""
        self.copy, self.call = copy, call
        self._copied_at = (version_of(self.tensor), self.place.arithmetic.clock.step)

    def release(self) -> None:
        """Keep the copy no longer: its numbers are kept elsewhere."""
        self.copy = None

    def of_view(self, view: Tensor) -> Tensor:
        """Return of the rounded copy what `view` is of the tensor."""
        copy = self.rounded()
        if view is self.tensor:
            return copy
        if view.is_complex() and not copy.is_complex():  # pairs of a real parameter
            copy, whole = torch.view_as_complex(copy), torch.view_as_complex(self.tensor.detach())
        elif view.dtype != copy.dtype:  # the parts of a complex parameter
            copy, whole = as_real(copy), as_real(self.tensor.detach())
        else:
            whole = self.tensor
        is_marked = self.tensor.is_conj() or self.tensor.is_neg()  # lazily; the copy is written out
        if is_marked or copy.stride() != whole.stride():  # not dense: the copy is laid out otherwise
            return round_complex(view.detach(), self.place.arithmetic.in_format("parameter").call(self.local_name))
        offset = (view.data_ptr() - self.start) // view.element_size()
        same = copy.as_strided(view.shape, view.stride(), offset + copy.storage_offset())
        if view.is_conj():  # a lazy conjugate, or its lazily negated part: a mark on the view, not in the memory
            return same.conj()
        return -same if view.is_neg() else same

    def round_in_place(self, direction: str) -> None:
        """Cast the tensor itself to the `parameter` format."""
        call = self.place.arithmetic.towards(direction).in_format("parameter").call(self.local_name)
        with torch.no_grad():
            round_complex(self.tensor.detach(), call, out=self.tensor.detach())
        self.invalidate()


class Parameters:
    """Every parameter and buffer of a model that is cast on use, found by address.

    `come_and_go` says that their memory is another with every use, and that their values stay (`fully_shard`).
    """

    def __init__(self, held: Iterable[Held]) -> None:
        self._held = list(held)
        self.come_and_go = False
        self._starts: list[int] = []
        self._sorted: list[Held] = []
        self._sort()

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held)

    def find(self, tensor: Tensor) -> Held | None:
        """Return what `tensor` is, or is a view of; None for any other tensor, and for one without memory (sparse)."""
        if tensor.layout != torch.strided:
            return None
        address = tensor.data_ptr()
        i = bisect_right(self._starts, address) - 1
        if i < 0 or address >= self._sorted[i].end:
            return self.find(tensor) if self.come_and_go and self.refresh() else None
        found = self._sorted[i]
        if found.moved:  # its old memory may by now be anything's
            self.refresh()
            return self.find(tensor)
        return found if part_dtype(tensor) == part_dtype(found.tensor) else None

    def any_in(self, args: tuple[Any, ...]) -> bool:
        """Whether one of `args` is, or is a view of, one of them."""
        return any(isinstance(x, Tensor) and x.dtype in CARRIERS and self.find(x) is not None for x in args)

    def refresh(self) -> bool:
        """Notice tensors that have moved, and say whether there were any."""
        if not any(held.moved for held in self._held):
            return False
        for held in self._held:
            held.relocate()
            if not self.come_and_go:
                held.invalidate()
        self._sort()
        return True

    def cast_names(self) -> list[str]:
        """Return the names of those that the rest of this step will not cast again."""
        return [held.name for held in self._held if held.is_cast]

    def cast(self, names: Iterable[str]) -> None:
        """Cast those of these names now, so that the rest of the step does not; their counts are the caller's."""
        wanted = set(names)
        for held in self._held:
            if held.name in wanted:
                held.rounded()

    def _sort(self) -> None:
        """Order by address; a tensor without elements has none."""
        self._sorted = sorted((held for held in self._held if held.end > held.start), key=lambda held: held.start)
        self._starts = [held.start for held in self._sorted]


def _extent(tensor: Tensor) -> int:
    """Return how many bytes from the first to past the last element."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
