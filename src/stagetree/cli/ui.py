"""`stagetree ui`: open MLflow's user interface on the recorded runs."""

import os
import socket
import sys

from stagetree.config.composition import Job
from stagetree.errors import InputError
from stagetree.tracking.connection import VIEW, VIEW_TAG, TrackingStore


def serve(job: Job, port: int = 5000) -> None:
    """Replace this process by MLflow's server on 127.0.0.1, after printing the address of the experiment's runs.

    Args:
        job: selects the store and the experiment.
        port: the port of the server; 0 picks a free one.

    Raises:
        InputError: no run was recorded yet, the port is taken, or the runs are on a server already.
    """
    store = TrackingStore.of(job.config)
    if job.config.tracking.uri is None and not (store.output_dir / "mlflow.db").exists():
        raise InputError(
            f"output_dir: no runs are recorded in {store.output_dir} (train first, or give output_dir=...)"
        )
    if store.is_server:
        raise InputError(f"tracking.uri: the runs are on a server already (open {store.uri} in a browser)")
    port = _find_port(port)

    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # with it the server starts 15 processes
    experiment = store.connect().get_experiment_by_name(store.experiment)
    if experiment is None:
        raise InputError(f"tracking.experiment: {store.experiment!r} has no runs in {store.uri} (train first)")
    # Without the parameter MLflow opens an overview for language models.
    address = f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    if VIEW_TAG in experiment.tags:
        address += f"&viewStateShareKey={VIEW}"
    print(address, flush=True)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store.uri  # not an argument, since all users of a machine see those
    command = [sys.executable, "-m", "mlflow", "server"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"])


def _find_port(port: int) -> int:
    """Check that the port is free; 0 picks one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended does not block it
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"ui: port {port} cannot be had on 127.0.0.1: {error.strerror} (give another with --port)"
            ) from None
        return probe.getsockname()[1]
