"""Opening the object store of a remote: beside its git directory."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from modelgit.errors import RemoteError

if TYPE_CHECKING:
    from modelgit.store.objects import ObjectStore

SCHEMES = ("a path", "file://")
STORE_FOLDER = "modelgit"
MAX_NAME_BYTES = 4096


def directory_of(url: str) -> Path:
    """Returns the folder that a remote's URL names.

    Raises:
        RemoteError: the URL is of another kind, or there is no such folder.
    """
    parts = urlsplit(url)
    scp_like = ":" in url.split("/", 1)[0] and not parts.scheme
    if parts.scheme not in ("", "file") or scp_like or (parts.scheme and parts.netloc not in ("", "localhost")):
        raise RemoteError(
            f"cannot reach {url}: only directories can be remotes in this version",
            hint=f"known kinds: {', '.join(SCHEMES)}",
        )
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(url).expanduser()
    if "\0" in str(path) or not path.is_dir():
        raise RemoteError(
            f"no repository at {url}: there is no such folder", hint="check the path, or make one: git init --bare PATH"
        )
    return path.resolve()


def git_directory_of(url: str) -> Path:
    """Returns the git directory of a remote: the folder itself if it is bare, else `.git` inside, or what that names.

    Raises:
        RemoteError: the folder holds no git repository.
    """
    folder = directory_of(url)
    for candidate in (named_by(folder / ".git"), folder):
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir():
            return candidate
    raise RemoteError(f"no repository at {url}: the folder holds none", hint="make one: git init --bare PATH")


def named_by(place: Path) -> Path:
    """Returns the git directory that a file `.git` names, as linked work trees and submodules have one, or `place`.

    Whoever made the file may have named anything; then it is the place.
    """
    try:
        if not place.is_file():
            return place
        found = place.parent / first_line(place).removeprefix("gitdir: ")
        shared = found / "commondir"
        return (found / first_line(shared) if shared.is_file() else found).resolve()
    except OSError:
        return place


def first_line(place: Path) -> str:
    """Returns the first line of a short text."""
    with place.open(encoding="utf-8", errors="surrogateescape") as file:
        return file.read(MAX_NAME_BYTES).partition("\n")[0].replace("\0", "")


def open_remote(url: str) -> "ObjectStore":
    """Returns the object store that lies beside the remote's git directory; empty if nothing was pushed yet.

    Raises:
        RemoteError: there is no repository at `url`.
    """
    from modelgit.store.objects import ObjectStore

    return ObjectStore(git_directory_of(url) / STORE_FOLDER)
