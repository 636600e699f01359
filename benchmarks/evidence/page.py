"""The evidence as one HTML page: for each pipeline its table, then every claim with a picture and a verdict."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.evidence.measuring import Line
from benchmarks.evidence.midpoints import rate_taken
from benchmarks.evidence.story import BEST, ERM, INTER, RECYCLING, SHARES, SLOW, SOUP, Standing, Story
from modelgit.porcelain.evidence.claims import Claim
from modelgit.report.chart import Row as Bar
from modelgit.report.chart import strategy_chart
from modelgit.report.drawing import BLUE, GREY, RED, Drawing, document
from modelgit.report.forest import Mark, Row, forest
from modelgit.report.plane import Axis, Series, plane
from modelgit.report.sheet import Picture, Section, Sheet, Table, Tile, sheet_html
from modelgit.train.measuring.intervals import Interval, Z

# Ramé et al. 2022, arXiv:2212.10445, table 1: DomainBed, ResNet-50, mean of five data sets.
PAPERS = {
    "vanilla": 63.3, "coral": 64.6, "swad": 66.9, "sma": 66.5, "deep-ensemble": 66.8, "eoa": 68.0, "erm-best": 65.6,
    "diwa": 67.6, "diwa-greedy": 67.5, "inter-training-best": 65.6, "fusing": 65.8, "recycling": 68.1,
    "recycling-greedy": 67.9, "diwa-dagger": 68.0, "recycling-dagger": 68.3,
}  # fmt: skip
PAPERS_BESIDE = ("emojidg", "emojidg-rivals", "emojidg-many")
GROWING = (
    "The mean of k runs of one cell, for more and more of them: neighbours on a ring, at most four means for each k. "
    "If averaging cuts variance alone, accuracy comes near a − b / k: b is what a single run lacks of endlessly many."
)
RULE = (
    "The largest learning rate at which, on validation, the middle of two recycled runs lies above the mean of its "
    "ends, by at least the standard error of that over cells (of one cell alone, over its pairs). Held-out accuracy is "
    "not looked at; the last columns are the same of the cells alone in which that domain is held out, where it does "
    "not validate either."
)
LIES = (
    "Each interval draws test examples anew; the next column draws the held-out domains too, as if they were some of "
    "many: of so few it is still too narrow. Validation examples are of all training domains, pooled, and stand where "
    "they have trained no member. Intervals are of one difference each: of twenty, one may miss by chance."
)
COMPARED = {
    ERM: "single run",
    SLOW: "single run at the rate best for it",
    BEST: "best single run",
    SOUP: "soup",
    RECYCLING: "recycling",
}


def page(stories: Sequence[Story], size: str, seconds: dict[str, float]) -> str:
    """Returns the page."""
    sections = [section for story in stories for section in sections_of(story)]
    held = Counter(claim.verdict for story in stories for claim in story.claims)
    counts = ", ".join(f"{count} {word}" for word, count in held.items())
    sentences = [
        f"Size: {size}; {seconds['evidence']:.0f} s." + (f" Claims: {counts}." if counts else ""),
        "Intervals are of 95 %. Of accuracies and their differences, test examples are drawn anew, those of one thing "
        "together; of paths and pairs, whole cells. A claim holds where the whole interval lies within what it says. "
        "Nothing was selected by a held-out domain.",
    ]
    return sheet_html(Sheet("Recycling: the evidence", sentences, sections, tiles(stories)))


def tiles(stories: Sequence[Story]) -> list[Tile]:
    """Returns the headline differences of each pipeline."""
    found = []
    for story, recycling in ((s, row) for s in stories for row in s.standings if row.strategy == RECYCLING):
        for other, word in ((SOUP, "soup"), (ERM, "single run")):
            if other in recycling.against:
                gap = recycling.against[other]
                found.append(Tile(f"{100 * gap.mean:+.1f}", f"{story.name}: recycling − {word}", interval(gap)))
    return found


def interval(found: Interval, scale: float = 100) -> str:
    """Returns an interval in points."""
    return f"[{scale * found.low:+.1f}, {scale * found.high:+.1f}]"


def sections_of(story: Story) -> list[Section]:
    """Returns the table of a pipeline, its claims, and what else it shows."""
    if story.midpoints:
        return [Section(story.title, [RULE], [midpoint_table(story)])]
    parts: list[Picture | Table] = [
        Picture(chart(story.standings), f"{story.name}: strategies"),
        table(story.standings, paper=story.name in PAPERS_BESIDE),
    ]
    found = [Section(story.title, (), parts)]
    if story.contrasts:
        found.append(Section(f"{story.name}: where differences lie", [LIES], [contrast_table(story)]))
    for claim in story.claims:
        figure = f"{claim.figure}: {figure_of(claim)}"
        sentences = [claim.statement, f"{figure}. Verdict: {claim.verdict}.", *([claim.detail] if claim.detail else [])]
        title = f"{story.name}: {claim.name} — {claim.verdict}"
        found.append(Section(title, sentences, [picture_of(story, claim)]))
    if story.predictors:
        sentence = (
            "What foretells the gain of averaging two runs on the held-out domain, without looking at it: over all "
            "pairs; and the held-out accuracy of the mean of the two recycled runs of a cell that it would pick."
        )
        found.append(Section(f"{story.name}: what foretells the gain", [sentence], [predictors_of(story)]))
    if story.curves:
        found.append(
            Section(f"{story.name}: more and more runs", [GROWING], [growth_picture(story), growth_table(story)])
        )
    if story.unseen:
        found.append(Section(f"{story.name}: six further styles", [], [unseen_picture(story)]))
    return found


def markdown(stories: Sequence[Story]) -> str:
    """Returns the tables as Markdown, for documents."""
    parts = list[str]()
    for story in stories:
        parts += ["", f"### {story.title}"]
        if story.midpoints:
            parts += rows_of(midpoint_table(story))
            continue
        parts += rows_of(table(story.standings, paper=story.name in PAPERS_BESIDE))
        if story.claims:
            verdicts = [(c.name, figure_of(c), c.verdict, c.detail) for c in story.claims]
            parts += rows_of(Table(("claim", "figure [95 %]", "verdict", ""), verdicts))
        if story.contrasts:
            parts += rows_of(contrast_table(story))
        if story.predictors:
            parts += rows_of(predictors_of(story))
        if story.curves:
            parts += rows_of(growth_table(story))
        for style, gaps in story.unseen.items():
            told = (f"{words} {100 * gap.mean:+.1f} {interval(gap)}" for words, gap in gaps.items())
            parts += ["", f"- {style}: " + ", ".join(told)]
    return "\n".join(parts).lstrip() + "\n"


def rows_of(found: Table) -> list[str]:
    """Returns a table as lines of Markdown."""
    body = [(f"**{row[0]}**", *row[1:]) if i in found.strong else row for i, row in enumerate(found.rows)]
    rows = [found.head, ["---"] * len(found.head), *body]
    return ["", *(f"| {' | '.join(row)} |" for row in rows)]


def predictors_of(story: Story) -> Table:
    """Returns what foretells the gain of averaging two."""
    rows = [
        (
            name,
            f"{one.correlation:+.2f}",
            f"{one.slope.mean:+.2f} {interval(one.slope, 1)}",
            f"{100 * one.picked.mean:+.1f} {interval(one.picked)}" if one.picked else "",
        )
        for name, one in story.predictors.items()
    ]
    head = ("measured on training domains", "correlation", "slope", "the pair it picks − the mean pair, points")
    return Table(head, rows, caption="Intervals draw cells. Picked are pairs of recycled runs, judged held-out.")


def pictures(stories: Sequence[Story]) -> dict[str, str]:
    """Returns the pictures as SVG files, by name."""
    found = dict[str, str]()
    for story in (story for story in stories if story.standings):
        drawn = [("strategies", Picture(chart(story.standings), f"{story.name}: strategies"))]
        drawn += [(claim.name, picture_of(story, claim)) for claim in story.claims]
        drawn += [("more runs", growth_picture(story))] if story.curves else []
        drawn += [("further styles", unseen_picture(story))] if story.unseen else []
        for name, picture in drawn:
            file = "".join(c if c.isalnum() else "-" for c in f"{story.name} {name}".replace("≥", "over"))
            found[f"{file.strip('-')}.svg"] = document(picture.drawing, picture.title)
    return found


def picture_of(story: Story, claim: Claim) -> Picture:
    """Returns the picture that goes with a claim."""
    drawn = PICTURES.get(claim.name)
    return drawn(story, claim) if drawn else verdict_picture(claim)


def figure_of(claim: Claim) -> str:
    """Returns what was found, in points where it is an accuracy."""
    scale = 100 if "accuracy" in claim.figure or "barrier" in claim.figure else 1
    mean, low, high = (scale * value for value in (claim.found.mean, claim.found.low, claim.found.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] points" if scale == 100 else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def chart(rows: Sequence[Standing]) -> Drawing:
    """Returns the strategies as a chart; bars are half the 95 % interval."""
    return strategy_chart(
        [
            Bar(
                row.title,
                100 * row.mean.mean,
                50 * (row.mean.high - row.mean.low),
                None if row.validation is None else 100 * row.validation,
                note=f"{row.models} models",
                emphasis=row.strategy == RECYCLING,
            )
            for row in rows
        ],
        "Accuracy on the held-out domains",
        "Bars: 95 % intervals over test examples.",
    )


def table(rows: Sequence[Standing], *, paper: bool) -> Table:
    """Returns the strategies as a table, the `paper`'s own averages beside ours where they are wanted."""
    domains = list(rows[0].domains)
    others = {name: words for name, words in COMPARED.items() if any(name in row.against for row in rows)}
    last = ("the paper's mean",) if paper else ()
    head = ("strategy", *domains, "mean", "validation", *(f"− {name}" for name in others.values()), *last)
    cells = []
    for row in rows:
        gaps = [row.against.get(other) for other in others]
        differences = [f"{100 * gap.mean:+.1f} {interval(gap)}" if gap else "" for gap in gaps]
        validation = "" if row.validation is None else f"{100 * row.validation:.1f}"
        by_domain = [f"{100 * row.domains[name]:.1f}" if name in row.domains else "" for name in domains]
        mean = f"{100 * row.mean.mean:.1f} ± {100 * error_of(row.mean):.1f}"
        printed = (str(PAPERS.get(row.strategy, "")),) if paper else ()
        cells.append((row.title, *by_domain, mean, validation, *differences, *printed))
    strong = frozenset(i for i, row in enumerate(rows) if row.strategy == RECYCLING)
    theirs = "The paper's means are of DomainBed with ResNet-50: other data, another network, for orientation."
    caption = "Mean ± standard error, differences with 95 % intervals. " + (theirs if paper else "")
    return Table(head, cells, caption=caption, strong=strong)


