"""Open an empty store from many processes at the same instant; each records a run of its own and one that all share.

Run as `python store_rush.py FOLDER COUNT`. MLflow is imported once and the processes forked, so that they really do
meet: as separate commands, the first would be through before the last had imported it.
"""

import os
import sys
import time
from pathlib import Path

import mlflow
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import torch
from trunks import trunk

from stagetree.planning.descriptions import RunEntry
from stagetree.storage import checkpoints
from stagetree.storage.events import StateReached
from stagetree.tracking.connection import TrackingStore
from stagetree.tracking.tracker import SweepRecord, Tracker
from stagetree.tree.runs import Stage


def entry(uid: str, output_dir: Path) -> RunEntry:
    dataset = {"name": "none", "digest": "0" * 64}
    run = RunEntry(
        uid=uid, name=f"run {uid}", trunk_name="", trunk="", path=(uid,), shared_epochs=0,
        params={"seed": 0, "epochs": [1]}, dataset=dataset,
        config={}, command="", stages=(Stage(1, 0.1),),
    )  # fmt: skip
    history = ({"epoch": 1, "train/loss": 1.0, "train/acc": 0.5, "lr": 0.1},)
    weights = {"0.weight": torch.zeros(2)}
    record = checkpoints.Record(uid, trunk(), None, history, {"test/acc": 0.5})
    checkpoints.save(checkpoints.folder_of(output_dir), record, weights, {})
    return run


def record(number: int, output_dir: Path, begin: float) -> None:
    runs = [entry(f"own{number}", output_dir), entry("shared", output_dir)]
    time.sleep(max(0.0, begin - time.monotonic()))
    store = TrackingStore(f"sqlite:///{output_dir / 'mlflow.db'}", "rush", output_dir)
    tracker = Tracker.open(store, SweepRecord(f"s{number}", "l", "c", runs))
    for run in runs:
        tracker.on_event(StateReached(run.uid))
    tracker.close()


def main() -> None:
    output_dir, count = Path(sys.argv[1]) / "mlruns", int(sys.argv[2])
    begin = time.monotonic() + 0.5
    children = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                record(number, output_dir, begin)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))


if __name__ == "__main__":
    main()
