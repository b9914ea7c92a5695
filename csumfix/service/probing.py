"""Asks the other ends of the tunnels whether checksums arrive that are left to offload.

A lying NIC, or a relay on the path, shows nowhere on this host. So every EVERY seconds the service
asks a few remote ends of each tunnel. Their answers are evidence for the lanes, and tell in either
lane whether the cure works.

A remote end to which packets were lost is asked again in each round until they are answered. The
others take turns, so that a few dead ones do not make the service blind.

Two hosts can both be sick. Then even the answers arrive with wrong checksums, and the kernel
drops them. So if nobody answers at all, the next round watches the underlay, where such answers
are seen. evidence/offload.py explains what is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from csumfix.evidence import offload
from csumfix.evidence.offload import Counts, Offload
from csumfix.evidence.outcomes import Probed
from csumfix.host.remotes import Remote
from csumfix.host.tunnels import Tunnel
from csumfix.service.kernel import OtherEnds
from csumfix.service.lanes import ProbeFinding
from csumfix.service.runner import Clock

log = logging.getLogger("csumfix")

EVERY = 30.0
"""Seconds between two rounds, unless something changes."""

PER_TUNNEL, PER_ROUND = 3, 50
"""Remote ends that a round asks at most."""

KNOWN = 12
"""Remote ends of a tunnel and inner family that take turns."""

LOOKUP_PAUSE = 10.0
"""Seconds between two lookups of remote ends at least: a node can have very many."""

REMEMBERED = 10
"""Rounds until the remote ends are looked up again, and until watching the underlay ends."""

Key = tuple[int, str]
"""A remote end: number of the tunnel's device, and inner address."""


def key(remote: Remote) -> Key:
    """Return what tells a remote end from the others."""
    return remote.tunnel.index, remote.address


class Turns:
    """Chooses which remote ends are asked next. Pure."""

    def __init__(self) -> None:
        self._tunnel = 0
        self._next: dict[int, int] = {}

    def choose(self, remotes: Iterable[Remote], suspects: Collection[Key]) -> list[Remote]:
        """Return some remote ends of each tunnel; suspects first, then those whose turn it is."""
        by_tunnel: dict[int, list[Remote]] = {}
        for remote in remotes:
            by_tunnel.setdefault(remote.tunnel.index, []).append(remote)
        tunnels = list(by_tunnel)
        chosen: list[Remote] = []
        for place in range(len(tunnels)):
            index = tunnels[(self._tunnel + place) % len(tunnels)]
            if len(chosen) + PER_TUNNEL > PER_ROUND:
                self._tunnel = (self._tunnel + place) % len(tunnels)
                break
            chosen += self._of_tunnel(index, by_tunnel[index], suspects)
        return chosen

    def _of_tunnel(
        self, index: int, remotes: Sequence[Remote], suspects: Collection[Key]
    ) -> list[Remote]:
        first = [one for one in remotes if key(one) in suspects]
        others = [one for one in remotes if key(one) not in suspects]
        # One place is for others, which may show that not all paths lie.
        first = first[: PER_TUNNEL - 1 if others else PER_TUNNEL]
        number = min(PER_TUNNEL - len(first), len(others))
        start = self._next.get(index, 0)
        self._next[index] = start + number
        return [*first, *(others[(start + n) % len(others)] for n in range(number))]


@dataclass(frozen=True)
class JudgedEnd:
    """What came of the probes to one remote end, in a word."""

    probed: Probed
    verdict: Offload

    @property
    def key(self) -> Key:
        """What tells the remote end from the others."""
        return key(self.probed.remote)


