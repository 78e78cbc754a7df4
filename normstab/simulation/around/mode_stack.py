"""Taking one of our modes off torch's stack wherever it lies: torch's own exit takes off whatever is on top.

A mode that is over and still lies on the stack of a thread we are not in passes everything through until then.
"""

from __future__ import annotations

from normstab.errors import NormstabError
from normstab.torch_private import TorchDispatchMode, mode_stack

__all__ = ["check_order", "close_mode", "drop_ended_modes"]


def close_mode(mode: TorchDispatchMode) -> bool:
    """Take `mode` off this thread's stack, and return whether it was the innermost one there.

    The modes above it, opened later and still open, are taken off and put back as torch does it, so that the flags
    which torch keeps beside its stack stay right.
    """
    modes = mode_stack()
    if mode not in modes:
        return False
    above = modes[modes.index(mode) + 1 :]
    for other in reversed(above):
        TorchDispatchMode.__exit__(other, None, None, None)
    mode.__exit__(None, None, None)
    for other in above:
        TorchDispatchMode.__enter__(other)
    return not above


def drop_ended_modes() -> None:
    """Take those modes off this thread's stack whose contexts were closed in another thread."""
    for mode in mode_stack():
        if getattr(mode, "is_over", False):
            close_mode(mode)


def check_order(is_in_order: bool, name: str) -> None:
    """Raise NormstabError where a context was not closed as the innermost one in the thread that opened it."""
    if not is_in_order:
        raise NormstabError(
            f"{name}: closed out of order: a context that was opened inside it is still open, or this is another "
            "thread; what ran since then may have been computed in the arithmetic of the other context. "
            "Close contexts innermost first, and keep them out of tasks and generators that interleave"
        )
