"""A page of sections: what is in it, that nothing breaks out of it, and that it needs nothing from elsewhere."""

import re
from html.parser import HTMLParser

from modelgit.report.drawing import Drawing, text
from modelgit.report.sheet import Picture, Section, Sheet, Table, Tile, sheet_html

EVIL = "</td><script>alert('x')</script>\x00\u202e&\""


def sheet(words: str = "Scores") -> str:
    picture = Picture(Drawing(100, 50, text(1, 2, words)), words, words)
    table = Table((words, "n"), [(words, "1"), ("b", "2")], caption=words, strong=frozenset({1}))
    return sheet_html(Sheet(words, [words], [Section(words, [words], [picture, table])] * 3, [Tile("1", words, words)]))


def tags(page: str) -> list[str]:
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(tag)

    Reader().feed(page)
    return found


def test_the_page_has_links_to_its_sections_and_its_numbers() -> None:
    page = sheet()
    assert re.findall(r'href="(#s\d)"', page) == ["#s1", "#s2", "#s3"]
    assert page.count("<section id=") == 3 and page.count("<svg") == 3
    assert "<tr class=strong><td class=word>b<td>2</tr>" in page
    assert "<strong>1</strong><span>Scores</span><small>Scores</small>" in page


def test_no_text_breaks_out_of_its_place() -> None:
    assert tags(sheet(EVIL)) == tags(sheet())
    assert "\x00" not in sheet(EVIL) and "\u202e" not in sheet(EVIL)


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    page = sheet()
    assert set(re.findall(r"https?://[^\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page and "@import" not in page and "script" not in tags(page)
    assert "default-src 'none'" in page


def test_it_is_dark_on_screens_that_ask_for_it_and_light_on_paper() -> None:
    page = sheet()
    assert page.count("@media screen and (prefers-color-scheme: dark)") == 4  # the page's, and that of each picture
    assert page.count("prefers-color-scheme") == 4
    assert "@media print" in page
