"""Choose the accelerator of a worker: each has a slot of its own, whichever sweep of this machine it serves.

A slot is a lock in a file of this machine, so that it is free again when its worker is gone, however that ended.
"""

import getpass
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from stagetree.storage.locks import Locks

DEV = Path("/dev")
NVIDIA = Path("/proc/driver/nvidia/version")
"""There if and only if the driver is."""
POLL_S = 0.2
_mine: int | None = None
"""The device of this process, once it has one."""


@cache
def resolve_device(device: str) -> str:
    """Find out what `auto` stands for on this machine, without importing torch; other names stay as they are."""
    if device != "auto":
        return device
    if NVIDIA.exists() and not _cpu_build():
        return "cuda"
    return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"


@cache
def lacking(device: str) -> str:
    """Say in a sentence that this machine lacks a device; empty if it is there.

    Torch is imported and asked only if nothing else tells.
    """
    if device == "cpu" or (device == "cuda" and NVIDIA.exists() and count_devices(device) and not _cpu_build()):
        return ""
    import torch

    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if available[device]():
        return ""
    return (
        f"trainer.device: got {device}, but torch {torch.__version__} on {socket.gethostname()} does not see one "
        "(trainer.device=cpu trains without)"
    )


def _cpu_build() -> bool:
    return metadata.version("torch").endswith("+cpu")


def count_devices(device: str) -> int | None:
    """Count the devices that this process may use, without torch; `None` for those that workers always share.

    Only `cuda` comes in several.
    """
    if device != "cuda":
        return None
    there = len(list(DEV.glob("nvidia[0-9]*")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if chosen is None else min(there, len([name for name in chosen.split(",") if name.strip()]))


def use_device(device: str, workers_per_device: int, check: Callable[[], None], tell: Callable[[str], None]) -> None:
    """Give this process a device for good, and wait until one has a free slot.

    Args:
        device: of torch.
        workers_per_device: workers that may share one.
        check: called while waiting; an error that it raises ends the wait.
        tell: called once with the reason for waiting.
    """
    global _mine
    if device != "cuda" or _mine is not None:
        return
    import torch

    count = torch.cuda.device_count()
    if count:  # without, training says so
        # by uuid, since a process that sees fewer devices numbers them differently
        names = [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]
        _mine = take_slot(_locks(), names, workers_per_device, check, tell)
        torch.cuda.set_device(_mine)


def take_slot(
    locks: Locks,
    names: Sequence[str],
    workers_per_device: int,
    check: Callable[[], None],
    tell: Callable[[str], None],
) -> int:
    """Wait for a slot and take it, on the device with the fewest taken.

    Args:
        locks: of all workers of this machine.
        names: of the devices that this process sees.
        workers_per_device: slots of each.
        check: called while waiting; what it raises ends that.
        tell: told why this process waits, once.

    Returns:
        The position of the device's name.
    """
    told = False
    while True:
        for slot in range(workers_per_device):
            for number, name in enumerate(names):
                if locks.take(f"{name} {slot}"):
                    return number
        if not told:
            tell(
                f"a worker waits for a device: {len(names)} here, with {workers_per_device} worker"
                f"{'s' * (workers_per_device > 1)} each "
                f"(execution.workers_per_device={workers_per_device + 1} allows more)"
            )
            told = True
        check()
        time.sleep(POLL_S)


def _locks() -> Locks:
    return Locks(Path(tempfile.gettempdir()) / f"stagetree-devices-{getpass.getuser()}.lock")
