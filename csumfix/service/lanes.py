"""Which lane each tunnel port takes: settings and evidence in, lanes out. Pure.

The kernel lane finishes checksums in place, before any NAT. The queue lane sends whole flows
through NFQUEUE, where the C core repairs them. With the setting ``auto``:

    a port is in      evidence                                        it goes to
    (new)             none                                            kernel
    kernel            a packet left wrong, IN_FLIGHT after the rules  queue, at once
    kernel            a packet left wrong before that                 kernel
    kernel            probes left to offload are lost, others not     queue, on trial
    queue             a repair, or a packet left wrong, of late       queue
    queue             none for the hold time                          kernel
    queue, on trial   a repair, or a packet left wrong, since then    queue; the trial has ended
    queue, on trial   else: probes are answered                       queue, to stay
    queue, on trial   else: probes are lost as before                 kernel; it did not help
    queue, to stay    a repair, or a packet left wrong, since then    queue, no longer to stay
    queue, to stay    whatever else                                   queue
    any               the kernel cannot finish checksums              queue
    any               the kernel has no queues                        kernel

What only the probes find is a lie of the NIC, or a relay on the path. Neither can be seen on this
host, in either lane, so their absence cannot be noticed: the port stays in the queue lane until
its tunnels leave by other devices, or the service begins anew. A trial that did not help is not
repeated before the hold time has passed. Other devices end every trial, whatever it has shown.

Probes are also lost by a cause that can be seen here, and may find it before the tap does. Then
the queue lane repairs the probes of the trial themselves, and a repair decides before any answer:
the end of such a cause can be noticed, so the port stays for the hold time only. If a cause that
cannot be seen was there as well, the probes find it again in the kernel lane. That error costs
what is lost in a few seconds, ever more seldom; the opposite error would last for good.

A port that had to come back to the queue lane stays there twice as long each time, up to
2 ** MAX_DOUBLINGS times the hold time, so that a cause which comes and goes does not make the
lane flap. Trials that do not help become rarer in the same way. The setting ``kernel`` or
``queue`` overrides evidence.

All times are seconds of CLOCK_MONOTONIC, which every process of a host shares until it reboots:
a successor can take the lanes over as they are.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from csumfix.options import LaneSetting

IN_FLIGHT = 0.05
"""Seconds that a packet may take from the rules to the wire."""

MAX_DOUBLINGS = 4


SEEN = "wrong packets are seen on this host, too"
"""Why a port that probes brought to the queue lane does not stay there for good."""


class Lane(enum.StrEnum):
    """Where the checksums of a port's packets are made right."""

    KERNEL = "kernel"
    QUEUE = "queue"


class Trial(enum.StrEnum):
    """What is known of the queue lane as a cure of what the probes found.

    RUNNING: the next probes tell, unless the cause can be seen on this host.
    HELPED: probes are answered in the queue lane, and the cause cannot be seen.
    FAILED: they were lost there, too.
    """

    NONE = "none"
    RUNNING = "running"
    HELPED = "helped"
    FAILED = "failed"


@dataclass(frozen=True)
class Terms:
    """What holds for a port, whatever the evidence.

    setting: the lane that the operator wants. why: the setting in words.
    hold: seconds without evidence until a port leaves the queue lane.
    kernel_fault: why the kernel lane cannot work on this host; None if it can.
    queue_works: whether the queue lane can.
    """

    setting: LaneSetting = LaneSetting.AUTO
    hold: float = 600.0
    kernel_fault: str | None = None
    queue_works: bool = True
    why: str = ""


