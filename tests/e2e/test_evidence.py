"""The evidence program: what a pipeline's runs say about the paper's claims, at a size of seconds."""

import fnmatch
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence.contrasts import contrasts
from benchmarks.evidence.growing import Growth, curves, sizes, windows
from benchmarks.evidence.measuring import Line, looked_at
from benchmarks.evidence.midpoints import middles, midpoint, rate_taken
from benchmarks.evidence.page import PAPERS, markdown, page, pictures
from benchmarks.evidence.run import PIPELINES, RATES, SHARED, SIZES, SPLITS, TABLES, claim_json
from benchmarks.evidence.story import SHARES, Story, Told, claims_of, picked, predictors, standings
from modelgit.pipeline.start import Options, carry_out
from modelgit.recipe.pipeline import load_pipeline
from modelgit.train.measuring.diversity import Agreement
from modelgit.train.measuring.paired import Cell

ROOT = Path(__file__).parents[2]
PIPELINE = """
[pipeline]
name = "little"
[model]
architecture = "mlp:6"
weights = "random"
[variables]
held = ["a", "b"]
run = [0, 1]
[data.target]
path = "target.npz"
[data.aux]
path = "aux.npz"
[train]
steps = 6
lr = 3e-2
[[step]]
name = "base"
kind = "import"
[[step]]
name = "aux"
kind = "train"
start = "base"
data = "aux"
[[step]]
name = "probe/{held}"
kind = "probe"
start = "base"
data = { name = "target", held_out = "{held}" }
[[step]]
name = "plain/{held}/{run}"
kind = "train"
start = "probe/{held}"
run = "{run}"
data = { name = "target", held_out = "{held}" }
[[step]]
name = "recycled/{held}/{run}"
kind = "train"
start = "{from}"
head = "probe/{held}"
run = "{run}"
data = { name = "target", held_out = "{held}" }
each = [
    { held = "a", run = 0, from = "aux" }, { held = "a", run = 1, from = "base" },
    { held = "b", run = 0, from = "aux" }, { held = "b", run = 1, from = "base" },
]
[[step]]
name = "soup/{held}"
kind = "merge"
heads = ["plain/{held}/*"]
evaluate = { name = "target", held_out = "{held}" }
[[step]]
name = "recycling/{held}"
kind = "merge"
heads = ["recycled/{held}/*"]
evaluate = { name = "target", held_out = "{held}" }
[[step]]
name = "ensemble/{held}"
kind = "ensemble"
heads = ["recycled/{held}/*"]
evaluate = { name = "target", held_out = "{held}" }
[[report]]
strategy = "erm"
title = "single"
of = ["plain/*/*"]
[[report]]
strategy = "inter-training"
title = "inter-training"
of = ["recycled/*/*"]
[[report]]
strategy = "diwa"
title = "soup"
of = ["soup/*"]
[[report]]
strategy = "recycling"
title = "recycling"
of = ["recycling/*"]
[[report]]
strategy = "recycling-ensemble"
title = "ensemble"
of = ["ensemble/*"]
"""


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    place = tmp_path_factory.mktemp("evidence")
    rng = np.random.default_rng(0)
    y = np.arange(240) % 2
    x = rng.normal(0, 1, (240, 6)).astype(np.float32)
    x[:, 0] += 1.5 * (2 * y - 1)
    domains = np.array(["a", "b", "c"])[np.arange(240) // 80]
    np.savez(place / "target.npz", x=x, y=y, domain=domains, classes=np.array(["left", "right"]))
    z = rng.normal(0, 1, (120, 6)).astype(np.float32)
    np.savez(place / "aux.npz", x=z, y=(z[:, 1] > 0).astype(int), classes=np.array(["low", "high"]))
    (place / "little.toml").write_text(PIPELINE)
    return place / "models", Told(carry_out(place / "little.toml", Options((), place / "models", workers=1)))


@pytest.fixture(scope="module")
def story(little: tuple[Path, Told]) -> Story:
    repository, told = little
    found = [looked_at(repository, cell, paths=True) for cell in told.places()]
    lines = [line for some, _ in found for line in some]
    growths = [growth for _, some in found for growth in some]
    return Story(
        "little",
        "Little",
        standings(told),
        claims_of(told, lines, flipped=False),
        tuple(lines),
        1.0,
        {},
        predictors(lines),
        curves(growths),
        contrasts=contrasts({row.strategy: row.title for row in told.done.outcome.rows}, told.cells, told.validated),
    )


def test_the_table_has_every_strategy_in_every_domain(story: Story) -> None:
    assert [row.strategy for row in story.standings] == [
        "erm",
        "inter-training",
        "diwa",
        "recycling",
        "recycling-ensemble",
    ]
    assert [row.models for row in story.standings] == [4, 4, 2, 2, 2]
    for row in story.standings:
        assert sorted(row.domains) == ["a", "b"]
        assert row.mean.low <= row.mean.mean <= row.mean.high
        assert row.mean.mean == pytest.approx(np.mean(list(row.domains.values())))
    recycling, erm = story.standings[3], story.standings[0]
    assert recycling.against["erm"].mean == pytest.approx(recycling.mean.mean - erm.mean.mean)


def test_paths_have_the_accuracies_of_their_ends(story: Story) -> None:
    assert len(story.lines) == 4
    assert {line.starts for line in story.lines} == {
        ("probe/a", "probe/a"), ("probe/b", "probe/b"), ("aux", "base")
    }  # fmt: skip
    for line in story.lines:
        assert line.at == pytest.approx((0, 0.25, 0.5, 0.75, 1))
        assert line.barrier(line.held_out) >= 0
        assert line.gain((0.5, 0.6, 0.9, 0.6, 0.7)) == pytest.approx(0.3)
        assert 0 <= line.cka <= 1 + 1e-9 and 0 <= line.cka_inside <= 1 + 1e-9


def test_claims_have_verdicts_a_page_and_pictures(story: Story) -> None:
    names = [claim.name for claim in story.claims]
    assert names[:5] == ["connected", "more diverse", "recycling ≥ soup", "soup ≥ single run", "diversity pays"]
    assert names[-1] == "average ≈ ensemble"
    text = page([story], "demo", {"evidence": 1.0, "data": 0.0})
    for claim in story.claims:
        assert f"{claim.name} — {claim.verdict}" in text
        assert json.loads(json.dumps(claim_json(claim), allow_nan=False))["verdict"] == claim.verdict
    assert all(svg.startswith("<svg") for svg in pictures([story]).values())
    assert "little-connected.svg" in pictures([story])
    assert "| recycling ≥ soup |" in markdown([story])


def test_differences_are_told_by_where_they_lie(story: Story) -> None:
    table = {(one.first, one.other): one for one in story.contrasts}
    assert set(table) == {("recycling", "soup"), ("recycling", "single"), ("soup", "single")}
    rows, found = {row.strategy: row for row in story.standings}, table["recycling", "soup"]
    assert found.found == rows["recycling"].against["diwa"]
    assert found.domains_drawn is not None and found.domains_drawn.mean == found.found.mean == pytest.approx(
        np.mean(list(found.by_domain.values()))
    )
    assert found.by_domain == pytest.approx(
        {name: rows["recycling"].domains[name] - rows["diwa"].domains[name] for name in ("a", "b")}
    )
    assert list(found.by_seed) == ["0"]
    middle = {
        plain: np.mean([line.validation[2] for line in story.lines if (line.starts[0] == line.starts[1]) == plain])
        for plain in (True, False)
    }
    assert found.validation is not None
    assert found.validation.mean == pytest.approx(middle[False] - middle[True], abs=0.01)
    assert "| recycling − soup |" in markdown([story])
    assert "little: where differences lie" in page([story], "demo", {"evidence": 1.0, "data": 0.0})


def test_differences_on_validation_are_not_told_of_what_it_trained(little: tuple[Path, Told]) -> None:
    _, told = little
    titles = {row.strategy: row.title for row in told.done.outcome.rows}
    trained = contrasts(titles, told.cells, lambda name: [] if name == "diwa" else told.validated(name))
    table = {(one.first, one.other): one.validation for one in trained}
    assert table["recycling", "single"] is not None and table["recycling", "soup"] is None


def test_a_dagger_is_not_told_on_what_trained_it(little: tuple[Path, Told], tmp_path: Path) -> None:
    """The average over two splits: what validates one has trained the other."""
    splits = PIPELINE.replace("run = [0, 1]", "run = [0, 1]\nseed = [0, 1]")
    splits = splits.partition('[[step]]\nname = "recycled')[0].replace("{held}/{run}", "{held}/{seed}/{run}")
    splits = splits.replace("probe/{held}", "probe/{held}/{seed}")
    splits = splits.replace('held_out = "{held}" }', 'held_out = "{held}", trial = "{seed}" }')
    for name, heads in (("soup", "{seed}/*"), ("dagger", "*/*")):
        splits += f"""[[step]]
name = "{name}/{{held}}/{{seed}}"
kind = "merge"
heads = ["plain/{{held}}/{heads}"]
evaluate = {{ name = "target", held_out = "{{held}}", trial = "{{seed}}" }}
"""
    for strategy, of in (("erm", "plain/*/*/*"), ("diwa", "soup/*/*"), ("diwa-dagger", "dagger/*/*")):
        splits += f'[[report]]\nstrategy = "{strategy}"\ntitle = "{strategy}"\nof = ["{of}"]\n'
    for data in ("target.npz", "aux.npz"):
        (tmp_path / data).write_bytes((little[0].parent / data).read_bytes())
    (tmp_path / "splits.toml").write_text(splits)
    told = Told(carry_out(tmp_path / "splits.toml", Options((), tmp_path / "models", workers=1)))
    assert told.validated("diwa-dagger") == []
    assert [(cell.domain, cell.seed) for cell in told.validated("diwa")] == [
        ("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")
    ]  # fmt: skip
    found = contrasts({name: name for name in told.strategies}, told.cells, told.validated)
    table = {(one.first, one.other): one for one in found}
    dagger, plain = table["diwa-dagger", "diwa"], table["diwa", "erm"]
    assert dagger.validation is None and plain.validation is not None
    assert set(plain.by_seed) == {"0", "1"}
    accuracy = {name: [cell.accuracy for cell in told.cells(name) if cell.seed == "1"] for name in ("diwa", "erm")}
    assert plain.by_seed["1"] == pytest.approx(np.mean(accuracy["diwa"]) - np.mean(accuracy["erm"]))


def test_paths_of_one_kind_alone_are_drawn(story: Story) -> None:
    alone = replace(story, lines=tuple(line for line in story.lines if line.starts == ("aux", "base")))
    drawn = pictures([alone])["little-connected.svg"]
    assert "different starts" in drawn and "one start" not in drawn
    assert set(pictures([alone])) == set(pictures([story]))


def test_means_of_more_runs_end_where_single_runs_and_soups_stand(story: Story) -> None:
    told = {(str(one.kind), str(one.domains)): one for one in story.curves}
    assert {one.k for one in story.curves} == {(1, 2)} and len(told) == 4
    rows = {row.strategy: row for row in story.standings}
    for kind, single, all_ in (("plain", "erm", "diwa"), ("recycled", "inter-training", "recycling")):
        curve = told[kind, "held-out"]
        assert [one.mean for one in curve.accuracy] == pytest.approx([rows[single].mean.mean, rows[all_].mean.mean])
        assert curve.limit.mean == pytest.approx(2 * rows[all_].mean.mean - rows[single].mean.mean)
        assert curve.error == pytest.approx(0, abs=1e-9)
    assert "little-more-runs.svg" in pictures([story])
    assert "| recycled | held-out |" in markdown([story])


def test_the_law_is_found_again_from_means_of_runs() -> None:
    assert (sizes(4), sizes(8)) == ((1, 2, 3, 4), (1, 2, 3, 4, 6, 8))
    assert windows(3, 3) == [[0, 1, 2]] and windows(3, 2) == [[0, 1], [1, 2], [2, 0]]
    assert len(windows(8, 1)) == 8 and [window[0] for window in windows(8, 3)] == [0, 2, 4, 6]
    k, things = (1, 2, 4), tuple(map(str, range(50)))
    cells = tuple(Cell("a", "0", things, np.full(50, 0.8 - 0.2 / n)) for n in k)
    assert [one.domains for one in curves([Growth("plain", k, cells, cells)])] == ["held-out", "validation"]
    (found,) = curves([Growth("plain", k, cells, cells)], validation=False)
    assert (found.limit.mean, found.slope.mean, found.more.mean) == pytest.approx((0.8, 0.2, 0.15))
    assert [one.mean for one in found.accuracy] == pytest.approx([0.6, 0.7, 0.75])


def test_a_barrier_is_what_the_worst_point_lacks() -> None:
    none = Agreement(1, 0, 0, 0, 0)
    line = Line("c", ("x", "y"), ("s", "t"), (0.0, 0.5, 1.0), (0.8, 0.5, 0.6), (), none, none, 1.0, 1.0)
    assert line.barrier(line.held_out) == pytest.approx(0.2)
    assert line.gain(line.held_out) == pytest.approx(-0.2)


def test_what_foretells_the_gain_picks_a_pair(story: Story) -> None:
    none = Agreement(1, 0, 0, 0, 0)
    line = Line("c", ("x", "y"), ("s", "t"), (0.0, 0.5, 1.0), (0.5, 0.7, 0.5), (0.6, 0.6, 0.6), none, none, 1.0, 0.9)
    pairs = [line, replace(line, held_out=(0.5, 0.6, 0.5)), replace(line, held_out=(0.5, 0.8, 0.5), cell="d")]
    apart = [*pairs, replace(line, held_out=(0.5, 0.4, 0.5), cell="d"), replace(line, starts=("s", "s"))]
    found = picked(apart, [1.0, 2.0, 1.0, 0.5, 9.0])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.075, -0.05, 0.2))
    assert picked([replace(line, starts=("s", "s"))] * 2, [1.0, 1.0]) is None and picked([line], [1.0]) is None
    equal = picked(pairs[:2], [0.0, 1e-12]), picked(pairs[1::-1], [0.0, 0.0])  # the order tells nothing
    assert [one and one.mean for one in equal] == pytest.approx([0, 0])
    for one in story.predictors.values():
        assert -1 <= one.correlation <= 1 and one.slope.low <= one.slope.high and one.picked is None  # one pair a cell


