"""Parameters and buffers in the network's 16-bit dtype, in the modules' own tables while a forward runs.

    a module's weight     outside a forward: the float32 parameter
                          inside: a copy of 16 bits, by autograd the function `weight.to(dtype)` of it

The parameter itself never changes dtype: whoever refers to it (optimizers, DDP) finds it as it was. A copy is
made once per step and version, and cast and counted where an operation first reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normstab.numerics.call import Call
from normstab.numerics.precision import NEAREST
from normstab.numerics.readable.reference import holds
from normstab.simulation.around.parameters import Held
from normstab.simulation.aten.entering_numbers import is_own_format
from normstab.simulation.ranks.parts import is_split
from normstab.torch_private import flat_weights, modes_off, storage_key, tables_of, version_of

__all__ = ["Copies", "Made"]


class Entry(NamedTuple):
    """One place where a module looks a tensor up, and the tensor's copies."""

    table: dict[str, Any]
    name: str
    held: Held
    dtype: torch.dtype


class Made:
    """A copy, what it was made of, and under which circumstances (`of`: the version that was copied)."""

    __slots__ = ("_holds", "_is_filled", "circumstances", "copy", "held", "of", "version")

    def __init__(self, copy: Tensor, held: Held, of: int, circumstances: tuple[Any, ...]) -> None:
        self.copy = copy
        self.held = held
        self.of = of
        self.circumstances = circumstances
        self.version = version_of(copy)
        self._is_filled = False
        self._holds: Call | None = None  # the cast whose numbers it has

    @property
    def is_as_made(self) -> bool:
        """Whether nobody has written to the copy, nor to what it was made of."""
        return version_of(self.copy) == self.version and version_of(self.held.tensor) == self.of

    def use(self) -> Tensor | None:
        """Round it now that an operation reads it; return float32 numbers that are to be read in its place, or None.

        The cast is counted here and not where the copy was made: parameters that nothing reads are not cast. What was
        rounded is not kept in float32 beside the copy, which holds the same; another cast, of a later step, is.
        """
        held = self.held
        if not self.is_as_made or (held.is_cast and held.call is self._holds):
            return None
        rounded = held.rounded()
        if self._is_filled:
            return rounded
        self._is_filled = True
        arithmetic = held.place.arithmetic.in_format("parameter")
        if arithmetic.precision.rounding != NEAREST or not is_own_format(arithmetic.format, self.copy.dtype):
            self.copy.data.copy_(rounded)
        if not holds(self.copy.dtype, arithmetic.format):  # of a module of a wider rule, which shares the parameter
            return rounded
        self._holds = held.call
        held.release()
        return None

    def widened(self, x: Tensor) -> Tensor:
        """Return `x`, the copy or a view of it, in float32 and with its own strides, for an operation that reads it."""
        wide = self.use()
        if wide is None:
            alone = x.to(torch.float32)
            if alone.stride() == x.stride() or not self.is_as_made:
                return alone
            wide = self.copy.detach().to(torch.float32)
        if wide.dtype != torch.float32 or self.copy.stride() != wide.stride():
            return x.to(torch.float32)
        return wide.as_strided(x.shape, x.stride(), x.storage_offset())


