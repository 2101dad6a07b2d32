"""Leaderboards as files and in the terminal."""

import csv
import itertools
import os
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from stores import run

from stagetree.errors import InputError
from stagetree.report import ranking, table

# ---------------------------------------------------------------- write


def read_back(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_same_runs_give_the_same_bytes_in_any_order(load, tmp_path):
    frame = load(*(run(name, seed=seed, metrics={"test/acc": 0.9}) for seed, name in enumerate("abcd")))
    for number, shuffled in enumerate(itertools.permutations(range(4))):
        table.write_csv(ranking.rank(frame.iloc[list(shuffled)]), tmp_path / f"{number}.csv")
        table.write_csv(ranking.aggregate(frame.iloc[list(shuffled)], "seed"), tmp_path / f"{number}.seeds.csv")
    assert len({path.read_bytes() for path in tmp_path.glob("*.csv")}) == 2


def test_numbers_are_written_exactly_and_stay_numbers(load, tmp_path):
    frame = load(
        run("é", seed=2**63 - 1, log10=-1.0, metrics={"test/loss": 0.1 + 0.2, "test/acc": 1e-17}),
        run("z", status="failed", log10=-2.5),
    )
    table.write_csv(ranking.rank(frame), tmp_path / "leaderboard.csv")
    assert b"\r" not in (tmp_path / "leaderboard.csv").read_bytes()
    header, first, last = read_back(tmp_path / "leaderboard.csv")
    cells = dict(zip(header, first, strict=True))
    assert (cells["rank"], cells["run_name"], cells["seed"], cells["log10"]) == (
        "1",
        "é",
        "9223372036854775807",
        "-1.0",
    )
    assert (float(cells["test_loss"]), float(cells["test_acc"])) == (0.1 + 0.2, 1e-17)
    assert cells["architecture"] == "2 layers (300,10)"
    assert dict(zip(header, last, strict=True))["rank"] == ""


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\u00a0=", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_text_that_a_spreadsheet_would_run_is_defused(tmp_path, start):
    frame = pd.DataFrame({"run_name": [f'{start}cmd|" /C calc"!A0, b'], "seed": [-1], f"{start}x": ["plain"]})
    table.write_csv(frame, tmp_path / "leaderboard.csv")
    header, (name, seed, other) = read_back(tmp_path / "leaderboard.csv")
    start = start.replace("\r", "\n")
    assert header == ["run_name", "seed", f"'{start}x"]
    assert (name, seed, other) == (f"""'{start}cmd|" /C calc"!A0, b""", "-1", "plain")


def test_text_that_no_spreadsheet_would_run_is_left_alone(tmp_path):
    names = ["a=b", "1-2", "x, y", 'say "so"', "two\nlines", "[0.1]"]
    table.write_csv(pd.DataFrame({"run_name": names}), tmp_path / "leaderboard.csv")
    assert read_back(tmp_path / "leaderboard.csv")[1:] == [[name] for name in names]


def test_a_lone_carriage_return_makes_no_new_line(tmp_path):
    table.write_csv(pd.DataFrame({"reason": ["one\rtwo\r\nthree"]}), tmp_path / "leaderboard.csv")
    assert read_back(tmp_path / "leaderboard.csv")[1:] == [["one\ntwo\nthree"]]


def test_a_leaderboard_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "made" / "leaderboard.csv"
    table.write_csv(pd.DataFrame({"rank": [1]}), path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"report.output: cannot write .*, got No space left on device .give another"):
        table.write_csv(pd.DataFrame({"rank": [2]}), path)
    assert path.read_text() == "rank\n1\n"
    assert list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------- show


def printed(frame, *, top=20, path=None, **options):
    file = StringIO()
    table.show(frame, top, Console(file=file, no_color=True, **options), path)
    return file.getvalue()


@pytest.fixture
def many(load):
    def one(lr, momentum, seed):
        params = {"seed": seed, "momentum": momentum, "lrs": f"[{lr}, 0.001]", "dropout": lr}
        metrics = {"val/acc": 0.97216 + lr / 100, "val/loss": 0.1, "test/acc": 0.9, "test/loss": 0.12345 * lr}
        name = f"300-100 sgd lr {lr} momentum {momentum} batch_size 32 and a long tail seed {seed}"
        status = "finished" if seed else "failed"
        return run(name, status=status, metrics=metrics | {"train_seconds": 12.34}, **params)

    return load(*itertools.starmap(one, itertools.product((0.1, 0.01), (0.0, 0.9), (0, 1, 2))))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_a_terminal_and_keeps_what_matters_most(many, width):
    for frame in (ranking.rank(many), ranking.aggregate(many, "seed")):
        text = printed(frame, width=width, force_terminal=True, color_system=None, legacy_windows=False)
        *table, summary = text.splitlines()
        assert max(map(len, table)) <= width
        assert len(table) == 1 + len(frame)
        assert "val_acc" in table[0]
        assert summary == "12 runs, 4 failed; ranked by val_acc"


def test_the_table_shows_percentages_short_ids_and_only_what_varies(many):
    header, first, *_ = printed(ranking.rank(many), width=120, force_terminal=True, color_system=None).splitlines()
    assert "97.32 %" in first
    assert f" {ranking.rank(many)['run_id'][0][:8]} " in first
    assert "seed" in printed(ranking.rank(many))
    assert "batch_size" not in header
    assert "dataset" not in header


def test_the_table_of_an_aggregation_shows_mean_and_deviation(load):
    frame = load(
        run("a", seed=1, metrics={"test/acc": 0.90, "test/loss": 0.25}),
        run("b", seed=2, metrics={"test/acc": 0.92, "test/loss": 0.25}),
        run("c", seed=1, lrs="[1.0]", metrics={"test/acc": 0.5, "test/loss": 12345.6}),
    )
    text = printed(ranking.aggregate(frame, "seed"))
    assert "91.00 ± 1.41 %" in text
    assert "0.2500 ± 0.0000" in text
    assert "50.00 %" in text
    assert "1.235e+04" in text
    assert "val_acc" not in text


def test_elsewhere_than_on_a_terminal_the_table_is_plain_aligned_and_uncut(many):
    *table, _ = printed(ranking.rank(many), width=80).splitlines()
    assert len({len(line) for line in table}) == 1
    assert all(
        name in table[0] for name in ("run_name", "lrs", "momentum", "dropout", "seed", "train_seconds", "status")
    )
    assert "and a long tail seed 1" in table[1]
    assert "\x1b" not in "".join(table)


def test_names_steer_neither_the_markup_nor_the_terminal(load):
    text = printed(ranking.rank(load(run("[bold]a[/] :smile: \x1b[31m\nb"))), force_terminal=True, color_system=None)
    assert "[bold]a[/] :smile:  [31m b" in text


def test_the_last_line_says_how_many_runs_there_are_and_where_the_rest_is(many):
    text = printed(ranking.rank(many), top=2, path=Path("leaderboard.csv"))
    assert len(text.splitlines()) == 1 + 2 + 1
    assert "status" not in text.splitlines()[0]  # both lines are of finished runs
    expected = "12 runs, 4 failed; ranked by val_acc; first 2 of 12 lines above; all in leaderboard.csv"
    assert text.splitlines()[-1] == expected


def test_an_experiment_without_runs_gives_a_clear_line_and_a_file_with_its_header(load, tmp_path):
    path = tmp_path / "leaderboard.csv"
    frame = load()
    for ranked in (ranking.rank(frame), ranking.aggregate(frame, "seed")):
        table.write_csv(ranked, path)
        (header,) = read_back(path)
        assert header == list(ranked)
        expected = "no runs yet, so leaderboard.csv has only its header (train one: stagetree train)\n"
        assert printed(ranked, path=Path("leaderboard.csv")) == expected
    assert printed(ranking.rank(frame, "val_acc")) == "no runs yet (train one: stagetree train)\n"


def test_runs_that_cannot_be_compared_have_tables_of_their_own(load):
    frame = load(
        run("one", dataset="cifar10", metrics={"test/acc": 0.5}),
        run("two", dataset="mnist", metrics={"test/acc": 0.9}),
        run("three", dataset="mnist", seed=1, metrics={"test/acc": 0.8}),
    )
    *table, last = printed(ranking.rank(frame), top=1).splitlines()
    starts = [" ".join(line.split()[:2]) for line in table]
    assert starts == ["mnist, by", "rank run_name", "1 two", "cifar10, by", "rank run_name", "1 one"]
    assert last == (
        "3 runs, 0 failed; ranked within 2 groups, since the data or its division differs; first 2 of 3 lines above"
    )


def test_runs_without_the_metric_are_told_not_only_left_without_a_rank(load):
    frame = load(run("a", metrics={"test/acc": 0.5, "val/acc": 0.5}), run("b", seed=1, metrics={"test/acc": 0.9}))
    expected = "2 runs, 0 failed; ranked by val_acc; 1 finished without a finite val_acc, so without a rank"
    assert printed(ranking.rank(frame)).splitlines()[-1] == expected
