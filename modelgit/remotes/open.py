"""Opening the object store of a remote: beside its git directory."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from modelgit.errors import RemoteError

if TYPE_CHECKING:
    from modelgit.store.objects import ObjectStore

SCHEMES = ("a path", "file://")
STORE_FOLDER = "modelgit"


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
    """Returns the git directory of a remote: the folder itself if it is bare, `.git` inside otherwise.

    Raises:
        RemoteError: the folder holds no git repository.
    """
    folder = directory_of(url)
    for candidate in (folder / ".git", folder):
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir():
            return candidate
    raise RemoteError(f"no repository at {url}: the folder holds none", hint="make one: git init --bare PATH")


def open_remote(url: str) -> "ObjectStore":
    """Returns the object store that lies beside the remote's git directory; empty if nothing was pushed yet.

    Raises:
        RemoteError: there is no repository at `url`.
    """
    from modelgit.store.objects import ObjectStore

    return ObjectStore(git_directory_of(url) / STORE_FOLDER)
