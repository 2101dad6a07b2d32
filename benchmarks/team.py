"""Thirty sweeps at once, each by a process of its own, to one MLflow server on PostgreSQL with logins.

    python benchmarks/team.py            # 30 sweeps of 8 runs (10 minutes)
    python benchmarks/team.py 10 4       # 10 of 4

PostgreSQL and the server run on this machine too, and share its cores with the sweeps. What the server holds afterwards
is compared with what the checkpoints say. Then one process, and several at once, record finished runs from their
checkpoints, into each kind of store: how many runs a second it takes.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from servers import Server, mlflow_server, postgres
from setting import figure, setting
from sweeps import PATIENCE_S

from stagetree.tracking.connection import pages
from stagetree.tracking.follower import AT_ONCE

PROGRAM = [sys.executable, "-m", "stagetree"]
STAGES = [f"[(3,{a}),(2,{b})]" for a in ("5e-2", "2e-2") for b in ("2e-2", "1e-2", "5e-3", "1e-3")]
WRITERS, EACH = (1, 4), 30
"""Processes that record at once, and runs of each."""


def words(seeds: str, n_runs: int) -> list[str]:
    return [
        "dataset=digits", "dataset.val_size=200", "model.hidden_sizes=[32]", f"seed={seeds}", "execution.workers=1",
        f"schedule.stages={','.join(STAGES[:n_runs])}", "hydra/launcher=basic", "quiet=true", "report.page=false",
    ]  # fmt: skip


def at(server: Server, experiment: str) -> list[str]:
    return ["tracking=server", f"tracking.uri={server.uri}", f"tracking.experiment={experiment}"]


def check(server: Server, folders: list[Path], experiment: str, n_runs: int) -> dict[str, int]:
    """Compare each run on the server with its checkpoint."""
    from mlflow import MlflowClient

    from stagetree.storage import checkpoints

    os.environ.update(server.login("ana"))
    client = MlflowClient(server.uri)
    found: dict[str, list] = {}
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    for run in pages(partial(client.search_runs, [experiment_id], "tags.`stagetree.kind` = 'run'")):
        found.setdefault(run.data.tags["stagetree.uid"], []).append(run)
    lost = doubled = wrong = missing = 0
    for folder in folders:
        states = checkpoints.folder_of(folder / "mlruns")
        uids = checkpoints.finished(states).tested
        missing += n_runs - len(uids)
        for uid in uids:
            runs, record = found.get(uid, []), checkpoints.read_record(states, uid)
            lost += not runs or runs[0].info.status != "FINISHED"
            doubled += len(runs) > 1
            for run in runs:
                history = client.get_metric_history(run.info.run_id, "val/loss")
                theirs = sorted((one.step, one.value) for one in history)
                wrong += theirs != [(line["epoch"], line["val/loss"]) for line in record.history]
                wrong += run.data.metrics["test/acc"] != record.test["test/acc"]
                wrong += len(client.list_artifacts(run.info.run_id)) != 3
    return {"not trained": missing, "lost": lost, "doubled": doubled, "differing": wrong}


def load(server: Server, scratch: Path, sweeps: int, n_runs: int) -> None:
    folders, started = [scratch / f"sweep{number}" for number in range(sweeps)], time.perf_counter()
    processes = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        command = [*PROGRAM, "sweep", *words(str(number), n_runs), *at(server, "load")]
        with open(folder / "out.txt", "wb") as out:
            processes.append(subprocess.Popen(command, cwd=folder, stdout=out, stderr=out))
    codes = [process.wait() for process in processes]
    wall = time.perf_counter() - started
    for folder, code in zip(folders, codes, strict=True):
        if code:
            print(f"{folder.name}: exit status {code}\n{(folder / 'out.txt').read_text()[-2000:]}")
    counts = check(server, folders, "load", n_runs)
    print(
        f"{sweeps} sweeps of {n_runs} runs at once: {wall:.0f} s, {sweeps * n_runs / wall:.1f} runs/s, "
        f"{sum(map(bool, codes))} failed; " + ", ".join(f"{count} {name}" for name, count in counts.items())
    )


def train(folder: Path) -> None:
    folder.mkdir()
    everyone = words(",".join(map(str, range(EACH * max(WRITERS)))), 1)
    subprocess.run([*PROGRAM, "sweep", *everyone], cwd=folder, check=True)


def write(number: int, folder: Path, at_once: int, where: list[str], barrier, durations) -> None:
    """Record finished runs of a sweep of one's own, from their checkpoints: what the end of a sweep does."""
    from stagetree import api
    from stagetree.planning import planner
    from stagetree.tracking.connection import TrackingStore
    from stagetree.tracking.tracker import SweepRecord, Tracker

    os.chdir(folder)
    seeds = ",".join(map(str, range(number * EACH, (number + 1) * EACH)))
    with api.composed([*words(seeds, 1), *where], None) as (_, _, jobs):
        plan = planner.plan(jobs, workers=1)
    store = TrackingStore.of(plan.config)

    def record(sweep_id: str, runs: tuple) -> None:
        sweep = SweepRecord(sweep_id, "benchmark", "benchmark", runs)
        Tracker.open(store, sweep, at_once=at_once).close()

    record(f"nothing {number}", ())  # imports, the database's schema and the experiment are not what is measured
    barrier.wait(PATIENCE_S)
    started = time.perf_counter()
    record(plan.sweep_id, plan.entries)
    durations.put(time.perf_counter() - started)


