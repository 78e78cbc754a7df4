"""The process that imported normstab, which its forked children are not. Imported with the package; needs nothing."""

from __future__ import annotations

import os

__all__ = ["is_forked"]

PROCESS = os.getpid()


def is_forked() -> bool:
    """Whether this process was forked after the import: threads that there were before do not exist in it."""
    return os.getpid() != PROCESS
