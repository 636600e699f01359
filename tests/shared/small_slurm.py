"""A real Slurm of two nodes on this machine, on loopback alone, with a key of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
CONF = """
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
PropagateResourceLimits=NONE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=small Nodes=n1,n2 Default=YES MaxTime=10 State=UP
"""


def missing() -> str:
    """Returns why there can be no Slurm here, "" if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"no {', '.join(absent)} on this machine (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs for users, so it needs root"


def search_path() -> str:
    """Returns where programs are looked for; Debian keeps the servers apart."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@contextmanager
def small_slurm(place: Path) -> Iterator[Path]:
    """Runs a Slurm in a folder of a short path, and yields its configuration, for SLURM_CONF; ends it with all jobs."""
    conf = place / "slurm.conf"
    (place / "state").mkdir()
    (place / "key").write_bytes(os.urandom(128))
    (place / "key").chmod(0o600)
    host, cpus = socket.gethostname().partition(".")[0], os.cpu_count() or 1
    conf.write_text(CONF.format(place=place, host=host, user="root", ports=free_ports(3), cpus=cpus))
    with ExitStack() as stack:
        stack.enter_context(server(place, munged(place)))
        wait_for((place / "munge.socket").exists, "munged")
        for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            stack.enter_context(server(place, [*command, "-f", str(conf)], {"SLURM_CONF": str(conf)}))
        wait_for(lambda: said(conf, ["sinfo", "--noheader", "--format=%T %D"]).split() == ["idle", "2"], "two nodes")
        try:
            yield conf
        finally:
            said(conf, ["scancel", "--user=root"])
            with suppress(TimeoutError):
                wait_for(lambda: not said(conf, ["squeue", "--noheader"]), "end of jobs")


def munged(place: Path) -> list[str]:
    """Returns the command of a munged of its own."""
    files = {"socket": "munge.socket", "key-file": "key", "log-file": "munge.log", "pid-file": "munge.pid"}
    paths = [f"--{name}={place / file}" for name, file in {**files, "seed-file": "munge.seed"}.items()]
    return ["munged", "--foreground", "--force", "--num-threads=2", *paths]


@contextmanager
def server(place: Path, command: Sequence[str], more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Runs a server until the end of the block."""
    with (place / "servers.log").open("a") as log:
        environment = {**os.environ, "PATH": search_path(), **(more or {})}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def said(conf: Path, command: Sequence[str]) -> str:
    """Returns what one of Slurm's programs prints, "" if it fails."""
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else ""


def wait_for(met: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Waits until something is met. Raises TimeoutError."""
    until = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > until:
            raise TimeoutError(f"no {what} after {timeout_s:.0f} s")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nobody listens at now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
