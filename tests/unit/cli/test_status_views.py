"""What `status` says amid a conflict: for each sort of conflict what resolves it, and the ways on and out."""

import io

from modelgit.cli.screen.output import Output
from modelgit.cli.screen.views import view_of
from modelgit.repo.merging.underway import UnderWay, Unmerged, unmerged_paths
from modelgit.repo.worktree import Status

REBASE = UnderWay("rebase", "b onto main", "main", "1234567890 (b)", "git rebase --continue", "git rebase --abort")


def told(under_way: UnderWay | None, *conflicts: Unmerged) -> list[str]:
    out = io.StringIO()
    state = Status("main", "f" * 40, (), (), under_way=under_way, conflicts=conflicts)
    Output(out, io.StringIO()).result(state, view_of)
    return out.getvalue().splitlines()[1:]


def test_sides_are_named_as_git_has_them() -> None:
    assert told(REBASE, Unmerged("m.safetensors", "both modified"), Unmerged("a b.md", "both added")) == [
        "Under way: rebase of b onto main",
        "  conflict m.safetensors  both modified",
        "  conflict a b.md  both added",
        "  take ours (main): git checkout --ours m.safetensors && git add m.safetensors",
        "  take theirs (1234567890 (b)): git checkout --theirs m.safetensors && git add m.safetensors",
        "  edit, then: git add 'a b.md'",
        "  then go on: git rebase --continue",
        "  give it up: git rebase --abort",
    ]


def test_a_file_that_one_side_deleted_is_kept_or_deleted() -> None:
    assert told(None, Unmerged("x.safetensors", "deleted by us"), Unmerged("y", "deleted by them")) == [
        "  conflict x.safetensors  deleted by us",
        "  conflict y  deleted by them",
        "  keep or delete: git add FILE, or git rm FILE",
        "  undo what led here (a stash is kept): git reset --merge",
    ]


def test_resolved_conflicts_leave_the_ways_on_and_out() -> None:
    assert told(REBASE) == [
        "Under way: rebase of b onto main",
        "  go on: git rebase --continue",
        "  give it up: git rebase --abort",
        "Nothing has changed",
    ]


def test_kinds_of_conflict_follow_from_the_sides_that_are_there() -> None:
    stages = {"b": "123", "a": "31", "c": "2"}
    assert unmerged_paths(stages) == (
        Unmerged("a", "deleted by us"),
        Unmerged("b", "both modified"),
        Unmerged("c", "added by us"),
    )
