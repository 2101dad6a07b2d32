"""Launch units until each has ended, whatever happens to the workers.

Progress is read from event logs and checkpoints, never from the values that a launcher returns.
"""

import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from stagetree.errors import InputError
from stagetree.execution.engine import Engine, Result
from stagetree.execution.shutdown import stop_asked
from stagetree.planning.planner import Plan
from stagetree.storage import checkpoints
from stagetree.storage.event_log import EventLog, EventReader
from stagetree.storage.events import Failed, Trouble, UnitBegan, UnitEnded
from stagetree.storage.unit_files import UnitSettings, write_unit
from stagetree.tree.stage_tree import Node, StageTree
from stagetree.tree.units import Unit, predecessors

DEATHS = 3
"""Deaths of workers that train one run alone until it fails: the first two may have had other causes."""


class MachineError(Exception):
    """Trouble that is no run's fault and stops a sweep: the disk is full, say. Finished runs are kept."""


class Supervisor:
    """Launches units until each is trained, or the nodes that kill its workers have failed."""

    def __init__(self, planned: Plan, output_dir: Path, folder: Path, engine: Engine, since: float):
        self.folder, self.engine = folder, engine
        self.checkpoints = checkpoints.folder_of(output_dir)
        execution = planned.config.execution
        self.settings = UnitSettings(
            output_dir=str(output_dir),
            data={digest: str(Path(info.folder).resolve()) for digest, info in planned.data.items()},
            pack_size=execution.pack_size,
            test_every_epoch=execution.test_every_epoch,
            checkpoint_every_s=execution.checkpoint_every_s,
            share=execution.share_prefixes,
            workers_per_device=execution.workers_per_device,
            since=since,
            launcher="" if engine.outlives else socket.gethostname(),
        )
        self._unit_ids = (f"{number:04d}" for number in count())
        self._failed: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._false_starts = 0
        self._said = ""

    def train(self, units: Sequence[Unit]) -> None:
        """Launch units. Halve what a dead worker left until the node that kills it is alone; try that twice more."""
        waiting, suspects = list(units), []
        while (batch := suspects or waiting) and not stop_asked(self.folder):
            waiting = waiting if suspects else []
            died, unbegun = self._launch(self._without_orphans(batch))
            waiting, suspects = [*unbegun, *waiting], []
            for left in died:
                root, *others = left
                if others:
                    suspects += [left[: len(left) // 2], left[len(left) // 2 :]]
                    continue
                self._deaths[root.uid] += 1
                if self._deaths[root.uid] < DEATHS:
                    suspects.append(left)
                else:
                    self._fail(root)

    def _without_orphans(self, units: Sequence[Unit]) -> list[Unit]:
        """Fail what starts from a state that was never reached, and return the rest."""
        orphans = [root for unit in units for root in unit if root.parent in self._failed]
        self._failed |= {node.uid for root in orphans for node in root.walk()}
        left = (tuple(root for root in unit if root.uid not in self._failed) for unit in units)
        return [unit for unit in left if unit]

    def _launch(self, units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
        """Launch units; return the remains of those whose workers died, and those that no worker began.

        Raises:
            MachineError: a worker could not continue, and no run is the cause.
        """
        by_id = {unit_id: unit for unit, unit_id in zip(units, self._unit_ids, strict=False)}
        ids = list(by_id)
        after = {ids[k]: [ids[other] for other in sorted(those)] for k, those in enumerate(predecessors(units))}
        for unit_id, unit in by_id.items():
            write_unit(self.folder, unit_id, unit, self.settings, after[unit_id])
        results = self._run(after) if after else []
        events = list(EventReader(self.folder / "events", on_damage=lambda _: None).read())  # the follower reports it
        for event in events:
            if isinstance(event, Trouble):
                raise MachineError(event.reason)
        for result in results:
            if result.unseen:
                raise MachineError(result.error)
            if result.error:
                print(f"unit {result.unit}: {result.error}", file=sys.stderr)
        ended = {event.unit for event in events if isinstance(event, UnitEnded)}
        begun = {event.unit for event in events if isinstance(event, UnitBegan)} & by_id.keys()
        self._failed |= {event.uid for event in events if isinstance(event, Failed) and not event.alone}
        done = checkpoints.finished(self.checkpoints, since=self.settings.since)
        died, unbegun = [], []
        for unit_id, unit in by_id.items():
            roots = StageTree(unit).remaining(done).roots if unit_id not in ended else ()
            if roots := tuple(root for root in roots if root.uid not in self._failed):
                (died if unit_id in begun else unbegun).append(roots)
        self._false_starts = 0 if begun else self._false_starts + 1
        if unbegun and self._false_starts == DEATHS:
            raise MachineError(f"no worker began to train, {DEATHS} times in a row ({self._said or 'see above'})")
        return died, unbegun

    def _run(self, after: Mapping[str, Sequence[str]]) -> Sequence[Result]:
        self._said = ""
        try:
            return self.engine.launch(self.folder, after)
        except InputError as error:
            raise MachineError(str(error)) from error
        except (Exception, SystemExit) as error:  # launchers raise when a worker dies; the logs tell the rest
            self._said = f"{type(error).__name__}: {error}"
            if not stop_asked(self.folder):
                print(f"launcher: {self._said}", file=sys.stderr)
            return []

    def _fail(self, root: Node) -> None:
        log = EventLog(self.folder / "events", "launcher")
        reason = f"its worker died {DEATHS} times without a word (killed, out of memory or crashed)"
        log.append(Failed(root.uid, reason))
        log.close()
        self._failed.add(root.uid)
