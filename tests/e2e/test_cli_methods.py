"""The list of methods, and methods of the user's own: run when they are named, and never because a commit says so."""

import importlib.util
import py_compile
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from telling import Tell, teller

import modelgit
from modelgit.cli.app import main
from modelgit.merge.methods import METHODS
from modelgit.repo.repository import Repository

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture(autouse=True)
def own_ones_leave() -> Iterator[None]:
    """Takes the methods that a test enters out of the registry again."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`main`, and four fine-tunes of it, all values of which are 1, 2, 4 or 9."""
    place = tmp_path_factory.mktemp("template") / "models"
    repo = modelgit.Repository.init(place)
    repo.commit({"w": np.zeros((8, 4), np.float32)}, message="base", branch="main", parents=[])
    for branch, value in (("a", 1), ("b", 2), ("c", 4), ("d", 9)):
        repo.commit({"w": np.full((8, 4), value, np.float32)}, message="tuned", branch=branch, parents=["main"])
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


def value() -> float:
    table = load_file("model.safetensors")["w"]
    assert (table == table[0, 0]).all()
    return float(table[0, 0])


def test_the_list_shows_every_method(tell: Tell) -> None:
    found = {method["name"]: method for method in tell("merge", "--list")["methods"]}
    assert found.keys() == METHODS.keys()
    ties = found["ties"]
    assert (ties["base"], ties["stored"], ties["models"]) == ("needed", "values", "1 or more")
    assert "arXiv:2306.01708" in ties["source"]
    assert {"name": "density", "type": "float", "default": 0.2, "meaning": ties["settings"][0]["meaning"]} in ties[
        "settings"
    ]
    assert [method["name"] for method in tell("merge", "--list", "ties", "slerp")["methods"]] == ["ties", "slerp"]
    assert "no merge method 'tie'" in tell("merge", "--list", "tie", code=2)["message"]


def test_the_list_looks_like_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--list"]) == 0
    out = capfd.readouterr().out
    assert [row.split()[0] for row in out.splitlines()[1:-1]] == sorted(METHODS)
    assert main(["merge", "--list", "--method", f"{EXAMPLE}:Winsorized"]) == 0
    assert "--set share=0.25" in capfd.readouterr().out


def test_a_function_of_ones_own(models: Path, tell: Tell) -> None:
    merged = tell("merge", "a", "b", "c", "d", "--method", f"{EXAMPLE}:midrange")
    assert merged["method"] == "own_method.py:midrange"
    assert value() == 5.0
    assert tell("verify", "--rerun", "--method", f"{EXAMPLE}:midrange")["tensors"] == 1


def test_a_class_with_settings(models: Path, tell: Tell) -> None:
    tell("merge", "a", "b", "c", "d", "--method", f"{EXAMPLE}:Winsorized", "--set", "share=0.3")
    assert value() == 3.0
    assert tell("verify", "--rerun", "--method", f"{EXAMPLE}:Winsorized")["tensors"] == 1
    error = tell("merge", "main", "a", "--method", f"{EXAMPLE}:Winsorized", "--set", "shore=1", code=2)
    assert "no setting 'shore'; its settings: share" in error["message"]


def test_no_file_is_run_because_a_commit_says_so(models: Path, tell: Tell, tmp_path: Path) -> None:
    own, ran = models / "blend.py", tmp_path / "ran"
    own.write_text(f"open({str(ran)!r}, 'a').write('x')\ndef blend(inputs):\n    return inputs.heads[0]\n")
    tell("merge", "a", "b", "--method", "blend.py:blend")
    ran.unlink()
    for name in ("blend.py:blend", "./blend.py:blend"):
        METHODS.pop(name, None)
    error = tell("verify", "--rerun", code=2)
    assert "running it is up to you" in error["message"]
    assert "--method path/to/blend.py:blend" in error["hint"]
    assert not ran.exists()
    text = own.read_text()
    own.write_text(text + "# changed\n")
    told = {"blend.py:blend": "the file has changed since", "blend.py:other": "another method than blend.py:blend"}
    for name, expected in told.items():
        assert expected in tell("verify", "--rerun", "--method", name, code=17)["message"]
    assert not ran.exists(), "the digest is compared before anything is run"
    own.unlink()
    (tmp_path / "moved.py").write_text(text)
    assert tell("verify", "--rerun", "--method", f"{tmp_path}/moved.py:blend")["method"] == "blend.py:blend"
    assert "leave --method out" in tell("verify", "--rerun", "a", "--method", "moved.py:blend", code=2)["hint"]


def test_bytecode_beside_the_file_is_neither_run_nor_written(models: Path, tell: Tell, tmp_path: Path) -> None:
    own, other, ran = models / "blend.py", tmp_path / "other.py", tmp_path / "ran"
    own.write_text("def blend(inputs):\n    return inputs.heads[0]\n")
    other.write_text(f"open({str(ran)!r}, 'a').write('x')\ndef blend(inputs):\n    return inputs.heads[0]\n")
    cached = Path(importlib.util.cache_from_source(str(own)))
    py_compile.compile(
        str(other), str(cached), str(own), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    tell("merge", "a", "b", "--method", "blend.py:blend")
    assert not ran.exists()
    shutil.rmtree(cached.parent)
    tell("verify", "--rerun", "--method", "blend.py:blend")
    assert not cached.parent.exists()


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (
            "def f(inputs):\n    return 1 / 0\n",
            "f",
            "method 'own.py:f' failed: ZeroDivisionError: division by zero (line 2)",
        ),
        ("def f(inputs):\n    return inputs.heads[0][:1]\n", "f", "expected values of shape [8, 4], got [1, 4]"),
        ("x = 1\n", "x", "no 'x' there to call"),
        ("def f(:\n", "f", "cannot be run: SyntaxError"),
        ("raise SystemExit(0)\n", "f", "cannot be run: SystemExit: 0"),
        ("def f(inputs):\n    exit(0)\n", "f", "method 'own.py:f' failed: SystemExit: 0"),
        ("def f(inputs):\n    pass\n", "", "method 'own.py': expected FILE.py:NAME"),
        ("class C:\n    pass\n", "C", "got a plain class"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass C:\n    pass\n",
            "C",
            "expected a class variable 'heads'",
        ),
    ],
)
def test_what_is_wrong_with_ones_own_is_told(models: Path, tell: Tell, text: str, name: str, expected: str) -> None:
    (models / "own.py").write_text(text)
    before = tell("status")["head"]
    assert expected in tell("merge", "a", "b", "--method", f"own.py:{name}".rstrip(":"), code=2)["message"]
    assert tell("status")["head"] == before
    assert "no file absent.py" in tell("merge", "a", "--method", "absent.py:f", code=2)["message"]


def test_a_value_that_is_not_finite_is_refused(models: Path, tell: Tell) -> None:
    Path("own.py").write_text("def f(inputs):\n    return inputs.heads[0] * float('nan')\n")
    before = value()
    tell("merge", "a", "b", "--method", "own.py:f", code=1)
    assert value() == before
    sys.modules.pop("modelgit_method_own", None)


def test_a_device_is_recorded(models: Path, tell: Tell) -> None:
    assert "--device moon" in tell("merge", "a", "b", "--method", "tsvm", "--device", "moon", code=2)["message"]
    tell("merge", "a", "b", "--method", "tsvm", "--device", "cpu:0")
    assert Repository.open(models).version("HEAD").entry.trailers["Merge-Device"] == ["cpu:0"]
    assert tell("verify", "--rerun")["tensors"] == 1
