"""Make configuration.md from the schema, parts of architecture.md from the code, and images by the project's commands.

python docs/make.py               # the pages
python docs/make.py --pictures    # the images too; needs Chromium, takes a minute
"""

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.text import Text

from stagetree.config.schema import Config

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src" / "stagetree"
ARCHITECTURE = DOCS / "architecture.md"
HEAD = """\
# Configuration

Every setting, from the schema in [`schema.py`](../src/stagetree/config/schema.py). `make pages` writes this page.
Give settings as `group.setting=value` and choose a group's file as `group=name`; `stagetree train --cfg job` prints
what would be used. The default here is that of the schema; the files in [`conf`](../conf) set others, such as each data
set's folder. A setting without a default comes from these files or must be given.
"""
GRID = shlex.split(
    "dataset=digits dataset.val_size=300 model=mlp_300 optimizer=sgd,adam seed=1,2,3 "
    "schedule.stages=[(6,1e-1),(4,1e-2)],[(6,1e-1),(4,1e-3)],[(6,1e-2),(4,1e-3)],[(10,1e-2)]"
)
SIZE = {"width": 1180, "height": 900}


# ---------------------------------------------------------------- the reference


def configuration() -> str:
    """Return the page, in Markdown."""
    schema = Config.model_json_schema()
    groups = schema["properties"]
    parts = [HEAD, "## At the top\n", _table(schema, {k: v for k, v in groups.items() if not _targets(v)}, schema)]
    for group, own in groups.items():
        targets = _targets(own)
        for target in targets:
            found = schema["$defs"][target]
            names = found["properties"].get("name", {})
            choices = names.get("enum") or [names["const"]] if names else []
            title = f"`{group}`: " + ", ".join(f"`{name}`" for name in choices) if len(targets) > 1 else f"`{group}`"
            parts += [f"## {title}\n", found.get("description", "As in torch.optim.").split("\n")[0] + "\n"]
            settings = {name: one for name, one in found["properties"].items() if name != "name"}
            if settings:
                parts.append(_table(found, settings, schema))
    return "\n".join(parts)


def _targets(own: Mapping[str, Any]) -> list[str]:
    """Return the names of the definitions that a group may be."""
    options = own.get("oneOf") or own.get("allOf") or [own]
    return [option["$ref"].rsplit("/")[-1] for option in options if "$ref" in option]


