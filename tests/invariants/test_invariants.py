"""What is always true of stagetree: each invariant is quoted above the test that would fail without it.

"Bits" are the SHA-256 of the weights, the metrics of every epoch and the final metrics, on the CPU at one thread.
"""

import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import stores
import sweeps
import truth
from bench import OPTIMIZERS, Bench, trained

import stagetree
from stagetree.config.composition import Job
from stagetree.errors import InputError
from stagetree.planning import planner
from stagetree.report import ranking
from stagetree.storage import checkpoints
from stagetree.storage.events import Failed, PackBegan
from stagetree.tree.runs import prefix_uid
from stagetree.tree.stage_tree import StageTree

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))


@each_optimizer
@pytest.mark.parametrize("reset", [True, False])
def test_a_shared_prefix_equals_an_unbroken_run(bench, other, optimizer, reset):
    """Invariant 1. A shared prefix equals an unbroken run: same bits (CPU, one thread)."""
    stages = ([[2, 0.05], [1, 0.01]], [[2, 0.05], [2, 0.02]], [[3, 0.05]])
    runs = [
        bench.run(optimizer=optimizer, schedule={"stages": one, "reset_optimizer": reset}, model__dropout=0.2)
        for one in stages
    ]
    assert trained(bench.train(*runs)).total() == 2 + 1 + 2 + 1
    for run in runs:
        other.train(run, share=False)
        assert bench.bits(run) == other.bits(run)


@each_optimizer
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_member_of_a_pack_equals_the_run_alone(bench, other, optimizer, loss, size):
    """Invariant 2. A member of a pack equals the run alone: same bits, for any K and any neighbours, one of them
    diverging to NaN included."""

    decays = optimizer != {"name": "sgd"}  # with weight decay, plain SGD would be of another shape
    changes = {"loss": {"name": loss}, "model__dropout": 0.2, "model__activation": "gelu"}

    def run(seed, lr):
        own = {**optimizer, "weight_decay": 0.001 * (seed % 2)} if decays else optimizer
        return bench.run(seed=seed, optimizer=own, schedule={"stages": [[2, lr], [1, lr / 2]]}, **changes)

    runs = [run(seed, lr) for seed, lr in [(0, 0.01), (0, 0.02), (1, 0.01), (2, 0.03), (3, 0.01)]]
    broken = run(4, 1e38)
    events = bench.train(*runs, broken, pack_size=size)
    assert max(len(event.uids) for event in events if isinstance(event, PackBegan)) == size
    diverged = [event.uid for event in events if isinstance(event, Failed)]
    assert diverged == [prefix_uid(broken.trunk.json, broken.stages[:1])]
    for one in runs:
        other.train(one)
        assert bench.bits(one) == other.bits(one)


@each_optimizer
@pytest.mark.parametrize("files", [1, 6, 11, 17, 22])
def test_killed_and_resumed_equals_uninterrupted(bench, other, optimizer, files):
    """Invariant 3. Killed and resumed equals uninterrupted: same bits."""
    schedule = {"stages": [[4, 0.05], [3, 0.01]], "reset_optimizer": False}
    runs = [bench.run(seed=seed, optimizer=optimizer, schedule=schedule, model__dropout=0.2) for seed in (0, 1)]
    once = trained(bench.train_until_killed(*runs, files=files, checkpoint_every_s=0))
    again = trained(bench.train(*runs))
    assert once
    assert again
    assert (once + again).total() <= 2 * (7 + 1), "of each run one epoch is trained again at most"
    other.train(*runs)
    assert [bench.bits(run) for run in runs] == [other.bits(run) for run in runs]


