"""What git calls, out of people's sight: `python -P -m modelgit.cli.plumbing VERB`, as `.git/config` has it.

Not a command of the command line proper: git calls it at every checkout, and loading that takes longer than the work.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BufferedIOBase, BufferedReader, BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from modelgit.cli.screen.blocks import Table, count_text, plain_table
from modelgit.cli.screen.output import Output, is_terminal, safe
from modelgit.errors import ModelgitError, StorageFull, UsageError
from modelgit.events import Listener, ignore
from modelgit.repo.gitdir import FOREIGN

if TYPE_CHECKING:
    from modelgit.porcelain.plumbing.showing import Shown
    from modelgit.repo.repository import Repository

SHOWN = 200  # tensors that `git diff` lists
QUIET_S = 1.0  # nothing is said of work that takes less
PIPE_BYTES = 1 << 20
NO_FILE = "/dev/null"
CONFLICT, FAILED = 1, 1
INTERRUPTED, INTERNAL = 130, 70


def repository() -> "Repository":
    """Returns the repository git is working on: it names it in the environment where the directory does not."""
    from modelgit.repo.repository import Repository

    return Repository.open(Path.cwd(), {key: os.environ[key] for key in FOREIGN if key in os.environ})


def complain(error: ModelgitError) -> None:
    """Says what went wrong, in a line or two on stderr."""
    Output(sys.stdout, sys.stderr).error(error)


def listener_on(stream: TextIO) -> Listener:
    """Returns a listener that draws bars on a terminal, for work that takes a while."""
    if not is_terminal(stream):
        return ignore
    from modelgit.cli.screen.progress import BarProgress

    return BarProgress(stream, after_s=QUIET_S)


def close(listener: Listener) -> None:
    """Takes bars off the screen."""
    if listener is not ignore:
        listener.close()  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- the filter


def process(_words: Sequence[str]) -> int:
    """Serves git's long-running filter, then fills in the files it has left."""
    from modelgit.porcelain.plumbing.filtering import Filter

    listener = listener_on(sys.stderr)
    run = Filter(repository, complain, listener)
    source, target = take_over_pipes()
    try:
        run.serve(source, target)
        run.fill_in()
    except KeyboardInterrupt:
        if run.manifests:
            complain(ModelgitError("stopped while writing weight files", hint="go on: modelgit checkout"))
        return INTERRUPTED
    finally:
        close(listener)
    return 0


def take_over_pipes() -> tuple[BufferedIOBase, BufferedIOBase]:
    """Returns git's pipes; whatever else writes to stdout goes to stderr, where it breaks no protocol."""
    source = BufferedReader(FileIO(os.dup(0), "rb"), PIPE_BYTES)
    target = BufferedWriter(FileIO(os.dup(1), "wb"), PIPE_BYTES)
    os.dup2(2, 1)
    return source, target


def clean(words: Sequence[str]) -> int:
    """Cleans one file, for repositories that an earlier modelgit has set up."""
    from modelgit.porcelain.plumbing.filtering import Filter

    run = Filter(repository, complain)
    source, target = take_over_pipes()
    for piece in run.clean(words[0] if words else "", source):
        target.write(piece)
    target.flush()
    return 0


# ---------------------------------------------------------------------------------------------------- looking


def textconv(words: Sequence[str]) -> int:
    """Prints a weight file as text, a line a tensor."""
    from modelgit.porcelain.plumbing.showing import TEXT_MARK, text_of

    print(TEXT_MARK.decode())
    try:
        sys.stdout.writelines(safe(row) + "\n" for row in text_of(Path(words[0])))
    except ModelgitError as error:
        print(safe(f"cannot be read: {error.message}"))
    return 0


def diff(words: Sequence[str]) -> int:
    """Prints how a weight file differs. Git gives path, file, id and mode of both sides; for an unmerged one less."""
    if len(words) < 7:
        print(safe(f"* Unmerged path {words[0]}"))
        return 0
    path, old, new = words[0], words[1], words[4]
    other = words[7] if len(words) > 7 else path
    print(safe(f"diff --modelgit a/{path} b/{other}"))
    for row in mode_rows(words[3], words[6]):
        print(row)
    try:
        for row in difference_rows(path, old, new):
            print(safe(row))
    except ModelgitError as error:
        print(safe(f"cannot be compared: {error.message}"))
    return 0


