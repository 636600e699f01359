"""What files of tokenizers say, which token gets which row, and what a row is that a model does not know."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelgit.errors import FormatError, UsageError
from modelgit.merge.engine.execution import write_merged
from modelgit.merge.engine.plan import Head, Policy, plan
from modelgit.merge.methods import make
from modelgit.merge.vocabulary.rows import Layout, Model, TokenTensors, row_index, token_tensors
from modelgit.merge.vocabulary.tokens import Vocabulary, extended, read_vocabulary, united
from modelgit.store.files.tensors import FileTensors


def full(vocab: Any, added: list[Any] | None = None, kind: str = "WordPiece") -> bytes:
    return json.dumps({"model": {"type": kind, "vocab": vocab}, "added_tokens": added or []}).encode()


def known(*tokens: str, added: tuple[str, ...] = ()) -> Vocabulary:
    ids = {token: number for number, token in enumerate((*tokens, *added))}
    return Vocabulary(ids, {token: {"id": ids[token], "content": token, "special": True} for token in added})


def test_the_kinds_of_files_say_the_same() -> None:
    added = [{"id": 2, "content": "<x>", "special": True}]
    readings = [
        read_vocabulary({"tokenizer.json": full({"a": 0, "b": 1}, added)}, "here"),
        read_vocabulary({"tokenizer.json": full([["a", -1.0], ["b", -2.0]], added, "Unigram")}, "here"),
        read_vocabulary({"vocab.txt": b"a\nb\n", "added_tokens.json": b'{"<x>": 2}'}, "here"),
        read_vocabulary({"vocab.json": b'{"a": 0, "b": 1}', "added_tokens.json": b'{"<x>": 2}'}, "here"),
    ]
    assert [r.ids for r in readings if r is not None] == [{"a": 0, "b": 1, "<x>": 2}] * 4
    assert read_vocabulary({"merges.txt": b"a b"}, "here") is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer.json": b"[]"}, "here: tokenizer.json: expected a table, got list"),
        ({"tokenizer.json": b"{}"}, "model.vocab: expected tokens, got NoneType"),
        ({"tokenizer.json": b"[" * 100_000}, "not JSON"),
        ({"tokenizer.json": b"\xff"}, "not UTF-8"),
        ({"tokenizer.json": full({"a": True})}, "token 'a': expected a number below 4194304, got True"),
        ({"tokenizer.json": full({"a": -1})}, "got -1"),
        ({"tokenizer.json": full({"a": 1 << 40})}, "got 1099511627776"),
        ({"tokenizer.json": full({"a": 3, "b": 3})}, "two tokens with the same"),
        ({"tokenizer.json": full([["a"], ["a"]])}, "one of them twice"),
        ({"tokenizer.json": full({"a": 0}, ["x"])}, "added_tokens: expected a list"),
        ({"vocab.txt": b"a\na\n"}, "vocab.txt: expected a token on each line, got one of them twice"),
        ({"vocab.txt": b"a\n", "added_tokens.json": b'{"b": "c"}'}, "token 'b'"),
    ],
)
def test_malformed_files_are_told(files: dict[str, bytes], expected: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_vocabulary(files, "here")
    assert expected in caught.value.message


def test_new_tokens_follow_in_the_order_of_their_own_numbers() -> None:
    ours, one, two = known("a", "b"), known("b", "d", "c"), known("c", "a", "e")
    wanted = united(ours, [one, two])
    assert wanted.ids == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert united(ours, [two, one]).ids == wanted.ids
    assert wanted.added == {}


def test_files_of_a_tokenizer_with_more_tokens() -> None:
    before = known("a", "b")
    after = united(before, [known("a", "b", "c", added=("<x>",))])
    table = {"added_tokens_decoder": {"0": {"content": "a"}}, "kept": 1}
    files = {"tokenizer.json": full({"a": 0, "b": 1}), "vocab.txt": b"a\nb\n", "tokenizer_config.json": b"{}"}
    files["tokenizer_config.json"] = json.dumps(table).encode()
    new = extended(files, before, after, "here")
    assert read_vocabulary({"tokenizer.json": new["tokenizer.json"]}, "here") == after
    assert new["vocab.txt"] == b"a\nb\nc\n"
    described = json.loads(new["tokenizer_config.json"])
    assert described["added_tokens_decoder"]["3"] == {"content": "<x>", "special": True}
    assert described["kept"] == 1
    assert "added_tokens.json" not in new


def test_words_that_need_rules_are_refused() -> None:
    before = known("a")
    after = united(before, [known("a", "b")])
    with pytest.raises(UsageError, match="1 new tokens, 'b' the first, need merge rules"):
        extended({"tokenizer.json": full({"a": 0}, kind="BPE")}, before, after, "here")
    assert extended({"tokenizer.json": full({"a": 0}, kind="BPE")}, before, before, "here") != {}


def save(place: Path, rows: list[list[float]], dtype: Any = np.float32) -> FileTensors:
    body = np.full((2, 2), rows[0][0], dtype)
    save_file({"model.embed_tokens.weight": np.array(rows, dtype), "model.h.weight": body}, place)
    return FileTensors(place)


def test_rows_go_where_their_tokens_are(tmp_path: Path) -> None:
    one = Model(save(tmp_path / "one", [[1, 1], [2, 2], [9, 9]]), known("a", "b"), 3)  # the last row is no token's
    two = Model(save(tmp_path / "two", [[20, 20], [10, 10], [50, 50]]), known("b", "a", "c"), 3)
    wanted = united(one.vocabulary, [two.vocabulary])
    assert wanted.ids == {"a": 0, "b": 1, "c": 2}
    models = {"one": one, "two": two}
    index = {key: row_index(model, wanted, 3) for key, model in models.items()}
    assert {key: rows.tolist() for key, rows in index.items()} == {"one": [0, 1, -1], "two": [1, 0, 2]}
    layout = Layout(frozenset(token_tensors([one, two])), 3, models, index, frozenset(models))
    assert layout.tensors == {"model.embed_tokens.weight"}
    heads = [Head(key, TokenTensors(model.source, layout, key)) for key, model in models.items()]
    write_merged(plan(heads, None, make("linear", {}), Policy()), tmp_path / "merged")
    merged = load_file(tmp_path / "merged")
    assert merged["model.embed_tokens.weight"].tolist() == [[5.5, 5.5], [11, 11], [50, 50]]
    assert merged["model.h.weight"].tolist() == [[10.5, 10.5]] * 2


def test_what_no_model_has_a_token_for_stays(tmp_path: Path) -> None:
    one = Model(save(tmp_path / "one", [[1, 1], [2, 2], [3, 3]]), known("a", "b"), 3)
    assert row_index(one, one.vocabulary, 3).tolist() == [0, 1, 2]
    layout = Layout(frozenset(), 3, {"one": one}, {"one": row_index(one, one.vocabulary, 3)}, frozenset({"one"}))
    assert layout.still("one")


def test_tensors_of_tokens_are_known_by_length_and_name(tmp_path: Path) -> None:
    def model(rows: int, name: str) -> Model:
        shapes = {
            "bert.embeddings.word_embeddings.weight": (rows, 2),
            "bert.embeddings.position_embeddings.weight": (rows, 2),
            "cls.predictions.bias": (rows,),
            "layer.0.dense.weight": (4, 2),
            "odd": (rows, 1),
        }
        save_file({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, tmp_path / name)
        return Model(FileTensors(tmp_path / name), known("a"), rows)

    words, bias = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
    assert token_tensors([model(4, "a"), model(4, "b")]) == (words, bias)
    assert token_tensors([model(4, "a"), model(5, "c")]) == (words, bias, "odd")


def test_means_of_rows_do_not_depend_on_the_order_of_models(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    models = {}
    for i, tokens in enumerate((("a", "b"), ("a", "b", "c"), ("c", "b", "a"))):
        rows = draws.normal(size=(len(tokens), 64)).astype(np.float32).tolist()
        models[str(i)] = Model(save(tmp_path / str(i), rows), known(*tokens), len(tokens))
    wanted = united(models["0"].vocabulary, [models["1"].vocabulary, models["2"].vocabulary])
    found = []
    for order in (("0", "1", "2"), ("2", "1", "0")):
        index = {key: row_index(models[key], wanted, 3) for key in order}
        layout = Layout(
            frozenset({"model.embed_tokens.weight"}), 3, {key: models[key] for key in order}, index, frozenset(order)
        )
        found.append(TokenTensors(models["0"].source, layout, "0").entry("model.embed_tokens.weight").oid)
    assert found[0] == found[1]
