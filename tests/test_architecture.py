"""Imports run one way, and what must be quick to start imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import make
import pytest

import stagetree

SOURCE = Path(stagetree.__file__).parent
FOLDERS = make.folders()[::-1]
"""Each imports from those before it alone: docs/architecture.md lists them from the outside in."""
STRANGERS = [("execution", "tracking")]
"""Neither imports the other."""
HEAVY = {"torch", "torchvision", "mlflow", "pandas", "sklearn", "matplotlib"}


def test_every_module_lies_in_a_folder():
    names = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__", "__main__"} == set(FOLDERS), "list it in docs/architecture.md"


@pytest.mark.parametrize("place", range(len(FOLDERS)), ids=FOLDERS)
def test_imports_run_one_way(place):
    assert make.imports(FOLDERS[place]) <= set(FOLDERS[:place])


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_some_folders_do_not_know_each_other(one, other):
    assert other not in make.imports(one)
    assert one not in make.imports(other)


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import stagetree.cli.main", HEAVY | {"hydra", "pydantic", "rich"}),
        ("import stagetree.tree.stage_tree", HEAVY | {"hydra", "pydantic", "numpy"}),
        ("import stagetree.config.grid, stagetree.runner", HEAVY),
        ("import stagetree.report.table, stagetree.tracking.store", HEAVY - {"pandas"}),
        ("import stagetree.cli.predict, stagetree.report.page", HEAVY - {"pandas"}),
        ("import stagetree.cli.data", HEAVY),
        ("import stagetree.execution.worker", {"torchvision", "mlflow", "sklearn", "pandas", "hydra"}),
        ("import hydra_plugins.stagetree_sweeper.sweeper", HEAVY | {"pydantic"}),
    ],
)
def test_what_starts_quickly_imports_nothing_heavy(code, forbidden):
    code += f"\nimport sys; print(sorted({forbidden!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tree_needs_the_standard_library_alone():
    for path in (SOURCE / "tree").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"stagetree"}
