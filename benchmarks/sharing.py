"""One grid, trained with and without sharing and packing: wall time, epochs trained, and whether all bits agree.

    python benchmarks/sharing.py digits
    STAGETREE_DATA=folder python benchmarks/sharing.py r16    # MNIST, downloaded if it is not there

Each way is the whole command, from launch to leaderboard, in an empty folder; the data is prepared before.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from setting import setting

from stagetree.storage import checkpoints
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import EpochEnded

GRIDS = {
    "digits": ["+experiment=digits_grid"],
    "r16": [
        "dataset=mnist", "model=mlp_300", "trainer.batch_size=32",
        "schedule.stages=" + ",".join(
            f"[(2,{a}),(1,{b})]" for a in (0.2, 0.1, 0.05, 0.02) for b in (0.05, 0.02, 0.01, 0.005)
        ),
    ],
}  # fmt: skip
WAYS = {
    "sharing and packing": [],
    "packing alone": ["execution.share_prefixes=false"],
    "sharing alone": ["execution.pack_size=1"],
    "neither": ["execution.share_prefixes=false", "execution.pack_size=1"],
}


def launch(folder: Path, command: str, words: list[str]) -> float:
    """Run one command in a folder, and return its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "stagetree", command, *words, "trainer.device=cpu"],
        cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - started


def epochs_trained(folder: Path) -> int:
    """Count what the event logs say was trained."""
    launches = (folder / "mlruns/sweeps").glob("*/*/events")
    return sum(isinstance(e, EpochEnded) and e.epoch > 0 for one in launches for e in EventReader(one).read())


def bits(folder: Path) -> dict[str, tuple]:
    """For each run the digest of its weights, its metrics of every epoch and its final figures."""
    states = folder / "mlruns/checkpoints"
    records = [checkpoints.read_record(states, uid) for uid in checkpoints.finished(states).tested]
    return {
        record.uid: (
            record.weights_sha256,
            [{name: value for name, value in line.items() if name != "seconds"} for line in record.history],
            record.test,
        )
        for record in records
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--repeats", type=int, default=1, help="of each way; the median counts")
    arguments = parser.parse_args()
    data = Path(os.environ.get("STAGETREE_DATA", "data")).resolve()
    os.environ["STAGETREE_DATA"] = str(data)

    table = Table("way", "wall s", "ratio", "epochs trained", "bits", box=None)
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    trained, results = {}, {}
    with tempfile.TemporaryDirectory() as root:
        for repeat in range(arguments.repeats):
            for way, words in list(WAYS.items())[:: 1 if repeat % 2 == 0 else -1]:  # alternating orders
                folder = Path(root) / f"{way} {repeat}"
                folder.mkdir()
                launch(folder, "plan", GRIDS[arguments.grid])
                walls[way].append(launch(folder, "sweep", [*GRIDS[arguments.grid], *words]))
                trained[way], results[way] = epochs_trained(folder), bits(folder)
                print(f"{way}: {walls[way][-1]:.1f} s", file=sys.stderr, flush=True)
    medians = {way: sorted(values)[len(values) // 2] for way, values in walls.items()}
    for way in WAYS:
        same = "same" if results[way] == results["neither"] else "DIFFERENT"
        ratio = f"{medians['neither'] / medians[way]:.1f}"
        table.add_row(way, f"{medians[way]:.1f}", ratio, str(trained[way]), same)
    console = Console()
    console.print(table)
    n = len(results["neither"])
    console.print(f"{n} runs, {arguments.repeats} repeats; {setting('torch')}", highlight=False)
    if any(result != results["neither"] for result in results.values()):
        sys.exit("sharing or packing changed a result")


if __name__ == "__main__":
    main()
