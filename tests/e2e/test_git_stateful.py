"""A repository against a dict: whatever the order of steps, files and branches are what they should be."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from safetensors.numpy import save

from modelgit.errors import DirtyWorktree
from modelgit.repo.repository import Repository
from modelgit.repo.transport import clone, pull
from modelgit.repo.worktree import add, checkout, commit_worktree, status

WEIGHTS = ("model.safetensors", "sub/part.safetensors")
ORDINARY = ("config.json", "sub", "sub/notes.txt")
BRANCHES = ("main", "side", "deep/er")
Files = dict[str, bytes]


def weights(value: int) -> bytes:
    return save({"a": np.full(300, value, np.float32), "b": np.arange(300, dtype=np.float32)})


def files_of(root: Path) -> Files:
    found = (p for p in root.rglob("*") if p.is_file() and ".git" not in p.relative_to(root).parts)
    return {str(p.relative_to(root)): p.read_bytes() for p in found if p.name != ".gitattributes"}


class RepositoryAgainstDict(RuleBasedStateMachine):
    """The model: what each branch holds, and what the work tree does."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.root = self.home / "r"
        self.repo = Repository.init(self.root)
        self.work: Files = {}
        self.branches: dict[str, Files] = {}
        self.current = "main"
        self.copy: Repository | None = None
        self.settled = True  # nothing was written since the last commit or checkout

    def teardown(self) -> None:
        shutil.rmtree(self.home)

    def tip(self) -> Files:
        return self.branches.get(self.current, {})

    @rule(path=st.sampled_from(WEIGHTS), value=st.integers(0, 3))
    def write_weights(self, path: str, value: int) -> None:
        self.write(path, weights(value))

    @rule(path=st.sampled_from(ORDINARY), content=st.sampled_from([b"1", b"2", b"\r\n\0"]))
    def write_ordinary(self, path: str, content: bytes) -> None:
        self.write(path, content)

    def write(self, path: str, content: bytes) -> None:
        """Writes a file as a user would, a folder or file in its way removed."""
        for other in list(self.work):
            if other.startswith(f"{path}/") or path.startswith(f"{other}/"):
                self.remove(other)
        if (self.root / path).is_dir():
            shutil.rmtree(self.root / path)
        (self.root / path).parent.mkdir(exist_ok=True)
        (self.root / path).write_bytes(content)
        self.work[path] = content
        self.settled = False

    @precondition(lambda self: self.work)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.remove(data.draw(st.sampled_from(sorted(self.work))))

    def remove(self, path: str) -> None:
        (self.root / path).unlink()
        del self.work[path]

    @rule()
    def commit(self) -> None:
        if self.work:
            add(self.repo, sorted(self.work))
        made = commit_worktree(self.repo, "step")
        assert (made is not None) == (self.work != self.tip())
        self.settled = True
        if made is not None:
            self.branches[self.current] = dict(self.work)

    @precondition(lambda self: self.current in self.branches)
    @rule(name=st.sampled_from(BRANCHES))
    def branch(self, name: str) -> None:
        if name not in self.branches:
            self.repo.set_ref(f"refs/heads/{name}", self.repo.resolve("HEAD"), expected=None)
            self.branches[name] = dict(self.tip())

    @precondition(lambda self: self.current in self.branches)
    @rule(data=st.data(), force=st.booleans())
    def go(self, data: st.DataObject, force: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.branches)))
        target, before = self.branches[name], self.tip()
        try:
            checkout(self.repo, name, force=force)
        except DirtyWorktree:
            assert files_of(self.root) == self.work
            assert self.repo.branch() == self.current
            return
        kept = {} if force else {p: c for p, c in self.work.items() if before.get(p) != c and target.get(p) != c}
        for path in kept:
            assert before.get(path) == target.get(path), "only changes to what the versions share may stay"
        now = files_of(self.root)
        assert {p: c for p, c in now.items() if p in target and p not in kept} == {
            p: c for p, c in target.items() if p not in kept and (p in now or p in self.work or before.get(p) != c)
        }
        self.work, self.current, self.settled = now, name, not kept

    @precondition(lambda self: self.current in self.branches)
    @rule()
    def share(self) -> None:
        if self.copy is None:
            self.copy = clone(str(self.root), self.home / "copy", branch=self.current)
        elif self.copy.branch() == self.current:
            pull(self.copy, "origin")
        else:
            return
        assert files_of(self.home / "copy") == self.tip()
        assert status(self.copy).changes == ()

    @invariant()
    def looks_right(self) -> None:
        assert files_of(self.root) == self.work
        found = status(self.repo)
        assert found.branch == self.current
        changed = {change.path: change.kind for change in found.changes} | dict.fromkeys(found.untracked, "new")
        tip = self.tip()
        expected = {p: "new" if p not in tip else "modified" for p, c in self.work.items() if tip.get(p) != c}
        assert changed == expected | dict.fromkeys(tip.keys() - self.work.keys(), "deleted")
        assert {name: read(self.repo, name) for name in self.repo.branches()} == {
            name: files.keys() for name, files in self.branches.items()
        }

    @invariant()
    def plain_git_agrees(self) -> None:
        command = ["git", "-C", str(self.root), "-c", "filter.modelgit.process=false", "diff", "--name-only", "HEAD"]
        if self.settled and self.current in self.branches and self.work == self.tip():
            assert subprocess.run(command, capture_output=True, check=True).stdout == b""


def read(repo: Repository, name: str) -> set[str]:
    """Returns the paths of a version."""
    return repo.version(name).tree().keys() - {".gitattributes"}


RepositoryAgainstDict.TestCase.settings = settings(
    max_examples=8, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestRepositoryAgainstDict = RepositoryAgainstDict.TestCase