@dataclass(frozen=True)
class ProbeFinding:
    """What a round of probes to the other ends of a port's tunnels has found.

    at: when the round began.
    lost: whether probes whose checksum was left to offload were lost while others were answered.
    why: the same in words.
    """

    at: float
    lost: bool
    why: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known about one port.

    wrong_at: when a packet was last seen to leave with a wrong outer checksum.
    wrong: that packet, in words.
    repaired_at: when the queue lane last had to repair a packet.
    kernel_since: since when the kernel lane's rules have been loaded for the port.
    probes: the last round of probes that found something out; None if none has.
    known_since: when it began to be gathered; what came earlier is not known.
    """

    wrong_at: float | None = None
    wrong: str = ""
    repaired_at: float | None = None
    kernel_since: float | None = None
    probes: ProbeFinding | None = None
    known_since: float = 0.0

    def quiet_since(self, since: float) -> float:
        """Return since when, at this time or after, nothing is known to have been wrong."""
        times = (since, self.known_since, self.wrong_at, self.repaired_at)
        return max(at for at in times if at is not None)

    def was_seen_after(self, since: float) -> bool:
        """Tell whether something was wrong on this host after this time.

        What left wrong before our rules were loaded, or restored, proves nothing.
        """
        repaired = self.repaired_at is not None and self.repaired_at > since
        loaded = max(since, self.kernel_since or since)
        return repaired or (self.wrong_at is not None and self.wrong_at > loaded)

    def passed_the_kernel_lane(self, since: float) -> bool:
        """Tell whether a packet left wrong although the kernel lane should have finished it.

        since: when the port came to the kernel lane.
        """
        if self.wrong_at is None or self.kernel_since is None:
            return False
        return self.wrong_at > max(since, self.kernel_since) + IN_FLIGHT

    def probed_since(self, since: float) -> ProbeFinding | None:
        """Return what the probes found that were sent after this time and after IN_FLIGHT."""
        return self.probes if self.probes and self.probes.at > since + IN_FLIGHT else None


@dataclass(frozen=True)
class PortLane:
    """The lane of one port.

    since: when it took this lane.
    why: in words, for the operator.
    by_evidence: whether evidence, and no setting or fault, put it there.
    relapses: how often it had to come back to the queue lane.
    trial: of the queue lane, for what the probes found.
    """

    lane: Lane
    since: float
    why: str
    by_evidence: bool = False
    relapses: int = 0
    trial: Trial = Trial.NONE

    def hold(self, terms: Terms) -> float:
        """Return the seconds without evidence after which it leaves the queue lane."""
        return terms.hold * 2.0 ** min(self.relapses, MAX_DOUBLINGS)


def decide(terms: Terms, before: PortLane | None, evidence: Evidence, now: float) -> PortLane:
    """Return the lane of a port from now on; the same object if nothing changes."""
    forced = _forced(terms)
    if forced:
        return _stay_or_go(before, *forced, now)
    if before is None:
        return PortLane(Lane.KERNEL, now, "default")
    if before.lane is Lane.KERNEL:
        return _from_kernel(terms, before, evidence, now)
    return _from_queue(terms, before, evidence, now)


def _forced(terms: Terms) -> tuple[Lane, str] | None:
    """Return the lane that faults or the operator dictate, and why; None if evidence decides."""
    if not terms.queue_works:
        return Lane.KERNEL, "this kernel has no NFQUEUE"
    if terms.setting is LaneSetting.QUEUE:
        return Lane.QUEUE, terms.why
    if terms.kernel_fault:
        return Lane.QUEUE, terms.kernel_fault
    if terms.setting is LaneSetting.KERNEL:
        return Lane.KERNEL, terms.why
    return None


def _stay_or_go(before: PortLane | None, lane: Lane, why: str, now: float) -> PortLane:
    if before and before.lane is lane:
        return before if before.why == why else replace(before, why=why, by_evidence=False)
    return PortLane(lane, now, why, relapses=before.relapses if before else 0)


def _from_kernel(terms: Terms, before: PortLane, evidence: Evidence, now: float) -> PortLane:
    forgotten = now - before.since > terms.hold * 2.0**MAX_DOUBLINGS
    came_from_queue = before.by_evidence and not forgotten
    relapses = before.relapses + 1 if came_from_queue else 0
    if evidence.passed_the_kernel_lane(before.since):
        return PortLane(Lane.QUEUE, now, evidence.wrong, by_evidence=True, relapses=relapses)
    if before.trial is Trial.FAILED and now - before.since < before.hold(terms):
        return before
    loaded = evidence.kernel_since
    probes = None if loaded is None else evidence.probed_since(max(before.since, loaded))
    if probes and probes.lost:
        return PortLane(Lane.QUEUE, now, probes.why, True, relapses, Trial.RUNNING)
    return before


def _from_queue(terms: Terms, before: PortLane, evidence: Evidence, now: float) -> PortLane:
    if not before.by_evidence:
        return PortLane(Lane.KERNEL, now, "default", relapses=before.relapses)
    if before.trial is not Trial.NONE and evidence.was_seen_after(before.since):
        return replace(before, why=f"{before.why}; {SEEN}", trial=Trial.NONE)
    if before.trial is Trial.HELPED:
        return before
    probes = evidence.probed_since(before.since)
    if before.trial is Trial.RUNNING and probes:
        return _after_trial(before, probes, now)
    hold = before.hold(terms)
    if now - evidence.quiet_since(before.since) < hold:
        return before
    return PortLane(
        Lane.KERNEL,
        now,
        f"nothing was wrong for {hold:.0f} s",
        by_evidence=True,
        relapses=before.relapses,
    )


def _after_trial(before: PortLane, probes: ProbeFinding, now: float) -> PortLane:
    if not probes.lost:
        why = f"{before.why}; in the queue lane they are answered"
        return replace(before, why=why, trial=Trial.HELPED)
    why = f"the queue lane did not help: {probes.why}"
    return PortLane(Lane.KERNEL, now, why, True, before.relapses, Trial.FAILED)


def lanes_to_json(lanes: Mapping[int, PortLane]) -> dict[str, Any]:
    """Return the lanes as plain data, for a successor."""
    return {str(port): _lane_to_json(lane) for port, lane in lanes.items()}


def _lane_to_json(lane: PortLane) -> dict[str, Any]:
    plain = asdict(lane)
    if lane.trial is Trial.NONE:
        del plain["trial"]  # 65535 ports have to fit into a message
    return plain


def lanes_from_json(plain: Any) -> dict[int, PortLane]:
    """Return the lanes that a predecessor sent; none if they have another form."""
    try:
        return {
            int(port): PortLane(
                **{
                    **lane,
                    "lane": Lane(lane["lane"]),
                    "trial": Trial(lane.get("trial", Trial.NONE)),
                }
            )
            for port, lane in plain.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
