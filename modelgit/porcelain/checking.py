"""Checking: can a merge be recomputed."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelgit.errors import DataError, DifferencesFound, FormatError, UsageError
from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest, compare
from modelgit.porcelain.merging.making import carry_out
from modelgit.porcelain.merging.matching.informing import informing_of, refuse_others
from modelgit.porcelain.merging.own_code import digest_of, enter_method, is_own
from modelgit.porcelain.merging.preparing import prepare
from modelgit.porcelain.merging.values import Align, Choices, Informing
from modelgit.porcelain.records import read_record
from modelgit.porcelain.replaying.verifying import is_replay, recompute
from modelgit.porcelain.versions import contents_id
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version

MAX_NAMED = 5
HEX = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
ALIGNMENT = ("Merge-Align", "Merge-Repair")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a merge commit says of how it was made; `inputs` are commits with the ids of their weights."""

    choices: Choices
    bases: tuple[str, ...]
    inputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """A merge that was recomputed and gave the same ids: `tensors` of them in `files` weight files.

    `taken` are findings of the merge that were taken as they are recorded: a selection, a search.
    """

    commit: str
    method: str
    inputs: tuple[str, ...]
    files: int
    tensors: int
    taken: tuple[str, ...] = ()


def verify(
    repo: Repository,
    rev: str = "HEAD",
    listener: Listener = ignore,
    data: str | None = None,
    statistics: Informing | None = None,
) -> Verified:
    """Recomputes the merge that `rev` names from what its commit says, and compares every id. Stores nothing.

    `data` is where the data lies on which units were lined up, activations set right or statistics computed;
    `statistics` is where those of the models are, or the data of each.

    Raises:
        UsageError: no merge commit, or one made by git alone. DifferencesFound: naming what differs.
    """
    version = repo.version(rev)
    if is_replay(version):
        change, again = recompute(repo, version, listener)
        refuse_differences(version, again)
        inputs = (change.base, change.theirs, *version.entry.parents)
        return Verified(version.commit, change.verb, inputs, len(again), sum(len(m.tensors) for m in again.values()))
    recorded = with_data(repo, version, read_trailers(version), data)
    again_from = informing_of(version, statistics, data)
    recorded = replace(recorded, choices=replace(recorded.choices, statistics=again_from))
    check_method(version, recorded.choices.method)
    check_inputs(repo, version, recorded)
    names = {commit[:10]: commit for commit, _ in recorded.inputs}
    prepared = prepare(repo, names, recorded.choices, recorded.bases, listener)
    refuse_others(version, prepared)
    again = carry_out(repo, prepared, listener, keep=False).manifests()
    refuse_differences(version, again)
    tensors = sum(len(manifest.tensors) for manifest in again.values())
    taken = tuple(word for word in ("selection", "search") if f"Merge-{word.title()}" in version.entry.trailers)
    return Verified(version.commit, recorded.choices.method, tuple(names.values()), len(again), tensors, taken)


def refuse_differences(version: Version, again: Mapping[str, Manifest]) -> None:
    """Raises DifferencesFound unless recomputing a version gave its weight files, naming what differs."""
    differences = differing(version.manifests, again)
    if differences:
        told = ", ".join(differences[:MAX_NAMED]) + (
            f" and {len(differences) - MAX_NAMED} more" * (len(differences) > MAX_NAMED)
        )
        raise DifferencesFound(
            f"recomputing {version.commit[:10]} gave other weights: {told}",
            hint="the commit was made by another version of modelgit, or not by what it says",
        )


def read_trailers(version: Version) -> Recorded:
    """Returns what a merge commit says of how it was made.

    Raises:
        UsageError: it says nothing. FormatError: what it says is malformed; commits come from other people.
    """
    trailers = version.entry.trailers
    where = f"commit {version.commit[:10]}"
    if "Merge-Method" not in trailers:
        hint = (
            "it takes what modelgit merge made; git commit -m leaves the trailers out, git commit --no-edit keeps them"
        )
        raise UsageError(f"{where} is no merge of models", hint=hint)
    try:
        policy: dict[str, Any] = json.loads(trailers["Merge-Policy"][0])
        weights = tuple(float(weight) for weight in json.loads(trailers["Merge-Weights"][0]))
        settings = dict(json.loads(trailers["Merge-Settings"][0]))
        inputs = [tuple(value.split()) for value in trailers["Merge-Input"]]
        pairs = tuple((commit, contents) for commit, contents in inputs)
        policy["head_names"] = tuple(str(name) for name in policy["head_names"])
        layers = json.loads(trailers.get("Merge-Layer-Weights", ["{}"])[0])
        rows = {str(layer): tuple(float(weight) for weight in row) for layer, row in layers.items()}
        own = json.loads(trailers.get("Merge-Layer-Settings", ["{}"])[0])
        align = align_of(json.loads(trailers["Merge-Align"][0])) if "Merge-Align" in trailers else None
        device = trailers.get("Merge-Device", ["cpu"])[0]
        choices = Choices(
            trailers["Merge-Method"][0], settings, weights, **policy, layers=rows, align=align, device=device
        )
        choices = replace(choices, layer_settings={str(layer): dict(these) for layer, these in own.items()})
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        hint = "the commit was written by hand, or by a later modelgit"
        raise FormatError(f"{where}: malformed merge trailers: {error}", hint=hint) from error
    return Recorded(choices, tuple(trailers.get("Merge-Base", [])), pairs)


