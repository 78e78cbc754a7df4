"""A swept cell: the norm layers of an untrained network alone, their inputs times 2^k, nothing trained.

The activations are those of the network in float32 on its first training images. At every k the scale s of each
channel is compared with that of the same, unrounded input in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.experiment.data.datasets import load_dataset
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.network.models import build_model
from normstab.experiment.network.weighted_layers import norm_layers
from normstab.experiment.records.cell_record import DataFacts, Record, SweepPoint
from normstab.experiment.records.machine import environment
from normstab.experiment.records.offences import Tallies
from normstab.experiment.scenario.spec import Cell, SweepSpec
from normstab.norms.catalogue import parse_norm
from normstab.norms.functional import Reduction, Scheme, normalize_forward
from normstab.norms.modules import Normalizing
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from normstab.numerics.version import NUMERICS_VERSION

__all__ = ["run_sweep"]


def run_sweep(cell: Cell, *, threads: int, device: str) -> Record:
    """Return the record of a swept cell: per norm layer a point for every exponent.

    Step i of its first offences is the i-th exponent.
    """
    sweep = cell.sweep
    assert sweep is not None, "a swept cell has a sweep"
    dataset = load_dataset(cell.dataset, device=device)
    if isinstance(dataset, TokenDataset):
        raise NormstabError("sweep: its statistics are those of a channel, as images have; tokens have none")
    model = build_model(cell.model, dataset.task, seed=cell.train.seed).to(device)
    wanted = torch.arange(min(sweep.images, len(dataset.train_y)), device=device)
    inputs = norm_inputs(model, dataset.train_batch(wanted)[0])
    ar = Arithmetic(cell.numerics.precision, ledger=Ledger(), key=Key(seed=cell.train.seed))
    points = {}
    for name, layer in norm_layers(model).items():
        if layer.norm == "mean-only":
            raise NormstabError("sweep: a mean-only norm has no scale; leave it out of sweep.grid.norm")
        points[name] = _sweep_layer(layer, inputs[name], sweep, ar.at(name))
    tallies = Tallies()
    assert ar.ledger is not None
    tallies.collect(ar.ledger)
    return Record(
        id=cell.id,
        cell=cell.to_json(),
        numerics_version=NUMERICS_VERSION,
        data=DataFacts(dataset.name, dataset.sha256, len(dataset.train_y), len(dataset.test_y), dataset.classes),
        environment=environment(device, threads),
        status="finished",
        steps=0,
        steps_per_epoch=0,
        first=dict(sorted(tallies.first.items())),
        first_steps=tallies.steps_by_site(),
        sweep=points,
    )


def norm_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return what reaches each norm layer, in training mode and float32, when the network is given `x`."""
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, layer in norm_layers(model).items():

        def keep(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            inputs[name] = args[0].detach().clone()

        hooks.append(layer.register_forward_pre_hook(keep))
    with torch.no_grad():
        model.train()(x)
    for hook in hooks:
        hook.remove()
    return inputs


def _sweep_layer(layer: Normalizing, x: Tensor, sweep: SweepSpec, ar: Arithmetic) -> tuple[SweepPoint, ...]:
    """Return the points of one layer."""
    scheme = Scheme(parse_norm(layer.norm), sweep.eps, layer.norm_constant)
    reduction = Reduction.of_batch(x.shape)
    low, high = sweep.exponents
    points = []
    at_one = _scale(x.double(), scheme, reduction, Arithmetic("fp64"))
    for number, k in enumerate(range(low, high + 1)):
        ar.clock.set(number)
        scaled = _times_power(x, k)
        exact = at_one * 2.0**k if sweep.eps == 0 else _scale(scaled, scheme, reduction, Arithmetic("fp64"))
        found = _scale(_rounded(scaled, ar), scheme, reduction, ar)
        error = ((found - exact).abs() / exact).nan_to_num(nan=np.inf).max()
        collapsed = int((~found.isfinite() | (found == 0)).sum())
        points.append(SweepPoint(k, float(error), collapsed))
    return tuple(points)


def _scale(x: Tensor, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    """Return s of every channel, in float64."""
    scale = normalize_forward(x, None, None, scheme, reduction, ar).scale
    assert scale is not None, "every norm but mean-only has a scale"
    return scale.double().flatten()


def _rounded(x: Tensor, ar: Arithmetic) -> Tensor:
    """Return float64 `x` as the network would hold it: cast to the compute format, float32 where that suffices."""
    if ar.is_native:
        return x.float()
    rounded = ar.cast(x, "input")
    return rounded.float() if ar.format.fits_float32 else rounded


def _times_power(x: Tensor, k: int) -> Tensor:
    """Return 2^k x in float64, exactly."""
    return torch.from_numpy(np.ldexp(x.double().cpu().numpy(), k)).to(x.device)
