"""Can a replayed change be recomputed: the sum that a commit says it is, made again, id by id."""

import json
from typing import Any

from modelgit.errors import DifferencesFound, FormatError, RevisionError, UsageError
from modelgit.events import Listener
from modelgit.formats.manifest import Manifest
from modelgit.porcelain.replaying.making import carry_out
from modelgit.porcelain.replaying.planning import image_of, plan_change
from modelgit.porcelain.replaying.values import Change, Choices
from modelgit.porcelain.versions import contents_id
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version

ENDS = ("Replay-From", "Replay-To", "Replay-Onto")
VERBS = ("cherry-pick", "revert", "rebase")


def is_replay(version: Version) -> bool:
    """Tells whether a commit says that it replays a change."""
    return "Replay-Verb" in version.entry.trailers


def recompute(repo: Repository, version: Version, listener: Listener) -> tuple[Change, dict[str, Manifest]]:
    """Returns the change that a commit says it is, and the weight files that come of it. Stores nothing.

    Raises:
        UsageError: a commit it was made from is not here. DifferencesFound: it is not what it was, or stands elsewhere
        than the commit says. FormatError: what it says is malformed.
    """
    change, ends = read_trailers(version)
    onto = check_ends(repo, version, change, ends)
    planned = plan_change(repo, image_of(repo, onto.commit), change)
    return change, carry_out(repo, planned, listener, keep=False)[0]


def read_trailers(version: Version) -> tuple[Change, dict[str, tuple[str, str]]]:
    """Returns the change that a commit says it is, and the commits it was made from with the ids of their weights."""
    trailers, where = version.entry.trailers, f"commit {version.commit[:10]}"
    try:
        policy: dict[str, Any] = json.loads(trailers["Replay-Policy"][0])
        choices = Choices(float(json.loads(trailers["Replay-Scale"][0])), **policy)
        ends = {key: pair_of(trailers[key][0]) for key in ENDS}
        verb = trailers["Replay-Verb"][0]
        if verb not in VERBS or any(value not in ("keep", "add", "error", "ours") for value in policy.values()):
            raise ValueError(f"{verb}, {policy}")
        source = trailers["Replay-Of"][0]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        hint = "the commit was written by hand, or by a later modelgit"
        raise FormatError(f"{where}: malformed replay trailers: {error}", hint=hint) from error
    return Change(verb, source, ends["Replay-From"][0], ends["Replay-To"][0], choices), ends  # type: ignore[arg-type]


def pair_of(text: str) -> tuple[str, str]:
    """Returns a commit and the id of its weights. Raises ValueError."""
    commit, contents = text.split()
    return commit, contents


def check_ends(repo: Repository, version: Version, change: Change, ends: dict[str, tuple[str, str]]) -> Version:
    """Returns the version that the change was applied to, once all of them are what the commit says."""
    short, onto = version.commit[:10], ends["Replay-Onto"][0]
    found: dict[str, Version] = {}
    for key, (commit, _) in ends.items():
        try:
            found[key] = repo.version(repo.resolve(commit))
        except RevisionError as error:
            hint = "fetch the branch that it was on; or it was let go of, once nothing led to it"
            raise UsageError(f"{short} cannot be recomputed: commit {commit[:10]} is not here", hint=hint) from error
    if version.entry.parents != (onto,):
        raise DifferencesFound(f"{short}: not on top of {onto[:10]}, which it says it was made from")
    child, parent = (change.base, change.theirs) if change.verb == "revert" else (change.theirs, change.base)
    if child != change.source or parent not in repo.version(child).entry.parents:
        raise DifferencesFound(f"{short}: {change.source[:10]} is not the change it says")
    changed = [ends[key][0][:10] for key, one in found.items() if contents_id(one) != ends[key][1]]
    if changed:
        raise DifferencesFound(f"{short}: inputs with other weights than recorded: {', '.join(changed)}")
    return found["Replay-Onto"]
