"""Paths that a recipe names are shown as people write them, and lead where they lead."""

from pathlib import Path

from modelgit.recipe.places import beside


def test_detours_are_left_out(tmp_path: Path) -> None:
    assert beside(tmp_path / "a", "../d.zip") == str(tmp_path / "d.zip")
    assert beside(tmp_path / "a" / ".." / "b", "./d.zip") == str(tmp_path / "b" / "d.zip")
    assert beside(tmp_path, "/elsewhere/d.zip") == "/elsewhere/d.zip"


def test_behind_a_link_they_stay_where_they_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "far" / "d.zip").touch()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    through = str(tmp_path / "link" / ".." / "d.zip")
    assert beside(tmp_path / "link", "../d.zip") == through
    (tmp_path / "d.zip").touch()  # another file, which the shorter path names
    assert beside(tmp_path / "link", "../d.zip") == through
