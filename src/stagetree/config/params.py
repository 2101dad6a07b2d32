"""The table of recorded parameters that are more than a name and a value, such as `lrs`, `seed` or `n_params`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, get_args

from stagetree.config.schema import AnyOptimizer
from stagetree.tree.notation import short

Params = Mapping[str, Any]
"""A run's parameters by name."""
When = Literal["always", "varies", "never"]


@dataclass(frozen=True)
class Param:
    """One parameter and its use in tables, names and plots. A setting without an entry here has the defaults."""

    name: str
    """Its name in MLflow and in the CSV file; `lr_N` stands for `lr_0`, `lr_1` and so on."""
    column: When = "varies"
    """When the leaderboard has it; `never` if it is a number derived from others for MLflow's plots."""
    named: When = "varies"
    """When a run's name has it."""
    write: Callable[[Params], str] | None = None
    """Writes it for a run's name; `None` for its name and its value."""
    plotted: bool = True
    """Whether the page plots the metric against it; false where another parameter shows the same better."""
    of_schedule: bool = False
    of_data: bool = False
    """Whether it tells data sets apart for people."""
    text: bool = False
    """Whether it is text even where it looks like a number, as the hexadecimal digest 12e4 does."""
    typed: tuple[str, ...] = ()
    """The settings on the command line that choose it; empty for the setting of its name."""

    @property
    def derived(self) -> bool:
        """Whether it follows from other parameters, so that it does not divide runs into groups."""
        return self.column == "never"

    @property
    def in_trunk(self) -> bool:
        """Whether the recorded digest of the trunk covers it."""
        return not self.of_schedule and self.name != "seed"

    def words(self, params: Params) -> str:
        """Write it for a run's name."""
        return self.write(params) if self.write else f"{self.name} {params[self.name]}"


def _value_of(name: str) -> Callable[[Params], str]:
    return lambda params: str(params[name])


def _sizes(params: Params) -> str:
    return "-".join(map(str, params["hidden_sizes"])) or "softmax"


def _arrows(values: Iterable[float] | str) -> str:
    """Write values as `0.1>0.01`; a long list is text already."""
    return values if isinstance(values, str) else ">".join(map(short, values))


_of_schedule = partial(Param, of_schedule=True, plotted=False, typed=("schedule", "schedule.stages"))
_derived = partial(Param, column="never", named="never", plotted=False)
_DATASET = ("dataset", "dataset.file", "dataset.split")
_TABLE = (
    Param("dataset", "always", write=_value_of("dataset"), of_data=True, text=True, typed=_DATASET),
    Param("dataset_digest", write=lambda params: f"data {params['dataset_digest'][:8]}", plotted=False, text=True),
    *(Param(name, of_data=True) for name in ("test_size", "test_seed", "height", "width", "grayscale")),
    Param("architecture", "always", "always", _sizes),
    _derived("hidden_sizes", typed=("model",)),
    Param("activation", write=_value_of("activation")),
    Param("n_params", "always", "never", plotted=False),
    _derived("n_layers"),
    Param("optimizer", "always", "always", _value_of("optimizer")),
    _of_schedule("lrs", "always", "always", lambda params: f"lr {_arrows(params['lrs'])}"),
    _of_schedule("epochs", "always", write=lambda params: f"epochs {_arrows(params['epochs'])}"),
    _derived("epochs_total", of_schedule=True),
    _derived("lr_N", of_schedule=True, plotted=True),
    _derived("log10_lr_N", of_schedule=True),
    _derived("epochs_N", of_schedule=True, plotted=True),
    Param("batch_size", "always"),
    Param("seed", "always"),
)
_BY_NAME = {known.name: known for known in _TABLE}

COLUMNS = tuple(known.name for known in _TABLE if known.column == "always")
"""The parameters that every leaderboard has, in their order."""
OF_DATA = tuple(known.name for known in _TABLE if known.of_data)
OPTIMIZER_SETTINGS = tuple(
    dict.fromkeys(name for kind in get_args(get_args(AnyOptimizer)[0]) for name in kind.model_fields if name != "name")
)


@cache
def param(name: str) -> Param:
    """Look up a parameter; one without an entry gets the defaults."""
    return _BY_NAME.get(name) or _BY_NAME.get(re.sub(r"_\d+$", "_N", name)) or Param(name)


def typed_params(setting: str) -> list[str]:
    """Name the parameters that a setting on the command line, such as `schedule.stages`, chooses."""
    return [known.name for known in _TABLE if setting in known.typed] or [setting.rpartition(".")[2]]
