"""`normstab` and `python -m normstab`: run a command, and end every failure with words and an exit code.

Nothing is imported up here that takes time: a Ctrl-C that comes while a command loads ends in words, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from normstab.terminal.exit_codes import INTERRUPTED

if TYPE_CHECKING:
    from types import FrameType

    from normstab.cli import Voice

__all__ = ["main"]

LONGEST_MESSAGE = 20_000  # characters; a scenario may have many problems at once
STOPPED = "normstab: interrupted; the same command goes on from what is finished"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; without `arguments`, as the program that this process is."""
    if arguments is not None:
        return _answered(list(arguments))
    _Interrupts.take()
    try:
        code = _answered(sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the code is decided; a late Ctrl-C would only take it away
    except KeyboardInterrupt:
        from normstab.cli import Voice

        code = INTERRUPTED
        Voice().complain(STOPPED)
    if code == INTERRUPTED:
        # An interrupt within an import makes Python end itself by the signal in the end, whatever code it is given.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(INTERRUPTED)
    return code


class _Interrupts:
    """What this process does about Ctrl-C: the first stops the command, the next two wait for that, a fourth kills."""

    PATIENCE = 3

    def __init__(self) -> None:
        self.count = 0

    @classmethod
    def take(cls) -> None:
        """Handle the signal from now on, unless a shell has us ignore it, as it has its background jobs."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, cls())

    @staticmethod
    def have_arrived() -> bool:
        """Whether there was one."""
        handler = signal.getsignal(signal.SIGINT)
        return isinstance(handler, _Interrupts) and handler.count > 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            raise KeyboardInterrupt
        if self.count > self.PATIENCE:
            os._exit(INTERRUPTED)  # workers end with their parent


def _answered(given: list[str]) -> int:
    """Run a command and return its exit code."""
    import typer

    from normstab.cli import GLOBAL_OPTIONS, Voice, app
    from normstab.terminal.exit_codes import INTERNAL
    from normstab.terminal.printable import silence

    voice = Voice()
    command = typer.main.get_command(app)
    given.sort(key=lambda argument: argument not in GLOBAL_OPTIONS)  # a stable sort: these belong before the command
    try:
        code = int(command.main(given, prog_name="normstab", standalone_mode=False, obj=voice) or 0)
    except typer.Abort:
        code = INTERRUPTED
    except SystemExit:  # the parser's answer to a closed pipe: the reader of a help has seen enough
        silence(sys.stdout)
        code = 0 if {"--help", "-h", "--version"} & set(given) else INTERNAL
    except Exception as error:
        # A library may swallow a Ctrl-C while it is loaded, and then cannot be loaded any more.
        was_loading = isinstance(error, ImportError) and _Interrupts.have_arrived()
        code = INTERRUPTED if was_loading else _explain(error, voice)
    if code == INTERRUPTED:
        voice.complain(STOPPED)
    return code


def _explain(error: Exception, voice: Voice) -> int:
    """Say what went wrong and what to do next, and return the exit code that stands for it."""
    from normstab.errors import NormstabError
    from normstab.report.escaping import bounded
    from normstab.terminal.exit_codes import BAD_INPUT, INTERNAL

    show_usage = getattr(error, "show", None)
    if show_usage is not None:  # a misuse of the command line: the parser has its own message
        with contextlib.suppress(OSError):
            try:
                show_usage()
            except UnicodeEncodeError:  # its text has an argument in it, as it was given
                voice.complain(f"normstab: {bounded(str(getattr(error, 'message', error)))}")
        return BAD_INPUT
    if isinstance(error, OSError) and error.filename is not None:  # a path of the user's, wherever it is met
        error = NormstabError(f"{bounded(str(error.filename), 300)}: {error.strerror or error}")
    known = isinstance(error, NormstabError)
    if voice.debug:
        voice.complain(traceback.format_exc())
    elif known:
        voice.complain(f"normstab: {bounded(str(error), LONGEST_MESSAGE)}")
    else:
        what = bounded(repr(error))
        voice.complain(f"normstab: internal error: {what}; --debug shows the traceback, please report it")
    return BAD_INPUT if known else INTERNAL


if __name__ == "__main__":
    sys.exit(main())
