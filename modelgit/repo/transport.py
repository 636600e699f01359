"""Moving history and objects between repositories: objects first, then refs; no ref points at what is not there.

Nothing that comes from a remote is executed: no hooks, no configuration, no URL of its choosing. We never run commands
of our own inside a remote: git's fetch and push, which are made for strangers, do.
"""

import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import ModelgitError, RemoteError, RepositoryError, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import MAX_MANIFEST_BYTES, is_manifest, parse_bytes
from modelgit.remotes.open import git_directory_of, open_remote
from modelgit.repo.gitdir import last_line, sync_folder
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository
from modelgit.repo.values import FILE_MODES
from modelgit.repo.worktree import advance, checkout

if TYPE_CHECKING:
    from modelgit.store.objects import CopyReport, ObjectStore

HEADS, TAGS, NOTES = "refs/heads/", "refs/tags/", "refs/notes/modelgit-"
INCOMING = "refs/notes/modelgit-incoming"
FETCH = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance")
PUSH = ("push", "--quiet", "--no-verify", "--atomic", "--receive-pack=git -c core.fsync=all receive-pack")
PARTLY = "modelgit/partly"  # is there when plain git has brought history, of which some objects alone were sought
HEAD_LINE = re.compile(r"ref: refs/heads/([A-Za-z0-9_][A-Za-z0-9._/+-]*)\s*")
FIRST = "make the first version: modelgit import FILE, or modelgit commit; then modelgit push -u"  # and a remote


@dataclass(frozen=True, slots=True)
class Moved:
    """What a transfer did: the refs that changed (new commit by name), and the objects and bytes that travelled."""

    refs: dict[str, str]
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository elsewhere: its name here, where it is, and the refs it shows."""

    name: str
    git_dir: Path
    refs: dict[str, str]

    @property
    def store(self) -> "ObjectStore":
        """Its objects."""
        return open_remote(str(self.git_dir))

    @property
    def branches(self) -> dict[str, str]:
        """The commits of its branches, by their names."""
        return {ref.removeprefix(HEADS): commit for ref, commit in self.refs.items() if ref.startswith(HEADS)}


# ---------------------------------------------------------------------- remotes


def url_of(repo: Repository, remote: str) -> str:
    """Returns the URL of a remote. Raises RemoteError for an unknown one, listing the known."""
    code, output, _ = repo.git.attempt("remote", "get-url", "--", remote)
    if code:
        known = ", ".join(repo.git.run("remote").split()) or "none"
        raise RemoteError(
            f"no remote is called '{remote}'", hint=f"known remotes: {known}; add one: modelgit remote add NAME URL"
        )
    return output.decode("utf-8", "surrogateescape").removesuffix("\n")


def look_at(repo: Repository, name: str, url: str) -> Remote:
    """Returns what a remote shows: branches, tags, notes of ours.

    Raises:
        RemoteError: there is no repository at `url`, or git refuses to read it.
    """
    git_dir = git_directory_of(placed(repo, url))
    code, output, complaint = repo.git.attempt("ls-remote", "--quiet", "--end-of-options", str(git_dir))
    if code:
        raise RemoteError(f"cannot read the repository at {url}: {last_line(complaint)}")
    rows = [row.split("\t") for row in output.decode("utf-8", "surrogateescape").splitlines()]
    refs = {ref: sha for sha, ref in rows if ref.startswith((HEADS, TAGS, NOTES)) and not ref.endswith("^{}")}
    return Remote(name, git_dir, {ref: sha for ref, sha in sorted(refs.items()) if ref != f"{HEADS}HEAD"})


def placed(repo: Repository, url: str) -> str:
    """Returns a URL that does not depend on where the command runs: relative paths are the repository's, as in git."""
    relative = "://" not in url and ":" not in url.split("/", 1)[0] and not Path(url).expanduser().is_absolute()
    return str(repo.git.directory / url) if relative else url


def head_branch(git_dir: Path) -> str | None:
    """Returns the branch that HEAD names in another repository, from its text."""
    with (git_dir / "HEAD").open(encoding="utf-8", errors="replace") as file:
        match = HEAD_LINE.fullmatch(file.read(4096))
    return match[1] if match else None


# ---------------------------------------------------------------------- clone


