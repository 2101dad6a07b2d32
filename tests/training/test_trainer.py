"""What training does beside the invariants, which tests/invariants has."""

import math

import pytest
import torch
from bench import OPTIMIZERS, Bench, trained

from stagetree.models.optimizers import CLASSES
from stagetree.storage import checkpoints
from stagetree.storage.events import Failed, PackBegan
from stagetree.training import trainer as train_module
from stagetree.tree.stage_tree import Finished, StageTree


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
    """The rule is: a metric that is no finite number, the last test loss included."""

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
    """The test set decides nothing within a run."""
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
    parts = []
    real = train_module.evaluate
    monkeypatch.setattr(train_module, "evaluate", lambda *args: (parts.append(args[-1]), real(*args))[1])
    bench.train(bench.run(schedule={"stages": [[2, 0.1], [2, 0.01]]}))
    assert parts == ["val"] * 5 + ["test"]  # before training and after each of 4 epochs


def test_a_state_within_a_run_has_no_test_figures_even_beside_one_that_ends(bench):
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
