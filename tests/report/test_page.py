"""The leaderboard page of a real sweep, in a real browser."""

import io
import itertools
import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
import stores
from browsers import violations, watched
from PIL import Image
from sweeps import small, stagetree

from stagetree.config.metrics import METRICS
from stagetree.data.cache import DataInfo
from stagetree.report import history, page, ranking, statistics
from stagetree.storage import checkpoints
from stagetree.tracking import store

pytestmark = pytest.mark.slow  # whole commands, or a browser

STAGES = "schedule.stages=[(2,1e-2),(2,1e-3)],[(2,1e-2),(1,1e-4)],[(3,1e-2)]"
GRID = ["optimizer=sgd,adam", "seed=0,1,2", "trainer.batch_size=16", STAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("page")
    done = stagetree(folder, "sweep", *small(arrays), *GRID)
    assert done.returncode == 0, done.stderr
    assert "leaderboard.html  shows this" in done.stdout
    return folder


@pytest.fixture(scope="module")
def frame(folder):
    return store.load(f"sqlite:///{folder}/mlruns/mlflow.db", "stagetree")


@pytest.fixture(scope="module")
def inputs(folder, frame):
    uri = f"sqlite:///{folder}/mlruns/mlflow.db"
    return page.PageInputs(frame, uri, folder / "mlruns", command="stagetree sweep <&>")


@pytest.fixture(scope="module")
def gathered(inputs):
    return page.gather(inputs)


@pytest.fixture
def tab(browser, folder):
    with watched(browser) as tab:
        tab.goto((folder / "leaderboard.html").as_uri())
        tab.wait_for_selector("#curves-plot .main-svg")
        yield tab


def cells(tab, name):
    """A column of the table as it is shown."""
    head = tab.locator("#rows thead th").all_inner_texts()
    place = [text.rstrip(" ▲▼") for text in head].index(name)
    return tab.locator(f"#rows tbody tr td:nth-child({place + 1})").all_inner_texts()


# ---------------------------------------------------------------- numbers


def test_the_table_is_the_leaderboard(gathered, frame):
    ranked = ranking.rank(frame)
    columns = {one["name"]: one["values"] for one in gathered["runs"]["columns"]}
    assert columns["run_name"] == ranked["run_name"].tolist()
    assert columns["test_acc"] == pytest.approx(ranked["test_acc"].tolist(), rel=1e-7)
    over_seeds = {one["name"]: one["values"] for one in gathered["seeds"]["columns"]}
    assert over_seeds["n"] == [3] * 6
    lines = ranking.aggregate(frame, "seed")
    assert over_seeds["val_acc_mean"] == pytest.approx(lines["val_acc_mean"].tolist(), rel=1e-7)


def test_marks_are_of_means_over_seeds_and_never_of_single_runs(gathered, frame):
    assert gathered["runs"]["marks"] == [""] * 18
    lines = ranking.aggregate(frame, "seed")
    mean, std, n = (lines[f"val_acc_{name}"].to_numpy() for name in ("mean", "std", "n"))
    assert gathered["seeds"]["marks"] == statistics.marks(mean, std, n)
    assert "≈" in gathered["seeds"]["marks"] or "?" in gathered["seeds"]["marks"]


def test_curves_are_those_of_mlflow(gathered, inputs):
    from mlflow import MlflowClient

    client = MlflowClient(inputs.uri)
    ranked = ranking.rank(inputs.frame)
    for place in (0, 17):
        run_id = ranked["run_id"][place]
        curve = gathered["curves"][place]
        history = client.get_metric_history(run_id, "val/acc")
        assert curve["metrics"]["val_acc"][0] == [point.step for point in history]
        assert curve["metrics"]["val_acc"][1] == pytest.approx([point.value for point in history], rel=1e-5)
        assert curve["ends"] == np.cumsum(json.loads(client.get_run(run_id).data.params["epochs"])).tolist()


def test_the_tree_shares_what_was_shared(gathered):
    assert len(gathered["tree"]) == 6  # two optimizers, three seeds
    for trunk in gathered["tree"]:
        (start,) = trunk["children"]  # all begin with two epochs at .01
        assert (start["epochs"], start["lr"], start["run"]) == (2, 0.01, None)
        assert sorted((node["epochs"], node["lr"]) for node in start["children"]) == [(1, 1e-4), (1, 1e-2), (2, 1e-3)]
        assert all(node["run"] is not None for node in start["children"])
    ranks = [node["run"] for trunk in gathered["tree"] for node in trunk["children"][0]["children"]]
    assert sorted(ranks) == list(range(18))


def nodes_below(children):
    for node in children:
        yield node
        yield from nodes_below(node["children"])


def test_the_nodes_of_the_tree_have_the_uids_of_the_states_on_disk(gathered, folder):
    uids = [node["uid"] for trunk in gathered["tree"] for node in nodes_below(trunk["children"])]
    states = list(checkpoints.finished(checkpoints.folder_of(folder / "mlruns")).states)
    assert sorted(uids) == sorted(states)


def test_runs_are_restored_as_they_were_planned(frame):
    known = frame.set_index("run_id")
    runs = history.recorded_runs(known)
    assert {run_id: run.uid for run_id, run in runs.items()} == known["uid"].to_dict()


def test_runs_of_before_without_their_trunk_take_it_from_others_of_its_digest_or_share_all_the_same(frame, gathered):
    known = frame.set_index("run_id")
    older = known.assign(trunk_json=known["trunk_json"].where(known["seed"] == 2, None))
    assert {run.uid for run in history.recorded_runs(older).values()} == set(known["uid"])
    for missing in (["trunk_json"], ["trunk_json", "trunk"]):
        ranked = known.loc[ranking.rank(frame)["run_id"]].assign(**dict.fromkeys(missing))
        trunks = history.tree(ranked, {run_id: {} for run_id in ranked.index}, "val_acc")
        assert [len(list(nodes_below(trunk["children"]))) for trunk in trunks] == [4] * 6
        assert [trunk["label"] for trunk in trunks] == [trunk["label"] for trunk in gathered["tree"]]


def test_a_node_has_the_accuracy_at_its_end(gathered):
    for trunk in gathered["tree"]:
        start = trunk["children"][0]
        for node in start["children"]:
            epochs, values = gathered["curves"][node["run"]]["metrics"][node["part"]]
            assert start["value"] == values[epochs.index(2)]
            assert node["value"] == values[-1]


def test_settings_are_those_that_vary_with_what_they_explain(gathered):
    found = {one["name"]: one["importance"] for one in gathered["settings"]}
    assert found.keys() == {"optimizer", "seed", "lr_1", "epochs_0", "epochs_1"}
    assert list(found)[-1] == "seed"
    assert all(0 <= share <= 1 for share in found.values() if not np.isnan(share))


def test_the_images_that_the_best_run_misclassified_are_counted(gathered, frame):
    best = gathered["best"]
    ranked = ranking.rank(frame)
    matrix = np.array(best["matrix"])
    assert best["run"] == ranked["run_name"][0]
    assert matrix.sum() == 50
    assert np.trace(matrix) / 50 == pytest.approx(ranked["test_acc"][0])
    assert len(best["misclassified"]) == min(24, 50 - np.trace(matrix))


def test_without_its_output_folder_the_page_says_what_is_missing(inputs, tmp_path):
    bare = page.PageInputs(inputs.frame, inputs.uri, tmp_path)
    found = page.gather(bare)
    assert "the prepared data is gone" in found["best"]["missing"]


def test_every_run_has_the_command_that_trains_it_alone(folder, gathered, frame):
    ranked = ranking.rank(frame)
    command = gathered["commands"][0]
    assert command.startswith("stagetree train ")
    done = stagetree(folder, *shlex.split(command)[1:], "output_dir=again")
    assert done.returncode == 0, done.stderr
    again = store.load(f"sqlite:///{folder}/again/mlflow.db", "stagetree")
    assert again["uid"].tolist() == [frame.set_index("run_id").loc[ranked["run_id"][0], "uid"]]


def test_one_seed_and_a_failed_run(inputs, browser, tmp_path):
    frame = inputs.frame[inputs.frame["seed"] == 0].copy()
    failed = frame.index[0]
    frame.loc[failed, ["status", "reason", "val_acc"]] = ["failed", "train/loss became nan", np.nan]
    path = tmp_path / "one.html"
    page.write_page(page.PageInputs(frame, inputs.uri, inputs.output_dir), path)
    with watched(browser) as tab:
        tab.goto(path.as_uri())
        tab.wait_for_selector("#curves-plot .main-svg")
        assert not tab.locator("#view").is_visible()
        assert cells(tab, "status") == ["finished"] * 5 + ["failed"]
        assert cells(tab, "rank")[-1] == ""
        assert cells(tab, "reason")[-1] == "train/loss became nan"
        assert "over seeds" not in tab.inner_text("#ties")
        assert "luck of its seed" in tab.inner_text("#ties")


def test_seeds_beyond_the_numbers_of_javascript_are_shown_and_filtered_digit_by_digit(inputs, browser, tmp_path):
    seeds = {0: 2**53, 1: 2**53 + 1, 2: 2**63 - 1}
    frame = inputs.frame.assign(seed=inputs.frame["seed"].map(seeds).astype("Int64"))
    path = tmp_path / "large.html"
    page.write_page(page.PageInputs(frame, inputs.uri, inputs.output_dir), path)
    with watched(browser) as tab:
        tab.goto(path.as_uri())
        tab.wait_for_selector("#curves-plot .main-svg")
        assert sorted(set(cells(tab, "seed"))) == sorted(map(str, seeds.values()))
        filters = {f"seed={2**53}": 6, f"seed={2**53 + 1}": 6, f"seed={2**53 + 2}": 0, "seed=1": 0}
        filters |= {f"seed>{2**53}": 12, f"seed<={2**53 + 1}": 12, f"seed>={2**63 - 1}": 6}
        for text, count in filters.items():
            tab.fill("#filter", text)
            assert tab.locator("#rows tbody tr").count() == count, text
        tab.fill("#filter", "")
        tab.click("#rows thead button >> text=seed")
        assert cells(tab, "seed") == [str(seed) for seed in seeds.values() for _ in range(6)]


def test_hostile_names_stay_text(inputs, browser, tmp_path):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    named = inputs.frame.assign(run_name=hostile)
    path = tmp_path / "hostile.html"
    page.write_page(page.PageInputs(named, inputs.uri, inputs.output_dir, command=hostile), path)
    with watched(browser) as tab:
        tab.on("dialog", lambda dialog: pytest.fail("a name was run"))
        tab.goto(path.as_uri())
        tab.wait_for_selector("#curves-plot .main-svg")
        assert cells(tab, "run_name")[0] == hostile


def test_an_image_is_drawn_in_its_own_size():
    info = DataInfo("", "", "", (3, 2, 4), ("a",), 1, 1, 255.0)
    pixels = np.arange(24, dtype=np.uint8)
    with Image.open(io.BytesIO(page.draw_png(pixels, info))) as drawn:
        assert drawn.size == (4, 2)
        assert np.asarray(drawn).transpose(2, 0, 1).reshape(-1).tolist() == pixels.tolist()
    floats = DataInfo("", "", "", (1, 2, 2), ("a",), 1, 1, 1.0)
    with Image.open(io.BytesIO(page.draw_png(np.array([-1.0, 0, 0, 1]), floats))) as drawn:
        assert np.asarray(drawn).reshape(-1).tolist() == [0, 128, 128, 255]


# ---------------------------------------------------------------- browser


def test_it_sorts(tab):
    label = METRICS["test_acc"].label
    tab.click(f"#rows thead button >> text={label}")
    values = [float(cell.rstrip(" %")) for cell in cells(tab, label)]
    assert values == sorted(values, reverse=True)
    assert tab.locator("th[aria-sort=descending]").inner_text().startswith(label)
    assert tab.get_attribute("th[aria-sort=descending] button", "title") == "test_acc in the filter"
    tab.click(f"#rows thead button >> text={label}")
    assert [float(cell.rstrip(" %")) for cell in cells(tab, label)] == sorted(values)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("adam", 9),
        ("adam seed=1", 3),
        ("seed>=1", 12),
        ("lr_1=0.0001", 6),
        ("optimizer!=sgd", 9),
        ("nothing at all", 0),
        ("val_acc>101%", 0),
    ],
)
def test_it_filters(tab, text, count):
    tab.fill("#filter", text)
    assert tab.locator("#rows tbody tr").count() == count
    assert tab.inner_text("#count") == f"{count} of 18 lines"


