"""The sections that need no evaluation: lineage, scores across commits, forgetting."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from modelgit.cli.reporting import reading
from modelgit.cli.reporting.words import percent, points, with_ends
from modelgit.cli.screen.blocks import count_text
from modelgit.porcelain.reporting.values import Board, Estimate, Model, Report, Standing
from modelgit.report.drawing import BLUE, GREEN, ORANGE, RED, Drawing
from modelgit.report.lineage import Kind, Node, lineage
from modelgit.report.plane import Axis, Series, plane
from modelgit.report.sheet import Picture, Section, Table
from modelgit.report.track import track

WIDEST = 1500  # pixels up to which a lineage is drawn in columns
MOST_BOARDS, MOST_ROWS = 8, 60
LINKED = 200  # descendants are joined to their nearest scored ancestors up to so many versions
LAST = ("worst group, %", "ECE, points", "forgotten, points")
APART = 0.14  # how far the dots of one version are apart


def day(date: int) -> str:
    """Returns the day of a date in seconds since 1970."""
    return datetime.fromtimestamp(date, UTC).strftime("%Y-%m-%d")


def board_name(board: Board) -> str:
    """Returns what a data set and its split are called."""
    held_out = f"{board.held_out} held out" if board.held_out else ""
    return ", ".join(word for word in (board.data, held_out, board.part) if word)


# ------------------------------------------------------------------------------------------------ lineage


def lineage_section(report: Report) -> Section:
    """Returns who descends from whom, with scores on the data set that most versions have one on."""
    board = report.boards[0] if report.boards else None
    nodes = nodes_of(report, board)
    score = f"{scored_by(board)}, %" if board is not None else ""
    sentences = [reading.LINEAGE]
    if board is not None:
        sentences.append(f"Numbers are {scored_by(board)} on {board_name(board)}, as noted when a version was scored.")
    if report.left_out:
        sentences.append(f"Shown are the newest {len(nodes)}; {count_text(report.left_out, 'older version')} left out.")
    return Section("Lineage", sentences, [Picture(drawn(nodes, score), "Lineage")])


def drawn(nodes: Sequence[Node], score: str) -> Drawing:
    """Returns the lineage in columns; in rows where it would be too wide."""
    columns = lineage(nodes, "Lineage", score)
    return columns if columns.width <= WIDEST else track(list(reversed(nodes)), "Lineage", score)


def scored_by(board: Board) -> str:
    """Returns which accuracy the lineage shows."""
    return "held-out accuracy" if any(row.held_out for row in board.rows) else "accuracy"


def nodes_of(report: Report, board: Board | None) -> list[Node]:
    """Returns the versions as the picture has them, oldest first."""
    scores = {row.number: chosen(row, board) for row in board.rows} if board is not None else {}
    target = board.data if board is not None else ""
    heads = {parent for model in report.versions for parent in model.parents}
    last = max((m.number for m in report.versions if m.kind == "merge" and m.number not in heads), default=0)
    return [
        Node(
            id=str(model.number),
            label=model.name,
            kind=kind_of(model, target, fused=model.number in heads),
            parents=tuple(str(parent) for parent in model.parents),
            score=scores.get(model.number),
            emphasis=model.number == last,
        )
        for model in report.versions
    ]


def chosen(row: Standing, board: Board) -> float | None:
    """Returns the accuracy that the lineage shows, in percent."""
    found = row.held_out if scored_by(board) == "held-out accuracy" else row.accuracy
    return None if found is None else 100 * found.value


def kind_of(model: Model, target: str, *, fused: bool) -> Kind:
    """Returns how the picture colours a version: training on other data than most were scored on is auxiliary."""
    if model.kind == "import":
        return "base"
    if model.kind == "probe":
        return "probe"
    if model.kind == "merge":
        return "fused" if fused else "merge"
    if model.kind == "train":
        return "aux" if target and model.data.rsplit(".", 1)[0] != target else "target"
    return "commit"


# ------------------------------------------------------------------------------------------------- scores


def scores_section(report: Report) -> Section:
    """Returns accuracies across commits, a picture and a table for each data set."""
    if not report.boards:
        return Section("Scores across commits", [reading.NO_SCORES])
    sentences = [reading.SCORES, reading.INTERVALS]
    several = [board for board in report.boards if len(board.rows) > 1]
    single = [board for board in report.boards if len(board.rows) == 1]
    if len(several) > MOST_BOARDS:
        sentences.append(f"Drawn are {MOST_BOARDS} of {len(several)} data sets, those with most scores.")
    parts = list[Picture | Table]()
    for board in several[:MOST_BOARDS]:
        parts += [board_picture(report.versions, board), *calibration_picture(report.versions, board)]
        parts.append(board_table(report.versions, board))
    parts += [single_table(report.versions, single)] if single else []
    return Section("Scores across commits", sentences, parts)


def board_picture(versions: Sequence[Model], board: Board) -> Picture:
    """Returns the accuracies of one data set over the versions."""
    links = joined(versions, board)
    shown: list[tuple[str, str, list[tuple[int, Estimate | None]]]] = [
        (accuracy_name(board), BLUE, [(row.number, row.accuracy) for row in board.rows]),
        ("held-out domain", RED, [(row.number, row.held_out) for row in board.rows]),
        ("worst domain", GREEN, [(row.number, row.worst) for row in board.rows]),
        ("worst group", ORANGE, [(row.number, row.worst_group) for row in board.rows]),
    ]
    seen = [one for one in shown if any(value for _, value in one[2])]
    series = [dots(name, found, (colour, APART * (i - 1)), links) for i, (name, colour, found) in enumerate(seen)]
    title = f"Accuracy on {board_name(board)}"
    return Picture(plane(series, title, (Axis("version", whole=True), Axis("accuracy, %"))), title)


def accuracy_name(board: Board) -> str:
    """Returns what the accuracy of a data set is of."""
    return "validation" if any(row.held_out for row in board.rows) else "accuracy"


def calibration_picture(versions: Sequence[Model], board: Board) -> list[Picture]:
    """Returns the calibration errors of one data set over the versions; nothing where no note tells them."""
    found = [(row.number, Estimate(row.ece)) for row in board.rows if row.ece is not None]
    if len(found) < 2:
        return []
    series = [dots("", found, (BLUE, 0.0), joined(versions, board))]
    title = f"Calibration error on {board_name(board)}"
    return [Picture(plane(series, title, (Axis("version", whole=True), Axis("ECE, points"))), title)]


def dots(
    name: str, found: Sequence[tuple[int, Estimate | None]], look: tuple[str, float], links: Sequence[tuple[int, int]]
) -> Series:
    """Returns accuracies as dots with their intervals, joined by links; `look` is their colour, and how far aside."""
    known = [(number, value) for number, value in found if value is not None]
    place = {number: i for i, (number, _) in enumerate(known)}
    kept = [(place[a], place[b]) for a, b in links if a in place and b in place]
    ends = [(100 * v.low, 100 * v.high) for _, v in known if v.low is not None and v.high is not None]
    whole = len(ends) == len(known)
    return Series(
        label=name,
        x=[number + look[1] for number, _ in known],
        y=[100 * value.value for _, value in known],
        low=[low for low, _ in ends] if whole else (),
        high=[high for _, high in ends] if whole else (),
        line=False,
        links=kept,
        colour=look[0],
    )


def joined(versions: Sequence[Model], board: Board) -> list[tuple[int, int]]:
    """Returns pairs of numbers: a scored version, and each nearest one that it descends from."""
    scored, nearest = {row.number for row in board.rows}, dict[int, frozenset[int]]()
    if len(versions) > LINKED:
        return []
    found = []
    for model in versions:  # oldest first
        above = frozenset[int]().union(*(nearest.get(parent, frozenset()) for parent in model.parents))
        if model.number in scored:
            found += [(number, model.number) for number in sorted(above)]
        nearest[model.number] = frozenset({model.number}) if model.number in scored else above
    return found


def board_table(versions: Sequence[Model], board: Board) -> Table:
    """Returns the scores on one data set as a table, newest first."""
    by_number = {model.number: model for model in versions}
    held = any(row.held_out for row in board.rows)
    rows = [board_row(by_number[row.number], row, held=held) for row in reversed(board.rows)][:MOST_ROWS]
    head = ["version", "#", "commit", "day", f"{accuracy_name(board)}, %", "worst domain, %"]
    head += ["held out, %"] if held else []
    return Table([*head, *LAST], rows, caption=board_name(board))


def single_table(versions: Sequence[Model], boards: Sequence[Board]) -> Table:
    """Returns the scores on data sets that one version alone was scored on."""
    by_number = {model.number: model for model in versions}
    rows = [
        (board_name(board), *board_row(by_number[board.rows[0].number], board.rows[0], held=True)) for board in boards
    ]
    head = (
        "data",
        "version",
        "#",
        "commit",
        "day",
        "accuracy, %",
        "worst domain, %",
        "held out, %",
        *LAST,
    )
    return Table(head, rows[:MOST_ROWS], words=2, caption="Data sets that one version was scored on")


def board_row(model: Model, row: Standing, *, held: bool) -> tuple[str, ...]:
    """Returns a version's line."""
    worst = f"{row.worst_domain} {with_ends(row.worst)}" if row.worst is not None else with_ends(None)
    about = (model.name, str(model.number), model.commit[:10], day(model.date), with_ends(row.accuracy), worst)
    lost = percent(None) if row.forgotten is None else points(row.forgotten)
    return (*about, *([with_ends(row.held_out)] if held else []), with_ends(row.worst_group), percent(row.ece), lost)


