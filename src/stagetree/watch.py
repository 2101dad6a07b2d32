"""`stagetree watch`: the progress of a sweep that another terminal, or another machine, trains."""

import json
import time
from pathlib import Path

from stagetree.claims import store_claims
from stagetree.events import EventReader
from stagetree.mistakes import InputError
from stagetree.progress import ProgressDisplay
from stagetree.stopping import is_launching
from stagetree.tail import POLL_S


def watch(output_dir: Path) -> None:
    """Show the progress of the latest launch until it ends.

    Raises:
        InputError: nothing was launched yet.
    """
    launches = sorted(output_dir.glob("sweeps/*/*/sweep.json"), key=lambda path: path.stat().st_mtime)
    if not launches:
        raise InputError(f"output_dir: no sweep was launched in {output_dir} (start one, or give output_dir=...)")
    folder = launches[-1].parent
    planned = json.loads(launches[-1].read_bytes())
    names = {run["uid"]: run["name"] for run in planned["runs"] if not run["finished"]}
    progress = ProgressDisplay(epochs=planned["epochs_to_train"], names=names)
    reader = EventReader(folder / "events", on_damage=lambda error: progress.note(str(error)))
    claims = store_claims(output_dir)
    progress.console.print(f"sweep {planned['sweep']}: {' '.join(planned['command'])}", markup=False, highlight=False)
    first = True
    with progress:
        while True:
            alive = is_launching(folder, claims)  # asked before reading, so that the last events are seen
            for event in reader.read():
                progress.on_event(event)
            if first:
                progress.attach()
                first = False
            progress.refresh()
            if not alive:
                break
            time.sleep(POLL_S)
    progress.console.print(f"{progress.status()}; no process trains this sweep now", highlight=False)
