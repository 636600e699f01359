"""The tools that are compared: for each, the commands a user would type for one step of the workload.

A step gives argument lists, run one after another in the work folder; an empty list says that the tool has no such
step. To add a tool, write a class like these and name it in TOOLS.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.vcs.measuring import first_line

MODEL = "model.safetensors"
Commands = list[list[str]]
GIT_INIT: Commands = [["git", "init", "-q", "-b", "main", "."]]


@dataclass(frozen=True)
class Places:
    """The folders of one run; `python` is the interpreter a tool's Python interface lives in."""

    work: Path
    remote: Path
    clone: Path
    python: str = sys.executable


@dataclass(frozen=True)
class Tool:
    """A tool that has no steps at all; each step is a function of what the name says."""

    at: Places
    name: str = "?"
    env: Mapping[str, str] = field(default_factory=dict)

    def version(self, env: Mapping[str, str]) -> str:
        """Return what it is; empty if it is not installed."""
        return ""

    def stores(self, root: Path) -> list[Path]:
        """Return the folders whose bytes are its store."""
        return [root / ".git"]

    def prepare(self) -> Commands:
        """Return what an installation would have done already; not measured."""
        return []

    def init(self) -> Commands:
        return []

    def commit(self, message: str) -> Commands:
        return []

    def branch(self, name: str) -> Commands:
        return []

    def switch(self, name: str) -> Commands:
        return []

    def status(self) -> Commands:
        return []

    def log(self) -> Commands:
        return []

    def remote(self) -> Commands:
        return []

    def push(self, branches: list[str]) -> Commands:
        return []

    def clone(self) -> Commands:
        return []

    def clone_switch(self, name: str) -> Commands:
        return []

    def gc(self) -> Commands:
        return []


@dataclass(frozen=True)
class Git(Tool):
    """Plain git, without gc: its search for deltas between files of this size takes minutes and gigabytes."""

    name: str = "git"

    def version(self, env: Mapping[str, str]) -> str:
        return first_line("git", "version")

    def init(self) -> Commands:
        return GIT_INIT

    def commit(self, message: str) -> Commands:
        return [["git", "add", MODEL], ["git", "commit", "-qm", message]]

    def branch(self, name: str) -> Commands:
        return [["git", "checkout", "-q", "-b", name]]

    def switch(self, name: str) -> Commands:
        return [["git", "checkout", "-q", name]]

    def status(self) -> Commands:
        return [["git", "status", "--short"]]

    def log(self) -> Commands:
        return [["git", "log", "-1"]]

    def remote(self) -> Commands:
        bare = ["git", "init", "-q", "--bare", "-b", "main", str(self.at.remote)]
        return [bare, ["git", "remote", "add", "origin", f"file://{self.at.remote}"]]

    def push(self, branches: list[str]) -> Commands:
        return [["git", "push", "-q", "--all", "origin"]]

    def clone(self) -> Commands:
        return [["git", "clone", "-q", f"file://{self.at.remote}", str(self.at.clone)]]

    def clone_switch(self, name: str) -> Commands:
        return self.switch(name)


@dataclass(frozen=True)
class Lfs(Git):
    """Git LFS: the yardstick, since it is what most people use."""

    name: str = "git-lfs"

    def version(self, env: Mapping[str, str]) -> str:
        return first_line("git", "lfs", "version")

    def init(self) -> Commands:
        track = [["git", "lfs", "track", MODEL], ["git", "add", ".gitattributes"]]
        return [*GIT_INIT, ["git", "lfs", "install"], *track]

    def gc(self) -> Commands:
        return [["git", "lfs", "prune"]]


@dataclass(frozen=True)
class Annex(Git):
    """git-annex: files are links into its store, which is its own answer to work trees."""

    name: str = "git-annex"

    def version(self, env: Mapping[str, str]) -> str:
        return first_line("git", "annex", "version", "--raw")

    def init(self) -> Commands:
        return [*GIT_INIT, ["git", "annex", "init", "-q", "bench"]]

    def commit(self, message: str) -> Commands:
        return [["git", "annex", "add", "-q", MODEL], ["git", "commit", "-qm", message]]

    def push(self, branches: list[str]) -> Commands:
        copy = ["git", "annex", "copy", "-q", "--all", "--to", "origin"]
        merge = [["git", "fetch", "-q", "origin"], ["git", "annex", "merge", "-q"]]
        return [*super().push(branches), copy, *merge, ["git", "push", "-q", "origin", "git-annex"]]

    def clone(self) -> Commands:
        there = ["git", "-C", str(self.at.clone), "annex"]
        return [*super().clone(), [*there, "init", "-q", "clone"], [*there, "get", "-q", MODEL]]

    def clone_switch(self, name: str) -> Commands:
        return [*self.switch(name), ["git", "annex", "get", "-q", MODEL]]