def clone(url: str, directory: Path, *, branch: str | None = None, listener: Listener = ignore) -> Repository:
    """Returns a copy of the repository at `url`, its branch checked out. A clone that fails leaves nothing behind.

    Raises:
        RemoteError: nothing to clone there. RepositoryError: `directory` is in use.
    """
    source = git_directory_of(url)
    existed = directory.exists()
    if existed and (not directory.is_dir() or any(directory.iterdir())):
        raise RepositoryError(
            f"{directory} exists and is not an empty folder", hint="name another folder: modelgit clone URL DIR"
        )
    try:
        return fill_clone(source, directory, branch, listener)
    except BaseException:
        empty(directory)
        if not existed:
            directory.rmdir()
        raise


def empty(directory: Path) -> None:
    """Removes everything in a folder, which is made if it is absent."""
    directory.mkdir(parents=True, exist_ok=True)
    for item in directory.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def fill_clone(source: Path, directory: Path, branch: str | None, listener: Listener) -> Repository:
    """Makes the clone in an empty folder."""
    chosen = branch or head_branch(source) or "main"
    repo = Repository.init(directory, branch=chosen)
    repo.git.run("remote", "add", "--", "origin", str(source.parent if source.name == ".git" else source))
    fetch(repo, "origin", listener=listener)
    remote = {ref.split("/", 3)[3]: commit for ref, commit in repo.refs("refs/remotes/origin/").items()}
    if chosen in remote:
        start_branch(repo, chosen, remote[chosen])
        checkout(repo, chosen, force=True, listener=listener)
    elif branch is not None:
        raise RemoteError(
            f"the repository at {source} has no branch '{branch}'", hint=f"branches: {', '.join(remote) or 'none'}"
        )
    elif not remote:
        follow(repo, chosen, "origin")  # an empty one, to be pushed to
    return repo


def start_branch(repo: Repository, name: str, commit: str) -> None:
    """Makes a local branch that follows the branch of that name at origin."""
    repo.set_ref(f"{HEADS}{name}", commit, expected=None, reason="clone")
    follow(repo, name, "origin")


def follow(repo: Repository, name: str, remote: str) -> None:
    """Makes a local branch follow the branch of that name at a remote."""
    repo.git.run("config", f"branch.{name}.remote", remote)
    repo.git.run("config", f"branch.{name}.merge", f"{HEADS}{name}")


def upstream_of(repo: Repository, branch: str) -> tuple[str, str] | None:
    """Returns the remote that a branch follows, and the branch's name there; None if it follows none."""
    looks = "--format=%(upstream:remotename)%00%(upstream:remoteref)"
    remote, _, ref = repo.git.run("for-each-ref", looks, f"{HEADS}{branch}").partition("\0")
    return (remote, ref.removeprefix(HEADS)) if remote and ref.startswith(HEADS) else None


# ---------------------------------------------------------------------- fetch


def fetch(repo: Repository, remote: str, *, listener: Listener = ignore) -> Moved:
    """Brings a remote's branches (to refs/remotes/REMOTE/), new tags and notes here, with the objects they need.

    Objects that earlier commits need but plain git left behind come too.

    Raises:
        RemoteError: the remote is absent, or lacks objects that its history needs.
    """
    there = look_at(repo, remote, url_of(repo, remote))
    bring_history(repo, there)
    tips = [sha for ref, sha in there.refs.items() if ref.startswith((HEADS, TAGS))]
    known = complete(repo, repo.refs(HEADS, "refs/remotes/").values(), repo.store)
    wanted, partly = needed_objects(repo, tips, known), is_partly(repo)
    wanted |= left_behind(repo, tips, there.store) if partly else set()
    report = copy_objects(there.store, repo, wanted, listener)
    if partly and repo.git.run("remote").split() == [remote]:
        (repo.git_dir / PARTLY).unlink(missing_ok=True)
    moved = move_refs(repo, there)
    merge_notes(repo, there)
    return Moved(moved, *report)


def bring_history(repo: Repository, there: Remote) -> None:
    """Brings the commits that a remote shows. No ref points to them yet: their objects are not here.

    Raises:
        RemoteError: git could not.
    """
    wanted = sorted(set(there.refs.values()))
    if not wanted:
        return
    lines = "".join(f"{sha}\n" for sha in wanted).encode()
    code, _, complaint = repo.git.attempt(*FETCH, "--stdin", "--end-of-options", str(there.git_dir), stdin=lines)
    if code:
        raise RemoteError(f"cannot fetch from {there.name}: {last_line(complaint)}")


