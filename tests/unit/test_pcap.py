"""Reading captures: every format in which people have them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csumfix.evidence import links
from csumfix.evidence.pcap import Capture, Frame, NotACaptureError
from csumfix.evidence.tapsocket import Direction
from tests import pcaps
from tests.packets import Shape, build, reproducible

IPV4, IPV6 = build(Shape()).data, build(Shape(version=6)).data
FRAMES = [pcaps.ethernet(IPV4), pcaps.ethernet(IPV6)]


def read(data: bytes) -> list[Frame]:
    capture = Capture(io.BytesIO(data))
    frames = list(capture)
    assert not capture.note
    return frames


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap_of_either_byte_order(order: str, nanoseconds: bool) -> None:
    frames = read(pcaps.pcap(FRAMES, order=order, nanoseconds=nanoseconds))
    assert frames == [Frame(1, None, data, len(data)) for data in FRAMES]


def test_flags_beside_the_link_type_are_ignored() -> None:
    """Some programs say there that frames end with a checksum of four bytes."""
    (frame,) = read(pcaps.pcap(FRAMES[:1], link=1 | 0x24000000))
    assert frame.link == 1


def test_a_packet_that_was_cut_by_the_capture_keeps_its_length() -> None:
    data = pcaps.pcap([]) + pcaps.record(FRAMES[0][:50], len(FRAMES[0]))
    assert read(data) == [Frame(1, None, FRAMES[0][:50], len(FRAMES[0]))]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_with_several_interfaces(order: str) -> None:
    data = pcaps.section(order)
    data += pcaps.interface(1, order) + pcaps.interface(101, order)
    data += pcaps.block(4, b"names of hosts", order)  # passed over
    data += pcaps.enhanced(FRAMES[0], 0, order) + pcaps.enhanced(IPV6, 1, order)
    assert [(f.link, f.data) for f in read(data)] == [(1, FRAMES[0]), (101, IPV6)]


def test_pcapng_with_sections_of_different_byte_order() -> None:
    """As mergecap and cat make it; interfaces are numbered from 0 again."""
    data = b"".join(
        pcaps.section(order) + pcaps.interface(link, order) + pcaps.enhanced(IPV4, 0, order)
        for order, link in (("<", 101), (">", 228))
    )
    assert [frame.link for frame in read(data)] == [101, 228]


def test_pcapng_tells_the_direction() -> None:
    flags = [0, pcaps.INBOUND, pcaps.OUTBOUND, 0x10 | pcaps.OUTBOUND]
    data = pcaps.section() + pcaps.interface(101)
    data += b"".join(pcaps.enhanced(IPV4, direction=one) for one in flags)
    expected = [None, Direction.IN, Direction.OUT, Direction.OUT]
    assert [frame.direction for frame in read(data)] == expected


def test_blocks_of_other_kinds_that_hold_packets() -> None:
    data = pcaps.section() + pcaps.interface(101, snaplen=40)
    data += pcaps.old(IPV4) + pcaps.simple(IPV4[:40], len(IPV4))
    assert read(data) == [
        Frame(101, None, IPV4, len(IPV4)),
        Frame(101, None, IPV4[:40], len(IPV4)),
    ]


WHOLE = {
    "pcap": pcaps.pcap(FRAMES),
    "pcapng": pcaps.section()
    + pcaps.interface(1)
    + b"".join(pcaps.enhanced(frame) for frame in FRAMES),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("missing", [1, 13, 100])
def test_a_file_that_is_still_being_written(kind: str, missing: int) -> None:
    capture = Capture(io.BytesIO(WHOLE[kind][:-missing]))
    assert [frame.data for frame in capture] == FRAMES[:1]
    assert "is being written" in capture.note


def _damaged() -> dict[str, bytes]:
    start = pcaps.section() + pcaps.interface(1)
    good = pcaps.enhanced(FRAMES[0])
    size = len(good).to_bytes(4, "little")
    return {
        "a packet of 4 GB": pcaps.pcap([]) + b"\xff" * 32,
        "an interface that does not exist": start + pcaps.enhanced(FRAMES[0], 1),
        "a block without a length": start + good[:4] + bytes(40),
        "two lengths that differ": start + good[:-4] + b"\x08\0\0\0",
        "a length that is no multiple of four": start + good.replace(size, b"\x85\0\0\0"),
        "a packet longer than its block": start + good[:20] + b"\xff\0" + good[22:],
        "a block too short for its kind": start + pcaps.block(6, b"1234"),
        "no byte order": pcaps.section()[:8] + bytes(20),
    }


@pytest.mark.parametrize("what", _damaged())
def test_a_damaged_file_is_read_up_to_the_damage(what: str) -> None:
    capture = Capture(io.BytesIO(_damaged()[what]))
    assert list(capture) == []
    assert "damaged" in capture.note


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "it is empty"),
        (b"abc", "tcpdump -w"),
        (b"not a capture", "tcpdump -w"),
        (gzip.compress(WHOLE["pcap"]), "zcat FILE"),
        (bz2.compress(WHOLE["pcap"]), "bzcat FILE"),
        (lzma.compress(WHOLE["pcap"]), "xzcat FILE"),
    ],
)
def test_what_is_no_capture(data: bytes, told: str) -> None:
    with pytest.raises(NotACaptureError, match=told):
        Capture(io.BytesIO(data))


@given(st.sampled_from(sorted(WHOLE)), st.integers(24, 300), st.binary(min_size=1, max_size=8))
@reproducible
def test_any_damage_is_survived(kind: str, at: int, new: bytes) -> None:
    data = WHOLE[kind]
    capture = Capture(io.BytesIO(data[:at] + new + data[at + len(new) :]))
    for frame in capture:
        links.network(frame)


def test_a_file_that_cannot_be_read_to_its_end() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 40:
                raise OSError(5, "Input/output error")
            return super().read(size)

    capture = Capture(Broken(pcaps.pcap(FRAMES)))
    list(capture)
    assert "Input/output error" in capture.note


# --------------------------------------------------------------------------------- link types


LINKS = {
    "Ethernet": (1, pcaps.ethernet(IPV4), None),
    "VLAN": (1, pcaps.ethernet(IPV4, 0x8100), None),
    "QinQ": (1, pcaps.ethernet(IPV4, 0x88A8, 0x8100), None),
    "raw": (101, IPV4, None),
    "raw IPv4": (228, IPV4, None),
    "loopback": (0, b"\2\0\0\0" + IPV4, None),
    "cooked, arrived": (113, pcaps.cooked(IPV4, 0), Direction.IN),
    "cooked, multicast": (113, pcaps.cooked(IPV4, 2), Direction.IN),
    "cooked, left": (113, pcaps.cooked(IPV4, 4), Direction.OUT),
    "cooked 2, arrived": (276, pcaps.cooked2(IPV4, 0), Direction.IN),
    "cooked 2, left": (276, pcaps.cooked2(IPV4, 4), Direction.OUT),
}


@pytest.mark.parametrize("kind", LINKS)
def test_link_types(kind: str) -> None:
    link, data, direction = LINKS[kind]
    found = links.network(Frame(link, None, data, len(data) + 4))
    assert found == links.Network(IPV4, len(IPV4) + 4, direction)


def test_ipv6_is_found_as_well() -> None:
    for data in (pcaps.ethernet(IPV6), pcaps.ethernet(IPV6, 0x8100)):
        found = links.network(Frame(1, None, data, len(data)))
        assert found == links.Network(IPV6, len(IPV6), None)


def test_the_files_word_on_the_direction_counts_more() -> None:
    frame = Frame(113, Direction.OUT, pcaps.cooked(IPV4, 0), 100)
    assert links.network(frame) == links.Network(IPV4, 84, Direction.OUT)


@pytest.mark.parametrize("size", range(20))
@pytest.mark.parametrize("link", sorted(links.LINKS))
def test_frames_that_hold_no_ip(link: int, size: int) -> None:
    found = links.network(Frame(link, None, bytes(size), size))
    assert found is not None
    assert not any(found.packet)


def test_a_link_type_that_is_not_known() -> None:
    assert links.network(Frame(127, None, b"802.11", 6)) is None
