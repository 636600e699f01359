"""The sections that evaluation gives: accuracy, paths, diversity, marginal gains, calibration, groups."""

import math
from collections.abc import Callable, Sequence

from modelgit.cli.reporting import reading
from modelgit.cli.reporting.words import decimals, percent, points, with_ends
from modelgit.cli.screen.blocks import count_text
from modelgit.porcelain.reporting.values import Answered, Comparison, Estimate, GroupGap, Line, Pair
from modelgit.report.drawing import BLUE, COLOURS, GREY, RED
from modelgit.report.forest import Mark, Row, forest
from modelgit.report.matrix import matrix
from modelgit.report.plane import Axis, Series, plane
from modelgit.report.sheet import Picture, Section, Table

FEW = 3  # curves up to which bands and promises are drawn
MOST_SEEN = 12  # versions up to which pairs and diagrams are drawn one by one


def comparison_sections(found: Comparison) -> list[Section]:
    """Returns all that was measured on the data."""
    return [
        accuracy_section(found),
        *domains_section(found),
        *gaps_section(found),
        paths_section(found),
        diversity_section(found),
        gains_section(found),
        calibration_section(found),
    ]


def everyone(found: Comparison) -> list[Answered]:
    """Returns the versions, best first, then their mean."""
    return [*found.versions, found.mean]


def accuracy_section(found: Comparison) -> Section:
    """Returns how good each version is, and whether they differ."""
    where = f"{found.measured} of {found.data}, {count_text(found.examples, 'example')}"
    ranked = f"On {where}. Versions are ordered by {found.ordered_by}."
    seen = [f"Not unseen: {name}: {words}." for name, words in found.seen.items()]
    sentences = [f"{ranked} {reading.ACCURACY}", reading.PAIRED, *seen]
    rows = [Row(one.name, [mark(one.accuracy, 0)], with_ends(one.accuracy)) for one in everyone(found)]
    picture = Picture(forest(rows, f"Accuracy on {found.data}", Axis("accuracy, %")), "Accuracy")
    return Section(f"Compared on {found.data}", sentences, [picture])


def mark(found: Estimate, series: int) -> Mark:
    """Returns an accuracy as a mark, in percent."""
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Mark(100 * found.value, low, high, series)


def domains_section(found: Comparison) -> list[Section]:
    """Returns accuracy by domain, and the worst group; nothing of a single domain."""
    domains = list(found.mean.domains)
    rows = [
        Row(one.name, [mark(one.domains[domain], i) for i, domain in enumerate(domains)]) for one in everyone(found)
    ]
    picture = Picture(forest(rows, "Accuracy on each domain", Axis("accuracy, %"), domains), "Accuracy on each domain")
    table = Table(
        ("version", *(f"{domain}, %" for domain in domains), "worst domain", "worst group, %"),
        [domain_row(one, domains) for one in everyone(found)],
        strong=frozenset({len(found.versions)}),
    )
    parts: list[Picture | Table] = [picture, table] if 1 < len(domains) <= len(COLOURS) else [table]
    return [Section("Domains and groups", [reading.DOMAINS], parts)]


def domain_row(one: Answered, domains: Sequence[str]) -> tuple[str, ...]:
    """Returns a version's accuracies by domain."""
    worst = min(domains, key=lambda domain: (one.domains[domain].value, domain))
    group = with_ends(None) if one.worst_group is None else f"{' in '.join(one.worst_group)} {with_ends(one.worst)}"
    return (one.name, *(with_ends(one.domains[domain]) for domain in domains), worst, group)


def gaps_section(found: Comparison) -> list[Section]:
    """Returns how much better versions serve one domain than another; nothing where there is one alone."""
    if not found.mean.gaps:
        return []
    kinds = [gap.kind for gap in found.mean.gaps]
    rows = [
        Row(one.name, [Mark(100 * g.value, 100 * g.low, 100 * g.high, i) for i, g in enumerate(one.gaps)])
        for one in everyone(found)
    ]
    title = f"Gaps between groups by {found.by}" if found.by else "Gaps between domains"
    picture = Picture(forest(rows, title, Axis("gap, points"), kinds), title)
    head = ("version", *(f"{kind}, points" for kind in kinds))
    told = [(one.name, *map(gap_text, one.gaps)) for one in everyone(found)]
    table = Table(head, told, strong=frozenset({len(found.versions)}))
    return [Section(title, [reading.GAPS], [picture, table])]


