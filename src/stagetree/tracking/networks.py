"""Load a finished run's network: from its checkpoint, or from MLflow where that is deleted or damaged."""

import tempfile
from pathlib import Path

from stagetree.data import cache
from stagetree.errors import InputError
from stagetree.models.inference import Network
from stagetree.storage import checkpoints
from stagetree.tracking.connection import connect


def load_network(output_dir: Path, uid: str, uri: str, run_id: str) -> Network:
    """Load a finished run's network from its checkpoint, or from MLflow if that is missing or damaged.

    Raises:
        InputError: neither can be read, or the record of its data is missing.
    """
    try:
        return Network.load(output_dir, uid)
    except checkpoints.StateError as error:
        try:
            return _recorded(output_dir, uri, run_id)
        except InputError:
            raise
        except Exception as other:
            said = str(other).splitlines()[0] if str(other) else type(other).__name__
            raise InputError(f"{error.what}, and MLflow does not help: {said} (run its sweep again)") from other


def _recorded(output_dir: Path, uri: str, run_id: str) -> Network:
    """Read the final state of a run from its artifacts in MLflow.

    Raises:
        Exception: of many kinds, MLflow's and the network's; `ValueError` if the weights are damaged.
    """
    import yaml
    from safetensors.numpy import load_file

    client = connect(uri)
    run = client.get_run(run_id).data
    with tempfile.TemporaryDirectory() as folder:
        weights = load_file(client.download_artifacts(run_id, "weights.safetensors", folder))
        config = yaml.safe_load(Path(client.download_artifacts(run_id, "config.yaml", folder)).read_text("utf-8"))
    if checkpoints.weights_digest(weights) != run.tags["stagetree.weights_sha256"]:
        raise ValueError("its weights are damaged")
    dataset, info = config["dataset"], cache.find(run.params["dataset_digest"], output_dir)
    return Network(info, tuple(dataset["mean"]), tuple(dataset["std"]), config["model"], weights)
