"""What frozen stages make of images: computed once, the same from disk and from memory, never half written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from modelgit.errors import StorageFull
from modelgit.events import Advanced, Event, Finished, Started
from modelgit.train.config import Augment, DataConfig
from modelgit.train.data.dataset import Dataset, arrays_of
from modelgit.train.data.loading import load_dataset
from modelgit.train.feature_cache import features
from modelgit.train.features import Features, Place, Wanted, augment, run_stages
from modelgit.train.networks.network import Network
from modelgit.train.networks.registry import build_network

MakeZip = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def network() -> Network:
    torch.manual_seed(1)
    return build_network("cnn", 2).eval()


@pytest.fixture
def dataset(make_zip: MakeZip) -> Dataset:
    return load_dataset(DataConfig(str(make_zip(count=4)), image_size=32))


def wanted(views: int = 3, amounts: Augment | None = None) -> Wanted:
    return Wanted(np.arange(0, 24, 2), np.arange(0, 24, 4), views, amounts or Augment())


def kept(network: Network, dataset: Dataset, folder: Path | None, events: list[Event] | None = None) -> Features:
    listener = events.append if events is not None else lambda event: None
    return features(network, dataset, wanted(), Place(2, CPU, folder, listener))


def test_clean_features_are_what_the_frozen_stages_make(network: Network, dataset: Dataset) -> None:
    found = kept(network, dataset, None)
    with torch.no_grad():
        expected = run_stages(network, network.prepare(torch.from_numpy(arrays_of(dataset, [4, 22]))), 0, 2)
    assert found.clean.shape == (12, 32, 8, 8) and found.views.shape == (3, 6, 32, 8, 8)
    assert found.views.dtype == torch.float16
    assert torch.equal(found.of(np.array([4, 22])), expected)


def test_disk_and_memory_give_the_same_and_the_second_time_nothing_is_computed(
    network: Network, dataset: Dataset, tmp_path: Path
) -> None:
    events: list[Event] = []
    memory, first = kept(network, dataset, None), kept(network, dataset, tmp_path / "cache", events)
    assert events[0] == Started("features of bars.zip", 24 + 3 * 24, "images")  # all of the block that they are in
    assert events[-1] == Finished("features of bars.zip")
    events.clear()
    second = kept(network, dataset, tmp_path / "cache", events)
    assert events == []
    for found in (first, second):
        same(found, memory, wanted())


def same(found: Features, other: Features, some: Wanted) -> None:
    assert torch.equal(found.of(some.clean), other.of(some.clean))
    for view in range(some.views):
        for image in some.viewed:
            assert torch.equal(augmented(found, view, image), augmented(other, view, image))


def test_another_split_adds_the_blocks_that_are_not_there_yet(
    network: Network, make_zip: MakeZip, tmp_path: Path
) -> None:
    dataset = load_dataset(DataConfig(str(make_zip(count=30)), image_size=32))  # 180 images, in blocks of 64
    events: list[Event] = []
    first, other = wanted(), Wanted(np.arange(60, 100), np.arange(70, 90), 3, Augment())
    place = Place(2, CPU, tmp_path / "cache", events.append)
    features(network, dataset, first, place)
    events.clear()
    found = features(network, dataset, other, place)
    assert events[0] == Started("features of bars.zip", 64 + 3 * 64, "images")
    in_memory = Place(2, CPU, None, lambda event: None)
    same(found, features(network, dataset, other, in_memory), other)  # bit for bit, whatever was there before
    same(features(network, dataset, first, place), features(network, dataset, first, in_memory), first)


def test_a_cache_that_is_removed_meanwhile_is_missed_by_nobody(
    network: Network, dataset: Dataset, tmp_path: Path
) -> None:
    def remove(event: Event) -> None:
        if isinstance(event, Started):
            shutil.rmtree(tmp_path / "cache")
            kept(network, dataset, tmp_path / "cache")  # another process makes its own

    found = features(network, dataset, wanted(), Place(2, CPU, tmp_path / "cache", remove))
    same(found, kept(network, dataset, None), wanted())
    same(kept(network, dataset, tmp_path / "cache"), kept(network, dataset, None), wanted())


def test_a_disk_with_too_little_room_is_left_as_it_was(
    network: Network, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _handle: SimpleNamespace(f_bavail=1, f_frsize=4096))
    with pytest.raises(StorageFull, match="No space left on device, 196,608 bytes are needed"):
        kept(network, dataset, tmp_path / "cache")
    assert sum(512 * path.stat().st_blocks for path in (tmp_path / "cache").iterdir()) < 20_000


def test_rows_of_a_run_that_was_stopped_do_not_count(network: Network, dataset: Dataset, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    place = Place(2, CPU, tmp_path / "cache", stop)
    with pytest.raises(KeyboardInterrupt):
        features(network, dataset, wanted(), place)
    same(kept(network, dataset, tmp_path / "cache"), kept(network, dataset, None), wanted())


def test_what_is_no_image_is_counted_as_an_example(network: Network, dataset: Dataset) -> None:
    events: list[Event] = []
    features(network, replace(dataset, kind="arrays"), wanted(views=0), Place(2, CPU, None, events.append))
    assert events[0] == Started("features of bars.zip", 24, "examples")  # those to train on are among them


def test_nothing_but_the_result_stays(network: Network, dataset: Dataset, tmp_path: Path) -> None:
    kept(network, dataset, tmp_path)
    assert sorted(path.name.split(".", 1)[1] for path in tmp_path.iterdir() if path.suffix != ".zip") == [
        "clean.lock",
        "clean.npy",
        "views.lock",
        "views.npy",
    ]


def test_a_damaged_cache_is_computed_again(network: Network, dataset: Dataset, tmp_path: Path) -> None:
    kept(network, dataset, tmp_path / "cache")
    for name in ("*.views.npy", "*.clean.npy"):
        for content in (b"", b"\x93NUMPY nonsense", b"\x93NUMPY\x01\x00"):
            next((tmp_path / "cache").glob(name)).write_bytes(content)
            same(kept(network, dataset, tmp_path / "cache"), kept(network, dataset, None), wanted())


def test_other_weights_or_amounts_are_kept_apart(network: Network, dataset: Dataset, tmp_path: Path) -> None:
    place = Place(2, CPU, tmp_path / "cache", lambda event: None)
    first = features(network, dataset, wanted(), place)
    other = features(network, dataset, wanted(amounts=Augment(rotation=0.0)), place)
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    changed = features(network, dataset, wanted(), place)
    images = wanted().clean
    assert torch.equal(first.of(images), other.of(images)) and not torch.equal(augmented(first, 0), augmented(other, 0))
    assert not torch.equal(first.of(images), changed.of(images))


def augmented(found: Features, view: int, image: int = 8) -> Tensor:
    """Returns a view of an image."""
    return found.augmented(torch.tensor([view * found.views.shape[1] + found.viewed[int(image)]]), lambda rows: rows)


def test_a_view_of_an_image_does_not_depend_on_the_others(network: Network, dataset: Dataset) -> None:
    place = Place(2, CPU, None, lambda event: None)
    many = features(network, dataset, wanted(), place)
    few = features(network, dataset, Wanted(np.array([8]), np.array([8]), 3, Augment()), place)
    assert torch.equal(augmented(many, 2), many.views[2, many.viewed[8]].unsqueeze(0).float())
    assert torch.allclose(augmented(few, 2), augmented(many, 2), atol=1e-3)


def test_no_views_means_the_images_as_they_are(network: Network, dataset: Dataset) -> None:
    found = features(network, dataset, wanted(views=0), Place(2, CPU, None, lambda event: None))
    assert found.views.shape[0] == 1
    assert torch.equal(augmented(found, 0), found.of(np.array([8])).half().float())


def test_amounts_of_zero_change_nothing() -> None:
    still = Augment(rotation=0, scale=0, shift=0, contrast=0, brightness=0, mirror=0, grey=0)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
    assert torch.allclose(augment(x, still, [1, 2]), x, atol=1e-3)
    assert torch.allclose(augment(x, Augment(0, 0, 0, 0, 0, mirror=1, grey=0), [1, 2]), x.flip(3), atol=1e-3)
    grey = augment(x, Augment(0, 0, 0, 0, 0, mirror=0, grey=1), [1, 2])
    assert torch.allclose(grey, x.mean(1, keepdim=True).expand_as(x), atol=1e-3)


def test_pictures_stay_within_their_range() -> None:
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
    y = augment(x, Augment(), list(range(8)))
    assert float(y.min()) >= 0 and float(y.max()) <= 255
    assert len({round(float(image.mean()), 3) for image in y}) == 8


def test_a_folder_that_cannot_be_written_is_said(network: Network, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull, match="cannot keep features in"):
        kept(network, dataset, tmp_path / "file" / "cache")


COMPUTE = """
import sys, torch
from pathlib import Path
import numpy as np
from modelgit.train.config import Augment, DataConfig
from modelgit.train.data.loading import load_dataset
from modelgit.train.feature_cache import features
from modelgit.train.features import Place, Wanted
from modelgit.train.networks.registry import build_network
torch.manual_seed(1)
torch.set_num_threads(1)
said = []
data = load_dataset(DataConfig(sys.argv[1], image_size=32))
place = Place(1, torch.device("cpu"), Path(sys.argv[2]), said.append)
features(build_network("cnn", 2).eval(), data, Wanted(np.arange(24), np.arange(24), 2, Augment()), place)
print(len(said) > 0)
"""


def test_two_processes_compute_once(make_zip: MakeZip, tmp_path: Path) -> None:
    path = make_zip(count=4)
    command = [sys.executable, "-c", COMPUTE, str(path), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["False", "True"]
