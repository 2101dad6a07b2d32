"""Sweeps of small image classifiers: shared schedule prefixes, packed training, exact results."""

import os
from typing import TYPE_CHECKING, Any

from stagetree._version import __version__

if TYPE_CHECKING:
    from stagetree.api import leaderboard, plan, sweep

__all__ = ["__version__", "leaderboard", "plan", "sweep"]

# MLflow reads these when it is imported, which happens late and in several rooms.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 13 s if a server is down; by default 246 s


def _is_amd() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return "AuthenticAMD" in file.read(200)
    except OSError:
        return False


# MKL reads this at its first product. On AMD, without it, the last bits of a small product depend on how many are in
# its batch (6 x 5 at minibatches of 16, EPYC with AVX-512, MKL 2024.2); with it they do not, and it is as fast.
if _is_amd():
    os.environ.setdefault("MKL_CBWR", "AVX2")


def __getattr__(name: str) -> Any:
    if name not in ("leaderboard", "plan", "sweep"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stagetree import api  # Hydra and pydantic, which help and completion do without

    return getattr(api, name)
