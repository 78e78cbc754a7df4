"""A graph of the compiler as a list of steps: what is called, on which values, and which module ran it.

    graph   primals_1, primals_2 -> t = aten.t(primals_2) -> mm = aten.mm(primals_1, t) -> output
    values  [primals_1, primals_2, t, mm, constants ...]      a step reads some of them and writes one

Nothing here runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from operator import getitem, itemgetter
from typing import Any, NamedTuple

import torch
from torch import fx

from normstab.simulation.aten.overloads import Plan, plan_of
from normstab.simulation.code_lines import LIBRARIES
from normstab.torch_private import schema_of

__all__ = ["OVERLOAD", "ModuleOrigin", "Program", "Step", "line_of", "origin_of", "program_of"]

Values = list[Any]
Reader = Callable[[Values], Any]
# The functional forms of batch norms return their running statistics anew. A simulation writes them where eager code
# does, and hands the statistics on: the operation that is run instead, and the arguments that follow its results.
IN_PLACE = {
    "aten::_native_batch_norm_legit_functional": (torch.ops.aten.native_batch_norm.default, (3, 4)),
    "aten::_batch_norm_with_update_functional": (torch.ops.aten._batch_norm_with_update.default, (3, 4)),
}
OVERLOAD = type(torch.ops.aten.add.Tensor)  # the type of torch's operations
FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class ModuleOrigin(NamedTuple):
    """The module that ran a node: its path from the module whose frame was compiled, its class, and its identity."""

    path: str
    kind: Any
    id: int


UNKNOWN = ModuleOrigin("", None, 0)  # the module whose frame was compiled
STACKED = "___stack"  # how the compiler names what a frame had on its stack where a graph was broken off


class Step(NamedTuple):
    """One call of a graph: `function` of the arguments that `read` and `read_named` find among the values.

    `plan` says what a simulation does with it; None: it is no operation of torch (a choice from a tuple, arithmetic of
    sizes). What runs graphs of its own (`cond`) is an operation that is not understood. `module` is the module that ran
    it, or, in a backward graph, whose operation it is the gradient of; `line` is the user's. `also` are arguments that
    follow its results. The values at `dead` are not read again.
    """

    function: Any
    plan: Plan | None
    read: Reader
    read_named: Reader | None
    at: int
    dead: tuple[int, ...]
    module: ModuleOrigin
    line: str
    also: tuple[int, ...] = ()


class Program(NamedTuple):
    """The steps of a graph, the values that no step writes (after its inputs and results), and its outputs."""

    steps: list[Step]
    results: int
    constants: list[Any]
    outputs: Reader


def program_of(graph: fx.GraphModule) -> Program:
    """Return the program of a graph of aten operations."""
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    calls = [node for node in nodes if node.op == "call_function"]
    slots = _Slots([*inputs, *calls])
    for node in nodes:
        if node.op == "get_attr":
            slots.keep(node, _attribute(graph, str(node.target)))
    outputs = slots.reader(nodes[-1].args[0])
    dead = _last_uses(calls, slots, {slots.of(node) for node in nodes[-1].all_input_nodes})
    steps = [_step(node, slots, dead[node], module) for node, module in zip(calls, _modules(calls), strict=True)]
    return Program(steps, len(calls), slots.constants, outputs)


class _Slots:
    """Where each node's value lies in the list of values, and the constants behind them."""

    def __init__(self, nodes: list[fx.Node]) -> None:
        self._at = {node: i for i, node in enumerate(nodes)}
        self._first_constant = len(nodes)
        self.constants: list[Any] = []

    def of(self, node: fx.Node) -> int:
        """Return where a node's value lies."""
        return self._at[node]

    def keep(self, node: fx.Node | None, value: Any) -> int:
        """Add a constant, the value of `node`, and return where it lies."""
        self.constants.append(value)
        at = self._first_constant + len(self.constants) - 1
        if node is not None:
            self._at[node] = at
        return at

    def reader(self, tree: Any) -> Reader:
        """Return what finds a nested structure of nodes and constants among the values."""
        if isinstance(tree, fx.Node):
            return itemgetter(self.of(tree))
        if isinstance(tree, list | tuple) and _has_nodes(tree):
            return self.sequence(tree, list if isinstance(tree, list) else tuple)
        if isinstance(tree, slice | dict) and _has_nodes(tree):
            return _of_parts(tree, self.reader)
        return itemgetter(self.keep(None, list(tree) if isinstance(tree, list) else tree))

    def sequence(self, tree: Any, kind: Callable[[Any], Any]) -> Reader:
        """Return what finds the elements of a sequence: of one without nested nodes by one call."""
        if kind is tuple and len(tree) > 1 and not any(not isinstance(x, fx.Node) and _has_nodes(x) for x in tree):
            places = [self.of(x) if isinstance(x, fx.Node) else self.keep(None, x) for x in tree]
            return itemgetter(*places)
        readers = [self.reader(x) for x in tree]
        return lambda values: kind([read(values) for read in readers])


