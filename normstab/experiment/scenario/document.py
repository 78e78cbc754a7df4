"""The scenario file's shape: its top-level fields, with a description of each. The JSON Schema is made of them.

The sections `dataset`, `model`, `train` and `numerics` are `spec`'s, the forms of `expect` are `expectation`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from normstab.experiment.scenario.checking.field_kinds import STRICT, Count, NonNegative
from normstab.experiment.scenario.expectation import Expectation, ExpectationField, Quantity, QuantityField, Selector
from normstab.experiment.scenario.spec import (
    Cell,
    DatasetSpec,
    Exponents,
    ModelSpec,
    NormNoiseSpec,
    NumericsSpec,
    OptimizerSpec,
    ScheduleSpec,
    TrainSpec,
)

__all__ = ["AXES", "PATHS", "SECTIONS", "Claim", "Document", "Plot", "Scenario", "SweepDocument"]

# The sections that are resolved per cell, by their dotted path.
SECTIONS: dict[str, type[Any]] = {
    "dataset": DatasetSpec,
    "model": ModelSpec,
    "model.norm_noise": NormNoiseSpec,
    "train": TrainSpec,
    "train.optimizer": OptimizerSpec,
    "train.schedule": ScheduleSpec,
    "numerics": NumericsSpec,
}
# The short names of the usual axes, and the dotted path that each sets.
AXES = {
    "norm": "model.norm",
    "weight_norm": "model.weight_norm",
    "precision": "numerics.precision",
    "input_scale": "dataset.scale",
    "seed": "train.seed",
}
# The axis of named bundles of settings.
VARIANT = "variant"
# Every dotted path that an axis, a variant or a profile may set.
PATHS: tuple[str, ...] = tuple(f"{section}.{part.name}" for section, spec in SECTIONS.items() for part in fields(spec))

# The tolerance that a report shows: 1 point.
ONE_POINT = Quantity(0.01, "pp")

Axis = Annotated[list[Any], Field(min_length=1)]
Grid = dict[str, Axis]
Settings = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


@dataclass(frozen=True)
class Plot:
    """A claim's plot: `metric` over the axis `x`, one line or group of bars per value of the axis `by`."""

    __pydantic_config__ = STRICT

    kind: Annotated[Literal["bars", "curves", "sweep", "histogram"], Field(description="How it is drawn.")]
    metric: Annotated[str, Field(description="What is drawn.")] = "accuracy"
    x: Annotated[str | None, Field(description="The axis from left to right.")] = None
    by: Annotated[str | None, Field(description="The axis of the lines, or of the bars beside one another.")] = None
    where: Annotated[Selector | None, Field(description="The cells that are drawn; null: all.")] = None


@dataclass(frozen=True)
class Claim:
    """One claim of a paper: its text, what the paper found, and how to draw what a run found."""

    __pydantic_config__ = STRICT

    id: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$", description="What expectations call it by `claim`."),
    ]
    text: Annotated[str, Field(description="The claim in words.")]
    paper: Annotated[str | None, Field(description="The paper's number.")] = None
    source: Annotated[str | None, Field(description="The place in the paper.")] = None
    plot: Annotated[Plot | None, Field(description="How what was found is drawn.")] = None


@dataclass(frozen=True)
class SweepDocument:
    """A sweep of norm layers alone: `grid` over norm, precision and other axes, each cell over all exponents."""

    __pydantic_config__ = STRICT

    grid: Annotated[Grid, Field(description="Axis: list of values, as in the scenario's grid.")]
    exponents: Exponents = (-12, 10)
    eps: Annotated[NonNegative, Field(description="eps of the swept layers.")] = 0.0
    images: Annotated[Count, Field(description="Images of the recorded batch.")] = 64