@dataclass(frozen=True)
class Dvc(Git):
    """DVC, copying files between cache and work tree."""

    name: str = "dvc"
    env: Mapping[str, str] = field(default_factory=lambda: {"DVC_NO_ANALYTICS": "1"})

    def version(self, env: Mapping[str, str]) -> str:
        return f"dvc {first_line(shutil.which('dvc', path=env['PATH']) or 'dvc', '--version')}"

    def stores(self, root: Path) -> list[Path]:
        return [root / ".git", root / ".dvc"]

    def init(self) -> Commands:
        settings = ["core.analytics=false", "core.check_update=false", "core.autostage=true"]
        config = [["dvc", "config", *setting.split("=")] for setting in settings]
        store = ["dvc", "remote", "add", "-q", "-d", "store", f"{self.at.remote}.dvcstore"]
        return [*GIT_INIT, ["dvc", "init", "-q"], *config, store, ["git", "add", ".dvc"]]

    def commit(self, message: str) -> Commands:
        return [["dvc", "add", "-q", MODEL], ["git", "commit", "-qm", message]]

    def switch(self, name: str) -> Commands:
        return [["git", "checkout", "-q", name], ["dvc", "checkout", "-q"]]

    def status(self) -> Commands:
        return [["dvc", "status", "-q"]]

    def push(self, branches: list[str]) -> Commands:
        return [["dvc", "push", "-q", "-a"], *super().push(branches)]

    def clone(self) -> Commands:
        return [*super().clone(), ["dvc", "--cd", str(self.at.clone), "pull", "-q"]]

    def clone_switch(self, name: str) -> Commands:
        return [["git", "checkout", "-q", name], ["dvc", "pull", "-q"]]

    def gc(self) -> Commands:
        return [["dvc", "gc", "-q", "-f", "-a"]]


XET = """
import hf_xet, json, os, sys
store = "local://" + os.path.abspath(".xet/cas")
os.makedirs(".xet/refs", exist_ok=True)
verb, name = sys.argv[1:]
if verb == "put":
    commit = hf_xet.XetSession().new_upload_commit(endpoint=store)
    handle = commit.start_upload_file("model.safetensors", sha256=hf_xet.SKIP_SHA256)
    commit.wait_to_finish()
    info = handle.result().xet_info
    json.dump([info.hash, info.file_size], open(".xet/refs/" + name, "w"))
elif verb == "get":
    group = hf_xet.XetSession().new_file_download_group(endpoint=store)
    info = hf_xet.XetFileInfo(*json.load(open(".xet/refs/" + name)))
    group.start_download_file(info, os.path.abspath("model.safetensors"))
    group.wait_to_finish()
else:
    print("hf-xet", __import__("importlib.metadata").metadata.version("hf-xet"))
"""


@dataclass(frozen=True)
class Xet(Tool):
    """hf-xet (chunks, as the Hugging Face hub stores them) on its local store; it has no commits, a file names each."""

    name: str = "hf-xet"

    def _run(self, verb: str, name: str) -> Commands:
        return [[self.at.python, "-c", XET, verb, name]]

    def version(self, env: Mapping[str, str]) -> str:
        return first_line(*self._run("version", "")[0])

    def stores(self, root: Path) -> list[Path]:
        return [root / ".xet"]

    def init(self) -> Commands:
        return self._run("init", "")

    def commit(self, message: str) -> Commands:
        return self._run("put", message)

    def switch(self, name: str) -> Commands:
        return self._run("get", "base" if name == "main" else name)


@dataclass(frozen=True)
class Modelgit(Git):
    """modelgit, by its own commands."""

    name: str = "modelgit"

    def _run(self, *words: str) -> list[str]:
        return [self.at.python, "-m", "modelgit", *words]

    def version(self, env: Mapping[str, str]) -> str:
        return first_line(*self._run("--version"))

    def prepare(self) -> Commands:
        compiled = "import compileall, modelgit; compileall.compile_dir(modelgit.__path__[0], quiet=1)"
        return [[self.at.python, "-c", compiled]]

    def init(self) -> Commands:
        return [self._run("init", "-q", ".")]

    def commit(self, message: str) -> Commands:
        return [self._run("commit", "-q", "-m", message)]

    def branch(self, name: str) -> Commands:
        return [self._run("switch", "-q", "-c", name)]

    def switch(self, name: str) -> Commands:
        return [self._run("switch", "-q", name)]

    def status(self) -> Commands:
        return [self._run("status")]

    def log(self) -> Commands:
        return [self._run("log", "-n", "1")]

    def remote(self) -> Commands:
        init = self._run("init", "-q", "--bare", str(self.at.remote))
        return [init, ["git", "remote", "add", "origin", str(self.at.remote)]]

    def push(self, branches: list[str]) -> Commands:
        return [self._run("push", "-q", "origin", *branches)]

    def clone(self) -> Commands:
        return [self._run("clone", "-q", str(self.at.remote), str(self.at.clone))]

    def gc(self) -> Commands:
        return [self._run("gc", "-q")]


@dataclass(frozen=True)
class ModelgitByGit(Modelgit):
    """modelgit behind plain git commands: `git add`, `git commit`, `git checkout` through its filter."""

    name: str = "modelgit by git"

    def commit(self, message: str) -> Commands:
        return Git.commit(self, message)

    def branch(self, name: str) -> Commands:
        return Git.branch(self, name)

    def switch(self, name: str) -> Commands:
        return Git.switch(self, name)

    def status(self) -> Commands:
        return Git.status(self)

    def log(self) -> Commands:
        return Git.log(self)


TOOLS = {
    "modelgit": Modelgit,
    "lfs": Lfs,
    "dvc": Dvc,
    "xet": Xet,
    "annex": Annex,
    "git": Git,
    "modelgit-by-git": ModelgitByGit,
}