def _of_parts(tree: Any, reader: Callable[[Any], Reader]) -> Reader:
    """Return what finds a slice, or a dictionary, of nodes and constants."""
    if isinstance(tree, slice):
        start, stop, step = reader(tree.start), reader(tree.stop), reader(tree.step)
        return lambda values: slice(start(values), stop(values), step(values))
    readers = {name: reader(x) for name, x in tree.items()}
    return lambda values: {name: read(values) for name, read in readers.items()}


def _has_nodes(tree: Any) -> bool:
    """Whether a node is anywhere in a structure."""
    if isinstance(tree, slice):
        return any(isinstance(x, fx.Node) for x in (tree.start, tree.stop, tree.step))
    if isinstance(tree, dict):
        return any(_has_nodes(x) for x in tree.values())
    return isinstance(tree, fx.Node) or (isinstance(tree, list | tuple) and any(map(_has_nodes, tree)))


def _step(node: fx.Node, slots: _Slots, dead: tuple[int, ...], module: ModuleOrigin) -> Step:
    """Return the step of a call."""
    function: Any = node.target
    also: tuple[int, ...] = ()
    plan = None
    if _moves_statistics(node):
        function = _first
    elif isinstance(function, OVERLOAD):
        function, also = IN_PLACE.get(function.name(), (function, ()))
        plan = plan_of(function)
    elif any(kind.__name__ == "HigherOrderOperator" for kind in type(function).__mro__):
        plan = Plan("unknown", str(function), function)
    named = None
    if node.kwargs:
        named = slots.reader(dict(node.kwargs))
    read = slots.sequence(node.args, tuple)
    return Step(function, plan, read, named, slots.of(node), dead, module, line_of(node), also)


def _moves_statistics(node: Any) -> bool:
    """Whether a node casts running statistics, which a norm has returned, to the dtype in which they are kept."""
    if node.target is not torch.ops.aten._to_copy.default or node.args[0].target is not getitem:
        return False
    norm, place = node.args[0].args
    if not isinstance(norm.target, OVERLOAD) or norm.target.name() not in IN_PLACE:
        return False
    return bool(place >= len(schema_of(norm.target).returns) - 2)


def _first(x: Any, **_: Any) -> Any:
    """Return the statistics, which are written where they are."""
    return x


def _modules(calls: list[fx.Node]) -> Iterator[ModuleOrigin]:
    """Yield the module of each call.

    A sum of gradients that reach a tensor by several ways was ordered by no module: it belongs, as in eager code, to
    the one whose gradient came last.
    """
    found: dict[fx.Node, ModuleOrigin] = {}
    for node in calls:
        found[node] = origin_of(node)
        is_gradient = bool(node.meta.get("autograd_backward"))
        if is_gradient and node.target is torch.ops.aten.add.Tensor and found[node] is UNKNOWN:
            found[node] = next((found[x] for x in reversed(found) if x in node.args), UNKNOWN)
        yield found[node]


def _last_uses(calls: list[fx.Node], slots: _Slots, kept: set[int]) -> dict[fx.Node, tuple[int, ...]]:
    """Return, by call, the values that no later call and no output reads, its own among them."""
    found: dict[fx.Node, tuple[int, ...]] = {}
    seen = set(kept)
    for node in reversed(calls):
        read = {slots.of(x) for x in node.all_input_nodes if x.op != "get_attr"} | {slots.of(node)}
        found[node] = tuple(sorted(read - seen))
        seen |= read
    return found


def _attribute(graph: fx.GraphModule, path: str) -> Any:
    """Return a constant of a graph, by its dotted path."""
    found: Any = graph
    for name in path.split("."):
        found = getattr(found, name)
    return found


def origin_of(node: fx.Node) -> ModuleOrigin:
    """Return what the compiler says of the module that ran a node, or of the one whose gradient it is.

    The compiler writes `L['self'].layers.0`; what stands before the first point is the frame's name for its own module,
    or, after a graph was broken off, for a module on its stack.
    """
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return UNKNOWN
    key, (written, kind) = [*stack.items()][-1]
    names = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", str(written)).split(".")
    names = [name for name in names if name not in ("_modules", "_orig_mod")]
    is_local = names[0] in ("L", "G")
    root, path = (names[1], names[2:]) if is_local and len(names) > 1 else ("", names)
    number = str(key).partition("@")[0]
    return ModuleOrigin(
        "" if root.startswith(STACKED) else ".".join(path), kind, int(number) if number.isdigit() else 0
    )


def line_of(node: fx.Node) -> str:
    """Return the user's line that made a node, "file.py:12", or ""."""
    found = [match.groups() for match in FRAME.finditer(str(node.meta.get("stack_trace") or ""))]
    lines = [f"{file}:{line}" for file, line in found if not file.startswith(LIBRARIES)]
    return lines[-1] if lines else ""
