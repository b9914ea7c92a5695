"""How one process of the service takes over from another, without a gap.

Theory of operation
-------------------
A queue cannot be shared, and closing one loses what it holds. So the successor binds queues of its
own, and one exchange of the rules sends all packets to them. The predecessor repairs what its own
queues still hold before it goes:

    successor                                predecessor
    binds queues
    "take-over"                 ->           stops touching the rules
                                <-           its process id, lanes and queues
    loads its rules
    starts its queues when the
    predecessor's are empty
    "leave"                     ->           drains its queues, unbinds them, gives up its name
                                <-           hangs up
    takes the name

If either dies on the way, the other sees it hang up. The predecessor loads its own rules again, so
that all is as it was, if the successor hangs up before "leave", says "go-on", or takes longer than
HOLD. A successor that finds the name still taken after the predecessor hung up withdraws. If the
predecessor is just silent, because it was stopped for example, the successor serves without the
name until the predecessor leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from csumfix.errors import CsumfixError, Exit
from csumfix.service import control, notify
from csumfix.service.control import Message, Peer
from csumfix.service.lanes import PortLane, lanes_from_json

log = logging.getLogger("csumfix")
FAILED = {"event": "successor_failed"}

HOLD = 30.0
"""Seconds that a successor may take to load its rules."""

LEAVE = 10.0
"""Seconds that a predecessor may take to answer or to go."""

SECOND_LOOK = 0.1
"""Seconds for an answer to be read that was there when HOLD had passed."""

RESTART = 40.0
"""Seconds that `csumfix restart` waits for the successor."""

POLL = 0.1

Connect = Callable[[], Awaitable[Peer | None]]
"""Connects to the running service; None if none runs."""


@dataclass(frozen=True)
class Predecessor:
    """The service that is being taken over from.

    lanes: the lane of each port, which the successor keeps.
    leaving: ports with flows that are still in the queue lane though the port has left it.
    queues: numbers of its queues.
    """

    peer: Peer
    lanes: dict[int, PortLane]
    leaving: tuple[int, ...]
    queues: tuple[int, ...]

    @property
    def pid(self) -> int:
        """Its process id; 0 if it is in another pid namespace."""
        return self.peer.pid

    async def leave(self) -> bool:
        """Have it go, because our rules are loaded; tell whether it hung up when it had gone."""
        return await self._tell("leave")

    async def go_on(self) -> None:
        """Have it load its rules again, because we cannot take over; wait until it has."""
        await self._tell("go-on")

    async def _tell(self, request: str) -> bool:
        hung_up = True
        with contextlib.suppress(ConnectionError):  # it died meanwhile
            await self.peer.send(request=request)
            hung_up = await self.peer.hangs_up(LEAVE)
        self.peer.close()
        return hung_up


async def find_predecessor(connect: Connect) -> Predecessor | None:
    """Ask the running service to stop touching the rules; None if none runs."""
    peer = await connect()
    if peer is None:
        return None
    try:
        await peer.send(request="take-over")
        answer = await peer.receive(LEAVE)
    except ConnectionError:  # it has just gone
        return None
    if answer is None or "error" in answer:
        peer.close()
        reason = answer["error"] if answer else "it does not answer"
        raise CsumfixError(
            f"cannot take over from process {peer.pid} of user {peer.uid}: {reason}: "
            "if it hangs, kill it, then start without --take-over",
            Exit.IN_USE,
        )
    return Predecessor(
        peer,
        lanes_from_json(answer.get("lanes")),
        _numbers(answer.get("leaving")),  # version 0.1.0 sends none of these
        _numbers(answer.get("queues")),
    )


def _numbers(plain: object) -> tuple[int, ...]:
    found = plain if isinstance(plain, list) else []
    return tuple(one for one in found if isinstance(one, int))


def spawn(command: Sequence[str]) -> int:
    """Start a successor of this process, and return its process id.

    The successor must be a child of process 1, so a shell starts it and exits. systemd does not
    wait for a main process that is not its own child; on stop it would kill it.
    """
    shell = ["sh", "-c", '"$@" >&2 & echo $!', "sh", *command, "--take-over"]
    result = subprocess.run(
        shell, check=True, stdout=subprocess.PIPE, env=notify.without_watchdog_pid()
    )
    return int(result.stdout)


class SuccessorProcess:
    """The process that this one starts to have itself replaced.

    command: starts it.
    spawn: runs the command, and returns the process id.
    pid: None while there is no such process.
    """

    def __init__(
        self, command: Sequence[str], spawn: Callable[[Sequence[str]], int] = spawn
    ) -> None:
        self.pid: int | None = None
        self._command = command
        self._spawn = spawn

    def start(self) -> Message:
        """Start it, and return the answer for the client that asked for that."""
        if os.getpid() == 1:
            return _refusal(
                "csumfix is process 1, so its exit would end the container: roll out a new pod",
                Exit.USAGE,
            )
        if self.pid:
            return _refusal(
                f"process {self.pid} is about to take over already: wait for it", Exit.IN_USE
            )
        try:
            self.pid = self._spawn(self._command)
            self._watch(self.pid)
        except (OSError, subprocess.SubprocessError) as error:  # no process, or gone already
            self.pid = None
            log.error("starting a successor failed: %s", error, extra=FAILED)
            return _refusal(f"starting a successor failed: {error}: see its log", Exit.BROKEN)
        return {"successor": self.pid}

    def stop(self) -> None:
        """Have it stop, if there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _watch(self, pid: int) -> None:
        """Notice its end. While this process is there to see it, it has not been replaced."""
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(pid)

        def on_exit() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            log.error("process %d, started to take over, has ended", pid, extra=FAILED)
            self.pid = None

        loop.add_reader(descriptor, on_exit)


def _refusal(reason: str, code: Exit) -> Message:
    return {"error": reason, "code": code}


def restart() -> str:
    """Have the running service replace itself; return a line for the operator."""
    answer = control.restart()
    if answer is None:
        raise CsumfixError(
            "nothing to restart: csumfix does not run in this network namespace: "
            "start it with 'csumfix run' or 'systemctl start csumfix'",
            Exit.NEGATIVE,
        )
    if "error" in answer:
        raise CsumfixError(f"cannot restart: {answer['error']}", Exit(answer["code"]))
    return _await_successor(int(answer["successor"]))


def _await_successor(pid: int) -> str:
    """Wait until the process with this id has taken over; return a line for the operator."""
    seen = f"process {pid} did not take over: the old process continues"
    deadline = time.monotonic() + RESTART
    while time.monotonic() < deadline:
        try:
            state = control.status()
        except CsumfixError as error:  # it is busy, or its name has been taken: ask again
            seen = f"cannot ask whether process {pid} has taken over: {error}"
            state = None
        if state and state.pid == pid:
            return f"process {pid}, version {state.version}, has taken over"
        if state and state.successor != pid:
            seen = f"process {pid} did not take over: the old process continues"
            break
        time.sleep(POLL)
    raise CsumfixError(
        f"{seen}: see the log of the service, or 'csumfix config check'", Exit.BROKEN
    )
