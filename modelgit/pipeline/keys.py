"""The key of a step: the digest of everything that determines its result."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields

from blake3 import blake3

from modelgit.errors import RepositoryError
from modelgit.recipe.expanding import Job
from modelgit.repo.repository import Repository
from modelgit.train.config import DataConfig, FineTune

# Counts changes of code that change what the same settings compute: old results are then made anew, and kept.
GENERATION = 1
STEP_REFS = "refs/modelgit/steps/"
READING = ("path", "kind", "columns", "classes")
# Settings that fine-tunings did not always have: where they are the usual, results of before stand.
LATER = ("shard_weights", "batch_norm", "lora")


def step_key(job: Job, inputs: Sequence[str], data_digest: str | None, on_digest: str | None = None) -> str:
    """Returns the key of a job; `inputs` identify the contents of the versions it needs, in order.

    The digests are of the data it trains on, and of that on which it measures models.
    """
    settings = {
        "generation": GENERATION,
        "kind": job.kind,
        "architecture": job.architecture,
        "inputs": list(inputs),
        "head": job.needs.index(job.head) if job.head else None,
        "data": data_digest,
        "split": data_settings(job.data),
        "config": training_settings(job.config) if job.config else None,
        "method": job.method,
        "settings": dict(job.settings),
        "drop_heads": job.drop_heads,
        **merge_settings(job, on_digest),
    }
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return blake3(text.encode()).hexdigest()


def keep(repo: Repository, key: str, commit: str) -> str:
    """Gives a result the ref of its step, and returns the commit that has it: another run's, if that came first."""
    ref = STEP_REFS + key
    try:
        repo.set_ref(ref, commit, expected=None)
    except RepositoryError:
        if (first := kept(repo, key)) is None:
            raise
        return first
    return commit


def kept(repo: Repository, key: str) -> str | None:
    """Returns the commit that has the ref of a step, None if there is none."""
    ref = STEP_REFS + key
    return repo.refs(ref).get(ref)


def data_settings(data: DataConfig | None) -> dict[str, object] | None:
    """Returns how data is split and prepared; where it lies and how it is read do not matter, its digest does."""
    return {key: value for key, value in asdict(data).items() if key not in READING} if data is not None else None


def training_settings(config: FineTune) -> dict[str, object]:
    """Returns how a fine-tuning is done; settings that came later only where they are not the usual."""
    usual = {f.name: f.default for f in fields(config) if f.name in LATER}
    return {key: value for key, value in asdict(config).items() if key not in usual or value != usual[key]}


def merge_settings(job: Job, on_digest: str | None) -> dict[str, object]:
    """Returns how a merge weighs, selects and searches, as far as it is not the usual."""
    told: dict[str, object] = {
        "weights": job.weights,
        "merged": [job.needs.index(name) for name in job.heads] if len(job.heads) < len(job.needs) else [],
        "base": [job.needs.index(job.base)] if job.base else [],
        "select": job.select,
        "search": [job.search, job.evaluations] if job.search else [],
        "statistics": [job.statistics.examples, job.statistics.labels] if job.statistics is not None else [],
        "on": [on_digest, data_settings(job.on)] if job.on is not None else [],
    }
    return {key: value for key, value in told.items() if value} if job.kind == "merge" else {}
