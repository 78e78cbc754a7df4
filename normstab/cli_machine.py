"""The commands that ask about this machine: their arguments and what they print; `cli` lists them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from normstab.terminal import options
from normstab.terminal.exit_codes import FAILED

__all__ = ["doctor", "selftest"]


def doctor(context: typer.Context, as_json: options.Json = False) -> None:
    """Show versions, device, kernels in use and data sets found."""
    from normstab.terminal.plain import facts_text
    from normstab.testing.doctor import examine

    facts = examine()
    context.obj.give(facts if as_json else "\n".join(facts_text(name, found) for name, found in facts.items()))


def selftest(context: typer.Context, device: options.Device = "cpu", as_json: options.Json = False) -> None:
    """Check, on this machine and device, that the numbers are those of every machine; under a minute."""
    from normstab.terminal.plain import table_text
    from normstab.testing.selftest import run_selftest

    voice: Any = context.obj
    checks = run_selftest(device, progress=lambda check: voice.say(f"checked {check.subject}"))
    rows = [{**asdict(check), "passed": check.passed} for check in checks]
    voice.give(rows if as_json else table_text(rows))
    failed = [check.subject for check in checks if not check.passed]
    if failed:
        voice.complain(f"normstab: {len(failed)} checks failed; report them with the output of `normstab doctor`")
        raise typer.Exit(FAILED)
