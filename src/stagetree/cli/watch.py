"""`stagetree watch`: show the progress of a sweep that another terminal or machine trains."""

import json
import time
from pathlib import Path

from stagetree.cli.progress import ProgressDisplay
from stagetree.config.composition import Job
from stagetree.errors import InputError
from stagetree.execution.shutdown import is_launching, is_unit_held
from stagetree.storage.event_log import EventReader
from stagetree.storage.events import UnitBegan, UnitEnded
from stagetree.storage.locks import output_dir_locks
from stagetree.tracking.follower import POLL_S


def watch(job: Job) -> None:
    """Show the progress of the latest launch until it ends.

    Raises:
        InputError: no sweep was launched yet.
    """
    output_dir = Path(job.config.output_dir).resolve()
    launches = sorted(output_dir.glob("sweeps/*/*/sweep.json"), key=lambda path: path.stat().st_mtime)
    if not launches:
        raise InputError(f"output_dir: no sweep was launched in {output_dir} (start one, or give output_dir=...)")
    folder = launches[-1].parent
    planned = json.loads(launches[-1].read_bytes())
    names = {run["uid"]: run["name"] for run in planned["runs"] if not run["finished"]}
    progress = ProgressDisplay(epochs=planned["epochs_to_train"], names=names)
    reader = EventReader(folder / "events", on_damage=lambda error: progress.note(str(error)))
    locks = output_dir_locks(output_dir)
    progress.console.print(f"sweep {planned['sweep']}: {' '.join(planned['command'])}", markup=False, highlight=False)
    first, over, busy = True, False, set()
    with progress:
        while True:
            for event in reader.read():
                progress.on_event(event)
                match event:
                    case UnitBegan(unit):
                        busy.add(unit)
                    case UnitEnded(unit):
                        busy.discard(unit)
            if first:
                progress.attach()
                first = False
            progress.refresh()
            if over:
                break
            time.sleep(POLL_S)
            # what happened before this was asked is read once more
            over = not is_launching(folder, locks) and not any(is_unit_held(folder, unit, locks) for unit in busy)
    progress.console.print(f"{progress.status()}; no process trains this sweep now", highlight=False)
