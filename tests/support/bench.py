"""Training a few configurations as one unit in this process, without Hydra and MLflow."""

from pathlib import Path

from stagetree.config import identity, schema, validation
from stagetree.data import cache
from stagetree.execution.worker import train_unit
from stagetree.storage import checkpoints
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import Event
from stagetree.storage.unit_files import UnitSettings, write_unit
from stagetree.tree.runs import Run
from stagetree.tree.stage_tree import StageTree


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
            "execution": {}, "tracking": {}, "report": {},
            "seed": 0, "output_dir": str(self.output_dir),
        }  # fmt: skip
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
        """Train what is not finished, in packs of any size, and return the events of doing so."""
        settings = {"pack_size": 64} | settings  # not by what is measured while other tests run
        info = cache.prepare(self.config().dataset, self.output_dir)
        tree = StageTree.build(runs, share=share).remaining(checkpoints.finished(self.checkpoints))
        self.launches += 1
        folder = self.output_dir / f"launch{self.launches}"
        chosen = UnitSettings(output_dir=str(self.output_dir), data={info.digest: info.folder}, share=share, **settings)
        write_unit(folder, "0000", tree.roots, chosen)
        train_unit(folder, "0000")
        return list(EventReader(folder / "events").read())

    @property
    def checkpoints(self) -> Path:
        return checkpoints.folder_of(self.output_dir)

    def bits(self, run: Run) -> tuple:
        """All that a run leaves but its times: digest of the weights, metrics of every epoch, final figures."""
        record = checkpoints.read_record(self.checkpoints, run.uid)
        history = [{name: value for name, value in line.items() if name != "seconds"} for line in record.history]
        return record.weights_sha256, history, record.test