def _table(owner: Mapping[str, Any], settings: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    lines = ["| setting | is | default | |", "| --- | --- | --- | --- |"]
    for name, one in settings.items():
        default = "" if name in owner.get("required", ()) else f"`{json.dumps(one.get('default'))}`"
        about = " ".join(one.get("description", "").split())
        lines.append(f"| `{name}` | {_type(one)} | {default} | {about} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _type(one: Mapping[str, Any]) -> str:
    """Describe in words what values JSON schema allows."""
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"])
    if "anyOf" in one:
        return " or ".join(dict.fromkeys(_type(option) for option in one["anyOf"]))
    if "$ref" in one:
        return "`[epochs, lr]`"
    if one.get("type") == "array":
        inner = one.get("items") or (one.get("prefixItems") or [{}])[0]
        return f"list of {_type(inner)}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {one[key]:g}" for key, sign in bounds.items() if key in one and abs(one[key]) < 2**53]
    words = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text", "null": "`null`"}
    return " ".join([words.get(one.get("type"), one.get("type", "any")), *said])


# ---------------------------------------------------------------- the architecture


def folders() -> list[str]:
    """Return the folders of the package, and the modules beside them, as architecture.md lists them."""
    return re.findall(r"^<!-- folder (\w+) -->$", ARCHITECTURE.read_text("utf-8"), re.MULTILINE)


def architecture() -> str:
    """Return the page with its diagram and its lists of modules made anew; the rest is written by hand."""
    made = {"invariants": invariants(), "diagram": diagram()}
    made |= {f"folder {folder}": modules(folder) for folder in folders()}

    def fill(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{made[match[1]]}<!-- end -->"

    return re.sub(r"<!-- (\w[^\n]*) -->\n.*?<!-- end -->", fill, ARCHITECTURE.read_text("utf-8"), flags=re.DOTALL)


def invariants() -> str:
    """List the invariants as the docstrings of their tests quote them, in the order of their numbers."""
    lines = {}
    for path in sorted((DOCS.parent / "tests" / "invariants").glob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            quote = (ast.get_docstring(node) or "").split("\n\n")[0] if isinstance(node, ast.FunctionDef) else ""
            if found := re.match(r"Invariant (\d+)\.\s+(.*)", quote, re.DOTALL):
                said = " ".join(found[2].split())
                lines[int(found[1])] = f"{found[1]}. {said} [`{node.name}`](../tests/invariants/{path.name})"
    return "".join(f"{lines[number]}\n" for number in sorted(lines))


def diagram() -> str:
    """Draw which folder imports which, as Mermaid text: an arrow that follows from others is left out."""
    order = folders()[::-1]
    needs, lines = {}, []
    for folder in order:
        needs[folder] = set().union(*(needs.get(name, set()) | {name} for name in imports(folder)))
    for folder in order[::-1]:
        indirect = set().union(*(needs[name] for name in imports(folder)))
        lines += [f"  {folder} --> {name}" for name in order[::-1] if name in imports(folder) - indirect]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"]) + "\n"


def modules(folder: str) -> str:
    """List a folder's modules with the first lines of their docstrings, and the folders that they import."""
    lines = []
    for path in _modules(folder):
        first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]
        name = path.relative_to(SOURCE)
        lines.append(f"- [`{name}`](../src/stagetree/{name}): {first}")
    found = [f"`{name}`" for name in folders() if name in imports(folder)]
    return "\n".join([*lines, "", f"Imports {', '.join(found) or 'no other folder'}."]) + "\n"


def imports(folder: str) -> set[str]:
    """Return the other folders, and modules beside them, that a folder's modules import anywhere."""
    found = set()
    for path in _modules(folder):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "stagetree":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stagetree."):
                found.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("stagetree.")}
    return found - {folder}


def _modules(folder: str) -> list[Path]:
    return [path for path in (SOURCE / f"{folder}.py", *sorted((SOURCE / folder).glob("[!_]*.py"))) if path.exists()]


# ---------------------------------------------------------------- the images


def pictures(folder: Path) -> None:
    """Draw the plan, the leaderboard page and MLflow's table of one small sweep."""
    with tempfile.TemporaryDirectory() as scratch:
        plan = _run(scratch, "plan", *GRID)
        _run(scratch, "sweep", *GRID)
        _draw_terminal(f"$ stagetree plan {' '.join(GRID[2:])}\n{plan}", folder / "plan.svg")
        server = [sys.executable, "-m", "stagetree", "ui", "--port", "0"]
        with subprocess.Popen(server, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as ui:
            try:
                address = ui.stdout.readline().strip()
                _photograph(Path(scratch) / "leaderboard.html", address, folder)
            finally:
                ui.terminate()


def _run(folder: str, *words: str) -> str:
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "110", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "stagetree", *words]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _draw_terminal(text: str, path: Path) -> None:
    console = Console(record=True, width=112, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi(text))
    console.save_svg(str(path), title="stagetree plan")


def _photograph(page: Path, address: str, folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--use-angle=swiftshader"])
        tab = browser.new_page(viewport=SIZE)
        tab.goto(page.as_uri())
        tab.wait_for_selector("#curves-plot .main-svg")
        tab.screenshot(path=folder / "leaderboard.png")
        tab.set_viewport_size({"width": 1700, "height": 760})
        _wait_for(address)
        tab.goto(address)
        tab.wait_for_selector("text=sweep of 24 runs", timeout=60_000)
        tab.locator("[col-id='attributes.`Run Name`'] svg").first.click()  # unfolds it
        tab.wait_for_selector("text=300 adam")
        tab.get_by_role("button", name="Close").last.click()  # the assistant beside it
        tab.wait_for_timeout(1000)
        tab.screenshot(path=folder / "mlflow.png")
        browser.close()


def _wait_for(address: str) -> None:
    for _ in range(200):
        try:
            urlopen(address.partition("#")[0]).close()
            return
        except URLError:
            time.sleep(0.2)
    sys.exit(f"no server at {address}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", action="store_true")
    arguments = parser.parse_args()
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")
    ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    if arguments.pictures:
        pictures(DOCS / "pictures")


if __name__ == "__main__":
    main()
