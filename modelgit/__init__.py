"""git for weights: clone, commit and merge models as we do software.

>>> repo = modelgit.Repository(".")                             # doctest: +SKIP
>>> repo.commit(model.state_dict(), message="First version")    # doctest: +SKIP
>>> repo.load("main")["layer.0.weight"]                         # doctest: +SKIP
"""

from modelgit.version import VERSION as __version__

TYPE_CHECKING = False  # true for whoever checks types; the module typing takes most of the time that this one needs
if TYPE_CHECKING:
    from modelgit.errors import ModelgitError
    from modelgit.porcelain.merging.values import Choices
    from modelgit.porcelain.python import Repository, Weights
    from modelgit.porcelain.records import Record
    from modelgit.train.trust import trust_factory

__all__ = ["Choices", "ModelgitError", "Record", "Repository", "Weights", "__version__", "trust_factory"]

# Loaded on first use: `import modelgit` alone is quick.
HOMES = {
    "Choices": "modelgit.porcelain.merging",
    "ModelgitError": "modelgit.errors",
    "Record": "modelgit.porcelain.records",
    "Repository": "modelgit.porcelain.python",
    "Weights": "modelgit.porcelain.python",
    "trust_factory": "modelgit.train.trust",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module 'modelgit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
