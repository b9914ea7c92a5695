"""A process inside the sandbox whose signals reach the command itself.

Theory of operation
-------------------
setns() moves the children of a process into another pid namespace, and never the process itself
(pid_namespaces(7)). So the child of our ``Popen`` is a waiter that joins, forks and waits, and a
signal sent to it would leave the command running. Without the pid namespace the command would be
our own child, but it and its descendants would outlive us: only the pid namespace makes the kernel
end them after ``kill -9``. If the caller itself joined (``setns`` before ``fork``), it would need
CAP_SYS_ADMIN outside the sandbox, which an ordinary user does not have.

So we signal the waiter's only child. /proc/PID/task/PID/children gives its pid in *our* pid
namespace. The waiter passes the result on unchanged: it exits with the command's code, or kills
itself with the signal that killed the command.

The waiter is our own program, run by ``nsenter --no-fork``, because the ready-made ones do not
work. nsenter stops itself when the command stops. While stopped it reaps nothing, and the kernel
removes a pid namespace only when all its processes are reaped, so a sandbox with a stopped command
would outlive us. nsenter also continues the command when it is continued itself. ``unshare
--fork`` (util-linux before 2.39) reports exit code 1 for a command that was killed.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

_PATIENCE = 5.0  # seconds for the waiter to fork
_STEP = 0.002  # seconds between two checks


def only_child(pid: int) -> int | None:
    """Return the first child of single-threaded process `pid`, or None if it has none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it has just ended
        return None
    return int(children[0]) if children else None


class Process(subprocess.Popen[str]):
    """A Popen whose signals reach the command and not the waiter around it.

    `pid` is the waiter's: use `command_pid` or the signal methods instead. `wait`, `poll` and
    `returncode` are the command's.
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
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