def mode_rows(old: str, new: str) -> Iterator[str]:
    """Yields what git says of a mode that differs; `.` stands for no file."""
    if "." in (old, new):
        yield f"new file mode {new}" if old == "." else f"deleted file mode {old}"
    elif old != new:
        yield from (f"old mode {old}", f"new mode {new}")


def difference_rows(path: str, old: str, new: str) -> Iterator[str]:
    """Yields a table of the tensors that differ, the first of them, and how many are the same."""
    from modelgit.cli.screen.views import COLUMNS, beside, difference_row, not_finite
    from modelgit.porcelain.plumbing.showing import difference, source_of

    repo = repository()
    shown = difference(repo, path, source_of(repo, Path(old)), source_of(repo, Path(new)))
    if shown.tensors:
        yield from plain_table(Table(COLUMNS, tuple(difference_row(change) for change in shown.tensors[:SHOWN])))
    yield from closing_rows(shown)
    fresh = not_finite([(change.name, change.nan, change.inf) for change in shown.tensors])
    yield from map(str, (*fresh, *beside(shown)))


def closing_rows(shown: "Shown") -> Iterator[str]:
    """Yields what a table does not say."""
    if len(shown.tensors) > SHOWN:
        yield f"and {len(shown.tensors) - SHOWN:,} more: modelgit diff lists all"
    if shown.unread:
        yield f"numbers are absent: {shown.unread}"
    count = len(shown.tensors)
    yield f"{count_text(count, 'tensor')} {'differs' if count == 1 else 'differ'}, {shown.same:,} the same"


# ---------------------------------------------------------------------------------------------------- merging


def merge(words: Sequence[str]) -> int:
    """Merges manifests: base, ours, theirs, path. The result takes the place of ours, which stays if there is none."""
    from modelgit.porcelain.plumbing.combining import combine

    listener = listener_on(sys.stderr)
    try:
        return merged(words, partial(combine, repository(), listener=listener))
    finally:
        close(listener)


def merge_record(words: Sequence[str]) -> int:
    """Merges the records of versions, as `merge` does manifests."""
    from modelgit.porcelain.plumbing.combining import combine_records

    return merged(words, partial(combine_records, repository()))


def merged(words: Sequence[str], combine: Callable[..., bytes]) -> int:
    """Writes what `combine` gives over our side, and returns 0; 1 where it refuses, and git leaves a conflict."""
    if len(words) != 4:
        raise UsageError("expected base, ours, theirs and the path")
    base, ours, theirs = (Path(word) for word in words[:3])
    texts = base.read_bytes(), ours.read_bytes(), theirs.read_bytes()
    try:
        ours.write_bytes(combine(texts=texts, path=words[3], environment=os.environ))
    except ModelgitError as error:
        sys.stderr.write(f"{safe(words[3])}:\n")
        complain(error)
        return CONFLICT
    return 0


# ---------------------------------------------------------------------------------------------------- sending


def pre_push(words: Sequence[str]) -> int:
    """Sends the objects that a push needs, before it."""
    from modelgit.porcelain.plumbing.sending import send_first, tips_in

    remote, url = words[:2]
    listener = listener_on(sys.stderr)
    try:
        sent = send_first(repository(), remote, url, tips_in(sys.stdin), listener)
    finally:
        close(listener)
    if sent.warning:
        hint = "who clones it cannot fill the weights in; push them to a folder: modelgit push REMOTE"
        Output(sys.stdout, sys.stderr).warning(f"{sent.warning}; {hint}")
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "process": process,
    "clean": clean,
    "textconv": textconv,
    "diff": diff,
    "merge": merge,
    "merge-record": merge_record,
    "pre-push": pre_push,
}


def main(words: Sequence[str]) -> int:
    """Runs what git asks for, and returns its exit code."""
    signal.signal(signal.SIGTERM, stop)  # so that nothing unfinished is left beside a file
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    verb = VERBS.get(words[0]) if words else None
    try:
        if verb is None:
            raise UsageError("git calls this, with one of " + ", ".join(VERBS))
        return verb(words[1:])
    except ModelgitError as error:
        complain(error)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads any more; say nothing at exit either
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort: everything becomes one line and an exit code
        complain(translated(error))
        return INTERNAL


def translated(error: Exception) -> ModelgitError:
    """Returns an error of the system, or a mistake of ours, as one that can be shown."""
    if isinstance(error, OSError):
        return StorageFull(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return ModelgitError(f"internal error: {type(error).__name__}: {error}", hint="please report it")


def stop(number: int, _frame: object) -> NoReturn:
    """Ends as a signal asks, unfinished files removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
