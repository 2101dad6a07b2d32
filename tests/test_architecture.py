"""Imports run one way, and what must be quick to start imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import make
import pytest

import stagetree

SOURCE = Path(stagetree.__file__).parent
ROOMS = [
    {"redact", "tree", "model", "loss", "capture", "threads"},
    {"mistakes"},
    {"claims", "notation", "partition", "connect"},
    {"stopping", "devices"},
    {"words"},
    {"config"},
    {"checks", "identity", "checkpoint", "events"},
    {"datasets", "speed"},
    {"data"},
    {"sampling", "optimizer", "describe", "drawing", "unit", "network"},
    {"epoch", "estimate", "export"},
    {"calibrate"},
    {"train", "machine"},
    {"walk"},
    {"store", "stats", "progress", "curves"},
    {"ranking", "selection", "publish", "history", "migrate"},
    {"report", "audit"},
    {"recording"},
    {"tracking", "page"},
    {"tail"},
    {"compose", "engine", "ui", "watch"},
    {"cluster", "prepare"},
    {"launch"},
    {"crew", "pictures"},
    {"runner", "verify"},
    {"cli"},
    {"api"},
]
HEAVY = {"torch", "torchvision", "mlflow", "pandas", "sklearn", "matplotlib"}


def imports(module):
    """Modules of this package that a module imports anywhere."""
    return make.imports(ast.parse((SOURCE / f"{module}.py").read_text())) & {path.stem for path in SOURCE.glob("*.py")}


def test_every_module_has_a_room():
    assert set().union(*ROOMS) >= {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}


@pytest.mark.parametrize("level", range(len(ROOMS)))
def test_imports_run_one_way(level):
    below = set().union(*ROOMS[:level])
    for module in ROOMS[level]:
        if (SOURCE / f"{module}.py").exists():
            assert imports(module) <= below, module


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import stagetree.cli.main", HEAVY | {"hydra", "pydantic", "rich"}),
        ("import stagetree.tree.stage_tree", HEAVY | {"hydra", "pydantic", "numpy"}),
        ("import stagetree.config.composition, stagetree.runner", HEAVY),
        ("import stagetree.report.table, stagetree.tracking.store", HEAVY - {"pandas"}),
        ("import stagetree.execution.worker", {"torchvision", "mlflow", "sklearn", "pandas", "hydra"}),
        ("import hydra_plugins.stagetree_sweeper.sweeper", HEAVY | {"pydantic"}),
    ],
)
def test_what_starts_quickly_imports_nothing_heavy(code, forbidden):
    code += f"\nimport sys; print(sorted({forbidden!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_plans_room_needs_the_standard_library_alone():
    tree = ast.parse((SOURCE / "tree.py").read_text())
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
    }  # fmt: skip
    assert names <= sys.stdlib_module_names
