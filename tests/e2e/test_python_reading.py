"""Tensors in and out of a repository from Python: one at a time, as PyTorch or numpy has them, and refused clearly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modelgit
from modelgit.errors import FormatError, UsageError
from modelgit.store.backend import DirBackend
from modelgit.store.objects import ObjectStore

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.int32,
          torch.uint32, torch.float32, torch.float64, torch.int64, torch.uint64, torch.complex64, torch.float8_e4m3fn,
          torch.float8_e5m2]  # fmt: skip
WITHOUT_NUMPY = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}


class Counting(DirBackend):
    """Counts the bytes that are read from packs."""

    read_bytes = 0

    def read_into(self, name: str, start: int, into: memoryview) -> None:
        self.read_bytes += len(into)
        super().read_into(name, start, into)


@pytest.fixture
def repo(tmp_path: Path) -> modelgit.Repository:
    return modelgit.Repository.init(tmp_path / "models")


def test_every_type_comes_back(repo: modelgit.Repository) -> None:
    state = {str(dtype).removeprefix("torch."): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0), "turned": torch.arange(6.0).reshape(2, 3).t()}
    repo.commit(state, message="all types")
    weights, arrays = repo.load(), repo.load(framework="numpy")
    for name, tensor in state.items():
        assert weights[name].dtype == tensor.dtype
        assert weights[name].tolist() == tensor.tolist()
        if tensor.dtype in WITHOUT_NUMPY:
            with pytest.raises(FormatError, match="numpy has no type for") as caught:
                arrays[name]
            assert "float()" in str(caught.value.hint)
        else:
            assert arrays[name].tolist() == tensor.tolist()
            assert arrays[name].shape == tuple(tensor.shape)
            assert str(arrays[name].dtype) == str(tensor.dtype).removeprefix("torch.")
    assert bytes(weights.raw("bfloat16")) == state["bfloat16"].view(torch.uint8).numpy().tobytes()
    arrays["float32"][0] = 7  # memory of its own
    assert weights["float32"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_a_prompt_shows_says_what_it_is(repo: modelgit.Repository, tmp_path: Path) -> None:
    assert repr(repo) == f"Repository('{tmp_path / 'models'}')"
    repo.commit({name: torch.zeros(2, 3) for name in "edcba"}, message="five")
    shown = "a: F32 [2, 3]; b: F32 [2, 3]; c: F32 [2, 3]; 2 more"
    assert repr(repo.load()) == f"<Weights for torch: {shown}>"
    repo.commit({"one": torch.tensor(1, dtype=torch.int8)}, message="one")
    assert repr(repo.load(framework="numpy")) == "<Weights for numpy: one: I8 []>"
    rows = modelgit.Repository(repo.path).load("HEAD~1").rows("a", -1, 99)
    assert rows.shape == (1, 3)  # cut as a slice is


def test_rows_are_those_of_a_slice(repo: modelgit.Repository) -> None:
    state = {"long": torch.randn(700, 2048), "short": torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)}
    repo.commit({**state, "scalar": torch.tensor(1.0)}, message="long")
    weights, arrays = repo.load(), repo.load(framework="numpy")
    for start, stop in [(0, 700), (0, 1), (511, 514), (600, 650), (-3, 700), (5, 5), (9, 4), (650, 9999)]:
        assert torch.equal(weights.rows("long", start, stop), state["long"][start : max(stop, start % 700)])
        assert np.array_equal(arrays.rows("long", start, stop), state["long"].numpy()[start:stop])
    assert weights.rows("short", 1, 3).tolist() == [[3, 4, 5], [6, 7, 8]]
    with pytest.raises(FormatError, match="scalar"):
        weights.rows("scalar", 0, 1)
    with pytest.raises(FormatError, match="no tensor is called 'lang'"):
        weights.rows("lang", 0, 1)


def test_one_tensor_costs_its_own_bytes(repo: modelgit.Repository) -> None:
    rng = np.random.default_rng(1)
    noise = {f"t{i}": rng.integers(0, 256, 1 << 20, np.uint8) for i in range(5)}
    noise["long"] = rng.integers(0, 256, (3, 1 << 22), np.uint8)
    repo.commit(noise, message="noise")
    backend = Counting(repo.path / ".git" / "modelgit")
    repo._repo.__dict__["store"] = ObjectStore(backend, threads=1)
    weights = repo.load()
    assert backend.read_bytes < 5000
    assert weights["t3"].numpy().tobytes() == noise["t3"].tobytes()
    one = backend.read_bytes
    assert (1 << 20) <= one < (1 << 20) + 10_000
    assert weights.rows("long", 1, 2).numpy().tobytes() == noise["long"][1].tobytes()
    assert backend.read_bytes - one < (1 << 22) + 10_000


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"w": [1, 2]}, "'w': expected names and PyTorch tensors or numpy arrays, got list"),
        ({"w": 1.5}, "got float"),
        ({"w": None}, "got NoneType"),
        ({3: torch.ones(1)}, "3: expected names"),
        ({"w": np.array(["a"])}, "PyTorch cannot hold it"),
        ({"w": np.array([object()])}, "PyTorch cannot hold it"),
        ({"w": torch.zeros(3, dtype=torch.complex128)}, "cannot store type complex128"),
        ({"w": torch.ones(2, 2).to_sparse()}, "expected a dense one"),
        ({"w": torch.ones(2, device="meta")}, "expected a dense one"),
        ({"../w": torch.ones(2)}, "looks like a path"),
    ],
)
def test_what_is_no_tensor_is_refused(repo: modelgit.Repository, state: Any, says: str) -> None:
    with pytest.raises(FormatError, match=says.replace(".", r"\.")):
        repo.commit(state, message="no")
    assert repo.head() is None


def test_arrays_of_any_layout_are_taken(repo: modelgit.Repository) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    lazy = torch.tensor([1 + 2j]).conj()
    state: dict[str, Any] = {
        "turned": base.T,
        "back": base[::-1, ::2],
        "scalar": np.float32(2),
        "zero": np.array(5),
        "lazy": lazy,
    }
    repo.commit(state, message="layouts")
    found = repo.load(framework="numpy")
    assert {name: found[name].tolist() for name in found} == {name: value.tolist() for name, value in state.items()}
    assert found["scalar"].shape == ()


def test_the_howto_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "howto" / "python.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) == 4
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "howto", "exec"), scope)
    assert scope["weights"].rows("layer.weight", 10, 20).shape == (10, 64)


def test_frameworks_and_devices_that_are_not_there(repo: modelgit.Repository) -> None:
    repo.commit({"w": torch.ones(2)}, message="one")
    with pytest.raises(UsageError, match="expected one of torch, numpy"):
        repo.load(framework="jax")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="main memory"):
        repo.load(framework="numpy", device="cuda")
    with pytest.raises(UsageError, match="device 'nowhere' cannot be used"):
        repo.load(device="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device 'cuda' cannot be used"):
            repo.load(device="cuda")
    assert repo.load(device="cpu")["w"].device == torch.device("cpu")
