"""What a sweep costs beside training: start, planning, tracking, reading, memory.

    STAGETREE_DATA=folder python benchmarks/overheads.py    # MNIST and Fashion-MNIST, downloaded if they are not there
    python benchmarks/overheads.py start plan               # some of it

Each figure is that of a whole command, as a user waits for it.
"""

import argparse
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from peers import HERE, PACKAGES, WORKLOADS
from rich.console import Console
from rich.table import Table
from setting import setting

PROGRAM = [sys.executable, "-m", "stagetree"]
ONE_MINIBATCH = ["dataset=digits", "trainer.batch_size=2000", "schedule.stages=[(1,0.1)]", "seed=0,1,2,3,4,5,6,7"]
THOUSAND = [
    "dataset=digits", "model.hidden_sizes=[64],[32]", "optimizer=sgd,adam", "seed=0,1,2,3,4,5,6,7,8,9",
    "schedule.stages=" + ",".join(f"[(2,{a}),(1,{b})]" for a in (0.5, 0.2, 0.1, 0.05, 0.02)
                                  for b in (0.05, 0.02, 0.01, 0.005, 0.002)),
]  # fmt: skip
R16 = WORKLOADS["r16"].of_stagetree(None)
R64 = WORKLOADS["r64"].of_stagetree(None)


def wall(command: Sequence[str], folder: Path, **environment: str) -> float:
    """Seconds of one command."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def again(measure: Callable[[], float], repeats: int = 5) -> list[float]:
    return [measure() for _ in range(repeats)]


def start(folder: Path) -> dict[str, list[float]]:
    """Commands that answer at once, and the way of a sweep to its first minibatch."""
    wall([*PROGRAM, "plan", *ONE_MINIBATCH], folder)  # packages into the page cache, data prepared
    query = {"COMP_LINE": "stagetree train dataset=", "COMP_POINT": "24"}

    def to_first_minibatch() -> float:
        shutil.rmtree(folder / "mlruns", ignore_errors=True)
        wall([*PROGRAM, "data", "dataset=digits"], folder)
        started = time.perf_counter()
        with subprocess.Popen(
            [*PROGRAM, "sweep", *ONE_MINIBATCH], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as sweep:
            while not any('"epoch":1' in log.read_text() for log in folder.glob("mlruns/sweeps/*/*/events/*")):
                time.sleep(0.01)
            reached = time.perf_counter() - started
            sweep.wait()
        return reached

    return {
        "stagetree --help": again(lambda: wall([*PROGRAM, "--help"], folder)),
        "shell completion": again(lambda: wall([*PROGRAM, "-sc", "query=bash"], folder, **query)),
        "launch to the first minibatch of a sweep": again(to_first_minibatch),
    }


def plan(folder: Path) -> dict[str, list[float]]:
    """Compose, check, merge and cut 1,000 runs."""
    first = again(lambda: wall([*PROGRAM, "plan", *THOUSAND], folder), 1)
    return {
        "plan of 1,000 runs, shapes measured for the first time": first,
        "plan of 1,000 runs": again(lambda: wall([*PROGRAM, "plan", *THOUSAND], folder)),
    }


def tracking(folder: Path) -> dict[str, list[float]]:
    """Record R64 once more, from its checkpoints, into an empty store: what MLflow takes of the sweep's time."""
    sweep = [*PROGRAM, "sweep", *R64]
    wall([*PROGRAM, "data", "dataset=fashion_mnist"], folder)
    empty(folder)
    whole = wall(sweep, folder)
    shares = []
    for _ in range(3):
        empty(folder)
        recorded = wall(sweep, folder)
        shares.append(100 * (recorded - wall(sweep, folder)) / whole)  # nothing is left to record in the second
    return {"R64, the whole command": [whole], "MLflow's writes for it, % of that": shares}


def empty(folder: Path) -> None:
    """An empty MLflow store."""
    path = folder / "mlruns/mlflow.db"
    path.unlink(missing_ok=True)
    create = f"import mlflow; mlflow.set_tracking_uri('sqlite:///{path}'); mlflow.search_experiments()"
    wall([sys.executable, "-c", create], folder)


def report(folder: Path) -> dict[str, list[float]]:
    """Rank many runs: a real sweep's, copied within the database."""
    wall([*PROGRAM, "sweep", "+experiment=digits_grid"], folder)
    timed = {}
    for runs in (10_000, 30_000):
        multiply(folder / "mlruns/mlflow.db", runs)
        timed[f"report over {runs:,} runs"] = again(lambda: wall([*PROGRAM, "report"], folder), 3)
        lines = (folder / "leaderboard.csv").read_text().count("\n") - 1
        if lines < runs:
            sys.exit(f"{lines} lines in the leaderboard, expected {runs}")
    return timed


