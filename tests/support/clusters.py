"""Engines that spread work over machines, started on this one: Ray and SLURM, each with several nodes of one CPU."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from installed import debian
from servers import free_port
from sweeps import PATIENCE_S, wait_until


class RayCluster:
    """Several nodes of Ray, each with a CPU of its own."""

    def __init__(self, nodes: int):
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._others = [self._cluster.add_node(num_cpus=1) for _ in range(nodes - 1)]
        self.address = self._cluster.address

    def kill_node(self) -> None:
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    cluster = RayCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.close()


SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,sched_interval=1
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdTimeout=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class SlurmCluster:
    """SLURM itself, with munge; `sbatch` and `squeue` find it by the environment.

    Args:
        folder: of its files.
        nodes: with a CPU each, called `n0` and so on.
    """

    def __init__(self, folder: Path, nodes: int):
        self._folder, self._nodes = folder, [f"n{number}" for number in range(nodes)]
        self._daemons: dict[str, subprocess.Popen] = {}
        folder.chmod(0o755)  # munge's socket is for all
        for name in ("state", *self._nodes):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=1 RealMemory=2000"
            for node in self._nodes
        ]
        self.conf = folder / "slurm.conf"
        self.conf.write_text(SLURM.format(host=host, folder=folder, ctld=free_port(), nodes="\n".join(lines)))

    def start(self) -> None:
        files = [f"--{what}-file={self._folder}/munge.{what.split('-')[0]}" for what in ("key", "pid", "log", "seed")]
        self._start("munged", "munged", "--foreground", "--force", f"--socket={self._folder}/munge.socket", *files)
        self._start("slurmctld", "slurmctld", "-D")
        for node in self._nodes:
            self.start_node(node)
        try:
            wait_until(self.is_idle)
        except TimeoutError as error:
            logs = [path.read_text(errors="replace")[-2000:] for path in self._folder.glob("*.log")]
            raise TimeoutError("\n".join(["SLURM does not start", *logs])) from error

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def is_idle(self) -> bool:
        """Whether all nodes are there and have nothing to do."""
        done = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True, check=False)
        return done.stdout.split() == ["idle"] * len(self._nodes)

    def kill_node(self, node: str) -> None:
        """End a node's daemon and all that it started, without a word, as a power cut would."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if f"SLURMD_NODENAME={node}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                    if Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"slurmstepd"):
                        os.kill(parent, signal.SIGKILL)  # first, for it would tell
                    os.kill(int(process.name), signal.SIGKILL)

    def stop(self) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            daemon.wait(PATIENCE_S)

    def _start(self, name: str, *command: str) -> None:
        # of daemons, which not every user has on theirs
        environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        with open(self._folder / "out.log", "ab") as out:
            self._daemons[name] = subprocess.Popen(["env", *command], env=environment, stdout=out, stderr=out)


@contextmanager
def slurm_cluster(nodes: int) -> Iterator[SlurmCluster]:
    debian("slurm-wlm", "munge")
    with TemporaryDirectory(prefix="slurm-") as folder:
        cluster = SlurmCluster(Path(folder), nodes)
        os.environ["SLURM_CONF"] = str(cluster.conf)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            del os.environ["SLURM_CONF"]
