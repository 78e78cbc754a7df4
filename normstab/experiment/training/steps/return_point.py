"""A moment between two steps to which a run can go back: copies of what steps move, where those tensors lie.

A checkpoint is on disk and outlives the process; this is for steps that are taken back within one. Nothing here
waits for a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normstab.experiment.training.cell_arithmetic import Simulated
from normstab.simulation.loss_scale import LossScaler
from normstab.simulation.taken_back import Mark

__all__ = ["ReturnPoint"]


@dataclass(frozen=True)
class ReturnPoint:
    """What a run held before `step`; make it with `before`, outside the emulated arithmetic."""

    step: int
    tensors: list[tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer
    states: list[tuple[Tensor, Mapping[str, Any]]]
    scaler: Mapping[str, Any]
    generators: list[tuple[torch.device, Tensor]]
    cast: list[str]
    scales: Mapping[str, Mapping[int, float]]
    mark: Mark | None

    @staticmethod
    def before(
        step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: LossScaler, simulated: Simulated
    ) -> ReturnPoint:
        """Return the point before `step`, which comes next; what the ledger counted has been collected."""
        live = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        return ReturnPoint(
            step=step,
            tensors=[(tensor, tensor.clone()) for tensor in live],
            optimizer=optimizer,
            states=[(parameter, _copied(state)) for parameter, state in optimizer.state.items()],
            scaler=scaler.state_dict(),
            generators=list(_generators(live)),
            cast=simulated.cast_names(step),
            scales=simulated.scales(),
            mark=simulated.mark(),
        )

    def go_back(self, scaler: LossScaler, simulated: Simulated) -> None:
        """Let everything be as it was then; the history is the caller's."""
        for live, then in self.tensors:
            live.copy_(then)
        self.optimizer.state.clear()
        for parameter, state in self.states:
            self.optimizer.state[parameter] = _copied(state)
        scaler.load_state_dict(dict(self.scaler))
        for device, generator in self.generators:
            _set_generator(device, generator)
        # In this order: parameters that were cast already are cast, and counted, again; that is forgotten.
        simulated.go_on(self.step, self.cast, self.scales)
        simulated.take_back(self.mark)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state of one parameter with tensors of its own."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def _generators(tensors: list[Tensor]) -> Iterator[tuple[torch.device, Tensor]]:
    """Yield the states of torch's generators, of the CPU's and of every CUDA device that holds one of the tensors."""
    yield torch.device("cpu"), torch.get_rng_state()
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        if device.type == "cuda":
            yield device, torch.cuda.get_rng_state(device)


def _set_generator(device: torch.device, state: Tensor) -> None:
    """Let a generator go on from `state`."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
