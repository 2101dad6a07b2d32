"""Connects to the MLflow store of a configuration and searches it."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetree.config.schema import Config
from stagetree.errors import InputError
from stagetree.storage import checkpoints

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from pandas import DataFrame

    from stagetree.tracking.store import Recorded

MOST_METRICS, MOST_PARAMS = 1000, 100
"""The most metrics and params that MLflow takes in one call."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""A tag of the experiment; without it MLflow's user interface shows the one for language models."""
LONGEST_TAG = 5000  # characters; MLflow refuses 8,000
REPLACES = "stagetree.replaces"
"""Tag of a run that is to supersede others once it is finished: their ids."""
VIEW = "stagetree"
"""The key of the view of an experiment's table that `stagetree ui` opens."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""The tag in which MLflow's user interface looks for that view."""


@dataclass(frozen=True)
class TrackingStore:
    """An experiment in an MLflow store, and the output folder that it records. Making one connects to nothing."""

    uri: str
    """MLflow's tracking URI."""
    experiment: str
    """The experiment's name."""
    output_dir: Path
    """The absolute folder of checkpoints and locks."""
    artifacts: str | None = None
    """Path or URI for the artifacts of a new experiment; `None`: the output folder, or the server's own place."""

    @classmethod
    def of(cls, config: Config) -> "TrackingStore":
        """Make the store that a configuration names."""
        return cls(config.store_uri, config.tracking.experiment, config.output_folder, config.tracking.artifacts)

    @property
    def is_server(self) -> bool:
        """Whether the store is an MLflow server."""
        return self.uri.startswith(("http:", "https:"))

    @property
    def is_sql(self) -> bool:
        """Whether the store is a database that can be asked directly."""
        return is_sql(self.uri)

    @property
    def sqlite_path(self) -> Path | None:
        """The file of a SQLite database; `None` for any other store."""
        return sqlite_path(self.uri)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints that the runs are recorded from."""
        return checkpoints.folder_of(self.output_dir)

    def connect(self) -> "MlflowClient":
        """Open the store for writing: see `connect`."""
        return connect(self.uri)

    def experiment_id(self, client: "MlflowClient") -> str:
        """Find the experiment, or make it."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return client.create_experiment(self.experiment, artifact_location=self._artifact_location(), tags=KIND)
            except MlflowException:  # another sweep was quicker
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return found.experiment_id

    def _artifact_location(self) -> str | None:
        # a server has a place of its own for artifacts, a database has none
        location = self.artifacts or (None if self.is_server else str(self.output_dir / "artifacts"))
        return location if location is None or "://" in location else Path(location).resolve().as_uri()

    def read(self) -> "list[Recorded]":
        """Read the experiment's runs as they are recorded: see `store.read`."""
        from stagetree.tracking import store  # pandas and SQLAlchemy

        return store.read(self.uri, self.experiment)

    def load(self) -> "DataFrame":
        """Read the experiment's runs as a table: see `store.load`."""
        from stagetree.tracking import store

        return store.load(self.uri, self.experiment)


def is_sql(uri: str) -> bool:
    """Tell whether a store is a database that can be asked directly."""
    return uri.split("://")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def sqlite_path(uri: str) -> Path | None:
    """Find the file of a SQLite database; `None` for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def end_killed(client: "MlflowClient", run_id: str, *, replaces: bool) -> None:
    """End a run whose writer was killed. If it was about to replace a finished record, that one stands for it."""
    client.set_terminated(run_id, "KILLED")
    if replaces:
        client.set_tag(run_id, "stagetree.superseded", "true")


def connect(uri: str) -> "MlflowClient":
    """Open a store for writing.

    A new SQLite database is made aside and under a lock, since MLflow does neither when it makes the schema.

    Raises:
        InputError: there is a database, but it cannot be used.
    """
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of what it raises as well
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(tracking_uri=uri)
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            aside = path.with_name(f".{path.name}.new")
            aside.unlink(missing_ok=True)
            MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
            os.replace(aside, path)
        try:
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
        except Exception as error:  # SQLAlchemy's and MLflow's, of many kinds
            raise InputError(
                f"{path}: cannot be used, got {str(error).splitlines()[0]} (move it away: the same command makes a new "
                "one, and records what is finished from the checkpoints)"
            ) from error
        return client


def in_pieces(name: str, text: str) -> dict[str, str]:
    """Divide a text of any length between the tags `name`, `name.1`, `name.2`, ..."""
    starts = range(0, max(len(text), 1), LONGEST_TAG)
    return {f"{name}.{k}" if k else name: text[start : start + LONGEST_TAG] for k, start in enumerate(starts)}


def joined(tags: Mapping[str, str], name: str) -> str | None:
    """Join the text that `in_pieces` divided; `None` if there is none."""
    if name not in tags:
        return None
    pieces = [tags[name]]
    while (piece := tags.get(f"{name}.{len(pieces)}")) is not None:
        pieces.append(piece)
    return "".join(pieces)


def cut(text: str, most: int = LONGEST_TAG) -> str:
    """Shorten a long text that only people read to its beginning."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def pages(search: Callable) -> Iterator[Any]:
    """Yield all entries of a search, of which one call returns 1,000 at most."""
    page = search(max_results=1000)
    yield from page
    while page.token:
        page = search(max_results=1000, page_token=page.token)
        yield from page


def find_sweep(client: "MlflowClient", experiment: str, sweep_id: str) -> str | None:
    """Find the id of a sweep's parent run, if there is one."""
    query = f"tags.`stagetree.kind` = 'sweep' AND tags.`stagetree.sweep` = '{sweep_id}'"
    found = client.search_runs([experiment], query, max_results=1)
    return found[0].info.run_id if found else None