def copy_objects(
    source: "ObjectStore", repo: Repository, wanted: Iterable[str], listener: Listener = ignore
) -> tuple[int, int]:
    """Copies missing objects into the repository's store; returns how many, and their bytes.

    Those of condemned packs come too, where the source has them: nobody may count on such packs for what is new.
    """
    missing = repo.store.missing(wanted, lasting=True)
    absent = source.missing(missing)
    lost = repo.store.missing(absent)
    if lost:
        raise RemoteError(
            f"the remote lacks {len(lost)} of {len(missing)} objects, the first is {min(lost)}",
            hint="check it there: modelgit fsck",
        )
    if missing == absent:
        return 0, 0
    report = source.copy_to(repo.store, missing - absent, listener)
    return report.objects, report.bytes


def seek(repo: Repository, missing: set[str], listener: Listener = ignore) -> None:
    """Brings objects from the repository's remotes, each one from the first that has it; some may stay missing.

    What is sought is of one version; those before it may lack theirs, and the next `fetch` looks at them all.
    """
    for name in repo.git.run("remote").split():
        try:
            source = open_remote(placed(repo, url_of(repo, name)))
            brought, _ = copy_objects(source, repo, missing - source.missing(missing), listener)
            if brought:
                (repo.git_dir / PARTLY).touch()
        except (ModelgitError, OSError):
            continue  # one that cannot be reached, or is damaged: the next may do
        missing = repo.store.missing(missing)
        if not missing:
            return


def is_partly(repo: Repository) -> bool:
    """Tells whether versions here may lack objects, since plain git brought them."""
    return (repo.git_dir / PARTLY).exists()


def left_behind(repo: Repository, tips: Sequence[str], source: "ObjectStore") -> set[str]:
    """Returns what the whole history of `tips` needs, as far as a source has it."""
    try:
        everything = needed_objects(repo, tips, ())
    except RemoteError:  # a malformed manifest, long ago: what is new need not suffer
        return set()
    return everything - source.missing(everything)


def move_refs(repo: Repository, there: Remote) -> dict[str, str]:
    """Makes refs/remotes/REMOTE/ what the remote shows, adds tags that are new here; returns what changed."""
    prefix = f"refs/remotes/{there.name}/"
    before = repo.refs(prefix, TAGS)
    wanted = {f"{prefix}{name}": commit for name, commit in there.branches.items()}
    wanted |= {ref: sha for ref, sha in there.refs.items() if ref.startswith(TAGS) and ref not in before}
    gone = [ref for ref in before if ref.startswith(prefix) and ref not in wanted and not ref.endswith("/HEAD")]
    changed = {ref: sha for ref, sha in wanted.items() if before.get(ref) != sha}
    command = [*repo.git.identity(), "update-ref", "-m", f"fetch {there.name}", "--stdin", "-z"]
    for rows in ([f"delete {ref}\0\0" for ref in gone], [f"update {r}\0{sha}\0\0" for r, sha in changed.items()]):
        if rows:
            repo.git.run(*command, stdin="".join(rows).encode("utf-8", "surrogateescape"))
    return changed


def merge_notes(repo: Repository, there: Remote) -> None:
    """Brings a remote's notes of ours together with those here: all lines of both."""
    here = notes_of(repo)
    for ref, theirs in there.refs.items():
        mine = here.get(ref)
        if not ref.startswith(NOTES) or theirs == mine:
            continue
        if mine is None:
            repo.set_ref(ref, theirs, expected=None, reason=f"fetch {there.name}")
            continue
        repo.set_ref(INCOMING, theirs, expected=repo.refs(INCOMING).get(INCOMING))
        command = [*repo.git.identity(), "notes", f"--ref={ref}", "merge", "--quiet", "--strategy=cat_sort_uniq"]
        repo.git.run(*command, INCOMING)
        repo.delete_ref(INCOMING, expected=theirs)


def notes_of(repo: Repository) -> dict[str, str]:
    """Returns the refs of our own notes."""
    return {r: c for r, c in repo.refs("refs/notes/").items() if r.startswith(NOTES) and r != INCOMING}


