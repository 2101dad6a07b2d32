"""Random grids, schedules, kills, extensions and damage: whatever came before, what is left is true.

`make properties` runs 1,000 cases, `make test` a few of them, the same ones each time.
"""

import csv
import json
import math
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import children
import numpy as np
import plain
import pytest
import torch
import truth
from children import Death
from hypothesis import example, given, note
from hypothesis import strategies as st
from safetensors.torch import load_file

Schedule = tuple[tuple[int, float], ...]

LRS = (0.1, 0.03)
"""Few, so that prefixes are often shared."""
OPTIMIZERS = (
    "optimizer=sgd", "optimizer=sgd|adam", "optimizer=sgd optimizer.momentum=0|0.9",
    "optimizer=sgd optimizer.momentum=0.9 optimizer.nesterov=true optimizer.weight_decay=0.01", "optimizer=adam",
    "optimizer=adam optimizer.amsgrad=true", "optimizer=adamw", "optimizer=nadam", "optimizer=radam",
    "optimizer=adamax", "optimizer=rmsprop optimizer.centered=true optimizer.momentum=0.5", "optimizer=adagrad",
    "optimizer=adadelta", "optimizer=adagrad|rmsprop",
)  # fmt: skip
LOSSES = ("loss=cross_entropy", "loss=cross_entropy loss.label_smoothing=0.1", "loss=mse",
          "loss=nll loss.class_weights=[1,2,0.5]")  # fmt: skip
DATA = ["dataset=npz", "dataset.file=tiny.npz"]
QUIETLY = ["trainer.device=cpu", "execution.workers=1", "hydra/launcher=basic", "quiet=true", "report.page=false"]
ALONE = ["execution.pack_size=1", "execution.share_prefixes=false", "execution.fresh=false", *QUIETLY]


@dataclass(frozen=True)
class Damage:
    """What happens to one of the checkpoint's files between two commands."""

    file: int
    """Which of them, in the order of their names, counted around."""
    share: float | None
    """How much of it is left; `None`: it is deleted."""


@dataclass(frozen=True)
class Command:
    """One sweep."""

    schedules: tuple[Schedule, ...]
    seeds: str
    settings: tuple[str, ...]
    """Such as decide no number."""
    damage: Damage | None
    """Before it starts."""
    live: bool
    death: Death | None


@dataclass(frozen=True)
class Case:
    """Sweeps of one output folder, one after the other; the last one is not killed."""

    trunk: str
    """Overrides that all of them have; `|` stands between the values of a grid."""
    commands: tuple[Command, ...]
    chosen: int
    """One of the last command's runs, by its place in the order of uids, counted around."""
    compared: str | None
    """With what it is compared beside the records."""


stages = st.tuples(st.integers(1, 3), st.sampled_from(LRS))
schedules = st.lists(stages, min_size=1, max_size=3).map(tuple)


@st.composite
def trunks(draw) -> str:
    return " ".join([
        draw(st.sampled_from(OPTIMIZERS)),
        draw(st.sampled_from(LOSSES)),
        f"model.hidden_sizes={draw(st.sampled_from(['[]', '[4]', '[5,3]', '[4]|[5,3]']))}",
        f"model.activation={draw(st.sampled_from(['relu', 'gelu', 'tanh']))}",
        f"model.dropout={draw(st.sampled_from(['0', '0.2']))}",
        f"dataset.val_size={draw(st.sampled_from([0, 10]))}",
        f"trainer.batch_size={draw(st.sampled_from([8, 16]))}",
        f"trainer.shuffle={draw(st.sampled_from(['true', 'true', 'false']))}",
        f"schedule.reset_optimizer={draw(st.booleans())}".lower(),
    ])  # fmt: skip


