"""`stagetree report`, `migrate` and `verify`: commands on recorded runs."""

import sys

from rich.console import Console
from rich.progress import track

from stagetree import runner
from stagetree.config.composition import Job
from stagetree.redact import redact
from stagetree.report import verification
from stagetree.tracking import migration


def report(job: Job) -> None:
    """Rank the runs that the job's overrides select, print the top and write the files."""
    runner.leaderboard(job.config, job.overrides)


def migrate(job: Job, uri: str = "") -> None:
    """Copy what is recorded to another store, and say how much it was."""
    console = Console(stderr=True)
    copied = migration.migrate(job.config, uri, lambda runs, total: track(runs, "copying runs", total, console=console))
    print(f"{copied} runs copied to {redact(uri)}; use it with tracking=server tracking.uri={redact(uri)}")


def verify(job: Job, repair: bool = False) -> None:
    """Compare all records, repair differences if asked to, and exit with 3 while some remain."""
    if not verification.verify(job.config, Console(), repair=repair):
        sys.exit(3)
