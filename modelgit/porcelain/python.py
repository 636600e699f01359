"""modelgit from Python: versions as state dicts, no work file needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from modelgit.errors import FormatError, RepositoryError, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.dtypes import DTYPES, size_bytes
from modelgit.formats.manifest import TensorEntry, relatives
from modelgit.porcelain import versions, work
from modelgit.porcelain.merging.merge import merge
from modelgit.porcelain.merging.values import Choices, Merged, Request
from modelgit.porcelain.records import RECORD_PATH, Record, write_record
from modelgit.porcelain.trials.values import Trial
from modelgit.porcelain.versions import DEFAULT_PATH, HistoryEntry
from modelgit.repo import repository
from modelgit.repo.values import Blob, CommitDraft
from modelgit.repo.worktree import Earlier
from modelgit.store.files.intake import store_tensors
from modelgit.store.files.tensors import StoredTensors

if TYPE_CHECKING:
    import numpy as np
    import torch

    from modelgit.porcelain.training.committing import Trained

    Tensor = torch.Tensor | np.ndarray[Any, Any]
    Device = str | torch.device | None

Framework = Literal["torch", "numpy"]
FRAMEWORKS = ("torch", "numpy")
SHOWN = 3  # tensors that the repr of weights lists


class Weights(Mapping[str, Any]):
    """The tensors of a version by name. Each is read, and verified, when it is asked for, and no byte of the others.

    They come as PyTorch tensors on `device`, or as numpy arrays, in memory of their own.
    """

    def __init__(self, source: StoredTensors, framework: Framework = "torch", device: "Device" = None) -> None:
        if framework not in FRAMEWORKS:
            raise UsageError(f"framework '{framework}': expected one of {', '.join(FRAMEWORKS)}")
        if framework == "numpy" and device is not None:
            raise UsageError(f"device '{device}': numpy arrays lie in the main memory", hint='use framework="torch"')
        self._source, self._framework, self._device = source, framework, device
        if device is not None:
            from modelgit.porcelain.tensors import device_named

            self._device = device_named(device)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return self._made(name, self.entry(name).shape, self._source.read(name))

    def rows(self, name: str, start: int, stop: int) -> Any:
        """Returns rows `start` to `stop` of a tensor, counted and cut as in a slice of its first dimension.

        So -1 is the last row, and rows beyond the ends are left out silently, as numpy does. Only the pieces of 4 MiB
        that they lie in are read.

        Raises:
            FormatError: no such tensor; a scalar; rows that fill no whole bytes.
        """
        entry = self.entry(name)
        if not entry.shape:
            raise FormatError(f"tensor '{name}' is a scalar: it has no rows")
        first, last, _ = slice(start, stop).indices(entry.shape[0])
        last = max(first, last)
        shape = (last - first, *entry.shape[1:])
        try:
            begin, size = size_bytes(entry.dtype, (first, *shape[1:])), size_bytes(entry.dtype, shape)
        except FormatError as error:
            raise FormatError(f"tensor '{name}', rows {first} to {last}: {error.message}") from error
        return self._made(name, shape, self._source.read_part(name, begin, begin + size))

    def raw(self, name: str) -> bytearray:
        """Returns a tensor's little-endian bytes in row-major order, whatever its type. Raises FormatError."""
        return self._source.read(name)

    def _made(self, name: str, shape: Sequence[int], data: bytearray) -> Any:
        if self._framework == "numpy":
            return as_numpy(self.entry(name), shape, data)
        from modelgit.porcelain.tensors import tensor_of

        tensor = tensor_of(self.entry(name), shape, data)
        return tensor if self._device is None else tensor.to(self._device)

    def __repr__(self) -> str:
        entries = [self.entry(name) for name in islice(self, SHOWN)]
        rows = [f"{entry.name}: {entry.dtype} {list(entry.shape)}" for entry in entries]
        more = [f"{len(self) - len(rows):,} more"] if len(self) > len(rows) else []
        return f"<Weights for {self._framework}: {'; '.join([*rows, *more]) or 'no tensors'}>"

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.names())

    def __len__(self) -> int:
        return len(self._source.names())

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self._source.entry(name) is not None
        except FormatError:
            return False

    def entry(self, name: str) -> TensorEntry:
        """Returns dtype, shape and object id of a tensor without reading it. Raises FormatError."""
        return self._source.entry(name)