def contrast_table(story: Story) -> Table:
    """Returns the differences between strategies, with their parts by domain and by seed."""
    domains = sorted({name for one in story.contrasts for name in one.by_domain})
    seeds = sorted({name for one in story.contrasts for name in one.by_seed})
    head = (
        "difference, points",
        "examples drawn",
        "domains drawn too",
        "on validation",
        *domains,
        *(f"seed {s}" for s in seeds),
    )
    rows = []
    for one in story.contrasts:
        gaps = [
            f"{100 * gap.mean:+.2f} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]" if gap else ""
            for gap in (one.found, one.domains_drawn, one.validation)
        ]
        found = [one.by_domain.get(name) for name in domains] + [one.by_seed.get(name) for name in seeds]
        parts = ["" if part is None else f"{100 * part:+.1f}" for part in found]
        rows.append((f"{one.first} − {one.other}", *gaps, *parts))
    return Table(head, rows, caption="95 % intervals; parts are means of cells.")


def error_of(found: Interval) -> float:
    """Returns the standard error that an interval of 95 % tells of."""
    return (found.high - found.low) / (2 * Z)


def verdict_picture(claim: Claim) -> Picture:
    """Returns one interval beside 0."""
    scale = 100 if "accuracy" in claim.figure else 1
    found = claim.found
    mark = Mark(scale * found.mean, scale * found.low, scale * found.high)
    return Picture(forest([Row(claim.name, [mark], figure_of(claim))], claim.figure, Axis(claim.figure)), claim.figure)


