"""Code of the user's: importing the function that `module:function` names, and telling its failures from ours.

The working directory is searched too, since the function is often in a file beside the scenario or the test.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normstab.errors import NormstabError, near

__all__ = ["load_function", "users_code"]


def load_function(path: str) -> Callable[..., Any]:
    """Return the callable that `package.module:name` names; the working directory is searched too.

    Raises NormstabError where there is none, with near names, and where the module fails, with the user's line.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise NormstabError(f"{path!r}: expected package.module:function, such as mypkg.models:build")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with users_code(f"{path!r} cannot be imported"):
            module = importlib.import_module(module_name)
    except NormstabError as error:
        missing = getattr(error.__cause__, "name", None) if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing and module_name.split(".")[0] == missing.split(".")[0]:
            raise NormstabError(
                f"{path!r}: no module named {missing!r}; run from its directory or install it"
            ) from error
        raise
    function = getattr(module, name, None)
    if not callable(function):
        public = [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))]
        raise NormstabError(
            f"{path!r}: {module_name} has no callable {name!r}{near(name, public)} ({', '.join(public[:12])})"
        )
    found: Callable[..., Any] = function
    return found


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turn any failure inside into a NormstabError that says `what`, the failure and the user's line."""
    try:
        yield
    except NormstabError:
        raise
    except (Exception, SystemExit) as error:
        frame = _users_frame(error)
        where = f"\n  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" if frame is not None else ""
        raise NormstabError(f"{what}: {type(error).__name__}: {error}{where}") from error


def _users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost frame outside installed libraries and normstab, else None."""
    ours = str(Path(__file__).parents[2])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<")) and "site-packages" not in frame.filename
    ]
    return frames[-1] if frames and frames[-1].filename not in (importlib.__file__, traceback.__file__) else None
