"""What a run keeps between steps in a format beyond what a simulation stores: optimizer states, compensated sums.

The optimizer's own operations run in float32; what it stores is rounded once, as Gupta et al. 2015, section 3,
and Zamirai et al. 2020 do. With `round_optimizer` the simulation rounds every operation itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normstab.experiment.scenario.spec import NumericsSpec
from normstab.experiment.training.optimizers import CompensatedAdamW, CompensatedSGD
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision
from normstab.numerics.rules import precision_rules
from normstab.numerics.steps.clock import Clock
from normstab.simulation.around.session import rounds_itself

__all__ = ["Storage"]

# The tensors of torch's and our optimizers that persist; step counts are none of them.
STATES = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "compensation")


class Storage:
    """Rounds states to the role `optimizer` where a format is named for it, parameters without master weights.

    Parameters: those that our norm layers hold (a simulation stores the others), and every compensated sum.
    """

    def __init__(self, model: nn.Module, numerics: NumericsSpec, *, seed: int) -> None:
        precision = Precision.parse(numerics.precision)
        is_left_to_us = not precision.is_native and not numerics.round_optimizer
        self.keeps_parameters = is_left_to_us and not numerics.master_weights
        self.keeps_states = is_left_to_us and precision.optimizer is not None
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._of_layers = [p for m in model.modules() if rounds_itself(m) for p in m.parameters(recurse=False)]
        self._rules = precision_rules(numerics.rules, precision)
        self._seed, self._ledger, self._clock = seed, Ledger(), Clock()
        self._made: dict[Precision, Arithmetic] = {}

    def use(self, arithmetic: Arithmetic) -> None:
        """Count in the ledger, and by the clock, of `arithmetic` from now on."""
        if arithmetic.ledger is not None:
            self._ledger, self._clock = arithmetic.ledger, arithmetic.clock

    def keep(self, parameter: Tensor, value: Tensor) -> Tensor:
        """Return what is stored of the new `value` of `parameter`."""
        if not self.keeps_parameters:
            return value
        return self._at(parameter).in_format("parameter").cast(value, "update")

    @torch.no_grad()
    def keep_all_(self, optimizer: torch.optim.Optimizer) -> None:
        """Round what is stored after a step; what is in its format already stays as it is."""
        if self.keeps_parameters and not isinstance(optimizer, CompensatedSGD | CompensatedAdamW):
            for held in self._of_layers:
                held.copy_(self.keep(held, held.detach()))
        if self.keeps_states:
            for parameter, state in optimizer.state.items():
                at = self._at(parameter).in_format("optimizer")
                for name in STATES:
                    if (value := state.get(name)) is not None:
                        value.copy_(at.cast(value, name))

    def _at(self, parameter: Tensor) -> Arithmetic:
        """Return the arithmetic of the parameter's module, at the parameter's name."""
        name = self._names[id(parameter)]
        precision = self._rules.of(name.rpartition(".")[0])
        if precision not in self._made:
            made = self._made[precision] = Arithmetic(precision, ledger=self._ledger, key=Key(seed=self._seed))
            made.clock = self._clock
        return self._made[precision].at(name).towards("optimizer")
