"""Merging language models whose tokenizers differ: refused, or lined up by the strings of their tokens."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from telling import Tell, teller
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import Whitespace

from modelgit.cli.app import main

WORDS = ("[UNK]", "the", "cat", "sat", "##s")


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


def word_piece(words: tuple[str, ...], added: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
    return tokenizer


def save_model(tokenizer: Tokenizer, rows: dict[str, float], body: float) -> None:
    """Writes a model into the work tree: each token's row holds its number, tokens not named 0."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = np.zeros((len(vocabulary), 3), np.float32)
    for token, value in rows.items():
        table[vocabulary[token]] = value
    save_file({"embed_tokens.weight": table, "h.weight": np.full((2, 2), body, np.float32)}, "model.safetensors")
    tokenizer.save("tokenizer.json")
    Path("config.json").write_text(json.dumps({"vocab_size": len(vocabulary), "hidden_size": 3}))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`main` knows five words; `chat` was given a token; `birds` has other words, in another order."""
    place = tmp_path_factory.mktemp("template") / "models"
    with pytest.MonkeyPatch.context() as patch:
        assert main(["init", str(place)]) == 0
        patch.chdir(place)
        versions = {
            "main": (word_piece(WORDS), dict.fromkeys(WORDS, 1.0), 1.0),
            "chat": (word_piece(WORDS, ("<user>",)), {**dict.fromkeys(WORDS, 3.0), "<user>": 7.0}, 3.0),
            "birds": (
                word_piece(("[UNK]", "bird", *WORDS[1:3])),
                {"[UNK]": 5.0, "bird": 8.0, "the": 5.0, "cat": 5.0},
                5.0,
            ),
        }
        for branch, (tokenizer, rows, body) in versions.items():
            assert main(["switch", "-q", "-c", branch, "main"] if branch != "main" else ["status"]) == 0
            save_model(tokenizer, rows, body)
            assert main(["commit", "-q", "-a", "-m", branch] if branch != "main" else ["add", "."]) == 0
            if branch == "main":
                assert main(["commit", "-q", "-m", "base"]) == 0
        assert main(["switch", "-q", "main"]) == 0
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


def rows_by_token() -> dict[str, float]:
    """Returns the row of each token of the work tree, as the real tokenizer numbers them."""
    table = load_file("model.safetensors")["embed_tokens.weight"]
    vocabulary = Tokenizer.from_file("tokenizer.json").get_vocab(with_added_tokens=True)
    assert len(table) == json.loads(Path("config.json").read_text())["vocab_size"] == len(vocabulary)
    assert all((row == row[0]).all() for row in table)
    return {token: float(table[number][0]) for token, number in vocabulary.items()}


def test_other_numbers_are_a_conflict_before_anything_is_read(models: Path, tell: Tell) -> None:
    tell("switch", "chat")
    before = Path("model.safetensors").read_bytes()
    error = tell("merge", "birds", code=1)
    told = {conflict["kind"]: conflict for conflict in error["conflicts"]}
    assert told["vocabulary"]["expected"] == "token 'bird' is unknown as in chat"
    assert told["vocabulary"]["got"] == "1 in birds"
    assert "--vocabulary ours" in error["hint"]
    assert Path("model.safetensors").read_bytes() == before
    assert tell("status")["changes"] == []
    done = subprocess.run(["git", "merge", "birds"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "token 'bird' is unknown as in chat" in done.stderr
    assert Path("model.safetensors").read_bytes() == before


def test_own_tokens_alone(models: Path, tell: Tell) -> None:
    tell("switch", "chat")
    tell("merge", "birds", "--vocabulary", "ours")
    mean = {"[UNK]": 4.0, "the": 4.0, "cat": 4.0, "sat": 3.0, "##s": 3.0, "<user>": 7.0}
    assert rows_by_token() == mean
    assert load_file("model.safetensors")["h.weight"].tolist() == [[4.0, 4.0]] * 2
    assert tell("verify", "--rerun")["tensors"] == 2


def test_tokens_of_all(models: Path, tell: Tell) -> None:
    tell("switch", "birds")
    tell("merge", "chat", "--vocabulary", "union")
    found = rows_by_token()
    assert found == {"[UNK]": 4.0, "the": 4.0, "cat": 4.0, "sat": 3.0, "##s": 3.0, "<user>": 7.0, "bird": 8.0}
    tokenizer = Tokenizer.from_file("tokenizer.json")
    assert tokenizer.encode("the bird sat<user>").tokens == ["the", "bird", "sat", "<user>"]
    assert tell("verify", "--rerun")["tensors"] == 2


def test_task_vectors_of_a_token_that_the_base_lacks(models: Path, tell: Tell) -> None:
    tell("switch", "-c", "more", "main")
    save_model(word_piece(WORDS, ("<user>",)), {**dict.fromkeys(WORDS, 2.0), "<user>": 9.0}, 2.0)
    tell("commit", "-a", "-m", "more")
    error = tell("merge", "chat", "--method", "task_arithmetic", code=1)
    assert error["conflicts"][0]["got"] == "unknown in the merge base"
    tell("merge", "chat", "--method", "task_arithmetic", "--vocabulary", "ours")
    assert rows_by_token() == {**dict.fromkeys(WORDS, 4.0), "<user>": 8.0}
    tell("switch", "-c", "again", "main")
    save_model(word_piece(WORDS), dict.fromkeys(WORDS, 2.0), 2.0)
    tell("commit", "-a", "-m", "again")
    tell("merge", "chat", "--method", "task_arithmetic", "--vocabulary", "union")
    assert rows_by_token() == {**dict.fromkeys(WORDS, 4.0), "<user>": 7.0}
    assert tell("verify", "--rerun")["tensors"] == 2


def test_words_that_need_merge_rules_are_refused(models: Path, tell: Tell) -> None:
    for branch, words in (("left", ("a", "b")), ("right", ("b", "a", "c"))):
        tell("switch", "-c", branch, "main")
        tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, []))
        save_model(tokenizer, dict.fromkeys(words, 1.0), 1.0)
        tell("commit", "-a", "-m", branch)
    tell("switch", "left")
    error = tell("merge", "right", "--vocabulary", "union", code=2)
    assert "need merge rules" in error["message"]
    tell("merge", "right", "--vocabulary", "ours")
    assert rows_by_token() == {"a": 1.0, "b": 1.0}
    assert "--align" in tell("merge", "chat", "--vocabulary", "ours", "--align", "weights", code=2)["message"]
