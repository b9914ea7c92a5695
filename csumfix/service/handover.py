"""How one process of the service takes the work over from another, without a gap.

Theory of operation
-------------------
A queue cannot be shared, and closing one loses what it holds. So the successor brings queues of
its own, and one exchange of the rules sends all packets to them; what the old queues still hold
the predecessor repairs before it goes:

    successor                                predecessor
    binds queues
    "take-over"                 ->           stops touching the rules
                                <-           its process id
    loads its rules
    "leave"                     ->           empties its queues, unbinds, gives up its name
                                <-           hangs up
    takes the name

If either dies on the way, the other sees it hang up. A predecessor that is hung up on before
"leave", told to "go-on", or kept waiting longer than HOLD, loads its own rules again, so that all
is as it was. A successor that finds the name still taken after the predecessor hung up withdraws;
one whose predecessor is just silent, because it was stopped, say, serves without it until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence

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
POLL = 0.1


class Predecessor:
    """The service that is being taken over from.

    lanes: the lane of each port, which the successor keeps.
    leaving: ports of which flows are still in the queue lane though the port has left it.
    """

    def __init__(self, peer: Peer, lanes: dict[int, PortLane], leaving: tuple[int, ...]) -> None:
        self._peer = peer
        self.pid = peer.pid
        self.lanes = lanes
        self.leaving = leaving

    async def leave(self) -> bool:
        """Our rules are loaded: have it go. Tell whether it hung up, which it does at last."""
        return await self._tell("leave")

    async def go_on(self) -> None:
        """We cannot take over: have it load its rules again, and wait until it has."""
        await self._tell("go-on")

    async def _tell(self, request: str) -> bool:
        hung_up = True
        with contextlib.suppress(ConnectionError):  # it died meanwhile
            await self._peer.send(request=request)
            hung_up = await self._peer.hangs_up(LEAVE)
        self._peer.close()
        return hung_up


async def find_predecessor() -> Predecessor | None:
    """Ask the running service to keep its hands off the rules; None if none runs."""
    peer = await control.connect()
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
    leaving = answer.get("leaving") or ()  # version 0.1.0 knew no lanes
    return Predecessor(peer, lanes_from_json(answer.get("lanes")), tuple(leaving))


class SuccessorProcess:
    """The process that this one starts to have itself replaced.

    pid: None while there is none.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.pid: int | None = None
        self._command = command

    def start(self) -> Message:
        """Start it, and return what to answer to whoever wanted that."""
        if os.getpid() == 1:
            return _refusal("its end would end the container: roll out a new one", Exit.USAGE)
        if self.pid:
            return _refusal(
                f"process {self.pid} is about to take over already: wait for it", Exit.IN_USE
            )
        try:
            self.pid = _spawn(self._command)
            self._watch(self.pid)
        except (OSError, subprocess.SubprocessError) as error:  # no process, or gone already
            self.pid = None
            log.error("no successor could be started: %s", error, extra=FAILED)
            return _refusal(f"no successor could be started: {error}: see its log", Exit.BROKEN)
        return {"successor": self.pid}

    def stop(self) -> None:
        """Have it stop, if there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _watch(self, pid: int) -> None:
        """Notice its end: while we are there to see it, it has not replaced us."""
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(pid)

        def on_exit() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            log.error("process %d, started to take over, has ended", pid, extra=FAILED)
            self.pid = None

        loop.add_reader(descriptor, on_exit)


def _spawn(command: Sequence[str]) -> int:
    """Start a successor of this process, and return its process id.

    It is not our child but that of process 1, by way of a shell that ends at once: systemd does
    not wait for a main process that is no child of its own, but kills it when it should stop.
    """
    shell = ["sh", "-c", '"$@" >&2 & echo $!', "sh", *command, "--take-over"]
    result = subprocess.run(
        shell, check=True, stdout=subprocess.PIPE, env=notify.without_watchdog_pid()
    )
    return int(result.stdout)


def _refusal(reason: str, code: Exit) -> Message:
    return {"error": reason, "code": code}


def restart() -> str:
    """Have the running service replace itself; return what to tell the operator."""
    answer = control.restart()
    if answer is None:
        raise CsumfixError(
            "nothing to restart: no csumfix runs in this network namespace: "
            "start it with 'csumfix run' or 'systemctl start csumfix'",
            Exit.NEGATIVE,
        )
    if "error" in answer:
        raise CsumfixError(f"cannot restart: {answer['error']}", Exit(answer["code"]))
    return _await_successor(int(answer["successor"]))


def _await_successor(pid: int) -> str:
    """Wait until the process with this id has taken over; return what to tell the operator."""
    seen = f"process {pid} did not take over: the old one goes on"
    deadline = time.monotonic() + RESTART
    while time.monotonic() < deadline:
        try:
            state = control.status()
        except CsumfixError as error:  # busy, or its name has been taken: there is time
            seen = f"whether process {pid} has taken over cannot be asked: {error}"
            state = None
        if state and state.pid == pid:
            return f"process {pid}, version {state.version}, has taken over"
        if state and state.successor != pid:
            seen = f"process {pid} did not take over: the old one goes on"
            break
        time.sleep(POLL)
    raise CsumfixError(
        f"{seen}: see the log of the service, or 'csumfix config check'", Exit.BROKEN
    )
