"""The sums in `.grad`: gradients of several backward passes, added up in the format in which the machine stores them.

A parameter without a master weight has its `.grad` in its own 16 bits, so that 2048 + 1 = 2048 in fp16; that of a
master is float32, unless a rule about `accumulate_grad` says otherwise. Which sums those are, and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from normstab.simulation.around.operation_rules import GRADIENT_SUM, OperationRules
from normstab.simulation.around.places import Place, adds_up
from normstab.simulation.aten.stored import WIDE
from normstab.simulation.ranks.parts import is_split, part_of
from normstab.torch_private import autograd_node, modes_off

__all__ = ["GradientSums"]


class GradientSums:
    """Finds the sums in the `.grad` of parameters, and where each is computed.

    `places` has every parameter; of one that is split over processes its parts are summed. `are_stored` says that the
    machine stores the sums as it does parameters, for it has no master weights.
    """

    def __init__(self, places: Mapping[Tensor, Place], rules: OperationRules | None, *, are_stored: bool) -> None:
        self._places = {id(parameter): place for parameter, place in places.items()}
        self._parameters = list(places)  # kept, so that no other tensor gets the id of one
        self._split = [parameter for parameter in places if is_split(parameter)]
        self._rules = rules
        self._are_stored = are_stored
        self._wide: dict[Place, Place] = {}

    def place_of(self, operation: str, args: tuple[Any, ...]) -> Place | None:
        """Return the place of an addition of float32 tensors if it is such a sum, and rounded; else None."""
        if len(args) < 2 or not all(isinstance(x, Tensor) and x.dtype in WIDE for x in args[:2]):
            return None
        parameter = self._summed(args)
        place = self._places.get(id(parameter))
        if place is None or args[1].layout != torch.strided:
            return None
        ruled = place if self._rules is None else self._rules.place(place, GRADIENT_SUM)
        if ruled is not place:
            return ruled if self._are_stored or place.shown is None else self._kept_wide(ruled, place)
        if place.passes or (place.shown is not None and not self._are_stored):
            return None
        return place if self._rules is None else self._rules.place(place, operation)

    def _summed(self, args: tuple[Any, ...]) -> Tensor | None:
        """Return the parameter whose gradient the addition of `args` adds up; None where it adds up something else."""
        node = autograd_node()
        if node is not None and adds_up(node):
            parameter: Tensor = node.variable
            return parameter if parameter.grad is args[0] else None
        # Two copies of one parameter, of two forwards, meet before they reach its gradient.
        if node is not None and node.name() == "ToCopyBackward0":
            after = node.next_functions[0][0]
            copied: Tensor | None = after.variable if after is not None and adds_up(after) else None
            place = self._places.get(id(copied))
            return copied if place is not None and place.shown is not None else None
        of_part = (p for p in self._split if p.grad is not None and is_part(args[0], p.grad))
        return next(of_part, None)

    def _kept_wide(self, ruled: Place, place: Place) -> Place:
        """Return the place of a rule whose results stay as they are: a float32 `.grad` holds them."""
        if ruled not in self._wide:
            found, around = copy(ruled), copy(place)
            around.passes = True
            found.around = around
            self._wide[ruled] = found
        return self._wide[ruled]


def is_part(tensor: Tensor, split: Tensor) -> bool:
    """Whether a tensor is this process's part of one that is split."""
    with modes_off():
        return tensor.data_ptr() == part_of(split).data_ptr() and tensor.shape == part_of(split).shape
