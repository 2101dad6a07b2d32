"""What the README, CONTRIBUTING and the pages in docs/ say: links lead somewhere, commands are accepted, code runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import make
import pytest

from stagetree import api
from stagetree.cli.arguments import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def anchors(page):
    """Of a page's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands():
    for page in PAGES:
        shell = "".join(blocks(page, "sh")).replace("\\\n", " ")
        inline = "\n".join(re.findall(r"`(stagetree [^`\n]+)`", page.read_text()))
        for line in f"{shell}\n{inline}".splitlines():
            line = line.split("  #")[0].strip()
            if line.startswith("stagetree ") and "..." not in line:
                yield pytest.param(line, id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("line", list(commands()))
def test_commands_are_accepted(line, tmp_path):
    """Composed and checked as typed, without training; what they then do, other tests try."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("hidden_sizes: [2000]\n")
    call = parse(shlex.split(line.replace("COMMAND", "train"))[1:])
    overrides = [word for word in call.words if "=" in word and not word.startswith("-")]
    with api.composed(overrides, tmp_path) as (_, _, jobs):
        assert jobs


@pytest.mark.parametrize("code", blocks(ROOT / "README.md", "python"))
def test_python_of_the_readme_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "leaderboard.html").exists()


def test_make_targets_that_are_named_exist_and_are_explained():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z0-9-]+) +\S", said, re.MULTILINE)) == targets
    for page in [*PAGES, *(ROOT / ".github").rglob("*.md"), ROOT / ".pre-commit-config.yaml"]:
        assert set(re.findall(r"`make ([a-z0-9-]+)`|^make ([a-z0-9-]+)", page.read_text(), re.MULTILINE)) <= {
            pair for target in targets for pair in ((target, ""), ("", target))
        }


def test_pages_that_are_made_are_those_of_the_sources():
    assert make.configuration() == (ROOT / "docs" / "configuration.md").read_text(), "run: make pages"
    assert make.architecture() == make.ARCHITECTURE.read_text(), "run: make pages"


def test_the_readme_can_be_read_in_one_sitting():
    assert 100 <= len((ROOT / "README.md").read_text().splitlines()) <= 150
