"""What people see: each result piped, and on a terminal. A change here is a change of the interface."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest

from modelgit.cli.screen.output import Output
from modelgit.cli.screen.views import VIEWS, view_of
from modelgit.formats.manifest import ManifestDiff, TensorEntry
from modelgit.merge.methods.describing import MethodInfo, MethodList, SettingInfo
from modelgit.pipeline.outcome import Row, Spread
from modelgit.pipeline.start import Ran, RanEach
from modelgit.porcelain.checking import Verified
from modelgit.porcelain.comparing import Difference, LayerChange, TensorChange
from modelgit.porcelain.executing import Executed
from modelgit.porcelain.merging.values import Cost, Merged, MergedHead
from modelgit.porcelain.plumbing.headers import DtypeChange, MetadataChange
from modelgit.porcelain.records import Record
from modelgit.porcelain.replaying.blaming import Blamed, BlamedLayer, BlamedTensor
from modelgit.porcelain.replaying.values import Replayed, ReplayedStep
from modelgit.porcelain.reporting.evaluating import Evaluation
from modelgit.porcelain.reporting.values import Answered, Comparison, Estimate, Report
from modelgit.porcelain.scorebook import Score
from modelgit.porcelain.sharing import Cloned, Exported, Initialised, Transferred
from modelgit.porcelain.training.committing import Trained
from modelgit.porcelain.training.rerunning import Retrained
from modelgit.porcelain.trials.values import (
    Attempt,
    Barriers,
    Findings,
    Holdout,
    Measured,
    PathPoint,
    Search,
    Selection,
    Tried,
)
from modelgit.porcelain.trials.values import Path as StraightPath
from modelgit.porcelain.upkeep.collecting import Swept
from modelgit.porcelain.upkeep.damage import Checked
from modelgit.porcelain.upkeep.usage import BranchUse, Saved, TensorUse, Usage, VersionUse
from modelgit.porcelain.versions import FileReport, History, HistoryEntry, VersionReport
from modelgit.porcelain.work import Added, CheckedOut, Committed
from modelgit.repo.values import Upstream
from modelgit.repo.worktree import Change, Status

A, B, C, D = (letter * 40 for letter in "abcd")
DAY = 1_700_000_000
SNAPSHOTS = Path(__file__).parent / "snapshots"
SCORES = (Score("emoji", "{}", {"val_accuracy": 0.8125, "ood_accuracy": 0.75, "val_accuracy/noto": 0.5}),)
ENTRY = TensorEntry("layer.weight", "F32", (2, 3), "0" * 64)
MERGE = Merged(
    kind="merge",
    commit=C,
    branch="main",
    method="linear",
    settings={"normalize": True},
    bases=(D,),
    heads=(MergedHead("reviews", A, 1.0), MergedHead("tweets", B, 0.5)),
    copied=1,
    recipes=2,
    dropped=("head.weight",),
    notes=("a and b are one tensor in reviews only: the result has two",),
    scores={"accuracy": 0.75},
)
LINEAR = MethodInfo(
    name="linear",
    gives="The weighted mean.",
    text="The weighted mean.\n\nWith equal weights, the uniform soup.",
    source="Wortsman et al. 2022",
    models="1 or more",
    base="not used",
    weights="used",
    stored="recipe",
    settings=(SettingInfo("normalize", "bool", True, "divide by the sum of the weights"),),
)
ON = Measured("emoji", "f" * 64, "accuracy", lower_is_better=False)
LOSS = Measured("emoji", None, "loss.py:mean", lower_is_better=True)
FIRST = Tried("reviews", A, 0.75, 0.75, kept=True, round=0, known=True)
GREEDY = Selection("greedy", ON, (FIRST, Tried("tweets", B, 0.5, 0.7, kept=False, round=1, known=False)), 0.75, 1, 1, 2)
ROUNDS = (
    Tried("tweets", B, 0.5, 0.7, kept=False, round=1, known=False),
    Tried("news", C, 0.6, 0.8, kept=True, round=1, known=False),
    Tried("tweets", B, 0.5, math.nan, kept=False, round=2, known=False),
)
GREEDIER = Selection("greedier", ON, (FIRST, *ROUNDS), 0.8, 2, 3, 3)
ATTEMPTS = (Attempt({"reviews": 0.5, "tweets": 0.5}, 0.9), Attempt({"reviews": 1.0, "tweets": 0.0}, 0.4))
SEARCH = Search("weights", LOSS, 0, 30, ATTEMPTS, ATTEMPTS[1])
POINTS = (PathPoint(0.0, 0.75, 0.75), PathPoint(0.5, 0.5, 0.65), PathPoint(1.0, 0.55, 0.55))
LEVEL = StraightPath("reviews", "news", (PathPoint(0.0, 0.75, 0.75), PathPoint(1.0, 0.75, 0.75)), 0.0, 0.0)
PATHS = Barriers(ON, (StraightPath("reviews", "tweets", POINTS, 0.15, 0.5), LEVEL), 5, "paths.svg")
PICKED = ReplayedStep(A, D, B, "Learn to count", 0.5, 7, 1, 2, 1, ("config.json",), ("n: integers are not added",) * 7)
BLAMED = (
    BlamedTensor("model.safetensors", "enc.0.weight", 6, A, "Ada <a@b>", DAY, "Fine-tune", False, 0.0123),
    BlamedTensor("model.safetensors", "head.weight", 6, C, "Bob <b@b>", DAY, "Average", True),
)
TWEETS = Answered(
    "tweets",
    B,
    Estimate(0.75),
    {"noto": Estimate(0.5), "twemoji": Estimate(1.0)},
    None,
    None,
    0.125,
    (0.1, 0.2),
    (),
    (),
)
COMPARED = Comparison("emoji", "f", "every domain", 40, ("noto",), "", (TWEETS,), TWEETS, (), (), None, (), 1)
TRAINED = Record(
    "train",
    "mlp",
    ("bar", "cup"),
    ("head.weight",),
    {
        "start": A,
        "config": {"steps": 140, "lr": 3e-4, "seed": 5, "precision": "float32"},
        "data": {
            "path": "emoji.zip",
            "digest": "7d" * 32,
            "held_out": "fluent",
            "trial": 1,
            "trained_on": {"noto": 1_039, "open\x1b[31mmoji": 39},
        },
        "device": "cpu",
        "machine": {"cpu": "EPYC", "threads": 2, "together": 1},
        "seconds": 61.25,
        "versions": {"torch": "2.13.0", "modelgit": "0.1.0"},
        "history": [
            {"step": 0, "loss": None, "val_accuracy": 0.5, "val_loss": 0.7, "domains": {"noto": 0.25}},
            *(
                {"step": 10 * i, "loss": 1 / i, "val_accuracy": 0.5 + i / 100, "val_loss": 0.5 / i, "domains": {}}
                for i in range(1, 14)
            ),
            {"step": 140, "loss": 1e9, "val_accuracy": float("nan"), "val_loss": "much", "domains": []},
            "nothing",
        ],
        "kept_step": 80,
    },
)
RESULTS: dict[str, object] = {
    "report": Report("models", ("tweets",), (), 3, (), COMPARED, "report.html"),
    "cherry-pick": Replayed("cherry-pick", B, "main", D, D, (PICKED,)),
    "revert-files": Replayed("revert", None, "main", D, D, (ReplayedStep(A, D, None, "Tune", 1.0, 7, 1, 0, 0),)),
    "rebase": Replayed("rebase", B, "tweets", D, A, (ReplayedStep(A, D, B, "Tune", 1.0, 7, 1, 3, 0),), (C,)),
    "rebase-dry-run": Replayed(
        "rebase", None, None, D, A, (ReplayedStep(A, D, None, "Tune", 1.0, 7, 1, 0, 3),), (), dry_run=True
    ),
    "rebase-forward": Replayed("fast-forward", A, "main", A, D),
    "rebase-up-to-date": Replayed("up-to-date", A, "main", D, A),
    "blame": Blamed(C, BLAMED, (), 2, stat=False),
    "blame-stat": Blamed(C, BLAMED, (), 2, stat=True),
    "blame-layers": Blamed(
        C, (), (BlamedLayer("enc", 12, 600, A, "Ada <a@b>", DAY, "Fine-tune", False, 0.5),), 1, True
    ),
    "init": Initialised("models", "/x/models/.git", "main", bare=False),
    "init-bare": Initialised("shared.git", "/x/shared.git", "main", bare=True),
    "commit": Committed(A, "main", "First version", (), 2, 0, 0, 0, 18_800_000, 12_500_000, ("model.safetensors",)),
    "commit-ordinary": Committed(A, "main", "Scripts", (), 0, 0, 0, 0, 0, 0, ("train.py",)),
    "commit-nothing": Committed(B, "main", "Import base", (A,), 0, 0, 0, 204, 18_800_000, 0),
    "import": Committed(
        B, "main", "Import", (A,), 2, 0, 1, 0, 9, 9, tuple(f"{i}.safetensors" for i in range(14)), ("train.py", "x.md")
    ),
    "commit-detached": Committed(B, None, "Tune", (A,), 0, 3, 1, 200, 18_800_000, 4_700_000, ("model.safetensors",)),
    "add": Added(("config.json",)),
    "checkout": CheckedOut(A, "main"),
    "checkout-new": CheckedOut(A, "reviews", created=True),
    "checkout-kept": CheckedOut(A, "main", kept=tuple(Change(f"{i}.txt", "modified") for i in range(14)), left=B),
    "checkout-detached": CheckedOut(A, None),
    "status-empty": Status("main", None, (), ()),
    "status-detached": Status(None, A, (), ()),
    "status-tagged": Status(None, A, (), (), tag="v1"),
    "status-ignored": Status("main", None, (), (), ignored=("a model.safetensors",)),
    "status-elsewhere": Status("master", None, (), (), elsewhere=("main", "other")),
    "status-follows": Status("main", A, (), (), upstream=Upstream("origin/main", 0, 0)),
    "status-ahead": Status("main", A, (), (), upstream=Upstream("origin/main", 1, 0)),
    "status-diverged": Status(
        "main", A, (Change("run.sh", "modified", mode="100755"),), (), upstream=Upstream("origin/main", 2, 1)
    ),
    "status-clean": Status("main", A, (), ()),
    "status": Status(
        "main",
        A,
        (
            Change("model.safetensors", "modified", ManifestDiff((), (), ((ENTRY, ENTRY),), 7)),
            Change("new.safetensors", "new"),
            Change("broken.safetensors", "modified", problem="/x/models/broken.safetensors: truncated"),
        ),
        ("notes.txt", "two\nlines.txt"),
    ),
    "log": History(
        (
            HistoryEntry(C, (A, B), ("main",), "Ada", DAY, "Average", "linear", 2, SCORES),
            HistoryEntry(B, (D,), ("tweets",), "Ada", DAY, "Fine-tune \x1b[31mred", None, 0, ()),
            HistoryEntry(A, (D,), (), "Ada", DAY, "Fine-tune", None, 0, ()),
            HistoryEntry(D, (), ("v1", "tag: v1.0"), "Ada", DAY, "Foundation model", None, 0, ()),
        ),
        graph=True,
    ),
    "show": VersionReport(
        commit=C,
        parents=(A, B),
        refs=("main",),
        author="Ada <ada@example.org>",
        date=DAY,
        message="Average\n\nMerge-Method: linear",
        trailers={"Merge-Method": ["linear"]},
        contents="e" * 64,
        files=(
            FileReport("config.json", False, None, 0, 0),
            FileReport("model.safetensors", True, 18_800_000, 204, 4_652_008),
            FileReport("whole.safetensors", False, None, 0, 0),
        ),
        tensors=204,
        parameters=4_652_008,
        size_bytes=18_800_000,
        record=Record("merge", "efficientnet-lite0", ("cat", "dog"), ("head.weight",)),
        scores=SCORES,
        dtypes=(DtypeChange("F32", "BF16", 204),),
        metadata=None,
    ),
    "show-trained": VersionReport(
        commit=C,
        parents=(A,),
        refs=("main",),
        author="Ada <ada@example.org>",
        date=DAY,
        message="Fine-tune on emoji",
        trailers={},
        contents="e" * 64,
        files=(FileReport("model.safetensors", True, 206_000, 6, 51_395),),
        tensors=6,
        parameters=51_395,
        size_bytes=206_000,
        record=TRAINED,
        scores=(),
    ),
    "diff": Difference(
        A,
        B,
        7,
        (
            TensorChange("model.safetensors", "layer.weight", "changed", "F32", (2, 3), 0.5, 0.0123456, 0.99995),
            TensorChange(
                "model.safetensors", "head.weight", "shape", "F32", (), None, None, None, 3, 1, "F32", (2, 1000)
            ),
            TensorChange("model.safetensors", "norm", "dtype", "BF16", (4,), None, None, None, 0, 0, "F32", (4,)),
        ),
        (),
        ("config.json",),
        dtypes=(DtypeChange("F32", "BF16", 1),),
        metadata=(
            MetadataChange("model.safetensors", "author", None, "Ada " * 30),
            MetadataChange("model.safetensors", "epoch", "3", "4"),
            MetadataChange("model.safetensors", "note", "draft", None),
        ),
    ),
    "diff-files": Difference(
        A,
        None,
        7,
        (
            TensorChange("a.safetensors", "layer.weight", "changed", "F32", (2, 3), 0.5, 0.0123456, 0.99995),
            TensorChange("b.safetensors", "layer.weight", "removed", "F32", (2, 3), None, None, None),
        ),
        (),
        (),
        (("old.safetensors", "new.safetensors"),),
        weight_files=3,
        metadata=(MetadataChange("a.safetensors", "epoch", "3", "4"),),
        rewritten=("b.safetensors",),
    ),
    "diff-stat": Difference(A, B, 7, (), (LayerChange("blocks.0", 12, 3, 1000, 0.25, 0.0123, 7),), ()),
    "diff-nothing": Difference(A, B, 8, (), (), ()),
    "merge": MERGE,
    "merge-forward": Merged("fast-forward", A, "main"),
    "merge-up-to-date": Merged("up-to-date", A, "main"),
    "merge-dry-run": Merged("dry-run", None, "main", "ties", {"density": 0.2}, (), MERGE.heads, 1, 0, 2),
    "merge-dry-run-forward": Merged("dry-run", A, "main"),
    "merge-plan": replace(MERGE, kind="dry-run", commit=None, cost=Cost(1_206_000_000, 402_000_000, {"merged": 38})),
    "merge-not-committed": replace(MERGE, kind="not-committed", commit=None),
    "merge-criss-cross": replace(MERGE, bases=(A, B)),
    "merge-aborted": Merged("aborted", A, "main"),
    "merge-list": MethodList((LINEAR, replace(LINEAR, name="ties"), LINEAR, replace(LINEAR, settings=()))),
    "merge-list-one": MethodList((LINEAR,)),
    "clone": Cloned("../shared.git", "copy", "main", A),
    "clone-empty": Cloned("../shared.git", "copy", "main", None),
    "push": Transferred("push", "origin", {"main": A}, 12, 4_700_000),
    "fetch-objects": Transferred("fetch", "origin", {}, 12, 4_700_000),
    "pull": Transferred("pull", "origin", {"refs/remotes/origin/main": A}, 12, 4_700_000, ("main", A)),
    "pull-fetched": Transferred("pull", "origin", {}, 0, 0, ("main", A)),
    "fetch-nothing": Transferred("fetch", "origin", {}, 0, 0),
    "export": Exported(A, "out", ("config.json", "model.safetensors"), 18_800_123),
    "verify": Verified(C, "linear", (A, B), 1, 204),
    "verify-selection": Verified(C, "linear", (A, B), 1, 204, ("selection",)),
    "merge-greedy": Merged("merge", C, "main", "linear", {}, (D,), MERGE.heads, 1, 2, findings=Findings(GREEDY)),
    "merge-greedier": Merged("up-to-date", C, "main", findings=Findings(GREEDIER, notes=("chosen by this very data",))),
    "merge-search": Merged(
        "merge",
        C,
        "main",
        "linear",
        {},
        (D,),
        MERGE.heads,
        1,
        2,
        findings=Findings(None, SEARCH, PATHS, Holdout("new", 0.7)),
    ),
    "barrier": PATHS,
    "exec": Executed(
        ("python", "train.py"), 0, 12.5, C, "main", ("metrics.json", "model.safetensors"), {"data": D + D[:24]}
    ),
    "exec-nothing": Executed(("python", "look.py"), 0, 0.25, None, "main", (), {}),
    "verify-trained": Retrained(C, "train", "cpu", 204, True, 0.0),
    "verify-trained-elsewhere": Retrained(
        C, "train", "cuda", 204, False, 0.0031, first="_fc.bias", largest=2.4e-5, notes=("device: then cpu, now cuda",)
    ),
    "commit-recipe": Trained(
        commit=C,
        branch="main",
        subject="Fine-tune on emojidg, 200 steps, learning rate 0.0001",
        parents=(A,),
        kind="train",
        data="emojidg",
        device="cpu",
        threads=2,
        steps=200,
        seconds=61.25,
        values={"val_accuracy": 0.8125, "ood_accuracy": 0.75, "val_accuracy/noto": 0.8125},
        images={"val_accuracy/noto": 96, "ood_accuracy": 312},
        changed=120,
        same=84,
        size_bytes=18_800_000,
        stored_bytes=9_300_000,
        kept_step=160,
        start_accuracy=0.625,
    ),
    "fsck": Checked(4, 1200, full=False),
    "fsck-full": Checked(1, 1, full=True),
    "fsck-repair": Checked(4, 1200, full=False, salvaged=7, brought=2, put_aside=("packs/aa.pack",)),
    "du": Usage(
        (
            VersionUse(C, "Average", ("main",), 18_800_000, 17_500_000, 5_000),
            VersionUse(A, "Fine-tune", (), 18_800_000, 17_500_000, 5_000_000),
            VersionUse(D, "Foundation model", ("v1",), 18_800_000, 12_500_000, 0),
        ),
        (BranchUse("main", 3, 17_500_000, 5_005_000), BranchUse("old", 1, 12_500_000, 0)),
        (
            TensorUse("e" * 64, "embed.weight", 9_000_000, 7_000_000, "full", 0, 3),
            TensorUse("f" * 64, "embed.weight", 9_000_000, 2_000_000, "delta", 1, 2),
            TensorUse("0" * 64, "head.weight", 1_000_000, 300, "linear", 2, 1),
        ),
        56_400_000,
        17_505_000,
        Saved(18_000_000, 9_000_000, 8_000_000, 3_895_000),
        22_000_000,
        3_000_000,
        1_495_000,
    ),
    "du-clean": Usage((), (), (), 0, 0, Saved(0, 0, 0, 0), 1_000, 0, 0),
    "du-nothing": Usage((), (), (), 0, 0, Saved(0, 0, 0, 0), 0, 0, 0),
    "gc": Swept(False, 9_000_000, 6_000_000, 30, 2, 1_000_000, 5_000_000, None, ("/x/.a.tmp",), False),
    "gc-deep": Swept(False, 9_000_000, 6_000_000, 30, 1, 0, 9_000_000, 2_900_000, (), True),
    "gc-dry-run": Swept(True, 9_000_000, 6_000_000, 30, 2, 0, 3_000_000, None, (), False),
    "gc-nothing": Swept(False, 9_000_000, 9_000_000, 3, 3, 0, 0, None, (), False),
    "run": Ran(
        "ratatouille",
        "build/demo",
        ("base", "main"),
        ("probe",),
        A,
        (
            Row("recycling", "recycling", 3, Spread(0.7, 0.01, "seeds"), Spread(0.8, float("nan"), "runs"), None, (A,)),
            Row("probe", "linear probe", 1, None, None, None, ()),
        ),
        ("report.svg",),
        200.0,
    ),
    "run-again": Ran("ratatouille", "build/demo", (), ("base", "main"), None, (), (), 1.0),
    "run-several": RanEach(
        (
            Ran("digits", "build/digits", ("base",), (), None, (), (), 1.0),
            Ran("texts", "build/texts", (), ("base", "main"), A, (), (), 1.0),
        )
    ),
    "evaluate": Evaluation(
        A,
        "emoji",
        {"accuracy": 0.75, "accuracy/noto": 0.7, "ece": 0.04},
        {"accuracy/noto": 311},
        {"accuracy/noto": (0.647, 0.748)},
        ("face", "noto"),
    ),
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(name: str, stream: io.StringIO) -> str:
    """Returns how a result looks on a stream."""
    Output(stream, io.StringIO()).result(RESULTS[name], view_of)
    return stream.getvalue()


def test_every_kind_of_result_is_here() -> None:
    assert {type(result).__name__ for result in RESULTS.values()} == set(VIEWS)


@pytest.mark.parametrize("name", RESULTS)
def test_piped(name: str) -> None:
    text = shown(name, io.StringIO())
    assert text == (SNAPSHOTS / f"{name}.txt").read_text()
    assert "\x1b" not in text
    assert all(row == row.rstrip() for row in text.splitlines())


@pytest.mark.parametrize("name", RESULTS)
def test_on_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for variable in ("NO_COLOR", "FORCE_COLOR", "CI", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    assert shown(name, Terminal()) == (SNAPSHOTS / f"{name}.tty").read_bytes().decode()


def test_a_narrow_terminal_cuts_subjects_and_keeps_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    uses = (VersionUse(C, "word " * 40, ("main",), 18_800_000, 17_500_000, 5_000),)
    stream = Terminal()
    Output(stream, io.StringIO()).result(
        Usage(uses, (), (), 18_800_000, 17_500_000, Saved(0, 0, 0, 0), 1, 0, 0), view_of
    )
    row = stream.getvalue().splitlines()[-1]
    assert row.startswith("cccccccccc  18.8 MB  17.5 MB  5.0 kB  ")
    assert row.endswith("…")


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = ("\x1b[3", "\x1b[9")
    assert not any(code in shown(name, Terminal()) for name in RESULTS for code in coloured)


@pytest.mark.parametrize("name", RESULTS)
def test_quiet_is_ids_alone(name: str) -> None:
    stream = io.StringIO()
    Output(stream, io.StringIO(), quiet=True).result(RESULTS[name], view_of)
    assert all(" " not in row for row in stream.getvalue().splitlines())


def write_snapshots() -> None:
    """Writes what results look like now: look at the difference before you commit it."""
    import os

    os.environ.update({"TERM": "xterm-256color", "COLUMNS": "100"})
    os.environ.pop("NO_COLOR", None)
    SNAPSHOTS.mkdir(exist_ok=True)
    for name in RESULTS:
        (SNAPSHOTS / f"{name}.txt").write_text(shown(name, io.StringIO()))
        (SNAPSHOTS / f"{name}.tty").write_bytes(shown(name, Terminal()).encode())


if __name__ == "__main__":
    write_snapshots()
