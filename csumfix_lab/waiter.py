"""Runs a command as its child and ends as the command did; csumfix_lab.process says why.

    python waiter.py DIRECTORY COMMAND [ARGUMENT...]

It is run by path and without `site`, which makes it start quickly. The command starts in
DIRECTORY, if that can be entered, with default signal handling. The waiter ignores the signals
that a terminal sends to both, so that it can report how the command ended.
"""

import contextlib
import os
import resource
import signal
import sys

_NOT_FOUND = 127  # the exit code of shells for an unknown command
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
_SET_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def _become(directory: str, command: list[str]) -> None:
    for number in (*_FROM_TERMINAL, *_SET_BY_PYTHON):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)
    with contextlib.suppress(OSError):
        os.chdir(directory)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is meant
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    os._exit(_NOT_FOUND)


def _end_like(status: int) -> None:
    """End as a child with this wait status did."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core file is enough
        with contextlib.suppress(OSError):  # SIGKILL cannot be reset, and need not be
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(argv: list[str]) -> None:
    """See the module's description."""
    # Block signals until the child has reset its handlers, so that it receives all of them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINAL)
    child = os.fork()
    if child == 0:
        _become(argv[0], argv[1:])
    for number in _FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)
    _end_like(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main(sys.argv[1:])
