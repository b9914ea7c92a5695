"""Tells the service manager how the service is doing; see sd_notify(3)."""

from __future__ import annotations

import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"

PATIENCE = 1.0
"""Seconds that a busy manager may make us wait."""


def notify(*lines: str) -> None:
    """Send these lines to the manager; nothing happens if there is none, or it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A leading @ stands for the null byte of an abstract name.
    address = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.settimeout(PATIENCE)
        try:
            manager.sendto("\n".join(lines).encode(), address)
        except OSError:
            return


def watchdog_limit() -> float | None:
    """Return the seconds of silence after which the manager kills us; None if it never does."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or meant_for != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


def without_watchdog_pid() -> dict[str, str]:
    """Return the environment for a successor, whom the manager will watch in our place."""
    return {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
