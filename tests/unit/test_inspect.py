"""inspect(): every value of what it can tell."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_LSRR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrRouting
from scapy.packet import Raw

from csumfix import core
from csumfix.core import Inner, Outer, Status
from tests.packets import (
    CHECK_OFFSET,
    GENEVE_PORT,
    PORT,
    VNI,
    Shape,
    Transport,
    Tunnel,
    build,
    outer_partial_check,
    partial_check,
    proven_shapes,
    reproducible,
    shapes,
)

POLICY = core.Policy(ports=(PORT, GENEVE_PORT), geneve=(GENEVE_PORT,))


@given(shapes, st.integers(1, 0xFFFF))
@reproducible
def test_everything_that_is_told(shape: Shape, wrong: int) -> None:
    right = build(shape)
    assume(wrong != right.check)
    inner = _inner_check(right, shape)
    assert core.inspect(right.data, POLICY) == core.Inspection(
        status=Status.OK,
        outer=Outer.RIGHT,
        found=right.check,
        expected=right.check,
        source=shape.source_port,
        dest=shape.port,
        vni=shape.vni,
        inner=Inner.RIGHT if shape.proven else Inner.UNPROVEN,
        inner_found=inner,
        inner_expected=inner,
    )
    seen = core.inspect(right.with_check(wrong), POLICY)
    pseudo = outer_partial_check(right)
    assert (seen.found, seen.expected) == (wrong, right.check)
    assert seen.outer is (Outer.PARTIAL if wrong == pseudo else Outer.WRONG)
    assert seen.difference == (0 if wrong == pseudo else (wrong - right.check) % 0xFFFF)
    seen = core.inspect(right.with_check(0), POLICY)
    assert (seen.outer, seen.found, seen.expected) == (Outer.ZERO, 0, right.check)


def _inner_check(tunnel: Tunnel, shape: Shape) -> int:
    """Return the inner checksum field, or 0 if there is none that is computed."""
    if not shape.proven:
        return 0
    at = tunnel.inner_l4 + CHECK_OFFSET[shape.transport]
    return int.from_bytes(tunnel.data[at : at + 2], "big")


def _status_cases() -> dict[Status, bytes]:
    good = build(Shape())
    vxlan = good.data[good.udp + 8 :]
    ip = IP(src="10.0.0.1", dst="10.0.0.1")
    udp = UDP(sport=1, dport=PORT)
    routed = IPv6ExtHdrRouting(addresses=["fd00::1"], segleft=1)
    return {
        Status.OK: good.data,
        Status.NOT_IP: b"\x50" + good.data[1:],
        Status.MALFORMED_IP: good.data[:-1],
        Status.FRAGMENT: bytes(IP(flags="MF", proto=17) / Raw(vxlan)),
        Status.REROUTED: bytes(IPv6(nh=43) / routed / udp / Raw(vxlan)),
        Status.NOT_UDP: bytes(ip / TCP() / Raw(vxlan)),
        Status.MALFORMED_UDP: bytes(ip / UDP(dport=PORT, len=7) / Raw(vxlan)),
        Status.OTHER_PORT: build(Shape(port=4789)).data,
        Status.NOT_VXLAN: bytes(ip / udp / Raw(b"\0" + vxlan[1:])),
        Status.NOT_GENEVE: bytes(ip / UDP(dport=GENEVE_PORT) / Raw(b"\x42" + vxlan[1:])),
    }


@pytest.mark.parametrize("status", list(Status))
def test_status(status: Status) -> None:
    seen = core.inspect(_status_cases()[status], POLICY)
    if status is Status.OK:
        assert seen.outer is Outer.RIGHT
    else:
        assert seen == core.Inspection(status)  # and nothing else is told


def test_source_route() -> None:
    ip = IP(options=[IPOption_LSRR(routers=["10.0.0.1"])])
    packet = bytes(ip / UDP(sport=1, dport=PORT) / Raw(b"\x08" + bytes(7)))
    assert core.inspect(packet).status is Status.REROUTED


def _corrupt(right: Tunnel) -> Tunnel:
    return right.with_bytes(right.inner_end - 1, bytes([right.data[right.inner_end - 1] ^ 1]))


def _partial(right: Tunnel) -> Tunnel:
    partial = partial_check(right, Shape())
    # What skb_partial_csum_set() leaves of a UDP packet from 10.0.0.1 to 10.0.0.2.
    assert partial == 0x0A00 + 0x0001 + 0x0A00 + 0x0002 + 17 + 8 + len(Shape().payload)
    return right.with_bytes(right.inner_l4 + 6, struct.pack("!H", partial))


def _malformed(right: Tunnel) -> Tunnel:
    length = right.inner_end - right.inner_l4
    return right.with_bytes(right.inner_l4 + 4, struct.pack("!H", length + 1))


def _of_unknown_kind(right: Tunnel) -> Tunnel:
    return right.with_bytes(right.udp + 8, b"\x0c\0\0\4")  # NSH


@pytest.mark.parametrize(
    ("inner", "transport", "change"),
    [
        (Inner.UNPROVEN, Transport.ZERO_UDP, lambda right: right),
        (Inner.RIGHT, Transport.UDP, lambda right: right),
        (Inner.CORRUPT, Transport.UDP, _corrupt),
        (Inner.PARTIAL, Transport.UDP, _partial),
        (Inner.MALFORMED, Transport.UDP, _malformed),
        (Inner.UNKNOWN, Transport.UDP, _of_unknown_kind),
    ],
)
def test_inner(inner: Inner, transport: Transport, change: Callable[[Tunnel], Tunnel]) -> None:
    seen = core.inspect(change(build(Shape(transport=transport))).data)
    assert (seen.status, seen.inner, seen.vni) == (Status.OK, inner, VNI)


def test_every_inner_state_is_tested() -> None:
    assert len(Inner) == 6
    assert set(_status_cases()) == set(Status)


def _with_partial_inside(right: Tunnel, shape: Shape) -> Tunnel:
    field = right.inner_l4 + CHECK_OFFSET[shape.transport]
    return right.with_bytes(field, struct.pack("!H", partial_check(right, shape)))


offloaded_shapes = proven_shapes.filter(
    lambda shape: shape.transport is not Transport.ICMP or shape.inner_version == 6
)


@given(offloaded_shapes)
@reproducible
def test_local_checksum_offload(shape: Shape) -> None:
    """The outer checksum is already that of the packet whose inner one will be computed."""
    right = build(shape)
    seen = core.inspect(_with_partial_inside(right, shape).data, POLICY)
    assert seen.inner is Inner.PARTIAL
    assert (seen.outer, seen.difference) == (Outer.LCO, 0)


@given(offloaded_shapes, st.integers(1, 0xFFFF))
@reproducible
def test_the_difference_after_nat_names_the_port(shape: Shape, new_port: int) -> None:
    """The same for an inner checksum that is complete and one that is left to offload."""
    difference = (new_port - shape.source_port) % 0xFFFF
    assume(difference)
    before = build(shape)
    rewritten = before.with_bytes(before.udp, struct.pack("!H", new_port))
    for tunnel in (rewritten, _with_partial_inside(rewritten, shape)):
        assume(before.check != outer_partial_check(before))
        seen = core.inspect(tunnel.data, POLICY)
        assert (seen.outer, seen.difference) == (Outer.WRONG, difference)
        assert seen.inner in {Inner.RIGHT, Inner.UNPROVEN, Inner.PARTIAL}


@given(shapes)
@reproducible
def test_an_outer_checksum_that_is_left_to_the_nic(shape: Shape) -> None:
    """The kernel leaves just the pseudo-header sum: a complete inner checksum, or a GSO packet."""
    right = build(shape)
    assume(right.check != outer_partial_check(right))
    seen = core.inspect(right.with_check(outer_partial_check(right)), POLICY)
    assert (seen.outer, seen.difference) == (Outer.PARTIAL, 0)
    if shape.proven and (shape.transport is not Transport.ICMP or shape.inner_version == 6):
        gso = _with_partial_inside(right, shape).with_check(outer_partial_check(right))
        assert core.inspect(gso, POLICY).outer is Outer.PARTIAL


def test_computed_zero_of_inner_udp() -> None:
    """RFC 768: UDP sends a computed 0 as 0xffff, and that is what is expected of it."""
    start = build(Shape(payload=b"\0\0"))
    check = _inner_check(start, Shape())
    right = build(Shape(payload=struct.pack("!H", check)))
    seen = core.inspect(right.data)
    assert (seen.inner, seen.inner_found, seen.inner_expected) == (Inner.RIGHT, 0xFFFF, 0xFFFF)


@given(st.binary(max_size=200))
@reproducible
def test_random_bytes(data: bytes) -> None:
    seen = core.inspect(data)
    assert (seen.outer is Outer.NONE) == (seen.status is not Status.OK)
