"""What the numbers of a stranger's config.json may be: building a network of sizes that no model has would not end."""

from collections.abc import Iterable, Iterator

from modelgit.errors import FormatError

MOST_LAYERS, COUNTS = 1024, ("block", "depth", "layer", "repeat")


def numbers_in(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Yields every number in nested tables and lists, with the key above it."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers_in(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from numbers_in(item, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def check_numbers(found: Iterable[tuple[str, float]], where: str, most: int) -> None:
    """Raises FormatError for a number above `most`, or above MOST_LAYERS where it counts layers."""
    for key, number in found:
        limit = MOST_LAYERS if any(word in key for word in COUNTS) else most
        if not abs(number) <= limit:
            raise FormatError(f"{where}: {key[:40]}: {number}, expected at most {limit}")
