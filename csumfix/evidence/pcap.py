"""Reads capture files in pcap and pcapng format: complete, still being written, or from a pipe.

The formats are defined in https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html and
https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-02.html. This reads only what the
diagnosis of a packet needs: its bytes, its length, its link type and, from pcapng, its direction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from csumfix.evidence.tapsocket import Direction

MICROSECONDS, NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D  # magic numbers of pcap
SECTION = 0x0A0D0D0A  # first block type of a pcapng file, the same in both byte orders
BYTE_ORDER = 0x1A2B3C4D
INTERFACE, OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 1, 2, 3, 6
END_OF_OPTIONS, FLAGS = 0, 2
DIRECTIONS = {1: Direction.IN, 2: Direction.OUT}  # by the two lowest bits of a packet's flags

LONGEST = 1 << 26
"""Maximum bytes of a packet or block. A larger size means that the file is damaged."""

COMPRESSED = {b"\x1f\x8b": "zcat", b"\x28\xb5": "zstdcat", b"\xfd7": "xzcat", b"BZ": "bzcat"}
"""First bytes of compressed files, with the program that reads them."""


class Frame(NamedTuple):
    """One packet of a file.

    link: LINKTYPE number of its link layer.
    length: its bytes on the wire; ``data`` may have fewer.
    """

    link: int
    direction: Direction | None
    data: bytes
    length: int


class NotACaptureError(ValueError):
    """The file is not a capture; the text is the remedy."""


class _IncompleteError(Exception):
    """The file ends within a packet."""


class _DamagedError(Exception):
    """The rest of the file cannot be read."""


class Capture:
    """The frames of a stream; iterate once.

    note: why the stream ended early; empty otherwise.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Read the beginning; raises NotACaptureError if this is not a capture."""
        self.note = ""
        magic = stream.read(4)
        if magic == SECTION.to_bytes(4, "big"):
            self._frames = _pcapng(stream)
        else:
            self._frames = _pcap(stream, _byte_order(magic))

    def __iter__(self) -> Iterator[Frame]:
        try:
            yield from self._frames
        except _IncompleteError:
            self.note = "the last packet is incomplete: the file was cut, or is being written"
        except _DamagedError:
            self.note = "the file is damaged: the rest was not read"
        except OSError as error:
            self.note = f"the rest cannot be read: {error.strerror}"


def _byte_order(magic: bytes) -> str:
    for order in "<>":
        if len(magic) == 4 and struct.unpack(f"{order}I", magic)[0] in (MICROSECONDS, NANOSECONDS):  # noqa: PLR2004
            return order
    reader = COMPRESSED.get(magic[:2])
    if reader:
        raise NotACaptureError(f"it is compressed: {reader} FILE | csumfix check -")
    raise NotACaptureError("give a file written by 'tcpdump -w'" if magic else "it is empty")


def _take(stream: BinaryIO, size: int) -> bytes:
    if size > LONGEST:
        raise _DamagedError
    data = stream.read(size)
    if len(data) < size:
        raise _IncompleteError
    return data


# ------------------------------------------------------------------------------------- pcap


def _pcap(stream: BinaryIO, order: str) -> Iterator[Frame]:
    # Version, time zone, accuracy, snapshot length; the upper bits of the last word are flags.
    link = struct.unpack(f"{order}16xI", _take(stream, 20))[0] & 0xFFFF
    record = struct.Struct(f"{order}8xII")  # time, captured length, length
    while head := stream.read(record.size):
        if len(head) < record.size:
            raise _IncompleteError
        size, length = record.unpack(head)
        yield Frame(link, None, _take(stream, size), length)


# ----------------------------------------------------------------------------------- pcapng


@dataclass
class _Section:
    """A part of the file with its own byte order and interfaces.

    links: link type and snapshot length of each interface.
    """

    order: str
    links: list[tuple[int, int]] = field(default_factory=list)

    def unpack(self, form: str, data: bytes) -> tuple[int, ...]:
        """Read numbers from the beginning of ``data``."""
        try:
            return struct.unpack_from(self.order + form, data)
        except struct.error:
            raise _DamagedError from None

    def link(self, interface: int) -> int:
        """Return the link type of an interface."""
        if interface >= len(self.links):
            raise _DamagedError
        return self.links[interface][0]


def _pcapng(stream: BinaryIO) -> Iterator[Frame]:
    """Yield the frames; the first block's type has been read."""
    section = _section(stream)
    while head := stream.read(4):
        if len(head) < 4:  # noqa: PLR2004 - a block's type
            raise _IncompleteError
        kind = section.unpack("I", head)[0]
        if kind == SECTION:
            section = _section(stream)
            continue
        body = _body(stream, section, section.unpack("I", _take(stream, 4))[0], 8)
        if kind == INTERFACE:
            section.links.append(section.unpack("H2xI", body))  # type: ignore[arg-type]
        elif kind in FRAMES:
            yield FRAMES[kind](section, body)


def _section(stream: BinaryIO) -> _Section:
    """Read a section header, whose type has been read."""
    start = _take(stream, 8)
    for order in "<>":
        size, magic = struct.unpack(f"{order}II", start)
        if magic == BYTE_ORDER:
            section = _Section(order)
            _body(stream, section, size, 12)
            return section
    raise _DamagedError


def _body(stream: BinaryIO, section: _Section, size: int, done: int) -> bytes:
    """Read the rest of a block after `done` of its `size` bytes; its end repeats the size."""
    if size < done + 4 or size % 4:
        raise _DamagedError
    rest = _take(stream, size - done)
    if section.unpack("I", rest[-4:])[0] != size:
        raise _DamagedError
    return rest[:-4]


def _enhanced(section: _Section, body: bytes) -> Frame:
    interface, size, length = section.unpack("I8xII", body)
    return _frame(section, interface, size, length, body)


def _old(section: _Section, body: bytes) -> Frame:
    interface, size, length = section.unpack("H10xII", body)
    return _frame(section, interface, size, length, body)


def _frame(section: _Section, interface: int, size: int, length: int, body: bytes) -> Frame:
    data, options = body[20 : 20 + size], body[20 + _padded(size) :]
    if len(data) < size:
        raise _DamagedError
    return Frame(section.link(interface), _direction(section, options), data, length)


def _simple(section: _Section, body: bytes) -> Frame:
    (length,) = section.unpack("I", body)
    link = section.link(0)
    size = min(length, section.links[0][1] or length)
    return Frame(link, None, body[4 : 4 + size], length)


FRAMES = {ENHANCED_PACKET: _enhanced, OLD_PACKET: _old, SIMPLE_PACKET: _simple}


def _direction(section: _Section, options: bytes) -> Direction | None:
    """Return the direction from a packet's options."""
    while len(options) >= 4:  # noqa: PLR2004 - an option's header
        code, size = section.unpack("HH", options)
        if code == FLAGS:
            return DIRECTIONS.get(section.unpack("I", options[4:])[0] & 3)
        if code == END_OF_OPTIONS:
            break
        options = options[4 + _padded(size) :]
    return None


def _padded(size: int) -> int:
    return size + -size % 4
