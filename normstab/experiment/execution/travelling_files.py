"""The files of a record on their way from one machine to another: taken as bytes, put in their place whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["files_of", "place_files"]


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a record, its probes included, by their path below `directory`."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def place_files(files: Mapping[str, bytes], directory: Path) -> None:
    """Put a record in its place, whole: its files are written beside it, and the folder is renamed."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        for name, content in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_bytes(content)
        beside.chmod(0o755)
        shutil.rmtree(directory, ignore_errors=True)  # what an earlier, unfinished run left
        os.replace(beside, directory)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
