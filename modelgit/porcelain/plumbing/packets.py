"""Git's packets (gitprotocol-common, pkt-line): four hexadecimal digits of length, then bytes; 0000 ends a list."""

from collections.abc import Iterator
from io import BufferedIOBase

from modelgit.errors import FormatError

LENGTH_BYTES = 4
LARGEST = 65516  # bytes a packet may carry


class PacketReader:
    """Packets from git; each list or content must be read to its end before the next."""

    def __init__(self, source: BufferedIOBase) -> None:
        self._source = source

    def lines(self) -> list[str] | None:
        """Returns the lines of a list, None when git has closed the pipe.

        Raises:
            FormatError: the pipe broke off within a packet.
        """
        found: list[str] = []
        while True:
            packet = self._packet(at_start=not found)
            if packet is None:
                return None
            if not packet:
                return found
            found.append(packet.decode("utf-8", "surrogateescape").removesuffix("\n"))

    def content(self) -> "Content":
        """Returns the content that comes next."""
        return Content(self._source)

    def _packet(self, *, at_start: bool) -> bytes | None:
        length = packet_length(self._source, may_end=at_start)
        if length is None:
            return None
        data = self._source.read(length)
        if len(data) != length:
            raise FormatError("git closed the pipe within a packet")
        return data


def packet_length(source: BufferedIOBase, *, may_end: bool = False) -> int | None:
    """Returns the bytes of the next packet, 0 for the end of a list, None when nothing more comes and that may be.

    Raises:
        FormatError: something else than a packet.
    """
    head = source.read(LENGTH_BYTES)
    if not head and may_end:
        return None
    try:
        length = int(head, 16) if len(head) == LENGTH_BYTES else -1
    except ValueError:
        length = -1
    if length != 0 and not LENGTH_BYTES <= length <= LARGEST + LENGTH_BYTES:
        raise FormatError(f"expected a packet from git, got {head!r}")
    return max(0, length - LENGTH_BYTES) if length else 0


class Content:
    """The bytes of one file, from packets, without holding them: a stream that is read once."""

    def __init__(self, source: BufferedIOBase) -> None:
        self._source = source
        self._left, self._ended = 0, False

    def readinto(self, into: memoryview, /) -> int:
        """Fills a part of `into` and returns how many bytes that was, 0 at the end. Raises FormatError."""
        if self._ended or not self._advance():
            return 0
        part = into[: min(len(into), self._left)]
        done = 0
        while done < len(part):
            got = self._source.readinto(part[done:])
            if not got:
                raise FormatError("git closed the pipe within a packet")
            done += got
        self._left -= done
        return done

    def rest(self) -> Iterator[bytes]:
        """Yields what was not read yet, in pieces."""
        piece = memoryview(bytearray(LARGEST))
        while got := self.readinto(piece):
            yield bytes(piece[:got])

    def drain(self) -> None:
        """Reads to the end, so that git can go on."""
        for _ in self.rest():
            pass

    def _advance(self) -> bool:
        if not self._left:
            self._left = packet_length(self._source) or 0
            self._ended = self._left == 0
        return not self._ended


def write_lines(target: BufferedIOBase, *lines: str) -> None:
    """Writes a list of lines, to be read at once."""
    for line in lines:
        write_packet(target, line.encode() + b"\n")
    target.write(b"0000")
    target.flush()


def write_content(target: BufferedIOBase, pieces: Iterator[bytes]) -> None:
    """Writes the content of a file."""
    for piece in pieces:
        for start in range(0, len(piece), LARGEST):
            write_packet(target, piece[start : start + LARGEST])
    target.write(b"0000")


def write_packet(target: BufferedIOBase, data: bytes) -> None:
    """Writes one packet."""
    target.write(b"%04x" % (len(data) + LENGTH_BYTES))
    target.write(data)
