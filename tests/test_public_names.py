"""`import normstab as ns` offers what it lists, lists what a type checker sees, and suggests nothing else."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import normstab as ns


def names_for_type_checkers():
    tree = ast.parse(Path(ns.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    listed = [
        (alias, getattr(node, "module", alias.name.rpartition(".")[0])) for node in block.body for alias in node.names
    ]
    return {(alias.asname or alias.name): module for alias, module in listed}


@pytest.mark.parametrize("name", ns.__all__)
def test_every_public_name_loads_and_is_in_dir(name):
    assert getattr(ns, name) is not None
    assert name in dir(ns)


@pytest.mark.parametrize("name", ns.__all__)
def test_type_checkers_see_what_runs(name):
    module = names_for_type_checkers()[name]
    assert getattr(import_module(module), name) is getattr(ns, name)


def test_nothing_is_shown_to_type_checkers_alone():
    assert set(names_for_type_checkers()) == set(ns.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="batchnorm"):
        ns.batchnorm  # noqa: B018
