"""What a unit costs under each launcher beside training it: the same trivial runs in many units and in few.

    PYTHONPATH=tests/support python benchmarks/launchers.py   # SLURM is installed and started, with two nodes
    PYTHONPATH=tests/support python benchmarks/launchers.py joblib ray

Two workers each, one for `basic`. Timed is the launch alone, without Hydra's and MLflow's start.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from setting import figure, setting

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm", "ray")
FEW, MANY = 2, 34


def wall(launcher: str, units: int) -> float:
    """Seconds of a launch of `MANY` runs in so many units, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        child = [sys.executable, __file__, "--child", launcher, str(units)]
        done = subprocess.run(child, cwd=folder, stdout=subprocess.PIPE, check=True, env=os.environ)
        return json.loads(done.stdout.splitlines()[-1])


def launch(launcher: str, units: int) -> float:
    from stagetree import runner
    from stagetree.api import composed
    from stagetree.cli.progress import ProgressDisplay
    from stagetree.execution.engine import Result, Units
    from stagetree.execution.engine_choice import choose_engine

    words = [
        "dataset=digits", "trainer.batch_size=2000", "execution.pack_size=64", "schedule.stages=[(1,0.1)]",
        f"seed={','.join(map(str, range(MANY)))}", f"hydra/launcher={launcher}", "trainer.device=cpu",
        "quiet=true", "report.page=false", *(["execution.workers=2"] if launcher != "basic" else []),
    ]  # fmt: skip

    class Timed:
        """The engine, for which the tree is cut into more units than it has workers."""

        workers, outlives, here = units, False, True
        seconds = 0.0

        def launch(self, sweep_dir: Path, those: Units) -> Sequence[Result]:
            assert len(those) == units, those
            started = time.perf_counter()
            results = engine.launch(sweep_dir, those)
            self.seconds += time.perf_counter() - started
            return results

    with composed(words, None) as (context, config, jobs):
        engine, timed = choose_engine(context, config, jobs[0]), Timed()
        outcome = runner.run(jobs, engine=timed, command=["benchmark"], progress=ProgressDisplay.of_plan)
    assert outcome.exit_code == 0, outcome.text
    return timed.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("launchers", nargs="*", default=LAUNCHERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(launch(arguments.child[0], int(arguments.child[1]))))
        return
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with ExitStack() as stack:
        if "submitit_slurm" in arguments.launchers:
            from clusters import slurm_cluster

            stack.enter_context(slurm_cluster(nodes=2))
        for name in arguments.launchers:
            few = [wall(name, FEW) for _ in range(arguments.repeats)]
            costs = [(wall(name, MANY) - statistics.median(few)) / (MANY - FEW) for _ in range(arguments.repeats)]
            print(f"{name:15} {figure(costs)} s a unit; {FEW} units take {figure(few)} s", flush=True)
    print(f"n = {arguments.repeats}; {setting('hydra-joblib-launcher', 'submitit', 'ray')}")


if __name__ == "__main__":
    main()
