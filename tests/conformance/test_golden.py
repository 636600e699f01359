"""Repositories that earlier versions have written open for ever, every byte right."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import second_reader

from modelgit.formats.manifest import write
from modelgit.porcelain import sharing
from modelgit.repo.repository import Repository
from modelgit.store.codec import compiled, transforms
from modelgit.store.codec.reference import NumpyTransforms

COMPILED = compiled.load_compiled()
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FOLDERS = sorted(path for path in GOLDEN.iterdir() if path.is_dir() and "-by-" in path.name)
golden = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


def opened(folder: Path, place: Path) -> Repository:
    """Return a copy of a golden repository: its history from the bundle, its packs beside."""
    Repository.init(place)
    fetch = ["git", "-C", str(place), "fetch", "-q", "--tags", str(folder / "history.bundle"), "main:refs/heads/golden"]
    subprocess.run(fetch, check=True)
    repo = Repository.open(place)
    shutil.copytree(folder / "packs", repo.git_dir / "modelgit" / "packs", dirs_exist_ok=True)
    return repo


def expected(folder: Path) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of each file of each version."""
    found: dict[str, dict[str, str]] = {}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        tag, _, path = name.partition("/")
        found.setdefault(tag, {})[path] = digest
    return found


@golden
@pytest.mark.parametrize("kind", ["wide", "narrow", "numpy"])
def test_every_version_comes_back(folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind != "numpy" and COMPILED is None:
        pytest.skip("the kernel is not built")
    tools = NumpyTransforms() if kind == "numpy" else compiled.load_compiled(wide=kind == "wide")
    monkeypatch.setattr(compiled, "load_compiled", lambda: tools)
    transforms.transforms.cache_clear()
    try:
        repo = opened(folder, tmp_path / "repo")
        assert repo.store.fsck(full=True).problems == ()
        assert transforms.transforms() is tools
        for tag, files in expected(folder).items():
            sharing.export(repo, tag, tmp_path / tag)
            found = {path: hashlib.sha256((tmp_path / tag / path).read_bytes()).hexdigest() for path in files}
            assert found == files, tag
    finally:
        transforms.transforms.cache_clear()


@golden
def test_the_second_reader_reads_it(folder: Path, tmp_path: Path) -> None:
    repo = opened(folder, tmp_path / "repo")
    second = second_reader.Store(folder / "packs")
    for tag, files in expected(folder).items():
        for path, manifest in repo.version(tag).manifests.items():
            found = second_reader.weight_file(second, write(manifest))
            assert hashlib.sha256(found).hexdigest() == files[path]
    assert {"plane 0", "plane 1", "plane 2", "plane 3", "same", "different"} <= set(second.seen)
    assert {f"codec {number}" for number in range(5)} <= set(second.seen)


@golden
def test_it_has_a_record_of_every_form(folder: Path) -> None:
    second = second_reader.Store(folder / "packs")
    records = [second.record(oid)[1] for oid in second.entries]
    wide = {(r.codec, r.width) for r in records}
    assert {(codec, width) for codec in (second_reader.FULL, second_reader.DELTA) for width in (1, 2, 4, 8)} <= wide
    assert {r.arithmetic for r in records if r.codec == second_reader.LINEAR} == {0, 1, 2, 3}
    assert {r.depth for r in records if r.codec == second_reader.DELTA} == {1, 2, 3, 4}
    assert {r.codec for r in records if r.members} == {second_reader.FULL, second_reader.DELTA}
    assert {r.codec for r in records if len(r.leaves) > 1} >= {second_reader.FULL, second_reader.DELTA}
    over = [second.record(parent)[1].codec for r in records if r.codec == second_reader.LINEAR for parent in r.parents]
    assert second_reader.LINEAR in over
    under = [second.record(r.parents[0])[1].codec for r in records if r.codec == second_reader.DELTA]
    assert second_reader.LINEAR in under


def test_there_is_one() -> None:
    assert [path.name for path in FOLDERS][:1] == ["1-by-0.1.0"]
