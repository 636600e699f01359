"""What the network of a version is built from: its architecture, and the small files that describe it."""

from modelgit.porcelain.training.adapting import base_of
from modelgit.porcelain.versions import parameters
from modelgit.repo.repository import Repository
from modelgit.train.networks.network import Design
from modelgit.train.networks.registry import needs_nothing

FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json", "1_Pooling/config.json"),
    "preprocessor_config.json",
)
MAX_BYTES = 1 << 26


def design_of(repo: Repository, rev: str, architecture: str) -> Design:
    """Returns what the network of a version is built from; nothing in it is run.

    Raises:
        FormatError: a file that is far too large.
    """
    if needs_nothing(architecture):
        return Design(architecture)
    version = repo.version(rev)
    blobs = {path: blob for path in FILES if (blob := version.file(path)) is not None}
    files = {path: repo.read_blob(blob, MAX_BYTES) for path, blob in blobs.items()}
    whole = repo.version(base_of(repo, version))
    tensors = frozenset(entry.name for manifest in whole.manifests.values() for entry in manifest.tensors)
    return Design(architecture, files, sum(map(parameters, whole.manifests.values())), tensors)
