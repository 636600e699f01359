"""A merge carried out: its objects, and the commit that records all that is needed to recompute it."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from modelgit.events import Listener, ignore
from modelgit.formats.manifest import Manifest
from modelgit.merge.blocks.linalg import using
from modelgit.merge.engine.execution import MergeResult, execute
from modelgit.merge.methods import settings_of
from modelgit.porcelain.merging.own_code import digest_of
from modelgit.porcelain.merging.values import Informed, Made, Prepared
from modelgit.porcelain.records import RECORD_PATH, Record, write_record
from modelgit.porcelain.versions import contents_id
from modelgit.repo.repository import Repository
from modelgit.repo.values import Blob, CommitDraft
from modelgit.store.files.tensors import stored_header
from modelgit.store.writing import PackWriter
from modelgit.version import VERSION

Files = Mapping[str, Manifest | Blob | bytes]


def carry_out(repo: Repository, prepared: Prepared, listener: Listener = ignore, *, keep: bool = True) -> Made:
    """Returns the merged weight files; their objects are in the store with `keep`, else nowhere.

    Raises:
        MergeConflict: values that are not finite, or too large for their type. MissingObject, CorruptObject.
    """
    with using(prepared.choices.device), repo.store.begin() as pack:
        results = {path: one_file(repo, prepared, path, (pack, listener)) for path in prepared.plans}
        repaired = None
        if prepared.choices.repair:
            from modelgit.porcelain.merging.matching.repairing import repair  # brings PyTorch

            results, repaired = repair(repo, prepared, results, (pack, listener))
        if keep:
            pack.commit()
    return Made(results, repaired)


def one_file(repo: Repository, prepared: Prepared, path: str, to: tuple[PackWriter, Listener]) -> MergeResult:
    """Returns one merged weight file; its header says what all the models' headers say."""
    headers = [stored_header(repo.store, v.manifests[path]) for v in prepared.versions if path in v.manifests]
    shared = set(headers[0].metadata.items()).intersection(*(header.metadata.items() for header in headers[1:]))
    return execute(prepared.plans[path], to[0], repo.store, dict(sorted(shared)), to[1])


def draft_of(
    repo: Repository, prepared: Prepared, made: Made, parents: tuple[str, ...], message: str | None
) -> CommitDraft:
    """Returns the merge commit to be made, with all that is needed to recompute it in its trailers."""
    names = [member.name for member in prepared.heads]
    text = message or f"Merge {', '.join(names)} ({prepared.method.name})"
    record = write_record(merge_record(prepared, made))
    files: Files = {**made.manifests(), **prepared.files, RECORD_PATH: record}
    return CommitDraft(parents, files, text, merge_trailers(prepared, made))


def merge_trailers(prepared: Prepared, made: Made) -> tuple[tuple[str, str], ...]:
    """Returns what a merge commit says of itself; `read_trailers` of `checking` is its inverse."""
    inputs = [("Merge-Input", f"{v.commit} {contents_id(v)}") for v in prepared.versions]
    base = [("Merge-Base", base.commit) for base in prepared.bases]
    return (
        ("Merge-Method", prepared.method.name),
        *([("Merge-Method-File", digest)] if (digest := digest_of(prepared.method.name)) else []),
        ("Merge-Settings", compact(settings_of(prepared.method))),
        ("Merge-Weights", compact([member.weight for member in prepared.heads])),
        *found_trailers(prepared),
        *alignment_trailers(prepared, made),
        *device_trailer(prepared),
        ("Merge-Policy", compact(prepared.choices.policy())),
        *base,
        *inputs,
        ("Merge-Tool", f"modelgit {VERSION}"),
    )


def device_trailer(prepared: Prepared) -> list[tuple[str, str]]:
    """Returns the device that matrices were worked on by, where it is not the usual one."""
    return [("Merge-Device", prepared.choices.device)] if prepared.choices.device != "cpu" else []