def test_the_filter_reaches_the_plots(tab):
    tab.fill("#filter", "adam seed=1")
    tab.wait_for_function("document.querySelectorAll('#curves-plot .legend .traces').length >= 3")
    tab.wait_for_function("document.querySelector('#curves-note').textContent.includes('of 3 runs')")


def test_means_over_seeds(tab, gathered):
    tab.check("text=mean over seeds")
    assert tab.locator("#rows tbody tr").count() == 6
    assert cells(tab, "n") == ["3"] * 6
    said = [cell.split()[0] if " " in cell else "" for cell in cells(tab, "rank")]
    assert said == gathered["seeds"]["marks"]


def test_curves_show_values_under_the_pointer(tab):
    point = tab.locator("#curves-plot .scatterlayer .trace:nth-child(2) .points path").last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_selector("#curves-plot .hoverlayer .hovertext")


def test_stage_boundaries_are_drawn(tab):
    assert tab.locator("#curves-plot .shapelayer path").count() >= 1


def test_all_plots_are_there(tab, gathered):
    for plot in ("slices", "heat", "parallel"):
        assert tab.locator(f"#{plot} .main-svg").count() >= 1, plot
    shares = [one["importance"] for one in gathered["settings"]]
    said = ["within chance" if np.isnan(share) else f"{share:.2f}" for share in shares]
    assert tab.locator("#importance .share").all_inner_texts() == said
    assert tab.locator("#confusion tbody tr").count() == 3


