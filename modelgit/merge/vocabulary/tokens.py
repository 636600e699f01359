"""Which token has which number, from the files of a tokenizer; and those files for a vocabulary with more tokens.

Known are `tokenizer.json` (its added tokens too), `vocab.txt`, and `vocab.json` with `added_tokens.json`. They come
from other people: sizes, types and numbers are checked, and nothing in them is run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelgit.errors import FormatError, UsageError

FULL, LINES, TABLE, ADDED, CONFIG = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "added_tokens.json",
    "tokenizer_config.json",
)
TOKENIZER_FILES = (FULL, LINES, TABLE, ADDED, CONFIG, "merges.txt", "special_tokens_map.json")
MAX_BYTES = 128 << 20
MAX_TOKENS = 1 << 22
LISTED = ("WordPiece", "WordLevel")  # kinds of models that are a list of words and nothing else

Files = Mapping[str, bytes]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The numbers of tokens; `added` are those that a tokenizer was given later, as its file describes them."""

    ids: Mapping[str, int]
    added: Mapping[str, Json]

    @property
    def size(self) -> int:
        """The rows needed for all of them."""
        return max(self.ids.values(), default=-1) + 1

    def names(self) -> dict[int, str]:
        """Returns the tokens by their numbers."""
        return {number: token for token, number in self.ids.items()}


def read_vocabulary(files: Files, where: str) -> Vocabulary | None:
    """Returns the vocabulary that files of a tokenizer describe, by their names; None if none of them does.

    Raises:
        FormatError: naming `where`, the file, and what is wrong with it.
    """
    if FULL in files:
        table = parse(files[FULL], f"{where}: {FULL}")
        return checked(*full(table, f"{where}: {FULL}"), f"{where}: {FULL}")
    if LINES in files:
        lines = text(files[LINES], f"{where}: {LINES}").splitlines()
        words = dict(zip(lines, range(len(lines)), strict=True))
        if len(words) < len(lines):
            raise FormatError(f"{where}: {LINES}: expected a token on each line, got one of them twice")
        return checked(words, extra(files, where), f"{where}: {LINES}")
    if TABLE in files:
        words = parse(files[TABLE], f"{where}: {TABLE}")
        return checked(words, extra(files, where), f"{where}: {TABLE}")
    return None


def extra(files: Files, where: str) -> dict[str, Json]:
    """Returns the added tokens that have a file of their own."""
    table = parse(files[ADDED], f"{where}: {ADDED}") if ADDED in files else {}
    return {token: {"id": number, "content": token} for token, number in table.items()}


def full(table: Json, where: str) -> tuple[dict[str, int], dict[str, Json]]:
    """Returns the words and the added tokens of a `tokenizer.json`. Raises FormatError."""
    model = table.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, list):  # Unigram: pieces with scores, numbered as they come
        pieces = [row[0] if isinstance(row, list) and row else None for row in words]
        words = {piece: number for number, piece in enumerate(pieces)}
        if len(words) < len(pieces):
            raise FormatError(f"{where}: model.vocab: expected pieces, got one of them twice")
    if not isinstance(words, dict):
        raise FormatError(f"{where}: model.vocab: expected tokens, got {type(words).__name__}")
    rows = table.get("added_tokens") or []
    if not isinstance(rows, list) or any(not isinstance(row, dict) or "content" not in row for row in rows):
        raise FormatError(f"{where}: added_tokens: expected a list of tokens with content and id")
    return words, {row["content"]: row for row in rows}


def checked(words: Mapping[Any, Any], added: Mapping[Any, Json], where: str) -> Vocabulary:
    """Returns a vocabulary whose numbers are each one token's. Raises FormatError."""
    ids = {**words, **{token: row.get("id") for token, row in added.items()}}
    if len(ids) > MAX_TOKENS:
        raise FormatError(f"{where}: {len(ids)} tokens, expected at most {MAX_TOKENS}")
    for token, number in ids.items():
        if not isinstance(token, str) or type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise FormatError(f"{where}: token {token!r}: expected a number below {MAX_TOKENS}, got {number!r}")
    if len(set(ids.values())) < len(ids):
        raise FormatError(f"{where}: expected a number for each token, got two tokens with the same")
    return Vocabulary(ids, added)


