"""Files that are whole or absent: atomic writes, and JSON in which a number that is not finite is a string.

Knows nothing of records; every file of a run that must survive `kill -9` passes through here.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normstab.errors import RecordError

__all__ = ["json_text", "jsonable", "read_json", "write_atomically"]


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


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`; raise RecordError, naming the file, when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: cannot read: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: not JSON: {error}; remove the file and run the same command again") from error


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
