"""The rules of the house, read from the source: import direction, sizes, public names, who prints, what is where."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import normstab

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "normstab"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in SOURCES if path.name not in ("__init__.py", "__main__.py")]

# Imports point down only: each part may use those after it. `testing` may use everything but `cli`.
ORDER = [
    "cli",
    "study",
    "terminal",
    "report",
    "search",
    "assess",
    "experiment",
    "simulation",
    "norms",
    "numerics",
    "torch_private",
    "trees",
    "errors",
]
LAYERS = {part: set(ORDER[index:]) for index, part in enumerate(ORDER)}
COMMANDS = {
    "cli_check",
    "cli_frontier",
    "cli_machine",
    "cli_scenarios",
    "cli_search",
}  # commands in files of their own, which `cli` lists
LAYERS["cli"] |= {"testing", *COMMANDS}
LAYERS |= {part: LAYERS["cli"] - {"cli", *COMMANDS} for part in COMMANDS}
LAYERS["testing"] = {"testing", *ORDER} - {"cli"}

LONGEST_FILE = 300
LONGEST_FUNCTION = 45
TOP_LEVEL = {"normstab", "tests", "scenarios", "reports", ".ci", ".github"}
PARTS = {
    "numerics",
    "norms",
    "simulation",
    "experiment",
    "assess",
    "search",
    "report",
    "terminal",
    "testing",
    "docs",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Return the parts that a module imports from; a public name of normstab stands for the part it is from."""
    parts = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            parts |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("normstab.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import hides its direction"
            if node.module == "normstab":
                parts |= {normstab._MODULE_OF.get(alias.name, f".{alias.name}").split(".")[1] for alias in node.names}
            elif node.module.startswith("normstab."):
                parts.add(node.module.split(".")[1])
    return parts - {"__version__"}


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order of ruff's RUF022."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def public_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def has_comment_above(lines: list[str], index: int) -> bool:
    """Return whether a comment heads the block of lines, without a blank one, that ends at `index`."""
    while index >= 0 and lines[index].strip():
        if lines[index].startswith("#"):
            return True
        index -= 1
    return False


def undocumented(path: Path) -> list[str]:
    """Return the public names of a module without a docstring, or, for a value, without a comment or text beside it."""
    tree = tree_of(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    public, missing = set(public_names(tree) or ()), []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            documented, names = ast.get_docstring(node) is not None, {node.name}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {element.id for target in targets for element in ast.walk(target) if isinstance(element, ast.Name)}
            text_after = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            documented = text_after or "#" in lines[node.end_lineno - 1] or has_comment_above(lines, node.lineno - 2)
        else:
            continue
        missing += [] if documented else sorted(names & public)
    return missing


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_only(path):
    part = part_of(path)
    assert part in LAYERS, f"{name_of(path)} belongs to no part of the house"
    assert imported_parts(path) <= LAYERS[part]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Return the modules of the package that a module imports, inside functions too, but not for types alone."""
    tree = tree_of(path)
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def test_no_imports_run_in_a_circle():
    paths = {module_of(path): path for path in MODULES}
    arrows = {name: imported_modules(path, set(paths)) for name, path in paths.items()}
    while free := [name for name, targets in arrows.items() if not targets]:
        for name in free:
            del arrows[name]
        arrows = {name: targets.difference(free) for name, targets in arrows.items()}
    assert arrows == {}, "each of these imports one that leads back"


# What torch's own objects keep under an underscore, beside its modules.
PRIVATE_TO_TORCH = re.compile(
    r"\btorch(\.\w+)*\._(?!_)"
    r"|\._(schema|overloadname|version|cdata|indices|values|flat_weights|parameters|buffers|sequence_nr|saved_p"
    r"|is_zerotensor|compiled_call_impl|backward_cls)\b"
)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "torch_private.py"], ids=name_of)
def test_private_names_of_torch_are_in_their_room(path):
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "torch":
            found |= {f"torch.{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_")}
            found |= {node.module} if "._" in node.module else set()
        elif isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            text = ast.unparse(node)
            # The names of operations are those of a table of torch's, and their own subject.
            is_own = text.startswith(("self.", "cls.", "torch.ops.aten."))
            if not is_own and PRIVATE_TO_TORCH.search(text):
                found.add(text)
    assert found == set(), "through normstab.torch_private, where each has a test and what stands for it"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    functions = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_are_listed_in_order_and_documented(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    names = public_names(tree)
    assert names is not None, "the module has no __all__"
    assert names == sorted(names, key=sort_key)
    assert undocumented(path) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(path) != "cli"], ids=name_of)
def test_only_the_command_line_prints(path):
    calls = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
    assert calls.isdisjoint({"print", "sys.stdout.write", "sys.stderr.write", "rich.print"})


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_environment_variable_is_written_as_an_interface(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"os\.environ\[[^]]+\]\s*=[^=]|os\.putenv|setdefault\(.NORMSTAB", source)


def test_the_house_has_its_rooms_and_no_others():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [Path(line) for line in listed.stdout.splitlines()]
    assert {path.parts[0] for path in paths if len(path.parts) > 1} <= TOP_LEVEL
    rooms = {path.parts[1] for path in paths if path.parts[0] == "normstab" and len(path.parts) > 2}
    assert rooms <= PARTS


def test_a_file_name_occurs_once():
    names = Counter(path.name for path in MODULES)
    assert {name for name, count in names.items() if count > 1} == set()


MOST_ROOMS = 16  # modules of one folder, packages within it not counted


def test_a_folder_has_few_rooms():
    rooms = Counter(name_of(path.parent) for path in MODULES)
    assert {folder: count for folder, count in rooms.items() if count > MOST_ROOMS} == {}


def test_import_costs_neither_torch_nor_numba():
    heavy = {"matplotlib", "numba", "numpy", "torch"}
    code = f"import sys, normstab; dir(normstab); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
