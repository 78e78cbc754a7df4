"""Which code a model that is not of the catalogue comes from, as a hash, found without running any of it.

A cell's id holds it, so that the record of an edited factory is not reused. Modules that the named one imports are
followed only within its own package.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

__all__ = ["code_sha256"]

# Libraries whose version is a part of a model that names them.
LIBRARIES = ("torchvision", "timm", "transformers")


def code_sha256(name: str) -> str:
    """Return the hash of the code of model `name`; empty for a model of the catalogue, and where there is no code.

    Of torchvision and timm it is their version; of `module:function` the source of the module, or of all modules of
    its package, and the version of each of LIBRARIES that it mentions.
    """
    module, colon, _ = name.partition(":")
    if not colon:
        return ""
    if module in LIBRARIES:
        facts = [f"{module} {_version(module)}"]
    else:
        sources = {str(path): path.read_bytes() for path in _sources(module)}
        if not sources:
            return ""
        mentioned = [each for each in LIBRARIES if any(re.search(rf"\b{each}\b".encode(), s) for s in sources.values())]
        facts = [hashlib.sha256(source).hexdigest() for _, source in sorted(sources.items())]
        facts += [f"{each} {_version(each)}" for each in mentioned]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _version(library: str) -> str:
    """Return the version that is installed; empty where it is not."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _sources(module: str) -> Iterator[Path]:
    """Yield the files of the module, of its whole package where it is in one; none where it is not found."""
    top = module.partition(".")[0]
    # The working directory, where a factory is looked for too, first, as when it is imported.
    spec = _found(top, [str(Path.cwd()), *sys.path])
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        if spec.origin is not None and Path(spec.origin).is_file():
            yield Path(spec.origin)
        return
    for place in spec.submodule_search_locations:
        yield from (path for path in Path(place).rglob("*.py") if path.is_file())


def _found(name: str, places: list[str]) -> ModuleSpec | None:
    """Return where a module without dots is, imported or not; None for one that is not on the path."""
    try:
        return PathFinder.find_spec(name, places)
    except (ImportError, ValueError):
        return None
