"""`normstab` and `python -m normstab`: run a command, and end every failure with words and an exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Sequence

import typer

from normstab.cli import GLOBAL_OPTIONS, Voice, app
from normstab.errors import NormstabError
from normstab.report.escaping import bounded
from normstab.terminal.exit_codes import BAD_INPUT, INTERNAL, INTERRUPTED
from normstab.terminal.printable import silence

__all__ = ["main"]

LONGEST_MESSAGE = 20_000  # characters; a scenario may have many problems at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    voice = Voice()
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    given.sort(key=lambda argument: argument not in GLOBAL_OPTIONS)  # a stable sort: these belong before the command
    try:
        code = int(command.main(given, prog_name="normstab", standalone_mode=False, obj=voice) or 0)
    except typer.Abort:
        code = INTERRUPTED
    except SystemExit:  # the parser's answer to a closed pipe: the reader of a help has seen enough
        silence(sys.stdout)
        code = 0 if {"--help", "-h", "--version"} & set(given) else INTERNAL
    except Exception as error:
        code = _explain(error, voice)
    if code == INTERRUPTED:
        if arguments is None:  # this process ends here: a further Ctrl-C would only take its exit code away
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        voice.complain("normstab: interrupted; the same command goes on from what is finished")
    return code


def _explain(error: Exception, voice: Voice) -> int:
    """Say what went wrong and what to do next, and return the exit code that stands for it."""
    show_usage = getattr(error, "show", None)
    if show_usage is not None:  # a misuse of the command line: the parser has its own message
        with contextlib.suppress(OSError):
            show_usage()
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
