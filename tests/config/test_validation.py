"""What is accepted, what is refused and how, and what decides a uid."""

import copy
import re
from typing import get_args

import numpy as np
import pytest

from stagetree.config import identity, schema
from stagetree.config.validation import check
from stagetree.data import cache
from stagetree.errors import InputError
from stagetree.tree.notation import parse_stages
from stagetree.tree.runs import Stage

BASE = {
    "dataset": {"name": "digits", "root": "", "test_size": 360},
    "model": {"hidden_sizes": [64]},
    "optimizer": {"name": "adam"},
    "schedule": {"stages": [[2, 0.1]]},
    "loss": {"name": "cross_entropy"},
    "trainer": {}, "execution": {}, "tracking": {}, "report": {},
    "seed": 0, "output_dir": "mlruns",
}  # fmt: skip


def changed(**values):
    base = copy.deepcopy(BASE)
    for path, value in values.items():
        *groups, name = path.split("__")
        target = base
        for group in groups:
            target = target[group]
        target[name] = value
    return base


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(
    "value",
    [
        "[(20,1e-1),(10,1e-3)]",
        " [ (20, 1e-1) , (10, 1e-3) ] ",
        "((20,1e-1),(10,1e-3))",
        [[20, 0.1], [10, 0.001]],
        [(20, 0.1), (10, 0.001)],
        [{"epochs": 20, "lr": 0.1}, {"epochs": 10, "lr": 0.001}],
        ["(20", "1e-1)", "(10", "1e-3)"],  # what YAML makes of it unquoted
        [[20.0, 0.1], [10, 0.001]],
    ],
)
def test_every_notation_of_a_schedule_is_understood(value):
    assert parse_stages(value) == (Stage(20, 0.1), Stage(10, 0.001))


@pytest.mark.parametrize("value", ["(20,1e-1)", [20, 0.1]])
def test_one_bare_pair_is_one_stage(value):
    assert parse_stages(value) == (Stage(20, 0.1),)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "at least one stage, got []"),
        ("nonsense", "not a list of stages, got 'nonsense'"),
        ("__import__('os').system('true')", "not a list of stages"),
        ([[20, -0.1]], "stages[0]: lr must be a finite number above 0, got -0.1"),
        ([[20, 0]], "lr must be a finite number above 0, got 0"),
        ([[20, float("nan")]], "got nan"),
        ([[20, float("inf")]], "got inf"),
        ([[20, 1.1e38]], "stages[0]: lr must be at most 1e+38, as weights are float32, got 1.1e+38"),
        ([[1, 0.1], [0, 0.1]], "stages[1]: epochs must be a whole number of at least 1, got 0"),
        ([[1.5, 0.1]], "got 1.5"),
        ([[True, 0.1]], "got True"),
        ([[1, 0.1, 2]], "must be a pair of epochs and lr, got [1, 0.1, 2]"),
        ([{"epochs": 1, "rate": 0.1}], "needs exactly the keys epochs and lr, got ['epochs', 'rate']"),
    ],
)
def test_a_wrong_schedule_is_refused_by_stage_with_the_notation(value, said):
    with pytest.raises(ValueError, match="write stages as") as error:
        parse_stages(value)
    assert said in str(error.value)


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"optimizer__name": "adm"}, "optimizer.name: got 'adm', expected one of adadelta, adagrad, adam, adamax, "
         "adamw, nadam, radam, rmsprop, sgd; did you mean adam?"),
        ({"model__activation": "relux"}, "model.activation: got 'relux', expected one of elu, gelu, leaky_relu, relu, "
         "sigmoid, silu, tanh; did you mean relu?"),
        ({"trainer__batchsize": 3}, "trainer.batchsize: there is no such setting, expected one of"),
        ({"optimizer__lr": 1.0}, "optimizer.lr: there is no such setting, expected one of amsgrad, betas, eps, name,"),
        ({"model__hidden_sizes": [64, -1]}, "model.hidden_sizes[1]: must be at least 1, got -1"),
        ({"model__dropout": 1.0}, "model.dropout: must be below 1.0, got 1.0"),
        ({"optimizer__betas": [0.9, 1.5]}, "optimizer.betas[1]: must be below 1.0, got 1.5"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"seed": "x"}, "seed: must be integer, got 'x'"),
        ({"dataset": {"name": "npz", "root": "."}}, "dataset.file: is not set (give it as dataset.file=...)"),
        ({"dataset__std": [0.0]}, "dataset: std must be above 0 for each channel, got [0.0]"),
        ({"dataset__val_size": 1.5}, "dataset.val_size: must be a whole number or a fraction below 1, got 1.5"),
        ({"dataset__val_size": -1}, "dataset.val_size: must be a whole number or a fraction below 1, got -1"),
        ({"execution__pack_size": "aut"}, "execution.pack_size: must be auto or a whole number above 0, got 'aut'"),
        ({"optimizer": {"name": "sgd", "nesterov": True}}, "optimizer: nesterov needs momentum above 0"),
        ({"trainer__fresh": True}, "trainer.fresh: is called execution.fresh now"),
        ({"ui": {"port": 1}}, "ui: is no setting now but an argument of its command (stagetree ui --port 5000)"),
        ({"trainer__device": "cpu", "trainer__precision": "tf32"}, "trainer: precision tf32 is for cuda, got"),
    ],
)  # fmt: skip
def test_an_error_is_told_with_what_was_given_and_what_is_expected(change, line):
    with pytest.raises(InputError) as error:
        check(changed(**change))
    (told,) = str(error.value).splitlines()
    assert told.startswith(line)


