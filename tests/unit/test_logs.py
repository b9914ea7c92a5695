"""Log lines: formats, and the limit to how many come."""

import json
import logging
import os
import sys

import pytest

from csumfix import logs
from csumfix.text import LINE


def record(message: str, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("csumfix", level, "f.py", 1, message, args, None)


def test_text() -> None:
    formatter = logs.TextFormatter()
    assert formatter.format(record("ready")) == "ready"
    assert formatter.format(record("broken %d", 1, level=logging.ERROR)) == "error: broken 1"


def test_journal_priorities() -> None:
    formatter = logs.JournalFormatter()
    assert formatter.format(record("ready")) == "<6>ready"
    assert formatter.format(record("broken", level=logging.ERROR)) == "<3>broken"


def test_the_journal_is_known_by_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = os.fstat(sys.__stderr__.fileno())  # type: ignore[union-attr]
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    monkeypatch.setenv("JOURNAL_STREAM", f"{seen.st_dev}:{seen.st_ino}")
    assert isinstance(logs._formatter("text"), logs.JournalFormatter)
    assert isinstance(logs._formatter("json"), logs.JsonFormatter)
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert isinstance(logs._formatter("text"), logs.TextFormatter)


def test_json() -> None:
    line = record('queue %d says "no"\n', 3, level=logging.WARNING)
    line.created, line.msecs = 1_700_000_000.25, 250
    line.event = "refused"
    assert json.loads(logs.JsonFormatter().format(line)) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "message": 'queue 3 says "no"\n',
        "event": "refused",
    }


def test_too_many_lines_of_a_kind_are_held_back_and_counted() -> None:
    now = 0.0
    limit = logs.RateLimit(lambda: now)
    passed = [limit.filter(record("failed: %d", number)) for number in range(20)]
    assert passed == [True] * logs.BURST + [False] * (20 - logs.BURST)
    assert limit.filter(record("something else"))
    now = logs.PERIOD
    late = record("failed: %d", 99)
    assert limit.filter(late)
    assert late.getMessage() == f"failed: 99 ({20 - logs.BURST} lines like this were held back)"
    assert limit.filter(record("failed: %d", 100))


def test_every_change_of_a_lane_is_logged() -> None:
    limit = logs.RateLimit(lambda: 0.0)
    for number in range(2 * logs.BURST):
        change = record("port %d: now in the queue lane", number)
        change.event = "lane_changed"
        assert limit.filter(change)


def test_the_limit_remembers_a_bounded_number_of_kinds() -> None:
    limit = logs.RateLimit(lambda: 0.0)
    for number in range(10 * logs.KINDS):
        assert limit.filter(record(f"filled in: {number}"))
    assert len(limit._seen) == logs.KINDS


def test_no_line_grows_with_the_host_or_steers_a_terminal() -> None:
    hostile = record("changed: %s", "vx\x1b[31m" * 600)
    for formatter in (logs.TextFormatter(), logs.JournalFormatter()):
        line = formatter.format(hostile)
        assert line.isprintable()
        assert len(line) < 4000
    assert len(json.loads(logs.JsonFormatter().format(hostile))["message"]) <= LINE