def rate(folder: Path, writers: int, at_once: int, where: Callable[[int], list[str]]) -> float:
    """Runs a second of several writers at once."""
    context = multiprocessing.get_context("spawn")
    barrier, durations = context.Barrier(writers), context.Queue()
    processes = [
        context.Process(target=write, args=(number, folder, at_once, where(number), barrier, durations))
        for number in range(writers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a writer failed, see above")
    return writers * EACH / max(durations.get() for _ in processes)


def rates(server: Server, database: str, scratch: Path) -> None:
    folder = scratch / "finished"
    train(folder)
    fresh = (f"new{number}" for number in count())

    def at_server(apart: bool) -> Callable[[int], list[str]]:
        name = next(fresh)
        return lambda number: at(server, f"{name}.{number}" if apart else name)

    def at_database(uri: str) -> Callable[[int], list[str]]:
        name = next(fresh)
        uri = uri.format(name)
        return lambda _: [f"tracking.uri={uri}", f"tracking.experiment={name}"]

    ways: dict[str, tuple[int, Callable[[], Callable[[int], list[str]]]]] = {
        "SQLite": (1, lambda: at_database(f"sqlite:///{scratch}/{{}}.db")),
        "PostgreSQL": (1, lambda: at_database(database)),
        "server on PostgreSQL, a run at a time": (1, lambda: at_server(False)),
        "server on PostgreSQL": (AT_ONCE, lambda: at_server(False)),
        "the same, an experiment each": (AT_ONCE, lambda: at_server(True)),
    }
    measured: dict[tuple[str, int], list[float]] = {}
    for _ in range(3):
        for writers in WRITERS:
            for name, (at_once, where) in ways.items():
                measured.setdefault((name, writers), []).append(rate(folder, writers, at_once, where()))
    print(f"runs a second into a new experiment, {EACH} runs of 5 epochs each writer, n = 3")
    for (name, writers), values in measured.items():
        print(f"{name:40} {writers} writer{'s' * (writers > 1):1}  {figure(values)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="?", type=int, default=30)
    parser.add_argument("runs", nargs="?", type=int, default=8)
    parser.add_argument("--server-workers", type=int, default=2)
    parser.add_argument("--only-rates", action="store_true", help="without the sweeps at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with (
            postgres() as database,
            mlflow_server(scratch, database, workers=arguments.server_workers) as server,
        ):
            server.add_user("ana")
            os.environ.update(server.login("ana"))
            if not arguments.only_rates:
                load(server, scratch, arguments.sweeps, arguments.runs)
            rates(server, database, scratch)
    print(setting("mlflow", "psycopg", "torch"))


if __name__ == "__main__":
    main()
