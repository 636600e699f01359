"""Which size pictures are read at: that of the training, where no settings say another."""

from pathlib import Path

import pytest

from modelgit.errors import UsageError
from modelgit.porcelain.scores import data_at


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [({"main": 32}, 32), ({"main": None}, 64), ({"main": None, "other": 32}, 32), ({"main": 96, "other": 96}, 96)],
)
def test_pictures_are_read_at_the_size_trained_at(sizes: dict[str, int | None], expected: int) -> None:
    assert data_at("target.zip", sizes).config.image_size == expected


def test_versions_of_different_sizes_are_told_apart_where_data_has_pixels() -> None:
    with pytest.raises(UsageError, match="main at 32, other at 64 pixels"):
        data_at("target.zip", {"main": 32, "other": 64})
    assert data_at("people.csv", {"main": 32, "other": 64}).label == "people"


def test_a_pipeline_says_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        '[pipeline]\nname = "p"\n[model]\narchitecture = "mlp"\n[data.d]\npath = "d.zip"\nimage_size = 48\n'
    )
    assert data_at(f"{path}#d", {"main": 32, "other": 64}).config.image_size == 48
