"""A real Ray of two nodes in a network of its own, which has loopback alone; its members know each other by a token."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from small_slurm import server, wait_for

ADDRESS = "127.0.0.1:6379"
QUIET = {"RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


@dataclass(frozen=True, slots=True)
class SmallRay:
    """What stands before a command that is to run in the cluster's network, and the environment it needs."""

    inside: tuple[str, ...]
    environment: dict[str, str]


def missing() -> str:
    """Returns why there can be no Ray here, "" if there can."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install 'modelgit[ray]'"
    absent = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} on this machine (Debian: iproute2 util-linux)"
    return "" if os.geteuid() == 0 else "a network of its own needs root"


@contextmanager
def small_ray(place: Path) -> Iterator[SmallRay]:
    """Runs a Ray of two nodes of one CPU, with its files in a folder of a short path."""
    ray = str(Path(sysconfig.get_path("scripts")) / "ray")
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **QUIET}
    with ExitStack() as stack:
        inside = stack.enter_context(own_network())
        start = [*inside, ray, "start", "--block", "--num-cpus=1", "--object-store-memory=80000000"]
        start += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        head = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={place}"]
        stack.enter_context(server(place, [*start, *head], secret))
        wait_for(lambda: log(place).count("Ray runtime started") == 1, "head of Ray")
        stack.enter_context(server(place, [*start, f"--address={ADDRESS}"], secret))
        wait_for(lambda: log(place).count("Ray runtime started") == 2, "second node of Ray")
        yield SmallRay(tuple(inside), secret)


def log(place: Path) -> str:
    """Returns what the servers have said."""
    return (place / "servers.log").read_text()


@contextmanager
def own_network() -> Iterator[list[str]]:
    """Keeps a network with loopback alone, and yields what stands before a command that is to run in it."""
    keeper = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up && exec sleep infinity"])
    inside = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net"]
    try:
        wait_for(lambda: Path(f"/proc/{keeper.pid}/comm").read_text().strip() == "sleep", "network")
        yield inside
    finally:
        keeper.kill()
        keeper.wait()
