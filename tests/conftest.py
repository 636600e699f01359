"""Fixtures that every room's tests may use, and those that all tests of some rooms are under."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from warm_python import missing, warm_python

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A program that stands for Python and starts modelgit from a warm process, as long as the session lasts."""
    place = tmp_path_factory.mktemp("warm")
    if missing(place):
        yield sys.executable
    else:
        with warm_python(place) as program:
            yield program


@pytest.fixture(autouse=True, scope="module")
def interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Has `sys.executable` be the warm one while tests in `e2e` run.

    As it is when their module is imported, it is Python itself, for tests of how a process starts or is ended.
    """
    before = sys.executable
    if request.path.is_relative_to(TESTS / "e2e"):
        sys.executable = request.getfixturevalue("warm")
    yield
    sys.executable = before


@pytest.fixture(autouse=True, scope="module")
def one_thread(request: pytest.FixtureRequest) -> None:
    """Has PyTorch compute with one thread in tests of `train`, as their results are those of one."""
    if request.path.is_relative_to(TESTS / "unit" / "train"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture
def make_zip(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a small archive of drawn pictures."""
    from drawn_pictures import zip_maker

    return zip_maker(tmp_path)
