"""Merge methods, one file a family; importing this package fills the registry with all of them."""

from modelgit.merge.informed import methods as informed
from modelgit.merge.methods import (  # noqa: F401  their methods enter the registry
    adapters,
    agreement,
    dropping,
    layers,
    means,
    robust,
    sparse,
    spectral,
    spherical,
)
from modelgit.merge.methods.registry import (
    METHODS,
    Combined,
    Elementwise,
    Fitted,
    Inputs,
    Linear,
    Method,
    check_arguments,
    make,
    of_heads,
    setting_types,
    settings_of,
)

__all__ = [
    "METHODS",
    "Combined",
    "Elementwise",
    "Fitted",
    "Inputs",
    "Linear",
    "Method",
    "check_arguments",
    "informed",
    "make",
    "of_heads",
    "setting_types",
    "settings_of",
]
