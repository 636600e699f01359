"""Curves for TensorBoard: a listener that writes what trainings measure into event files, as they measure it.

An event file is a row of TFRecords: a length, its checksum, that many bytes, their checksum. The bytes are a protocol
buffer (`Event` of tensorboard/compat/proto/event.proto): wall time, step, and a summary of tags with numbers.
"""

import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from modelgit.errors import StorageFull
from modelgit.events import Event, Listener, Measured

UNSAFE = re.compile(r"[^\w.-]+")
LONGEST = 100  # characters of a run's name
POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed
LENGTH_DELIMITED, DOUBLE, FLOAT, VARINT = 2, 1, 5, 0  # wire types of protocol buffers


class EventFiles:
    """A listener that keeps a file for each task that measures something, in a folder of the task's name."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._files: dict[str, BinaryIO] = {}

    def __call__(self, event: Event) -> None:
        """Writes what was measured. Raises StorageFull if that cannot be."""
        if not isinstance(event, Measured):
            return
        now = self._clock()
        try:
            file = self._file(folder_name(event.task), now)
            file.write(record(scalars(now, event)))
            file.flush()
        except OSError as error:
            hint = "free some space, or write the curves elsewhere"
            raise StorageFull(f"cannot write curves to {self._folder}: {error.strerror}", hint=hint) from error

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _file(self, run: str, now: float) -> BinaryIO:
        """Returns the file of a run; a new one begins by saying its version."""
        if run not in self._files:
            folder = self._folder / run
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}.modelgit").open("ab")
            self._files[run] = file
            file.write(record(field(1, DOUBLE, struct.pack("<d", now)) + text(3, "brain.Event:2")))
        return self._files[run]


def both(one: Listener, other: Listener) -> Listener:
    """Returns what tells two listeners."""

    def tell(event: Event) -> None:
        one(event)
        other(event)

    return tell


def folder_name(task: str) -> str:
    """Returns a name for the folder of a task: names come from recipes, and are never paths."""
    return UNSAFE.sub("-", task)[:LONGEST].strip(".-") or "run"


# --------------------------------------------------------------------------------------------------- the format


def scalars(now: float, event: Measured) -> bytes:
    """Returns the message of numbers measured at a step."""
    values = b"".join(
        message(1, text(1, name) + field(2, FLOAT, struct.pack("<f", value))) for name, value in event.values.items()
    )
    return field(1, DOUBLE, struct.pack("<d", now)) + field(2, VARINT, varint(event.step)) + message(5, values)


def field(number: int, kind: int, data: bytes) -> bytes:
    """Returns a field of a message."""
    return varint(number << 3 | kind) + data


def message(number: int, data: bytes) -> bytes:
    """Returns a field that is a message itself."""
    return field(number, LENGTH_DELIMITED, varint(len(data)) + data)


def text(number: int, value: str) -> bytes:
    """Returns a field that is text."""
    return message(number, value.encode())


def varint(value: int) -> bytes:
    """Returns a number of 0 or more, seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def record(data: bytes) -> bytes:
    """Returns bytes as a TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + masked_checksum(length) + data + masked_checksum(data)


def masked_checksum(data: bytes) -> bytes:
    """Returns the CRC-32C of bytes, rotated and shifted as TFRecords have it."""
    found = crc32c(data)
    return struct.pack("<I", ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C of a few bytes."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (POLYNOMIAL if found & 1 else 0)
    return found ^ 0xFFFFFFFF
