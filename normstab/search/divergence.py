"""Where two runs of one network part: site by site, from digests, the first one that rounding does not explain.

A site is a place of divergence where its results differ by more than what came in and its own rounding can make.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from normstab.assess.points import point_words
from normstab.errors import NormstabError
from normstab.experiment.records.digest_file import read_digests
from normstab.experiment.records.files import DIGEST_FILE
from normstab.experiment.records.record_reader import read_records
from normstab.experiment.scenario.spec import Cell
from normstab.numerics.formats import FORMATS, AnyFormat, FixedFormat
from normstab.numerics.precision import Precision
from normstab.search.chosen_cell import has_values
from normstab.simulation.aten.norm_ops import NORM_OPERATIONS
from normstab.simulation.compiled.compiled_modules import compiled as as_compiled
from normstab.simulation.site_digests import Digest, digests_of

__all__ = ["CellDivergence", "Divergence", "SiteDifference", "compare_digests", "diff", "diff_runs"]

# Roundings between the input of a norm and its output: input, mean (2), centre, square, mean (2), eps, root, divide,
# scale, shift. A product has its result's and its parameter's; of every other operation the last one alone is allowed.
ROUNDINGS_OF_NORM, ROUNDINGS_OF_PRODUCT = 12, 2
PRODUCTS = {"mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "convolution", "convolution_backward", "embedding"}
MOST = 2**16  # elements of a result that are compared where nothing is stored
NORMS = {*NORM_OPERATIONS, "norm"}


@dataclass(frozen=True)
class SiteDifference:
    """One site's results in run A and in run B.

    `only` names the run that alone has the site, which is a difference where both have one precision; else one of them
    may compute it wide, where nothing is rounded. `difference` is ||a - b|| / ||b|| of the sampled elements, infinite
    where one run is finite and the other is not or the shapes differ; `before` the largest difference of any site
    before; `bound` what the site's own rounding may add.
    """

    site: str
    call: int
    shape: tuple[int, ...]
    difference: float
    before: float
    bound: float
    ulps: float
    nonfinite: tuple[int, int]
    rms: tuple[float, float]
    is_equal: bool
    only: str = ""

    @property
    def has_diverged(self) -> bool:
        """Whether it is more than twice what came in (a product of two results may double it) and rounding here."""
        return self.difference > 2.0 * self.before + self.bound


@dataclass(frozen=True)
class Divergence:
    """Two runs, site by site in A's order; `label_a` and `label_b` say what they are.

    `notes` say where a compiled run breaks a graph off, or runs uncompiled.
    """

    label_a: str
    label_b: str
    sites: tuple[SiteDifference, ...]
    notes: tuple[str, ...] = ()

    @property
    def diverged(self) -> tuple[SiteDifference, ...]:
        """The sites of divergence, the first one first."""
        return tuple(site for site in self.sites if site.has_diverged)

    @property
    def first(self) -> SiteDifference | None:
        """The first site of divergence."""
        return next(iter(self.diverged), None)


def diff(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    precision: str | Precision | AnyFormat,
    against: str | Precision | AnyFormat = "fp32",
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
    compiled: str | None = None,
) -> Divergence:
    """Return where copies of `model` on `args` and `kwargs` part, in `precision` (A) and in `against` (B).

    `loss` makes a number of the output and adds the backward pass. B is compiled by the backend normstab where
    `compiled` says with which decompositions: "none", "core" or "inductor".
    """

    def run(module: nn.Module) -> None:
        output = module(*args, **(kwargs or {}))
        value = None if loss is None else loss(output)
        if value is not None and value.requires_grad:
            value.backward()

    specs = [Precision.parse(precision), Precision.parse(against)]
    models, labels = [copy.deepcopy(model).float() for _ in specs], [str(spec) for spec in specs]
    notes: list[str] = []
    if compiled is not None:
        models[1] = as_compiled(models[1], compiled)
        labels[1] += " compiled" if compiled == "none" else f" compiled with {compiled} decompositions"
    a = digests_of(models[0], run, specs[0], seed=seed, most=MOST)
    b = digests_of(models[1], run, specs[1], seed=seed, most=MOST, notes=notes if compiled is not None else None)
    found = compare_digests(a, b, labels=(labels[0], labels[1]), precisions=(specs[0], specs[1]))
    return replace(found, notes=tuple(notes))


@dataclass(frozen=True)
class CellDivergence:
    """A cell that both runs have, by its coordinates in words, and where the two part."""

    cell: str
    divergence: Divergence


def diff_runs(before: str | Path, after: str | Path, cell: str = "") -> list[CellDivergence]:
    """Return where two runs of a scenario part, cell by cell, from the digests that their records keep.

    Cells pair by scenario and coordinates; `cell` chooses some by their values (`l2,fp16`). Raises NormstabError where
    no cell of both has digests.
    """
    a, b = (_with_digests(Path(directory), cell) for directory in (before, after))
    pairs = [name for name in a if name in b]
    if not pairs:
        counts = f"{before} has digests of {len(a)} such cells, {after} of {len(b)}"
        raise NormstabError(f"no cell of both runs has digests: {counts}; run the scenario with record: digests")
    return [CellDivergence(name, _of_records(a[name], b[name], (str(before), str(after)))) for name in pairs]


def _with_digests(directory: Path, chosen: str) -> dict[str, tuple[Path, Precision]]:
    """Return the records that keep digests and have the chosen values: where each is, and its precision."""
    if not (directory / "records").is_dir():
        raise NormstabError(f"{directory}: no run is there: expected a directory with records/")
    found = {}
    for record in read_records(directory)[0]:
        cell = Cell.from_json(record.cell)
        folder = directory / "records" / record.id
        if (folder / DIGEST_FILE).exists() and has_values(cell, chosen):
            kind = " (reference)" if cell.is_reference else ""
            words = f"{cell.scenario}: {point_words(cell.coordinates)}{kind}"
            found[words] = (folder, Precision.parse(cell.numerics.precision))
    return found


def _of_records(a: tuple[Path, Precision], b: tuple[Path, Precision], labels: tuple[str, str]) -> Divergence:
    """Return where two records' digests part."""
    (folder_a, precision_a), (folder_b, precision_b) = a, b
    return compare_digests(
        read_digests(folder_a), read_digests(folder_b), labels=labels, precisions=(precision_a, precision_b)
    )


