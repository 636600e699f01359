"""A print tells whether a weight file still is what it was; it comes along when the file is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.store.files import prints
from modelgit.store.files.intake import store_and_print
from modelgit.store.files.prints import print_of
from modelgit.store.identity import FRAME_BYTES
from modelgit.store.objects import ObjectStore

State = dict[str, np.ndarray]


@pytest.fixture
def state() -> State:
    draws = np.random.default_rng(0)
    large = draws.standard_normal(FRAME_BYTES // 4 + 1000).astype(np.float32)
    small = draws.standard_normal((7, 3)).astype(np.float16)
    return {"large": large, "small": small, "none": np.empty((0, 4), np.float32), "one": np.array([3.0])}


def test_the_print_comes_along_when_a_file_is_stored(tmp_path: Path, state: State) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    store = ObjectStore(tmp_path / "store")
    parent = None
    for _ in range(2):  # the second time everything equals the parent's
        with store.begin() as pack:
            parent, found = store_and_print(pack, path, parent, lambda event: None)
            pack.commit()
        assert found == print_of(path)
        assert found is not None and len(found) == 32 + 1 + 16


@pytest.mark.parametrize("name", ["large", "small", "one"])
def test_one_changed_bit_anywhere_changes_it(tmp_path: Path, state: State, name: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    before = print_of(path)
    raw = state[name].view(np.uint8).reshape(-1)
    raw[-1] ^= 1
    save_file(state, path)
    assert print_of(path) != before


def test_most_changed_files_are_told_without_reading_all(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    before = print_of(path)
    assert print_of(path, before) == before
    asked: list[int] = []
    took = prints.take_in

    def watched(hasher: Any, handle: int, start: int, size: int, buffer: memoryview) -> bool:
        asked.append(size)
        return took(hasher, handle, start, size, buffer)

    monkeypatch.setattr(prints, "take_in", watched)
    state["large"][100], kept = 7, state["large"][100]
    save_file(state, path)
    assert print_of(path, before) is None and sum(asked) < 2 * prints.READ_BYTES
    state["large"][[100, -1]] = kept, 7  # behind what is looked at first
    save_file(state, path)
    assert print_of(path, before) not in (None, before) and sum(asked) > FRAME_BYTES


def test_a_changed_header_changes_it(tmp_path: Path, state: State) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state, path, {"a": "1"})
    before = print_of(path)
    save_file(state, path, {"a": "2"})
    assert print_of(path) != before