def kinds(story: Story) -> list[tuple[str, str, list[Line]]]:
    """Returns the measured paths of either kind, with words and a colour."""
    found = [
        (words, colour, [line for line in story.lines if (line.starts[0] != line.starts[1]) == apart])
        for words, colour, apart in (("different starts", RED, True), ("one start", BLUE, False))
    ]
    return [kind for kind in found if kind[2]]


def paths_picture(story: Story, claim: Claim) -> Picture:
    """Returns the mean accuracy along the paths, of runs that began apart and of runs that began together."""
    series = []
    for words, colour, lines in kinds(story):
        for what, dashed, values in (
            ("held-out", False, [line.held_out for line in lines]),
            ("val.", True, [line.validation for line in lines]),
        ):
            mean = [100 * float(v) for v in np.mean(values, axis=0)]
            series.append(Series(f"{words}, {what}", lines[0].at, mean, dashed=dashed, colour=colour))
    axes = Axis("place on the path between two runs"), Axis("accuracy, %")
    caption = f"Means over {len(story.lines)} paths."
    return Picture(plane(series, "Linear mode connectivity", axes), claim.name, caption)


def diversity_picture(story: Story, claim: Claim) -> Picture:
    """Returns how differently measured pairs err, and how unlike their features are."""
    series, ratios = [], []
    for words, colour, lines in kinds(story):
        x, y = [line.unlike.q_diversity for line in lines], [1 - line.cka for line in lines]
        series.append(Series(words, x, y, line=False, colour=colour))
        ratios.append(f"{words} {np.mean([line.unlike.ratio_error for line in lines]):.2f}")
    axes = Axis("q-diversity of errors on the held-out domain"), Axis("1 − CKA of features")
    caption = f"Different errors for each identical one: {', '.join(ratios)}."
    return Picture(plane(series, "Diversity of pairs", axes), claim.name, caption)


