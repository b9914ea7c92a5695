"""What the service manager is told, over a socket like its own."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from csumfix.service import notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.notify(notify.READY)
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    notify.notify(notify.READY)


def test_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"csumfix-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        end.settimeout(2)
        notify.notify(notify.ALIVE)
        assert end.recv(4096) == b"WATCHDOG=1"


def test_a_status_travels_alone(manager: socket.socket) -> None:
    notify.notify(notify.READY, "STATUS=one tunnel", "MAINPID=7")
    assert [manager.recv(4096), manager.recv(4096)] == [
        b"READY=1\nMAINPID=7",
        b"STATUS=one tunnel",
    ]


def test_no_status_is_too_long_or_steers_a_terminal(manager: socket.socket) -> None:
    notify.notify(f"STATUS=\x1b[31m\nREADY=1 {'x' * 10_000}")
    said = manager.recv(4096)
    assert len(said) <= notify.STATUS_LIMIT
    assert said.startswith(b"STATUS=\\x1b[31m\\x0aREADY=1 xxx")


@pytest.mark.parametrize(
    ("usec", "pid", "limit"),
    [
        ("10000000", "", 10.0),
        ("500000", "ours", 0.5),
        ("500000", "1", None),
        ("", "", None),
        ("soon", "", None),
    ],
)
def test_the_watchdog(
    usec: str, pid: str, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert notify.watchdog_limit() == limit


def test_a_successor_is_watched_in_our_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "7")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    assert "WATCHDOG_PID" not in notify.without_watchdog_pid()
    assert notify.without_watchdog_pid()["WATCHDOG_USEC"] == "1"
