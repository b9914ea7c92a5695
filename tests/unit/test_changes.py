"""Which netlink events change something, from messages that the kernel (6.18) sent."""

import json
import struct
from pathlib import Path

import pytest

from csumfix.host.changes import (
    ATTRIBUTE,
    HEADER,
    IN_MANGLE,
    IN_OURS,
    LINK,
    ROUTE,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTN_UNICAST,
    TO_LINK_LOCAL,
    LinkChanges,
    RouteChanges,
    RuleChanges,
)

LINKS = json.loads((Path(__file__).parent / "data" / "links.json").read_text())
TUNNEL, OTHER = bytes.fromhex(LINKS["flannel.1"]), bytes.fromhex(LINKS["lo"])
TUNNEL_NUMBER, OTHER_NUMBER = 2, 1
AF_BRIDGE = 7
RTN_LOCAL = 2
FLAGS_AT, FAMILY_AT = HEADER.size + 8, HEADER.size


def gone(number: int) -> bytes:
    link = LINK.pack(0, 1, number, 0, 0)
    return HEADER.pack(HEADER.size + len(link), RTM_DELLINK, 0, 0, 0) + link


def changed(message: bytes, at: int, new: bytes) -> bytes:
    return message[:at] + new + message[at + len(new) :]


def route(kind: int, how: int) -> bytes:
    body = ROUTE.pack(2, 24, 0, 0, 254, 2, 0, how, 0)
    # The length takes in an attribute that may follow.
    return HEADER.pack(HEADER.size + len(body) + len(TO_LINK_LOCAL), kind, 0, 0, 0) + body


def neighbour(kind: int, family: int, number: int) -> bytes:
    body = struct.pack("=B3xiHBB", family, number, 0, 0, 0)
    return HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body


def test_a_new_tunnel_is_a_change_once() -> None:
    changes = LinkChanges()
    assert changes.concern_us(TUNNEL)
    assert not changes.concern_us(TUNNEL)


def test_a_geneve_device_is_a_tunnel() -> None:
    changes = LinkChanges()
    name, data = (bytes(text, "ascii") + b"\0" for text in ("gnv", "geneve"))
    kind = ATTRIBUTE.pack(4 + len(data), 1) + data + b"\0"
    attributes = ATTRIBUTE.pack(4 + len(name), 3) + name
    attributes += ATTRIBUTE.pack(4 + len(kind), 18) + kind
    body = LINK.pack(0, 1, 9, 0, 0) + attributes
    message = HEADER.pack(HEADER.size + len(body), RTM_NEWLINK, 0, 0, 0) + body
    assert changes.concern_us(message)
    assert not changes.concern_us(message)
    assert changes.concern_us(gone(9))


def test_a_tunnel_that_goes_up_or_down_is_no_change() -> None:
    changes = LinkChanges()
    assert changes.concern_us(TUNNEL)
    assert not changes.concern_us(changed(TUNNEL, FLAGS_AT, b"\xff\xff"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"flannel.1", b"flannel.2"),
        (struct.pack("=HHI", 8, 4, 1450), struct.pack("=HHI", 8, 4, 1400)),
        (struct.pack("=HH", 6, 15) + b"\x21\x18", struct.pack("=HH", 6, 15) + b"\x12\xb5"),
    ],
    ids=["name", "MTU", "port"],
)
def test_a_tunnel_with_another(old: bytes, new: bytes) -> None:
    assert old in TUNNEL
    changes = LinkChanges()
    assert changes.concern_us(TUNNEL)
    assert changes.concern_us(TUNNEL.replace(old, new))


def test_other_devices_are_no_change() -> None:
    changes = LinkChanges()
    changes.expect(frozenset({TUNNEL_NUMBER}), frozenset({9}))
    assert not changes.concern_us(OTHER)
    assert not changes.concern_us(gone(OTHER_NUMBER))


def test_what_a_bridge_says_about_its_port_is_no_change() -> None:
    changes = LinkChanges()
    changes.expect(frozenset({TUNNEL_NUMBER}), frozenset())
    family = bytes([AF_BRIDGE])
    assert not changes.concern_us(changed(TUNNEL, FAMILY_AT, family))
    assert not changes.concern_us(changed(gone(TUNNEL_NUMBER), FAMILY_AT, family))


@pytest.mark.parametrize("number", [TUNNEL_NUMBER, 9], ids=["tunnel", "underlay"])
def test_a_device_that_goes(number: int) -> None:
    changes = LinkChanges()
    changes.expect(frozenset({TUNNEL_NUMBER}), frozenset({9}))
    assert changes.concern_us(gone(number))


def test_a_tunnel_that_comes_and_goes_between_two_looks() -> None:
    changes = LinkChanges()
    assert changes.concern_us(TUNNEL)
    assert changes.concern_us(gone(TUNNEL_NUMBER))
    assert changes.concern_us(TUNNEL)


def test_after_a_loss_nothing_is_known() -> None:
    changes = LinkChanges()
    assert changes.concern_us(TUNNEL)
    changes.forget()
    assert changes.concern_us(TUNNEL)


def test_every_message_of_a_datagram_is_remembered() -> None:
    changes = LinkChanges()
    other_tunnel = bytes.fromhex(LINKS["v6"])
    assert changes.concern_us(OTHER + TUNNEL + other_tunnel)
    assert not changes.concern_us(TUNNEL)
    assert not changes.concern_us(other_tunnel)


@pytest.mark.parametrize("length", [*range(60), *range(60, len(TUNNEL), 7)])
def test_a_message_that_is_cut_short_ends_nothing(length: int) -> None:
    for cut in (TUNNEL[:length], struct.pack("=I", length) + TUNNEL[4:length]):
        LinkChanges().concern_us(cut)
        RouteChanges().concern_us(cut)
        RuleChanges().concern_us(cut)


@pytest.mark.parametrize("kind", [RTM_NEWROUTE, RTM_DELROUTE])
def test_routes_matter_while_one_decides_where_a_tunnel_leaves(kind: int) -> None:
    changes = RouteChanges()
    assert not changes.concern_us(route(kind, RTN_UNICAST))
    changes.expect(frozenset({TUNNEL_NUMBER}), routed=True)
    assert changes.concern_us(route(kind, RTN_UNICAST))
    assert not changes.concern_us(route(kind, RTN_LOCAL))
    assert not changes.concern_us(route(kind, RTN_UNICAST) + TO_LINK_LOCAL)


@pytest.mark.parametrize("kind", [RTM_NEWNEIGH, RTM_DELNEIGH])
def test_remote_ends_matter_and_other_neighbours_do_not(kind: int) -> None:
    changes = RouteChanges()
    changes.expect(frozenset({TUNNEL_NUMBER}), routed=True)
    assert changes.concern_us(neighbour(kind, AF_BRIDGE, TUNNEL_NUMBER))
    assert not changes.concern_us(neighbour(kind, AF_BRIDGE, OTHER_NUMBER))
    assert not changes.concern_us(neighbour(kind, 2, TUNNEL_NUMBER))


def test_rules_matter_in_the_tables_that_have_ours() -> None:
    changes = RuleChanges()
    assert changes.concern_us(bytes(20) + IN_MANGLE + bytes(8))
    assert changes.concern_us(bytes(20) + IN_OURS + bytes(8))
    assert not changes.concern_us(bytes(20) + IN_OURS.replace(b"csumfix", b"firewal") + bytes(8))
    assert not changes.concern_us(bytes(20) + IN_MANGLE.replace(b"mangle", b"filter"))
