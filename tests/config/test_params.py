"""What is known of parameters, and of those without an entry."""

import pytest

from stagetree.config import params
from stagetree.config.params import Param, param


def test_numbered_parameters_share_an_entry():
    assert param("lr_0") is param("lr_12")
    assert param("lr_0").plotted
    assert not param("log10_lr_0").plotted
    assert param("epochs_3").derived


@pytest.mark.parametrize("name", ["weight_decay", "beta_2", "lr", "lr_first", "momentum"])
def test_a_parameter_without_an_entry_is_a_setting_like_most(name):
    assert param(name) == Param(name)
    assert param(name).words({name: 0.5}) == f"{name} 0.5"
    assert param(name).in_trunk


def test_the_digest_of_the_trunk_covers_all_but_seed_and_schedule():
    assert [name for name in params.COLUMNS if not param(name).in_trunk] == ["lrs", "epochs", "seed"]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("dataset", ["dataset"]),
        ("dataset.file", ["dataset"]),
        ("dataset.val_size", ["val_size"]),
        ("model", ["hidden_sizes"]),
        ("model.hidden_sizes", ["hidden_sizes"]),
        ("optimizer", ["optimizer"]),
        ("optimizer.momentum", ["momentum"]),
        ("schedule.stages", ["lrs", "epochs"]),
        ("schedule.reset_optimizer", ["reset_optimizer"]),
        ("seed", ["seed"]),
    ],
)
def test_a_setting_on_the_command_line_is_recorded_as_these_parameters(setting, names):
    assert params.typed_params(setting) == names
