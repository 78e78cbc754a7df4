"""Files that are whole or absent: atomic writes, and JSON in which a number that is not finite is a string.

Knows nothing of records; every file of a run that must survive `kill -9` passes through here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

from normstab.errors import RecordError

__all__ = [
    "CHECKPOINT_FILE",
    "DIGEST_FILE",
    "SNAPSHOT_FILE",
    "json_text",
    "jsonable",
    "open_plain_file",
    "read_json",
    "read_plain_file",
    "remove_path",
    "remove_unfinished",
    "write_atomically",
]

CHECKPOINT_FILE = "checkpoint.pt"
"""Where a cell under way goes on; a finished one has none."""

DIGEST_FILE = "digests.json"
"""The digests of the first step's results, beside a record that keeps them."""


SNAPSHOT_FILE = "snapshot.pt"
"""Where other cells go on from a cell that was to stop early."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Leave `content` at `path` whole, or what was there before: never a part of it.

    Raises RecordError when the disk is full or the directory cannot be written; nothing else is lost then.
    """
    encoded = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise RecordError(
            f"{path}: cannot write: {error.strerror or error}; what is finished is kept: "
            "make room or choose another --out, then run the same command again"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def remove_path(path: Path) -> None:
    """Delete the file at `path`, or whatever lies in its place: a link, a folder, nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(directory: Path, *, least_age_s: float = 0.0) -> None:
    """Delete what writes that were killed left in the directory of a run, or of a page.

    Nobody else may be writing there, but for what is younger than `least_age_s`.
    """
    latest_s = time.time() - least_age_s
    records = (entry.path for entry in _entries(directory / "records") if entry.is_dir())
    folders = (Path(each) for place in records for each in (place, os.path.join(place, "probes")))
    for folder in chain((directory, directory / "plots"), folders):
        for entry in _entries(folder):
            with contextlib.suppress(FileNotFoundError):  # somebody else has finished it meanwhile
                is_meant = _UNFINISHED.fullmatch(entry.name) is not None and not entry.is_dir()
                if is_meant and entry.stat(follow_symlinks=False).st_mtime <= latest_s:
                    os.unlink(entry.path)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in a folder, one after the other: it may be a million; nothing where there is no folder."""
    try:
        found = os.scandir(folder)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return
    with found:
        yield from found


# As `write_atomically` names what is not whole yet.
_UNFINISHED = re.compile(r"\..+\.(json|jsonl|pt|npz|md|html|svg)\.[a-z0-9_]{8}")


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`; raise RecordError, naming the file, when there is none."""
    try:
        text = read_plain_file(path).decode("utf-8")
        _check_depth(text)
        return json.loads(text)
    except OSError as error:
        raise RecordError(f"{path}: cannot read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON: {error}; remove the file and run the same command again") from error


MOST_BYTES = 2**28
"""Of a file of a run; a record of hundreds of epochs with histograms has some 50 MB."""
MOST_LEVELS = 64


def read_plain_file(path: Path) -> bytes:
    """Return the bytes of a regular file; raise OSError for a pipe, a device, a folder and what is too large.

    A pipe would be waited for, a device never ends.
    """
    with open_plain_file(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MOST_BYTES >> 20} MiB")
    return content


def open_plain_file(path: Path, mode: Literal["rb", "wb", "r+b"]) -> BinaryIO:
    """Return the regular file at `path`, opened; raise OSError for anything else.

    What is to be written is not written through a symbolic link: it may lead anywhere.
    """
    flags = {"rb": os.O_RDONLY, "wb": os.O_WRONLY | os.O_CREAT, "r+b": os.O_RDWR}[mode]
    safe = os.O_NONBLOCK | os.O_CLOEXEC | (0 if mode == "rb" else os.O_NOFOLLOW)
    descriptor = os.open(path, flags | safe, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if mode == "wb":
            os.ftruncate(descriptor, 0)
        return os.fdopen(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise


def _check_depth(text: str) -> None:
    """Raise ValueError for more than MOST_LEVELS nested levels: they would exhaust the parser's stack."""
    depth = 0
    for found in _OPENING_OR_CLOSING.finditer(text):
        if found.lastgroup is not None:
            depth += 1 if found.lastgroup == "opening" else -1
            if depth > MOST_LEVELS:
                raise ValueError(f"more than {MOST_LEVELS} nested levels")


# Texts are skipped as a whole; one without an end is the parser's business.
_OPENING_OR_CLOSING = re.compile(r'"(?:[^"\\]|\\.)*+"?|(?P<opening>[\[{])|(?P<closing>[\]}])', re.DOTALL)


def jsonable(value: Any) -> Any:
    """Return `value` with every inf and NaN as the string "inf", "-inf" or "nan", and tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return value


def json_text(document: Mapping[str, Any]) -> str:
    """Return `document` as JSON with one line per top-level key, so that two files diff readably."""
    lines = (f"{json.dumps(key)}: {json.dumps(jsonable(value), allow_nan=False)}" for key, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
