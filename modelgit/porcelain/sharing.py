"""Repositories: making, opening, copying, sharing them; and versions as plain folders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from modelgit.errors import RepositoryError, UsageError
from modelgit.events import Listener, Noted, ignore
from modelgit.porcelain.work import switch
from modelgit.repo import transport
from modelgit.repo.drivers import ATTRIBUTES, ATTRIBUTES_PATH
from modelgit.repo.files import write_ordinary
from modelgit.repo.repository import Repository
from modelgit.repo.transport import Moved
from modelgit.repo.values import Version
from modelgit.repo.worktree import refuse_missing


@dataclass(frozen=True, slots=True)
class Initialised:
    """A repository that is ready for weights: its folder, its git directory, the branch it is on."""

    path: str
    git_dir: str
    branch: str | None
    bare: bool


@dataclass(frozen=True, slots=True)
class Cloned:
    """A copy of a repository; `commit` is None when there was nothing in it."""

    url: str
    path: str
    branch: str | None
    commit: str | None


@dataclass(frozen=True, slots=True)
class Transferred:
    """What travelled: refs with the commits they are at now, objects that were missing, their bytes as stored.

    `forwarded` is the branch that a pull moved, and the commit it is at now; None if it was there already.
    """

    verb: str
    remote: str
    refs: dict[str, str]
    objects: int
    bytes: int
    forwarded: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """A version as a plain folder: its files, byte for byte."""

    commit: str
    path: str
    files: tuple[str, ...]
    size_bytes: int


def open_repository(path: Path) -> Repository:
    """Returns the repository that `path` lies in. Raises RepositoryError."""
    return Repository.open(path)


def init(path: Path, *, bare: bool = False, branch: str = "main", listener: Listener = ignore) -> Initialised:
    """Makes a repository in `path`, or sets up the git repository that is there."""
    repo = Repository.init(path, bare=bare, branch=branch)
    tell_of_hook(repo, listener)
    return Initialised(str(path), str(repo.git_dir), repo.branch(), repo.worktree is None)


def tell_of_hook(repo: Repository, listener: Listener) -> None:
    """Says that somebody else's pre-push hook was left alone, and what that means."""
    if not repo.hooked:
        listener(Noted("another pre-push hook is in use here: push with modelgit push, plain git sends no weights"))


def clone(url: str, path: Path | None = None, *, branch: str | None = None, listener: Listener = ignore) -> Cloned:
    """Copies a repository: history, objects, and the files of one branch.

    Raises:
        RemoteError: there is no repository. RepositoryError: the folder is in use.
    """
    target = path or Path(folder_name(url))
    repo = transport.clone(url, target, branch=branch, listener=listener)
    tell_of_hook(repo, listener)
    if repo.head() is None:
        start_somewhere(repo, listener)
    return Cloned(url, str(target), repo.branch(), repo.head())


def start_somewhere(repo: Repository, listener: Listener) -> None:
    """Goes to main, or to the only branch, of a remote whose HEAD names a branch that does not exist."""
    names = [ref.split("/", 3)[3] for ref in repo.refs("refs/remotes/origin/")]
    if "main" in names or len(names) == 1:
        switch(repo, "main" if "main" in names else names[0], listener=listener)


def folder_name(url: str) -> str:
    """Returns the folder a clone goes to unless told otherwise: the last part of the URL."""
    name = PurePosixPath(urlsplit(url).path or url).name.removesuffix(".git")
    if name in ("", ".", ".."):
        raise UsageError(f"cannot tell a folder's name from '{url}'", hint="name it: modelgit clone URL DIR")
    return name


def fetch(repo: Repository, remote: str | None = None, listener: Listener = ignore) -> Transferred:
    """Brings a remote's branches and tags, and the objects they need. Raises RemoteError."""
    name = remote or default_remote(repo)
    return transferred("fetch", name, transport.fetch(repo, name, listener=listener))


def pull(
    repo: Repository, remote: str | None = None, branch: str | None = None, listener: Listener = ignore
) -> Transferred:
    """Fetches, then moves the branch checked out forward. Raises RemoteError, RepositoryError if they diverged."""
    name = remote or default_remote(repo)
    before = repo.head()
    done = transferred("pull", name, transport.pull(repo, name, branch, listener=listener))
    current, after = repo.branch(), repo.head()
    return replace(done, forwarded=(current, after)) if current and after and after != before else done


