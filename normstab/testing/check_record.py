"""What `check` saw, as the record of a run: what blame, headroom, forecasts and remedies read.

Nothing is written to disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from normstab.assess.runs import Run
from normstab.experiment.records.cell_record import (
    DataFacts,
    Environment,
    EpochRecord,
    Nonfinite,
    NormLayerRecord,
    Offence,
    Record,
)
from normstab.numerics.ledger import COUNTERS, Ledger, Site
from normstab.numerics.precision import Precision
from normstab.numerics.version import NUMERICS_VERSION
from normstab.testing.culprit import Own

__all__ = ["BLAMED", "as_run", "norm_layers"]

# The offences that an answer names, in the order in which they are told.
BLAMED = ("overflow", "divide_by_zero", "nan_produced", "underflow")


def norm_layers(module: nn.Module) -> dict[str, NormLayerRecord]:
    """Return the normalization layers of a model by name, as a record lists them."""
    found = {}
    for name, layer in module.named_modules():
        eps = getattr(layer, "eps", getattr(layer, "variance_epsilon", None))
        if "norm" in type(layer).__name__.lower() and eps is not None:
            norm = str(getattr(layer, "norm", "l2"))
            channels = sum(p.numel() for p in list(layer.parameters(recurse=False))[:1])
            found[name] = NormLayerRecord(norm, 0, channels, 0, None, None, float(eps))
    return found


def as_run(
    ledger: Ledger,
    spec: Precision,
    layers: Mapping[str, NormLayerRecord],
    losses: Sequence[float],
    *,
    is_finite: bool = True,
    own: Own = frozenset(),
) -> Run:
    """Return a ledger as the record of a run, which is what blame, headroom, forecast and remedies read.

    `own` are offences of the network itself, which are no first offence of the precision.
    """
    sites = {str(site): tally for site, tally in ledger.items()}
    loss = losses[-1] if losses else math.nan
    first = {c: Offence(str(f.site), f.step) for c in COUNTERS[1:] if (f := ledger.first(c, besides=own)) is not None}
    nonfinite = None if is_finite else Nonfinite(len(losses) - 1, "loss")
    return Run(
        Record(
            id="check",
            cell={"numerics": {"precision": str(spec)}, "coordinates": {"precision": str(spec)}},
            numerics_version=NUMERICS_VERSION,
            data=DataFacts("input", "", 0, 0, 1),
            environment=Environment("cpu", torch.get_num_threads(), "", torch.__version__),
            status="nonfinite" if nonfinite else "finished",
            steps=len(losses),
            steps_per_epoch=len(losses),
            nonfinite=nonfinite,
            epochs=(EpochRecord(0.0, loss, loss, sites=sites),),
            first=first,
            first_steps={str(s): _first_steps(ledger, s) for s in ledger},
            norm_layers=layers,
        )
    )


def _first_steps(ledger: Ledger, site: Site) -> dict[str, int]:
    """Return the step of the first event of each kind at a site."""
    steps = {counter: ledger.first_step(site, counter) for counter in BLAMED}
    return {counter: step for counter, step in steps.items() if step is not None}
