"""MLflow's own user interface on the store of a real sweep, in a real browser."""

import json
import subprocess
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from browsers import watched
from sweeps import command, end, small, stagetree, wait_until

GRID = ["optimizer=sgd,adam", "seed=1,2", "schedule.stages=[(2,1e-1),(1,1e-2)],[(2,1e-1),(1,1e-3)]"]


def answers(address):
    try:
        return urlopen(address.partition("#")[0]).status == 200
    except URLError:
        return False


@pytest.fixture(scope="module")
def address(tmp_path_factory, arrays):
    """Of the page that `stagetree ui` opens."""
    folder = tmp_path_factory.mktemp("ui")
    done = stagetree(folder, "sweep", *small(arrays), *GRID)
    assert done.returncode == 0, done.stderr
    said = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command("ui", "--port", "0"), cwd=folder, stderr=log, **said) as ui,
    ):
        address = ui.stdout.readline().strip()
        wait_until(lambda: answers(address))
        yield address
        end(ui)


@pytest.fixture
def tab(browser, address):
    # MLflow asks its server for the user's name, which one without a login does not know
    with watched(browser, passes="404", viewport={"width": 1700, "height": 900}) as tab:
        tab.goto(address)
        tab.wait_for_selector("text=sweep of 8 runs")
        yield tab


def test_useful_columns_are_there_at_once(tab):
    heads = " ".join(tab.locator("[role=columnheader]").all_inner_texts())
    for name in ("optimizer", "lrs", "seed", "val/acc", "test/acc", "test/loss"):
        assert name in heads, heads


def test_runs_are_children_of_their_sweep_and_named_by_what_varies(tab):
    assert tab.locator("text=128 sgd lr").count() == 0
    tab.locator("[col-id='attributes.`Run Name`'] svg").first.click()
    tab.wait_for_selector("text=128 adam lr 0.1>0.001 seed 2")
    assert tab.locator("text=128 sgd lr 0.1>0.01 seed 1").count() == 1


def test_the_sweep_is_described(tab):
    tab.click("text=sweep of 8 runs")
    tab.click("text=Show more")
    tab.wait_for_selector("text=ranked by val_acc")
    assert tab.locator("td:has-text('128 adam'), td:has-text('128 sgd')").count() >= 8
    assert tab.locator("code:has-text('stagetree -m')").count() >= 1


def test_compared_runs_have_parallel_coordinates_of_numbers(tab, address):
    server = address.partition("#")[0]
    wanted = {"experiment_ids": ["1"], "filter": "tags.`stagetree.kind` = 'run'"}
    request = Request(
        f"{server}ajax-api/2.0/mlflow/runs/search", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request) as answer:
        runs = [run["info"]["run_id"] for run in json.load(answer)["runs"]]
    assert len(runs) == 8
    tab.goto(f"{server}#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps(['1']))}")
    tab.wait_for_selector("text=Parallel Coordinates Plot")
    tab.wait_for_selector(".parcoords")
    assert "log10_lr_1" in tab.inner_text("body")
