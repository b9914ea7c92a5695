"""A process inside the sandbox which can be signalled exactly.

Theory of operation
-------------------
A process cannot move itself into another pid namespace, only its children: somebody has to join,
fork, and wait. So the child of our ``Popen`` is a waiter, and a signal sent to it would leave the
command running. Entering without the pid namespace would make the command our own child, but then
it would also outlive us, and its descendants with it: only the pid namespace makes the kernel
clear up after ``kill -9``. Joining from the caller (``setns`` before ``fork``) needs CAP_SYS_ADMIN
outside the sandbox, which an ordinary user has not got.

So we signal the waiter's only child by its pid *in our own* pid namespace, which
/proc/PID/task/PID/children gives. The waiter hands the result on unchanged: it exits with the
command's code, or kills itself with the signal that killed the command.

The waiter is our own, run by ``nsenter --no-fork``, because those at hand are no good. nsenter
stops itself when the command stops. While stopped it reaps nothing, and the kernel tears a pid
namespace down only when all its processes are reaped: a sandbox with a stopped command in it would
outlive us. It would also continue the command when it is itself continued, some time later. And
``unshare --fork`` (util-linux before 2.39) reports a command that was killed as exit code 1.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

_PATIENCE = 5.0  # seconds that the waiter may take to fork
_STEP = 0.002  # seconds between two looks


def only_child(pid: int) -> int | None:
    """Return the first child of single-threaded process `pid`, or None if it has none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:  # it has just ended
        return None
    return int(children[0]) if children else None


class Process(subprocess.Popen[str]):
    """A Popen whose signals reach the command and not the waiter around it.

    `pid` is the waiter's; use `command_pid` or the signal methods. `wait`, `poll` and `returncode`
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
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
