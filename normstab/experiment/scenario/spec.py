"""What one cell of an experiment is: plain frozen data, from the scenario's reader to the worker's training loop.

The field annotations are the scenario file's schema too (bounds, descriptions, defaults), so that a field
exists in one place. Nothing here reads files, knows catalogues or needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from normstab.experiment.scenario.cell_identity import Scalar, hashed_fields, identity, slug
from normstab.experiment.scenario.checking.field_kinds import STRICT, Count, NonNegative, Positive
from normstab.experiment.scenario.training_spec import OptimizerSpec, ScheduleSpec, TrainSpec
from normstab.norms.noise.norm_noise import NormNoise

__all__ = [
    "Cell",
    "DatasetSpec",
    "ForkSpec",
    "ModelSpec",
    "NormNoiseSpec",
    "NumericsSpec",
    "OptimizerSpec",
    "Scalar",
    "ScheduleSpec",
    "SweepSpec",
    "TrainSpec",
]

Exponent = Annotated[int, Field(ge=-40, le=40)]
Exponents = Annotated[tuple[Exponent, Exponent], Field(description="Least and greatest k of the factor 2^k.")]


@dataclass(frozen=True)
class DatasetSpec:
    """The data: which set, how many, how large, and the condition `scale` that images are multiplied by last.

    `train` and `test` keep that many images of the set, the first of each class in turn; None keeps all.
    `scale` (grid axis `input_scale`) multiplies the normalised images.
    """

    __pydantic_config__ = STRICT

    name: Annotated[str, Field(description="A name of `normstab list datasets`.")]
    size: Annotated[
        Count | None,
        Field(description="Side of images in pixels, or characters of a window or verse; null: the set's own."),
    ] = None
    train: Annotated[Count | None, Field(description="Number of training images or sequences; null takes all.")] = None
    test: Annotated[Count | None, Field(description="Number of test images or sequences; null takes all.")] = None
    root: Annotated[str | None, Field(description="Folder of a data set that is not embedded.")] = None
    augment: Annotated[
        tuple[Literal["crop", "flip"], ...],
        Field(description="Random pad-and-crop by an eighth of the side, random horizontal flip."),
    ] = ()
    scale: Annotated[Positive, Field(description="Factor on the normalised images (axis input_scale).")] = 1.0


Place = Literal["output", "statistics", "gradient"]


@dataclass(frozen=True)
class NormNoiseSpec:
    """Noise in the norm layers in the place of rounding: of a standard deviation, or of that of a format's rounding."""

    __pydantic_config__ = STRICT

    kind: Annotated[
        Literal["uniform", "multiplicative"], Field(description="Added to a value t, or t times a noise around 1.")
    ]
    sigma: Annotated[NonNegative | None, Field(description="Standard deviation of the noise, or of the factor.")] = None
    like: Annotated[
        str | None, Field(description="A format, in the place of sigma: the variance is that of rounding to it.")
    ] = None
    where: Annotated[
        Place | tuple[Place, ...], Field(description="What is disturbed: one or several of the three.")
    ] = "output"

    def noise(self) -> NormNoise:
        """Return the noise; raise NormstabError where sigma and like do not go together, or like is no format."""
        return NormNoise(self.kind, self.sigma, self.like, self.where)


@dataclass(frozen=True)
class ModelSpec:
    """The network: its name, size, and how its layers normalise.

    `norm` is a dispersion (l2, l1, linf, topK, range, lpP), `mean-only` or `none`, or a mapping from a rule
    (exact module name, then `re:` pattern, then `_default`) to one. `norm_constant` multiplies the
    dispersion's constant C. `eps` None is the layer's default. `args` go to the function that makes a network of
    torchvision, timm or your own.
    """

    __pydantic_config__ = STRICT

    name: Annotated[
        str, Field(description="A name of `normstab list models`, torchvision:NAME, timm:NAME or your module:function.")
    ]
    width: Annotated[
        Count | None,
        Field(description="Channels of the first stage; hidden units of an mlp; features of a transformer."),
    ] = None
    args: Annotated[
        dict[str, Any] | None,
        Field(description="Keyword arguments of a library's or your own function, beside those of the data set."),
    ] = None
    norm: Annotated[str | dict[str, str], Field(description="Norm of every layer, or rule: norm.")] = "l2"
    weight_norm: Annotated[
        Literal["none", "wn", "bwn"], Field(description="Weight norm: none, learned g, or bounded.")
    ] = "none"
    weight_norm_p: Annotated[Literal[1, 2, "inf"], Field(description="The p of the weight norm's vector norm.")] = 2
    norm_constant: Annotated[Positive, Field(description="Factor on the constant C of L1, Linf, topK, range.")] = 1.0
    eps: Annotated[NonNegative | None, Field(description="eps of the norm layers; null is the default 1e-5.")] = None
    layers: Annotated[Count | None, Field(description="Layers of each stack of a transformer.")] = None
    heads: Annotated[Count | None, Field(description="Heads of its attention; they divide the width.")] = None
    norm_layer: Annotated[Literal["layer", "rms"], Field(description="Its norms: layer norm or RMS norm.")] = "layer"
    stem: Annotated[Literal["small", "imagenet"], Field(description="The first layers of a ResNet.")] = "small"
    init: Annotated[
        Literal["torch", "he-fan-out", "outlier-channel"],
        Field(description="First weights: torch's; convolutions N(0, 2 / (k^2 c_out)); a channel of embeddings 300."),
    ] = "torch"
    norm_noise: Annotated[
        NormNoiseSpec | None, Field(description="Noise in norm layers that round nothing; null: none.")
    ] = None


