"""Git's long-running filter (gitattributes, "Long Running Filter Process", version 2).

*clean* streams a weight file from git's pipe into the store and gives its manifest. *smudge* gives the manifest as it
is, because git holds what a filter gives whole in memory; the real files are written when git's command is over: git
closes the pipe and waits for us, its index no longer locked. That covers every command that writes files.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Protocol

from modelgit.errors import FormatError, ModelgitError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import MAX_MANIFEST_BYTES, Manifest, is_manifest, parse_bytes, relatives, write
from modelgit.formats.safetensors import LFS_MARK, header_length
from modelgit.porcelain.plumbing.packets import LARGEST, Content, PacketReader, write_content, write_lines
from modelgit.porcelain.plumbing.seeking import seek
from modelgit.porcelain.plumbing.showing import TEXT_MARK
from modelgit.repo.files import stat_of
from modelgit.repo.filling import PREFIX_BYTES, fill, manifest_text
from modelgit.repo.index import has_blob
from modelgit.repo.look import WAY_BACK
from modelgit.repo.repository import WEIGHTS_SUFFIX, Repository, blob_id
from modelgit.repo.worktree import Earlier

HELD_BYTES = 16 * 1024 * 1024  # what waits in memory for git to listen; more goes to disk
CAPABILITIES = ("clean", "smudge")
Complain = Callable[[ModelgitError], None]


class Source(Protocol):
    """Bytes that come once."""

    def readinto(self, into: memoryview, /) -> int | None:
        """Fills a part of `into` and returns how many bytes that was, 0 at the end."""


@dataclass(slots=True)
class Lookahead:
    """A stream whose first bytes were looked at."""

    prefix: bytes
    source: Source

    def readinto(self, into: memoryview, /) -> int:
        """Fills a part of `into` and returns how many bytes that was, 0 at the end."""
        if not self.prefix:
            return self.source.readinto(into) or 0
        part, self.prefix = self.prefix[: len(into)], self.prefix[len(into) :]
        into[: len(part)] = part
        return len(part)


@dataclass
class Filter:
    """One run of the filter. `manifests` are the blobs it gave git for the files of the work tree, by path."""

    open_repository: Callable[[], Repository]
    complain: Complain
    listener: Listener = ignore
    manifests: dict[str, set[str]] = field(default_factory=dict)

    @cached_property
    def repo(self) -> Repository:
        """The repository git is working on, opened when there is something to do."""
        return self.open_repository()

    def serve(self, source: BufferedIOBase, target: BufferedIOBase) -> None:
        """Answers git until it closes the pipe.

        Raises:
            FormatError: it does not speak the protocol.
        """
        packets = PacketReader(source)
        greet(packets, target)
        while (request := packets.lines()) is not None:
            facts = dict(line.partition("=")[::2] for line in request)
            self.answer(facts, packets.content(), target)

    def answer(self, facts: Mapping[str, str], content: Content, target: BufferedIOBase) -> None:
        """Answers one request. A file that cannot be taken is git's to refuse; the filter goes on."""
        work = {"clean": self.clean, "smudge": self.smudge}.get(facts.get("command", ""))
        with SpooledTemporaryFile(max_size=HELD_BYTES) as held:
            try:
                if work is None:
                    raise FormatError(f"git asked for {facts.get('command')!r}, expected clean or smudge")
                for piece in work(facts.get("pathname", ""), content):
                    held.write(piece)
            except ModelgitError as error:
                content.drain()
                self.complain(error)
                write_lines(target, "status=error")
                return
            content.drain()
            held.seek(0)
            write_lines(target, "status=success")
            write_content(target, iter(lambda: held.read(LARGEST), b""))
            write_lines(target)

    def clean(self, path: str, content: Source) -> Iterator[bytes]:
        """Yields the manifest of a weight file, its objects stored; manifests and other files as they are.

        So too the text that `git diff` shows of weights: `git blame` of the work tree hands it on to us, not the file.

        Raises:
            FormatError: a weight file or a manifest is malformed, or the file holds such a text itself. StorageFull.
        """
        prefix = beginning(content)
        stream = Lookahead(prefix, content)
        if path and not path.endswith(WEIGHTS_SUFFIX):
            yield from pieces(stream)
        elif not prefix or is_manifest(prefix) or prefix.startswith(LFS_MARK):
            text = whole_text(stream, path)
            self.refuse_malformed(path, text)
            yield text
        elif is_text(prefix):
            refuse_text_at(self.repo.worktree, path)
            yield from pieces(stream)
        else:
            yield write(take_in(self.repo, path, stream, self.listener)).encode()

    def refuse_malformed(self, path: str, text: bytes) -> None:
        """Refuses a manifest that is none, one with the marks of a conflict in it say, unless git has it there already.

        So too a pointer of Git LFS, and an empty file. What git has was committed elsewhere; it could not even be left
        behind if we refused it.

        Raises:
            FormatError: saying what is wrong.
        """
        try:
            if not text or text.startswith(LFS_MARK):
                header_length(text[:8], len(text), path or "stdin")
            parse_bytes(text, path or "stdin")
        except FormatError as error:
            if not path or not has_blob(self.repo.git, path, blob_id(text)):
                hint = error.hint or WAY_BACK
                raise FormatError(error.message, hint=hint) from error

    def smudge(self, path: str, content: Source) -> Iterator[bytes]:
        """Yields what comes; if it is a manifest, its file is to be written."""
        prefix = beginning(content)
        stream = pieces(Lookahead(prefix, content))
        if not path.endswith(WEIGHTS_SUFFIX) or not is_manifest(prefix):
            yield from stream
            return
        text = bytearray()
        for piece in stream:
            text += piece
            if len(text) > MAX_MANIFEST_BYTES:  # no manifest after all
                yield bytes(text)
                yield from stream
                return
        whole = bytes(text)
        self.manifests.setdefault(path, set()).add(blob_id(whole))
        yield whole

    def fill_in(self) -> None:
        """Writes the real file where the work tree holds a manifest that this run gave. Complains, never fails."""
        waiting = self.waiting()
        if waiting:
            with suppress(ModelgitError):  # what cannot be had is told of below, file by file
                seek(self.repo, waiting, self.listener)
        for path, text in waiting.items():
            try:
                fill(self.repo, path, text, self.listener)
            except ModelgitError as error:
                self.complain(left_alone(path, error))

    def waiting(self) -> dict[str, bytes]:
        """Returns the manifests of this run that still lie in the work tree, by their paths."""
        root = self.repo.worktree if self.manifests else None
        if root is None:
            return {}
        texts = {path: manifest_text(root, path) for path in sorted(self.manifests)}
        return {path: text for path, text in texts.items() if text and blob_id(text) in self.manifests[path]}


