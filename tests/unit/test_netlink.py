"""Listening to netlink events goes on, whatever one of them does; the lab listens to real ones."""

import asyncio
import socket

import pytest

from csumfix.service import netlink


class Events:
    """Reads raise; the events themselves are bytes in a socket."""

    def __init__(self, error: Exception) -> None:
        self.kernel, self._socket = socket.socketpair()
        self._error = error

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> bool:
        self._socket.recv(1)
        raise self._error

    def close(self) -> None:
        self.kernel.close()
        self._socket.close()


@pytest.mark.parametrize("error", [OSError(105, "No buffer space available"), IndexError("bug")])
def test_what_cannot_be_read_may_have_changed_anything(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = Events(error)
    monkeypatch.setattr(netlink, "NetlinkEvents", lambda *_: events)
    reactions: list[None] = []

    async def scenario() -> None:
        with netlink.listening((0, 0), None, lambda: reactions.append(None)):  # type: ignore[arg-type]
            for _ in range(2):
                events.kernel.send(b"x")
                await asyncio.sleep(3 * netlink.PAUSE)

    asyncio.run(scenario())
    assert len(reactions) == 2
    assert caplog.text.count("cannot read netlink events") == 2
