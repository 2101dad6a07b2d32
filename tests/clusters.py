"""Engines that spread work over machines, started on this one: Ray with several nodes, SLURM with one."""

import os
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
SlurmdPort={d}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
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
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@contextmanager
def slurm_cluster() -> Iterator[Path]:
    """SLURM itself with one node of two CPUs: `sbatch` and `squeue` find it by the environment."""
    debian("slurm-wlm", "munge")
    with TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge's socket is for all
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        ctld, d = [free_port() for _ in range(2)]
        conf = folder / "slurm.conf"
        conf.write_text(SLURM.format(host=socket.gethostname().split(".")[0], folder=folder, ctld=ctld, d=d))
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # of daemons, which not every user has on theirs
        environment = os.environ | {"SLURM_CONF": str(conf), "PATH": path}
        munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munge += [f"--{what}-file={folder}/munge.{what.split('-')[0]}" for what in ("key", "pid", "log", "seed")]
        daemons = []
        try:
            for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
                with open(folder / "out.txt", "ab") as out:
                    daemons.append(subprocess.Popen(["env", *command], env=environment, stdout=out, stderr=out))
            os.environ["SLURM_CONF"] = str(conf)
            _wait_for_node(folder)
            yield folder
        finally:
            os.environ.pop("SLURM_CONF", None)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(PATIENCE_S)


def _wait_for_node(folder: Path) -> None:
    def idle() -> bool:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        return done.stdout.strip() == "idle"

    try:
        wait_until(idle)
    except TimeoutError as error:
        logs = [path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log")]
        raise TimeoutError("\n".join(["SLURM does not start", *logs, (folder / "out.txt").read_text()])) from error