def gain_picture(story: Story, claim: Claim) -> Picture:
    """Returns the gain of averaging two over their diversity."""
    series = []
    for words, colour, lines in kinds(story):
        x, y = [line.unlike.q_diversity for line in lines], [100 * line.gain(line.held_out) for line in lines]
        series.append(Series(words, x, y, line=False, colour=colour))
    every = [line.unlike.q_diversity for line in story.lines]
    middle, height = np.mean(every), np.mean([100 * line.gain(line.held_out) for line in story.lines])
    fit = [float(height + 100 * claim.found.mean * (x - middle)) for x in (min(every), max(every))]
    series.append(Series("least squares", [min(every), max(every)], fit, dashed=True, dots=False, colour=GREY))
    axes = Axis("q-diversity of errors"), Axis("gain of the average over its two, points")
    return Picture(plane(series, "Gain over diversity", axes), claim.name)


def shares_picture(story: Story, claim: Claim) -> Picture:
    """Returns accuracy over the share of inter-trained members."""
    rows = {row.strategy: row for row in story.standings}
    found = [rows[name].mean for name in SHARES.values()]
    low, high = [100 * f.low for f in found], [100 * f.high for f in found]
    series = [Series("average of four", list(SHARES), [100 * f.mean for f in found], low, high)]
    axes = Axis("share of inter-trained members"), Axis("held-out accuracy, %")
    return Picture(
        plane(series, "Mixtures", axes), claim.name, "The band is the interval of each accuracy, not of differences."
    )


