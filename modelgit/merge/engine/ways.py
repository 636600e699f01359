"""The ways on from conflicts: for each kind a sentence, and the options that together let a merge go on."""

import shlex
from collections.abc import Mapping, Sequence

from modelgit.errors import Conflict, MergeConflict
from modelgit.merge.vocabulary.naming import is_embedding

HINTS: Mapping[str, str] = {
    "missing": "Go on without such tensors (--on-missing drop) or with the models that have them (--on-missing keep).",
    "shape": "If it is the head of another task, go on without heads (--heads drop) or with your own (--heads ours).",
    "dtype": "Convert the models to one dtype first.",
    "vocabulary": "Line tokens up by their strings: your own (--vocabulary ours) or those of all (--vocabulary union).",
    "classes": "Average them by class (--heads mean), take one model's (--heads ours, theirs), or none (--heads drop).",
    "integers": "Take the integers of one model (--integers ours).",
    "non-finite": "modelgit blame REV TENSOR says which commit last changed it: merge a version without that.",
    "adapter": "Adapters are merged by their products: --method lora_cat (exact), or lora_svd (of a rank).",
    "statistics": "Compute them of these very models (--stats-on DATA), or give the file of each, in order (--stats).",
    "tied": "Keep two matrices (--tied untie), and see to it that the model's configuration does not tie them again.",
    "overflow": "Merge with a smaller scale, or in a wider dtype.",
    "empty": "Check that these are versions of the same model.",
    "file": "Take those of the version you are on (--files ours); with --no-commit, edit them before --continue.",
}
OPTIONS: Mapping[str, str] = {
    "adapter": "--method lora_cat",
    "file": "--files ours",
    "integers": "--integers ours",
    "missing": "--on-missing keep",
    "tied": "--tied untie",
    "vocabulary": "--vocabulary union",
}
HEADS = ("classes", "shape")  # what --heads is for


def conflict_error(conflicts: Sequence[Conflict], head_names: Sequence[str] = ()) -> MergeConflict:
    """Return the error for these conflicts, with a hint for each kind among them; `head_names` are known already."""
    first = conflicts[0]
    if first.kind == "file":
        more = f" ({len(conflicts)} files)" if len(conflicts) > 1 else ""
        message = f"versions disagree on {first.where}: {first.got}{more}"
    else:
        more = f" ({len(conflicts)} conflicts)" if len(conflicts) > 1 else ""
        message = f"models cannot be merged: {first.where}: expected {first.expected}, got {first.got}{more}."
    return MergeConflict(message, conflicts, hint=way_on(conflicts, head_names))


def way_on(conflicts: Sequence[Conflict], head_names: Sequence[str] = ()) -> str:
    """Return what to do: a sentence for each kind of conflict, and all the options that are needed, if several are."""
    options = options_for(conflicts, head_names)
    lead = "All" if all(kind in (*OPTIONS, *HEADS) for kind in kinds_of(conflicts)) else "The others"
    together = f" {lead} at once: {' '.join(options)}." if len(options) > 1 else ""
    return f"{reasons(conflicts)}{together}"


def reasons(conflicts: Sequence[Conflict]) -> str:
    """Return a sentence for each kind of conflict."""
    return " ".join(HINTS[kind] for kind in kinds_of(conflicts))


def options_for(conflicts: Sequence[Conflict], head_names: Sequence[str] = ()) -> list[str]:
    """Return options of `modelgit merge` with which it goes on, none for a kind that no option settles."""
    kinds = kinds_of(conflicts)
    options = [OPTIONS[kind] for kind in kinds if kind in OPTIONS]
    if any(kind in HEADS for kind in kinds):
        names = unnamed_heads(conflicts, head_names)
        known = [*head_names, *names] if names else []  # those that are named count instead of those on record
        options += ["--heads ours", *(f"--head-name {shlex.quote(name)}" for name in known)]
    return options


def kinds_of(conflicts: Sequence[Conflict]) -> list[str]:
    """Return the kinds of conflict, sorted; where tokens differ, so do embeddings: those are no heads."""
    kinds = {conflict.kind for conflict in conflicts}
    shapes = [conflict.where for conflict in conflicts if conflict.kind == "shape"]
    if "vocabulary" in kinds and all(is_embedding(name) for name in shapes):
        kinds.discard("shape")
    return sorted(kinds)


def unnamed_heads(conflicts: Sequence[Conflict], head_names: Sequence[str]) -> list[str]:
    """Return the modules whose shapes differ and that nobody has called heads yet, each once."""
    shapes = [conflict.where for conflict in conflicts if conflict.kind == "shape"]
    if "vocabulary" in kinds_of(conflicts):
        shapes = [name for name in shapes if not is_embedding(name)]
    unknown = [name for name in shapes if not any(name == h or name.startswith(f"{h}.") for h in head_names)]
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in unknown))