def page(folder: Path) -> dict[str, list[float]]:
    """Open the leaderboard page of many runs in Chromium, and use it."""
    from playwright.sync_api import sync_playwright

    wall([*PROGRAM, "sweep", "+experiment=digits_grid"], folder)
    timed: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        arguments = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for runs in (1_000, 10_000):
            multiply(folder / "mlruns/mlflow.db", runs)
            wall([*PROGRAM, "report"], folder)
            for _ in range(3):
                tab = browser.new_page()
                started = time.perf_counter()
                tab.goto((folder / "leaderboard.html").as_uri())
                tab.wait_for_selector("#parallel .main-svg")
                timed.setdefault(f"the page of {runs:,} runs opens", []).append(time.perf_counter() - started)
                for what, action in ACTIONS.items():
                    script = f"() => {{ const start = performance.now(); {action}; return performance.now() - start; }}"
                    timed.setdefault(f"  {what}, {runs:,} runs, ms", []).append(tab.evaluate(script))
                tab.close()
        browser.close()
    return timed


ACTIONS = {
    "a key in the filter": "find('filter').value = 'adam'; update()",
    "sorting": "sortBy(shownColumns(view.table)[2])",
    "drawing all plots anew": "drawPlots()",
}
"""By what a user does, the page's own function for it."""


def multiply(path: Path, runs: int) -> None:
    """Copy the runs of a store, with all they have, under new names, until there are so many."""
    with sqlite3.connect(path) as store:
        store.execute("CREATE TEMP TABLE originals AS SELECT run_uuid FROM runs WHERE length(run_uuid) = 32")
        (count,) = store.execute("SELECT count(*) FROM originals").fetchone()
        for copy in range(runs // (count - 1) + 1):  # one is the parent of the others
            for table in ("runs", "params", "tags", "latest_metrics", "metrics"):
                columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
                changed = {"run_uuid": f"run_uuid || 'x{copy}'"}
                if table == "tags":
                    changed["value"] = f"CASE key WHEN 'stagetree.uid' THEN value || 'x{copy}' ELSE value END"
                values = ", ".join(changed.get(name, name) for name in columns)
                store.execute(
                    f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} "
                    "WHERE run_uuid IN (SELECT run_uuid FROM originals)"
                )
        store.execute("DROP TABLE originals")


def memory(folder: Path) -> dict[str, list[float]]:
    """The largest worker of R16 beside one process of the tutorial's script, in MB of proportional set size."""
    wall([*PROGRAM, "data", "dataset=mnist"], folder)
    uri = f"sqlite:///{folder}/tutorial.db"
    wall([sys.executable, "-c", f"import mlflow; mlflow.set_tracking_uri('{uri}'); mlflow.set_experiment('peers')"],
         folder)  # fmt: skip
    words = WORKLOADS["r16"].of_peers(None, Path(os.environ["STAGETREE_DATA"]))
    words = [word.split(",")[0] if word.startswith(("lr_", "seed")) else word for word in words]
    tutorial = [sys.executable, str(HERE / "joblib_loop.py"), *words, f"tracking_uri={uri}"]
    return {
        "a worker's memory, MB": [largest([*PROGRAM, "sweep", *R16], folder, of="loky")],
        "a tutorial process's memory, MB": [largest(tutorial, folder, of="joblib_loop")],
    }


def largest(command: Sequence[str], folder: Path, *, of: str) -> float:
    """Most that any process, whose command line has a word in it, took while a command ran."""
    peak = 0
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for one in Path("/proc").glob("[0-9]*"):
                try:
                    if of in (one / "cmdline").read_text():
                        lines = (one / "smaps_rollup").read_text().splitlines()
                        peak = max(peak, *(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
                except (OSError, ValueError):
                    continue
            time.sleep(0.2)
    return peak * 1024 / 1e6


PARTS = {"start": start, "plan": plan, "tracking": tracking, "report": report, "page": page, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is given")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    os.environ["STAGETREE_DATA"] = str(Path(os.environ.get("STAGETREE_DATA", "data")).resolve())
    table = Table("", "median", "range", "n", box=None)
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            for what, values in PARTS[name](Path(folder)).items():
                span = f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else ""
                table.add_row(what, f"{statistics.median(values):.2f}", span, str(len(values)))
        print(f"{name} measured", file=sys.stderr, flush=True)
    console = Console(width=120)
    console.print(table)
    console.print(f"\nseconds where nothing else is said; {setting(*PACKAGES)}", highlight=False)


if __name__ == "__main__":
    main()
