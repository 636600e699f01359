"""What a version answered, example by example, as short text in a note: all that comparing strategies needs."""

import base64
import binascii
import zlib

import numpy as np
import numpy.typing as npt

from modelgit.errors import DataError

MOST_CLASSES = 1 << 16
MOST_TEXT = 1 << 28


def pack_answers(answers: npt.NDArray[np.integer]) -> str:
    """Returns numbers of classes (n,) as text: 16 bits each, little-endian, deflated, in base 64.

    Raises:
        DataError: a number that no class has.
    """
    if len(answers) and not 0 <= int(answers.min()) <= int(answers.max()) < MOST_CLASSES:
        raise DataError(f"answers from {answers.min()} to {answers.max()}: expected 0 to {MOST_CLASSES - 1}")
    return base64.b64encode(zlib.compress(answers.astype("<u2").tobytes(), 9)).decode()


def unpack_answers(text: object, n: int) -> npt.NDArray[np.int64]:
    """Returns the numbers of classes (n,) in `text`; notes come from other people, so no more than `n` are unpacked.

    Raises:
        DataError: it is no such text, or holds another number of answers.
    """
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise DataError("the answers in a note are no text")
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(text, validate=True), 2 * n + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise DataError(f"the answers in a note cannot be read: {error}") from error
    if len(data) != 2 * n or not stream.eof:
        got = "more" if len(data) > 2 * n or stream.unconsumed_tail else f"{len(data) // 2}"
        raise DataError(f"the answers in a note: expected {n}, got {got}")
    return np.frombuffer(data, "<u2").astype(np.int64)