def text(data: bytes, where: str) -> str:
    """Returns a file's text. Raises FormatError."""
    if len(data) > MAX_BYTES:
        raise FormatError(f"{where}: {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8: {error}") from error


def parse(data: bytes, where: str) -> Json:
    """Returns a file's table. Raises FormatError."""
    try:
        table = json.loads(text(data, where))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON: {error}") from error
    if not isinstance(table, dict):
        raise FormatError(f"{where}: expected a table, got {type(table).__name__}")
    return table


# ------------------------------------------------------------------------------------------------ more tokens


def united(ours: Vocabulary, others: Sequence[Vocabulary]) -> Vocabulary:
    """Returns our vocabulary with the tokens that only others have behind it, in the order of their own numbers.

    Where several others disagree on that, the smallest number of a token counts, then its string: the order in which
    they are given reaches nothing.
    """
    new: dict[str, int] = {}
    for other in others:
        for token, number in other.ids.items():
            if token not in ours.ids:
                new[token] = min(number, new.get(token, number))
    order = sorted(new, key=lambda token: (new[token], token))
    ids = {**ours.ids, **{token: ours.size + place for place, token in enumerate(order)}}
    rows = [{"content": token, **described(token, others), "id": ids[token]} for token in order if known(token, others)]
    return Vocabulary(ids, {**ours.added, **{row["content"]: row for row in rows}})


def known(token: str, others: Sequence[Vocabulary]) -> bool:
    """Returns whether all that have a token were given it later."""
    return all(token in other.added for other in others if token in other.ids)


def described(token: str, others: Sequence[Vocabulary]) -> Json:
    """Returns how an added token is described; where descriptions differ, the first in the order of their texts."""
    rows = [other.added[token] for other in others if token in other.added]
    return min(rows, key=lambda row: json.dumps({**row, "id": 0}, sort_keys=True))


def extended(files: Files, before: Vocabulary, after: Vocabulary, where: str) -> dict[str, bytes]:
    """Returns the files of a tokenizer that need other content for a vocabulary with more tokens.

    Raises:
        UsageError: a new token is not an added one, and the tokenizer is more than a list of words: it would need
        rules to arrive at it.
    """
    new = {token: number for token, number in after.ids.items() if token not in before.ids}
    words = {token: number for token, number in new.items() if token not in after.added}
    added = [after.added[token] for token in new if token in after.added]
    changed: dict[str, bytes] = {}
    if FULL in files:
        table = parse(files[FULL], f"{where}: {FULL}")
        refuse_words(words, table["model"].get("type") in LISTED, where)
        table["model"]["vocab"] = {**table["model"]["vocab"], **words} if words else table["model"]["vocab"]
        table["added_tokens"] = [*(table.get("added_tokens") or []), *added]
        changed[FULL] = written(table)
    elif TABLE in files:
        refuse_words(words, LINES in files, where)
    if LINES in files and words:
        if list(words.values()) != list(range(files[LINES].count(b"\n"), max(words.values()) + 1)):
            raise UsageError(f"{where}: {LINES}: new words cannot follow added tokens", hint=HINT)
        changed[LINES] = files[LINES] + "".join(f"{token}\n" for token in words).encode()
    if added and (ADDED in files or FULL not in files):
        table = parse(files[ADDED], f"{where}: {ADDED}") if ADDED in files else {}
        changed[ADDED] = written({**table, **{row["content"]: row["id"] for row in added}})
    if added and CONFIG in files:
        table = parse(files[CONFIG], f"{where}: {CONFIG}")
        if isinstance(decoder := table.get("added_tokens_decoder"), dict):
            rows = {str(row["id"]): {key: value for key, value in row.items() if key != "id"} for row in added}
            changed[CONFIG] = written({**table, "added_tokens_decoder": {**decoder, **rows}})
    return changed


HINT = "take your own tokens alone: --vocabulary ours"


def refuse_words(words: Mapping[str, int], listed: bool, where: str) -> None:
    """Raises UsageError if words are to be new in a tokenizer that cannot simply be told them."""
    if words and not listed:
        first = next(iter(words))
        what = f"{where}: {len(words)} new tokens, '{first}' the first, need merge rules or scores that are not known"
        raise UsageError(what, hint=HINT)


def written(table: Json) -> bytes:
    """Returns a table as a file."""
    return (json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode()