def growth_picture(story: Story) -> Picture:
    """Returns what means of k runs gain over single ones, over k, and the law in 1/k through the held-out gains."""
    series = []
    for one in story.curves:
        outside, name = one.domains == "held-out", {"plain": "one start", "recycled": "different starts"}[one.kind]
        colour, single = RED if one.kind == "recycled" else BLUE, one.accuracy[0].mean
        y = [100 * (found.mean - single) for found in one.accuracy]
        label = f"{name}, {'held-out' if outside else 'val.'}"
        series.append(Series(label, one.k, y, dashed=not outside, colour=colour))
        if outside:
            fine = [1 + i * (one.k[-1] - 1) / 60 for i in range(61)]
            law = [100 * (one.limit.mean - one.slope.mean / x - single) for x in fine]
            series.append(Series("", fine, law, dashed=True, dots=False, colour=GREY))
    axes = Axis("runs averaged", whole=True), Axis("gain over single runs, points")
    caption = "Grey: the law a − b / k through the held-out accuracies. Intervals are in the table."
    return Picture(plane(series, "More and more runs", axes), "more and more runs", caption)


def growth_table(story: Story) -> Table:
    """Returns the accuracies of means of k runs, with the law through them."""
    k = sorted({n for one in story.curves for n in one.k})
    head = ("runs", "on", *(f"k = {n}" for n in k), "all − one, points", "a, %", "b, points", "off by")
    rows = []
    for one in story.curves:
        known = dict(zip(one.k, one.accuracy, strict=True))
        values = [f"{100 * known[n].mean:.1f}" if n in known else "" for n in k]
        told = [f"{100 * f.mean:.1f} {interval(f)}" for f in (one.more, one.limit, one.slope)]
        rows.append((one.kind, one.domains, *values, *told, f"{100 * one.error:.1f}"))
    return Table(
        head, rows, words=2, caption="Accuracy in percent of the mean of k runs, and a − b / k by least squares."
    )


def midpoint_table(story: Story) -> Table:
    """Returns what the middles of runs have at each learning rate; the rate that the rule takes is marked."""
    domains = list(story.midpoints[0].own)
    head = (
        "learning rate",
        "middle − ends, points",
        "worst pair",
        "pairs below 0",
        "single runs, validation",
        *domains,
    )
    rows = [
        (
            f"{one.rate:.0e}".replace("e-0", "e-"),
            f"{100 * one.gap:+.1f}" + ("" if one.error is None else f" ± {100 * one.error:.1f}"),
            f"{100 * one.worst:+.1f}",
            f"{one.below} of {one.pairs}",
            f"{100 * one.single:.1f}",
            *(f"{100 * one.own[domain]:+.1f}" for domain in domains),
        )
        for one in story.midpoints
    ]
    taken = rate_taken(story.midpoints)
    strong = frozenset(i for i, one in enumerate(story.midpoints) if one.rate == taken)
    return Table(head, rows, strong=strong, caption="Mean over pairs ± standard error over cells.")


def unseen_picture(story: Story) -> Picture:
    """Returns the differences on every further style."""
    rows = []
    for style, gaps in story.unseen.items():
        marks = [Mark(100 * g.mean, 100 * g.low, 100 * g.high, i) for i, g in enumerate(gaps.values())]
        rows.append(Row(style, marks, ", ".join(f"{100 * g.mean:+.1f}" for g in gaps.values())))
    key = list(next(iter(story.unseen.values())))
    return Picture(forest(rows, "Styles that no run has seen", Axis("difference, points"), key), "unseen styles")


def order_picture(story: Story, claim: Claim) -> Picture:
    """Returns the differences of averages to single runs and to the soup, domain by domain as one."""
    rows = []
    for row in story.standings:
        if row.strategy in (INTER, SOUP, RECYCLING, "everything"):
            gaps = [(i, row.against[other]) for i, other in enumerate((ERM, SOUP)) if other in row.against]
            marks = [Mark(100 * g.mean, 100 * g.low, 100 * g.high, i) for i, g in gaps]
            rows.append(Row(row.title, marks, ", ".join(f"{100 * g.mean:+.1f}" for _, g in gaps)))
    drawing = forest(rows, "Paired differences", Axis("difference, points"), ("less a single run", "less the soup"))
    return Picture(drawing, claim.name)


PICTURES: dict[str, Callable[[Story, Claim], Picture]] = {
    "connected": paths_picture,
    "more diverse": diversity_picture,
    "recycling ≥ soup": order_picture,
    "soup ≥ single run": order_picture,
    "diversity pays": gain_picture,
    "best share inside": shares_picture,
}
