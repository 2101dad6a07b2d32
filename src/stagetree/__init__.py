"""Sweeps of small image classifiers: shared schedule prefixes, packed training, exact results."""

import os

__version__ = "0.1.0"

# MLflow reads these when it is imported, which happens late and in several rooms.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 13 s if a server is down; by default 246 s
