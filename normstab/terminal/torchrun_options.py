"""`normstab run` in the processes that torchrun started: the first is the command, the others train with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from normstab.errors import NormstabError
from normstab.experiment.execution.torchrun import is_torchrun, launched

if TYPE_CHECKING:
    from normstab.experiment.execution.torchrun import Launch

__all__ = ["alone_or_first", "overrides_of"]


@contextmanager
def alone_or_first(voice: Any, *, jobs: int, executor: str, device: str) -> Iterator[Launch | None]:
    """Run the body in the first process of torchrun, which leads the others, or in the only one (None).

    The other processes train with the first until its body has ended, and end here. Raises NormstabError for what
    several processes cannot do.
    """
    if not is_torchrun():
        yield None
        return
    launch = launched()
    assert launch is not None
    with launch.ended_by_torchrun(voice.complain):
        if launch.rank > 0:
            launch.serve()
            raise typer.Exit(0)
        try:
            refuse_others(launch.size, jobs=jobs, executor=executor, device=device)
            yield launch
        finally:
            launch.tell(None)


def refuse_others(size: int, *, jobs: int, executor: str, device: str) -> None:
    """Raise for options that say who runs the cells, which torchrun has said already."""
    if jobs != 1:
        raise NormstabError(
            f"--jobs {jobs}: torchrun started {size} processes, which train one cell at a time; leave --jobs out"
        )
    if executor != "local":
        raise NormstabError(
            f"--executor {executor}: torchrun started {size} processes, which train the cells themselves; "
            "leave torchrun or --executor out"
        )
    if device != "cpu":
        raise NormstabError(
            f"--device {device}: the processes of torchrun train cells on CPUs (gloo); leave --device out, or train "
            "on a GPU in one process"
        )


def overrides_of(given: list[str] | None, launch: Launch | None) -> list[str]:
    """Return what is set on the command line, and by how many processes torchrun has a cell trained."""
    return [*(given or []), *([] if launch is None else [f"train.ranks={launch.size}"])]
