"""`simulate`: run any torch code around a model as if torch had the precision's number format.

It puts hooks on the modules, holds the parameters and enters the mode; on the way out everything is as it
was. What is done to an operation is in `mode`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from normstab.errors import NormstabError
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Ledger, Site
from normstab.numerics.precision import Precision
from normstab.numerics.rules import Rules, precision_rules
from normstab.numerics.spelling.arguments import check_instance, check_optional
from normstab.numerics.spelling.cautions import cautions
from normstab.simulation.around.dispatch_mode import check_order
from normstab.simulation.around.places import Observers
from normstab.simulation.around.simulated_machine import Arithmetics
from normstab.simulation.aten.operation import Operation
from normstab.simulation.full_float32 import full_float32
from normstab.simulation.loss_scale import LossScaler
from normstab.simulation.ranks.team import Team, network_of
from normstab.simulation.run import Run
from normstab.simulation.simulated_session import Simulation

__all__ = ["simulate"]

Observer = Callable[[Site, Tensor], None]
Watcher = Callable[[Site, Operation, Any], None]


@contextmanager
def simulate(
    model: nn.Module,
    precision: str | Precision | AnyFormat,
    *,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    rules: Mapping[str, str | Precision | AnyFormat] | None = None,
    loss_scale: float | str | None = None,
    ledger: Ledger | None = None,
    master_weights: bool | None = None,
    expand: bool = False,
    losses: bool = False,
    observer: Observer | None = None,
    watcher: Watcher | None = None,
) -> Iterator[Run]:
    """Give every operation inside the `with` block to an Arithmetic of `precision`; yield the Run.

    Forward, backward and, with `optimizer`, its steps are rounded and counted at `module.operation[direction]`.
    `rules` maps module names, `re:` patterns, `(outside)`, `_default`, `MODULE::OPERATION` (of torch's name, or a site
    inside a norm) or `op:OPERATION` to other precisions; `master` and `autocast` are `precision`'s. `seed` keys
    stochastic rounding; torch's generators are not touched. With `master_weights` (None: as the precision's `master`
    says) the network uses rounded copies of parameters; without, they are rounded in place at entry and after each
    update, the one lasting change. `loss_scale` configures `run.scaler`. `ledger` continues an existing one. `losses`
    counts `absorbed` and `cancelled` too, slowly. `expand` takes softmax, losses and attention apart, else wide inside.
    `observer` is shown each rounded result, in order, `watcher` each operation with all its results. Processes that
    hold a DistributedDataParallel or shards are simulated together, their ledgers joined at the end.

    Only this thread, and its backward passes, are simulated. Raises NormstabError for a precision, rule or
    loss scale that does not exist, and where the context is not closed innermost first by the thread that opened
    it: whatever happens, nothing is rounded after its end. A result that is not finite never raises.
    """
    check_arguments(model, rules, ledger, losses=losses)
    chosen = simulated_rules(rules, precision)
    arithmetics = Arithmetics(chosen, ledger if ledger is not None else Ledger(losses=losses), seed)
    run = Run(arithmetics.of(chosen.default), LossScaler(loss_scale), notes=notes_of(chosen))
    masters = chosen.default.master == "on" if master_weights is None else master_weights
    session = Simulation(network := network_of(model), run, chosen, arithmetics, optimizer, master_weights=masters)
    with Team(model, run, chosen) as team:
        with full_float32(), ExitStack() as stack:
            session.simulate(stack, expand=expand, several=network is not model, observers=shown_to(observer, watcher))
            team.attach(session, stack)
            yield run
        check_order(session.is_in_order, "simulate")
        if arithmetics.rules is not None:
            arithmetics.rules.check_met()


def shown_to(observer: Observer | None, watcher: Watcher | None) -> Observers | None:
    """Return who is shown what, or None where nobody looks."""
    return None if observer is None and watcher is None else Observers(observer, watcher)


def check_arguments(model: object, rules: object, ledger: Ledger | None, *, losses: bool) -> None:
    """Raise for what is no model, no rules or no ledger, and for a ledger that does not count what is asked for."""
    check_instance(model, nn.Module, "simulate: model", "a torch.nn.Module")
    check_optional(rules, Mapping, "simulate: rules", "a mapping from names to precisions")
    check_optional(ledger, Ledger, "simulate: ledger", "a normstab.Ledger")
    if ledger is not None and losses and not ledger.counts_losses:
        raise NormstabError("simulate: the ledger given counts no losses; make it with Ledger(losses=True)")


def simulated_rules(
    rules: Mapping[str, str | Precision | AnyFormat] | None, precision: str | Precision | AnyFormat
) -> Rules[Precision]:
    """Return the precisions by rule; raise for the first that asks for what is not simulated, not to pass over it."""
    chosen = precision_rules(rules, precision)
    for key, ruled in chosen.by_key.items():
        if ruled.autocast not in ("none", chosen.default.autocast):
            raise NormstabError(f"rules: {key!r}: {ruled}: autocast is the whole network's, not a rule's")
    return chosen


def notes_of(rules: Rules[Precision]) -> list[str]:
    """Return what to know of the precisions; a rule's `master` is not asked, for it is the optimizer's matter."""
    ours = rules.default.master
    others = {key: p.master for key, p in rules.by_key.items() if p.master != ours}
    masters = [f"rules: {key!r}: master={own} is not a rule's; it is {ours} for all" for key, own in others.items()]
    return [*cautions(rules.values()), *masters]
