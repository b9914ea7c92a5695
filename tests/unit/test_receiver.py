"""What ``csumfix doctor --receiver`` says about what arrived and what was dropped."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from csumfix.errors import Exit
from csumfix.evidence.captures import Captured, Examiner
from csumfix.evidence.causes import Tally
from csumfix.evidence.drops import Drops
from csumfix.evidence.tapsocket import Direction
from csumfix.views import receiver
from csumfix.views.receiver import ArrivalReport, ArrivalState
from tests.packets import PORT, Shape, build

QUIET = (
    Drops("this host", True, {"UdpInCsumErrors": 5}, {"UdpInCsumErrors": 5}),
    Drops("pod shop/web-0", False, {"TcpInCsumErrors": 1}, {"TcpInCsumErrors": 1}),
)


def right(host: int = 1) -> bytes:
    return build(Shape(host=host)).data


def rewritten(host: int = 1, new: int = 2000) -> bytes:
    """A packet whose source port somebody changed without its checksum."""
    tunnel = build(Shape(source_port=40000 + new, host=host))
    return tunnel.with_bytes(tunnel.udp, struct.pack("!H", new)).data


def report(*packets: bytes, counters: tuple[Drops, ...] = QUIET, **more: Any) -> ArrivalReport:
    examiner, tally = Examiner({PORT: "vxlan"}, forced=Direction.IN), Tally()
    for number, data in enumerate(packets, start=1):
        judged = examiner.examine(Captured(number, Direction.IN, data, len(data), True))
        assert judged
        tally.add(judged)
    return ArrivalReport(10, ("eth0",), (PORT,), len(packets), tally, counters, **more)


def test_one_sender_is_named_first_and_then_its_remedy() -> None:
    risen = Drops("this host", True, {"UdpInCsumErrors": 5}, {"UdpInCsumErrors": 7})
    found = report(rewritten(), rewritten(new=2001), right(host=2), counters=(risen, QUIET[1]))
    lines = list(found.lines())
    assert found.state is ArrivalState.FOUND
    sender = next(iter(found.as_json()["findings"][0]["senders"]))
    assert lines[0] == (
        f"{sender} sends this host wrong packets: 2 of 3 tunnel packets in 10 s on eth0."
    )
    assert "  Remedy: run csumfix on the sender." in lines
    assert lines[-2:] == [
        "Dropped for a wrong checksum in that time: 2 by this host, "
        "0 in 1 other network namespace.",
        "  this host: UdpInCsumErrors +2",
    ]


def test_several_senders_are_counted() -> None:
    found = report(rewritten(host=1), rewritten(host=2))
    assert found.verdict().startswith("2 hosts send this host wrong packets: 2 of 2")


def test_right_packets_and_no_drops_are_healthy() -> None:
    found = report(right())
    assert found.state is ArrivalState.HEALTHY
    assert found.verdict() == (
        "All is well: 1 tunnel packet arrived in 10 s on eth0, none of them wrong."
    )


def test_nothing_that_arrived_is_undecided_and_says_what_to_do() -> None:
    found = report()
    assert found.state is ArrivalState.UNDECIDED
    assert "Repeat it while another node sends (--seconds 60)" in found.verdict()


def test_drops_that_were_not_seen_to_arrive_are_undecided() -> None:
    pod = Drops("pod shop/\x1b[1m", False, {"TcpInCsumErrors": 1}, {"TcpInCsumErrors": 4})
    found = report(right(), counters=(QUIET[0], pod))
    assert found.state is ArrivalState.UNDECIDED
    assert "the kernel dropped 3 packets for a wrong checksum" in found.verdict()
    assert "  pod shop/\\x1b[1m: TcpInCsumErrors +3" in found.lines()


def test_owners_are_a_bounded_number() -> None:
    pods = tuple(Drops(f"pod {n}", False, {"a": 0}, {"a": n}) for n in range(1, 20))
    lines = list(receiver.counter_lines(pods))
    assert len(lines) == 2 + receiver.OWNERS
    assert lines[1] == "  pod 19: a +19"
    assert lines[-1] == "  and 11 more; --json lists all"


@pytest.mark.parametrize(
    ("state", "code"), [("healthy", Exit.OK), ("found", Exit.NEGATIVE), ("undecided", Exit.BROKEN)]
)
def test_every_state_has_its_exit_code(state: str, code: Exit) -> None:
    assert receiver.EXITS[ArrivalState(state)] is code
