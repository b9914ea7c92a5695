"""Log lines: one for each change of state, as text for people or JSON for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from csumfix.text import printable, shortened

STDERR = 2

BURST, PERIOD = 5, 60.0
"""BURST lines of one kind are logged in PERIOD seconds."""

KINDS = 100
"""How many kinds of lines are remembered."""

UNLIMITED = frozenset({"lane_changed"})
"""Events of which every line is logged. service/lanes.py bounds how often a lane changes, and the
change of many lanes is one line."""

# The attributes that logging itself gives a record; all others come from "extra".
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message"}

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _PrintableFormatter(logging.Formatter):
    """Bounds the length of a message; no text in it or in its traceback controls a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without a traceback."""
        return shortened(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of a traceback if there is one."""
        return "\n".join(map(printable, super().format(record).split("\n")))


class TextFormatter(_PrintableFormatter):
    """Information as it is; anything worse begins with its level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = super().format(record)
        return line if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {line}"


class JournalFormatter(_PrintableFormatter):
    """Begins a line with its priority for journald; see sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return f"<{_PRIORITIES.get(record.levelno, 2)}>{super().format(record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time in UTC, level, message, and the fields of ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        seconds = time.gmtime(record.created)
        document = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": shortened(record.getMessage()),
        }
        given = {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}
        if record.exc_info:
            given["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document | given, default=str)


class RateLimit(logging.Filter):
    """Passes BURST lines of a kind in each PERIOD, and says how many it held back.

    Lines whose text is the same before their arguments are filled in are of one kind. Libraries
    may fill in texts themselves, so only the last KINDS texts are remembered.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line may pass."""
        if getattr(record, "event", None) in UNLIMITED:
            return True
        now = self._clock()
        if record.msg not in self._seen and len(self._seen) >= KINDS:
            del self._seen[next(iter(self._seen))]
        began, count = self._seen.get(record.msg, (now, 0))
        if now - began < PERIOD:
            self._seen[record.msg] = (began, count + 1)
            return count < BURST
        self._seen[record.msg] = (now, 1)
        if count > BURST:
            record.msg, record.args = (
                f"{record.getMessage()} ({count - BURST} lines like this were held back)",
                (),
            )
        return True


_limit = RateLimit()  # the same for all of set_up()'s handlers: a reload starts no new burst


def set_up(style: str) -> None:
    """Log to standard error from now on; style is "text" or "json"."""
    _replace_closed_stderr()
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(style))
    handler.addFilter(_limit)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _replace_closed_stderr() -> None:
    """Open /dev/null if standard error was closed, so that no other file gets its descriptor."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        os.dup2(sys.stderr.fileno(), STDERR)
        os.set_inheritable(STDERR, True)


def _formatter(style: str) -> logging.Formatter:
    if style == "json":
        return JsonFormatter()
    return JournalFormatter() if _is_journal() else TextFormatter()


def _is_journal() -> bool:
    """Tell whether standard error goes to journald, which announces it in JOURNAL_STREAM."""
    try:
        seen = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}"
