"""Listens to netlink events on behalf of the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from csumfix.host.changes import Changes
from csumfix.host.events import NetlinkEvents

PAUSE = 0.05
"""Seconds between two reads. Waking up for each of 5,000 events per second would cost far more
than reading them."""


@contextlib.contextmanager
def listening(
    what: tuple[int, int], changes: Changes, react: Callable[[], None]
) -> Iterator[None]:
    """Call `react` soon after each event that changes something for us."""
    loop = asyncio.get_running_loop()
    events = NetlinkEvents(what, changes)
    pause = loop.call_later(0, int)

    def on_readable() -> None:
        nonlocal pause
        loop.remove_reader(events)
        pause = loop.call_later(PAUSE, loop.add_reader, events, on_readable)
        if events.read():
            react()

    loop.add_reader(events, on_readable)
    try:
        yield
    finally:
        pause.cancel()
        loop.remove_reader(events)
        events.close()
