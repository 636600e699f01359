"""Real clusters of two nodes on this machine: a worker is killed, and the versions are those of local workers."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_ray import ADDRESS, small_ray
from small_ray import missing as no_ray
from small_slurm import missing as no_slurm
from small_slurm import said, small_slurm

from modelgit.errors import ClusterError
from modelgit.pipeline.start import Options, carry_out
from modelgit.pipeline.workers.slurm import Slurm

PYTHON = sys.executable  # itself: the warm one starts commands where it is, not in the network of a cluster
PIPELINE = """
[pipeline]
name = "little"
repository = "models"
[model]
architecture = "mlp"
weights = "random"
[variables]
run = [0, 1]
[data.digits]
path = "digits.npz"
[train]
steps = 240
eval_every = 30
lr = 0.01
batch = 8
[[step]]
name = "base"
kind = "import"
[[step]]
name = "tuned/{run}"
kind = "train"
start = "base"
data = "digits"
run = "{run}"
[[step]]
name = "main"
kind = "merge"
heads = ["tuned/*"]
"""


class Killer(threading.Thread):
    """Kills the worker of a repository's first job as soon as a run is saved."""

    def __init__(self, repo: Path) -> None:
        super().__init__(daemon=True)
        self.repo = repo
        self.killed = 0
        self.start()

    def run(self) -> None:
        until = time.monotonic() + 120
        while not self.killed and time.monotonic() < until:
            time.sleep(0.01)
            if list(self.repo.glob(".git/modelgit/cache/runs/*.safetensors")):
                self.kill()

    def kill(self) -> None:
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = place.read_bytes().split(b"\0")
            except OSError:
                continue
            ours = b"plumbing-worker" in words and str(self.repo.resolve()).encode() in words
            if ours and any(word.endswith(b"/0001") for word in words):
                os.kill(int(place.parent.name), signal.SIGKILL)
                self.killed = int(place.parent.name)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "little.toml").write_text(PIPELINE)
    draws, labels = np.random.default_rng(0), np.arange(120) % 3
    np.savez(tmp_path / "digits.npz", x=draws.normal(size=(120, 3, 16, 16)).astype(np.float32), y=labels)
    return tmp_path


def run(
    place: Path, repo: str, *words: str, inside: Sequence[str] = (), more: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Carries the pipeline out in a new repository; returns the result, and what was noted on the way."""
    python = PYTHON if inside else sys.executable
    command = [*inside, python, "-m", "modelgit", "run", "little.toml", "--repo", repo, "--device", "cpu"]
    done = subprocess.run(
        [*command, *words, "--json"],
        cwd=place,
        env={**os.environ, **(more or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return json.loads(done.stdout), [event["message"] for event in events if event["event"] == "noted"]


def versions(place: Path, repo: str) -> dict[str, tuple[str, Any]]:
    """Returns what each ref leads to: the blob of its weights, and how its training went."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=place / repo, capture_output=True, text=True, check=True).stdout

    found = {}
    for ref in git("for-each-ref", "--format=%(refname)", "refs/heads", "refs/modelgit/steps").split():
        record = json.loads(git("show", f"{ref}:.modelgit/record.json"))
        found[ref] = (git("rev-parse", f"{ref}:model.safetensors"), record["details"].get("history"))
    return found


def check_same_versions(
    place: Path, on: str, *settings: str, inside: Sequence[str] = (), more: Mapping[str, str] | None = None
) -> None:
    """Checks that a cluster on which a worker is killed ends where one worker of this machine does."""
    carry_out(place / "little.toml", Options((), place / "local", workers=1, device="cpu"))
    killer = Killer(place / on)
    asked = [word for setting in settings for word in ("--cluster", setting)]
    table, notes = run(place, on, "--on", on, *asked, inside=inside, more=more)
    assert sorted(table.get("made", ())) == ["base", "main", "tuned/0", "tuned/1"], table
    assert killer.killed
    there = versions(place, on)
    assert len(there) == 8
    assert there == versions(place, "local")
    assert sum("its worker died with exit code 137 on" in note for note in notes) == 1, notes
    assert not list((place / on).glob(".git/modelgit/cache/runs/*"))


@pytest.mark.skipif(no_slurm() != "", reason=no_slurm())
def test_slurm_ends_in_the_same_versions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, small_slurm(Path(folder)) as conf:
        more = {"SLURM_CONF": str(conf)}
        check_same_versions(place, "slurm", "partition=small", "exclusive", more=more)
        jobs = said(conf, ["scontrol", "--oneliner", "show", "jobs"]).splitlines()
        assert len(jobs) == 3 and all("JobName=modelgit tuned/" in job for job in jobs)
        assert {node for node in ("n1", "n2") if any(f" NodeList={node} " in job for job in jobs)} == {"n1", "n2"}
        monkeypatch.setenv("SLURM_CONF", str(conf))
        with pytest.raises(ClusterError, match=r"a job with --partition=gpu is refused: .*[Pp]artition"):
            Slurm({"partition": "gpu"}).check()


# CI does not install Ray: 19 CPU s for it and two libraries more (79 MB), 15 for two nodes to come up, then jobs that
# load PyTorch; on two busy cores the first node was not ready in the minute that is waited for it.
@pytest.mark.skipif(no_ray() != "", reason=no_ray())
def test_ray_ends_in_the_same_versions(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as folder, small_ray(Path(folder)) as ray:
        check_same_versions(place, "ray", f"address={ADDRESS}", inside=ray.inside, more=ray.environment)
        words = ("--on", "ray", "--cluster", f"address={ADDRESS}", "--cluster", "num_cpus=9")
        table, _ = run(place, "refused", *words, inside=ray.inside, more=ray.environment)
        told = "Ray: no node can run a job with CPU 9; the nodes have CPU 1; CPU 1"
        assert (table["error"]["exit_code"], table["error"]["message"]) == (20, told)
        assert not (place / "refused").exists()
