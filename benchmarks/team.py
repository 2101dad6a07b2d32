"""Thirty sweeps at once, each by a process of its own, to one MLflow server on PostgreSQL with logins.

    python benchmarks/team.py            # 30 sweeps of 8 runs (5 minutes)
    python benchmarks/team.py 10 4       # 10 of 4

PostgreSQL and the server run on this machine too, and share its cores with the sweeps. What the server holds afterwards
is compared with what the checkpoints say. Then one process alone records the same runs again, from its checkpoints, to
the server and to a SQLite file: what a run costs the writer.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers import Server, mlflow_server, postgres
from setting import setting

PROGRAM = [sys.executable, "-m", "stagetree"]
STAGES = [f"[(3,{a}),(2,{b})]" for a in ("5e-2", "2e-2") for b in ("2e-2", "1e-2", "5e-3", "1e-3")]
ALONE = 30
"""Runs that one process records."""


def words(seeds: str, n_runs: int) -> list[str]:
    return [
        "dataset=digits", "dataset.val_size=200", "model.hidden_sizes=[32]", f"seed={seeds}", "trainer.workers=1",
        f"schedule.stages={','.join(STAGES[:n_runs])}", "hydra/launcher=basic", "quiet=true", "report.page=false",
    ]  # fmt: skip


def at(server: Server, experiment: str) -> list[str]:
    return ["tracking=server", f"tracking.uri={server.uri}", f"tracking.experiment={experiment}"]


def check(server: Server, folders: list[Path], experiment: str, n_runs: int) -> dict[str, int]:
    """Compare each run on the server with its checkpoint."""
    from mlflow import MlflowClient

    from stagetree import checkpoint

    os.environ.update(server.login("ana"))
    client = MlflowClient(server.uri)
    ids = [client.get_experiment_by_name(experiment).experiment_id]
    found: dict[str, list] = {}
    token = None
    while True:
        page = client.search_runs(ids, "tags.`stagetree.kind` = 'run'", page_token=token)
        for run in page:
            found.setdefault(run.data.tags["stagetree.uid"], []).append(run)
        token = page.token
        if not token:
            break
    lost = doubled = wrong = missing = 0
    for folder in folders:
        states = checkpoint.folder_of(folder / "mlruns")
        uids = checkpoint.finished(states).tested
        missing += n_runs - len(uids)
        for uid in uids:
            runs, record = found.get(uid, []), checkpoint.read_record(states, uid)
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


def alone(server: Server, scratch: Path) -> None:
    """One writer: the same finished runs to a new experiment of each store, less the command with nothing to write."""
    folder = scratch / "alone"
    folder.mkdir()
    grid = words(",".join(map(str, range(ALONE))), 1)

    def wall(*more: str) -> float:
        started = time.perf_counter()
        subprocess.run([*PROGRAM, "sweep", *grid, *more], cwd=folder, check=True)
        return time.perf_counter() - started

    wall()
    costs: dict[str, list[float]] = {"PostgreSQL behind the server": [], "SQLite": []}
    for repeat in range(3):
        for name, store in (("PostgreSQL behind the server", lambda e: at(server, e)),
                            ("SQLite", lambda e: [f"tracking.experiment={e}"])):  # fmt: skip
            first, again = (wall(*store(f"alone{repeat}")) for _ in range(2))
            costs[name].append((first - again) / ALONE * 1000)
    for name, values in costs.items():
        print(
            f"{name}: {statistics.median(values):.0f} ms a run ({min(values):.0f} to {max(values):.0f}), n = 3 of "
            f"{ALONE} runs, 5 epochs each"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="?", type=int, default=30)
    parser.add_argument("runs", nargs="?", type=int, default=8)
    parser.add_argument("--server-workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with (
            postgres() as database,
            mlflow_server(scratch, database, workers=arguments.server_workers) as server,
        ):
            server.add_user("ana")
            os.environ.update(server.login("ana"))
            load(server, scratch, arguments.sweeps, arguments.runs)
            alone(server, scratch)
    print(setting("mlflow", "psycopg", "torch"))


if __name__ == "__main__":
    main()