def push(
    repo: Repository,
    remote: str | None,
    branches: Sequence[str],
    listener: Listener = ignore,
    *,
    set_upstream: bool = False,
) -> Transferred:
    """Sends branches (the one checked out unless named) with the objects they need. Raises RemoteError.

    With `set_upstream` they follow those of the remote from then on; so does one that follows none yet, if git's
    setting push.autoSetupRemote asks for it.
    """
    name = remote or default_remote(repo)
    current = repo.branch()
    chosen = list(branches) or ([current] if current else [])
    if not chosen:
        raise UsageError("HEAD is on no branch", hint="name what to send: modelgit push REMOTE BRANCH")
    if not branches and repo.head() is None:
        raise UsageError(f"nothing to push: {current} has no commit yet", hint=f"{transport.FIRST} {name}")
    done = transferred("push", name, transport.push(repo, name, chosen, listener=listener))
    for branch in chosen if set_upstream else [] if branches else to_set_up(repo, chosen):
        transport.follow(repo, branch, name)
    alone = [branch for branch in chosen if branch == current and transport.upstream_of(repo, branch) is None]
    if alone:
        told = f"{current} follows no branch of a remote yet; modelgit push -u {name} makes it follow {name}/{current}"
        listener(Noted(f"{told}: status and pull go by that"))
    return done


def to_set_up(repo: Repository, branches: Sequence[str]) -> list[str]:
    """Returns the branches that are to follow where they were pushed to, by git's own setting."""
    code, output, _ = repo.git.attempt("config", "--type=bool", "--get", "push.autoSetupRemote")
    wanted = code == 0 and output.strip() == b"true"
    return [branch for branch in branches if wanted and transport.upstream_of(repo, branch) is None]


def default_remote(repo: Repository) -> str:
    """Returns the remote that the branch checked out follows, else the only one, or origin among several."""
    known = repo.git.run("remote").split()
    current = repo.branch()
    followed = transport.upstream_of(repo, current) if current else None
    if followed is not None and followed[0] in known:
        return followed[0]
    if "origin" in known or len(known) == 1:
        return "origin" if "origin" in known else known[0]
    add = "modelgit remote add origin PATH, then modelgit push -u origin, or modelgit pull origin"
    hint = add if not known else f"name one of {', '.join(known)}"
    raise UsageError("no remote named, and none is called origin", hint=hint)


def transferred(verb: str, remote: str, moved: Moved) -> Transferred:
    """Returns the report on a transfer."""
    return Transferred(verb, remote, dict(moved.refs), moved.objects, moved.bytes)


# -------------------------------------------------------------------------------------------------------- export


def export(repo: Repository, rev: str, path: Path, listener: Listener = ignore) -> Exported:
    """Writes the files of a version into a new or empty folder, byte for byte, and nothing else.

    Raises:
        RepositoryError: the folder is in use. MissingObject, CorruptObject, StorageFull.
    """
    from modelgit.store.files.materialise import materialise  # brings numpy, which most commands can do without

    version = repo.version(rev)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RepositoryError(f"{path} exists and is not an empty folder", hint="name another folder")
    refuse_missing(repo, version.manifests.values())
    names, left_out = exported_names(repo, version)
    if left_out:
        listener(Noted(f"left out, for they are links or submodules: {', '.join(left_out)}"))
    for name in names:
        place = path / name
        make_folder(place.parent)
        if name in version.manifests:
            materialise(repo.store, version.manifests[name], place, listener)
        else:
            write_ordinary(place, repo.read_blob(version.files[name]), version.files[name].mode)
    return Exported(version.commit, str(path), tuple(names), sum((path / name).stat().st_size for name in names))


def make_folder(path: Path) -> None:
    """Makes a folder and those above it. Raises RepositoryError where none can be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepositoryError(f"cannot make the folder {path}: {error.strerror}", hint="name another folder") from error


def exported_names(repo: Repository, version: Version) -> tuple[list[str], list[str]]:
    """Returns the paths of a version's own files, and of links and submodules.

    All but the attributes that every repository with weights has.
    """
    tree = version.tree()
    names, others = (sorted(path for path in tree if tree[path].ordinary == own) for own in (True, False))
    attributes = version.file(ATTRIBUTES_PATH)
    if attributes is not None and repo.read_blob(attributes) == ATTRIBUTES.encode():
        names.remove(ATTRIBUTES_PATH)
    return names, others
