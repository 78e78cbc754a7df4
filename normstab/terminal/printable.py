"""What a terminal, or a pipe, can be given: no text steers it, none fails on its encoding, and it may close early."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TextIO

from normstab.report.escaping import visible

__all__ = ["printable", "silence"]


def printable(text: str, stream: TextIO) -> str:
    """Return `text` with control characters, and what `stream` cannot encode, spelled as JSON spells them."""
    shown = visible(text)
    try:
        shown.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return "".join(letter if letter.isascii() else json.dumps(letter)[1:-1] for letter in shown)
    return shown


def silence(stream: TextIO) -> None:
    """Lead a stream that takes no more to nowhere: Python would complain of what is left in it on exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
