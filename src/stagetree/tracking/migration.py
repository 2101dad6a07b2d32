"""Copies an experiment to another MLflow store, such as a team's server: `stagetree migrate URI`.

Runs are written through MLflow's own interface, so that a server with a login and artifacts of its own can take them.
A run that was not copied as a whole is written again by the same command.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stagetree.config.schema import Config
from stagetree.errors import InputError
from stagetree.tracking.connection import MOST_METRICS, MOST_PARAMS, TrackingStore, pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ORIGIN = "stagetree.migrated_from"
"""A tag with the id that a run had in the store it comes from."""
PARENT = "mlflow.parentRunId"


def migrate(config: Config, target_uri: str, show: Callable[[Iterable, int], Iterable]) -> int:
    """Copy what the experiment holds and the other store does not have yet; return the count of runs copied.

    They get new ids there. Everything else is as it was: names, times, status, params, metrics with their steps, tags
    and artifacts. A sweep that is run again with the other store goes on from the copies.

    Args:
        config: its `store_uri` and `tracking` name the store to copy from.
        target_uri: MLflow tracking URI of the store to copy to.
        show: passes an iterable of a known length on, and shows its progress.

    Raises:
        InputError: there is nothing to copy, or nowhere to copy it to.
    """
    origin = TrackingStore.of(config)
    if target_uri in ("", origin.uri):
        raise InputError(
            f"migrate: got {target_uri or 'none'}, expected the MLflow tracking URI of another store than {origin.uri} "
            "(stagetree migrate http://server:5000)"
        )
    if origin.sqlite_path is not None and not origin.sqlite_path.exists():
        raise InputError(f"output_dir: no runs are recorded in {config.output_dir} (nothing to copy)")
    destination = replace(origin, uri=target_uri)
    source, target = origin.connect(), destination.connect()
    found = source.get_experiment_by_name(origin.experiment)
    if found is None:
        raise InputError(f"tracking.experiment: {origin.experiment!r} has no runs in {origin.uri} (nothing to copy)")
    copy = _Copy(source, target, destination.experiment_id(target))
    copy.find_copied()
    # parents first, since the others name them
    runs = sorted(
        pages(partial(source.search_runs, [found.experiment_id], order_by=["attributes.start_time ASC"])),
        key=lambda run: PARENT in run.data.tags,
    )
    left = [run for run in runs if run.info.run_id not in copy.there]
    for run in show(left, len(left)):
        copy.add(run)
    for key, value in found.tags.items():
        target.set_experiment_tag(copy.experiment, key, value)
    return len(left)


class _Copy:
    """Writes runs of one store to an experiment of another."""

    def __init__(self, source: "MlflowClient", target: "MlflowClient", experiment: str):
        self._source, self._target, self.experiment = source, target, experiment
        self.there: dict[str, str] = {}
        """New ids of the runs that are whole in the other store, by their old ids."""

    def find_copied(self) -> None:
        """Find the runs copied before, and delete those copied in part."""
        for run in list(pages(partial(self._target.search_runs, [self.experiment]))):
            if (origin := run.data.tags.get(ORIGIN)) is None:
                continue
            if run.info.status == "RUNNING":
                self._target.delete_run(run.info.run_id)
            else:
                self.there[origin] = run.info.run_id

    def add(self, run: "Run") -> None:
        """Copy one run."""
        from mlflow.entities import Metric, Param

        info, tags = run.info, {key: value for key, value in run.data.tags.items() if key != "mlflow.runName"}
        tags |= {ORIGIN: info.run_id}
        if PARENT in tags:
            tags[PARENT] = self.there.get(tags[PARENT], tags[PARENT])
        made = self._target.create_run(self.experiment, info.start_time, tags, info.run_name).info.run_id
        params = [Param(key, value) for key, value in run.data.params.items()]
        for some in _slices(params, MOST_PARAMS):
            self._target.log_batch(made, params=some)
        curves = (self._source.get_metric_history(info.run_id, key) for key in run.data.metrics)
        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for curve in curves for point in curve]
        for some in _slices(metrics, MOST_METRICS):
            self._target.log_batch(made, metrics=some)
        if run.inputs and run.inputs.dataset_inputs:
            self._target.log_inputs(made, run.inputs.dataset_inputs)
        with tempfile.TemporaryDirectory() as folder:
            if self._source.list_artifacts(info.run_id):
                self._source.download_artifacts(info.run_id, "", folder)
                self._target.log_artifacts(made, folder)
        # a run that is RUNNING in the old store has no writer in the new one
        status = "KILLED" if info.status == "RUNNING" else info.status
        self._target.set_terminated(made, status, info.end_time)
        self.there[info.run_id] = made


def _slices(values: Sequence, most: int) -> Iterator[list]:
    for first in range(0, len(values), most):
        yield list(values[first : first + most])