# --------------------------------------------------------------------------------------------- forgetting


def forgetting_section(report: Report) -> Section:
    """Returns what versions lost of what the versions they come from could do."""
    boards = [board for board in report.boards if any(row.forgotten is not None for row in board.rows)]
    if not boards:
        return Section("Forgetting", [reading.FORGETTING, reading.NOT_FORGOTTEN])
    series = [forgotten_series(board) for board in boards[:MOST_BOARDS]]
    axes = Axis("version", whole=True), Axis("forgotten, points")
    picture = Picture(plane(series, "Forgetting", axes), "Forgetting")
    rows = [mean_row(report, number, lost) for number, lost in latest(report.versions, boards)]
    table = Table(
        ("version", "#", "data sets", "forgotten on average", "most forgotten"),
        rows,
        caption="Versions that nothing shown descends from: the mean over data sets is what is called forgetting.",
    )
    return Section("Forgetting", [reading.FORGETTING], [picture, table] if rows else [picture])


def forgotten_series(board: Board) -> Series:
    """Returns what was forgotten of one data set."""
    known = [(row.number, 100 * row.forgotten) for row in board.rows if row.forgotten is not None]
    return Series(board_name(board), [x for x, _ in known], [y for _, y in known], line=False)


def latest(versions: Sequence[Model], boards: Sequence[Board]) -> Sequence[tuple[int, Mapping[str, float]]]:
    """Returns what the versions without descendants have forgotten, by data set, newest first."""
    inner = {parent for model in versions for parent in model.parents}
    found: dict[int, dict[str, float]] = {}
    for board in boards:
        for row in board.rows:
            if row.forgotten is not None and row.number not in inner:
                found.setdefault(row.number, {})[board_name(board)] = row.forgotten
    return sorted(found.items(), reverse=True)[:MOST_ROWS]


def mean_row(report: Report, number: int, lost: Mapping[str, float]) -> tuple[str, ...]:
    """Returns the line of a version in the table of forgetting."""
    most = max(sorted(lost), key=lambda name: lost[name])
    average = points(sum(lost.values()) / len(lost))
    name = next(model.name for model in report.versions if model.number == number)
    return name, str(number), str(len(lost)), average, f"{most} {points(lost[most])}"
