"""What a drain tells Python; a socket pair and messages made by hand stand for the kernel."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from csumfix.core import Drain, Policy, PortStats, Stats
from tests.fuzz.seeds import VERDICT, packet, status
from tests.packets import Shape, build

PORTS = (8472, 4789, 65535)
SLOTS = 64


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, Drain]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield ours, Drain(theirs.fileno(), 0, Policy(PORTS))


def run(kernel: tuple[socket.socket, Drain], *packets: bytes) -> Stats:
    """Have the drain judge these packets, until it is told that its queue is gone."""
    ours, drain = kernel
    for number, data in enumerate(packets, start=1):
        ours.send(packet(number, data))
    ours.send(status(VERDICT, -errno.ENODEV))
    with pytest.raises(OSError, match="No such device"):
        drain.run()
    return drain.stats()


def wrong(port: int) -> bytes:
    right = build(Shape(port=port))
    return right.with_check(right.check ^ 0x5555)


def corrupt(port: int) -> bytes:
    right = build(Shape(port=port))
    return right.with_bytes(right.inner_end - 1, b"\xee").data


def test_packets_by_port(kernel: tuple[socket.socket, Drain]) -> None:
    right = build(Shape(port=8472)).data
    seen = run(kernel, wrong(65535), right, right, corrupt(8472), wrong(9), wrong(65535))
    assert seen.ports == (PortStats(65535, 2, 2, 0), PortStats(8472, 3, 0, 1))
    assert seen.packets == 6


def test_no_packets(kernel: tuple[socket.socket, Drain]) -> None:
    assert run(kernel).ports == ()


def test_more_ports_than_are_counted_by_name(kernel: tuple[socket.socket, Drain]) -> None:
    _, drain = kernel
    drain.set_policy(Policy())
    for port in range(1, SLOTS + 3):
        seen = run(kernel, wrong(port))
    assert seen.ports == (
        *(PortStats(port, 1, 1, 0) for port in range(1, SLOTS + 1)),
        PortStats(0, 2, 2, 0),
    )


def test_a_policy_need_not_outlive_the_call(kernel: tuple[socket.socket, Drain]) -> None:
    """More different ones than core keeps, so that what the drain was given first is gone."""
    _, drain = kernel
    for port in range(1, 100):
        drain.set_policy(Policy((port,)))
    seen = run(kernel, wrong(99), wrong(98))
    assert seen.by_reason()["recomputed"] == seen.by_reason()["other_port"] == 1