class Probing:
    """Holds what the last rounds have found, and counts.

    findings: the last round of each port that found something out.
    counts: packets by port.
    rounds: so far.
    fault: why no probes can be sent; None if they can.
    is_behind: whether the tunnels have changed since their remote ends were looked up.
    """

    def __init__(self, ends: OtherEnds, clock: Clock) -> None:
        self.findings: dict[int, ProbeFinding] = {}
        self.counts: dict[int, Counts] = {}
        self.rounds = 0
        self.fault: str | None = None
        self.is_behind = False
        self._ends = ends
        self._clock = clock
        self._turns = Turns()
        self._tunnels: list[Tunnel] = []
        self._remotes: list[Remote] = []
        self._known_for = 0
        self._looked_at = float("-inf")
        self._suspects: set[Key] = set()
        self._watching = 0
        self._is_new = True

    def forget(self) -> None:
        """Forget the findings, because packets take other ways from now on."""
        self.findings.clear()
        self._suspects.clear()
        self._known_for = 0
        self._is_new = True

    async def round(
        self, tunnels: Sequence[Tunnel], underlays: Collection[int], trials: Collection[int]
    ) -> bool:
        """Ask; tell whether to ask again at once.

        trials: ports of which is to be found out whether their lane helps. They are judged by the
            remote ends to which packets were lost before.
        """
        chosen = self._turns.choose(await self._find(tunnels), self._suspects)
        if not chosen:
            return False
        began, watches = self._clock(), self._watching > 0
        probes = await self._ends.ask(chosen, underlays, watch=watches)
        self._note_fault(probes.blind)
        if probes.blind:
            return False
        self.rounds += 1
        judged = [JudgedEnd(one, offload.judge(one.outcomes)) for one in probes.probed]
        for port in {one.probed.remote.tunnel.port for one in judged}:
            of_port = [one for one in judged if one.probed.remote.tunnel.port == port]
            self._count(port, of_port)
            self._conclude(port, of_port, began, is_trial=port in trials)
        self._suspect(judged)
        return self._look_at_silence(judged, watches=watches)

    async def _find(self, tunnels: Sequence[Tunnel]) -> list[Remote]:
        self.is_behind = False
        if not tunnels:
            self._tunnels, self._remotes = [], []
            return []
        is_known = list(tunnels) == self._tunnels
        if is_known and self._remotes and self._known_for > 0:
            self._known_for -= 1
            return self._remotes
        if self._clock() - self._looked_at < LOOKUP_PAUSE:
            self.is_behind = not is_known
            return [one for one in self._remotes if one.tunnel in tunnels]
        self._is_new = self._is_new or not is_known
        self._looked_at = self._clock()
        self._tunnels, self._known_for = list(tunnels), REMEMBERED
        found = await self._ends.find(tunnels, KNOWN)
        self._remotes = [one for one in found if one.dest_mac and one.source_mac and one.source]
        self._suspects &= {key(one) for one in self._remotes}
        return self._remotes

    def _note_fault(self, fault: str) -> None:
        if fault and fault != self.fault:
            log.warning(
                "probes cannot be sent, so a NIC that lies is not noticed: %s",
                fault,
                extra={"event": "no_probes"},
            )
        self.fault = fault or None

    def _count(self, port: int, judged: Iterable[JudgedEnd]) -> None:
        for one in judged:
            before = self.counts.get(port, Counts())
            self.counts[port] = before + offload.count(one.probed.outcomes)

    def _conclude(
        self, port: int, judged: Sequence[JudgedEnd], began: float, *, is_trial: bool
    ) -> None:
        """Note what is known of a port by now; nothing new if there is no clear answer."""
        suspects = [one for one in judged if one.key in self._suspects]
        lost = [one for one in judged if one.verdict is Offload.LOST]
        if is_trial and suspects:
            lost = [one for one in suspects if one.verdict is Offload.LOST]
            if any(one.verdict is Offload.ANSWERED for one in suspects):
                lost = []
            judged = suspects
        if lost:
            more = f" (and {len(lost) - 1} more like it)" if len(lost) > 1 else ""
            remote = lost[0].probed.remote
            why = f"to {remote}{more}, {offload.words(lost[0].probed.outcomes)}"
            self.findings[port] = ProbeFinding(began, lost=True, why=why)
        elif any(one.verdict is Offload.ANSWERED for one in judged):
            self.findings[port] = ProbeFinding(began, lost=False)

    def _suspect(self, judged: Iterable[JudgedEnd]) -> None:
        for one in judged:
            if one.verdict is Offload.LOST:
                self._suspects.add(one.key)
            elif one.verdict is Offload.ANSWERED:
                self._suspects.discard(one.key)

    def _look_at_silence(self, judged: Iterable[JudgedEnd], *, watches: bool) -> bool:
        """Watch the underlay next time if nobody answered, or stop doing so; tell if at once."""
        counts = [offload.count(one.probed.outcomes) for one in judged]
        is_silent = not any(one.complete_answered or one.offloaded_answered for one in counts)
        is_new, self._is_new = self._is_new, False
        if watches:
            self._watching = 0 if is_silent else self._watching - 1
            return False
        self._watching = REMEMBERED if is_silent else 0
        return is_silent and is_new

    def snapshot_of(self, port: int) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return how many probes were sent and answered, by how their checksum was sent."""
        one = self.counts.get(port, Counts())
        return (
            {"complete": one.complete_sent, "offloaded": one.offloaded_sent},
            {"complete": one.complete_answered, "offloaded": one.offloaded_answered},
        )
