"""The bounds of all operations of one run, as they are run: what an error of its outputs is measured by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.modules import Normalizing, RMSNorm
from normstab.norms.reduction import Reduction
from normstab.numerics.bounds import Roundoff, Step, roundoff
from normstab.numerics.ledger import Ledger, Site
from normstab.numerics.precision import Precision
from normstab.search.measured_bounds import input_of, reduction_of
from normstab.simulation.aten.operation import Operation
from normstab.testing.error_bounds.norm_errors import Normed, norm_backward_steps, norm_steps
from normstab.testing.error_bounds.own_errors import own_steps
from normstab.testing.error_bounds.relative_steps import Quanta, relative_to
from normstab.testing.tolerances import result_format
from normstab.torch_private import modes_off

__all__ = ["RunErrors"]

# Sites at which numbers enter: the network's input, a cast, and inside norms the parameters.
ENTRIES = ("input", "to", "gamma", "beta")


@dataclass
class RunErrors:
    """The steps of a run's operations, relative to their own results, by direction; of its first step alone."""

    steps: dict[str, list[Step]] = field(default_factory=dict)
    coarsest: Roundoff = field(default_factory=lambda: Roundoff(0.0, 0.0))
    first: int | None = None
    parameters: Collection[str] = ()

    def watch(self, model: nn.Module) -> None:
        """Note the names of a model's parameters, and hook its layers that round by themselves; it must be a copy."""
        self.parameters = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
        for layer in model.modules():
            if isinstance(layer, Normalizing):
                layer.register_forward_hook(self._see_layer, with_kwargs=True)

    def see(self, site: Site, op: Operation, result: Any) -> None:
        """Note the steps of an operation, whose operands are as it had them."""
        if self._is_counted(op.ar.step):
            self._note(op.ar.precision, op.ar.format)
            with torch.no_grad(), modes_off():
                self._add(site.direction, own_steps(op, result))

    def of_all(self, ledger: Ledger, precision: Precision) -> tuple[Sequence[Step], Sequence[Step]]:
        """Return the steps on the way to an output, and to a gradient."""
        return self.of_outputs(ledger, precision), self.of_gradients(ledger, precision)

    def of_outputs(self, ledger: Ledger, precision: Precision) -> list[Step]:
        """Return the steps on the way to an output: the casts of what enters, every forward operation, and one more.

        That is a rounding to the format that was asked for: what lies within it, or within its quantum, is the same
        number of that format, however much wider the rules made the operations.
        """
        asked = roundoff(result_format(precision), precision.rounding)
        entering = [Step(1, asked.unit, asked.bias), Quanta(1, 1.0, size=asked.quantum)]
        unit = self.coarsest if self.coarsest.unit or self.coarsest.quantum else asked
        for site, tally in ledger.items():
            if site.direction == "forward" and site.operation in (*ENTRIES, *self.parameters):
                entering += relative_to([Step.of(unit)], tally.largest, tally.largest)
        return [*entering, *self.steps.get("forward", [])]

    def of_gradients(self, ledger: Ledger, precision: Precision) -> list[Step]:
        """Return the steps on the way to a gradient: those of the outputs, and every backward operation."""
        return [*self.of_outputs(ledger, precision), *self.steps.get("backward", [])]

    def _add(self, direction: str, steps: list[Step]) -> None:
        self.steps.setdefault(direction, []).extend(steps)

    def _is_counted(self, step: int) -> bool:
        """Whether this is the step in which the first operation ran: outputs are compared of that one."""
        self.first = step if self.first is None else self.first
        return step == self.first

    def _note(self, precision: Precision, format: Any) -> None:
        """Keep the coarsest format that was met: what enters is cast to it, or to a finer one."""
        self.coarsest = max(
            self.coarsest, roundoff(format, precision.rounding), key=lambda one: (one.unit, one.quantum)
        )

    def _see_layer(self, layer: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> None:
        """Note the steps of a layer written against an Arithmetic, and those of its gradient once that is known."""
        assert isinstance(layer, Normalizing)
        ar, x = layer.arithmetic, input_of(args, kwargs)
        if ar.is_native or not self._is_counted(ar.step):
            return
        reduction, fixed = reduction_of(layer, x), None
        if reduction is None:  # evaluation, by the running statistics of each channel
            reduction = Reduction.of_batch(x.shape)
            fixed = layer.running_mean if isinstance(layer.running_mean, Tensor) else None
        spec = None if layer.norm == "mean-only" else parse_norm(layer.norm)
        eps = float(getattr(layer, "eps", 0.0) or 0.0)
        scheme = Scheme(spec, eps=eps, constant_factor=layer.norm_constant, centres=not isinstance(layer, RMSNorm))
        normed = Normed(x.detach(), layer.weight, layer.bias, scheme, reduction, fixed)
        self._note(ar.precision, ar.format)
        with torch.no_grad(), modes_off():
            self._add("forward", norm_steps(normed, output.detach(), ar.precision))
        if output.requires_grad and x.requires_grad:
            given: list[Tensor] = []
            output.register_hook(given.append)
            x.register_hook(self._of_gradient(normed, given, ar.precision))

    def _of_gradient(self, normed: Normed, given: list[Tensor], precision: Precision) -> Callable[[Tensor], None]:
        """Return the hook that notes the steps of a layer's gradient, from that of its output."""

        def see(result: Tensor) -> None:
            if given:
                with torch.no_grad(), modes_off():
                    self._add("backward", norm_backward_steps(normed, given[0], result, precision))

        return see
