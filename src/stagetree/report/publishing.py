"""Describe a sweep in MLflow, with its leaderboard, and log its best run as a model.

The launching process does so once all runs are recorded.
"""

import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from stagetree.models.export import export
from stagetree.models.inference import Network
from stagetree.tracking.connection import VIEW_TAG, TrackingStore, cut, find_sweep

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MODEL = "best"
"""The name of the model, which `runs:/RUN_ID/best` finds."""


@dataclass(frozen=True)
class Publisher:
    """Writes to one sweep's parent run and to its experiment."""

    store: TrackingStore
    client: "MlflowClient"
    experiment_id: str
    parent: str | None
    """The id of the sweep's parent run, if there is one."""

    @classmethod
    def open(cls, store: TrackingStore, sweep_id: str) -> "Publisher":
        """Connect to the store in which a sweep was recorded."""
        client = store.connect()
        experiment_id = store.experiment_id(client)
        return cls(store, client, experiment_id, find_sweep(client, experiment_id, sweep_id))

    def describe(self, note: str, files: Sequence[Path]) -> None:
        """Give the parent run a description in Markdown, and files as artifacts."""
        if self.parent:
            self.client.set_tag(self.parent, "mlflow.note.content", cut(note))
            for file in files:
                self.client.log_artifact(self.parent, str(file))

    def choose_columns(self, params: Sequence[str], metrics: Sequence[str]) -> None:
        """Choose the columns of the experiment's table that people see, as MLflow's button `Share` does."""
        columns = [f"params.`{name}`" for name in params] + [f"metrics.`{name}`" for name in metrics]
        self.client.set_experiment_tag(self.experiment_id, VIEW_TAG, json.dumps({"selectedColumns": columns}))

    def add_model(self, run_id: str, uid: str) -> None:
        """Log a run's final state once, as a model that `mlflow.pyfunc.load_model` loads without a pickle.

        Raises:
            InputError: the run's files are gone.
        """
        from mlflow.entities import LoggedModelOutput

        run = self.client.get_run(run_id)
        if run.outputs and run.outputs.model_outputs:
            return
        model = self.client.create_logged_model(self.experiment_id, name=MODEL, source_run_id=run_id)
        self.write_model(model, uid)
        self.client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, step=0)])
        self.client.finalize_logged_model(model.model_id, "READY")

    def write_model(self, model: "LoggedModel", uid: str) -> None:
        """Write a model's files, again if they are there.

        Raises:
            InputError: the run's files are gone.
        """
        from mlflow import pyfunc
        from mlflow.models import Model

        run = self.client.get_run(str(model.source_run_id))
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            export(Network.load(self.store.output_dir, uid), folder / "data", dict(run.data.params))
            with resources.as_file(resources.files("stagetree.report") / "assets" / "classifier.py") as loader:
                (folder / "code").mkdir()
                shutil.copy(loader, folder / "code")
            needed = [f"{name}=={metadata.version(name)}\n" for name in ("mlflow", "torch", "safetensors")]
            (folder / "requirements.txt").write_text("".join(needed))
            environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
            (folder / "python_env.yaml").write_text(yaml.safe_dump(environment))
            described = Model(
                artifact_path=model.artifact_location, run_id=model.source_run_id, model_id=model.model_id
            )
            # what pyfunc.save_model writes, without its look at every installed package, which takes 0.6 s
            pyfunc.add_to_model(
                described, loader_module="classifier", data="data", code="code", python_env="python_env.yaml"
            )
            described.save(folder / "MLmodel")
            self.client.log_model_artifacts(model.model_id, scratch)