def complete(repo: Repository, commits: Iterable[str], store: "ObjectStore") -> list[str]:
    """Returns those commits that are here and whose objects are all in `store`."""
    found: list[str] = []
    for commit in dict.fromkeys(commits):
        try:
            manifests = repo.version(commit).manifests.values()
        except ModelgitError:
            continue
        if not store.missing({oid for manifest in manifests for oid in manifest.oids()}):
            found.append(commit)
    return found


def needed_objects(repo: Repository, include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Returns the ids of all objects that the history of `include` needs and that of `exclude` does not bring.

    Raises:
        RemoteError: a manifest in it is malformed.
    """
    if not include:
        return set()
    revisions = "\n".join([*include, *(f"^{commit}" for commit in exclude)]) + "\n"
    commits = repo.git.run_bytes("rev-list", "--stdin", stdin=revisions.encode())
    return {oid for text in manifest_texts(repo, weight_blobs(repo, commits)) for oid in oids_in(text)}


def weight_blobs(repo: Repository, commits: bytes) -> list[str]:
    """Returns the blobs that commits (a line each) have put in the place of weight files.

    Each by the places it had: one that goes by an ordinary name in a newer commit was a weight file all the same.
    """
    looks = ("--stdin", "--root", "-r", "-m", "-z", "--raw", "--no-renames", "--no-commit-id")
    rows = repo.git.run_bytes("diff-tree", *looks, "--", f"*{WEIGHTS_SUFFIX}", stdin=commits).split(b"\0")
    entries = [row.split() for row in rows[:-1:2]]  # a path follows each
    return sorted({sha.decode() for _, mode, _, sha, _ in entries if mode.decode() in FILE_MODES})


def manifest_texts(repo: Repository, shas: Sequence[str]) -> Iterable[bytes]:
    """Returns those blobs that are manifests; one too large to be one is not read."""
    if not shas:
        return []
    lines = "".join(f"{sha}\n" for sha in shas).encode()
    rows = [row.split() for row in repo.git.run("cat-file", "--batch-check", stdin=lines).splitlines()]
    wanted = [sha for sha, kind, size in rows if kind == "blob" and int(size) <= MAX_MANIFEST_BYTES]
    return [text for text in repo.read_blobs(wanted).values() if is_manifest(text)]


def oids_in(text: bytes) -> tuple[str, ...]:
    """Returns the objects that a manifest names."""
    try:
        return parse_bytes(text, "a manifest in the history").oids()
    except ModelgitError as error:
        raise RemoteError(f"the history holds a malformed manifest: {error.message}") from error


# ---------------------------------------------------------------------- push


def push(repo: Repository, remote: str, branches: Sequence[str], *, listener: Listener = ignore) -> Moved:
    """Sends branches to a remote: the objects it lacks, then the refs. Only forwards, all of them or none.

    Raises:
        RemoteError: the remote is absent, or has commits that a branch lacks.
    """
    there = look_at(repo, remote, url_of(repo, remote))
    tips = tips_of(repo, branches)
    theirs = there.branches
    refuse_rewinds(repo, tips, theirs, remote)
    refuse_checked_out(there, tips)
    report = send_objects(repo, there, list(tips.values()), listener)
    send_refs(repo, there, [f"{HEADS}{name}:{HEADS}{name}" for name in tips])
    for name, commit in tips.items():
        repo.git.run("update-ref", "--end-of-options", f"refs/remotes/{remote}/{name}", commit)
    return Moved({n: c for n, c in tips.items() if theirs.get(n) != c}, report.objects, report.bytes)


def send_objects(repo: Repository, there: Remote, commits: Sequence[str], listener: Listener = ignore) -> "CopyReport":
    """Sends the objects that the history of `commits` needs and a remote lacks.

    Raises:
        MissingObject: one is not here either. RemoteError: a manifest is malformed. StorageFull.
    """
    store = there.store
    wanted = needed_objects(repo, commits, complete(repo, there.branches.values(), store))
    return repo.store.copy_to(store, store.missing(wanted, lasting=True), listener)


def tips_of(repo: Repository, branches: Sequence[str]) -> dict[str, str]:
    """Returns the commits of local branches.

    Raises:
        UsageError: there is no such branch, listing those there are.
    """
    known = repo.branches()
    unknown = [name for name in branches if name not in known]
    if unknown:
        raise UsageError(f"no branch is called '{unknown[0]}'", hint=f"branches: {', '.join(known) or 'none'}")
    return {name: known[name] for name in branches}


def send_refs(repo: Repository, there: Remote, refspecs: Sequence[str]) -> None:
    """Sends history and moves the remote's refs, durably.

    Raises:
        RemoteError: git refused, for instance because somebody pushed in the meantime.
    """
    here = notes_of(repo)
    news = {ref: sha for ref, sha in there.refs.items() if ref.startswith(NOTES) and here.get(ref) != sha}
    bring_history(repo, replace(there, refs=news))
    merge_notes(repo, there)
    notes = [f"{ref}:{ref}" for ref in notes_of(repo)]
    command = [*PUSH, "--end-of-options", str(there.git_dir)]
    code, _, complaint = repo.git.attempt(*command, *refspecs, *notes)
    if code:
        telling = [row.strip() for row in complaint.splitlines() if "rejected]" in row]
        raise RemoteError(
            f"{there.name} refused the push: {telling[0] if telling else last_line(complaint)}",
            hint=f"somebody may have pushed meanwhile: modelgit fetch {there.name}, merge, and push again",
        )
    sync_folder(there.git_dir / "refs" / "heads")


def refuse_rewinds(repo: Repository, tips: dict[str, str], theirs: dict[str, str], remote: str) -> None:
    """Raises RemoteError if a branch of the remote holds commits that ours lacks."""
    for name, commit in tips.items():
        old = theirs.get(name)
        if old is not None and not repo.is_ancestor(old, commit):
            raise RemoteError(
                f"cannot push {name}: {remote} has commits that are not here ({old[:12]})",
                hint=f"get and merge them first: modelgit fetch {remote}, modelgit merge {remote}/{name}",
            )


def refuse_checked_out(there: Remote, tips: dict[str, str]) -> None:
    """Raises RemoteError if a push would move the branch that somebody has checked out there."""
    current = head_branch(there.git_dir) if there.git_dir.name == ".git" else None
    if current in tips and there.branches.get(current) != tips[current]:
        hint = "push to a bare repository (git init --bare PATH), or to another branch"
        raise RemoteError(f"cannot push {current}: it is checked out in {there.git_dir.parent}", hint=hint)


# ---------------------------------------------------------------------- pull


def no_branch(repo: Repository, remote: str, branch: str, *, mine: bool) -> RemoteError:
    """Returns the error for a branch that a remote does not have, if it has any; `mine` is called the same."""
    share = f"share it: modelgit push -u {remote} {shlex.quote(branch)}" if mine else None
    hint = f"{FIRST} {remote}" if repo.head() is None else share
    known = repo.refs(f"refs/remotes/{remote}/")
    told = f"{remote} has no branch '{branch}'" if known else f"{remote} is empty: no branch yet"
    return RemoteError(told, hint=hint)


def pull(repo: Repository, remote: str, source: str | None = None, *, listener: Listener = ignore) -> Moved:
    """Fetches, then moves the branch checked out forward to the remote's `source`; local changes elsewhere stay.

    Without `source` to the branch that it follows, or the one of the same name.

    Raises:
        DirtyWorktree: local changes lie in the way. RepositoryError: the branches have diverged, or HEAD is on none.
    """
    branch = repo.branch()
    if branch is None:
        raise RepositoryError("HEAD is on no branch", hint="go to one: modelgit switch BRANCH")
    followed = upstream_of(repo, branch)
    chosen = source or (followed[1] if followed and followed[0] == remote else branch)
    moved = fetch(repo, remote, listener=listener)
    theirs = repo.refs(f"refs/remotes/{remote}/{chosen}").get(f"refs/remotes/{remote}/{chosen}")
    head = repo.head()
    if theirs is None:
        raise no_branch(repo, remote, chosen, mine=chosen == branch)
    if head is not None and repo.is_ancestor(theirs, head):
        return moved
    if head is not None and not repo.is_ancestor(head, theirs):
        raise RepositoryError(
            f"{branch} and {remote}/{chosen} have diverged", hint=f"average them: modelgit merge {remote}/{chosen}"
        )
    advance(repo, theirs, expected=head, listener=listener)
    return moved
