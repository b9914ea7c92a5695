"""``csumfix check``: what it says of captures as people have them."""

from __future__ import annotations

import io
import json
import os
import pty
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, Jumbo
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from csumfix.cli import cli
from csumfix.evidence.arrivals import Reason
from csumfix.evidence.captures import Captured, Examiner, FileSource
from csumfix.evidence.pcap import Capture
from csumfix.evidence.tapsocket import Direction
from csumfix.protocols import named
from tests import pcaps
from tests.packets import Shape, Transport, build, outer_partial_check, partial_check, reproducible

PORT, GENEVE_PORT = 8472, 6081
SCREEN_LINES, SCREEN_COLUMNS = 24, 100

TCP_SHAPES = [
    Shape(version=version, inner_version=inner, transport=Transport.TCP, payload=b"x" * 3000)
    for version in (4, 6)
    for inner in (4, 6)
]


def right(**how: Any) -> bytes:
    return build(Shape(**how)).data


def with_check(check: int) -> bytes:
    return build(Shape()).with_check(check)


def zero() -> bytes:
    return with_check(0)


def rewritten(difference: int = 1234, port: int = 40000) -> bytes:
    tunnel = build(Shape(source_port=port))
    return tunnel.with_check((tunnel.check + difference) % 0xFFFF or 0xFFFF)


def corrupt() -> bytes:
    tunnel = build(Shape())
    return tunnel.with_bytes(tunnel.inner_end - 1, b"?").data


def outer_partial() -> bytes:
    """What the sender's kernel leaves to its NIC when the inner checksum is complete."""
    tunnel = build(Shape())
    return tunnel.with_check(outer_partial_check(tunnel))


def lco(port: int = PORT) -> bytes:
    """What it leaves when the inner checksum is partial."""
    shape = Shape(port=port)
    tunnel = build(shape)
    at = tunnel.inner_l4 + 6
    return tunnel.with_bytes(at, struct.pack("!H", partial_check(tunnel, shape))).data


def gso(shape: Shape) -> bytes:
    """A GSO packet of a sender, which looks like one that GRO has merged on a receiver."""
    tunnel = build(shape)
    at = tunnel.inner_l4 + 16
    tunnel = tunnel.with_bytes(tunnel.inner_l4 + 13, b"\x18")  # ACK and PSH: scapy has made a SYN
    partial = tunnel.with_bytes(at, struct.pack("!H", partial_check(tunnel, shape)))
    return partial.with_check(outer_partial_check(tunnel))


def partial_over_zero() -> bytes:
    """The same without an outer checksum."""
    tunnel = build(Shape())
    at = tunnel.inner_l4 + 6
    partial = tunnel.with_bytes(at, struct.pack("!H", partial_check(tunnel, Shape())))
    return partial.with_check(0)


def sealed(data: bytes) -> bytes:
    """The same with a right outer checksum, whatever is inside."""
    (seen,) = examine(data)
    return build(Shape()).with_check(0)[:26] + struct.pack("!H", seen.seen.expected) + data[28:]


