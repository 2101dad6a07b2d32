"""MLflow stores of runs that were never trained, as `tracking` would have recorded them."""

import math
import sqlite3
from contextlib import closing

EXPERIMENT = "digits"
NAN, INF = math.nan, math.inf


def uri(database):
    return f"sqlite:///{database}"


def run(name, *, status="finished", metrics=None, tags=None, **params):
    """What `tracking` records of one run; its uid sorts by `name`."""
    defaults = {
        "dataset": "digits", "architecture": "2 layers (300,10)", "n_params": 22510, "optimizer": "sgd",
        "lrs": "[0.1]", "epochs": "[20]", "lr_0": 0.1, "epochs_total": 20, "batch_size": 32, "seed": 0,
    }  # fmt: skip
    return {
        "id": name.encode().hex().ljust(32, "0"),
        "status": status.upper(),
        "params": {key: str(value) for key, value in (defaults | params).items()},
        "metrics": metrics or {},
        "tags": {"mlflow.runName": name, "stagetree.kind": "run", "stagetree.uid": f"uid {name}"} | (tags or {}),
    }


def insert(database, runs):
    """Write runs as MLflow stores them."""
    with closing(sqlite3.connect(database)) as connection, connection:
        (experiment,) = connection.execute(
            "SELECT experiment_id FROM experiments WHERE name = ?", [EXPERIMENT]
        ).fetchone()
        for one in runs:
            row = (one["id"], one["status"], experiment, "active", "", "LOCAL", 0)
            columns = "run_uuid, status, experiment_id, lifecycle_stage, user_id, source_type, start_time"
            connection.execute(f"INSERT INTO runs ({columns}) VALUES (?,?,?,?,?,?,?)", row)
            for table in ("params", "tags"):
                rows = [(key, value, one["id"]) for key, value in one[table].items()]
                connection.executemany(f"INSERT INTO {table} (key, value, run_uuid) VALUES (?,?,?)", rows)
            rows = [
                (key, 0 if math.isnan(value) else value, math.isnan(value), one["id"])
                for key, value in one["metrics"].items()
            ]
            columns = "key, value, is_nan, run_uuid, timestamp, step"
            connection.executemany(f"INSERT INTO latest_metrics ({columns}) VALUES (?,?,?,?,1,1)", rows)


def order(frame):
    return list(zip(frame["rank"].astype(object).where(frame["rank"].notna(), None), frame["run_name"], strict=True))
