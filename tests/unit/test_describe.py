"""What ``csumfix trace`` says about a packet, and what it writes for Wireshark."""

from pathlib import Path

import pytest
from scapy.utils import PcapNgReader

from csumfix.core import Policy, inspect
from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.departures import judge
from csumfix.host.tunnels import Tunnel
from csumfix.views.describe import CaptureWriter, Traced
from tests.packets import (
    GENEVE_PORT,
    PORT,
    VNI,
    Shape,
    Transport,
    build,
    geneve_option,
    outer_partial_check,
)

POLICY = Policy((PORT,))
TUNNEL = Tunnel("flannel.1", PORT, "4", 1450, vni=VNI)


def traced(data: bytes, *, complete: bool = True) -> Traced:
    seen = inspect(data, POLICY)
    return Traced(1_700_000_000.25, "eth0", data, seen, judge(seen, complete=complete))


def lines(data: bytes, *, complete: bool = True) -> list[str]:
    """Return the block without the time and the indentation."""
    text = traced(data, complete=complete).text([TUNNEL])
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 100
    head, *rest = (line.strip() for line in text.splitlines())
    clock, _, head = head.partition(" ")
    assert clock.endswith(".250000")
    return [head, *rest]


def test_wrong() -> None:
    good = build(Shape(payload=b"x"))
    assert lines(good.with_check((good.check + 1) % 0xFFFF)) == [
        f"flannel.1 VNI {VNI} WRONG: off by 1",
        "10.0.0.1:40000 > 10.0.0.2:8472",
        f"outer {good.check + 1:#06x}, complete {good.check:#06x}, inner right, "
        f"{len(good.data)} bytes by eth0",
        "Ether / IP / UDP 10.0.0.1:1234 > 10.0.0.2:54 / Raw",
    ]


def test_right() -> None:
    good = build(Shape())
    head, _, check, _ = lines(good.data)
    assert head == f"flannel.1 VNI {VNI} right"
    assert check == f"outer {good.check:#06x}, inner right, {len(good.data)} bytes by eth0"


def test_geneve() -> None:
    good = build(Shape(port=GENEVE_PORT, geneve=geneve_option(bytes(4))))
    seen = inspect(good.data, Policy.of({GENEVE_PORT: "geneve"}))
    told = Traced(0, "eth0", good.data, seen, judge(seen, complete=True), "geneve")
    tunnel = Tunnel("genev_sys_6081", GENEVE_PORT, "both", 1450, metadata=True, protocol="geneve")
    head, *_, inner = told.text([tunnel]).splitlines()
    assert head.endswith(f"genev_sys_6081 VNI {VNI} right")
    assert inner == "  Ether / IP / UDP 10.0.0.1:1234 > 10.0.0.2:54 / Raw"


def test_corrupt() -> None:
    good = build(Shape())
    damaged = good.with_bytes(good.inner_end - 1, b"\xff")
    head = lines(damaged.with_check(1))[0]
    assert "WRONG, and the inner packet is damaged: off by" in head


def test_partial() -> None:
    good = build(Shape())
    partial = good.with_check(outer_partial_check(good))
    assert lines(partial, complete=False)[0].endswith("partial, the device computes it")
    assert "WRONG" in lines(partial, complete=True)[0]


def test_zero() -> None:
    assert lines(build(Shape()).with_check(0))[0].endswith("not computed (0)")


def test_ipv6_fits_the_line_however_long() -> None:
    good = build(Shape(version=6, source_port=65535))
    longest = good.with_bytes(8, b"\xfd" * 32)
    (_, outer, *_) = lines(longest.with_check(1))
    address = ":".join(["fdfd"] * 8)
    assert outer == f"[{address}]:65535 > [{address}]:{PORT}"


@pytest.mark.parametrize("data", [b"\x45", b"\x60" * 10, b"\xff" * 2000])
def test_what_is_no_tunnel_packet(data: bytes) -> None:
    head, decoded = lines(data)
    assert head.startswith("not judged (")
    assert decoded


@pytest.mark.parametrize("transport", Transport)
def test_every_transport_is_decoded(transport: Transport) -> None:
    decoded = lines(build(Shape(transport=transport)).data)[-1]
    assert decoded.startswith("Ether / ")
    assert ("10.0.0.1" if transport is not Transport.NO_IP else "ARP who has") in decoded


def test_a_pod_can_not_steer_the_terminal() -> None:
    hostile = build(Shape(payload=bytes(range(256)) * 4))
    for port in (53, 67, 69, 80, 123, 161, 500):
        data = hostile.with_bytes(hostile.inner_l4 + 2, port.to_bytes(2, "big")).data
        assert all(line.isascii() and line.isprintable() for line in lines(data))


@pytest.mark.parametrize(
    ("tunnel", "name"),
    [
        (Tunnel("meta0", PORT, "both", 1450, metadata=True), "meta0"),
        (Tunnel("other0", PORT, "4", 1450, vni=9), f"port {PORT}"),
        (Tunnel("other0", 4789, "4", 1450, vni=VNI), f"port {PORT}"),
    ],
)
def test_the_device_is_the_one_with_port_and_vni(tunnel: Tunnel, name: str) -> None:
    assert f" {name} VNI {VNI} right" in traced(build(Shape()).data).text([tunnel])


def test_capture(tmp_path: Path) -> None:
    path = tmp_path / "some.pcapng"
    good, six = build(Shape()), build(Shape(version=6))
    capture = CaptureWriter(path)
    for data in (good.data, six.with_check(1)):
        capture.add(traced(data))
    with PcapNgReader(str(path)) as reader:
        packets = list(reader)
    assert [bytes(packet) for packet in packets] == [good.data, six.with_check(1)]
    assert [float(packet.time) for packet in packets] == [1_700_000_000.25] * 2
    comments = [(packet.comment or b"").decode() for packet in packets]
    assert comments[0] == "right"
    assert comments[1].startswith("WRONG: off by ")


def test_an_empty_capture_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "some.pcapng"
    CaptureWriter(path)
    with PcapNgReader(str(path)) as reader:
        assert list(reader) == []


def test_unwritable_file(tmp_path: Path) -> None:
    with pytest.raises(CsumfixError) as caught:
        CaptureWriter(tmp_path / "none" / "x")
    assert caught.value.code == Exit.USAGE
    assert "\n" not in str(caught.value)