def ether() -> Packet:
    """A frame with both addresses given, or scapy would ask the network for them."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0800)


def vxlan(port: int = PORT, payload: bytes = b"some payload") -> Packet:
    inner = ether() / IP(src="10.244.0.1", dst="10.244.1.10") / UDP(sport=5, dport=53)
    return UDP(sport=40000, dport=port) / VXLAN(vni=1, flags=8) / inner / Raw(payload)


def geneve(
    options: bytes = b"", check: int | None = None, tail: bytes = b"", port: int = GENEVE_PORT
) -> bytes:
    """A Geneve packet whose inner one is that of vxlan()."""
    header = bytes([len(options) // 4, 0]) + b"\x65\x58" + (7).to_bytes(3, "big") + b"\0"
    inner = bytes(
        ether() / IP(src="10.0.0.5", dst="10.0.0.6") / UDP(sport=5, dport=53) / Raw(b"x")
    )
    outer = IP(src="192.0.2.1", dst="192.0.2.2")
    if tail:
        inner = inner[: -len(tail)] + tail
    return bytes(outer / UDP(dport=port, chksum=check) / Raw(header + options + inner))


def examine(*packets: bytes, **how: Any) -> list[Any]:
    examiner = Examiner(named((PORT, 4789)), **how)
    captured = (Captured(n, None, data, len(data)) for n, data in enumerate(packets, start=1))
    return [found for one in captured if (found := examiner.examine(one))]


def reason(packet: bytes, length: int = 0) -> Reason | None:
    """Why a packet is not judged."""
    found = Examiner({PORT: "vxlan"}).examine(Captured(1, None, packet, length or len(packet)))
    return found.judgement.reason if found else None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.pcap"


def write(path: Path, *packets: bytes) -> str:
    path.write_bytes(pcaps.pcap([pcaps.ethernet(data) for data in packets]))
    return str(path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["check", *arguments])


def document(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = run("--json", *arguments)
    return result.exit_code, json.loads(result.output)


# --------------------------------------------------------------- the rows of the table


CASES = {
    "right": right(),
    "zero": zero(),
    "rewritten": rewritten(),
    "corrupt": corrupt(),
    "inner_corrupt": corrupt()[:26] + b"\0\0" + corrupt()[28:],
    "relayed": sealed(lco()),
    "undecided": lco(),
    "gso": gso(TCP_SHAPES[0]),
    "unjudged": bytes(IP(src="192.0.2.1", dst="192.0.2.2", flags="MF") / vxlan()),
}


def test_each_diagnosis(file: Path) -> None:
    code, found = document(write(file, *CASES.values()))
    assert {one["number"]: one["diagnosis"] for one in found["packets"]} == dict(
        enumerate(CASES, start=1)
    )
    assert code == 1
    assert found["summary"] == dict.fromkeys(CASES, 1)
    assert found["frames"] == len(CASES)
    assert found["wrong"]


@pytest.mark.parametrize("packet", [outer_partial(), lco(), partial_over_zero()])
def test_an_uncomputed_checksum_is_the_bug_on_the_receiver_only(packet: bytes, file: Path) -> None:
    name = write(file, packet)
    assert document("--sender", name)[0] == 0
    assert document("--local", "10.0.0.1", name)[0] == 0
    for arguments in (["--receiver"], ["--local", "10.0.0.2"]):
        code, found = document(*arguments, name)
        assert code == 1
        assert [one["cause"] for one in found["findings"]] == ["nic"]
    result = run(name)
    assert result.exit_code == 0
    assert "UNDECIDED: 1 VXLAN packet to port 8472 from 10.0.0.1" in result.output
    assert "--local ADDRESS" in result.output


@pytest.mark.parametrize("shape", TCP_SHAPES)
@pytest.mark.parametrize("side", ["--receiver", "--sender", "-v"])
def test_gso_and_merged_packets_are_healthy(shape: Shape, side: str, file: Path) -> None:
    result = run(side, write(file, gso(shape)))
    assert result.exit_code == 0
    assert "GSO packets of a sender, or merged by GRO of a receiver; harmless" in result.output


def test_cooked_captures_tell_the_direction(file: Path) -> None:
    """tcpdump -i any: what left is harmless, and what arrived is the bug."""
    for link, cook in ((pcaps.COOKED, pcaps.cooked), (pcaps.COOKED2, pcaps.cooked2)):
        for kind, code in ((4, 0), (0, 1)):
            file.write_bytes(pcaps.pcap([cook(lco(), kind)], link))
            assert run(str(file)).exit_code == code


def test_pcapng_tells_the_direction(file: Path) -> None:
    for flag, code in ((pcaps.OUTBOUND, 0), (pcaps.INBOUND, 1)):
        block = pcaps.enhanced(lco(), direction=flag)
        file.write_bytes(pcaps.section() + pcaps.interface(101) + block)
        assert run(str(file)).exit_code == code


def test_the_answers_of_a_receiver_do_not_make_it_a_liar(file: Path) -> None:
    answer = lco()[:12] + lco()[16:20] + lco()[12:16] + lco()[20:]  # addresses exchanged
    result = run("--receiver", write(file, right(), answer))
    assert result.exit_code == 0
    assert "the packets go both ways: give --local" in result.output


def test_the_difference_names_the_rewritten_port(file: Path) -> None:
    name = write(file, rewritten())
    assert "difference 1234" in run("-v", name).output
    assert (
        "The flow from port 40000 is off by 1234; that port may have been 38766."
        in run(name).output
    )


def test_text_and_exit_code(file: Path) -> None:
    result = run("-v", write(file, *CASES.values()))
    assert result.exit_code == 1
    assert all(f"packet {n}: {d}" in result.output for n, d in enumerate(CASES, start=1))
    assert "WRONG: 1 VXLAN packet to port 8472 from 10.0.0.1" in result.output


def test_json(file: Path) -> None:
    _, found = document(write(file, *CASES.values()))
    first = found["packets"][0]
    assert (first["outer"], first["vni"]) == ("right", 0x123456)
    assert (first["source_address"], first["dest_address"]) == ("10.0.0.1", "10.0.0.2")
    assert found["not_judged"] == {"fragment": 1}


def test_json_of_nothing(file: Path) -> None:
    code, found = document(write(file))
    assert (code, found["packets"], found["findings"]) == (0, [], [])


def test_nothing_wrong(file: Path) -> None:
    result = run(write(file, right(), zero()))
    assert result.exit_code == 0
    assert "WRONG" not in result.output


def test_the_summary_fits_a_screen(file: Path) -> None:
    """With every diagnosis, every kind of port, many senders and a file that is cut off."""
    others = [right(port=port) for port in (4790, 4791, 4792)]
    senders = [build(Shape(host=host)).with_check(7) for host in range(1, 200)]
    unjudged = [right()[:50], right()[:20] + b"\0" + right()[21:28] + b"\0" + right()[29:]]
    packets = [*CASES.values(), *others, *senders, *unjudged, geneve(check=5), geneve(check=0)]
    name = write(file, *packets)
    file.write_bytes(file.read_bytes()[:-3])
    lines = run(name).output.splitlines()
    assert len(lines) <= SCREEN_LINES, lines
    assert max(map(len, lines)) <= SCREEN_COLUMNS


# ------------------------------------------------------------------------------ nothing silent


def test_other_traffic_is_passed_over(file: Path) -> None:
    others = [
        bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(dport=9) / Raw(b"x" * 50)),
        bytes(IP(src="192.0.2.1", dst="192.0.2.2") / TCP(dport=PORT)),
        bytes(IP(src="192.0.2.1", dst="192.0.2.2", frag=100, proto=17) / Raw(b"x" * 50)),
        bytes(60),
    ]
    result = run(write(file, *others))
    assert result.exit_code == 0
    assert result.output.startswith(
        "4 packets: no VXLAN packets to port 8472 or 4789, nor Geneve packets to port 6081"
    )
    assert "look like" not in result.output


def test_another_port_is_recognised_by_what_goes_there(file: Path) -> None:
    name = write(file, *[right(port=4790)] * 8, lco(9))
    result = run(name)
    assert "8 packets to port 4790 look like VXLAN: --port 4790" in result.output
    assert "1 packet to port 9 looks like VXLAN" in result.output
    assert "8  right" in run("--port", "4790", name).output


def test_geneve_is_named_and_judged(file: Path) -> None:
    options = bytes.fromhex("0102800100000005") * 3
    packets = [geneve(), geneve(options), geneve(check=0), geneve(check=5), geneve(tail=b"\xee")]
    code, found = document(write(file, *packets))
    assert {one["tunnel"] for one in found["packets"]} == {"Geneve"}
    assert found["summary"] == {"right": 2, "zero": 1, "rewritten": 1, "inner_corrupt": 1}
    assert code == 1
    output = run(str(file)).output
    assert "5 of Geneve port 6081" in output
    assert "Remedy: run csumfix on the sender." in output


def test_a_geneve_port_can_be_named(file: Path) -> None:
    name = write(file, *[geneve(port=7000)] * 3)
    assert "3 packets to port 7000 look like Geneve: --geneve-port 7000" in run(name).output
    assert "3  right" in run("--geneve-port", "7000", name).output
    assert "3 of Geneve port 7000" in run("--geneve-port", "7000", name).output


def test_what_nobody_can_check_is_told(file: Path) -> None:
    control = bytearray(geneve(check=5))
    control[29] |= 0x80
    assert reason(bytes(control)) is Reason.INNER_UNKNOWN
    assert "cannot check" in run(write(file, bytes(control))).output


def big_tcp(version: int) -> bytes:
    """A packet of 70 KB, whose length fields say 0."""
    if version == 4:
        data = bytes(IP(src="192.0.2.1", dst="192.0.2.2", proto=17) / vxlan(payload=bytes(65_000)))
        return data[:2] + b"\0\0" + data[4:24] + b"\0\0" + data[26:] + bytes(5000)
    data = bytes(IPv6(src="fd00::1", dst="fd00::2") / vxlan(payload=bytes(65_000)))
    return data[:4] + b"\0\0" + data[6:44] + b"\0\0" + data[46:] + bytes(5000)


def test_big_tcp_has_no_length(file: Path) -> None:
    jumbo = IPv6(src="fd00::1", dst="fd00::2", plen=0) / IPv6ExtHdrHopByHop(
        options=[Jumbo(jumboplen=70_000)]
    )
    packets = [big_tcp(4), big_tcp(6), bytes(jumbo / vxlan())]
    assert [reason(packet) for packet in packets] == [Reason.NO_LENGTH] * 3
    assert "BIG TCP" in run(write(file, *packets)).output


def _unjudged() -> dict[str, tuple[bytes, Reason]]:
    ip = IP(src="192.0.2.1", dst="192.0.2.2")
    ip6 = IPv6(src="fd00::1", dst="fd00::2")
    no_vni = right()[:28] + b"\0" + right()[29:]
    return {
        "first fragment": (
            bytes(ip / vxlan())[:6] + b"\x20\0" + bytes(ip / vxlan())[8:],
            Reason.FRAGMENT,
        ),
        "IPv6": (bytes(ip6 / IPv6ExtHdrFragment(m=1, nh=17) / vxlan()), Reason.FRAGMENT),
        "no VXLAN": (no_vni, Reason.NO_TUNNEL),
        "no Geneve": (geneve()[:28] + b"\xff" + geneve()[29:], Reason.NO_TUNNEL),
        "lengths that do not fit": (right()[:-1], Reason.MALFORMED),
        "inner length": (
            bytes(ip / UDP(dport=PORT) / VXLAN(vni=1, flags=8) / ether() / IP(len=2000)),
            Reason.INNER_MALFORMED,
        ),
    }


@pytest.mark.parametrize("what", _unjudged())
def test_what_cannot_be_judged_says_why(what: str) -> None:
    packet, expected = _unjudged()[what]
    assert reason(packet) is expected


@pytest.mark.parametrize("size", [24, 30, 60])
def test_a_capture_that_was_cut_short_is_not_judged(size: int, file: Path) -> None:
    data = pcaps.ethernet(right())
    record = pcaps.record(data[: 14 + size], len(data))
    file.write_bytes(pcaps.pcap([]) + record)
    code, found = document(str(file))
    assert (code, found["not_judged"]) == (0, {"cut_short": 1})


def test_padding_of_the_link_is_not_taken_for_the_packet(file: Path) -> None:
    file.write_bytes(pcaps.pcap([pcaps.ethernet(right()) + b"trailer"]))
    assert document(str(file))[1]["summary"] == {"right": 1}


def test_a_zero_over_ipv6_needs_a_receiver_that_takes_it(file: Path) -> None:
    """Linux drops it unless the device has udp6zerocsumrx."""
    result = run(write(file, build(Shape(version=6)).with_check(0), zero()))
    assert "1  of those over IPv6" in result.output


def test_link_types_that_cannot_be_read_are_counted(file: Path) -> None:
    file.write_bytes(pcaps.pcap([b"802.11"] * 3, link=127))
    assert "3 packets of link type 127, which csumfix does not know" in run(str(file)).output


def test_a_file_that_is_being_written_is_read_as_far_as_it_goes(file: Path) -> None:
    name = write(file, rewritten(), right())
    file.write_bytes(file.read_bytes()[:-1])
    result = run(name)
    assert result.exit_code == 1
    assert "is being written" in result.output


def test_several_link_types_in_one_file(file: Path) -> None:
    frames = [pcaps.ethernet(right()), pcaps.ethernet(right(), 0x8100), pcaps.cooked(right(), 0)]
    links = [pcaps.ETHERNET, pcaps.ETHERNET, pcaps.COOKED]
    data = pcaps.section() + b"".join(map(pcaps.interface, links))
    file.write_bytes(data + b"".join(pcaps.enhanced(f, n) for n, f in enumerate(frames)))
    assert document(str(file))[1]["summary"] == {"right": 3}


@given(st.sampled_from(sorted(CASES)), st.integers(0, 200), st.binary(min_size=1, max_size=4))
@reproducible
def test_hostile_packets_are_survived(case: str, at: int, new: bytes) -> None:
    data = CASES[case]
    for hostile in (data[:at] + new + data[at + len(new) :], data[:at], new):
        examine(hostile, forced=Direction.IN)


@given(st.lists(st.binary(max_size=100), max_size=5))
@reproducible
def test_hostile_frames_are_survived(frames: list[bytes]) -> None:

    for link in (pcaps.ETHERNET, pcaps.RAW, pcaps.COOKED, pcaps.COOKED2, pcaps.NULL, 999):
        source = FileSource(Capture(io.BytesIO(pcaps.pcap(frames, link))))
        examiner = Examiner({PORT: "vxlan"})
        for captured in source:
            examiner.examine(captured)
        assert source.frames == len(frames)


# ------------------------------------------------------------------------------- how it is used


def test_a_pipe() -> None:
    data = pcaps.pcap([pcaps.ethernet(rewritten())])
    command = [sys.executable, "-m", "csumfix", "check", "-"]
    result = subprocess.run(command, input=data, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (1, b"")
    assert b"WRONG" in result.stdout


def test_nobody_reads_on(file: Path) -> None:
    """csumfix check -v FILE | head"""
    name = write(file, *[right()] * 5000)
    command = f"{sys.executable} -m csumfix check -v {name} | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert result.stdout.startswith(b"packet 1: right")
    assert b"Traceback" not in result.stderr


def test_a_terminal_shows_how_far_a_large_file_is_read(file: Path) -> None:
    write(file, *[right(payload=bytes(1400))] * 9000)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "csumfix", "check", str(file)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert result.returncode == 0
    assert b"reading" in shown
    assert b"9000  right" in result.stdout


@pytest.mark.parametrize("content", [None, b"", b"not a capture"])
def test_unreadable_files(file: Path, content: bytes | None) -> None:
    if content is not None:
        file.write_bytes(content)
    command = [sys.executable, "-m", "csumfix", "check", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert str(file) in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--receiver", "--sender", "x"],
        ["--receiver", "--local", "192.0.2.1", "x"],
        ["--live", "--sender"],
        ["--local", "nonsense", "x"],
        ["--live", "--seconds", "0"],
        ["--live", "--seconds", "1e99"],
        ["--live", "--seconds", "nan"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "csumfix", "check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    name = tmp_path / "a\x1b[31m\udcff.pcap"
    command = [sys.executable, "-m", "csumfix", "check", str(name)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert r"a\x1b[31m\xff.pcap" in result.stderr