def test_middles_are_those_of_the_paths_on_validation(little: tuple[Path, Told], story: Story) -> None:
    repository, told = little
    cells = [middles(repository, place) for place in told.places()]
    recycled = [line for line in story.lines if line.starts == ("aux", "base")]
    assert [(domain, len(runs)) for domain, runs, _ in cells] == [("a", 2), ("b", 2)]
    for (_, runs, middle), line in zip(cells, recycled, strict=True):
        assert runs == pytest.approx([line.validation[0], line.validation[-1]])
        assert middle == pytest.approx([line.validation[2]])
    found = midpoint(0.03, cells)
    assert found.gap == pytest.approx(np.mean([line.gain(line.validation) for line in recycled]))
    assert found.pairs == 2 and found.single == pytest.approx(np.mean([runs for _, runs, _ in cells]))
    assert list(found.own.values()) == pytest.approx([line.gain(line.validation) for line in recycled])


def test_the_rule_takes_the_largest_rate_whose_middles_are_above_their_ends() -> None:
    steady = midpoint(1e-4, [("a", [0.6, 0.6], [0.62]), ("b", [0.5, 0.7], [0.63])])
    assert (steady.gap, steady.error, steady.below) == pytest.approx((0.025, 0.005, 0))
    assert steady.own == pytest.approx({"a": 0.02, "b": 0.03})
    faster = midpoint(3e-4, [("a", [0.6, 0.6, 0.6], [0.64, 0.66]), ("b", [0.6, 0.6, 0.6], [0.66, 0.64])])
    apart = midpoint(1e-3, [("a", [0.6, 0.6], [0.66]), ("b", [0.6, 0.6], [0.55])])
    assert (apart.gap, apart.worst, apart.below) == pytest.approx((0.005, -0.05, 1))
    assert rate_taken([steady, faster, apart]) == 3e-4 and rate_taken([apart]) is None
    alone = midpoint(1e-3, [("a", [0.6, 0.6, 0.6], [0.63, 0.61])])
    assert (alone.gap, alone.error) == pytest.approx((0.02, 0.01)) and rate_taken([alone]) == 1e-3
    single = midpoint(1e-3, [("a", [0.6, 0.6], [0.7])])
    assert single.error is None and rate_taken([single]) is None
    assert "| 1e-3 | +10.0 | +10.0 |" in markdown([Story("r", "R", (), (), (), 1.0, midpoints=(single,))])
    tried = Story("rates", "Rates", (), (), (), 1.0, midpoints=(steady, faster, apart))
    assert "| **3e-4** | +5.0 ± 0.0 | +4.0 | 0 of 4 | 60.0 | +5.0 | +5.0 |" in markdown([tried])
    assert "| 1e-3 | +0.5 ± 5.5 | -5.0 | 1 of 2 | 60.0 | +6.0 | -5.0 |" in markdown([tried])
    assert "3e-4" in page([tried], "paper", {"evidence": 1.0, "data": 0.0}) and pictures([tried]) == {}