@dataclass(frozen=True)
class Document:
    """The fields of a scenario file."""

    __pydantic_config__ = STRICT

    version: Annotated[Literal[1], Field(description="Version of the file's format.")]
    name: Annotated[Name, Field(description="Names the report's folder.")]
    dataset: Annotated[DatasetSpec, Field(description="The images.")]
    model: Annotated[ModelSpec, Field(description="The network.")]
    question: Annotated[str | None, Field(description="What the scenario is to answer.")] = None
    source: Annotated[str | None, Field(description="Paper, figure or issue that the question is from.")] = None
    page: Annotated[Name | None, Field(description="Joint page that this scenario's claims are on too.")] = None
    claims: Annotated[tuple[Claim, ...], Field(description="Claims of a paper, for the joint page.")] = ()
    train: Annotated[TrainSpec, Field(description="How it is trained.")] = field(default_factory=TrainSpec)
    numerics: Annotated[NumericsSpec, Field(description="In which arithmetic.")] = field(default_factory=NumericsSpec)
    variants: Annotated[
        dict[str, Settings], Field(description="Name: {dotted path: value}; values of the axis `variant`.")
    ] = field(default_factory=dict)
    grid: Annotated[
        Grid, Field(description="Axis (norm, precision, input_scale, seed, variant or a dotted path): values.")
    ] = field(default_factory=dict)
    include: Annotated[
        tuple[Selector, ...],
        Field(description="Cells beside the grid: axis: value or list; other axes as in the grid."),
    ] = ()
    exclude: Annotated[tuple[Selector, ...], Field(description="Cells to leave out: axis: value or list.")] = ()
    sweep: Annotated[SweepDocument | None, Field(description="Norm layers alone under scaled inputs.")] = None
    record: Annotated[
        Literal["digests"] | None, Field(description="Digests of the first step's results, for `normstab diff`.")
    ] = None
    expect: Annotated[tuple[ExpectationField, ...], Field(description="What must hold of the outcome.")] = ()
    tolerance: Annotated[QuantityField, Field(description="Gap that still counts as STABLE.")] = ONE_POINT
    profiles: Annotated[
        dict[str, Settings], Field(description="Name: {dotted path: value}, applied by --set profile=NAME.")
    ] = field(default_factory=dict)


DOCUMENT: TypeAdapter[Document] = TypeAdapter(Document)


@dataclass(frozen=True)
class Scenario:
    """A validated scenario: `document` is the file's content with profiles and overrides applied.

    `profiles` and `overrides` are what was applied, `path` where the file was: together they reproduce it.
    `written` is the content before: its expectations may name cells that a profile leaves out.
    `outlined` keeps the cells that `expand` made without reading data: they are asked for more than once.
    """

    path: str
    document: Mapping[str, Any]
    profiles: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    written: Mapping[str, Any] = field(kw_only=True)
    parsed: Document = field(compare=False, repr=False, kw_only=True)
    outlined: list[Cell] = field(default_factory=list, init=False, compare=False, repr=False, kw_only=True)

    @property
    def name(self) -> str:
        """The scenario's name, which names the report's folder."""
        return self.parsed.name

    @property
    def question(self) -> str:
        """What the scenario is to answer."""
        return self.parsed.question or ""

    @property
    def source(self) -> str:
        """The paper, figure or issue the question is from."""
        return self.parsed.source or ""

    @property
    def page(self) -> str | None:
        """The joint page that the claims are on too."""
        return self.parsed.page

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims of a paper that the expectations test."""
        return self.parsed.claims

    @property
    def expectations(self) -> tuple[Expectation, ...]:
        """What must hold of the outcome."""
        return self.parsed.expect

    @property
    def tolerance(self) -> float:
        """The accuracy that may be lost and still be STABLE, as a share."""
        return self.parsed.tolerance.amount

    @property
    def is_smoke(self) -> bool:
        """Whether only the expectations marked `smoke: true` are judged."""
        return "smoke" in self.profiles

    def to_json(self) -> dict[str, Any]:
        """Return what `scenario.json` in a report's folder holds."""
        return {
            "version": 1,
            "path": self.path,
            "profiles": list(self.profiles),
            "overrides": list(self.overrides),
            "document": dict(self.document),
            **({} if self.written == self.document else {"written": dict(self.written)}),
        }
