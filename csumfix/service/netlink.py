"""Has the service listen to netlink events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from csumfix.host.changes import Changes
from csumfix.host.events import NetlinkEvents

log = logging.getLogger("csumfix")

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
    task = loop.create_task(_listen(events, react))
    try:
        yield
    finally:
        task.cancel()
        loop.remove_reader(events)
        events.close()


async def _listen(events: NetlinkEvents, react: Callable[[], None]) -> None:
    while True:
        await _readable(events)
        try:
            changed = events.read()
        except Exception as error:  # also by a bug: this task must not end
            log.error("cannot read netlink events: %r", error, extra={"event": "no_events"})
            changed = True  # whatever has changed is found by looking
        if changed:
            react()
        await asyncio.sleep(PAUSE)


async def _readable(events: NetlinkEvents) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(events, readable.set)
    await readable.wait()
    loop.remove_reader(events)
