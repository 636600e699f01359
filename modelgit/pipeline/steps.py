"""The steps of a pipeline in one repository: what is recorded, what is made here, where branches point.

Refs named by a step's key keep every result; branches of the steps' names are for people and move when a step is
made anew, unless somebody has committed to them.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from modelgit.errors import DirtyWorktree, RecipeError
from modelgit.events import Listener
from modelgit.pipeline.keys import STEP_REFS, keep
from modelgit.pipeline.merging import examples_of, merge_commits
from modelgit.pipeline.messages import MergeRequest
from modelgit.pipeline.outcome import StepScore
from modelgit.porcelain.importing import Files, Import, folder_files, plain_files, single_file
from modelgit.porcelain.records import RECORD_PATH, Record, write_record
from modelgit.porcelain.scores import note, noted, split_key
from modelgit.porcelain.tensors import raw_tensors
from modelgit.porcelain.versions import DEFAULT_PATH, contents_id
from modelgit.recipe.expanding import BY_EXAMPLES, BY_POSTERIOR, Job
from modelgit.repo import worktree
from modelgit.repo.repository import Repository
from modelgit.repo.values import CommitDraft
from modelgit.repo.worktree import Earlier
from modelgit.store.files.intake import store_tensors
from modelgit.train.config import DataConfig
from modelgit.train.data.loading import load_dataset
from modelgit.train.networks.network import Design, head_tensors
from modelgit.train.networks.registry import build_network, untrained
from modelgit.train.pretrained import pretrained_file

READ_BYTES = 1 << 20


class Steps:
    """What the coordinator asks of the repository."""

    def __init__(self, repo: Repository, listener: Listener) -> None:
        self._repo = repo
        self._listener = listener
        self._recorded = repo.refs(STEP_REFS)
        self._digests: dict[DataConfig, str] = {}
        self._contents: dict[str, str] = {}

    def recorded(self, key: str) -> str | None:
        """Returns the commit of the step with that key, None if it was never made."""
        return self._recorded.get(STEP_REFS + key)

    def inputs(self, job: Job, commits: Mapping[str, str]) -> list[str]:
        """Returns what identifies the contents of all that a job starts from."""
        if job.kind == "import":
            return [f"random {job.seed}" if job.seed is not None else file_digest(weights_file(job))]
        return [self.contents(commits[name]) for name in job.needs]

    def contents(self, commit: str) -> str:
        """Returns the id of a version's weights."""
        if commit not in self._contents:
            self._contents[commit] = contents_id(self._repo.version(commit))
        return self._contents[commit]

    def data_digest(self, data: DataConfig | None) -> str | None:
        """Returns the digest of a data set, None for none."""
        if data is None:
            return None
        if data not in self._digests:
            self._digests[data] = load_dataset(data).digest
        return self._digests[data]

    def make(self, job: Job, key: str, commits: Mapping[str, str]) -> str:
        """Returns the commit of a step that needs no training, made now.

        Raises:
            MergeConflict: the versions cannot be merged. FormatError: the weights to import cannot be read.
        """
        if job.kind == "merge":
            commit = merge_commits(self._repo, self.merge_request(job, key, commits, 0), self._listener)
        else:
            trailers = (("Step", job.name), ("Step-Key", key))
            commit = self._repo.commit(dataclasses.replace(self._import(job), trailers=trailers))
        commit = keep(self._repo, key, commit)
        self.remember(key, commit)
        return commit

    def remember(self, key: str, commit: str) -> None:
        """Takes note of a result that its ref keeps already."""
        self._recorded[STEP_REFS + key] = commit

    def _import(self, job: Job) -> CommitDraft:
        if job.seed is not None:
            return self._untrained(job, job.seed)
        source = weights_file(job)
        with self._repo.store.begin() as pack:
            work = Import(source, {}, Earlier(self._repo, None), pack, self._listener)
            files = folder_files(work) if source.is_dir() else single_file(work, DEFAULT_PATH)
            pack.commit()
        small = {path: data for path, data in files.items() if isinstance(data, bytes)}
        head = head_tensors(build_network(Design(job.architecture, small), 2))
        record = Record("import", job.architecture, (), head, {"source": source.name, "digest": file_digest(source)})
        message = f"{job.name}: {job.architecture}, {source.name}"
        return CommitDraft((), {**files, RECORD_PATH: write_record(record)}, message)

    def _untrained(self, job: Job, seed: int) -> CommitDraft:
        with self._repo.store.begin() as pack:
            manifest = store_tensors(pack, raw_tensors(untrained(job.architecture, seed)), {"format": "pt"})
            pack.commit()
        head = head_tensors(build_network(job.architecture, 2))
        record = Record("import", job.architecture, (), head, {"source": "random", "seed": seed})
        files: Files = {DEFAULT_PATH: manifest, RECORD_PATH: write_record(record)}
        return CommitDraft((), files, f"{job.name}: {job.architecture}, untrained, seed {seed}")

    def merge_request(self, job: Job, key: str, commits: Mapping[str, str], frozen_stages: int) -> MergeRequest:
        """Returns a merge by value; versions that are the same commit count together."""
        weights = self._weights(job, commits)
        sums: dict[str, float] = {}
        names: dict[str, str] = {}
        for name, weight in zip(job.heads, weights or [1.0] * len(job.heads), strict=True):
            sums[commits[name]] = sums.get(commits[name], 0.0) + weight
            names.setdefault(commits[name], name)
        alike = not weights and set(sums.values()) == {1.0}
        return MergeRequest(
            step=job.name,
            key=key,
            names=tuple(names.values()),
            commits=tuple(sums),
            method=job.method,
            settings=dict(job.settings),
            weights=() if alike else tuple(sums.values()),
            base=commits[job.base] if job.base else None,
            drop_heads=job.drop_heads,
            outer=job.outer is not None,
            select=job.select,
            search=job.search,
            evaluations=job.evaluations,
            posterior=job.weights == BY_POSTERIOR,
            on=job.on,
            frozen_stages=frozen_stages,
            statistics=job.statistics,
        )

    def _weights(self, job: Job, commits: Mapping[str, str]) -> tuple[float, ...]:
        """Returns the weights of the heads, none if all are alike (or are yet to be found)."""
        if job.weights == BY_EXAMPLES:
            return tuple(float(examples_of(self._repo, name, commits[name])) for name in job.heads)
        return () if isinstance(job.weights, str) else job.weights

    # -------------------------------------------------------------------------------------------- branches

    def move_branch(self, name: str, commit: str) -> None:
        """Makes the branch `name` point at `commit`; the one checked out moves with its files, which come first.

        Raises:
            DirtyWorktree: files of the work tree were changed meanwhile; they are left alone.
        """
        old = self._repo.branches().get(name)
        if old == commit:
            return
        if self._repo.worktree is not None and self._repo.branch() == name:
            worktree.advance(self._repo, commit, expected=old, listener=self._listener)
        else:
            self._repo.set_ref(f"refs/heads/{name}", commit, expected=old)

    def refuse_changes(self, names: tuple[str, ...]) -> None:
        """Refuses to begin where a step could not move its branch at the end.

        Raises:
            RecipeError: a branch holds commits that no step made. DirtyWorktree: the work tree has changes.
        """
        known = set(self._recorded.values())
        branches = self._repo.branches()
        for name in names:
            if name in branches and branches[name] not in known:
                raise RecipeError(
                    f"branch '{name}' holds commits that this pipeline did not make",
                    hint=f"rename it: git branch -m {name} NEW, or use another repository: --repo DIR",
                )
        if self._repo.worktree is None or self._repo.branch() not in names:
            return
        changed = [change.path for change in worktree.status(self._repo).changes]
        if changed and not any(self._is_checked_out(commit) for commit in known):
            hint = (
                "commit them (modelgit commit) on a branch of their own, or throw them away: modelgit checkout --force"
            )
            raise DirtyWorktree(f"the work tree has changes: {', '.join(changed[:5])}", hint=hint)

    def _is_checked_out(self, commit: str) -> bool:
        """Tells whether the files are those of a step's commit: a run was killed before the branch followed them."""
        look = worktree.Look(self._repo)
        return all(look.blob(path) == blob for path, blob in self._repo.tree(commit).items())

    # -------------------------------------------------------------------------------------------- scores

    def known_score(self, job: Job, commit: str, members: tuple[str, ...] = ()) -> StepScore | None:
        """Returns the scores noted on a commit for the job's data, None if there are none with answers.

        Those of an ensemble of `members` are noted on the first of them.
        """
        row = noted(self._repo, commit, self._split(job, members))
        return step_score(job, commit, row) if row is not None and "answers" in row else None

    def keep_score(self, job: Job, commit: str, scores: Mapping[str, Any], members: tuple[str, ...] = ()) -> StepScore:
        """Notes the scores on the commit and returns them."""
        assert job.evaluate is not None  # only such jobs are scored
        whose = f" (ensemble of {len(members)})" if members else ""
        row = {**scores, "data": Path(job.evaluate.path).stem + whose, "split": self._split(job, members)}
        note(self._repo, commit, row)
        return step_score(job, commit, row)

    def _split(self, job: Job, members: tuple[str, ...]) -> str:
        assert job.evaluate is not None  # only such jobs are scored
        split = split_key(job.evaluate, self.data_digest(job.evaluate) or "")
        if not members:
            return split
        found = f"{split}, ensemble {blake3(' '.join(map(self.contents, members)).encode()).hexdigest()}"
        return found + (f", posterior on {split_key(job.on, self.data_digest(job.on) or '')}" if job.on else "")


def step_score(job: Job, commit: str, row: Mapping[str, Any]) -> StepScore:
    """Returns a note's row as the table wants it."""
    images = row.get("images", {})
    validated = None if job.validation_seen else row.get("val_accuracy")
    tested = images.get("ood_accuracy", 0)
    return StepScore(job.name, commit, job.kind, validated, row.get("ood_accuracy"), tested, row)


def weights_file(job: Job) -> Path:
    """Returns the file or the folder that an import step reads."""
    return pretrained_file(job.architecture) if job.weights_file == "pretrained" else Path(job.weights_file)


def file_digest(path: Path) -> str:
    """Returns the BLAKE3 of a file's content, of a folder's that of the names and contents of all its files.

    Raises:
        RecipeError: it cannot be read.
    """
    total = blake3()
    if path.is_dir():
        for name, place in sorted(plain_files(path, path)):
            total.update(f"{name}\0{file_digest(place)}\n".encode())
        return total.hexdigest()
    try:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                total.update(piece)
    except OSError as error:
        raise RecipeError(
            f"weights {path}: {error.strerror}", hint='[model] weights = "pretrained", or a file'
        ) from error
    return total.hexdigest()