def test_all_errors_are_told_at_once():
    """Invariant 8."""
    wrong = changed(optimizer__name="adm", model__dropout=2.0, seed=-1, schedule__stages=[[0, 0.1]], trainer__x=1)
    with pytest.raises(InputError) as error:
        check(wrong)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "model.dropout", "optimizer.name", "schedule.stages", "trainer.x", "seed",
    ]  # fmt: skip


# ---------------------------------------------------------------- architecture, identity


def test_an_architecture_is_written_as_people_write_it():
    assert schema.Model(hidden_sizes=(2048, 1024, 64)).architecture(10) == "4 layers (2048,1024,64,10)"
    assert schema.Model(hidden_sizes=()).architecture(10) == "1 layer (10)"


def test_parameters_are_counted():
    assert schema.Model(hidden_sizes=(300,)).n_params(784, 10) == 784 * 300 + 300 + 300 * 10 + 10
    assert schema.Model(hidden_sizes=()).n_params(784, 10) == 7850


def uid(values, digest="00", device="cpu"):
    run = identity.to_run(check(values), digest=digest, in_features=64, n_classes=10, device=device)
    return run.uid


DECIDES = {
    "dataset__mean": [0.5], "dataset__std": [0.5], "dataset__val_size": 100, "model__hidden_sizes": [32],
    "model__activation": "tanh", "model__dropout": 0.1, "optimizer__name": "adamw", "optimizer__eps": 1e-7,
    "schedule__stages": [[2, 0.2]], "schedule__reset_optimizer": False, "loss__name": "nll",
    "loss__label_smoothing": 0.1, "trainer__batch_size": 16, "trainer__eval_batch_size": 7,
    "trainer__shuffle": False, "trainer__precision": "bfloat16", "trainer__threads": 2, "seed": 1,
}  # fmt: skip
DECIDES_NOT = {
    "dataset__root": "elsewhere", "dataset__val_seed": 5, "dataset__duplicates": "ignore",
    "execution__pack_size": 3, "execution__share_prefixes": False, "execution__fresh": True, "execution__workers": 4,
    "execution__workers_per_device": 2,
    "execution__test_every_epoch": True, "execution__checkpoint_every_s": 1.0, "trainer__device": "cpu",
    "tracking__experiment": "other", "tracking__uri": "http://127.0.0.1:1", "tracking__artifacts": "s3://bucket",
    "report__top": 3,
    "output_dir": "elsewhere", "quiet": True,
}  # fmt: skip


@pytest.mark.parametrize("path", DECIDES)
def test_a_setting_that_decides_the_numbers_changes_the_uid(path):
    """Invariant 6."""
    assert uid(changed(**{path: DECIDES[path]})) != uid(BASE)


@pytest.mark.parametrize("path", DECIDES_NOT)
def test_a_setting_that_does_not_decide_the_numbers_leaves_the_uid(path):
    """Invariant 6. (val_seed decides nothing while nothing is held out.)"""
    assert uid(changed(**{path: DECIDES_NOT[path]})) == uid(BASE)