def greet(packets: PacketReader, target: BufferedIOBase) -> None:
    """Agrees with git on the version of the protocol and on what we can do. Raises FormatError."""
    if packets.lines() != ["git-filter-client", "version=2"]:
        raise FormatError("expected git's filter protocol, version 2", hint="it needs git 2.38 or later")
    write_lines(target, "git-filter-server", "version=2")
    packets.lines()
    write_lines(target, *(f"capability={word}" for word in CAPABILITIES))


def is_text(prefix: bytes) -> bool:
    """Tells whether a file begins as the text of weights does; no safetensors file can, its header would be endless."""
    return prefix.startswith(TEXT_MARK)


def refuse_text_at(root: Path | None, path: str) -> None:
    """Refuses the text of weights where it may be about to be committed: it lies in their place, or nowhere.

    Raises:
        FormatError: saying so.
    """
    found = stat_of(root, path) if root is not None and path else None
    if root is not None and found is not None:
        with (root / path).open("rb") as file:
            if not is_text(file.read(PREFIX_BYTES)):
                return
    raise FormatError(f"{path or 'stdin'}: the text of a weight file, not the file itself", hint=WAY_BACK)


def whole_text(stream: Source, path: str) -> bytes:
    """Returns what a stream holds. Raises FormatError if that is too much for a manifest."""
    text = bytearray()
    for piece in pieces(stream):
        text += piece
        if len(text) > MAX_MANIFEST_BYTES:
            raise FormatError(f"{path or 'stdin'}: manifest: expected at most {MAX_MANIFEST_BYTES} bytes, got more")
    return bytes(text)


def take_in(repo: Repository, path: str, stream: Source, listener: Listener = ignore) -> Manifest:
    """Returns the manifest of a weight file that comes through a pipe, its objects durable in the store.

    Raises:
        FormatError: it is malformed. StorageFull.
    """
    from modelgit.store.files.intake import store_stream  # brings numpy

    with repo.store.begin() as pack:
        older = Earlier(repo, "HEAD").like(path) if path else ()
        manifest = store_stream(pack, stream, path or "the weight file", parent_of(repo, path), listener, older)
        pack.commit()
    return manifest


def parent_of(repo: Repository, path: str) -> Manifest | None:
    """Returns what changed tensors are stored as differences to: what HEAD has at a path, for a new one elsewhere."""
    if not path:
        return None
    code, text, _ = repo.git.attempt("cat-file", "blob", f"HEAD:{path}")
    try:
        if code == 0:
            return parse_bytes(text, path) if is_manifest(text) else None
        head = repo.head()
        return relatives(repo.version(head).manifests, path) if head else None
    except FormatError:
        return None


def left_alone(path: str, error: ModelgitError) -> ModelgitError:
    """Returns the error for a file whose manifest stays, with the command that fills it in."""
    again = "then fill it in: modelgit checkout"
    hint = f"{error.hint}; {again}" if error.hint else again
    return ModelgitError(f"{path} holds its manifest only: {error.message}", hint=hint)


def pieces(stream: Source) -> Iterator[bytes]:
    """Yields the rest of a stream, piece by piece."""
    piece = memoryview(bytearray(LARGEST))
    while got := stream.readinto(piece):
        yield bytes(piece[:got])


def beginning(stream: Source) -> bytes:
    """Returns the first bytes of a stream, which tell what it is."""
    into, done = bytearray(PREFIX_BYTES), 0
    while done < len(into) and (got := stream.readinto(memoryview(into)[done:])):
        done += got
    return bytes(into[:done])