def test_the_demo_is_a_part_of_the_paper_size() -> None:
    assert set(SIZES["demo"]) < set(SIZES["paper"]) == set(PIPELINES)
    assert {file.stem for file in (ROOT / "benchmarks/recycling").glob("*.toml")} == set(PIPELINES)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("emojidg-rivals", 30),
        ("emojidg-ways", 30),
        ("vader4-ways", 20),
        ("emojidg-many", 40),
        ("emojidg-rates", 8),
        ("vader4-rates", 8),
    ],
)
def test_siblings_share_the_steps_of_the_first(name: str, least: int) -> None:
    first, second = (load_pipeline(ROOT / f"benchmarks/recycling/{one}.toml") for one in (SHARED[name], name))
    theirs = {job.name: job for job in first.jobs}
    shared = [job for job in second.jobs if job.name in theirs]
    assert len(shared) > least
    assert all(job == theirs[job.name] for job in shared)


@pytest.mark.parametrize(("first", "without"), [("emojidg", set()), ("vader4", {"mixup"})])
def test_each_real_benchmark_has_the_rows_of_the_papers_table(first: str, without: set[str]) -> None:
    """Sentences have no mean, so nothing is mixed there."""
    names = [first, *(name for name in PIPELINES if SHARED.get(name) == first)]
    rows = [row for name in names for row in load_pipeline(ROOT / f"benchmarks/recycling/{name}.toml").report]
    assert set(PAPERS) - without <= {row.strategy for row in rows}
    assert {row.strategy for row in rows if row.pick == "best"} >= {"vanilla", "erm-best", "fusing", "sma"}


@pytest.mark.parametrize(("size", "name"), [(size, name) for size, names in SIZES.items() for name in names])
def test_every_size_can_be_read(size: str, name: str) -> None:
    assert load_pipeline(ROOT / f"benchmarks/recycling/{name}.toml", SIZES[size][name]).report


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_has_what_the_claims_are_about(name: str) -> None:
    pipeline = load_pipeline(ROOT / f"benchmarks/recycling/{name}.toml")
    strategies = {row.strategy for row in pipeline.report}
    if name in RATES:
        at = [re.compile(fnmatch.translate(row.of[0])) for row in pipeline.report]
        rates = [{job.bindings["rate"] for job in pipeline.jobs if pattern.match(job.name)} for pattern in at]
        assert {len(found) for found in rates} == {1} and set.union(*rates) >= {1e-4, 3e-4, 1e-3}
        return
    assert {"erm", "inter-training", "diwa", "recycling"} <= strategies
    assert name in (*TABLES, *SPLITS) or "recycling-ensemble" in strategies
    assert name != "emojidg" or set(SHARES.values()) <= strategies
