"""What a network says of the test images, and what there is to measure of its layers after an epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from normstab.experiment.data.images import Dataset
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.network.weighted_layers import channel_norms, norm_layers, weight_layers
from normstab.experiment.records.cell_record import NormLayerRecord
from normstab.experiment.training.batch_loss import Inputs, judged, outputs
from normstab.experiment.training.cell_arithmetic import Simulated
from normstab.norms.catalogue import parse_norm
from normstab.norms.modules import BatchForward
from normstab.norms.weight import BoundedWeightNorm, WeightNorm

__all__ = ["Evaluation", "bounds", "count_values", "evaluate", "norm_layer_records", "weight_norms", "weights_sha256"]

BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """Predictions for every test image or token in order: accuracy and mean cross entropy (float64 of the logits)."""

    accuracy: float
    loss: float
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    is_finite: bool


def evaluate(model: nn.Module, dataset: Dataset | TokenDataset, simulated: Simulated) -> Evaluation:
    """Return what `model`, in evaluation mode and in the emulated arithmetic, makes of the test images or sequences.

    A NaN logit counts as the greatest, so that the prediction of a broken network is the first such class.
    """
    model.eval()
    labels, predicted, losses, correct, finite = [], [], 0.0, 0, True
    with torch.no_grad():
        for x, y in _batches(dataset, simulated):
            logits = outputs(model, x)
            with simulated.paused():
                wide, y = judged(logits.double(), y)
                losses += F.cross_entropy(wide, y, reduction="sum").item()
                best = wide.argmax(1)
                correct += int((best == y).sum())
                finite = finite and bool(wide.isfinite().all())
                labels.append(y)
                predicted.append(best)
    model.train()
    all_labels, all_predicted = (torch.cat(found).cpu().numpy() for found in (labels, predicted))
    n = len(all_labels)
    return Evaluation(correct / n, losses / n, all_labels, all_predicted, finite)


def _batches(dataset: Dataset | TokenDataset, simulated: Simulated) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield the test images, normalised in the emulated arithmetic, or sequences, and their targets."""
    batches = dataset.test_batches(BATCH)
    while True:
        with simulated.rounding_float32():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def weight_norms(model: nn.Module, simulated: Simulated) -> dict[str, tuple[float, ...]]:
    """Return the norm of every output channel of the layers with weights; under a weight norm, its own p.

    A weight norm forms the weight in the emulated arithmetic; its norm is measured outside, in float64.
    """
    found = {}
    with torch.no_grad():
        for name, layer in weight_layers(model).items():
            weight = layer.weight
            with simulated.paused():
                found[name] = tuple(channel_norms(weight, _p_of(layer)).tolist())
    return found


def bounds(model: nn.Module) -> dict[str, float]:
    """Return rho of every layer under a bounded weight norm."""
    return {
        name: float(module.rho)
        for name, layer in weight_layers(model).items()
        for module in layer.modules()
        if isinstance(module, BoundedWeightNorm)
    }


def _p_of(layer: nn.Module) -> float:
    """Return p of the layer's weight norm, 2 where it has none."""
    for module in layer.modules():
        if isinstance(module, WeightNorm | BoundedWeightNorm):
            return {"l1": 1.0, "l2": 2.0, "linf": math.inf}[module.norm]
    return 2.0


def batch_norms(model: nn.Module) -> dict[str, BatchForward]:
    """Return the batch norms by name: the layers whose statistics belong to a channel."""
    return {name: layer for name, layer in norm_layers(model).items() if isinstance(layer, BatchForward)}


def count_values(model: nn.Module, batch: Inputs) -> dict[str, int]:
    """Return how many values share a mean in each batch norm when `batch` is trained on."""
    counts: dict[str, int] = {}
    hooks = []
    for name, layer in batch_norms(model).items():

        def count(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            counts[name] = inputs[0].numel() // inputs[0].shape[1]

        hooks.append(layer.register_forward_pre_hook(count))
    was_training = model.training
    try:
        with torch.no_grad():
            outputs(model.eval(), batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return counts


def norm_layer_records(
    model: nn.Module, counts: dict[str, int], earlier: dict[str, NormLayerRecord]
) -> dict[str, NormLayerRecord]:
    """Return the batch norms as they are now, the range of their scales extended by that of the `earlier` epochs."""
    records = {}
    for name, layer in batch_norms(model).items():
        scale, eps = stored_scale(layer), _eps(layer)
        if scale is None:
            records[name] = NormLayerRecord(layer.norm, counts[name], 0, 0, None, None, eps)
            continue
        usable = scale[scale.isfinite() & (scale > 0)]
        known = [] if name not in earlier else [earlier[name].scale_low, earlier[name].scale_high]
        seen = [value for value in known if value is not None] + usable.tolist()
        records[name] = NormLayerRecord(
            norm=layer.norm,
            n=counts[name],
            channels=len(scale),
            collapsed_channels=len(scale) - len(usable),
            scale_low=min(seen) if seen else None,
            scale_high=max(seen) if seen else None,
            eps=eps,
        )
    return records


def stored_scale(layer: BatchForward) -> Tensor | None:
    """Return s of every channel from the running statistics, in float64; None where a layer keeps none."""
    stored = getattr(layer, "running_var", None)
    if not isinstance(stored, Tensor):
        return None
    value, spec, eps = stored.double(), parse_norm(layer.norm), _eps(layer)
    if spec.kind == "l2":
        return torch.sqrt(value + eps)
    if spec.kind == "lp":
        return (value**spec.p + eps) ** (1 / spec.p)
    return value + eps


def _eps(layer: BatchForward) -> float:
    """Return the layer's eps."""
    return float(getattr(layer, "eps", None) or 0.0)


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 of the names, dtypes, shapes and bytes of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
