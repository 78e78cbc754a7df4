"""What a bug report or a slow run needs to know: versions, device, the kernels that serve, data sets found.

Collects facts and judges none; `normstab selftest` says whether the numbers are right.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from normstab.errors import NormstabError

__all__ = ["examine"]

Facts = dict[str, dict[str, str]]
"""Section -> name -> what was found."""

# What computes, then what reads and prints, then what is optional.
COMPUTING = ("torch", "numpy", "numba", "triton")
READING = ("pydantic", "ruamel.yaml", "typer", "rich", "jinja2", "tabulate", "matplotlib")
OPTIONAL = ("pytest", "hypothesis", "torchvision", "timm", "transformers", "qtorch")


def examine() -> Facts:
    """Return what was found on this machine, section by section; what fails is a fact too, never an exception."""
    sections: dict[str, Callable[[], dict[str, str]]] = {
        "versions": _versions,
        "device": _device,
        "kernels": _kernels,
        "data sets": _datasets,
    }
    return {name: section() for name, section in sections.items()}


def _versions() -> dict[str, str]:
    from normstab import __version__
    from normstab.numerics.version import NUMERICS_VERSION, TESTED, beyond_tested
    from normstab.torch_private import MISSING

    found = {"normstab": f"{__version__} (numerics {NUMERICS_VERSION})", "python": sys.version.split()[0]}
    found |= {library: _version_of(library) for library in (*COMPUTING, *READING, *OPTIONAL)}
    tested = {
        name: oldest if oldest == newest else f"{oldest} to {newest}" for name, (oldest, newest) in TESTED.items()
    }
    found["tested with"] = ", ".join(f"{library} {versions}" for library, versions in tested.items())
    missing = ", ".join(MISSING) or "nothing"
    return found | {"beyond that": "; ".join(beyond_tested()) or "nothing", "torch lacks": missing}


def _version_of(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _device() -> dict[str, str]:
    import torch

    found = {
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "torch threads": f"{torch.get_num_threads()} (a run's cells take theirs from --threads)",
    }
    if not torch.cuda.is_available():
        return found | {"cuda": "none"}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found | {"cuda": f"{torch.version.cuda}: {', '.join(names)}"}


def _kernels() -> dict[str, str]:
    import torch

    from normstab.numerics.kernels.cpu import openmp

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = {device: _kernels_of(device) for device in devices}
    whose = "a pool of our own" if openmp.team() is None else "torch's own OpenMP threads"
    return found | {"compiled code": _numba_cache(), "threading": f"{whose}, torch's number of them"}


def _kernels_of(device: str) -> str:
    """Say which implementation rounds on `device`, by rounding there."""
    import warnings

    import torch

    from normstab.numerics.dispatch import kernels_for
    from normstab.numerics.first_calls import FIRST_CALLS
    from normstab.numerics.rounding import cast

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FIRST_CALLS.end()
        x = torch.tensor([1.0 + 2.0**-12], device=device)
        kernels = kernels_for(x)
        rounded = cast(x, "fp16").item()
    if rounded != 1.0:
        return f"WRONG: cast(1 + 2^-12, fp16) gave {rounded!r}; run `normstab selftest`"
    if kernels is not None:
        return {"cpu": "numba", "cuda": "triton"}[device]
    reasons = "; ".join(str(warning.message) for warning in caught)
    return f"torch reference, slower, same results ({reasons or 'no compiled kernels'})"


def _numba_cache() -> str:
    """Say where the compiled kernels are kept, and how many are there."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    place = Path(chosen) if chosen else Path(__file__).parents[1]
    count = len(list(place.rglob("*.nbc"))) if place.is_dir() else 0
    writable = "" if os.access(place if place.exists() else place.parent, os.W_OK) else ", read-only"
    return f"{place} ({count} compiled{writable})"


def _datasets() -> dict[str, str]:
    """Say of every data set that needs no folder from the user whether it is here, with its hash."""
    from normstab.experiment.data.datasets import EVERY_SET, DatasetRow, data_sha256
    from normstab.experiment.scenario.spec import DatasetSpec

    found = {}
    for name, row in EVERY_SET.items():
        if isinstance(row, DatasetRow) and row.needs_root:
            found[name] = "given by dataset.root"
            continue
        try:
            found[name] = f"sha256 {data_sha256(DatasetSpec(name))[:16]}"
        except NormstabError as error:
            found[name] = str(error)
    return found
