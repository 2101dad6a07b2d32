"""What a sweep leaves in MLflow beside its runs: a description, the leaderboard, and its best run as a model.

Written once all runs are recorded, by the launching process.
"""

import json
import tempfile
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from stagetree.connect import VIEW_TAG, connect, experiment_id, find_sweep
from stagetree.export import export

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_NOTE = 5000  # characters, as for other tags
MODEL = "best"
"""Name of the model: `runs:/RUN_ID/best`."""


class Publisher:
    """Writes to one sweep's parent run and to its experiment.

    Args:
        uri: MLflow's tracking URI.
        experiment: name.
        output_dir: of the store.
        sweep_id: of the sweep, which was recorded.
    """

    def __init__(self, *, uri: str, experiment: str, output_dir: Path, sweep_id: str):
        self._client: MlflowClient = connect(uri)
        self._experiment = experiment_id(self._client, experiment, uri, output_dir / "artifacts")
        self._parent = find_sweep(self._client, self._experiment, sweep_id)
        self._output_dir = output_dir

    def describe(self, note: str, files: Sequence[Path]) -> None:
        """Give the parent run a description in Markdown, and files as artifacts."""
        if self._parent:
            self._client.set_tag(self._parent, "mlflow.note.content", note[:LONGEST_NOTE])
            for file in files:
                self._client.log_artifact(self._parent, str(file))

    def choose_columns(self, params: Sequence[str], metrics: Sequence[str]) -> None:
        """Say which columns of the experiment's table are of use, as MLflow's button `Share` does."""
        columns = [f"params.`{name}`" for name in params] + [f"metrics.`{name}`" for name in metrics]
        self._client.set_experiment_tag(self._experiment, VIEW_TAG, json.dumps({"selectedColumns": columns}))

    def add_model(self, run_id: str, uid: str) -> None:
        """Log a run's final state as a model that `mlflow.pyfunc.load_model` loads without a pickle, once.

        Raises:
            InputError: the run's files are gone.
        """
        from mlflow import pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        run = self._client.get_run(run_id)
        if run.outputs and run.outputs.model_outputs:
            return
        with tempfile.TemporaryDirectory() as scratch:
            plain, packed = Path(scratch) / "model", Path(scratch) / "packed"
            export(self._output_dir, uid, plain, dict(run.data.params))
            model = self._client.create_logged_model(self._experiment, name=MODEL, source_run_id=run_id)
            with resources.as_file(resources.files("stagetree") / "assets" / "classifier.py") as loader:
                pyfunc.save_model(
                    packed,
                    loader_module=loader.stem,
                    code_paths=[str(loader)],
                    data_path=str(plain),
                    pip_requirements=[
                        f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "safetensors")
                    ],
                    mlflow_model=Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id),
                )
            self._client.log_model_artifacts(model.model_id, str(packed))
        self._client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, step=0)])
        self._client.finalize_logged_model(model.model_id, "READY")
