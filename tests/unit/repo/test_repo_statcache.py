"""The cache of what changed weight files hold: right or empty, whatever happened to it."""

import json
import os
from pathlib import Path

import pytest

from modelgit.formats.manifest import Manifest, TensorEntry
from modelgit.repo.statcache import StatCache

MANIFEST = Manifest("c" * 64, 40, 44, (TensorEntry("a", "F32", (1,), "a" * 64),))


def old_file(place: Path, content: bytes = b"weights") -> os.stat_result:
    place.write_bytes(content)
    os.utime(place, ns=(5, 5))
    found = place.stat()
    return os.stat_result((*found[:7], 5, 5, 5), {"st_mtime_ns": 5, "st_ctime_ns": 5, "st_atime_ns": 5})


def test_what_was_put_is_found_by_the_same_stat_only(tmp_path: Path) -> None:
    found = old_file(tmp_path / "m")
    cache = StatCache(tmp_path / "deep" / "cache.json")
    cache.put("m", found, MANIFEST)
    cache.save()
    again = StatCache(tmp_path / "deep" / "cache.json")
    assert again.get("m", found) == MANIFEST
    assert again.get("other", found) is None
    assert again.get("m", old_file(tmp_path / "m", b"longer weights")) is None
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["cache.json"]


def test_a_file_written_this_instant_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"x")
    cache = StatCache(tmp_path / "cache.json")
    cache.put("m", (tmp_path / "m").stat(), MANIFEST)
    cache.save()
    assert not (tmp_path / "cache.json").exists()


def test_what_nobody_asked_for_is_forgotten(tmp_path: Path) -> None:
    found = old_file(tmp_path / "m")
    cache = StatCache(tmp_path / "cache.json")
    cache.put("m", found, MANIFEST)
    cache.put("n", found, MANIFEST)
    cache.save()
    second = StatCache(tmp_path / "cache.json")
    assert second.get("m", found) == MANIFEST
    second.save()
    assert set(json.loads((tmp_path / "cache.json").read_text())["files"]) == {"m"}


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version":2,"files":{}}', b'{"version":1}',
        b'{"version":1,"files":[1]}',
        b'{"version":1,"files":{"m":{}}}', b'{"version":1,"files":{"m":{"stat":[1],"manifest":"x"}}}',
        b'{"version":1,"files":{"m":{"stat":[1,2,3,4],"manifest":7}}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_cache_is_empty(damage: bytes, tmp_path: Path) -> None:
    found = old_file(tmp_path / "m")
    (tmp_path / "cache.json").write_bytes(damage)
    cache = StatCache(tmp_path / "cache.json")
    assert cache.get("m", found) is None
    cache.put("m", found, MANIFEST)
    cache.save()
    assert StatCache(tmp_path / "cache.json").get("m", found) == MANIFEST


def test_a_damaged_manifest_in_it_is_read_again(tmp_path: Path) -> None:
    found = old_file(tmp_path / "m")
    cache = StatCache(tmp_path / "cache.json")
    cache.put("m", found, MANIFEST)
    cache.save()
    text = (tmp_path / "cache.json").read_text()
    (tmp_path / "cache.json").write_text(text.replace("F32", "F31"))
    assert StatCache(tmp_path / "cache.json").get("m", found) is None


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = StatCache(tmp_path / "file" / "cache.json")
    cache.put("m", old_file(tmp_path / "m"), MANIFEST)
    cache.save()
    assert (tmp_path / "file").read_bytes() == b""
