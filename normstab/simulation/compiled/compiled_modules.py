"""The compiled modules of a network in one simulation: which run their graphs, and why the others do not.

While such a module runs, the simulation's mode lets frames be compiled, and counts ignored casts by the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from normstab.simulation.around.compilation import inside_compiled, is_compiled
from normstab.simulation.around.mode import Emulation
from normstab.simulation.around.places import Place
from normstab.simulation.compiled.dynamo_backend import check_decompositions, normstab_backend
from normstab.simulation.ignored_casts import IgnoredCasts
from normstab.torch_private import backend_of, compiles_under_modes, function_mode, mode_stack, original_module

__all__ = ["CompiledModules", "compiled", "obstacle"]

ITS_NAME = "normstab"


def compiled(model: nn.Module, decompositions: str) -> nn.Module:
    """Return `model` as torch.compile makes it with the backend normstab and these decompositions."""
    check_decompositions(decompositions)
    options: dict[str, Any] = {"decompositions": decompositions}
    found: Any = torch.compile(model, backend=normstab_backend, options=options)
    return found  # type: ignore[no-any-return]


class CompiledModules:
    """Hooks on the modules whose graphs a simulation runs; each module is named with what it does not do.

    `obstacle` says why none of them may run its graphs, "" where nothing stands in the way.
    """

    def __init__(self, mode: Emulation, note: Callable[[str], None], obstacle: str) -> None:
        self._mode = mode
        self._note = note
        self._obstacle = obstacle

    def hook(self, model: nn.Module, places: dict[nn.Module, Place], stack: ExitStack) -> None:
        """Let frames be compiled in the modules of the backend normstab until `stack` is closed; name the others."""
        inside = inside_compiled(model)
        for module, place in places.items():
            if not is_compiled(module) or (module in inside and original_module(module) is not None):
                continue
            reason = self._obstacle or _reason(module)
            if reason:
                self._note(f"module {_called(place)} is torch.compile'd; it is run uncompiled here: {reason}")
            elif module not in inside:
                begin, end = self._hooks(place)
                stack.callback(module.register_forward_hook(end, always_call=True).remove)
                stack.callback(module.register_forward_pre_hook(begin).remove)

    def _hooks(self, place: Place) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return what is called before and after the forward of one module."""
        mode, open_ones = self._mode, []

        def begin(module: nn.Module, args: Any) -> None:
            modes = mode_stack()
            if mode.is_suspended or mode not in modes:
                return
            if modes[-1] is not mode or not all(isinstance(other, Emulation) for other in modes):
                self._note(f"module {_called(place)} is run uncompiled: another torch mode is open around it")
                return
            region = ExitStack()
            open_ones.append((region, mode.graphs))
            _let_compile(mode, region)
            _count_no_casts(region)

        def end(module: nn.Module, args: Any, output: Any) -> None:
            if not open_ones:
                return
            region, graphs = open_ones.pop()
            region.close()
            if output is not None and mode.graphs == graphs:
                self._note(f"module {_called(place)} is run uncompiled: the compiler made no graph of it")

        return begin, end


def _let_compile(mode: Emulation, region: ExitStack) -> None:
    """Enter the mode anew as one that lets frames be compiled: torch notes at its entrance whether it does."""
    mode.__exit__(None, None, None)
    mode.compiles = True
    mode.__enter__()

    def leave() -> None:
        modes = mode_stack()
        mode.compiles = False
        if modes and modes[-1] is mode:
            mode.__exit__(None, None, None)
            mode.__enter__()

    region.callback(leave)


def _count_no_casts(region: ExitStack) -> None:
    """Take away the mode that counts ignored casts where torch is called: the compiler would read it into graphs."""
    counting = function_mode()
    if isinstance(counting, IgnoredCasts) and not counting.is_over:
        counting.__exit__(None, None, None)
        region.callback(counting.__enter__)


def _reason(module: nn.Module) -> str:
    """Return why the graphs of a module that is compiled are not run, or ""."""
    if original_module(module) is None:
        return 'it compiles its own call; torch.compile(module, backend="normstab") makes one that is run compiled'
    if not compiles_under_modes:
        return f"torch {torch.__version__} compiles nothing under a mode"
    name, function = backend_of(module)
    if function is normstab_backend or name == ITS_NAME:
        return ""
    return f'by the backend {name!r}, which hides its operations; backend="normstab" shows them'


def obstacle(crossing: Sequence[Place], *, autocast: bool, expand: bool, several: bool) -> str:
    """Return why no compiled module of a network runs its graphs, or "".

    `crossing` are the places inside compiled modules that see another dtype than those around them; `several` processes
    train the network.
    """
    if autocast:
        return "autocast is emulated where torch's dispatcher is, which a graph has passed"
    if expand:
        return "expand takes operations apart where they are called"
    if several:
        return "several processes train the network"
    return f"the rule of {_called(crossing[0])} casts what enters and leaves it" if crossing else ""


def _called(place: Place) -> str:
    """Return a module's name as notes write it."""
    return repr(place.name or "(root)")
