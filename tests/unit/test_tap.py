"""What the egress tap says when it cannot open its sockets."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator

import pytest

from csumfix.evidence import tap as module
from csumfix.evidence.tap import Tap

HEALTHY, FAULTY = 1_000_001, 1_000_002  # numbers that no device has


class Opening:
    """Stands for packet sockets: those on one device cannot be opened, for a time."""

    error: int | None = None
    bug: Exception | None = None
    opened = 0

    def __init__(self, device: int, *_: object) -> None:
        if device == FAULTY and Opening.error:
            raise OSError(Opening.error, os.strerror(Opening.error))
        Opening.opened += 1
        self._readable, self._other = os.pipe()
        os.write(self._other, b"x")

    def fileno(self) -> int:
        return self._readable

    def read(self) -> None:
        if Opening.bug:
            raise Opening.bug
        raise OSError(errno.ENETDOWN, "so that the look ends at once")

    def close(self) -> None:
        os.close(self._readable)
        os.close(self._other)


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tap]:
    monkeypatch.setattr(module, "TapSocket", Opening)
    monkeypatch.setattr(module, "REST", 0.01)
    monkeypatch.setattr(module, "AFTER_ERROR", 0.05)
    monkeypatch.setattr(Opening, "error", None)
    monkeypatch.setattr(Opening, "bug", None)
    monkeypatch.setattr(Opening, "opened", 0)
    made = Tap(0.01, lambda: None)
    made.start()
    yield made
    made.stop()


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def watch(tap: Tap, pause: float = 0.01) -> None:
    tap.watch(frozenset({HEALTHY, FAULTY}), {8472: "vxlan"}, pause)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.EPERM, "no permission to open packet sockets (CAP_NET_RAW)"),
        (errno.EMFILE, "cannot open packet sockets: Too many open files"),
        (errno.ENOMEM, "cannot open packet sockets: Cannot allocate memory"),
    ],
)
def test_it_says_once_why_it_is_blind_until_it_sees_again(
    tap: Tap, error: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "csumfix"):
        Opening.error = error
        watch(tap)
        until(lambda: tap.traffic().fault == words)
        before = Opening.opened
        until(lambda: Opening.opened > before + 5)  # the other device is looked at meanwhile
        assert tap.traffic().fault == words
        assert len(caplog.records) == 1
        Opening.error = None
        until(lambda: tap.traffic().fault is None)


@pytest.mark.parametrize("error", [errno.ENODEV, errno.ENXIO, errno.ENETDOWN])
def test_a_device_that_is_away_is_no_fault(tap: Tap, error: int) -> None:
    Opening.error = error
    watch(tap)
    until(lambda: Opening.opened > 5)
    assert tap.traffic().fault is None


def test_what_is_turned_off_has_no_fault(tap: Tap) -> None:
    Opening.error = errno.EMFILE
    watch(tap)
    until(lambda: tap.traffic().fault is not None)
    watch(tap, pause=0)
    until(lambda: tap.traffic().fault is None)


def test_an_error_that_nobody_foresaw_does_not_end_the_tap(tap: Tap) -> None:
    Opening.bug = ValueError("a strange packet")
    tap.watch(frozenset({HEALTHY}), {8472: "vxlan"}, 0.01)
    until(lambda: "a strange packet" in str(tap.traffic().fault))
    Opening.bug = None
    opened = Opening.opened
    until(lambda: tap.traffic().fault is None and Opening.opened > opened)
