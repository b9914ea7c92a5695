"""``csumfix check``: what it says of each packet of a captures."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, wrpcap

from csumfix.cli import cli
from csumfix.errors import CsumfixError
from csumfix.evidence import captures
from csumfix.evidence.captures import MEANINGS

INNER_CHECK = 14 + 20 + 8 + 8 + 14 + 20 + 6  # offset of the inner checksum in a packet()
OUTER_CHECK = 14 + 20 + 6


def ether() -> Packet:
    """A frame with both addresses given, or scapy would ask the network for them."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0800)


def packet(port: int = 8472) -> bytes:
    outer = ether() / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=40000, dport=port)
    inner = ether() / IP(src="10.244.0.1", dst="10.244.1.10") / UDP(sport=5, dport=53)
    return bytes(outer / VXLAN(vni=1, flags=8) / inner / Raw(b"some payload"))


def add(data: bytes, offset: int, number: int) -> bytes:
    """Add to a 16-bit field as NAT does, in one's complement."""
    total = int.from_bytes(data[offset : offset + 2], "big") + number
    field = total % 0xFFFF or 0xFFFF
    return data[:offset] + field.to_bytes(2, "big") + data[offset + 2 :]


def zeroed(data: bytes) -> bytes:
    return data[:OUTER_CHECK] + b"\0\0" + data[OUTER_CHECK + 2 :]


def partial() -> bytes:
    """What tcpdump sees on the sender: the inner field holds the pseudo-header sum."""
    good = packet()
    inner = IP(good[64:])
    pseudo = bytes.fromhex("0af400010af4010a0011") + len(bytes(inner.payload)).to_bytes(2, "big")
    total = sum(int.from_bytes(pseudo[i : i + 2], "big") for i in range(0, len(pseudo), 2))
    field = total % 0xFFFF
    return good[:INNER_CHECK] + field.to_bytes(2, "big") + good[INNER_CHECK + 2 :]


CASES = {
    "right": packet(),
    "zero": zeroed(packet()),
    "rewritten": add(packet(), OUTER_CHECK, 1234),
    "corrupt": add(packet(), INNER_CHECK, 77),
    "partial": partial(),
    "unjudged": packet()[:14] + add(packet()[14:], 6, 0x2000),  # more fragments
}


@pytest.fixture
def pcap(tmp_path: Path) -> Path:
    path = tmp_path / "some.pcap"
    wrpcap(str(path), [Ether(data) for data in CASES.values()])
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["check", *arguments])


def test_each_diagnosis(pcap: Path) -> None:
    found = {finding.number: finding.diagnosis for finding in captures.read(pcap, (8472,))}
    assert found == dict(enumerate(CASES, start=1))
    assert CASES.keys() | {"wrong"} == MEANINGS.keys()


def test_the_difference_names_the_rewritten_port(pcap: Path) -> None:
    (finding,) = [f for f in captures.read(pcap, (8472,)) if f.diagnosis == "rewritten"]
    assert finding.inspection.difference == 1234
    assert "difference 1234" in finding.line()


def test_text_and_exit_code(pcap: Path) -> None:
    result = run(str(pcap))
    assert result.exit_code == 1
    assert all(f"packet {n}: {d}" in result.output for n, d in enumerate(CASES, start=1))
    assert MEANINGS["rewritten"] in result.output


def test_json(pcap: Path) -> None:
    result = run("--json", str(pcap))
    document = json.loads(result.output)
    assert document["summary"] == dict.fromkeys(CASES, 1)
    assert document["packets"][0]["outer"] == "right"
    assert document["packets"][0]["vni"] == 1


def test_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "good.pcap"
    wrpcap(str(path), [Ether(packet())])
    assert run(str(path)).exit_code == 0


def test_other_traffic_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "other.pcap"
    packets: list[Packet] = [
        Ether(packet(port=9)),
        ether() / IP(src="192.0.2.1", dst="192.0.2.2") / Raw(b"x"),
        Ether(b"\0" * 60),
    ]
    wrpcap(str(path), packets)
    result = run(str(path))
    assert result.exit_code == 0
    assert "no VXLAN packets to port 8472 or 4789" in result.output
    assert "packet 1: right" in run("--port", "9", str(path)).output


def test_pcapng_and_raw_ip(tmp_path: Path) -> None:
    path = tmp_path / "some.pcapng"
    with PcapNgWriter(str(path)) as writer:
        writer.write(IP(packet()[14:]))
    assert [finding.diagnosis for finding in captures.read(path, (8472,))] == ["right"]


def test_a_capture_that_was_cut_short_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "short.pcap"
    short = Ether(packet()[:60])
    short.wirelen = len(packet())
    wrpcap(str(path), [short])
    assert [finding.diagnosis for finding in captures.read(path, (8472,))] == ["unjudged"]


@pytest.mark.parametrize("content", [None, b"", b"not a capture"])
def test_unreadable_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.pcap"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CsumfixError) as caught:
        list(captures.read(path, (8472,)))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