def test_the_seed_of_a_split_that_is_made_decides():
    held_out = changed(dataset__val_size=100)
    assert uid(held_out) != uid({**held_out, "dataset": {**held_out["dataset"], "val_seed": 1}})


def test_data_and_device_change_the_uid():
    assert len({uid(BASE), uid(BASE, digest="01"), uid(BASE, device="cuda")}) == 3


def test_every_setting_is_known_to_decide_or_not():
    """A new field must be sorted into one of the two lists above."""
    told = {path.replace("__", ".") for path in (*DECIDES, *DECIDES_NOT)}
    for group in ("dataset", "model", "schedule", "trainer", "execution"):
        fields = type(getattr(check(BASE), group)).model_fields
        # the held-out test set is part of the data, whose digest decides
        missing = (
            {f"{group}.{name}" for name in fields} - told - {"dataset.name", "dataset.test_size", "dataset.test_seed"}
        )
        assert not missing


def test_equal_configurations_written_otherwise_have_one_uid():
    assert uid(changed(schedule__stages="[(2,1e-1)]")) == uid(changed(schedule__stages=[{"epochs": 2, "lr": 0.1}]))
    assert uid(changed(optimizer__weight_decay=0)) == uid(BASE)


def test_one_changed_byte_of_data_changes_the_uid(tmp_path, arrays):
    """Invariant 6."""
    path = tmp_path / "changed.npz"
    with np.load(arrays) as loaded:
        values = dict(loaded)
    values["train_x"][5, 2, 2] ^= 1
    np.savez(path, **values)
    digests = set()
    for file in (arrays, path):
        settings = schema.Npz(name="npz", root=str(file.parent), file=file.name)
        digests.add(cache.prepare(settings, tmp_path / "out").digest)
    assert len({uid(BASE, digest=digest) for digest in digests}) == 2


def test_the_table_and_its_page_are_two_files():
    with pytest.raises(InputError, match=r"^report: output is the table, best.html would be its page \(name it .csv"):
        check(changed(report={"output": "best.html"}))
    assert check(changed(report={"output": "best.html", "page": False})).report.page_path is None
    assert str(check(changed(report={"output": "a/best.csv"})).report.page_path) == "a/best.html"


def numbers(values, path=()):
    """Each number of a configuration that may be 0.0, as a path with a value there that has a sign."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, name))
        elif value == 0 and isinstance(value, float):
            yield (*path, name), -0.0
        elif isinstance(value, (list, tuple)) and 0.0 in value and isinstance(value[0], float):
            yield (*path, name), [-0.0 if part == 0 else part for part in value]


OPTIMIZERS = [kind.model_fields["name"].annotation.__args__[0] for kind in get_args(get_args(schema.AnyOptimizer)[0])]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equal_numbers_have_equal_uids_whatever_the_sign_of_zero(optimizer):
    """Of each number in the schema."""
    zeros = changed(optimizer={"name": optimizer}, dataset__mean=[0.0], loss__class_weights=[0.0, 1.0])
    for field in get_args(get_args(schema.AnyOptimizer)[0])[OPTIMIZERS.index(optimizer)].model_fields:
        if field not in ("name", "eps", "nesterov", "amsgrad", "centered", "decoupled_weight_decay"):
            zeros["optimizer"][field] = [0.0, 0.0] if field == "betas" else 0.0
    found = list(numbers(check(zeros).model_dump()))
    assert len(found) >= 5
    for path, value in found:
        signed = copy.deepcopy(zeros)
        target = signed
        for group in path[:-1]:
            target = target[group]
        target[path[-1]] = value
        assert uid(signed) == uid(zeros), path
        assert check(signed) == check(zeros)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([[1e300, 0.1]], "epochs must be a whole number of at least 1 and at most 1,000,000, got 1e+300"),
        ([[10**400, 0.1]], "at most 1,000,000, got 10000000000000000000..."),
        ([[1, 10**400]], "lr must be a finite number above 0"),
        ([[float("inf"), 0.1]], "epochs must be a whole number"),
        ([[600_000, 0.1]] * 2, "got 1,200,000 epochs, expected at most 1,000,000 in all"),
        ([[1, 0.1]] * 10_001, "got 10,001 stages, expected at most 10,000"),
    ],
)
def test_absurd_schedules_are_refused(stages, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_stages(stages)
    assert len(parse_stages([[100, 0.1]] * 10_000)) == 10_000
