"""How the gradients of several processes become one: in which format, in which order, counted at which site.

A vector of n elements lies in R chunks of ceil(n / R), the last ones shorter; rank c owns chunk c and sums it:

    ring   chunk c begins at its owner's right neighbour and ends at the owner: ((x_c+1 + x_c+2) + ...) + x_c
    tree   neighbours in pairs, then pairs of pairs: (x_0 + x_1) + (x_2 + x_3); one without a partner waits
    none   float64 sums in the order of ranks, divided in float64, rounded once

`one_process` says the same of whole vectors, readably, and is the oracle of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.execute import compute, round_tensor
from normstab.numerics.formats import AnyFormat
from normstab.numerics.precision import NEAREST, Collective, Rounding
from normstab.simulation.aten.round_and_attribute import narrow, settle_elements

__all__ = ["Joining", "carrier_of"]


@dataclass(frozen=True)
class Joining:
    """The sum of one vector over `size` processes, at the sites `NAME`, `NAME.load`, `NAME.div` and `NAME.sum` of `ar`.

    With a `collective`, each process casts its vector to the collective's format (`.load`), divides it by `divisor`
    (`.div`; 1: not at all), and the sums are rounded one by one (`.sum`): as torch's fp16_compress_hook, which divides
    before it sums. The result is cast to `kept`, the format in which the gradient is kept, with `kept_rounding`.
    `ar` None is native: the wide sum in the vector's own dtype, uncounted.
    Source of the division: torch.distributed.algorithms.ddp_comm_hooks.default_hooks.
    """

    name: str
    ar: Arithmetic | None
    collective: Collective | None
    kept: AnyFormat | None
    size: int
    divisor: float = 1.0
    kept_rounding: Rounding = NEAREST

    def load(self, x_N: Tensor, rank: int) -> Tensor:
        """Return this process's addend. Element i draws the bits of index `rank` N + i: no two ranks draw the same."""
        if self.collective is None or self.ar is None:
            return x_N
        first = rank * x_N.numel()
        addend = round_tensor(x_N, self._call(".load", first))
        if self.divisor == 1.0:
            return addend
        return compute("div", (addend, self.divisor), self._call(".div", first))

    def add(self, addends: Sequence[Tensor], owner: int, first: int) -> Tensor:
        """Return the sum of one chunk, of `addends` in the order of ranks; `first` is its first element's index.

        The chunk's owner calls it, so that every addition is counted once; it draws the bits of an element's index.
        """
        if self.collective is None or self.ar is None:
            return self._wide(addends, first)
        in_order = list(addends)
        if self.collective.order == "ring":
            in_order = [addends[(owner + 1 + j) % self.size] for j in range(self.size)]
            total = in_order[0]
            for addend in in_order[1:]:
                total = self._plus(total, addend, first)
        else:
            while len(in_order) > 1:
                pairs = zip(in_order[::2], in_order[1::2], strict=False)
                waiting = in_order[len(in_order) // 2 * 2 :]
                in_order = [self._plus(a, b, first) for a, b in pairs] + waiting
            total = in_order[0]
        assert self.kept is not None
        call = self._at(self.ar.call(self.name, self.kept, rounding=self.kept_rounding), first)
        return round_tensor(total, call)

    def _wide(self, addends: Sequence[Tensor], first: int) -> Tensor:
        """Return the sum in float64, divided and rounded once."""
        total = torch.zeros_like(addends[0], dtype=torch.float64)
        for addend in addends:
            total += addend
        total /= self.divisor
        dtype = addends[0].dtype
        if self.ar is None or self.kept is None:
            return total.to(dtype)
        call = self._at(self.ar.call(self.name, self.kept, rounding=self.kept_rounding), first)
        return narrow(settle_elements(total, call, addends), dtype, self.kept)

    def _plus(self, a: Tensor, b: Tensor, first: int) -> Tensor:
        """Return a + b in the collective's format."""
        return compute("add", (a, b), self._call(".sum", first))

    def _call(self, suffix: str, first: int) -> Call:
        """Return how the next result in the collective's format is rounded."""
        assert self.ar is not None and self.collective is not None
        return self._at(self.ar.call(self.name + suffix, self.collective.format), first)

    def _at(self, call: Call, first: int) -> Call:
        """Return `call` with the random bits of the elements from `first` on."""
        if call.draw is None or self.ar is None:
            return call
        return call._replace(draw=call.draw._replace(step=self.ar.clock.step, first_index=first))


def carrier_of(dtype: torch.dtype, joinings: Sequence[Joining]) -> torch.dtype:
    """Return the dtype in which numbers travel: float64 where a gradient or a format needs it."""
    formats = [joining.collective.format for joining in joinings if joining.collective is not None]
    is_wide = dtype == torch.float64 or any(not format.fits_float32 for format in formats)
    return torch.float64 if is_wide else torch.float32