def test_each_node_is_trained_once_and_a_finished_sweep_trains_nothing(bench):
    """Invariant 4. Each node of the tree is trained once a sweep; a finished sweep trains nothing; the order of choices
    does not change the plan."""
    runs = [bench.run(schedule={"stages": [[2, a], [1, b]]}) for a, b in product((0.1, 0.2), (0.01, 0.02, 0.03))]
    nodes = StageTree.build(runs).walk()
    epochs = {(node.uid, node.first_epoch + k): 1 for node in nodes for k in range(1, node.epochs + 1)}
    assert len(epochs) == 2 * (2 + 3)
    assert trained(bench.train(*runs)) == epochs
    assert not [event for event in bench.train(*reversed(runs)) if isinstance(event, PackBegan)]
    jobs = [Job((), bench.config(seed=seed, model__dropout=p)) for seed, p in product((0, 1), (0.1, 0.2))]
    plans = [planner.plan(order, workers=2) for order in (jobs, [jobs[k] for k in (3, 1, 0, 2)])]
    assert plans[0].tree == plans[1].tree
    assert (plans[0].units, plans[0].sweep_id) == (plans[1].units, plans[1].sweep_id)


PRINT_UIDS = """
import sys
from stagetree.config import identity, schema
from stagetree.tree.runs import Stage, prefix_uid
print(prefix_uid('{"data":"00","seed":1}', (Stage(20, 1e-1), Stage(10, 1e-3))))
config = schema.Config.model_validate_json(sys.argv[1])
print(identity.to_run(config, digest="00", in_features=64, n_classes=10, device="cpu").uid)
"""


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_uid_is_the_same_in_every_process_and_on_every_machine(bench, hash_seed):
    """Invariant 5. A uid is the same in every process and on every machine: literal hex strings are in a test."""
    command = [sys.executable, "-c", PRINT_UIDS, bench.config().model_dump_json()]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    assert subprocess.check_output(command, text=True, env=environment).split() == [
        "f839740d1dfd9a61c205165a1c70ddbe06aed976fb5cf554de9d93b83aa0aae7",
        "2168e3913d6d79b70727c0936d6a35ea7a396b6674be7299c5f5fbababfd25af",
    ]


DECIDES = {
    "dataset": {"mean": [0.5], "std": [0.5], "val_size": 100, "val_seed": 5},
    "model": {"hidden_sizes": [32], "activation": "tanh", "dropout": 0.1},
    "optimizer": {"name": "adam", "weight_decay": 1e-7},
    "schedule": {"stages": [[2, 0.2]], "reset_optimizer": False},
    "loss": {"name": "nll", "label_smoothing": 0.1},
    "trainer": {"batch_size": 15, "eval_batch_size": 7, "shuffle": False, "precision": "bfloat16", "threads": 2},
    "": {"seed": 1},
}
DECIDES_NOT = {
    "dataset": {"duplicates": "ignore"},
    "trainer": {"device": "auto"},
    "execution": {
        "pack_size": 3,
        "share_prefixes": False,
        "fresh": True,
        "workers": 4,
        "workers_per_device": 2,
        "test_every_epoch": True,
        "checkpoint_every_s": 1.0,
    },
    "tracking": {"experiment": "other", "uri": "http://127.0.0.1:1", "artifacts": "s3://bucket"},
    "report": {"top": 3},
    "": {"output_dir": "elsewhere", "quiet": True},
}
IN_THE_DATA = {"dataset__name", "dataset__root", "dataset__file", "dataset__test_size", "dataset__test_seed"}


def flat(settings):
    """Name each setting as `Bench` does."""
    return {
        f"{group}__{name}".removeprefix("__"): value for group, own in settings.items() for name, value in own.items()
    }


def test_what_decides_the_numbers_changes_the_uid_and_nothing_else_does(bench, tmp_path):
    """Invariant 6. One changed byte of data, or one changed setting that decides the numbers, changes the uid. One that
    does not leaves it."""
    uid = bench.run().uid
    changed, unchanged = (
        {path: bench.run(**{path: value}).uid for path, value in flat(settings).items()}
        for settings in (DECIDES, DECIDES_NOT)
    )
    assert len({uid, *changed.values()}) == 1 + len(changed)
    assert set(unchanged.values()) == {uid}
    for group in (
        "dataset",
        "model",
        "schedule",
        "trainer",
        "execution",
    ):  # a new setting must be sorted into one of these
        known = {f"{group}__{name}" for name in type(getattr(bench.config(), group)).model_fields}
        assert known <= changed.keys() | unchanged.keys() | IN_THE_DATA
    with np.load(bench.npz) as loaded:
        values = dict(loaded)
    np.savez(tmp_path / "same.npz", **values)
    values["train_x"][5, 2, 2] ^= 1
    np.savez(tmp_path / "other.npz", **values)
    assert Bench(bench.output_dir, tmp_path / "same.npz").run().uid == uid
    assert Bench(bench.output_dir, tmp_path / "other.npz").run().uid != uid


