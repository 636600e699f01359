"""A page of sections, as one HTML file: pictures inside, tables beside them, no script, nothing from a network.

It follows the reader's light or dark setting, is read on a telephone by scrolling wide pictures, and is printed light.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from modelgit.report.drawing import BLUE, DARK, FONT, LIGHT, Drawing, Palette, document, escaped

ROOM = 0.62  # how much a picture is shrunk at most before it is scrolled
SAFE = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, what it is called for those who hear it, and words below it."""

    drawing: Drawing
    title: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first `words` columns hold words, others numbers. Rows in `strong` stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    caption: str = ""
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, sentences, then pictures and tables in their order."""

    title: str
    sentences: Sequence[str] = ()
    parts: Sequence[Picture | Table] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that is to be seen first: the value, what it is, and a remark."""

    value: str
    label: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The page; with several sections it begins with links to them."""

    title: str
    sentences: Sequence[str]
    sections: Sequence[Section]
    tiles: Sequence[Tile] = ()


def sheet_html(sheet: Sheet) -> str:
    """Returns the page."""
    links = "".join(f'<a href="#s{i}">{escaped(s.title)}</a>\n' for i, s in enumerate(sheet.sections, 1))
    parts = [
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escaped(sheet.title)}</title>\n',
        f'<meta name="generator" content="modelgit">\n<meta http-equiv="Content-Security-Policy" content="{SAFE}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f'<meta name="color-scheme" content="light dark">\n<style>{style()}</style>\n',
        f"<header><h1>{escaped(sheet.title)}</h1>\n{_sentences(sheet.sentences)}",
        f"<nav>{links}</nav>\n" if len(sheet.sections) > 2 else "",
        f'<div class="tiles">{"".join(map(_tile, sheet.tiles))}</div>\n' if sheet.tiles else "",
        "</header>\n<main>\n",
        *(_section(i, section) for i, section in enumerate(sheet.sections, 1)),
        "</main>\n</html>\n",
    ]
    return "".join(parts)


def _sentences(sentences: Sequence[str]) -> str:
    return "".join(f"<p>{escaped(line)}</p>\n" for line in sentences)


def _tile(tile: Tile) -> str:
    remark = f"<small>{escaped(tile.remark)}</small>" if tile.remark else ""
    return f"<div><strong>{escaped(tile.value)}</strong><span>{escaped(tile.label)}</span>{remark}</div>\n"


def _section(number: int, section: Section) -> str:
    parts = [_picture(part) if isinstance(part, Picture) else _table(part) for part in section.parts]
    heading = f'<section id="s{number}">\n<h2>{escaped(section.title)}</h2>\n'
    return f"{heading}{_sentences(section.sentences)}{''.join(parts)}</section>\n"


def _picture(picture: Picture) -> str:
    width = picture.drawing.width
    svg = document(picture.drawing, picture.title)
    caption = f"<figcaption>{escaped(picture.caption)}</figcaption>" if picture.caption else ""
    whole, least = round(width), round(ROOM * width)
    inner = f'<div class="wide"><div style="min-width:{least}px">\n{svg}</div></div>'
    return f'<figure style="width:min(100%,{whole}px)">{inner}{caption}</figure>\n'


def _table(table: Table) -> str:
    head = "".join(f"<th{_side(i, table)}>{escaped(name)}" for i, name in enumerate(table.head))
    rows = "".join(
        f"<tr{' class=strong' if number in table.strong else ''}>"
        + "".join(f"<td{_side(i, table)}>{escaped(cell)}" for i, cell in enumerate(row))
        + "</tr>\n"
        for number, row in enumerate(table.rows)
    )
    caption = f"<caption>{escaped(table.caption)}</caption>" if table.caption else ""
    return f'<div class="wide"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n'


def _side(column: int, table: Table) -> str:
    return " class=word" if column < table.words else ""


def style() -> str:
    """Returns the look of the page."""
    layout = (
        f"body{{font:16px/1.55 {FONT};margin:0 auto;padding:1.5rem clamp(1rem,4vw,3rem);max-width:1080px}}"
        "h1{font-size:1.9rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.35rem;margin:0 0 .5rem}"
        "p{margin:.4rem 0;max-width:76ch}section{border-top:1px solid;margin-top:2.2rem;padding-top:1.4rem}"
        "nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1rem 0}"
        ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr));gap:.8rem;margin:1.2rem 0}"
        ".tiles div{border:1px solid;border-radius:10px;padding:.8rem 1rem}.tiles strong{display:block;"
        "font-size:1.65rem;line-height:1.25}.tiles span{display:block}small,figcaption,caption{font-size:.85rem}"
        "figure{display:inline-block;vertical-align:top;margin:1.2rem 0}"
        "svg{display:block;width:100%;height:auto}.wide{overflow-x:auto}"
        "table{border-collapse:collapse;margin:1rem 0;font-size:.9rem;font-variant-numeric:tabular-nums}"
        "caption{text-align:left;padding:.2rem 0}td,th{padding:.3rem .8rem .3rem 0;text-align:right;"
        "border-bottom:1px solid;white-space:nowrap}th{vertical-align:bottom;white-space:normal}"
        ".word{text-align:left}td.word:first-child{max-width:22rem;overflow:hidden;text-overflow:ellipsis}"
        ".strong td{font-weight:600}"
    )
    printed = (
        "@media print{body{max-width:none;padding:0;font-size:11pt}nav{display:none}.wide{overflow:visible}"
        ".wide>div{min-width:0!important}section,figure,tr{break-inside:avoid-page}h2{break-after:avoid}}"
    )
    dark = f"@media screen and (prefers-color-scheme: dark){{{_colours(DARK)}}}"
    return f"{layout}{_colours(LIGHT)}{dark}{printed}"


def _colours(colours: Palette) -> str:
    return (
        f"body{{background:{colours['paper']};color:{colours['ink']}}}a{{color:{BLUE}}}"
        f"section,td,th,.tiles div{{border-color:{colours['line']}}}.tiles div{{background:{colours['card']}}}"
        f"small,figcaption,caption,th{{color:{colours['faint']}}}"
    )
