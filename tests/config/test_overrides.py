"""What worked in earlier versions goes on working, or is told with what it is called now."""

import pytest

from stagetree.config import schema
from stagetree.config.overrides import COMMANDS, RENAMED, hydra_override
from stagetree.errors import InputError


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
@pytest.mark.parametrize("name", schema.Execution.model_fields)
def test_settings_that_were_the_trainers_are_found_where_they_are_now(prefix, name):
    assert hydra_override(f"{prefix}trainer.{name}=1,2") == f"{prefix}execution.{name}=1,2"
    assert hydra_override(f"{prefix}execution.{name}=1,2") == f"{prefix}execution.{name}=1,2"


@pytest.mark.parametrize(
    "word", ["~trainer", "trainer=default", "trainer.threads=2", "my.trainer.fresh=1", "a=trainer.fresh=1", "seed=[}"]
)
def test_other_overrides_stay_as_they_are(word):
    assert hydra_override(word) == word


def test_what_is_renamed_is_a_setting():
    for now in RENAMED.values():
        group, name = now.split(".")
        assert name in schema.Config.model_fields[group].annotation.model_fields


@pytest.mark.parametrize("key", ["predict.run", "export.folder", "migrate.to", "verify.repair", "ui.port"])
def test_arguments_of_commands_are_told_to_be_written_as_such(key):
    with pytest.raises(InputError) as caught:
        hydra_override(f"{key}=1")
    command = COMMANDS[key.split(".")[0]]
    assert str(caught.value) == f"{key}: is no setting now but an argument of its command ({command})"