@dataclass(frozen=True)
class NumericsSpec:
    """The arithmetic: a canonical precision string, and per-module rules that override it.

    `round_optimizer` rounds the optimizer's own operations too; without it they run in float32 and only the
    stored parameters and states are rounded (by the roles `parameter` and `optimizer`). `expand` runs
    softmax, losses and attention operation by operation. `histogram` records exponent histograms per site.
    """

    __pydantic_config__ = STRICT

    precision: Annotated[str, Field(description="A precision string, such as fp16/nearest/fp32;square=fp32.")] = (
        "native"
    )
    rules: Annotated[dict[str, str], Field(description="Module name, `re:` pattern or `_default`: precision.")] = field(
        default_factory=dict
    )
    master_weights: Annotated[
        bool, Field(description="False: parameters are rounded in place. True: as the precision's `master` says.")
    ] = True
    round_optimizer: Annotated[bool, Field(description="Round the optimizer's operations too.")] = False
    expand: Annotated[bool, Field(description="Expand softmax, losses and attention.")] = False
    histogram: Annotated[bool, Field(description="Record exponent histograms per site.")] = False


@dataclass(frozen=True)
class SweepSpec:
    """Norm layers alone, without training: their input times 2^k for every k of `exponents`, eps as given.

    The activations are those that reach the norm layers of the untrained model on its first batch in float32.
    """

    __pydantic_config__ = STRICT

    exponents: Exponents = (-12, 10)
    eps: Annotated[NonNegative, Field(description="eps of the swept layers.")] = 0.0
    images: Annotated[Count, Field(description="Images of the recorded batch.")] = 64


@dataclass(frozen=True)
class ForkSpec:
    """A part of a training: it goes on from the snapshot of the cell `of`, and ends after `stop` steps in all.

    `of` None begins at the start, `stop` None goes to the end. `leaves_snapshot`: others go on from where this one
    stops. What came before the fork is in its log and its counts, as if it had trained from the start.
    """

    __pydantic_config__ = STRICT

    of: str | None = None
    stop: Count | None = None
    leaves_snapshot: bool = False


@dataclass(frozen=True)
class Cell:
    """One point of a scenario's grid: everything a worker needs, and nothing else.

    `coordinates` are the grid's axes in file order. The reference of a cell is the cell that differs only in
    its numerics (native, no rules) and in having no noise; it has `is_reference` and a `reference_id` of None, as has
    a swept cell.
    `depends_on`: ids of the cells that must be finished first (the reference, and `norm_record`).
    `record`: what is kept beside the record; it changes nothing in it, and so is no part of the id.
    `is_listed`: the grid lists it; a reference or a cell that was only added because others need it is not.
    `code_sha256` is that of the model's code, for a model that is not of the catalogue.
    `fork`: only a part of the training is done, or is begun where another cell stopped.
    """

    scenario: str
    coordinates: Mapping[str, Scalar]
    dataset: DatasetSpec
    model: ModelSpec
    train: TrainSpec
    numerics: NumericsSpec
    sweep: SweepSpec | None = None
    is_reference: bool = False
    reference_id: str | None = None
    depends_on: tuple[str, ...] = ()
    is_listed: bool = True
    data_sha256: str = ""
    code_sha256: str = ""
    record: Literal["digests"] | None = None
    fork: ForkSpec | None = None

    @cached_property
    def id(self) -> str:
        """The readable slug of the coordinates, and ten hexadecimal digits of the hash of what is run.

        The hash covers the resolved specs, the hashes of the data and of a foreign model's code, and NUMERICS_VERSION,
        so that a record with this id is this cell's result on any machine.
        """
        resolved: tuple[Any, ...] = (self.dataset, self.model, self.train, self.numerics, self.sweep)
        resolved += () if self.fork is None else (self.fork,)
        return f"{slug(self.coordinates)}-{identity(resolved, self.data_sha256, self.code_sha256)}"

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON-able plain data, its id included; LATER_FIELDS only where they are set."""
        plain: dict[str, Any] = json.loads(json.dumps(hashed_fields(self), default=hashed_fields))
        return {"id": self.id, **{each.name: plain[each.name] for each in fields(self) if each.name in plain}}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Cell:
        """Return the cell that `to_json` wrote; its id is computed anew."""
        given = {name: value for name, value in plain.items() if name != "id"}
        return _CELL.validate_json(json.dumps(given), strict=True)


_CELL: TypeAdapter[Cell] = TypeAdapter(Cell)
