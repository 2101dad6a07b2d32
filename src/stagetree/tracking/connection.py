"""Opening an MLflow store to write to it, and finding one's way in it."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetree.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_METRICS, MOST_PARAMS = 1000, 100
"""That MLflow takes at once."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment, without which MLflow's user interface takes it for one with a language model."""
LONGEST_TAG = 5000  # characters; MLflow refuses 8,000
VIEW = "stagetree"
"""Key of the view of an experiment's table that `stagetree ui` opens."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Where MLflow's user interface looks for it."""


def connect(uri: str) -> "MlflowClient":
    """Connect. A new SQLite database is made aside, under a lock, since MLflow makes its schema without either.

    Raises:
        InputError: a database is there that cannot be used.
    """
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of what it raises as well
    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri)
    from filelock import FileLock

    path = Path(uri.removeprefix("sqlite:///"))
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
    """Tags that hold a text of any length: `name`, `name.1`, `name.2`, ..."""
    starts = range(0, max(len(text), 1), LONGEST_TAG)
    return {f"{name}.{k}" if k else name: text[start : start + LONGEST_TAG] for k, start in enumerate(starts)}


def joined(tags: Mapping[str, str], name: str) -> str | None:
    """The text that `in_pieces` divided; `None` if there is none."""
    if name not in tags:
        return None
    more = (tags.get(f"{name}.{k}") for k in count(1))
    return tags[name] + "".join(takewhile(lambda piece: piece is not None, more))


def cut(text: str, most: int = LONGEST_TAG) -> str:
    """The beginning of a text that is only for people to read, if it is long."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def default_artifacts(uri: str, output_dir: Path) -> str | None:
    """Where a new experiment's artifacts go: a server has a place for them, a database has none."""
    return None if is_server(uri) else str(output_dir / "artifacts")


def is_server(uri: str) -> bool:
    """Whether MLflow's server is between us and the database."""
    return uri.startswith(("http:", "https:"))


def experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    """Find an experiment, or make it, with its artifacts at a path or URI; `None`: where a server puts them."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            if artifacts is not None and "://" not in artifacts:
                artifacts = Path(artifacts).resolve().as_uri()
            return client.create_experiment(name, artifact_location=artifacts, tags=KIND)
        except MlflowException:  # another sweep was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def pages(search: Callable) -> Iterator[Any]:
    """Go through all of a search, of which one call gives 1,000 entries at most."""
    page = search(max_results=1000)
    yield from page
    while page.token:
        page = search(max_results=1000, page_token=page.token)
        yield from page


def find_sweep(client: "MlflowClient", experiment: str, sweep_id: str) -> str | None:
    """The id of a sweep's parent run, if there is one."""
    query = f"tags.`stagetree.kind` = 'sweep' AND tags.`stagetree.sweep` = '{sweep_id}'"
    found = client.search_runs([experiment], query, max_results=1)
    return found[0].info.run_id if found else None