def gap_text(gap: GroupGap) -> str:
    """Returns a gap, its interval, and between whom it is."""
    of = f", {gap.answer}" * bool(gap.answer) + f" for {gap.label}" * bool(gap.label)
    whom = f": {gap.more} above {gap.less}{of}" if gap.more != gap.less else ""
    return f"{points(gap.value, gap.low, gap.high)}{whom}"


# -------------------------------------------------------------------------------------------------- paths


def paths_section(found: Comparison) -> Section:
    """Returns accuracies along straight paths between models."""
    many = len(found.versions) > FEW
    which = "from the mean of all to each version" if many else "from the version named first to each other one"
    sentences = [f"The accuracy of models on the straight line {which}. {reading.PATHS}"]
    title, axes = f"Paths between models, on {found.data}", (Axis("place on the path"), Axis("accuracy, %"))
    picture = Picture(plane(path_series(found.paths), title, axes), title)
    rows = [
        (
            f"{one.start} – {one.end}",
            percent(one.places[0].accuracy.value),
            percent(one.places[-1].accuracy.value),
            percent(min(place.accuracy.value for place in one.places)),
            f"{one.at:g}",
            barrier_text(one),
        )
        for one in found.paths
    ]
    head = ("path", "start, %", "end, %", "lowest, %", "largest gap at", "gap, points")
    return Section("Linear mode connectivity", sentences, [picture, Table(head, rows)])


def barrier_text(one: Line) -> str:
    """Returns the largest gap below the line between the ends, with its interval."""
    place = next(place for place in one.places if place.at == one.at)
    return points(place.promised - place.accuracy.value, one.low, one.high)


def path_series(paths: Sequence[Line]) -> list[Series]:
    """Returns a curve for each path; of a few also the intervals, and dashed what their ends promise."""
    found = list[Series]()
    for i, one in enumerate(paths):
        at, colour = [place.at for place in one.places], COLOURS[i % len(COLOURS)]
        low, high = bands([place.accuracy for place in one.places]) if len(paths) <= FEW else ((), ())
        values = [100 * place.accuracy.value for place in one.places]
        dashed = i // len(COLOURS) % 2 == 1
        found.append(Series(f"to {one.end}", at, values, low, high, colour=colour, dashed=dashed))
        if len(paths) <= FEW:
            ends = [values[0], values[-1]]
            found.append(Series("", [at[0], at[-1]], ends, dashed=True, dots=False, colour=colour))
    return found


def bands(values: Sequence[Estimate]) -> tuple[Sequence[float], Sequence[float]]:
    """Returns the ends of intervals, in percent; none where one is missing."""
    ends = [(100 * v.low, 100 * v.high) for v in values if v.low is not None and v.high is not None]
    return ([low for low, _ in ends], [high for _, high in ends]) if len(ends) == len(values) else ((), ())


# ---------------------------------------------------------------------------------------------- diversity


def diversity_section(found: Comparison) -> Section:
    """Returns how differently versions err, pair by pair."""
    sentences = [reading.DIVERSITY, reading.DIFFERENCE]
    names = [one.name for one in found.versions]
    measures: list[tuple[str, Callable[[Pair], float | None]]] = [
        ("q-diversity", lambda pair: pair.q_diversity),
        ("ratio-error", lambda pair: pair.ratio_error),
        ("CKA of features", lambda pair: pair.cka),
    ]
    pictures = [Picture(matrix(names, grid(names, found.pairs, of), title), title) for title, of in measures]
    rows = [
        (
            f"{pair.first} – {pair.second}",
            decimals(pair.q_diversity),
            decimals(pair.ratio_error),
            f"{percent(pair.disagreement)} %",
            decimals(pair.cka, 3),
            points(pair.difference, pair.low, pair.high),
        )
        for pair in found.pairs
    ]
    head = ("pair", "q-diversity", "ratio-error", "answers differ", "CKA", "difference, points")
    seen = pictures if len(names) <= MOST_SEEN and len(names) > 2 else []
    return Section("Diversity", sentences, [*seen, Table(head, rows)])


