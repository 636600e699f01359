"""Plain git merges weights: branches by their mean, changes by adding them; what cannot be merged is a conflict."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from plain_git import MODEL, Tensors, clean, commit, copied, git, leftovers, load, modelgit, moved, run, save, tensors
from safetensors import safe_open
from safetensors.numpy import save_file

from modelgit.formats.manifest import is_manifest, parse

BASE = tensors()
OURS = moved(BASE, {"a.weight": 0.5, "b.weight": 1.0})
THEIRS = moved(BASE, {"a.weight": -0.25, "c.weight": 2.0})
RECORD = ".modelgit/record.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: two branches, `ours` (main) and `theirs`, tagged, that moved apart from `base`."""
    work = tmp_path_factory.mktemp("made") / "work"
    modelgit(work.parent, "init", str(work))
    write_record(work, ())
    commit(work, BASE, "base")
    git(work, "tag", "base")
    git(work, "switch", "--quiet", "-c", "theirs")
    write_record(work, ("cat", "dog"))
    commit(work, THEIRS, "theirs")
    git(work, "switch", "--quiet", "main")
    write_record(work, ("cat", "dog"), "ours")
    commit(work, OURS, "ours")
    git(work, "tag", "ours")
    return work


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it; nothing unfinished may be left there."""
    work = copied(made, tmp_path / "work")
    yield work
    assert leftovers(work) == []


def write_record(work: Path, classes: tuple[str, ...], architecture: str | None = None) -> None:
    (work / ".modelgit").mkdir(exist_ok=True)
    record: dict[str, object] = {
        "kind": "train",
        "architecture": architecture,
        "classes": classes,
        "head": [],
        "details": {},
    }
    (work / RECORD).write_text(json.dumps(record, indent=1))


def mean(one: Tensors, other: Tensors) -> Tensors:
    return {name: ((one[name].astype(np.float64) + other[name]) / 2).astype(np.float32) for name in one}


def added(ours: Tensors, theirs: Tensors, base: Tensors) -> Tensors:
    wide = {n: [m[n].astype(np.float64) for m in (ours, theirs, base)] for n in ours}
    return {n: (o + t - b).astype(np.float32) for n, (o, t, b) in wide.items()}


def same(place: Path, values: Mapping[str, object]) -> bool:
    found = load(place)
    return found.keys() == values.keys() and all(np.array_equal(found[name], values[name]) for name in values)  # type: ignore[arg-type]


def codecs(place: Path) -> dict[str, str]:
    """Returns how each tensor of HEAD is stored."""
    from modelgit.repo.repository import Repository

    repo = Repository.open(place)
    manifest = parse(git(place, "show", "--no-textconv", f"HEAD:{MODEL}"), MODEL)
    return {entry.name: repo.store.info(entry.oid).codec for entry in manifest.tensors}


def test_a_merge_is_the_mean_and_costs_recipes(place: Path) -> None:
    git(place, "merge", "--quiet", "theirs")
    assert same(place, mean(OURS, THEIRS)) and clean(place)
    assert git(place, "rev-list", "--parents", "-1", "HEAD").split()[1:] == [
        git(place, "rev-parse", name).strip() for name in ("ours", "theirs")
    ]
    assert set(codecs(place).values()) == {"linear"}
    by_git = git(place, "rev-parse", f"HEAD:{MODEL}")
    record = json.loads((place / RECORD).read_text())
    assert (record["kind"], record["classes"], record["architecture"]) == ("merge", ["cat", "dog"], None)
    git(place, "reset", "--quiet", "--hard", "theirs")
    git(place, "merge", "--quiet", "ours")
    assert git(place, "rev-parse", f"HEAD:{MODEL}") == by_git, "the order of names reaches no byte"
    git(place, "reset", "--quiet", "--hard", "ours")
    modelgit(place, "merge", "theirs", "--files", "ours")
    assert git(place, "rev-parse", f"HEAD:{MODEL}") == by_git, "the same engine"
    assert modelgit(place, "fsck", "--full").startswith("ok")


def test_a_cherry_pick_adds_what_a_commit_changed_and_a_revert_takes_it_back(place: Path) -> None:
    git(place, "cherry-pick", "theirs")
    expected = added(OURS, THEIRS, BASE)
    assert same(place, expected) and clean(place)
    stored = codecs(place)
    assert stored["a.weight"] == "linear" and "linear" not in (stored["b.weight"], stored["c.weight"])
    assert json.loads((place / RECORD).read_text())["architecture"] == "ours"
    modelgit(place, "revert", "--no-edit", "ours")
    assert same(place, added(expected, BASE, OURS)) and clean(place)
    np.testing.assert_allclose(load(place)["a.weight"], THEIRS["a.weight"], atol=1e-6)
    assert np.array_equal(load(place)["b.weight"], BASE["b.weight"]), "what one side changed is taken as it is"


def test_rebase_and_am_replay_changes(place: Path) -> None:
    patch = git(place, "format-patch", "-1", "theirs", "-o", str(place.parent)).strip()
    expected = added(OURS, THEIRS, BASE)
    git(place, "am", "--3way", "--quiet", patch)
    assert same(place, expected) and clean(place)
    git(place, "switch", "--quiet", "theirs")
    modelgit(place, "rebase", "main~1")
    assert same(place, expected) and clean(place)
    assert git(place, "rev-parse", "theirs~1") == git(place, "rev-parse", "ours")


def test_a_redone_merge_is_a_merge_again(place: Path) -> None:
    git(place, "merge", "--quiet", "--no-ff", "theirs")
    (place / "more.txt").write_text("a commit to put below")
    git(place, "switch", "--quiet", "-c", "below", "base")
    git(place, "add", "more.txt")
    git(place, "commit", "--quiet", "--message", "more")
    git(place, "switch", "--quiet", "main")
    git(place, "rebase", "--quiet", "--rebase-merges", "--force-rebase", "below")
    assert len(git(place, "rev-list", "--parents", "-1", "HEAD").split()) == 3
    assert same(place, mean(OURS, THEIRS)) and clean(place)


def test_stashed_changes_are_added_to_new_weights(place: Path) -> None:
    git(place, "switch", "--quiet", "--detach", "base")
    save(place, THEIRS)
    git(place, "stash", "--quiet", "--", MODEL)
    git(place, "switch", "--quiet", "main")
    git(place, "stash", "pop", "--quiet")
    assert same(place, added(OURS, THEIRS, BASE))
    assert MODEL in git(place, "status", "--porcelain")


def test_shapes_that_differ_are_a_conflict_and_ours_stays(place: Path) -> None:
    git(place, "switch", "--quiet", "-c", "reshaped", "base")
    commit(place, {**THEIRS, "a.weight": np.zeros((3, 4), np.float32)}, "reshaped")
    git(place, "switch", "--quiet", "main")
    done = run(place, "git", "merge", "reshaped", code=1)
    assert f"{MODEL}:\nerror: models cannot be merged: a.weight: expected [" in done.stderr
    assert "hint: If it is the head of another task" in done.stderr
    assert "git merge --abort), then: modelgit merge reshaped --heads ours --head-name a; or take" in done.stderr
    assert git(place, "status", "--porcelain", "--", MODEL) == f"UU {MODEL}\n"
    assert same(place, OURS), "a real file, ours, while the conflict lasts"
    assert git(place, "diff", "--", MODEL).startswith(f"diff --cc {MODEL}\n")
    assert git(place, "diff", "--ours", "--", MODEL).startswith(f"* Unmerged path {MODEL}\n")
    assert "MODELGIT_MERGE=merge" in run(place, "git", "checkout", "--merge", "--", MODEL, code=None).stderr
    git(place, "checkout", "--theirs", "--", MODEL)
    assert load(place)["a.weight"].shape == (3, 4)
    git(place, "merge", "--abort")
    assert same(place, OURS) and clean(place)
    assert "models cannot be merged" in run(place, "git", "cherry-pick", "reshaped", code=1).stderr
    git(place, "checkout", "--ours", "--", MODEL)
    git(place, "add", MODEL)
    assert same(place, OURS)
    git(place, "cherry-pick", "--abort")


def test_infinities_are_refused_by_both(place: Path) -> None:
    git(place, "switch", "--quiet", "-c", "broken", "base")
    bad = moved(BASE, {"a.weight": 1})
    bad["a.weight"][0, 0] = np.inf
    commit(place, bad, "broken")
    git(place, "switch", "--quiet", "main")
    for verb in ("merge", "cherry-pick"):
        assert "infinity or not-a-number" in run(place, "git", verb, "broken", code=1).stderr
        git(place, verb, "--abort")
    assert same(place, OURS) and clean(place)


def test_tensors_that_come_and_go_and_counters(place: Path) -> None:
    git(place, "switch", "--quiet", "-c", "pruned", "base")
    steps = {"steps": np.array([7], np.int64)}
    fewer = {name: value for name, value in BASE.items() if name != "c.weight"}
    save_file({**fewer, **steps}, place / MODEL, {"format": "pt"})
    git(place, "commit", "--quiet", "--all", "--message", "pruned")
    git(place, "switch", "--quiet", "main")
    git(place, "cherry-pick", "pruned")
    found = load(place)
    assert found.keys() == {"a.weight", "b.weight", "steps"} and int(found["steps"][0]) == 7
    assert np.array_equal(found["a.weight"], OURS["a.weight"])
    assert clean(place)
    git(place, "reset", "--quiet", "--hard", "ours")
    assert "absent from" in run(place, "git", "merge", "pruned", code=1).stderr
    git(place, "merge", "--abort")


def test_ours_keeps_its_header_and_the_mean_what_all_headers_say(place: Path) -> None:
    git(place, "reset", "--quiet", "--hard", "base")
    save_file(OURS, place / MODEL, {"format": "pt", "by": "me"})
    git(place, "commit", "--quiet", "--all", "--message", "with metadata")
    git(place, "tag", "told")
    git(place, "cherry-pick", "theirs")
    with safe_open(place / MODEL, "numpy") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}
    git(place, "reset", "--quiet", "--hard", "ours")
    git(place, "cherry-pick", "told")
    with safe_open(place / MODEL, "numpy") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}, "a change of the header alone is a change too"
    assert same(place, OURS), "what both changed alike is taken once"
    git(place, "reset", "--quiet", "--hard", "told")
    git(place, "merge", "--quiet", "theirs")
    with safe_open(place / MODEL, "numpy") as file:
        assert not file.metadata()


def test_without_an_index_git_does_not_say_what_it_wants(place: Path) -> None:
    done = run(place, "git", "merge-tree", "--write-tree", "main", "theirs", code=1)
    assert "MODELGIT_MERGE=merge" in done.stderr
    tree = run(
        place, "env", "MODELGIT_MERGE=merge", "git", "merge-tree", "--write-tree", "main", "theirs"
    ).stdout.strip()
    assert is_manifest(git(place, "cat-file", "blob", f"{tree}:{MODEL}").encode()[:64])
    git(place, "merge", "--quiet", "theirs")
    assert git(place, "rev-parse", f"HEAD:{MODEL}") == git(place, "rev-parse", f"{tree}:{MODEL}")


def test_the_method_is_what_git_is_configured_to(place: Path) -> None:
    git(place, "config", "modelgit.merge.method", "task_arithmetic")
    git(place, "config", "--add", "modelgit.merge.set", "scale=0.5")
    git(place, "config", "modelgit.merge.weights", "2,1")
    git(place, "merge", "--quiet", "theirs")
    wide = {n: [m[n].astype(np.float64) for m in (OURS, THEIRS, BASE)] for n in OURS}
    expected = {n: (b + 0.5 * (2 * (o - b) + (t - b))).astype(np.float32) for n, (o, t, b) in wide.items()}
    assert all(np.allclose(load(place)[name], values, rtol=0, atol=1e-6) for name, values in expected.items())
    details = json.loads((place / RECORD).read_text())["details"]
    assert (details["method"], details["settings"], details["weights"]) == ("task_arithmetic", {"scale": "0.5"}, [2, 1])


def test_a_method_for_once(place: Path) -> None:
    git(place, "-c", "modelgit.merge.method=wise_ft", "-c", "modelgit.merge.set=alpha=0", "merge", "--quiet", "theirs")
    assert same(place, BASE)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("method", "ties2", "no merge method 'ties2'"),
        ("method", "mine.py:f", "name it on the command line"),
        ("set", "density", "expected KEY=VALUE"),
        ("set", "density=1", "method linear has no setting 'density'"),
        ("weights", "1,2,3", "expected two numbers"),
        ("metod", "ties", "no such setting; known: method, set, weights"),
    ],
)
def test_configuration_that_makes_no_sense_is_a_conflict(place: Path, key: str, value: str, expected: str) -> None:
    done = run(place, "git", "-c", f"modelgit.merge.{key}={value}", "merge", "theirs", code=1)
    assert expected in done.stdout + done.stderr
    git(place, "merge", "--abort")
    assert clean(place) and same(place, OURS)
