"""The key of a step: the digest of everything that determines its result."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from blake3 import blake3

from modelgit.errors import RepositoryError
from modelgit.recipe.pipeline import Job
from modelgit.repo.repository import Repository

# Counts changes of code that change what the same settings compute: old results are then made anew, and kept.
GENERATION = 1
STEP_REFS = "refs/modelgit/steps/"


def step_key(job: Job, inputs: Sequence[str], data_digest: str | None) -> str:
    """Returns the key of a job; `inputs` identify the contents of the versions it needs, in order."""
    settings = {
        "generation": GENERATION,
        "kind": job.kind,
        "architecture": job.architecture,
        "inputs": list(inputs),
        "head": job.needs.index(job.head) if job.head else None,
        "data": data_digest,
        "split": data_settings(job),
        "config": asdict(job.config) if job.config else None,
        "method": job.method,
        "settings": dict(job.settings),
        "drop_heads": job.drop_heads,
    }
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return blake3(text.encode()).hexdigest()


def keep(repo: Repository, key: str, commit: str) -> str:
    """Gives a result the ref of its step, and returns the commit that has it: another run's, if that came first."""
    ref = STEP_REFS + key
    try:
        repo.set_ref(ref, commit, expected=None)
    except RepositoryError:
        first = repo.refs(ref).get(ref)
        if first is None:
            raise
        return first
    return commit


def data_settings(job: Job) -> dict[str, object] | None:
    """Returns how the data is split and prepared; where it lies does not matter, its digest does."""
    if job.data is None:
        return None
    return {key: value for key, value in asdict(job.data).items() if key != "path"}
