"""What makes plain git at home in a repository with weights: attributes in the tree, filters in its configuration.

Filters are set in `.git/config`, which is never cloned: nothing that comes with a repository is executed. For the same
reason the filter runs Python with -P: else a file `modelgit.py` in the work tree would be imported instead of us.
"""

import os
import shlex
import sys
from pathlib import Path

from modelgit.errors import RepositoryError
from modelgit.repo.gitdir import GitDirectory

ATTRIBUTES_PATH = ".gitattributes"
ATTRIBUTES = "*.safetensors filter=modelgit -text\n"
# Overrules what a model's own .gitattributes may say of the same files (Hugging Face's sends them to LFS).
LOCAL_ATTRIBUTES = "*.safetensors filter=modelgit -text !diff !merge\n"
# What an interrupted write may leave beside a file.
LOCAL_EXCLUDES = ".*.safetensors.*.tmp\n.*.modelgit-tmp\n"
FORMAT_VERSION = "1"


def settings() -> dict[str, str]:
    """Returns the local git settings of a modelgit repository."""
    command = f"{shlex.quote(sys.executable)} -P -m modelgit plumbing clean %f"
    return {
        "modelgit.version": FORMAT_VERSION,
        "core.fsync": "all",
        "filter.modelgit.clean": command,
        "filter.modelgit.smudge": "cat",
        "filter.modelgit.required": "true",
    }


def configure(git: GitDirectory, git_dir: Path) -> None:
    """Sets up the repository for weights, durably."""
    for key, value in settings().items():
        git.run("config", key, value)
    for name, text in (("attributes", LOCAL_ATTRIBUTES), ("exclude", LOCAL_EXCLUDES)):
        append_once(git_dir / "info" / name, text)
    for name in ("config", "HEAD"):
        with (git_dir / name).open("rb") as file:
            os.fsync(file.fileno())


def append_once(place: Path, text: str) -> None:
    """Appends lines to a file of git's own, unless they are there."""
    place.parent.mkdir(exist_ok=True)
    old = place.read_text(encoding="utf-8", errors="surrogateescape") if place.exists() else ""
    if text in old:
        return
    separator = "" if not old or old.endswith("\n") else "\n"
    with place.open("a", encoding="utf-8") as file:
        file.write(separator + text)


def check_version(git: GitDirectory, where: Path) -> None:
    """Refuses a repository that a later modelgit has set up.

    Raises:
        RepositoryError: naming both versions.
    """
    found = git.settings.get("modelgit.version", FORMAT_VERSION)
    if found != FORMAT_VERSION:
        raise RepositoryError(
            f"{where}: repository format {found[:20]!r}, expected {FORMAT_VERSION}",
            hint="a newer modelgit made it: upgrade",
        )
