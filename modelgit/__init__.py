"""git for weights."""

from modelgit.version import VERSION as __version__

__all__ = ["__version__"]
