"""The invariants of training. "Bits" are the weights' SHA-256, every epoch's metrics and the final figures."""

import math
from collections import Counter

import pytest
import torch
from bench import Bench

from stagetree.models.optimizers import CLASSES
from stagetree.storage import checkpoints
from stagetree.storage.events import EpochEnded, Failed, PackBegan
from stagetree.training import trainer as train_module
from stagetree.tree.stage_tree import Finished, StageTree

OPTIMIZERS = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "adam", "weight_decay": 0.01},
    {"name": "rmsprop", "momentum": 0.5, "centered": True},
]


def trained(events):
    """How often each epoch of each state was trained."""
    return Counter((e.uid, e.epoch) for e in events if isinstance(e, EpochEnded) and e.epoch > 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("reset", [True, False])
def test_a_shared_prefix_equals_an_unbroken_run(bench, other, optimizer, reset):
    """Invariant 1."""
    stages = ([[2, 0.05], [1, 0.01]], [[2, 0.05], [2, 0.02]], [[3, 0.05]])
    runs = [
        bench.run(optimizer=optimizer, schedule={"stages": one, "reset_optimizer": reset}, model__dropout=0.2)
        for one in stages
    ]
    events = bench.train(*runs)
    assert sum(trained(events).values()) == 2 + 1 + 2 + 1
    for run in runs:
        other.train(run, share=False)
        assert bench.bits(run) == other.bits(run)


def test_carrying_the_optimizer_over_differs_from_resetting_it(bench):
    stages = [[2, 0.05], [2, 0.05]]
    runs = [
        bench.run(optimizer={"name": "adam"}, schedule={"stages": stages, "reset_optimizer": reset})
        for reset in (True, False)
    ]
    unbroken = bench.run(optimizer={"name": "adam"}, schedule={"stages": [[4, 0.05]], "reset_optimizer": True})
    bench.train(*runs, unbroken)
    reset, carried, whole = [bench.bits(run)[0] for run in (*runs, unbroken)]
    assert reset != carried == whole


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_member_of_a_pack_equals_the_run_alone(bench, other, optimizer, loss):
    """Invariant 2, for several K; members differ in seed, learning rate and settings, and one diverges to NaN."""

    def run(seed, lr):
        own = {**optimizer, "weight_decay": 0.001 * (seed % 2)} if optimizer != {"name": "sgd"} else optimizer
        return bench.run(
            seed=seed, optimizer=own, schedule={"stages": [[2, lr], [1, lr / 2]]}, loss={"name": loss},
            model__dropout=0.2, model__activation="gelu",
        )  # fmt: skip

    runs = [run(seed, lr) for seed, lr in [(0, 0.01), (0, 0.02), (1, 0.01), (2, 0.03), (3, 0.01)]]
    broken = run(4, 1e38)
    events = bench.train(*runs, broken, pack_size=6)
    assert max(len(e.uids) for e in events if isinstance(e, PackBegan)) == 6
    assert [e.uid for e in events if isinstance(e, Failed)] == [first_state(broken)]
    for run in runs:
        other.train(run)
        assert bench.bits(run) == other.bits(run)
    for size in (2, 3):
        for path in bench.checkpoints.iterdir():
            path.unlink()
        events = bench.train(*runs, broken, pack_size=size)
        assert max(len(e.uids) for e in events if isinstance(e, PackBegan)) == size
        assert all(bench.bits(run) == other.bits(run) for run in runs)


def first_state(run):
    return StageTree.build([run]).roots[0].uid


def test_a_diverged_run_says_why_and_its_neighbours_finish(bench):
    good = bench.run()
    bad = bench.run(schedule={"stages": [[3, 1e38], [2, 0.1]]})
    events = bench.train(good, bad)
    (failure,) = [e for e in events if isinstance(e, Failed)]
    assert failure.reason == "diverged at lr 1e+38: train/loss became nan in epoch 1"
    assert checkpoints.read_record(bench.checkpoints, good.uid).test is not None
    assert checkpoints.read_record(bench.checkpoints, bad.uid) is None


@pytest.mark.parametrize("optimizer", sorted(CLASSES))
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("val_size", [0, 40])
def test_however_far_runs_blow_up_each_is_trained_once_and_says_diverged_or_has_finite_metrics(
    bench, other, optimizer, loss, val_size
):
    """Invariant 2. The rule is: a metric that is no finite number, the last test loss included."""

    def run(lr):
        return bench.run(
            optimizer={"name": optimizer},
            loss={"name": loss},
            schedule={"stages": [[1, lr]]},
            dataset__val_size=val_size,
        )

    good, wild = run(0.01), [run(lr) for lr in (1e4, 1e12, 1e18, 1e24, 1e36)]
    events = bench.train(good, *wild)
    assert [len(e.uids) for e in events if isinstance(e, PackBegan)] == [6]
    reasons = {e.uid: e.reason for e in events if isinstance(e, Failed)}
    for one in wild:
        record = checkpoints.read_record(bench.checkpoints, one.uid)
        if one.uid in reasons:
            assert reasons[one.uid].startswith(f"diverged at lr {one.stages[0].lr:g}: ")
            assert record is None or record.test is None
        else:
            assert all(math.isfinite(value) for line in (*record.history, record.test) for value in line.values())
    other.train(good)
    assert bench.bits(good) == other.bits(good)


def test_an_infinite_test_loss_fails_the_run_that_ends_there_and_not_one_that_goes_on(tmp_path, bright):
    """Invariant 7: the test set decides nothing within a run."""
    npz, stages = bright
    bench = Bench(tmp_path, npz)
    ends, goes_on = (
        bench.run(
            dataset={"name": "npz", "root": str(npz.parent), "file": npz.name, "val_size": 0, "std": [0.004]},
            model__hidden_sizes=[], loss={"name": "mse"}, trainer__batch_size=60, schedule={"stages": own},
        )
        for own in stages
    )  # fmt: skip
    events = bench.train(ends, goes_on, test_every_epoch=True)
    assert set(trained(events).values()) == {1}
    failures = [(e.uid, e.reason) for e in events if isinstance(e, Failed)]
    assert failures == [(ends.uid, "diverged at lr 1e+17: test/loss became inf in epoch 1")]
    assert math.isfinite(bench.bits(goes_on)[2]["test/loss"])


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("epochs_before", [1, 3, 5, 6])
def test_killed_and_resumed_equals_uninterrupted(bench, other, monkeypatch, optimizer, epochs_before):
    """Invariant 3: killed after any epoch, within a stage or at its end, at most that epoch is trained again."""
    runs = [
        bench.run(seed=seed, optimizer=optimizer, schedule={"stages": [[4, 0.05], [3, 0.01]]}, model__dropout=0.2)
        for seed in (0, 1)
    ]
    real, calls = train_module._Members.train_epoch, []

    def dying(*args):
        if len(calls) == epochs_before:
            raise Killed
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(train_module._Members, "train_epoch", dying)
    with pytest.raises(Killed):
        bench.train(*runs, checkpoint_every_s=0)
    monkeypatch.setattr(train_module._Members, "train_epoch", real)
    again = sum(trained(bench.train(*runs, checkpoint_every_s=0)).values())
    assert again == 2 * (7 - epochs_before)
    other.train(*runs)
    for run in runs:
        assert bench.bits(run) == other.bits(run)
    # only states that a run or a stage ends at are kept
    assert len(list(bench.checkpoints.glob("*.json"))) == 4


def test_each_node_is_trained_once_and_a_finished_sweep_trains_nothing(bench):
    """Invariant 4."""
    runs = [bench.run(schedule={"stages": [[2, a], [1, b]]}) for a in (0.1, 0.2) for b in (0.01, 0.02, 0.03)]
    events = bench.train(*runs)
    assert set(trained(events).values()) == {1}
    assert sum(trained(events).values()) == 2 * (2 + 3)
    assert sum(trained(bench.train(*runs)).values()) == 0


def test_a_finished_run_is_extended_by_the_new_epochs_alone(bench, other):
    bench.train(bench.run(schedule={"stages": [[2, 0.1], [1, 0.01]]}))
    longer = bench.run(schedule={"stages": [[2, 0.1], [1, 0.01], [2, 0.001]]})
    assert sum(trained(bench.train(longer)).values()) == 2
    longer_stage = bench.run(schedule={"stages": [[2, 0.1], [3, 0.01]]})
    assert sum(trained(bench.train(longer_stage)).values()) == 2
    other.train(longer, share=False)
    other.train(longer_stage, share=False)
    assert (bench.bits(longer), bench.bits(longer_stage)) == (other.bits(longer), other.bits(longer_stage))


def test_a_prefix_that_becomes_a_run_is_only_evaluated(bench, other):
    bench.train(bench.run(schedule={"stages": [[2, 0.1], [1, 0.01]]}))
    prefix = bench.run(schedule={"stages": [[2, 0.1]]})
    assert checkpoints.read_record(bench.checkpoints, prefix.uid).test is None
    assert sum(trained(bench.train(prefix)).values()) == 0
    other.train(prefix)
    assert bench.bits(prefix) == other.bits(prefix)


def test_the_test_split_is_read_only_for_final_figures(bench, monkeypatch):
    """Invariant 7."""
    parts = []
    real = train_module.evaluate
    monkeypatch.setattr(train_module, "evaluate", lambda *args: (parts.append(args[-1]), real(*args))[1])
    bench.train(bench.run(schedule={"stages": [[2, 0.1], [2, 0.01]]}))
    assert parts == ["val"] * 5 + ["test"]  # before training and after each of 4 epochs


def test_a_state_within_a_run_has_no_test_figures_even_beside_one_that_ends(bench):
    """Invariant 7."""
    ends, goes_on = bench.run(schedule={"stages": [[2, 0.1]]}), bench.run(seed=1)
    bench.train(ends, goes_on)
    assert checkpoints.read_record(bench.checkpoints, ends.uid).test is not None
    assert checkpoints.read_record(bench.checkpoints, first_state(goes_on)).test is None


def test_evaluating_the_test_set_each_epoch_changes_no_result(bench, other):
    run = bench.run()
    bench.train(run, test_every_epoch=True)
    other.train(run)
    weights, history, test = bench.bits(run)
    assert (weights, test) == (other.bits(run)[0], other.bits(run)[2])
    assert [line["epoch"] for line in history] == [0, 1, 2, 3]
    assert history[-1]["test/acc"] == test["test/acc"]


def test_the_baseline_is_evaluated_before_training(bench):
    run = bench.run()
    bench.train(run)
    first = bench.bits(run)[1][0]
    assert first["epoch"] == 0
    assert set(first) == {"epoch", "val/loss", "val/acc"}


def test_an_error_in_one_member_is_found_inside_its_pack(bench, monkeypatch):
    runs = [bench.run(seed=seed) for seed in range(5)]
    real = train_module.initial_state
    monkeypatch.setattr(
        train_module, "initial_state",
        lambda seed, *rest: real(seed, *rest) if seed != 3 else (_ for _ in ()).throw(MemoryError("too much")),
    )  # fmt: skip
    events = bench.train(*runs)
    assert [e.reason for e in events if isinstance(e, Failed)] == ["MemoryError: too much"]
    done = checkpoints.finished(bench.checkpoints)
    assert [run.uid in done.tested for run in runs] == [True, True, True, False, True]


def test_nothing_finished_is_an_empty_set(bench):
    assert checkpoints.finished(bench.checkpoints) == Finished()


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:3], ids=lambda o: "-".join(map(str, o.values())))
def test_bfloat16_learns_what_float32_does_with_float32_weights(bench, optimizer):
    figures = {}
    for precision in ("float32", "bfloat16"):
        run = bench.run(optimizer=optimizer, schedule={"stages": [[6, 0.05]]}, trainer__precision=precision)
        bench.train(run)
        record, weights, _ = checkpoints.load(bench.checkpoints, run.uid)
        assert {value.dtype for value in weights.values()} == {torch.float32}
        figures[precision] = [line["train/loss"] for line in record.history if line["epoch"]]
    assert figures["bfloat16"] != figures["float32"]
    assert figures["bfloat16"][:3] == pytest.approx(figures["float32"][:3], rel=0.05)  # then they part
    assert figures["bfloat16"][-1] < figures["bfloat16"][0]
