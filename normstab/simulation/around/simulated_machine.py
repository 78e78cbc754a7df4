"""The machine of a simulation: which arithmetic and which dtype each module has, by the precisions and rules given.

It makes the places and knows what is cast as a whole: parameters and inputs, or, under autocast, nothing but the
operands of operations. Hooks, modes and everything that acts are in `session`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision
from normstab.numerics.rules import OUTSIDE, Rules
from normstab.numerics.scaled.scale_history import ScaleHistory
from normstab.numerics.steps.clock import Clock
from normstab.simulation.around.autocast import dtype_of, lowered
from normstab.simulation.around.compilation import named_modules
from normstab.simulation.around.operation_rules import OperationRules
from normstab.simulation.around.places import Place
from normstab.simulation.around.shown_dtype import fits_within, shown_dtype, why_not_shown

__all__ = ["Arithmetics", "Machine"]

FLOAT32 = Precision.parse("fp32")


class Arithmetics:
    """One Arithmetic per precision, all with one ledger, key and clock, and with the rules about operations."""

    def __init__(self, rules: Rules[Precision], ledger: Ledger, seed: int) -> None:
        self._made: dict[Precision, Arithmetic] = {}
        self._ledger, self._key, self._clock, self.scales = ledger, Key(seed=seed), Clock(), ScaleHistory()
        self.rules = OperationRules(rules, self.of) if rules.know_operations else None

    def of(self, precision: Precision) -> Arithmetic:
        """Return the arithmetic of a precision."""
        if precision not in self._made:
            made = self._made[precision] = Arithmetic(precision, ledger=self._ledger, key=self._key)
            made.clock, made.scales = self._clock, self.scales
            made.rules = self.rules if self.rules is not None and self.rules.concern_norms else None
        return self._made[precision]


class Machine:
    """What a simulation of `model` rounds where.

    `autocast` is the 16-bit dtype to which operations are cast, None without autocast; `casts_parameters` says that
    parameters, buffers and inputs are cast as a whole; `notes` is what a user has to know of it.
    """

    def __init__(self, model: nn.Module, rules: Rules[Precision], arithmetics: Arithmetics) -> None:
        self._model = model
        self._given = rules.default
        self._rules = rules.map(lowered)
        self._arithmetics = arithmetics
        self._shown = shown_dtype(self._rules.default)
        self.autocast = dtype_of(rules.default)
        self.casts_parameters = self.autocast is None
        self.notes = [why] if (why := why_not_shown(self._rules.default)) else []

    def places(self, own: Collection[nn.Module]) -> dict[nn.Module, Place]:
        """Return the place of every module; those of `own` round by themselves."""
        wide = set(_wide_layers(self._model, self._given))
        return {
            module: self._place(name, passes=module in own, takes_operands=module not in wide)
            for name, module in named_modules(self._model)
        }

    def outside(self) -> Place:
        """Return the place of code outside every module."""
        return self._place(OUTSIDE, passes=False)

    def optimizer(self, *, passes: bool, master_weights: bool) -> Place:
        """Return the place of an optimizer's steps: float32 on machines with wide norms and master weights."""
        precision = self._rules.of(OUTSIDE)
        if precision.norm == "wide" and master_weights and precision.optimizer is None:
            precision = FLOAT32
        return Place(OUTSIDE, self._arithmetics.of(precision), direction="optimizer", passes=passes)

    def copied(self, places: dict[nn.Module, Place]) -> dict[nn.Module, torch.dtype]:
        """Return the dtype in which each module sees its parameters and buffers, of those that see another one."""
        return {m: place.shown for m, place in places.items() if place.shown is not None and not place.rounds_itself}

    def _place(self, name: str, *, passes: bool, takes_operands: bool = True) -> Place:
        """Return the place of a module."""
        precision = self._rules.of(name)
        if not takes_operands:
            precision = replace(precision, operand_input=None, operand_weight=None, operand_grad=None)
        shown = fits_within(precision, self._shown)
        place = Place(name, self._arithmetics.of(precision), direction="forward", passes=passes, shown=shown)
        place.rounds_itself = passes
        return place


def _wide_layers(model: nn.Module, precision: Precision) -> list[nn.Module]:
    """Return the layers whose operands a recipe leaves as they are: the first or last that multiplies by a weight."""
    layers = [module for module in model.modules() if isinstance(module, MULTIPLYING)]
    return [layers[0 if which == "first" else -1] for which in precision.wide_layers if layers]


MULTIPLYING = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that multiply by a matrix of weights; embeddings look rows up."""
