"""Which recorded runs the settings that were typed leave."""

import pytest
from every_setting import base, recorded

from stagetree.config import schema, validation
from stagetree.errors import InputError
from stagetree.report import selection


def configured(**changes) -> schema.Config:
    values = base("dataset", schema.Npz, "file")
    for path, value in changes.items():
        group, _, name = path.partition("__")
        values = {**values, group: {**values[group], name: value} if name else value}
    return validation.check(values)


VARIANTS = [
    {},
    {"dataset__file": "other.npz"},
    {"dataset__val_size": 0.2},
    {"model__hidden_sizes": [5]},
    {"seed": 2**60},
    {"schedule__stages": [[1, 0.1], [1, 0.01]]},
    {"optimizer": {"name": "adam"}},
    {"trainer__batch_size": 7},
    {"dataset__mean": [0.5]},
    {"trainer__shuffle": False},
    {"dataset__root": "elsewhere"},
]


@pytest.fixture(scope="module")
def frame():
    return recorded([configured(**change) for change in VARIANTS])[1]


@pytest.mark.parametrize(
    ("words", "changes", "n"),
    [
        ([], {}, 11),
        (["report.top=3", "execution.workers=3", "output_dir=x", "dataset.root=y"], {}, 11),
        (["dataset=npz", "dataset.file=small.npz"], {}, 10),  # of both folders
        (["dataset=npz", "dataset.file=other.npz"], {"dataset__file": "other.npz"}, 1),
        (["dataset.val_size=0.2"], {"dataset__val_size": 0.2}, 1),
        (["dataset.val_size=0"], {}, 10),
        (["model=five"], {"model__hidden_sizes": [5]}, 1),
        (["seed=1152921504606846976"], {"seed": 2**60}, 1),
        (["schedule.stages=[[1,0.1],[1,0.01]]"], {"schedule__stages": [[1, 0.1], [1, 0.01]]}, 1),
        (["optimizer=adam"], {"optimizer": {"name": "adam"}}, 1),
        (["optimizer=sgd", "trainer.batch_size=7"], {"trainer__batch_size": 7}, 1),
        (["dataset.mean=[0.5]"], {"dataset__mean": [0.5]}, 1),
        (["trainer.shuffle=false"], {"trainer__shuffle": False}, 1),
    ],
)
def test_settings_that_were_typed_leave_the_runs_that_have_them(frame, words, changes, n):
    assert len(selection.select(frame, configured(**changes), words)) == n


def test_what_no_run_has_is_refused_with_what_there_is(frame):
    mine = configured(optimizer={"name": "adagrad"})
    expected = "^optimizer=adagrad: no run has optimizer adagrad, expected one of adam, sgd"
    with pytest.raises(InputError, match=expected):
        selection.select(frame, mine, ["optimizer=adagrad"])
