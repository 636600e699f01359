"""Memory that runs out, wherever it does: said at what, how much was asked for, and what to turn down."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelgit.cli.app import translated
from modelgit.errors import OutOfMemory, StorageFull
from modelgit.pipeline.messages import Failed, ScoreRequest
from modelgit.pipeline.worker import answer
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.data.loading import load_dataset
from modelgit.train.feature_cache import features
from modelgit.train.features import Features, Place, Wanted
from modelgit.train.fitting.loop import Task, start, take_step
from modelgit.train.fitting.passes import scored_by
from modelgit.train.memory import ANYTHING, KILLED, memory_for, ran_out, shortage, step_keys
from modelgit.train.networks.network import Stage
from modelgit.train.networks.small import Perceptron
from modelgit.train.statistics import diagonal_fisher
from modelgit.train.task import Prepared, Workbench, evaluate, set_head

MakeZip = Callable[..., Path]
CONFIG = FineTune(9, 1e-3)
BEYOND = 1 << 46  # rows of 64 numbers: more than a 64-bit address space has room for


def hungry(x: Tensor) -> Tensor:
    """Asks for more memory than any machine has."""
    return x.repeat(BEYOND, 1)


class Hungry(Perceptron):
    """A network one of whose two stages asks for more memory than there is."""

    def __init__(self, stage: int = 1) -> None:
        super().__init__(2)
        self._hungry = stage

    def stages(self) -> list[tuple[Stage, Sequence[nn.Module]]]:
        return [(hungry if i == self._hungry else stage, m) for i, (stage, m) in enumerate(super().stages())]


@pytest.fixture
def ready(make_zip: MakeZip) -> Prepared:
    bench = Workbench("cpu")
    return bench.prepare(Hungry(), DataConfig(str(make_zip(count=8)), image_size=16), CONFIG)


def raised(action: Callable[[], object]) -> OutOfMemory:
    with pytest.raises(OutOfMemory) as caught:
        action()
    assert caught.value.exit_code == 18 and caught.value.hint
    return caught.value


def test_a_step_says_what_to_turn_down() -> None:
    examples = Features(torch.zeros(2, 768), torch.zeros(1, 2, 768), {0: 0, 1: 1}, {0: 0, 1: 1})
    task = Task("training on pets", examples, torch.zeros(2, dtype=torch.long), {"one": np.arange(2)})
    run = start(Hungry(), task, CONFIG)
    run.step = 6
    error = raised(lambda: take_step(run))
    assert error.message.startswith("step 7 of training on pets: out of main memory, ")
    assert error.message.endswith(" 528 PiB more were asked for")
    assert error.hint == step_keys(CONFIG)


def test_what_is_turned_down_already_is_not_named_again() -> None:
    assert step_keys(CONFIG).endswith("or set checkpoint = true and precision = 'bfloat16'")
    assert step_keys(CONFIG).startswith("turn down batch (")
    assert "image_size" in step_keys(CONFIG) and "image_size" not in step_keys(CONFIG, texts=True)
    saving = replace(CONFIG, batch_per_domain=2, checkpoint=True, precision="bfloat16")
    assert step_keys(saving).startswith("turn down batch_per_domain (")
    assert step_keys(saving).endswith("raise frozen_stages")


def test_validation_and_the_linear_probe_say_what_to_turn_down(ready: Prepared) -> None:
    error = raised(lambda: evaluate(scored_by(Hungry(), 0), ready))
    assert error.message.startswith(f"scoring on {Path(ready.dataset.path).name}: out of main memory")
    assert "image_size" in str(error.hint) and "frozen_stages" in str(error.hint)
    error = raised(lambda: set_head(Hungry(), ready, CONFIG))
    assert error.message.startswith(f"the linear probe on {Path(ready.dataset.path).name}: out of")
    assert "limit_per_class" in str(error.hint)


@pytest.mark.parametrize("kept", [False, True])
def test_features_of_frozen_stages_say_what_to_turn_down(make_zip: MakeZip, tmp_path: Path, *, kept: bool) -> None:
    dataset = load_dataset(DataConfig(str(make_zip(count=4)), image_size=16))
    wanted = Wanted(np.arange(4), np.arange(2), 1, CONFIG.augment)
    place = Place(1, torch.device("cpu"), tmp_path / "cache" if kept else None, lambda event: None)
    error = raised(lambda: features(Hungry(0), dataset, wanted, place))
    assert error.message.startswith(f"features of {Path(dataset.path).name}: out of main memory, ")
    assert "views" in str(error.hint)
    assert not list(tmp_path.glob("cache/*.npy*"))


def test_statistics_say_what_to_turn_down() -> None:
    class Greedy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(hungry(x))

    error = raised(lambda: diagonal_fisher(Greedy(64, 2), [torch.zeros(1, 64)]))
    assert error.message.startswith("statistics: out of main memory") and "--stats-images" in str(error.hint)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of main memory"),
        (MemoryError("Unable to allocate 1.50 TiB for an array with shape (1,)"), "1.5 TiB more were asked for"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 137438953472 bytes."),
         "out of main memory, 128 GiB more were asked for"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 3072 bytes."), "3 KiB more"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of"),
         "out of GPU memory, 20 GiB more were asked for"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "out of GPU memory"),
        (RuntimeError("unable to mmap 4096 bytes from file <x>: Cannot allocate memory (12)"), "4 KiB more"),
        (RuntimeError("std::bad_alloc"), "out of main memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of main memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of main memory"),
    ],
)  # fmt: skip
def test_every_way_in_which_memory_runs_out_is_known(error: Exception, told: str) -> None:
    assert ran_out(error) and told in shortage(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "No space"), ValueError("out")])
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_for("this", "that"):
        raise error
    assert caught.value is error


def test_the_innermost_says_it() -> None:
    with pytest.raises(OutOfMemory, match="inside: out of main memory") as caught:  # noqa: SIM117
        with memory_for("outside", "less of all"), memory_for("inside", "less of this"):
            raise MemoryError
    assert caught.value.hint == "less of this"


def test_a_full_disk_is_no_lack_of_memory(make_zip: MakeZip, tmp_path: Path) -> None:
    dataset = load_dataset(DataConfig(str(make_zip(count=4)), image_size=16))
    (tmp_path / "cache").write_text("no folder")
    place = Place(1, torch.device("cpu"), tmp_path / "cache", lambda event: None)
    with pytest.raises(StorageFull):
        features(Perceptron(2), dataset, Wanted(np.arange(4), np.arange(2), 1, CONFIG.augment), place)


def test_what_no_block_is_around_is_told_by_workers_and_the_command_line() -> None:
    def execute(_request: object, _say: object) -> Failed:
        raise MemoryError

    told = answer(ScoreRequest("one", "c", DataConfig("x.zip")), execute, lambda reply: None)
    assert told == Failed("one", "OutOfMemory", "its worker: out of main memory", ANYTHING)
    found = translated(MemoryError())
    assert isinstance(found, OutOfMemory) and (found.exit_code, found.hint) == (18, ANYTHING)
    assert "--workers 1" in KILLED
