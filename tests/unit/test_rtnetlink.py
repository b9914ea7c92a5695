"""What the kernel answers to rtnetlink requests; the kernel here is the other end of a socket."""

import errno
import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csumfix.host import rtnetlink
from csumfix.host.changes import HEADER, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR
from csumfix.host.rtnetlink import NetlinkDumpInterrupted, NetlinkError

MULTI = 0x2
ROUTE = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, 254, 0, 0, 1, 0) + struct.pack(
    "=HHI", 8, 4, 7
)
DONE = struct.pack("=i", 0)
Answer = Callable[..., None]


def message(kind: int, body: bytes, flags: int = MULTI) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """Have these datagrams be the kernel's answer to the next request."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Socket:
        def __enter__(self) -> "Socket":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def connect(self, _: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return getattr(ours, name)

    monkeypatch.setattr(socket, "socket", lambda *_: Socket())

    def send(*datagrams: bytes) -> None:
        for datagram in datagrams:
            kernel.send(datagram)

    yield send
    ours.close()
    kernel.close()


def test_an_answer_of_several_datagrams(answer: Answer) -> None:
    answer(message(24, ROUTE) * 2, message(24, ROUTE), message(NLMSG_DONE, DONE))
    assert [route.get("oif") for route in rtnetlink.routes(socket.AF_INET)] == [7, 7, 7]


def test_a_single_answer_ends_with_its_acknowledgement(answer: Answer) -> None:
    answer(message(24, ROUTE, 0), message(NLMSG_ERROR, DONE + bytes(16), 0))
    assert [route.get("oif") for route in rtnetlink.route_to("192.0.2.1")] == [7]


@pytest.mark.parametrize("kind", [NLMSG_ERROR, NLMSG_DONE])
def test_a_refusal_says_why(answer: Answer, kind: int) -> None:
    answer(message(24, ROUTE), message(kind, struct.pack("=i", -errno.ENOMEM)))
    with pytest.raises(NetlinkError, match="Cannot allocate memory") as caught:
        rtnetlink.neighbours()
    assert caught.value.code == errno.ENOMEM


def test_an_answer_that_changed_meanwhile_is_refused(answer: Answer) -> None:
    answer(message(24, ROUTE), message(NLMSG_DONE, DONE, NLM_F_DUMP_INTR))
    with pytest.raises(NetlinkDumpInterrupted):
        rtnetlink.routes(socket.AF_INET6)


def test_devices_of_other_kinds_are_not_even_decoded(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel whose geneve module is not loaded lists all devices."""
    links = json.loads((Path(__file__).parent / "data" / "links.json").read_text())
    others = [bytes.fromhex(links[name]) for name in ("lo", "flannel.1")]
    answer(*others, message(NLMSG_DONE, DONE))
    monkeypatch.setattr(rtnetlink, "_decoded", pytest.fail)
    assert rtnetlink.links("geneve") == []


def test_the_kernel_of_this_host_answers() -> None:
    """Requests are well-formed: each is understood, whatever there is."""
    assert rtnetlink.links("vxlan") == [] or all(rtnetlink.links("vxlan"))
    for family in (socket.AF_INET, socket.AF_INET6):
        assert isinstance(rtnetlink.routes(family), list)
    assert isinstance(rtnetlink.neighbours(), list)
    assert [route.get("oif") for route in rtnetlink.route_to("127.0.0.1")] == [1]