@st.composite
def changed(draw, before: tuple[Schedule, ...]) -> tuple[Schedule, ...]:
    """The same schedules again, longer ones, shorter ones, other branches, or others."""
    how = draw(st.sampled_from(["again", "a further stage", "a longer stage", "shorter", "a branch", "others"]))
    if how == "a further stage":
        more = draw(stages)
        return tuple((*one, more) for one in before)
    if how == "a longer stage":
        more = draw(st.integers(1, 2))
        return tuple((*one[:-1], (one[-1][0] + more, one[-1][1])) for one in before)
    if how == "shorter":
        return (*before, before[0][:1])
    if how == "a branch":
        return (*before, (*before[-1][:-1], draw(stages)))
    return before if how == "again" else tuple(draw(st.lists(schedules, min_size=1, max_size=2)))


@st.composite
def cases(draw) -> Case:
    count = draw(st.integers(1, 4))
    commands: list[Command] = []
    planned = tuple(draw(st.lists(schedules, min_size=1, max_size=3)))
    for k in range(count):
        if k:
            planned = draw(changed(planned))
        steps = st.tuples(st.sampled_from(["file", "event", "store"]), st.integers(0, 40), st.booleans())
        commands.append(
            Command(
                schedules=tuple(dict.fromkeys(planned)),
                seeds=draw(st.sampled_from(["0", "1", "0|1"])),
                settings=(
                    f"execution.pack_size={draw(st.sampled_from([1, 2, 64]))}",
                    f"execution.share_prefixes={draw(st.sampled_from(['true', 'true', 'false']))}",
                    f"execution.test_every_epoch={draw(st.booleans())}".lower(),
                    f"execution.checkpoint_every_s={draw(st.sampled_from([0, 60]))}",
                    f"execution.fresh={draw(st.sampled_from(['false', 'false', 'false', 'true']))}",
                ),
                damage=draw(st.none() | st.builds(Damage, st.integers(0, 50), st.sampled_from([None, 0.0, 0.5])))
                if k else None,
                live=draw(st.booleans()),
                death=Death(*draw(steps)) if k < count - 1 and draw(st.booleans()) else None,
            )
        )  # fmt: skip
    compared = draw(st.sampled_from([None, "alone", "plain torch"]))
    return Case(draw(trunks()), tuple(commands), draw(st.integers(0, 20)), compared)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Sixty images of 4x4 in three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.integers(0, 120, (60, 4, 4)) + 60 * (np.arange(16).reshape(4, 4) % 3 == y[:, None, None])
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, train_x=x[:40].astype("uint8"), train_y=y[:40], test_x=x[40:].astype("uint8"), test_y=y[40:])
    children.warm_up([*DATA, f"dataset.root={path.parent}", f"output_dir={path.parent}/warm", *QUIETLY])
    return path


def words(case: Case, command: Command, npz: Path) -> list[str]:
    """The overrides, `|` between the values of a grid."""
    listed = "|".join("[" + ",".join(f"({n},{lr})" for n, lr in one) + "]" for one in command.schedules)
    return [
        *DATA, f"dataset.root={npz.parent}", *case.trunk.split(), f"schedule.stages={listed}", f"seed={command.seeds}",
        *command.settings, *QUIETLY,
    ]  # fmt: skip


def new_folder(parent: Path, template: Path) -> Path:
    """A working directory with an empty store."""
    parent.mkdir()
    (parent / "mlruns").mkdir()
    shutil.copy(template, parent / "mlruns/mlflow.db")
    return parent


def do_damage(checkpoints: Path, damage: Damage) -> str | None:
    """Damage a file in a copy of its own, as a broken disk would: its links elsewhere stay whole."""
    files = sorted(path for path in checkpoints.glob("*") if path.suffix in (".json", ".safetensors"))
    if not files:
        return None
    path = files[damage.file % len(files)]
    content = path.read_bytes()
    path.unlink()
    if damage.share is not None:
        path.write_bytes(content[: int(len(content) * damage.share)])
    return path.name


def settings_of(pack_size: int, share: str, fresh: str) -> tuple[str, ...]:
    given = {"pack_size": pack_size, "share_prefixes": share, "test_every_epoch": "true", "checkpoint_every_s": 0}
    return tuple(f"execution.{name}={value}" for name, value in (given | {"fresh": fresh}).items())


