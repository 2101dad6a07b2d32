"""Training a few configurations as one unit in this process, without Hydra and MLflow."""

import os
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from stagetree.config import identity, schema, validation
from stagetree.data import cache
from stagetree.execution.worker import train_unit
from stagetree.storage import checkpoints
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import EpochEnded, Event
from stagetree.storage.unit_files import UnitSettings, write_unit
from stagetree.tree.runs import Run
from stagetree.tree.stage_tree import StageTree

OPTIMIZERS = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "adam", "weight_decay": 0.01},
    {"name": "rmsprop", "momentum": 0.5, "centered": True},
]


def trained(events: Iterable[Event]) -> Counter:
    """How often each epoch of each state was trained."""
    return Counter((e.uid, e.epoch) for e in events if isinstance(e, EpochEnded) and e.epoch > 0)


class Bench:
    """Trains configurations as one unit in this process, in an output folder of its own."""

    def __init__(self, output_dir: Path, npz: Path):
        self.output_dir = output_dir
        self.npz = npz
        self.launches = 0

    def config(self, **changes) -> schema.Config:
        values = {
            "dataset": {"name": "npz", "root": str(self.npz.parent), "file": self.npz.name, "val_size": 40},
            "model": {"hidden_sizes": [8]},
            "optimizer": {"name": "sgd"},
            "schedule": {"stages": [[2, 0.1], [1, 0.01]]},
            "loss": {"name": "cross_entropy"},
            "trainer": {"batch_size": 16, "device": "cpu"},
            **{group: {} for group in ("execution", "tracking", "report")},
            "seed": 0,
            "output_dir": str(self.output_dir),
        }
        for path, value in changes.items():
            group, _, name = path.partition("__")
            if name:
                values[group] = {**values[group], name: value}
            else:
                values[group] = value
        return validation.check(values)

    def run(self, **changes) -> Run:
        made = self.config(**changes)
        info = cache.prepare(made.dataset, self.output_dir)
        return identity.to_run(
            made, digest=info.digest, in_features=info.in_features, n_classes=len(info.classes), device="cpu"
        )

    def train(self, *runs: Run, share: bool = True, **settings) -> list[Event]:
        """Train what is not finished, in packs of any size, and return the events of doing so.

        Without `share`, each run is trained by itself from its initial weights, whatever states there are.
        """
        folder = self._write_unit(runs, share, settings)
        train_unit(folder, "0000")
        return list(EventReader(folder / "events").read())

    def train_until_killed(self, *runs: Run, files: int, **settings) -> list[Event]:
        """Train in a process that gets SIGKILL once it has put so many files into place, and return its events."""
        folder = self._write_unit(runs, True, settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests do not concern the child
            pid = os.fork()
        if pid == 0:
            try:
                _die_after(files)
                train_unit(folder, "0000")
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "it was not killed"
        return list(EventReader(folder / "events").read())

    def _write_unit(self, runs: Iterable[Run], share: bool, settings: dict) -> Path:
        """Write a unit of what `train` trains into the folder of a new launch."""
        settings = {"pack_size": 64} | settings  # not by what is measured while other tests run
        info = cache.prepare(self.config().dataset, self.output_dir)
        tree = StageTree.build(runs, share=share)
        if share:
            tree = tree.remaining(checkpoints.finished(self.checkpoints))
        self.launches += 1
        folder = self.output_dir / f"launch{self.launches}"
        chosen = UnitSettings(output_dir=str(self.output_dir), data={info.digest: info.folder}, share=share, **settings)
        write_unit(folder, "0000", tree.roots, chosen)
        return folder

    @property
    def checkpoints(self) -> Path:
        return checkpoints.folder_of(self.output_dir)

    def bits(self, run: Run) -> tuple:
        """All that a run leaves but its times: digest of the weights, metrics of every epoch, final metrics."""
        record = checkpoints.read_record(self.checkpoints, run.uid)
        history = [{name: value for name, value in line.items() if name != "seconds"} for line in record.history]
        return record.weights_sha256, history, record.test


def _die_after(files: int) -> None:
    """Have this process kill itself once it has renamed so many files into place."""
    real, numbers = os.replace, count(1)

    def replace(*args) -> None:
        real(*args)
        if next(numbers) == files:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
