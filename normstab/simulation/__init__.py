"""Simulation: a whole network, anyone's, run in an Arithmetic."""

from normstab.simulation.loss_scale import LossScaler
from normstab.simulation.record import Log, record
from normstab.simulation.run import Run
from normstab.simulation.simulate import simulate

__all__ = ["Log", "LossScaler", "Run", "record", "simulate"]
