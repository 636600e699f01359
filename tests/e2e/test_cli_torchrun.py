"""`torchrun … -m modelgit commit --recipe`: several processes carry out one fine-tuning, one of them commits it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from test_examples_run import DOMAINS, modelgit, write_data

import modelgit as package
from modelgit.train.networks.registry import build_network

RECIPE = """
architecture = "mlp"
threads = 1
[data]
path = "data.zip"
held_out = "fluent"
image_size = 16
[train]
steps = 6
lr = 1e-3
views = 1
eval_every = 3
shard_weights = true
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def test_torchrun_commits_one_fine_tuning(tmp_path: Path) -> None:
    write_data(tmp_path / "data.zip", DOMAINS, 0)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    models = tmp_path / "models"
    repo = package.Repository.init(models)
    torch.manual_seed(0)
    base = repo.commit(build_network("mlp", 3).state_dict(), "Base")
    command = [*TORCHRUN, "modelgit", "commit", "--recipe", "../recipe.toml", "--device", "cpu", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=models, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)  # one object: only one process speaks
    assert made["parents"] == [base] and made["commit"] == repo.head()
    assert "Warning" not in done.stderr
    assert not list((models / ".git/modelgit/cache/runs").glob("*"))
    again = modelgit(tmp_path, "-C", "models", "verify", "--rerun", "HEAD", "--data", str(tmp_path))
    assert again["apart"] < 1e-3
    assert again["exact"] or "processes: then 2, now 1" in again["notes"]