def test_the_test_split_is_read_only_for_final_metrics(bench, tmp_path, load):
    """Invariant 7. The test split is read only for final metrics, never to choose."""
    with np.load(bench.npz) as loaded:
        np.savez(tmp_path / "other.npz", **{**loaded, "test_y": (loaded["test_y"] + 1) % 3})
    twin = Bench(tmp_path / "twin", tmp_path / "other.npz")  # its test labels alone are others
    bits = []
    for one in (bench, twin):
        runs = [one.run(schedule={"stages": [[2, 0.5], [1, lr]]}) for lr in (1e-3, 0.5)]
        one.train(*runs)
        bits.append([one.bits(run) for run in runs])
    for (weights, history, test), (twins_weights, twins_history, twins_test) in zip(*bits, strict=True):
        assert (weights, history) == (twins_weights, twins_history)
        assert test != twins_test
    frame = load(
        stores.run("chosen", metrics={"val/acc": 0.8, "test/acc": 0.1}),
        stores.run("better on the test split", metrics={"val/acc": 0.7, "test/acc": 0.9}),
    )
    assert stores.order(ranking.rank(frame)) == [(1, "chosen"), (2, "better on the test split")]


def test_any_configuration_error_is_reported_before_anything_trains(tmp_path, arrays, monkeypatch):
    """Invariant 8. Any configuration error is reported before anything trains: all at once, each with what, got,
    expected, cure."""
    monkeypatch.chdir(tmp_path)
    wrong = ["seed=1,-3", "model.activation=relu,rellu", "+model.dropuot=0.5", "trainer.eval_batch_size=0"]
    with pytest.raises(InputError) as error:
        stagetree.sweep(*sweeps.small(arrays), *wrong, "schedule.stages=[(2,0.1)],[(2,0.1),(0,0.1)]")
    assert sorted(str(error.value).splitlines()) == [
        "model.activation: got 'rellu', expected one of elu, gelu, leaky_relu, relu, sigmoid, silu, tanh; "
        "did you mean relu? (in model.activation=rellu)",
        "model.dropuot: there is no such setting, expected one of activation, dropout, hidden_sizes; "
        "did you mean dropout?",
        "schedule.stages: stages[1]: epochs must be a whole number of at least 1, got 0 "
        "(write stages as [[20, 1e-1], [10, 1e-3]]) (in schedule.stages=[[2,0.1],[0,0.1]])",
        "seed: must be at least 0, got -3 (in seed=-3)",
        "trainer.eval_batch_size: must be at least 1, got 0",
    ]
    assert list(tmp_path.iterdir()) == []


def test_leaderboard_checkpoints_and_mlflow_say_the_same(tmp_path, arrays):
    """Invariant 9. What the leaderboard says equals what the checkpoints say equals what MLflow says."""
    grid = ["seed=0,1", "schedule.stages=[(2,1e-1)],[(2,1e-1),(1,1e-2)],[(1,1e38)]", "report.page=false"]
    assert sweeps.stagetree(tmp_path, "sweep", *sweeps.small(arrays), *grid).returncode == 3  # two diverge
    output_dir = tmp_path / "mlruns"
    recorded = truth.recorded(output_dir / "mlflow.db")
    assert sorted(run.status for run in recorded) == ["FAILED"] * 2 + ["FINISHED"] * 4
    assert {row["run_id"] for row in sweeps.rows(tmp_path)} == {run.run_id for run in recorded}
    finished = {run.uid for run in recorded if run.status == "FINISHED"}
    assert finished == checkpoints.finished(output_dir / "checkpoints").tested
    leaderboard = tmp_path / "leaderboard.csv"
    assert not truth.differences(output_dir / "mlflow.db", output_dir / "checkpoints", leaderboard)
