"""The options and arguments that several commands of the command line share, each with its help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from normstab import __version__

if TYPE_CHECKING:
    from normstab.assess.verdicts import Verdict
    from normstab.search.tried_remedies import Effort

__all__ = [
    "AllowImport",
    "Device",
    "Files",
    "Force",
    "Form",
    "Gates",
    "Inputs",
    "Json",
    "Overrides",
    "Rules",
    "Smoke",
    "Strict",
    "TryRemedies",
    "Version",
    "Wide",
    "effort_of",
    "tell_version",
    "verdicts_of",
]


def tell_version(is_wanted: bool) -> None:
    """End the command with the version on stdout."""
    if is_wanted:
        typer.echo(f"normstab {__version__}")
        raise typer.Exit


# One line each; the help is their documentation.
Files = Annotated[list[str], typer.Argument(help="Scenario files, directories of them, or names of shipped ones.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="The scenario's smoke profile, and only its smoke expectations.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", metavar="SHAPE", help="[name=]SHAPE[:DTYPE[:LOW..HIGH]].")]
Gates = Annotated[list[str] | None, typer.Option(metavar="METRIC:LIMIT", help="Gate on B minus A: accuracy:-1pp.")]
Rules = Annotated[list[str] | None, typer.Option(metavar="MODULE=PRECISION", help="A module's own precision.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where tensors live.")]
AllowImport = Annotated[bool, typer.Option("--allow-import", help="Allow a scenario's module:function names.")]
Strict = Annotated[bool, typer.Option("--strict", help="Inconclusive fails too.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a report of more finished cells too.")]
TryRemedies = Annotated[
    str,
    typer.Option(
        "--try-remedies", metavar="auto|no|STEPS", help="Try remedies; auto: as many as add a tenth of the steps."
    ),
]
Version = Annotated[bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Tell the version.")]
Wide = Annotated[bool, typer.Option("--wide", help="Every column of the table, wider than the terminal or not.")]
Form = Annotated[
    Literal["md", "json", "junit", "html"],
    typer.Option("--format", help="md and html rewrite files in DIR, the others print."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]


def effort_of(text: str) -> Effort | None:
    """Return how long remedies are tried, None for `no`; raise NormstabError for what is not auto, no or steps."""
    from normstab.errors import NormstabError
    from normstab.search.tried_remedies import Effort

    if text == "no":
        return None
    if text == "auto":
        return Effort()
    if not text.isdecimal() or not 1 <= int(text) < 10**9:
        raise NormstabError(f"--try-remedies {text!r}: expected auto, no, or a number of steps")
    return Effort(int(text), None)


def verdicts_of(names: Sequence[str] | None) -> tuple[Verdict, ...]:
    """Return the verdicts that `--allow` names, in any case; raise NormstabError for a name that none has."""
    from normstab.assess.verdicts import Verdict
    from normstab.errors import lookup

    verdicts = {verdict.name: verdict for verdict in Verdict}
    return tuple(lookup(verdicts, name.upper(), what="verdict (--allow)") for name in names or ())