TRUNK = "optimizer=adam loss=mse model.hidden_sizes=[4] model.activation=relu model.dropout=0.2 dataset.val_size=0"
TWO: tuple[Schedule, ...] = (((1, 0.1),), ((2, 0.1), (1, 0.03)))
KILLED_WHILE_IT_REPLACES = Case(
    TRUNK,
    (
        Command(TWO, "1", settings_of(1, "true", "false"), None, False, None),
        Command(TWO, "0|1", settings_of(64, "false", "true"), None, True, Death("event", 9, True)),
        Command(TWO, "0", settings_of(64, "true", "false"), None, False, None),
    ),
    0,
    None,
)
ONE_RUN_REPLACED_AFTER_A_LEADERBOARD = Case(
    TRUNK,
    (
        Command(TWO[:1], "0|1", settings_of(1, "true", "false"), None, True, None),
        Command(TWO[:1], "1", settings_of(1, "false", "true"), None, True, None),
    ),
    0,
    "plain torch",
)


@given(case=cases())
@example(case=KILLED_WHILE_IT_REPLACES)
@example(case=ONE_RUN_REPLACED_AFTER_A_LEADERBOARD)
def test_whatever_came_before_all_that_is_recorded_is_true(case, images, template, tmp_path_factory):
    parent = tmp_path_factory.mktemp("case")
    try:
        check(case, images, template, parent)
    finally:
        shutil.rmtree(parent)


def check(case: Case, images: Path, template: Path, parent: Path) -> None:
    folder = new_folder(parent / "folder", template)
    database, checkpoints = folder / "mlruns/mlflow.db", folder / "mlruns/checkpoints"
    damaged, grid = set(), []
    for command in case.commands:
        if command.damage is not None:
            damaged.add(do_damage(checkpoints, command.damage))
            note(f"damaged: {damaged}")
        grid = words(case, command, images)
        overrides = [word.replace("|", ",") for word in grid]
        began = time.monotonic()
        ended = children.sweep(folder, overrides, live=command.live, death=command.death)
        took = time.monotonic() - began
        note(f"{'ended' if ended else 'killed'} after {took:.1f} s: stagetree sweep {shlex.join(overrides)}")
    leaderboard = folder / "leaderboard.csv"
    points = math.prod(word.count("|") + 1 for word in grid)
    several = points > 1  # a single run writes no leaderboard, and that of an earlier sweep is as old as that one
    faults = truth.differences(database, checkpoints, leaderboard if several else None, damaged=damaged)
    assert not faults, "\n".join(faults)
    found = sorted(truth.recorded(database), key=lambda run: run.uid)
    assert "RUNNING" not in {run.status for run in found}
    if several:
        with open(leaderboard, newline="") as file:
            assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * points
    last = planned(folder)
    assert len(last) == points
    trained = [run for run in found if run.uid in last]
    assert [run.status for run in trained] == ["FINISHED"] * points
    run = trained[case.chosen % points]
    record = truth.record_of(checkpoints, run.uid)
    if case.compared == "alone":
        alone = new_folder(parent / "alone", template)
        children.sweep(alone, [*run.overrides, *ALONE])
        assert bits(record) == bits(truth.record_of(alone / "mlruns/checkpoints", run.uid))
    if case.compared == "plain torch":
        weights, test = plain.train(run.config)
        kept = load_file(run.artifact("weights.safetensors"))
        torch.testing.assert_close(kept, dict(weights), rtol=1e-3, atol=1e-4)
        assert record["test"]["test/loss"] == pytest.approx(test["test/loss"], rel=1e-3, abs=1e-4)


def planned(folder: Path) -> set[str]:
    """The uids of the last sweep's runs."""
    launches = (folder / "mlruns/sweeps").glob("*/*/sweep.json")
    last = max(launches, key=lambda path: path.stat().st_mtime_ns)
    return {run["uid"] for run in json.loads(last.read_text())["runs"]}


def bits(record: dict) -> tuple:
    """All but times, and the test metrics that were asked for on the way."""
    history = [
        {name: value for name, value in line.items() if name != "seconds" and not name.startswith("test/")}
        for line in record["history"]
    ]
    return record["weights_sha256"], [line for line in history if len(line) > 1], record["test"]
