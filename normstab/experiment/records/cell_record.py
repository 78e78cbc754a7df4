"""Record: what happened in one cell, as plain data and as files; and the log of its steps.

A record holds no time and no host name, so equal runs have equal records (`run.json` has those). Reading and
judging records needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from normstab.experiment.records.files import json_text, write_atomically
from normstab.experiment.records.predictions import Predictions
from normstab.numerics.ledger import Tally

__all__ = [
    "DataFacts",
    "Environment",
    "EpochRecord",
    "LanguageRecord",
    "Nonfinite",
    "NormLayerRecord",
    "Offence",
    "Predictions",
    "Probe",
    "Record",
    "SweepPoint",
    "plain",
    "write_record",
]

VERSION = 1


@dataclass(frozen=True)
class DataFacts:
    """Which data the cell was trained on: `sha256` is that of the arrays after loading."""

    name: str
    sha256: str
    train: int
    test: int
    classes: int


@dataclass(frozen=True)
class Environment:
    """What the bits of a record depend on beyond its cell; and `look_every`, on which none depends.

    So many steps at most go by until the run looks at what its device has found; 1, not written, is every step.
    """

    device: str
    threads: int
    cpu_capability: str
    torch: str
    look_every: int = 1


@dataclass(frozen=True)
class Nonfinite:
    """Why a run ended early: in `step`, `what` (loss, parameter or logit) became inf or NaN.

    `site` is the first site of the ledger that produced an inf or a NaN, where one is known.
    """

    step: int
    what: str
    site: str | None = None


@dataclass(frozen=True)
class Offence:
    """The first time a counter rose: `site` as `module.operation[direction]`, and the step.

    `rank` is the process that it was in, None for a cell that one process trained.
    """

    site: str
    step: int
    rank: int | None = None


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: accuracy and mean loss on the test set after it, mean training loss during it.

    `updates` counts the elements of the parameters in the steps that were looked at (those with a probe),
    `updates_zero` how many of these the step left as they were. `weight_norms` has one number per output
    channel, in float64. `sites` has the ledger of the epoch. `loss_scale` is that after the epoch.
    `angular_update` has, by layer under a norm, the mean angle in radians by which the steps that were looked at
    turned its weights.
    """

    accuracy: float
    test_loss: float
    train_loss: float
    updates: int = 0
    updates_zero: int = 0
    loss_scale: float | None = None
    weight_norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    sites: Mapping[str, Tally] = field(default_factory=dict)
    angular_update: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """The distance to the reference after `step` steps, on the reference's data order.

    `weight_distance` is ||w - w_ref|| / ||w_ref||; `gradient_cosine` the cosine of the two gradients of the step.
    """

    step: int
    weight_distance: float
    gradient_cosine: float


@dataclass(frozen=True)
class NormLayerRecord:
    """One norm layer: `n` values per channel, and over the run the least and greatest scale s seen.

    `collapsed_channels` of `channels` had, after the last epoch, a scale that is inf, NaN or zero.
    """

    norm: str
    n: int
    channels: int
    collapsed_channels: int
    scale_low: float | None
    scale_high: float | None
    eps: float


@dataclass(frozen=True)
class SweepPoint:
    """A norm layer alone, its input times 2^`exponent`.

    `error` is the greatest relative error of a channel's scale s, against that of the same input in float64;
    `collapsed_channels` is how many channels' s is inf, NaN or zero.
    """

    exponent: int
    error: float
    collapsed_channels: int


@dataclass(frozen=True)
class LanguageRecord:
    """What there is to know of a network for tokens beyond an epoch's numbers, which are of its tokens.

    `kind` is the set's; `chance` the share of the most frequent target among the test tokens. Of pairs, after the last
    epoch: the share of the test words written rightly, END included, and chrF of what was written.
    """

    kind: str
    chance: float
    word_accuracy: float | None = None
    chrf: float | None = None


@dataclass(frozen=True)
class Record:
    """What happened in one cell. `status` is `finished` or `nonfinite`; `cell` is the resolved cell as JSON.

    `steps` were taken, the one that became non-finite included. `weights_sha256` is that of the final parameters
    and buffers, names and bytes; `steps_sha256` that of the log beside the record; `rho` is the constant of every
    layer under a bounded weight norm. A swept cell has a `sweep`, by norm layer, and neither steps nor epochs.
    `language` is of a network for tokens, and left out of the file where there is none.
    """

    id: str
    cell: Mapping[str, Any]
    numerics_version: int
    data: DataFacts
    environment: Environment
    status: str
    steps: int
    steps_per_epoch: int
    nonfinite: Nonfinite | None = None
    epochs: tuple[EpochRecord, ...] = ()
    first: Mapping[str, Offence] = field(default_factory=dict)
    first_steps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=Predictions)
    probes: tuple[Probe, ...] = ()
    norm_layers: Mapping[str, NormLayerRecord] = field(default_factory=dict)
    sweep: Mapping[str, tuple[SweepPoint, ...]] = field(default_factory=dict)
    unrecognised: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weights_sha256: str | None = None
    rho: Mapping[str, float] = field(default_factory=dict)
    steps_sha256: str | None = None
    language: LanguageRecord | None = None
    version: int = VERSION

    @property
    def coordinates(self) -> Mapping[str, Any]:
        """The cell's place in its grid: axis -> value."""
        return dict(self.cell.get("coordinates", {}))

    @property
    def is_reference(self) -> bool:
        """Whether the cell is the wide reference of a group."""
        return bool(self.cell.get("is_reference", False))

    @property
    def reference_id(self) -> str | None:
        """The id of the wide reference of this cell's group."""
        found = self.cell.get("reference_id")
        return None if found is None else str(found)

    @property
    def accuracy(self) -> float | None:
        """The accuracy after the last epoch; None when no epoch was finished."""
        return self.epochs[-1].accuracy if self.epochs else None


def write_record(directory: Path, record: Record) -> None:
    """Write `record` to `directory/record.json`, whole or not at all."""
    write_atomically(directory / "record.json", json_text(record_document(record)))


def record_document(record: Record) -> dict[str, Any]:
    """Return `record` as JSON data, the schema's keys in order, tallies without what is zero."""
    document = {"version": record.version}
    left_out = {"version"} | ({"language"} if record.language is None else set())
    document |= {f.name: plain(getattr(record, f.name)) for f in fields(record) if f.name not in left_out}
    return document


_EMPTY_TALLY = asdict(Tally())


def plain(value: Any) -> Any:
    """Return dataclasses as dicts, all the way down; of a Tally only what differs from an empty one.

    A look at the device in every step is not written either.
    """
    if isinstance(value, Tally):
        return {name: inner for name, inner in asdict(value).items() if inner != _EMPTY_TALLY[name]}
    if isinstance(value, Environment) and value.look_every == 1:
        return {name: inner for name, inner in asdict(value).items() if name != "look_every"}
    if isinstance(value, Offence) and value.rank is None:
        return {"site": value.site, "step": value.step}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value
