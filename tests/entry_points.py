"""The entry points of this source tree, also where the installed package is of before they were added."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def with_entry_points(folder: Path) -> dict[str, str]:
    """Return an environment in which Python finds the package of this tree, and its entry points in `folder`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / "normstab_of_this_tree-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: normstab-of-this-tree\nVersion: 0\n")
    group = "torch_dynamo_backends"
    lines = [f"{name} = {place}" for name, place in project["entry-points"][group].items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