class Repository:
    """A repository of models, seen from Python. `Repository(path)` opens the one that `path` lies in."""

    def __init__(self, path: str | PathLike[str] = ".", *, listener: Listener = ignore) -> None:
        self._repo = repository.Repository.open(Path(path))
        self._listener = listener

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    @classmethod
    def init(cls, path: str | PathLike[str], *, bare: bool = False, branch: str = "main") -> "Repository":
        """Makes a repository in `path`, or opens the one that is there."""
        repository.Repository.init(Path(path), bare=bare, branch=branch)
        return cls(path)

    @property
    def path(self) -> Path:
        """The folder of the work tree, or of a bare repository."""
        return self._repo.worktree or self._repo.git_dir

    def head(self) -> str | None:
        """Returns the commit checked out, None before the first."""
        return self._repo.head()

    def branches(self) -> dict[str, str]:
        """Returns the commit of each branch by its name."""
        return self._repo.branches()

    def commit(
        self,
        state: "Mapping[str, Tensor]",
        message: str,
        *,
        branch: str | None = None,
        parents: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        record: Record | None = None,
    ) -> str:
        """Commits a state dict of PyTorch or numpy arrays and returns the commit.

        It goes to `branch`, the one checked out unless named; to that one with its files. `parents` are revisions,
        the branch's tip unless named, HEAD for a new branch; with `parents=[]` it has none. Other files of the first
        parent stay as they are there. `record` says what the model is; without one, what the first parent's says still
        holds. `metadata` goes into the file's header.

        Raises:
            FormatError: no tensor or array, or one that safetensors cannot hold.
            DirtyWorktree: local changes lie in the way.
            RepositoryError: the branch would lose commits, or another work tree is on it.
        """
        repo = self._repo
        target = branch or repo.branch()
        current = target == repo.branch()
        if current:
            work.require_clean(repo, added=True)
        else:
            work.refuse_shared_branch(repo, target or "")
        tip = repo.head() if current else repo.branches().get(target or "")
        start = tip or repo.head()
        chosen = tuple(repo.resolve(rev) for rev in parents) if parents is not None else ((start,) if start else ())
        if tip and not any(repo.is_ancestor(tip, parent) for parent in chosen):
            hint = "name a new branch, or the branch's tip among the parents"
            lost = f"branch '{target}' would lose {tip[:10]}: none of the parents descends from it"
            raise RepositoryError(lost, hint=hint)
        draft = self._draft(state, chosen, metadata or {"format": "pt"}, record)
        made = repo.commit(replace(draft, message=message))
        if current:
            work.land(repo, made, self._listener, expected=tip)
        else:
            repo.set_ref(f"refs/heads/{target}", made, expected=tip)
        return made

    def _draft(
        self,
        state: "Mapping[str, Tensor]",
        parents: tuple[str, ...],
        metadata: Mapping[str, str],
        record: Record | None,
    ) -> CommitDraft:
        first = self._repo.version(parents[0]) if parents else None
        with self._repo.store.begin() as pack:
            parent = relatives(first.manifests, DEFAULT_PATH) if first else None
            older = Earlier(self._repo, parents[0] if parents else None).like(DEFAULT_PATH)
            manifest = store_tensors(pack, raw_values(state), metadata, parent, older, self._listener)
            pack.commit()
        kept: dict[str, Blob] = dict(first.files) if first else {}
        inherited = work.new_record(self._repo, parents[0] if parents else None).get(RECORD_PATH)
        told = write_record(record) if record is not None else inherited or write_record(Record("commit"))
        return CommitDraft(parents, {**kept, DEFAULT_PATH: manifest, RECORD_PATH: told}, "")

    def load(
        self, rev: str = "HEAD", path: str | None = None, *, framework: Framework = "torch", device: "Device" = None
    ) -> Weights:
        """Returns the tensors of a version, of all its weight files or of the one at `path`. Reads nothing yet.

        They are PyTorch tensors, on the CPU or on `device` ("cuda", "cuda:1", …), or numpy arrays if `framework` is
        "numpy". One whose type the framework lacks (numpy has no BF16 and no F8) raises FormatError when asked for.

        Raises:
            RevisionError: no such version. UsageError: no weights there, or a device that cannot be used.
        """
        return Weights(versions.weights_of(self._repo, rev, path), framework, device)

    def merge(
        self,
        revs: Sequence[str],
        *,
        message: str | None = None,
        fast_forward: bool = True,
        choices: Choices | None = None,
        **options: Any,
    ) -> Merged:
        """Merges versions into the branch checked out; `options` are those of `Choices`, e.g. method="ties".

        Those of `Trial` say what is to be found out first on the data `on`, e.g. select="greedy"; there `metric` may be
        a function of a state dict and of `on`.

        Raises:
            MergeConflict: naming every reason; nothing has changed then.
        """
        data = options.pop("on", None)
        trial = Trial(**{field.name: options.pop(field.name) for field in fields(Trial) if field.name in options})
        chosen = choices or Choices(**options)
        request = Request(tuple(revs), chosen, message, fast_forward=fast_forward, data=data, trial=trial)
        return merge(self._repo, request, self._listener)

    def train(
        self, recipe: "str | PathLike[str] | Mapping[str, object]", *, overrides: Sequence[str] = (), **said: Any
    ) -> "Trained":
        """Fine-tunes HEAD as a recipe says, a file or its tables, and commits the result to the branch checked out.

        `overrides` are those of the command line, e.g. "train.steps=20"; `said` are keys of the recipe, e.g.
        message="…", device="cuda". Paths of data in a table are relative to the working directory.

        Raises:
            RecipeError, DataError, DirtyWorktree, TrainingError: nothing has changed then.
        """
        from modelgit.porcelain.training.committing import commit_recipe, starting_size
        from modelgit.recipe.single import load_recipe

        source = recipe if isinstance(recipe, Mapping) else Path(recipe)
        loaded = load_recipe(source, overrides, said, starting_size(self._repo))
        return commit_recipe(self._repo, loaded, self._listener)

    def fold(self, base: str | None = None, message: str | None = None) -> work.Committed:
        """Folds the adapter checked out into its base and commits the whole weights; `base`: if it names none itself.

        Raises:
            UsageError: there is no adapter. DataError: it does not fit the base. Nothing has changed then.
        """
        from modelgit.porcelain.training.folding import fold

        return fold(self._repo, base, message, self._listener)

    def log(self, rev: str = "HEAD", limit: int | None = None) -> list[HistoryEntry]:
        """Returns the versions that lead to `rev`, newest first."""
        return list(versions.log(self._repo, [rev], limit=limit).entries)

    def checkout(self, rev: str) -> str:
        """Makes the work tree the version `rev` and returns its commit."""
        return work.checkout(self._repo, rev, listener=self._listener).commit


