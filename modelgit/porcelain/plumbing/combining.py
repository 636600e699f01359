"""Git's merge driver: two manifests and the one they stem from become one, by the engine of `modelgit merge`.

Two questions reach it. A *merge* of branches asks for the uniform mean of both, or for what git's configuration says.
Everything else that git does with three versions (cherry-pick, revert, rebase, am, stash pop, switch --merge) applies
the change from one to another: ours + (theirs - base), tensor by tensor; a tensor that one side left alone is the other
side's, as in any merge.

How they are told apart (git 2.39, by experiment): `git merge` and `git pull` put GITHEAD_<commit> into the environment,
the name of each branch, for the drivers' conflict labels; nothing else does. A rebase that redoes merges
(`rebase --rebase-merges`) merges in its own process, without those; but MERGE_HEAD is there by then. `git merge-tree`
and `git replay` have no index, and so no lock on it; in the middle of a merge, `git checkout --merge FILE` and
`git stash pop` look alike. There we cannot tell, and refuse.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from modelgit.errors import Conflict, MergeConflict, ModelgitError
from modelgit.events import Listener
from modelgit.formats.manifest import Manifest, TensorEntry, is_manifest, parse_bytes, write
from modelgit.porcelain.plumbing.configured import configured
from modelgit.porcelain.plumbing.seeking import seek
from modelgit.porcelain.records import Record, parse_record, read_record, write_record
from modelgit.repo.repository import Repository
from modelgit.repo.worktree import refuse_missing

if TYPE_CHECKING:
    from modelgit.merge.engine.plan import Plan, Step

Question = Literal["merge", "apply"]
OURS, THEIRS = "ours", "theirs"
HEAD_OF_MERGE = "GITHEAD_"
TAKE_ONE = "take one side: git checkout --ours FILE, or --theirs; then git add FILE"
LEAVE = "or end it, and let modelgit do it without the tensors that do not fit: modelgit cherry-pick REV --tensors ours"
UNFIT = ("missing", "shape", "dtype")  # what --tensors ours is for


@dataclass(frozen=True, slots=True)
class Sides:
    """A weight file as git has it on both sides; `base` is None where the sides have none in common."""

    base: Manifest | None
    ours: Manifest
    theirs: Manifest


def question_of(repo: Repository, environment: Mapping[str, str]) -> Question:
    """Returns what git asks for.

    Raises:
        MergeConflict: that cannot be told.
    """
    wanted = environment.get("MODELGIT_MERGE")
    if wanted in ("merge", "apply"):
        return "merge" if wanted == "merge" else "apply"
    merging = (repo.private_dir / "MERGE_HEAD").exists()
    redone = merging and (repo.private_dir / "rebase-merge").exists()
    if redone or any(name.startswith(HEAD_OF_MERGE) for name in environment):
        return "merge"
    if merging or not repo.index_file.with_name(f"{repo.index_file.name}.lock").exists():
        raise MergeConflict(
            "git does not say whether this is a merge or a change to apply",
            hint="say it: MODELGIT_MERGE=merge (the mean) or MODELGIT_MERGE=apply (ours + theirs - base)",
        )
    return "apply"


def combine(
    repo: Repository, texts: tuple[bytes, bytes, bytes], path: str, environment: Mapping[str, str], listener: Listener
) -> bytes:
    """Returns the text of the merged manifest, its objects in the store; `texts` are base, ours, theirs.

    Raises:
        MergeConflict: naming every reason. MissingObject: an object is neither here nor at a remote. CorruptObject.
    """
    question = question_of(repo, environment)
    sides = parse_sides(texts, path)
    seek(repo, {f"{path} ({i})": text for i, text in enumerate(texts) if text}, listener)
    refuse_missing(repo, [side for side in (sides.base, sides.ours, sides.theirs) if side is not None])
    if question == "merge":
        made = merged(repo, sides, merged_commits(repo, environment), listener)
    else:
        made = applied(repo, sides, listener)
    return write(made).encode()


def parse_sides(texts: tuple[bytes, bytes, bytes], path: str) -> Sides:
    """Returns the three versions as manifests. Raises MergeConflict if one is none."""
    names = ("the base", OURS, THEIRS)
    for name, text in zip(names, texts, strict=True):
        if not is_manifest(text) and (text or name != names[0]):
            got = "an empty file" if not text else "something else"
            raise MergeConflict(f"expected a manifest in {name}, got {got}", hint=TAKE_ONE)
    base, ours, theirs = (parse_bytes(t, path) if t else None for t in texts)
    if ours is None or theirs is None:
        raise MergeConflict("one side has no weights", hint=TAKE_ONE)
    return Sides(base, ours, theirs)


# -------------------------------------------------------------------------------------------------- merging


def merged_commits(repo: Repository, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the commit of each branch that `git merge` takes part in, by its name, ours first."""
    head = repo.head()
    keys = sorted(key for key in environment if key.startswith(HEAD_OF_MERGE))
    named = {environment[key]: key.removeprefix(HEAD_OF_MERGE) for key in keys}
    return {repo.branch() or "HEAD": head, **named} if head else named


