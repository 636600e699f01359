"""What a pipeline leaves for people and machines: the table as JSON, the page as SVG and HTML."""

import json
from collections.abc import Mapping
from pathlib import Path

from modelgit.pipeline.outcome import Row, StepScore, as_json
from modelgit.pipeline.run import Outcome
from modelgit.recipe.expanding import Job
from modelgit.recipe.pipeline import Pipeline
from modelgit.repo.repository import Repository
from modelgit.report import chart
from modelgit.report.lineage import Kind, Node
from modelgit.report.page import Report, report_html, report_svg
from modelgit.report.writing import write_text

NOTE = "Accuracy in percent; bars are standard errors over {over}."


def publish(pipeline: Pipeline, repo: Repository, outcome: Outcome, stem: Path) -> tuple[str, ...]:
    """Writes STEM.json, STEM.svg and STEM.html, and returns their paths.

    Raises:
        StorageFull: they cannot be written.
    """
    page = report_of(pipeline, outcome)
    contents = {
        ".json": json.dumps(as_table(pipeline, repo, outcome), indent=1) + "\n",
        ".svg": report_svg(page),
        ".html": report_html(page),
    }
    written = []
    for suffix, text in contents.items():
        path = stem.with_name(stem.name + suffix)
        write_text(path, text, hint="name another place: --report PATH")
        written.append(str(path))
    return tuple(written)


def as_table(pipeline: Pipeline, repo: Repository, outcome: Outcome) -> dict[str, object]:
    """Returns the report as it stands in the JSON file; accuracies are fractions."""
    return {
        "pipeline": pipeline.info.name,
        "title": pipeline.info.title,
        "repository": str(repo.worktree or repo.git_dir),
        "main": outcome.commits.get("main"),
        "rows": [as_json(row) for row in outcome.rows],
        "versions": [version_table(pipeline.job(name), outcome) for name in outcome.commits],
        "stored_bytes": repo.store.size_on_disk(),
        "weight_bytes": weight_bytes(repo, outcome.commits),
    }


def version_table(job: Job, outcome: Outcome) -> dict[str, object]:
    """Returns one version: its branch, commit, where it comes from, and its scores."""
    score = outcome.scores.get(job.name)
    return {
        "branch": job.name,
        "kind": job.kind,
        "commit": outcome.commits[job.name],
        "from": list(job.needs),
        "val_accuracy": score.val_accuracy if score else None,
        "ood_accuracy": score.ood_accuracy if score else None,
    }


def weight_bytes(repo: Repository, commits: Mapping[str, str]) -> int:
    """Returns the sum of the sizes of all versions' weight files, as plain copies would take."""
    return sum(m.size_bytes for commit in commits.values() for m in repo.version(commit).manifests.values())


def report_of(pipeline: Pipeline, outcome: Outcome) -> Report:
    """Returns the page: the strategies as a chart, the lineage with held-out accuracies."""
    rows = [row for row in outcome.rows if row.ood is not None]
    over = sorted({row.ood.over for row in rows if row.ood is not None})
    drawn = [job for job in pipeline.jobs if job.kind != "ensemble"]  # they have no weights, and no descent
    best = next((row.strategy for row in rows if row.strategy == "recycling"), None)
    return Report(
        title=pipeline.info.title or pipeline.info.name,
        rows=tuple(chart_row(row, emphasis=row.strategy == best) for row in rows),
        nodes=tuple(node_of(pipeline, job, outcome.scores.get(job.name)) for job in drawn),
        note=NOTE.format(over=" or ".join(over)),
    )


def chart_row(row: Row, *, emphasis: bool) -> chart.Row:
    """Returns a strategy as the chart draws it, in percent."""
    assert row.ood is not None  # only such rows are drawn
    return chart.Row(
        label=row.title,
        held_out=100 * row.ood.mean,
        held_out_error=100 * row.ood.stderr if row.runs > 1 else None,
        validation=100 * row.val.mean if row.val else None,
        validation_error=100 * row.val.stderr if row.val and row.runs > 1 else None,
        note=f"{row.runs} runs" if row.runs > 1 else "1 model",
        emphasis=emphasis,
    )


def node_of(pipeline: Pipeline, job: Job, score: StepScore | None) -> Node:
    """Returns a step as a node of the lineage."""
    held_out = score.ood_accuracy if score else None
    return Node(
        id=job.name,
        label=job.name,
        kind=kind_of(pipeline, job),
        parents=job.needs,
        score=100 * held_out if held_out is not None else None,
        group=job.name.rsplit("/", 1)[0] if "/" in job.name else "",
        emphasis=job.name == pipeline.jobs[-1].name,
    )


def kind_of(pipeline: Pipeline, job: Job) -> Kind:
    """Returns how the picture colours a step: an average that others start from is a fused start."""
    if job.kind == "import":
        return "base"
    if job.kind == "probe":
        return "probe"
    if job.kind == "merge":
        starts = any(job.name in other.needs and other.kind == "train" for other in pipeline.jobs)
        return "fused" if starts else "merge"
    target = next((other.data.path for other in pipeline.jobs if other.kind == "probe" and other.data), None)
    return "target" if job.data is None or target in (None, job.data.path) else "aux"
