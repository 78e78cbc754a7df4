"""The one room for names that torch does not document: each is there in the tested torch, or something serves."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import normstab as ns
from normstab import torch_private
from normstab.errors import NormstabError
from normstab.trees import leaves, mapped, mapped_only

# Taken away from torch before normstab is imported.
OPTIONAL = [
    "torch._C._dynamo.eval_frame.set_eval_frame",
    "torch.overrides._get_current_function_mode",
    "torch._C._TorchDispatchModeKey",
    "torch._C._autograd._top_saved_tensors_default_hooks",
    "torch._C._current_graph_task_id",
    "torch._C._are_functorch_transforms_active",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._functorch.is_batchedtensor",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch._C._dispatch_has_kernel_for_dispatch_key",
    "torch._C._dispatch_get_registrations_for_dispatch_key",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch._C._get_tracing_state",
    "torch._C._len_torch_dispatch_stack",
    "torch.utils._python_dispatch.TorchDispatchMode.ignore_compile_internals",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_map",
    "torch.utils._pytree.tree_map_only",
]
# torch itself calls these by module, so they are hidden from normstab's lookup alone.
HIDDEN = f"""
import importlib, sys
import torch, torch.overrides, torch.utils._pytree
gone = {OPTIONAL!r}
import normstab.errors
source = importlib.util.find_spec("normstab.torch_private").loader.get_source("normstab.torch_private")
first = "    module, _, name = path.rpartition"
lacking = "    if path in GONE:\\n        MISSING.append(path)\\n        return otherwise\\n"
source = source.replace(first, lacking + first)
module = type(sys)("normstab.torch_private")
module.GONE = set(gone)
sys.modules["normstab.torch_private"] = module
exec(compile(source, "torch_private.py", "exec"), module.__dict__)
assert sorted(module.MISSING) == sorted(gone), sorted(set(gone) ^ set(module.MISSING))
import normstab
normstab.torch_private = module
"""
NETWORK = """
import normstab as ns
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
x = torch.randn(3, 4)
with ns.simulate(model, "uniform:fp16") as run:
    model(x).square().sum().backward()
print(sum(int(p.grad.view(torch.int32).sum()) for p in model.parameters()), sorted(map(str, run.ledger)))
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)


def test_this_torch_has_every_name() -> None:
    assert torch_private.MISSING == []


def test_without_the_optional_names_a_simulation_gives_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        exec(NETWORK, {"torch": torch})
    whole, lacking = capsys.readouterr().out, run_python(HIDDEN + NETWORK)
    assert lacking.returncode == 0, lacking.stderr
    assert lacking.stdout == whole != ""


def test_without_dispatch_modes_a_simulation_is_refused_in_a_sentence() -> None:
    with pytest.raises(NormstabError, match=r"lacks torch\.utils\._python_dispatch\.TorchDispatchMode"):
        torch_private._NoMode()


def test_without_its_guard_autocast_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "_excluding", None)
    with pytest.raises(NormstabError, match="autocast cannot be emulated"), ns.simulate(nn.Linear(2, 2), "amp-bf16"):
        nn.Linear(2, 2)(torch.ones(1, 2))


def test_without_graphs_of_aten_operations_the_backend_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_private, "_found", lambda path, otherwise: otherwise)
    with pytest.raises(NormstabError, match="the backend normstab cannot lower graphs"):
        torch_private.aot_backend()
    assert torch_private.decompositions_like("core") == torch_private.decompositions_like("inductor") == {}


def test_what_torch_compile_made_is_told_from_other_modules() -> None:
    linear = nn.Linear(2, 2)
    compiled = torch.compile(linear, backend="eager")
    assert torch_private.original_module(compiled) is linear
    assert torch_private.original_module(linear) is None
    assert torch_private.backend_of(compiled)[0] == "eager"


def test_a_name_that_is_gone_is_listed_and_what_stands_for_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "MISSING", [])
    assert torch_private._found("torch._C._no_such_name", "instead") == "instead"
    assert torch_private._found("torch._no_such_module._name", "instead") == "instead"
    assert torch_private.MISSING == ["torch._C._no_such_name", "torch._no_such_module._name"]


def test_the_trees_that_stand_for_torch_s_are_alike() -> None:
    tree = {"a": [1, (2.0, torch.ones(2))], "b": None, "c": torch.finfo}
    assert len(leaves(tree)) == len(torch_private.tree_leaves(tree)) == 5
    assert mapped_only(int, lambda x: x + 1, {"a": (1, 2.0)}) == {"a": (2, 2.0)}
    maximum = torch.max(torch.ones(2, 2), 0)
    assert type(mapped(lambda x: x, maximum)) is type(maximum)
