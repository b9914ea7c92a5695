"""A process inside the sandbox which can be signalled exactly.

Theory of operation
-------------------
A process cannot move itself into another pid namespace: ``nsenter --pid`` joins, forks, and the
child runs the command. So the child of our ``Popen`` is nsenter, and a signal sent to it would
leave the command running. Entering without ``--pid`` would make the command our own child, but
then it would also outlive us, and its descendants with it: only the pid namespace makes the kernel
clear up after ``kill -9``. Joining from the caller (``setns`` before ``fork``) needs CAP_SYS_ADMIN
outside the sandbox, which an ordinary user has not got.

So we enter with ``--pid`` and signal nsenter's only child by its pid *in our own* pid namespace,
which /proc/PID/task/PID/children gives. nsenter passes the result on unchanged: it exits with the
command's code, and kills itself with the signal that killed the command. Two of its habits matter:

- when the command stops, nsenter stops itself, and when it is continued, it continues the command,
  some time later. So SIGSTOP returns when both have stopped; SIGCONT goes to both and returns when
  nsenter waits again, or else its belated SIGCONT could undo our next SIGSTOP;
- while it is stopped it cannot reap, so a command killed while stopped would never be reported,
  and the pid namespace could not be torn down (the kernel waits for every process to be reaped).
  So SIGKILL is followed by SIGCONT to nsenter.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

_PATIENCE = 5.0  # seconds that nsenter may take to fork, or to follow its child's state
_STEP = 0.002  # seconds between two looks


def only_child(pid: int) -> int | None:
    """Return the first child of single-threaded process `pid`, or None if it has none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it has just ended
        return None
    return int(children[0]) if children else None


def _state(pid: int) -> str:
    """Return the state letter of a process (R, S, T, Z, ...), or Z if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "Z"
    return stat.rpartition(")")[2].split()[0]


class Process(subprocess.Popen[str]):
    """A Popen whose signals reach the command and not the nsenter around it.

    `pid` is nsenter's; use `command_pid` or the signal methods. `wait`, `poll` and `returncode`
    are the command's.
    """

    def command_pid(self) -> int | None:
        """Return the command's pid as seen from here, or None if it has ended."""
        deadline = time.monotonic() + _PATIENCE
        while self.poll() is None and time.monotonic() < deadline:
            pid = only_child(self.pid)
            if pid is not None:
                return pid
            time.sleep(_STEP)
        return None

    def send_signal(self, sig: int) -> None:
        """Send `sig` to the command; do nothing if it has ended."""
        pid = self.command_pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
        if sig == signal.SIGSTOP:
            self._await_state("TZ")
        elif sig in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
            self._await_state("SZ")

    def _await_state(self, states: str) -> None:
        """Wait until nsenter is in one of these states."""
        deadline = time.monotonic() + _PATIENCE
        while _state(self.pid) not in states and time.monotonic() < deadline:
            time.sleep(_STEP)
