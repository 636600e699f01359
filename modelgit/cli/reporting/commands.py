"""The command that reports on a repository's models."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelgit.cli.command import command
from modelgit.cli.session import Session
from modelgit.errors import UsageError
from modelgit.porcelain.reporting.values import NEWEST, POINTS, Wanted

if TYPE_CHECKING:
    from modelgit.porcelain.reporting.values import Report

LEARNING, USUAL = "Training and scoring", Path("report.html")
OURS = '<meta name="generator" content="modelgit">'
HEAD_BYTES = 4096  # of a page, in which it says who wrote it


def register(app: typer.Typer) -> None:
    """Enters `report`."""

    @command(app, "report", panel=LEARNING, networks=True)
    def report(
        session: Session,
        revs: Annotated[
            list[str] | None, typer.Argument(metavar="[REV…]", help="Versions; none: all branches.")
        ] = None,
        on: Annotated[str, typer.Option("--on", metavar="DATA", help="Compare the versions named on this data.")] = "",
        output: Annotated[
            Path | None, typer.Option("--output", "-o", metavar="FILE.html", help="The page [default: report.html].")
        ] = None,
        newest: Annotated[int, typer.Option("--newest", min=1, help="How many versions are shown.")] = NEWEST,
        points: Annotated[int, typer.Option("--points", metavar="N", help="On each path, its ends included.")] = POINTS,
        by: Annotated[
            str | None, typer.Option("--by", metavar="COLUMN", help="A table's column whose groups are told apart.")
        ] = None,
        device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    ) -> "Report":
        """Write a page on the models of this repository.

        Shows the lineage with scores, and what git notes tell of accuracy, worst domain and group, held-out domain,
        calibration and forgetting: nothing is evaluated for that. With --on and two or more versions these are run on
        the data and compared: straight paths, diversity, marginal gains of averaging, calibration, domains, gaps
        between them; with --by between the groups of a table's column. The page is one HTML file that needs no network.
        With --json it is written only to a file that -o names.
        """
        from modelgit.porcelain.reporting.making import report as make

        path = output or (None if session.out.json else USUAL)
        check_place(path, named=output is not None)
        made = make(session.repo(), revs or [], Wanted(on, newest, points, device, by), session.listener)
        if path is None:
            return made
        write_page(made, path)
        return replace(made, page=str(path))


def check_place(path: Path | None, *, named: bool) -> None:
    """Raises UsageError where the page cannot go, before anything is measured: no folder, or somebody else's file."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"-o {path}: a folder, expected a file to write", hint=f"-o {path / USUAL}")
    if not named and path.exists():
        with path.open("rb") as file:
            if OURS.encode() not in file.read(HEAD_BYTES):
                raise UsageError(f"{path} is there and no report of ours", hint="name another file: -o FILE.html")


def write_page(made: "Report", path: Path) -> None:
    """Writes the page. Raises StorageFull."""
    from modelgit.cli.reporting.page import page
    from modelgit.report.sheet import sheet_html
    from modelgit.report.writing import write_text

    write_text(path, sheet_html(page(made)), hint="name another place: -o FILE.html")
