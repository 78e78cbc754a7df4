"""The backend of torch.compile that is called `normstab`: graphs of aten operations which a simulation looks into.

Outside a simulation a graph is plain torch. Importing this does not load the compiler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx

from normstab.errors import NormstabError, lookup
from normstab.simulation.code_lines import LIBRARIES
from normstab.simulation.compiled.graph_run import CompiledGraph, Origin
from normstab.simulation.compiled.graph_steps import ModuleOrigin, line_of, origin_of
from normstab.simulation.ignored_casts import WIDE, wanted
from normstab.torch_private import aot_backend, decompositions_like

__all__ = ["DECOMPOSITIONS", "check_decompositions", "normstab_backend"]

# Which operations of the graph are taken apart before it is run.
DECOMPOSITIONS: dict[str, Callable[[], Any]] = {
    "none": dict,
    "core": partial(decompositions_like, "core"),
    "inductor": partial(decompositions_like, "inductor"),
}


def normstab_backend(graph: fx.GraphModule, inputs: Sequence[Any], **how: Any) -> Callable[..., Any]:
    """Return `graph`, which torch.compile has read from a frame, lowered to aten operations forward and backward.

    `options={"decompositions": "core"}` takes operations apart into torch's core set, "inductor" as that compiler does;
    "none" (default) leaves them as eager code calls them. Raises NormstabError for another option, and for a `mode`, of
    which there is none.
    """
    decompositions = _decompositions(how)
    notes = inline_checkpoints(graph)
    origin = Origin(tuple(_casts(graph)), (*notes, *_notes_of_end(graph)))

    def compile_forward(lowered: fx.GraphModule, _: Any) -> CompiledGraph:
        return CompiledGraph(lowered, origin, is_backward=False)

    def compile_backward(lowered: fx.GraphModule, _: Any) -> CompiledGraph:
        return CompiledGraph(lowered, origin, is_backward=True)

    backend = aot_backend(
        fw_compiler=compile_forward,
        bw_compiler=compile_backward,
        inference_compiler=compile_forward,
        decompositions=decompositions,
        keep_inference_input_mutations=True,
    )
    found: Callable[..., Any] = backend(graph, inputs)
    return found


def _decompositions(how: Mapping[str, Any]) -> Any:
    """Return the decompositions that the arguments of torch.compile ask for."""
    options = dict(how.get("options") or {})
    name = options.pop("decompositions", "none")
    unknown = [*(f"mode={mode!r}" for mode in [how.get("mode")] if mode), *(f"options[{key!r}]" for key in options)]
    if unknown:
        raise NormstabError(f"torch.compile: {unknown[0]}: the backend normstab has options['decompositions'] alone")
    check_decompositions(name)
    return DECOMPOSITIONS[name]()


def check_decompositions(name: str) -> None:
    """Raise NormstabError for a name that no set of decompositions has."""
    lookup(DECOMPOSITIONS, name, what="option decompositions of torch.compile")


def inline_checkpoints(graph: fx.GraphModule) -> list[str]:
    """Put the bodies of activation checkpoints into the graph itself, where they are computed once; return notes."""
    checkpoints = [node for node in graph.graph.nodes if getattr(node.target, "__name__", "") == CHECKPOINT]
    for node in checkpoints:
        body = getattr(graph, str(node.args[0].target))
        inputs = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
        with graph.graph.inserting_before(node):
            outputs: Any = graph.graph.graph_copy(body.graph, dict(zip(inputs, node.args[1:], strict=True)))
        for chosen in list(node.users):
            chosen.replace_all_uses_with(outputs[chosen.args[1]])
            graph.graph.erase_node(chosen)
        graph.graph.erase_node(node)
    graph.recompile()
    return [KEPT] if checkpoints else []


CHECKPOINT = "tag_activation_checkpoint"
KEPT = "the checkpoints inside a compiled graph keep what they compute: nothing is computed twice"


def _casts(graph: fx.GraphModule) -> Iterator[tuple[ModuleOrigin, str]]:
    """Yield module and name of every cast to a wider type of what is a float32 tensor already."""
    for node in graph.graph.nodes:
        function = getattr(Tensor, node.target, None) if node.op == "call_method" else node.target
        if node.op not in ("call_method", "call_function") or function is None:
            continue
        args = [_example(x) for x in node.args]
        named = {name: _example(x) for name, x in node.kwargs.items()}
        of = args[0] if args else None
        if isinstance(of, Tensor) and of.dtype in WIDE and wanted(function, tuple(args), named) in WIDE:
            yield origin_of(node), getattr(function, "__name__", "to")


def _example(x: Any) -> Any:
    """Return the tensor without numbers by which the compiler knows a node's value."""
    return x.meta.get("example_value") if isinstance(x, fx.Node) else x


def _notes_of_end(graph: fx.GraphModule) -> list[str]:
    """Return in words where and why the compiler broke the graph off, if it did."""
    reason = getattr(graph, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return []
    frames = [f"{frame.filename}:{frame.lineno}" for frame in reason.user_stack or ()]
    lines = [*map(line_of, graph.graph.nodes), *frames]
    where = [f" at {line}" for line in lines if line and not line.startswith(LIBRARIES)]
    ours = OWN_REASON.search(str(reason.reason))
    why = ours.group() if ours else str(reason.reason).strip().partition("\n")[0]
    return [f"graph break{where[-1] if where else ''}: {why}"]


OWN_REASON = re.compile(r"normstab: [^'\n]*")  # what our own code says where it ends a graph