def grid(names: Sequence[str], pairs: Sequence[Pair], of: Callable[[Pair], float | None]) -> list[list[float]]:
    """Returns a measure of every pair as a symmetric table, not-a-number where there is none."""
    place = {name: i for i, name in enumerate(names)}
    found = [[math.nan] * len(names) for _ in names]
    for pair in pairs:
        value, i, j = of(pair), place[pair.first], place[pair.second]
        found[i][j] = found[j][i] = math.nan if value is None else value
    return found


# ------------------------------------------------------------------------------------------ marginal gains


def gains_section(found: Comparison) -> Section:
    """Returns what each further version adds to the mean."""
    order = reading.SAME_DATA if found.ordered_by.endswith(found.data) else reading.OTHER_DATA
    first = f"The accuracy of the mean of the best k versions, by {found.ordered_by}. {reading.GAINS}"
    sentences = [first, law_sentence(found), order]
    axes = Axis("versions averaged", whole=True), Axis("accuracy, %")
    picture = Picture(plane(gain_series(found), "Marginal gains", axes), "Marginal gains")
    rows = [
        (
            one.added,
            str(one.k),
            with_ends(one.accuracy),
            with_ends(one.ensemble),
            points(one.difference, one.low, one.high) if one.k > 1 else points(0),
        )
        for one in found.gains
    ]
    head = ("added", "k", "mean, %", "ensemble, %", "mean less the best single, points")
    return Section("Marginal gains", sentences, [picture, Table(head, rows)])


def law_sentence(found: Comparison) -> str:
    """Returns what the fitted law says."""
    if found.law is None:
        return reading.NO_LAW
    law = found.law
    sign = "+" if law.slope < 0 else "−"
    formula = f"{100 * law.limit:.1f} {sign} {abs(100 * law.slope):.1f} / k"
    fit = f"by least squares, off by {100 * law.error:.1f} points in the root mean square"
    return f"Dashed: {formula} {fit}; {100 * law.limit:.1f} % is what ever more such versions would approach."


def gain_series(found: Comparison) -> list[Series]:
    """Returns the curves of mean and ensemble, and the law."""
    k = [one.k for one in found.gains]
    low, high = bands([one.accuracy for one in found.gains])
    series = [
        Series("mean of the best k", k, [100 * one.accuracy.value for one in found.gains], low, high, colour=BLUE),
        Series("their ensemble", k, [100 * one.ensemble.value for one in found.gains], colour=RED),
    ]
    if found.law is not None:
        fine = [1 + i * (len(k) - 1) / 60 for i in range(61)]
        values = [100 * (found.law.limit - found.law.slope / x) for x in fine]
        series.append(Series("law in 1/k", fine, values, dashed=True, dots=False, colour=GREY))
    return series


# -------------------------------------------------------------------------------------------- calibration


def calibration_section(found: Comparison) -> Section:
    """Returns whether versions are as sure as they are right."""
    drawn = everyone(found) if len(found.versions) < FEW + 2 else [found.versions[0], found.versions[-1], found.mean]
    series = [
        Series(one.name, [100 * b.confidence for b in one.reliability], [100 * b.accuracy for b in one.reliability])
        for one in drawn
    ]
    series.append(Series("as sure as right", [0, 100], [0, 100], dashed=True, dots=False, colour=GREY))
    axes = Axis("confidence, %"), Axis("accuracy, %")
    note = "" if len(drawn) == len(everyone(found)) else "Drawn are the best version, the last one and the mean."
    picture = Picture(plane(series, "Reliability", axes), "Reliability", note)
    rows = [
        (one.name, with_ends(Estimate(one.ece, *one.ece_ends)), percent(confidence(one)), percent(one.accuracy.value))
        for one in everyone(found)
    ]
    table = Table(
        ("version", "ECE, points", "mean confidence, %", "accuracy, %"), rows, strong=frozenset({len(found.versions)})
    )
    return Section("Calibration", [reading.CALIBRATION], [picture, table])


def confidence(one: Answered) -> float:
    """Returns how sure a version is on average."""
    return sum(b.n * b.confidence for b in one.reliability) / sum(b.n for b in one.reliability)
