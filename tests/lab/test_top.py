"""csumfix top beside a running service, for scripts and in a terminal of 80 columns."""

import os
import pty
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import DEVNULL, PIPE

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from tests.lab.harness import QUEUE, sender, service

TOP = [sys.executable, "-m", "csumfix", "top"]
ESCAPE = "\x1b"
PATIENCE = 10.0


def test_once_prints_rates_as_plain_text(lab: Lab) -> None:
    with service(lab.sender, QUEUE, "--queues=2", "--metrics=127.0.0.1:9478"):
        load = sender(lab, 10_000, 512, flows=8, rate=2000)
        result = lab.sender.run([*TOP, "--once", "--interval=2"], check=False, timeout=20)
        load.kill()
        load.wait(10)
    assert result.returncode == 0, result.stderr
    assert ESCAPE not in result.stdout
    lines = result.stdout.splitlines()
    assert any(line.split()[:4] == [lab.device, "VXLAN", "1", "8472"] for line in lines)
    rows = [line.split() for line in lines[-2:]]
    assert [row[0] for row in rows] == ["0", "1"]
    packets, written = (sum(int(row[column]) for row in rows) for column in (1, 3))
    assert packets == written > 0
    # left wrong, missed and lost; and probes have waited for more than nothing
    assert all(row[4:7] == ["0", "0", "0"] and float(row[9]) > 0 for row in rows)


def test_no_service_is_one_line(lab: Lab) -> None:
    for options in ([], ["--once"]):
        result = lab.sender.run([*TOP, *options], check=False, timeout=20)
        assert result.returncode == Exit.NEGATIVE
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1


class Terminal:
    """top in a terminal of 24 lines and 80 columns."""

    def __init__(self, lab: Lab) -> None:
        self._keyboard, screen = pty.openpty()
        termios.tcsetwinsize(screen, (24, 80))
        self._screen = ""
        self.settings = termios.tcgetattr(self._keyboard)
        self.process = lab.sender.popen(
            [*TOP, "--interval=0.2"],
            stdin=screen,
            stdout=screen,
            stderr=PIPE,
            env={"TERM": "xterm-256color"},
        )
        os.close(screen)

    def wait_for(self, words: str) -> None:
        """Wait until these words are drawn again."""
        deadline = time.monotonic() + PATIENCE
        while words not in self._screen:
            assert time.monotonic() < deadline, self._screen
            if select.select([self._keyboard], [], [], 0.1)[0]:
                self._screen += os.read(self._keyboard, 65536).decode()
        self._screen = ""

    def press(self, keys: bytes) -> None:
        os.write(self._keyboard, keys)

    def end(self) -> int:
        """Wait for the end; the terminal must be as it was."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            # It cannot see a key while it waits for a full terminal.
            if select.select([self._keyboard], [], [], 0.1)[0]:
                with suppress(OSError):  # EIO: it has closed the terminal
                    os.read(self._keyboard, 65536)
        _, err = self.process.communicate(timeout=PATIENCE)
        assert err == ""
        assert termios.tcgetattr(self._keyboard) == self.settings
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        os.close(self._keyboard)


@contextmanager
def terminal(lab: Lab) -> Iterator[Terminal]:
    shown = Terminal(lab)
    try:
        yield shown
    finally:
        shown.close()


@pytest.mark.parametrize("keys", [b"q", b"xyzq"])
def test_q_ends_it(lab: Lab, keys: bytes) -> None:
    with service(lab.sender), terminal(lab) as shown:
        shown.wait_for("written")
        shown.press(keys)
        assert shown.end() == 0


def test_ctrl_c_ends_it(lab: Lab) -> None:
    with service(lab.sender), terminal(lab) as shown:
        shown.wait_for("written")
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 0


def test_it_waits_for_a_service_that_is_restarted(lab: Lab) -> None:
    with service(lab.sender) as first, terminal(lab) as shown:
        shown.wait_for("written")
        assert first.stop() == 0
        shown.wait_for("waiting for one")
        with service(lab.sender):
            shown.wait_for("written")
        shown.press(b"q")
        assert shown.end() == 0


def test_without_a_terminal_it_prints_once(lab: Lab) -> None:
    with service(lab.sender):
        top = lab.sender.popen(TOP, stdin=DEVNULL, stdout=PIPE)
        out, _ = top.communicate(timeout=PATIENCE)
        assert top.returncode == 0
        assert out.count("queues") == 1
