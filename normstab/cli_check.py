"""The command that asks about a model of one's own: its arguments and what it prints; `cli` lists it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from normstab.terminal import options
from normstab.terminal.exit_codes import code_of_verdict

__all__ = ["check"]


def check(
    context: typer.Context,
    factory: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="Makes a module (or it, batch, loss).")],
    inputs: options.Inputs = None,
    precision: Annotated[str, typer.Option(help="Such as fp16, bf16/stochastic, 'fp16;square=fp32'.")] = "fp16",
    norm: Annotated[str | None, typer.Option(help="Swap the norm layers to this one first.")] = None,
    rules: options.Rules = None,
    loss: Annotated[
        str, typer.Option(help="default (output.loss, else mean square), sum or cross-entropy.")
    ] = "default",
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.01,
    steps: Annotated[int, typer.Option("--steps", "--train-steps", min=0, help="Train on the input so long too.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the factory, the inputs and stochastic rounding.")] = 0,
    allow: Annotated[Literal["DEGRADED"] | None, typer.Option(help="Exit 0 for this verdict too.")] = None,
    strict: options.Strict = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Worst sites, headroom, forecast of formats.")] = False,
    form: Annotated[
        Literal["text", "json", "junit"], typer.Option("--format", help="Of the answer on stdout.")
    ] = "text",
    as_json: options.Json = False,
) -> None:
    """Find out whether a model of your own survives a precision, on one input."""
    from normstab.experiment.network.users_code import load_function
    from normstab.testing.check_input import build, parse_inputs, parse_rules

    specs, ruled = parse_inputs(inputs or ()), parse_rules(rules or ())
    built = build(load_function(factory), seed)
    from normstab.testing.check import check as check_built
    from normstab.testing.check_run import Training
    from normstab.testing.check_text import answer_json, answer_junit, answer_text

    how = Training(optimizer, lr, steps, loss)
    answer = check_built(built, inputs=specs, precision=precision, norm=norm, seed=seed, rules=ruled, training=how)
    if as_json or form == "json":
        context.obj.give(answer_json(answer))
    else:
        context.obj.give(
            answer_junit(answer, factory) if form == "junit" else answer_text(answer, verbose=verbose).rstrip()
        )
    raise typer.Exit(code_of_verdict(answer.verdict, allow=allow, strict=strict))
