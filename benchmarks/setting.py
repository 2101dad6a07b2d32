"""What every benchmark says of itself: the machine, the versions, a figure with its spread."""

import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagetree.config.schema import Config


def setting(*packages: str) -> str:
    """The machine and the versions."""
    versions = [f"{package} {_version(package)}" for package in packages]
    return ", ".join([f"{os.cpu_count()} cores", _cpu(), f"Python {platform.python_version()}", *versions])


def configuration(*overrides: str) -> "Config":
    """Of one run, as the command composes it; the data as it is, not normalised."""
    from stagetree.api import composed

    with composed(["dataset.mean=[]", "dataset.std=[]", "dataset.duplicates=ignore", *overrides], None) as (*_, jobs):
        return jobs[0].config


def figure(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