def merged(repo: Repository, sides: Sides, commits: Mapping[str, str], listener: Listener) -> Manifest:
    """Returns both sides merged by the method that git's configuration names. Raises MergeConflict."""
    from modelgit.merge.engine.plan import Head, Policy, plan
    from modelgit.store.files.tensors import StoredTensors

    known = list(commits.items())[:2] if len(commits) == 2 else []
    names = [name for name, _ in known] or [OURS, THEIRS]
    records = [record_of(repo, commit) for _, commit in known] or [None, None]
    classes = [record.classes or None if record is not None else None for record in records]
    sources = [StoredTensors(repo.store, side) for side in (sides.ours, sides.theirs)]
    how = configured(repo)
    heads = [Head(n, s, w, c) for n, s, w, c in zip(names, sources, how.weights, classes, strict=True)]
    base = None if sides.base is None else StoredTensors(repo.store, sides.base)
    method = how.made(has_base=base is not None)
    try:
        refuse_vocabularies(repo, known)
        return carried_out(repo, plan(heads, base, method, Policy()), sides, listener)
    except MergeConflict as error:
        heads_known = sorted({name for record in records if record is not None for name in record.head})
        raise MergeConflict(error.message, error.conflicts, hint=otherwise(repo, error, known, heads_known)) from error


def refuse_vocabularies(repo: Repository, named: Sequence[tuple[str, str]]) -> None:
    """Refuses versions whose tokens have other numbers: git merges tokenizers as text, and rows are tokens.

    Raises:
        MergeConflict: naming a token.
    """
    from modelgit.porcelain.merging.matching.vocabularies import vocabulary_conflicts

    versions = [(name, repo.version(commit)) for name, commit in named]
    if conflicts := vocabulary_conflicts(repo, versions) if versions else []:
        from modelgit.merge.engine.ways import conflict_error

        raise conflict_error(conflicts)


def otherwise(
    repo: Repository, error: MergeConflict, commits: Sequence[tuple[str, str]], head_names: Sequence[str]
) -> str:
    """Returns what works where `git merge` cannot go on: it knows no options, `modelgit merge` does."""
    from modelgit.merge.engine.ways import options_for, reasons

    options, why = options_for(error.conflicts, head_names), reasons(error.conflicts)
    if not options:
        return f"{why} Or {TAKE_ONE}."
    words = [name_for(repo, *commits[1]) if len(commits) > 1 else "BRANCH", *options]
    way = f"git merge has no such options; end it (git merge --abort), then: modelgit merge {' '.join(words)}"
    return f"{why} {way}; or {TAKE_ONE}"


