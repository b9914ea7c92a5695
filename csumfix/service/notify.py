"""Tells the service manager how the service is doing; see sd_notify(3)."""

from __future__ import annotations

import os
import socket

from csumfix.text import printable, shortened

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
STATUS = "STATUS="

STATUS_LIMIT = 500
"""Longest status in characters. systemd drops any message of more than 4,096 bytes (PIPE_BUF; see
NOTIFY_BUFFER_MAX in systemd's src/core/manager.c)."""

PATIENCE = 1.0
"""Seconds that a busy manager may make us wait."""


def notify(*lines: str) -> None:
    """Send these lines to the manager; nothing happens if there is none, or it does not listen.

    A status travels alone, so that whatever is in it cannot keep the rest from arriving.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A leading @ stands for the null byte of an abstract name.
    address = "\0" + address[1:] if address.startswith("@") else address
    statuses = [line for line in lines if line.startswith(STATUS)]
    others = [line for line in lines if not line.startswith(STATUS)]
    messages = ["\n".join(others)] * bool(others) + [_bounded(status) for status in statuses]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.settimeout(PATIENCE)
        try:
            for message in messages:
                manager.sendto(message.encode(), address)
        except OSError:
            return


def _bounded(status: str) -> str:
    return shortened(printable(status), STATUS_LIMIT)


def watchdog_limit() -> float | None:
    """Return the seconds of silence after which the manager kills us; None if it never does."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or meant_for != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


def without_watchdog_pid() -> dict[str, str]:
    """Return the environment for a successor, which the manager will watch in our place."""
    return {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
