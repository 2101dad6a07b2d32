"""What several test files need: small data in the real cache format, and units without Hydra."""

import json
import os
import random
import shutil
from pathlib import Path

import faults
import numpy as np
import pytest
import sweeps
import torch
import truth
from bench import Bench
from filelock import FileLock
from hypothesis import HealthCheck, Phase, settings
from stores import EXPERIMENT, insert, uri

from stagetree.tracking import store

CHECKED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
# a case takes seconds, so that making a failing one smaller takes minutes: `many` does, `make test` does not
settings.register_profile("few", max_examples=20, derandomize=True, phases=[Phase.explicit, Phase.generate], **CHECKED)
settings.register_profile("many", max_examples=1000, print_blob=True, **CHECKED)
settings.load_profile("few")  # `--hypothesis-profile=many` loads the other


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def agreement(request):
    """At the end of each test: what the stores in its folder say is what the checkpoints beside them say."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is None or request.node.get_closest_marker("differs"):
        return
    stores = [path for path in folder.rglob("mlflow.db") if path.with_name("checkpoints").is_dir()]
    faults = [fault for path in stores for fault in truth.differences(path, path.with_name("checkpoints"))]
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="session")
def arrays(tmp_path_factory) -> Path:
    """An npz file of 200 + 50 pictures of 4x4 in three classes that can be learnt."""
    rng = np.random.default_rng(0)
    labels = np.arange(250) % 3
    images = (
        rng.integers(0, 120, (250, 4, 4)) + 60 * (np.arange(16).reshape(4, 4) % 3 == labels[:, None, None])
    ).astype("uint8")
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, train_x=images[:200], train_y=labels[:200], test_x=images[200:], test_y=labels[200:])
    return path


@pytest.fixture(scope="session")
def bright(tmp_path_factory) -> tuple[Path, list[list[list[float]]]]:
    """An npz file whose test set is far brighter than its training set, and two schedules with which a linear model
    that is normalised for the latter first overflows on the former, and then no more."""
    labels = np.arange(60) % 3
    dark = (np.arange(4) % 3 == labels[:, None]).astype("uint8").reshape(-1, 2, 2)
    path = tmp_path_factory.mktemp("bright") / "bright.npz"
    np.savez(path, train_x=dark, train_y=labels, test_x=dark * 255, test_y=labels)
    return path, [[[1, 1e17]], [[1, 1e17], [40, 1.0]]]


@pytest.fixture(scope="session")
def browser():
    from browsers import open_browser

    with open_browser() as browser:
        yield browser


@pytest.fixture
def bench(tmp_path, arrays) -> Bench:
    return Bench(tmp_path / "a", arrays)


@pytest.fixture
def other(tmp_path, arrays) -> Bench:
    """A second, separate output folder."""
    return Bench(tmp_path / "b", arrays)


# ---------------------------------------------------------------- stores


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """An MLflow database without runs. Making the schema takes seconds, copying it milliseconds."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").create_experiment(EXPERIMENT, artifact_location=str(path.parent))
    return path


@pytest.fixture
def database(template, tmp_path):
    return Path(shutil.copy(template, tmp_path / "mlflow.db"))


@pytest.fixture
def load(database):
    """Load a store of the runs given."""

    def load_runs(*runs):
        insert(database, runs)
        return store.load(uri(database), EXPERIMENT)

    return load_runs


# ---------------------------------------------------------------- the fault suite


@pytest.fixture(scope="session")
def reference(tmp_path_factory, arrays, worker_id) -> dict[str, tuple]:
    """What an undisturbed sweep leaves; trained once for all of xdist's workers."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "reference"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            done = sweeps.stagetree(folder, "sweep", *sweeps.small(arrays), *faults.GRID)
            assert done.returncode == 0, done.stdout + done.stderr
    found = faults.results(folder)
    assert len(found) == 24
    return found


@pytest.fixture(scope="session")
def reference_csv(reference, tmp_path_factory, worker_id) -> Path:
    """The leaderboard of the undisturbed sweep."""
    shared = tmp_path_factory.getbasetemp()
    return (shared if worker_id == "master" else shared.parent) / "reference/leaderboard.csv"


def pytest_addoption(parser):
    parser.addoption("--faults", choices=["short", "full"], default="short", help="counts of the fault suite")
    parser.addoption("--faults-seed", type=int, help="of the instants at which faults are injected")


def pytest_configure(config):
    config.addinivalue_line("markers", "rounds(short, full): run so often, each with a seed of its own")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; left out where there is none")
    config.addinivalue_line("markers", "differs(why): leaves a store that differs from its checkpoints on purpose")
    config.addinivalue_line("markers", "full: part of the full fault suite alone")
    if config.option.faults_seed is None:
        drawn = 0 if config.option.faults == "short" else random.randrange(10**6)
        # xdist's workers inherit the environment, and must all have the same
        config.option.faults_seed = int(os.environ.setdefault("FAULTS_SEED", str(drawn)))


def pytest_report_header(config):
    return f"faults: {config.option.faults} counts, --faults-seed={config.option.faults_seed}"


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("rounds")
    if marker is not None:
        first, count = metafunc.config.option.faults_seed, marker.kwargs[metafunc.config.option.faults]
        metafunc.parametrize("seed", [1000 * first + k for k in range(count)])


def pytest_collection_modifyitems(config, items):
    absent = {"full"} if config.option.faults == "short" else set()
    absent |= set() if torch.cuda.is_available() else {"gpu"}
    left_out = [item for item in items if any(map(item.get_closest_marker, absent))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture
def tally(request, record_property):
    """Count a fault: `tally("a name")` makes a row of the closing table, which must be clean in the end."""
    rows = []

    def new(fault: str) -> faults.Tally:
        rows.append(faults.Tally(fault))
        return rows[-1]

    yield new
    for row in rows:
        record_property("tally", faults.dumped(row))
    assert all(row.clean for row in rows), rows


def pytest_terminal_summary(terminalreporter):
    rows = [
        json.loads(value)
        for reports in terminalreporter.stats.values() for report in reports
        for name, value in getattr(report, "user_properties", []) if name == "tally" and report.when == "teardown"
    ]  # fmt: skip
    if rows:
        terminalreporter.section("faults")
        for line in faults.table(rows):
            terminalreporter.write_line(line)