def enter_recorded(repo: Repository, rev: str, text: str) -> None:
    """Enters the method of somebody's own that a merge was made with, from the file that the user names.

    Raises:
        UsageError: it was made with none. DataError: with another one; nothing of the file was run.
    """
    version = repo.version(rev)
    trailers = version.entry.trailers
    if "Merge-Method-File" not in trailers or "Merge-Method" not in trailers:
        what = f"{version.commit[:10]} was not made with a method of somebody's own"
        raise UsageError(what, hint="leave --method out")
    enter_method(text, (trailers["Merge-Method"][0], trailers["Merge-Method-File"][0]))


def check_method(version: Version, name: str) -> None:
    """Refuses a merge by somebody's own method, unless the user named its file and it is the same.

    Raises:
        UsageError: no file was named. DataError: it is another one.
    """
    recorded, commit = version.entry.trailers.get("Merge-Method-File", [None])[0], version.commit[:10]
    if recorded is None and not is_own(name):
        return
    place, _, short = name.rpartition(":")
    if digest_of(name) is None:
        hint = f"if you trust it: verify --rerun {commit} --method path/to/{place}:{short}"
        raise UsageError(
            f"{commit} was merged by a method of somebody's own, {name}: running it is up to you", hint=hint
        )
    if digest_of(name) != recorded:
        raise DataError(f"{name}: another file than {commit} was merged with", hint=f"its digest was {recorded}")


def align_of(table: Mapping[str, Any]) -> Align:
    """Returns how units were lined up. Raises KeyError, TypeError, ValueError for a malformed table."""
    if table["by"] not in ("weights", "activations"):
        raise ValueError(f"units lined up by {table['by']!r}")
    if not HEX.fullmatch(table["to"]):
        raise ValueError(f"units lined up with {table['to']!r}, which is no commit")
    return Align(table["by"], int(table["seed"]), table["to"])


def with_data(repo: Repository, version: Version, recorded: Recorded, data: str | None) -> Recorded:
    """Returns what is recorded with the data that the user named, and the spec that the record holds.

    Raises:
        UsageError: the merge looked at data and none is named. DataError: it is other data.
    """
    choices, align, spec = recorded.choices, recorded.choices.align, None
    wanted = {str(t.get("data")): t["data_digest"] for t in merge_tables(version) if t.get("data_digest")}
    for name, digest in wanted.items():
        if data is None:
            raise UsageError(f"{version.commit[:10]} was made with data '{name}': say where it is", hint="--on DATA")
        from modelgit.porcelain.merging.matching.running import digest_of  # brings PyTorch

        if digest_of(data) != digest:
            raise DataError(f"{data}: other data than '{name}', which {version.commit[:10]} was made with")
    if align is not None and (record := read_record(repo, version.commit)) is not None:
        lined = record.details.get("alignment")
        spec = lined.get("spec") if isinstance(lined, dict) else None
    aligned = None if align is None else replace(align, data=data or "", table=spec)
    repair = (data or "") if "Merge-Repair" in version.entry.trailers else ""
    return replace(recorded, choices=replace(choices, align=aligned, repair=repair))


def merge_tables(version: Version) -> list[dict[str, str]]:
    """Returns what a commit says of lining up and of repairing. Raises FormatError."""
    try:
        rows = [version.entry.trailers[key][0] for key in ALIGNMENT if key in version.entry.trailers]
        return [dict(json.loads(row)) for row in rows]
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise FormatError(f"commit {version.commit[:10]}: malformed merge trailers: {error}") from error


def check_inputs(repo: Repository, version: Version, recorded: Recorded) -> None:
    """Refuses a record whose inputs are not the commit's ancestors, or not the models they were."""
    named = [commit for commit, _ in recorded.inputs]
    if recorded.choices.align is not None:
        named.append(recorded.choices.align.to)
    strangers = [commit[:10] for commit in named if not repo.is_ancestor(commit, version.commit)]
    if strangers:
        raise DifferencesFound(f"{version.commit[:10]}: inputs it does not descend from: {', '.join(strangers)}")
    changed = [commit[:10] for commit, contents in recorded.inputs if contents_id(repo.version(commit)) != contents]
    if changed:
        raise DifferencesFound(f"{version.commit[:10]}: inputs with other weights than recorded: {', '.join(changed)}")


def differing(recorded: Mapping[str, Manifest], again: Mapping[str, Manifest]) -> list[str]:
    """Returns the names of all that differs: files, tensors, headers."""
    found = sorted(recorded.keys() ^ again.keys())
    for path in sorted(recorded.keys() & again.keys()):
        diff = compare(recorded[path], again[path])
        found += [entry.name for entry in (*diff.added, *diff.removed)] + [old.name for old, _ in diff.changed]
        if recorded[path].header != again[path].header:
            found.append(f"header of {path}")
    return found