def compare_digests(
    a: Sequence[Digest], b: Sequence[Digest], *, labels: tuple[str, str], precisions: tuple[Precision, Precision]
) -> Divergence:
    """Return the sites of two runs beside each other; the bound is of the coarser of the two `precisions`."""
    coarse = max((_format(precision) for precision in precisions), key=lambda format: roundoff_of(format))
    others = {(digest.site, digest.call): digest for digest in b}
    shared = {(digest.site, digest.call) for digest in a}
    found: list[SiteDifference] = []
    same, before = precisions[0] == precisions[1], 0.0
    for digest in a:
        other = others.get((digest.site, digest.call))
        row = _alone(digest, "A", same) if other is None else _compared(digest, other, before, coarse)
        found.append(row)
        before = max(before, row.difference if other is not None else 0.0)
    found += [_alone(digest, "B", same) for key, digest in others.items() if key not in shared]
    return Divergence(*labels, tuple(found))


def _format(precision: Precision) -> AnyFormat:
    return FORMATS["fp32"] if precision.is_native else precision.format()


def roundoff_of(format: AnyFormat) -> float:
    """Return how coarse a format is: its relative rounding error, of fixed point that of 1."""
    return format.min_subnormal / 2 if isinstance(format, FixedFormat) else 2.0**-format.precision


def _alone(digest: Digest, only: str, is_difference: bool) -> SiteDifference:
    """Return the row of a site that one run alone has."""
    counts = (digest.nonfinite, 0) if only == "A" else (0, digest.nonfinite)
    rms = (digest.rms, 0.0) if only == "A" else (0.0, digest.rms)
    apart = np.inf if is_difference else 0.0
    return SiteDifference(
        digest.site, digest.call, digest.shape, apart, 0.0, 0.0, apart, counts, rms, is_equal=False, only=only
    )


def _compared(a: Digest, b: Digest, before: float, format: AnyFormat) -> SiteDifference:
    """Return the row of a site that both runs have."""
    operation = a.site.rpartition("[")[0].rpartition(".")[2]
    difference, ulps = 0.0, 0.0
    is_equal = a.shape == b.shape and a.sha256 == b.sha256
    if not is_equal:
        difference, ulps = (np.inf, np.inf) if a.shape != b.shape else _distance(a.elements, b.elements, format)
        if a.nonfinite != b.nonfinite:
            difference = ulps = np.inf
    return SiteDifference(
        a.site, a.call, a.shape, float(difference), before, _own(operation, b, format), float(ulps),
        (a.nonfinite, b.nonfinite), (a.rms, b.rms), is_equal=is_equal,
    )  # fmt: skip


def _distance(x: NDArray[np.float64], y: NDArray[np.float64], format: AnyFormat) -> tuple[float, float]:
    """Return ||x - y|| / ||y||, and the largest distance in quanta of the format at y; of finite elements."""
    is_finite = np.isfinite(x) & np.isfinite(y)
    if bool(np.any(np.isfinite(x) != np.isfinite(y))):
        return np.inf, np.inf
    x, y = x[is_finite], y[is_finite]
    apart = np.abs(x - y)
    if not apart.any():
        return 0.0, 0.0
    scale = float(np.linalg.norm(y))
    least = float(format.min_subnormal)
    quanta = np.full_like(y, least)
    if not isinstance(format, FixedFormat):
        quanta = np.maximum(np.exp2(np.frexp(y)[1] - format.precision), least)
    return float(np.linalg.norm(apart)) / scale if scale else np.inf, float((apart / quanta).max())


def _own(operation: str, digest: Digest, format: AnyFormat) -> float:
    """Return what the site's own roundings may add to the relative difference, those of tiny numbers included."""
    roundings = ROUNDINGS_OF_NORM if operation in NORMS else ROUNDINGS_OF_PRODUCT if operation in PRODUCTS else 1
    relative = 0.0 if isinstance(format, FixedFormat) else 2.0**-format.precision
    quantum = float(format.min_subnormal) / 2
    return roundings * (relative + (quantum / digest.rms if digest.rms else 0.0))