def name_for(repo: Repository, name: str, commit: str) -> str:
    """Returns the word by which a command is to name a commit."""
    code, output, _ = repo.git.attempt("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    return shlex.quote(name) if code == 0 and output.decode().strip() == commit else commit[:10]


def record_of(repo: Repository, commit: str) -> Record | None:
    """Returns a version's record, None if it has none that can be read."""
    try:
        return read_record(repo, commit)
    except ModelgitError:
        return None


def carried_out(repo: Repository, plan: "Plan", sides: Sides, listener: Listener) -> Manifest:
    """Returns a planned merge, its objects durable; the header says what both headers say."""
    from modelgit.merge.engine.execution import execute
    from modelgit.store.files.tensors import stored_header

    headers = [stored_header(repo.store, side).metadata for side in (sides.ours, sides.theirs)]
    shared = dict(sorted(set(headers[0].items()) & set(headers[1].items())))
    with repo.store.begin() as pack:
        result = execute(plan, pack, repo.store, shared, listener)
        pack.commit()
    return result.manifest


# -------------------------------------------------------------------------------------------------- applying


def applied(repo: Repository, sides: Sides, listener: Listener) -> Manifest:
    """Returns ours + (theirs - base). Raises MergeConflict."""
    if sides.base is None:
        conflict = Conflict("missing", "the base", "what the change starts from", "both sides added the file")
        raise MergeConflict("a change to a file that both sides added", [conflict], hint=TAKE_ONE)
    three = [{entry.name: entry for entry in side.tensors} for side in (sides.base, sides.ours, sides.theirs)]
    taken, both, conflicts = settled(three)
    from modelgit.merge.engine.ways import conflict_error

    try:
        if conflicts:
            raise conflict_error(conflicts)
        made = carried_out(repo, plan_of(repo, sides, both, taken), sides, listener)
    except MergeConflict as error:
        unfit = any(conflict.kind in UNFIT for conflict in error.conflicts)
        hint = f"{TAKE_ONE}; {LEAVE}" if unfit else f"{error.hint} Or {TAKE_ONE}."
        raise MergeConflict(error.message, error.conflicts, hint=hint) from error
    header = sides.theirs if sides.ours.header == sides.base.header else sides.ours
    return with_header(with_header(made, sides.ours), header)


Three = Sequence[Mapping[str, TensorEntry]]


def settled(three: Three) -> tuple[dict[str, TensorEntry], list[str], list[Conflict]]:
    """Returns the tensors that one side alone has changed, the names of those that both did, and the conflicts."""
    taken: dict[str, TensorEntry] = {}
    both: list[str] = []
    conflicts: list[Conflict] = []
    for name in sorted({name for side in three for name in side}):
        base, ours, theirs = (side.get(name) for side in three)
        if base in (ours, theirs) or ours == theirs:
            chosen = theirs if ours == base else ours
            if chosen is not None:
                taken[name] = chosen
        elif base is None or ours is None or theirs is None:
            absent = "the base" if base is None else OURS if ours is None else THEIRS
            conflicts.append(Conflict("missing", name, "in all three versions", f"absent from {absent}"))
        else:
            both.append(name)
    return taken, both, conflicts


def plan_of(repo: Repository, sides: Sides, both: Sequence[str], taken: Mapping[str, TensorEntry]) -> "Plan":
    """Returns the plan for the tensors that both sides changed, those that are taken as they are added."""
    from modelgit.merge.engine.plan import Head, Plan, Policy, plan
    from modelgit.merge.methods import make
    from modelgit.store.files.tensors import StoredTensors

    method = make("task_arithmetic", {})
    base, ours, theirs = (
        StoredTensors(repo.store, only(side, both)) for side in (sides.base or sides.ours, sides.ours, sides.theirs)
    )
    heads = (Head(OURS, ours), Head(THEIRS, theirs))
    planned = plan(heads, base, method, Policy()) if both else Plan(heads, base, method, (), (), ())
    steps = {step.name: step for step in planned.steps}
    steps |= {name: kept(entry) for name, entry in taken.items()}
    ordered = tuple(integers_ours(steps[name], sides.ours) for name in sorted(steps))
    sources = (sides.ours, sides.theirs)
    everything = tuple(Head(h.name, StoredTensors(repo.store, s)) for h, s in zip(heads, sources, strict=True))
    by_name = {head.name: head for head in everything}
    return replace(planned, steps=ordered, heads=tuple(by_name[head.name] for head in planned.heads))


def only(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """Returns a manifest with some of its tensors."""
    wanted = set(names)
    return replace(manifest, tensors=tuple(entry for entry in manifest.tensors if entry.name in wanted))


def kept(entry: TensorEntry) -> "Step":
    """Returns the step that takes a stored tensor as it is."""
    from modelgit.merge.engine.plan import Step

    return Step(entry.name, entry.dtype, entry.shape, (0,), (entry,), True, "changed on one side")


def integers_ours(step: "Step", ours: Manifest) -> "Step":
    """Returns the step; where values cannot be added (counters) the side one is on counts, not the order of ids."""
    if step.copied and step.why.startswith("integers"):
        return replace(kept(ours.entry(step.name)), why="integers of ours")
    return step


def with_header(made: Manifest, side: Manifest) -> Manifest:
    """Returns the result with the header of one side, byte for byte, if that describes the same tensors."""
    layout = [(entry.name, entry.dtype, entry.shape) for entry in made.tensors]
    if layout != [(entry.name, entry.dtype, entry.shape) for entry in side.tensors]:
        return made
    return replace(made, header=side.header, header_bytes=side.header_bytes, size_bytes=side.size_bytes)


# -------------------------------------------------------------------------------------------------- records


def combine_records(
    repo: Repository, texts: tuple[bytes, bytes, bytes], path: str, environment: Mapping[str, str]
) -> bytes:
    """Returns the record of the result: what both sides agree on after a merge, else ours.

    Raises:
        FormatError: a record is malformed. MergeConflict: it cannot be told what git asks for.
    """
    question = question_of(repo, environment)
    ours, theirs = (parse_record(text, path) for text in texts[1:])
    if question == "apply":
        return write_record(Record("commit", ours.architecture, ours.classes, ours.head))
    same = ours.architecture == theirs.architecture
    classes = ours.classes if ours.classes == theirs.classes else ()
    head = ours.head if ours.head == theirs.head else ()
    how = configured(repo)
    details = {"method": how.method, "settings": dict(how.settings), "weights": list(how.weights), "by": "git merge"}
    return write_record(Record("merge", ours.architecture if same else None, classes, head, details))
