"""What makes plain git at home in a repository with weights: attributes, and the programs git calls for them.

Programs are named in `.git/config`, which is never cloned: nothing that comes with a repository is executed. For the
same reason they run Python with -P: else a file `modelgit.py` in the work tree would be imported instead of us.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from modelgit.errors import ModelgitError, RepositoryError
from modelgit.repo.gitdir import GitDirectory

ATTRIBUTES_PATH = ".gitattributes"
ATTRIBUTES = "*.safetensors filter=modelgit -text\n"
# Overrules what a model's own .gitattributes may say of the same files (Hugging Face's sends them to LFS): git would
# write `$Id$` into a manifest, or take it for text in another encoding.
LOCAL_ATTRIBUTES = """*.safetensors filter=modelgit -text -ident !working-tree-encoding diff=modelgit merge=modelgit
/.modelgit/record.json merge=modelgit-record
"""
# What an interrupted write may leave beside a file.
LOCAL_EXCLUDES = ".*.safetensors.*.tmp\n.*.modelgit-tmp\n"
FORMAT_VERSION = "1"
SETUP_VERSION = "3"  # of the settings below: an older repository gets them at the next commit or checkout
REPLACED = ("filter.modelgit.clean", "filter.modelgit.smudge")  # by the long-running process
HOOK_PATH, HOOK_MARK = "hooks/pre-push", "# made by modelgit init: sends the objects that a push needs, before it"


def program(words: str) -> str:
    """Returns a command line for git, which hands it to the shell."""
    return f"{shlex.quote(sys.executable)} -P -m modelgit.cli.plumbing {words}"


def settings() -> dict[str, str]:
    """Returns the local git settings of a modelgit repository."""
    return {
        "modelgit.version": FORMAT_VERSION,
        "core.fsync": "all",
        "filter.modelgit.process": program("process"),
        "filter.modelgit.required": "true",
        "diff.modelgit.command": program("diff"),
        "diff.modelgit.textconv": program("textconv"),
        "merge.modelgit.name": "weights: the mean of what is merged, or a change applied",
        "merge.modelgit.driver": program("merge %O %A %B %P"),
        "merge.modelgit.recursive": "binary",  # of several merge bases: the mean asks for none
        "merge.modelgit-record.name": "the record of a version",
        "merge.modelgit-record.driver": program("merge-record %O %A %B %P"),
        "modelgit.python": sys.executable,
        "modelgit.setup": SETUP_VERSION,  # last: all the others are there
    }


def configure(git: GitDirectory, git_dir: Path) -> bool:
    """Sets up the repository for weights, durably; False if there is another pre-push hook than ours."""
    known = settings_of(git)
    for key in REPLACED:
        if key in known:
            git.run("config", "--unset-all", key)
    for key, value in settings().items():
        if known.get(key) != value:
            git.run("config", "--replace-all", key, value)
    for name, text in (("attributes", LOCAL_ATTRIBUTES), ("exclude", LOCAL_EXCLUDES)):
        append_once(git_dir / "info" / name, text)
    hooked = write_hook(git, git_dir / HOOK_PATH)
    for name in ("config", "HEAD"):
        with (git_dir / name).open("rb") as file:
            os.fsync(file.fileno())
    return hooked


def settings_of(git: GitDirectory) -> Mapping[str, str]:
    """Returns the repository's own settings, not the user's."""
    code, output, _ = git.attempt("config", "--local", "-z", "--list")
    rows = output.decode("utf-8", "surrogateescape").split("\0") if code == 0 else []
    return {key: value for key, _, value in (row.partition("\n") for row in rows if row)}


def keep_current(git: GitDirectory, git_dir: Path) -> None:
    """Gives a repository that an earlier modelgit made, or one whose Python has gone, today's settings.

    One that no modelgit made is left alone.
    """
    known = git.settings
    outdated = known.get("modelgit.setup") != SETUP_VERSION or not Path(known.get("modelgit.python", "")).exists()
    if "modelgit.version" in known and outdated:
        with suppress(ModelgitError, OSError):  # another command may be at it
            configure(git, git_dir)


def write_hook(git: GitDirectory, place: Path) -> bool:
    """Makes the hook that keeps plain git from sending history without objects; False if there is another one."""
    text = f'#!/bin/sh\n{HOOK_MARK}\nexec {program("pre-push")} "$@"\n'
    if has_hooks_elsewhere(git):
        return False
    try:
        old = place.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        old = HOOK_MARK
    if HOOK_MARK not in old:
        return False
    if old != text:
        place.parent.mkdir(exist_ok=True)
        scratch = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        scratch.write_text(text, encoding="utf-8", errors="surrogateescape")
        scratch.chmod(0o755)
        scratch.replace(place)
    return True


def has_hooks_elsewhere(git: GitDirectory) -> bool:
    """Tells whether the user keeps all hooks in another folder; our own commands set that too, and do not count."""
    _, output, _ = git.attempt("config", "--show-scope", "-z", "--get-regexp", r"^core\.hookspath$")
    return any(scope != b"command" for scope in output.split(b"\0")[:-1:2])


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
