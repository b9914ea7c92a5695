"""Watching what leaves, while devices go down."""

import asyncio
import errno
import os
from collections.abc import Iterator

import pytest

from csumfix.evidence import watch
from csumfix.evidence.tapsocket import Packet
from tests.packets import PORT, Shape, build

GOES_DOWN = 7


class Tap:
    """Stands for a packet socket; one device goes down after its first packet."""

    def __init__(self, device: int, *_: object) -> None:
        self._packets = self._arriving(device)

    def _arriving(self, device: int) -> Iterator[Packet | None]:
        right = build(Shape())
        yield Packet(memoryview(right.with_check(right.check ^ 0x5555)), complete=True)
        if device == GOES_DOWN:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        yield None
        yield Packet(memoryview(right.with_check(right.check ^ 0x5555)), complete=True)

    def read(self) -> Packet | None:
        return next(self._packets, None)

    def close(self) -> None:
        pass


def test_a_device_that_goes_down_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TapSocket", Tap)
    monkeypatch.setattr(watch, "STEP", 0.001)
    watched = asyncio.run(watch.departures([GOES_DOWN, 8], {PORT: "vxlan"}, 0.02))
    assert watched.total == 3


def test_a_socket_that_cannot_be_opened_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(watch, "TapSocket", refuse)
    with pytest.raises(PermissionError):
        asyncio.run(watch.departures([8], {PORT: "vxlan"}, 0.02))
