"""What is accepted, and what is refused and how."""

import copy
import re

import pytest

from stagetree.config import schema
from stagetree.config.validation import check
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


def test_all_mistakes_are_told_at_once():
    wrong = changed(optimizer__name="adm", model__dropout=2.0, seed=-1, schedule__stages=[[0, 0.1]], trainer__x=1)
    with pytest.raises(InputError) as error:
        check(wrong)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "model.dropout", "optimizer.name", "schedule.stages", "trainer.x", "seed",
    ]  # fmt: skip


# ---------------------------------------------------------------- architecture


def test_an_architecture_is_written_as_people_write_it():
    assert schema.Model(hidden_sizes=(2048, 1024, 64)).architecture(10) == "4 layers (2048,1024,64,10)"
    assert schema.Model(hidden_sizes=()).architecture(10) == "1 layer (10)"


def test_parameters_are_counted():
    assert schema.Model(hidden_sizes=(300,)).n_params(784, 10) == 784 * 300 + 300 + 300 * 10 + 10
    assert schema.Model(hidden_sizes=()).n_params(784, 10) == 7850


def test_the_table_and_its_page_are_two_files():
    with pytest.raises(InputError, match=r"^report: output is the table, best.html would be its page \(name it .csv"):
        check(changed(report={"output": "best.html"}))
    assert check(changed(report={"output": "best.html", "page": False})).report.page_path is None
    assert str(check(changed(report={"output": "a/best.csv"})).report.page_path) == "a/best.html"


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