def found_trailers(prepared: Prepared) -> tuple[tuple[str, str], ...]:
    """Returns what was found out before the merge, and the weights by layer that it is made with."""
    layers, found = prepared.choices.layers, prepared.findings
    rows = [("Merge-Layer-Weights", compact({layer: list(row) for layer, row in layers.items()}))] if layers else []
    if own := prepared.choices.layer_settings:
        rows.append(("Merge-Layer-Settings", compact({layer: dict(these) for layer, these in own.items()})))
    if (chosen := found.selection) is not None:
        rows.append(("Merge-Selection", compact({"mode": chosen.mode, "score": chosen.score, **asdict(chosen.on)})))
    if (best := found.search) is not None:
        told = {"what": best.what, "seed": best.seed, "score": best.best.score}
        rows.append(("Merge-Search", compact({**told, **asdict(best.on)})))
    return tuple(rows)


def alignment_trailers(prepared: Prepared, made: Made) -> tuple[tuple[str, str], ...]:
    """Returns how units were lined up and what was done to activations, all but a spec of the user's own."""
    rows = []
    if (lined := prepared.aligned) is not None:
        told = {key: value for key, value in asdict(lined).items() if key not in ("heads", "difference", "units")}
        rows.append(("Merge-Align", compact(told)))
    if (known := prepared.informed) is not None:
        taking_part = {member.commit for member in prepared.heads}
        rows.append(("Merge-Statistics", compact(asdict(among_those(known, taking_part)))))
    if made.repaired is not None:
        rows.append(("Merge-Repair", compact(asdict(made.repaired))))
    return tuple(rows)


def among_those(known: Informed, commits: Collection[str]) -> Informed:
    """Returns the statistics of some of the models."""
    return replace(known, heads=tuple(head for head in known.heads if head.commit in commits))


def found_before(prepared: Prepared) -> dict[str, Any]:
    """Returns what was found out before the merge, for the record: every evaluation."""
    parts = finite(asdict(prepared.findings))
    found = {name: part for name, part in parts.items() if part and name != "notes"}
    return {"findings": found} if found else {}


def lined_up(prepared: Prepared) -> dict[str, Any]:
    """Returns how units were lined up, for the record, with the spec if it is the user's own."""
    if prepared.aligned is None or prepared.choices.align is None:
        return {}
    table = prepared.choices.align.table
    return {"alignment": {**finite(asdict(prepared.aligned)), **({"spec": table} if table is not None else {})}}


def finite(value: Any) -> Any:
    """Returns a value as JSON can hold it: no score where there is no finite one."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compact(value: object) -> str:
    """Returns a value as one line of JSON, keys sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def merge_record(prepared: Prepared, made: Made) -> Record:
    """Returns the record of the result: what the models agree on, unless their heads were dropped or one was taken."""
    known = [record for record in prepared.records if record is not None]
    first, heads = prepared.records[0], prepared.choices.heads
    agreed = len(known) == len(prepared.records)
    architectures = {record.architecture for record in known} if agreed else {None}
    classes: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    taken = {"ours": first, "theirs": prepared.records[-1]}.get(heads)
    if taken is not None:
        classes, head = taken.classes, taken.head
    elif heads in ("error", "mean") and agreed:
        classes = known[0].classes if len({record.classes for record in known}) == 1 else ()
        head = known[0].head if len({record.head for record in known}) == 1 else ()
    details = {
        "method": prepared.method.name,
        "settings": dict(settings_of(prepared.method)),
        "bases": [base.commit for base in prepared.bases],
        "inputs": [{"name": m.name, "commit": m.commit, "weight": m.weight} for m in prepared.heads],
        "dropped": sorted({name for result in made.results.values() for name in result.dropped}),
        **found_before(prepared),
        **lined_up(prepared),
    }
    return Record("merge", architectures.pop() if len(architectures) == 1 else None, classes, head, details)
