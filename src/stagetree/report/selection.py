"""Select the recorded runs that have the typed settings."""

from collections.abc import Sequence

import pandas as pd
from pandas import DataFrame, Series

from stagetree.config.identity import to_run
from stagetree.config.params import typed_params
from stagetree.config.schema import Config
from stagetree.errors import InputError, choices
from stagetree.planning.descriptions import recorded_params
from stagetree.training.devices import resolve_device

GROUPS = ("dataset", "model", "optimizer", "loss", "schedule", "trainer", "seed")
"""The groups whose settings select runs."""
MOST_NAMED = 20


def select(frame: DataFrame, config: Config, overrides: Sequence[str]) -> DataFrame:
    """Keep the runs that have the settings of these overrides; settings that no run records are ignored.

    Args:
        frame: from `store.load`.
        config: with the overrides.
        overrides: as typed, such as `dataset=mnist` or `trainer.batch_size=32`.

    Raises:
        InputError: no run has them.
    """
    device = resolve_device(config.trainer.device)
    run = to_run(config, digest="", in_features=1, n_classes=1, device=device)
    wanted = recorded_params(config, run.trunk, 1)
    for word in overrides:
        key = word.lstrip("+").split("=")[0]
        if key.split(".")[0] not in GROUPS or "=" not in word:
            continue
        key = "schedule.stages" if key.startswith("schedule.stages.") else key
        for param in typed_params(key):
            if param not in wanted:
                continue
            known = frame[param] if param in frame else Series(None, index=frame.index, dtype=object)
            chosen = frame[_equal(known, wanted[param]) | _is_data_set(frame, param, wanted[param])]
            if chosen.empty:
                there = sorted({str(value) for value in known.dropna()})[:MOST_NAMED]
                raise InputError(f"{word}: no run has {param} {wanted[param]}{choices(str(wanted[param]), there)}")
            frame = chosen
    return frame


def _equal(column: Series, value: object) -> Series:
    if pd.api.types.is_numeric_dtype(column) and isinstance(value, (int, float)):
        return (column == value).fillna(False).astype(bool)
    return column.astype(object).map(str) == str(value)


def _is_data_set(frame: DataFrame, param: str, name: str) -> Series:
    """Tell which runs use any data set of one name, since `store.load` adds digests to names that several have."""
    if param != "dataset" or "dataset_digest" not in frame:
        return Series(False, index=frame.index)
    return frame["dataset"] == name + " " + frame["dataset_digest"].str[:8]
