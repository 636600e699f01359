"""Versions that hold a LoRA adapter alone: what they are together with the version that it was trained from.

`adapter_config.json` beside the factors is PEFT's; its `base_model_name_or_path` is the id of that commit, from which
the adapter's version descends. Adapters of two bases are then a conflict, and the base is there with the history.
"""

import json
import re
from collections.abc import Collection, Mapping

from modelgit.errors import DataError, FormatError, UsageError
from modelgit.merge.adapters.configuration import MAX_BYTES, Configuration, read_configuration
from modelgit.merge.adapters.folding import changes_of, folded
from modelgit.merge.adapters.naming import is_adapter
from modelgit.porcelain.tensors import Tensor, load_state, load_tensor
from modelgit.porcelain.versions import weights_of
from modelgit.repo.repository import Repository
from modelgit.repo.values import Version
from modelgit.store.files.tensors import StoredTensors
from modelgit.train.choices import Lora
from modelgit.train.networks.lora import modules_of

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def state_at(repo: Repository, rev: str, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """Returns the weights of a version, all or `only` some: of an adapter those of its base, changed by it.

    Raises:
        DataError: its base is no commit that the version descends from. FormatError, UsageError: its configuration.
    """
    source = weights_of(repo, rev)
    if not is_adapter(source.names()):
        return load_state(source) if only is None else {name: load_tensor(source, name) for name in only}
    version = repo.version(rev)
    found = together(repo, version, load_state(weights_of(repo, base_of(repo, version))), load_state(source))
    return found if only is None else {name: found[name] for name in only if name in found}


def together(
    repo: Repository, version: Version, base: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns weights changed by an adapter, as a version's configuration says."""
    told = configuration(repo, version)
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (own, base)]
    changes = changes_of(shapes[0], shapes[1], told)
    return {**base, **{name: folded(base.get(name), change, own) for name, change in changes.items()}}


def base_of(repo: Repository, version: Version) -> str:
    """Returns the commit that a version's weights belong to: that of the adapter's base, else the version itself."""
    if not any(is_adapter(entry.name for entry in m.tensors) for m in version.manifests.values()):
        return version.commit
    said = configuration(repo, version).table.get("base_model_name_or_path")
    if not isinstance(said, str) or not COMMIT.fullmatch(said) or not known(repo, said, version.commit):
        told = f"{version.commit[:10]} is an adapter of {str(said)[:60]!r}, which is no version that it descends from"
        raise DataError(told, hint="one that was trained here names it; of others: modelgit fold --base REV")
    return said


def known(repo: Repository, base: str, commit: str) -> bool:
    """Tells whether a commit is there, and below another."""
    code, _ = repo.git.attempt("cat-file", "-e", f"{base}^{{commit}}")[:2]
    return code == 0 and repo.is_ancestor(base, commit)


def configuration(repo: Repository, version: Version) -> Configuration:
    """Returns what a version's adapter_config.json says. Raises FormatError, UsageError for what is not understood."""
    blob = version.file(CONFIG)
    if blob is None:
        raise FormatError(f"{version.commit[:10]} holds an adapter, and no {CONFIG}", hint="commit both")
    return read_configuration(repo.read_blob(blob, MAX_BYTES), f"{CONFIG} in {version.commit[:10]}")


def refuse_adapter(source: StoredTensors, commit: str) -> None:
    """Refuses to train what is an adapter. Raises UsageError."""
    if is_adapter(source.names()):
        hint = "begin at its base, and merge the adapters afterwards: merge --method lora_cat"
        raise UsageError(f"{commit[:10]} is an adapter, which is not trained further", hint=hint)


def written(lora: Lora, adapter: Mapping[str, Tensor], head: tuple[str, str], base: str, *, turned: bool) -> bytes:
    """Returns the adapter_config.json of an adapter that was trained from the commit `base`.

    `turned` tells that its layers keep their matrices (inputs, outputs), as those of GPT-2.
    """
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    table = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": [head[0].removesuffix(".weight")],
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": list(modules_of(adapter)),
        "task_type": None,
        "use_rslora": False,
    }
    return (json.dumps(table, indent=2, sort_keys=True) + "\n").encode()