def test_a_run_opens_and_closes_by_keyboard(tab):
    tab.locator("#rows tbody button").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("dialog[open]").count() == 1
    assert tab.inner_text("#run-command").startswith("stagetree train ")
    tab.keyboard.press("Escape")
    assert tab.locator("dialog[open]").count() == 0


def test_a_command_is_copied(browser, folder):
    with watched(browser, permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.goto((folder / "leaderboard.html").as_uri())
        tab.locator("#rows tbody button").first.click()
        tab.click("#copy")
        tab.wait_for_selector("#copy >> text=Copied")
        assert tab.evaluate("navigator.clipboard.readText()") == tab.inner_text("#run-command")


def test_the_tree_unfolds(tab):
    assert tab.locator("#branches > details").count() == 6
    first = tab.locator("#branches > details").first
    first.evaluate("node => { node.open = true; }")
    assert first.locator("li").count() >= 4
    text = re.sub(r"\s+", " ", first.locator("li").first.inner_text())
    assert text.startswith("2 epochs at 0.01")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_it_is_accessible_and_fits(browser, folder, scheme, width):
    with watched(browser, color_scheme=scheme, viewport={"width": width, "height": 800}) as tab:
        tab.goto((folder / "leaderboard.html").as_uri())
        tab.wait_for_selector("#parallel .main-svg")
        assert violations(tab) == []
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
        tab.locator("#rows tbody button").first.click()
        assert violations(tab) == []


def test_a_thousand_runs_open_and_scroll(inputs, browser, tmp_path):
    """As many lines as the first page of runs, again and again; how fluid it is, `make overheads` measures."""
    many = pd.concat(
        [inputs.frame.assign(run_id=inputs.frame["run_id"].str[:-3] + f"{k:03d}") for k in range(56)], ignore_index=True
    )
    path = tmp_path / "many.html"
    page.write_page(page.PageInputs(many, inputs.uri, inputs.output_dir), path)
    with watched(browser) as tab:
        tab.goto(path.as_uri())
        tab.wait_for_selector("#slices .main-svg")
        assert tab.inner_text("#count") == "1,008 of 1,008 lines"
        tab.click("#more")
        assert tab.locator("#rows tbody tr").count() == 300


def test_settings_are_those_that_differ_among_runs_that_can_be_compared(load, database, tmp_path):
    runs = [
        stores.run(f"{width} {seed}", dataset_digest="d1", width=width, seed=seed, metrics={"test/acc": width / 99})
        for width, seed in itertools.product((7, 8, 9), range(4))
    ]
    frame = load(*runs, stores.run("other", dataset_digest="d2", width=7, batch_size=64, metrics={"test/acc": 0.99}))
    found = page.gather(page.PageInputs(frame, stores.uri(database), tmp_path))["settings"]
    assert [setting["name"] for setting in found] == ["width", "seed"]
    assert found[0]["importance"] > 0.9
    assert sum(value is None for value in found[0]["values"]) == 1
