"""One run per directory: a lock that the run and its workers share, and that dies with them.

It keeps a second run, or one started right after `kill -9`, from writing beside a worker that is still alive.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from normstab.errors import NormstabError, RecordError
from normstab.experiment.records.files import open_plain_file

__all__ = ["hold_shared", "lock_directory"]

LONGEST_WAIT_S = 10.0


def lock_directory(directory: Path, *, is_led: bool = False) -> IO[bytes]:
    """Return the held lock of `directory`; close it to release. Raises NormstabError where another run holds it.

    Orphaned workers end by themselves within moments: they are waited for. Processes of torchrun, each of which would
    run every cell, are refused, unless one leads the others (`is_led`).
    """
    if not is_led:
        refuse_torchrun(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open_plain_file(directory / ".lock", "wb")
    except OSError as error:
        raise RecordError(
            f"{directory}/.lock: cannot write: {error.strerror or error}; choose another folder with --out"
        ) from error
    deadline = time.monotonic() + LONGEST_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                message = "another run is writing to it; wait for it to end, or choose another --out"
                raise NormstabError(f"{directory}: {message}") from None
            time.sleep(0.05)
        else:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file


def refuse_torchrun(directory: Path) -> None:
    """Raise in one of several processes that torchrun started, of which none leads the others."""
    size = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and size != "1":
        raise NormstabError(
            f"{directory}: torchrun started {size} processes, and each would run every cell; of the commands `run` "
            "alone trains cells in several processes. Start this one without torchrun: --jobs N runs N cells at a time"
        )


def hold_shared(directory: Path) -> IO[bytes]:
    """Return the lock of `directory`, shared with the run that started this worker."""
    file = open_plain_file(directory / ".lock", "wb")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file
