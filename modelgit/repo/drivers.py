"""What makes plain git at home in a repository with weights: attributes in the tree, filters in its configuration.

Filters are set in `.git/config`, which is never cloned: nothing that comes with a repository is executed.
"""

import shlex
import sys

from modelgit.repo.gitdir import GitDirectory

ATTRIBUTES_PATH = ".gitattributes"
ATTRIBUTES = "*.safetensors filter=modelgit -text\n"
FORMAT_VERSION = "1"


def settings() -> dict[str, str]:
    """Returns the local git settings of a modelgit repository."""
    command = f"{shlex.quote(sys.executable)} -m modelgit plumbing clean"
    return {
        "modelgit.version": FORMAT_VERSION,
        "core.fsync": "all",
        "filter.modelgit.clean": command,
        "filter.modelgit.smudge": "cat",
        "filter.modelgit.required": "true",
    }


def configure(git: GitDirectory) -> None:
    """Sets up the repository for weights."""
    for key, value in settings().items():
        git.run("config", key, value)