class Copies:
    """The copies of a model's parameters and buffers, while they are in the tables and between forwards.

    `dtypes` says of each module which dtype its tensors are shown in; modules that are not in it keep theirs.
    """

    def __init__(self, model: nn.Module, held: Iterable[Held], dtypes: dict[nn.Module, torch.dtype]) -> None:
        of_tensor = {id(one.tensor): one for one in held}
        self._entries: list[Entry] = []
        self._lists: list[list[Any]] = []
        for module in model.modules():
            dtype = dtypes.get(module)
            if dtype is None:
                continue
            for table in tables_of(module):
                found = {name: of_tensor.get(id(tensor)) for name, tensor in table.items()}
                self._entries += [Entry(table, name, one, dtype) for name, one in found.items() if one is not None]
            if isinstance(module, nn.RNNBase):
                self._lists.append(flat_weights(module))
        self._made: dict[tuple[int, torch.dtype], Made] = {}
        self._of_storage: dict[int, Made] = {}
        self._in_tables: list[tuple[Entry, Any, Tensor]] = []
        self._in_lists: list[tuple[list[Any], list[Any]]] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def put(self) -> None:
        """Put the copies in the modules' tables, unless they are there."""
        if not self._in_tables:
            self.put_more()

    def put_more(self) -> None:
        """Put copies in the modules' tables where there are none: of parameters that came there meanwhile too."""
        with modes_off():
            there = {id(copy) for _, _, copy in self._in_tables}
            for entry in self._entries:
                original = entry.table.get(entry.name)
                if is_split(original) or id(original) in there:
                    continue  # a part of a parameter: the whole one comes when its module begins
                if original is not entry.held.tensor:
                    original = self._replaced(entry, original)
                    if original is None:
                        continue
                copy = self._copy(entry, original)
                entry.table[entry.name] = copy
                self._in_tables.append((entry, original, copy))
        copies = {id(original): copy for _, original, copy in self._in_tables}
        for weights in self._lists:
            self._in_lists.append((weights, list(weights)))
            weights[:] = [copies.get(id(weight), weight) for weight in weights]

    def take_back(self) -> None:
        """Put the tensors back, with what a forward has written to their copies."""
        if not self._in_tables:
            return
        with modes_off(), torch.no_grad():
            for entry, original, copy in self._in_tables:
                now = entry.table.get(entry.name)
                if now is copy:
                    entry.table[entry.name] = original
                    made = self.find(copy)
                    if made is not None and version_of(copy) != made.version:
                        self._write_back(entry, copy)
                elif isinstance(now, Tensor) and now.dtype == entry.dtype:
                    entry.table[entry.name] = now.to(original.dtype)
        for weights, originals in self._in_lists:
            weights[:] = originals
        self._in_tables, self._in_lists = [], []

    def find(self, tensor: Tensor) -> Made | None:
        """Return the copy that `tensor` is, or is a view of."""
        storage = storage_key(tensor)
        return None if storage is None else self._of_storage.get(storage)

    def forget(self) -> None:
        """Make every copy anew when it is wanted next."""
        self._made.clear()
        self._of_storage.clear()

    def note_written(self, tensor: Tensor) -> None:
        """Notice that an operation wrote to `tensor`, also where torch does not count it (`x.data`, `x.detach()`)."""
        made = self.find(tensor)
        if made is not None and version_of(made.copy) == made.version:
            torch.autograd.graph.increment_version(made.copy)

    def renew(self, tensor: Tensor) -> None:
        """Write to a copy what a norm has written to the tensor itself, and expect torch to count that as a write."""
        made = self.find(tensor)
        if made is not None and tensor.shape == made.held.tensor.shape:
            with modes_off():
                tensor.data.copy_(made.held.tensor.detach())
            made.version += 1

    def _replaced(self, entry: Entry, now: Any) -> Tensor | None:
        """Return the tensor that someone put in a parameter's place (functional_call), if it is to be converted."""
        if not isinstance(now, Tensor) or not now.is_floating_point() or now.dtype == entry.dtype:
            return None
        return now

    def _copy(self, entry: Entry, original: Tensor) -> Tensor:
        """Return the copy of a tensor, of this step, this version and this mode of autograd."""
        held, dtype = entry.held, entry.dtype
        if original is not held.tensor:
            return original.to(dtype)
        grads = torch.is_grad_enabled() and original.requires_grad
        circumstances = (
            version_of(original),
            held.place.arithmetic.clock.step,
            grads,
            torch.is_inference_mode_enabled(),
            original.data_ptr(),
        )
        made = self._made.get((id(held), dtype))
        if made is not None and made.circumstances == circumstances and made.is_as_made:
            return made.copy
        copy = original.to(dtype)
        if made is not None:
            self._forget(made.copy)
        if (storage := storage_key(copy)) is None:
            return copy  # a transform of torch.func wraps it: cast as any other tensor, at no site of its own
        new = Made(copy, held, version_of(original), circumstances)
        self._made[id(held), dtype] = self._of_storage[storage] = new
        return copy

    def _forget(self, copy: Tensor) -> None:
        """Find a copy no more."""
        storage = storage_key(copy)
        if storage is not None:
            self._of_storage.pop(storage, None)

    def _write_back(self, entry: Entry, copy: Tensor) -> None:
        """Write to the tensor itself what a forward has changed in its copy."""
        tensor = entry.held.tensor.detach()
        before = entry.held.rounded() if entry.held.is_cast else tensor.to(copy.dtype)
        tensor.copy_(torch.where(copy.detach() == before, tensor, copy.detach().to(tensor.dtype)))
        self._made.pop((id(entry.held), entry.dtype), None)
        self._forget(copy)
        entry.held.invalidate()