def raw_values(state: "Mapping[str, Tensor]") -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """Yields (name, dtype, shape, little-endian bytes) of each tensor or array. Arrays do not have PyTorch loaded.

    Raises:
        FormatError: as `as_torch` and `raw_tensors` do.
    """
    import numpy as np

    known = {np.dtype(row.numpy): row.name for row in DTYPES.values() if row.numpy}
    for name, value in cast("Mapping[object, object]", state).items():
        if isinstance(name, str) and isinstance(value, np.ndarray | np.generic) and value.dtype in known:
            flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            yield name, known[value.dtype], value.shape, memoryview(flat.data)
        else:
            from modelgit.porcelain.tensors import raw_tensors

            yield from raw_tensors(as_torch(cast("Mapping[str, Tensor]", {name: value})))


def as_torch(state: "Mapping[str, Tensor]") -> "dict[str, torch.Tensor]":
    """Returns the state dict with numpy arrays as tensors over the same memory.

    Raises:
        FormatError: a name that is no text, a value that is no tensor or array, an array that PyTorch cannot hold.
    """
    import numpy as np
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, value in cast("Mapping[object, object]", state).items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor | np.ndarray | np.generic):
            expected = "expected names and PyTorch tensors or numpy arrays"
            raise FormatError(f"{name!r}: {expected}, got {type(value).__name__}", hint="numpy.asarray makes one")
        if isinstance(value, torch.Tensor):
            found[name] = value
            continue
        try:  # numpy makes a scalar into a row of one when it lays it out
            found[name] = torch.as_tensor(np.ascontiguousarray(value)).reshape(value.shape)
        except (TypeError, ValueError) as error:
            raise FormatError(f"tensor '{name}': PyTorch cannot hold it: {error}") from error
    return found


def as_numpy(entry: TensorEntry, shape: Sequence[int], data: bytearray) -> "np.ndarray[Any, Any]":
    """Returns the array of `shape` whose little-endian bytes `data` holds, over the same memory.

    Raises:
        FormatError: numpy has no such type.
    """
    import numpy as np

    dtype = DTYPES[entry.dtype].numpy
    if dtype is None:
        hint = "load(rev)[name].float().numpy() widens it; load(rev).raw(name) gives its bytes"
        raise FormatError(f"tensor '{entry.name}': numpy has no type for {entry.dtype}", hint=hint)
    return np.frombuffer(data, np.dtype(dtype)).reshape(tuple(shape))
