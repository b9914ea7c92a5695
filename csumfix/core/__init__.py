"""Typed face of the C core: packets in, verdicts and plain data out.

This is the only module that uses the cffi extension. The headers in ``csrc/`` say how each part
works; the names here are the same, except that Outer is C's inspect_check, and Inspection.outer is
`check` there. Reasons, outcomes and their numbers come from C.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from csumfix.core._core import ffi, lib
from csumfix.protocols import Protocols

COPY_WHOLE: int = lib.DRAIN_COPY_WHOLE

Members = TypeVar("Members", bound=enum.Enum)


def _complete(c_enum: str, count: str) -> Callable[[type[Members]], type[Members]]:
    """Check that a class has every constant of an enum of the C core, so that none is unknown.

    count: the last constant, which says how many there are.
    """

    def check(members: type[Members]) -> type[Members]:
        prefix = c_enum.split("_", maxsplit=1)[0]
        known = {count, *(f"{prefix}_{name}".upper() for name in members.__members__)}
        unknown = set(ffi.typeof(f"enum {c_enum}").relements) ^ known
        if unknown:
            raise ImportError(
                f"csumfix.core.{members.__name__} and enum {c_enum} of csrc/ differ: "
                f"{', '.join(sorted(unknown))}"
            )
        return members

    return check


@_complete("repair_outcome", "REPAIR_OUTCOMES")
class Outcome(enum.Enum):
    """What became of an outer checksum (``enum repair_outcome``)."""

    VERIFIED = lib.REPAIR_VERIFIED
    REPAIRED = lib.REPAIR_REPAIRED
    FILLED = lib.REPAIR_FILLED
    LEFT_WRONG = lib.REPAIR_LEFT_WRONG
    NOT_JUDGED = lib.REPAIR_NOT_JUDGED


OUTCOMES: dict[str, Outcome] = {
    ffi.string(lib.repair_reason_name(number)).decode(): Outcome(lib.repair_outcome(number))
    for number in range(lib.REPAIR_REASONS)
}
"""The outcome that each reason means; all from C, so that a new reason needs no line here."""

REASONS: tuple[str, ...] = tuple(OUTCOMES)
"""Every reason of a verdict, by its number in ``enum repair_reason``."""


def _reasons(*outcomes: Outcome) -> frozenset[str]:
    return frozenset(reason for reason, outcome in OUTCOMES.items() if outcome in outcomes)


WRITTEN: frozenset[str] = _reasons(Outcome.REPAIRED, Outcome.FILLED)
"""The reasons that come with a new checksum: it was wrong, or 0 and is filled in."""

LEFT_WRONG: frozenset[str] = _reasons(Outcome.LEFT_WRONG)
"""The reasons for which a wrong checksum stays as it is."""

BATCH_BOUNDS: tuple[int, ...] = tuple(lib.drain_batch_bounds)
"""Upper bounds of Stats.batch_sizes in packets; the last size has none."""

WAIT_BOUNDS: tuple[float, ...] = tuple(bound / 1e6 for bound in lib.drain_wait_bounds)
"""Upper bounds of Stats.waits in seconds; the last wait has none."""


@_complete("inspect_check", "INSPECT_CHECKS")
class Outer(enum.Enum):
    """What an outer checksum is (``enum inspect_check``).

    NONE: the packet could not be judged.
    PARTIAL, LCO: the sender's device has yet to compute the checksum.
    """

    NONE = lib.INSPECT_NONE
    RIGHT = lib.INSPECT_RIGHT
    WRONG = lib.INSPECT_WRONG
    ZERO = lib.INSPECT_ZERO
    PARTIAL = lib.INSPECT_PARTIAL
    LCO = lib.INSPECT_LCO


@_complete("inner_state", "INNER_STATES")
class Inner(enum.Enum):
    """What the inner packet's own checksums say about it (``enum inner_state``)."""

    UNPROVEN = lib.INNER_UNPROVEN
    RIGHT = lib.INNER_RIGHT
    CORRUPT = lib.INNER_CORRUPT
    PARTIAL = lib.INNER_PARTIAL
    MALFORMED = lib.INNER_MALFORMED
    UNKNOWN = lib.INNER_UNKNOWN


@_complete("outer_status", "OUTER_STATUSES")
class Status(enum.Enum):
    """Whether a tunnel packet can be judged, and if not, why (``enum outer_status``)."""

    OK = lib.OUTER_OK
    NOT_IP = lib.OUTER_NOT_IP
    MALFORMED_IP = lib.OUTER_MALFORMED_IP
    FRAGMENT = lib.OUTER_FRAGMENT
    REROUTED = lib.OUTER_REROUTED
    NOT_UDP = lib.OUTER_NOT_UDP
    MALFORMED_UDP = lib.OUTER_MALFORMED_UDP
    OTHER_PORT = lib.OUTER_OTHER_PORT
    NOT_VXLAN = lib.OUTER_NOT_VXLAN
    NOT_GENEVE = lib.OUTER_NOT_GENEVE


_STATUS = {state.value: state for state in Status}
_OUTER = {state.value: state for state in Outer}
_INNER = {state.value: state for state in Inner}

Packet = bytes | memoryview


@dataclass(frozen=True)
class Policy:
    """What to repair.

    ports: UDP destination ports of tunnels; none means any.
    fill_zero: also compute checksums that were sent as 0.
    geneve: the ports that carry Geneve, if they are tunnels' at all; others carry VXLAN.
    """

    ports: tuple[int, ...] = ()
    fill_zero: bool = False
    geneve: tuple[int, ...] = ()

    @classmethod
    def of(cls, protocols: Protocols, *, fill_zero: bool = False) -> Policy:
        """Return a policy for these ports and no other."""
        # No port at all would mean any. No packet is sent to port 0.
        ports = tuple(sorted(protocols)) or (0,)
        geneve = tuple(port for port in ports if protocols.get(port) == "geneve")
        return cls(ports, fill_zero, geneve)


@lru_cache(maxsize=8)
def _to_c(policy: Policy) -> Any:
    """Return the policy as C has it; the same for equal ones, because it takes 16 KB."""
    result = ffi.new("struct repair_policy *")
    ports = ffi.addressof(result, "ports")
    for port in policy.ports:
        lib.outer_ports_add(ports, port)
    for port in policy.geneve:
        lib.outer_ports_set_geneve(ports, port)
    result.fill_zero = policy.fill_zero
    return result


@dataclass(frozen=True)
class Repair:
    """The reason of a verdict, and the packet as it should be sent."""

    reason: str
    packet: bytes

    @property
    def replaced(self) -> bool:
        """Whether the packet was changed."""
        return self.reason in WRITTEN


class Inspection(NamedTuple):
    """All that can be told about one tunnel packet; checksums and ports in host order.

    This is a tuple because a capture has millions of packets, and a dataclass takes four times
    as long to make.

    difference: how much a wrong outer checksum is off; see ``csrc/inspect.h``.
    """

    status: Status
    outer: Outer = Outer.NONE
    found: int = 0
    expected: int = 0
    difference: int = 0
    source: int = 0
    dest: int = 0
    vni: int = 0
    inner: Inner = Inner.UNPROVEN
    inner_found: int = 0
    inner_expected: int = 0


@dataclass(frozen=True)
class PortStats:
    """Packets to one port (``struct drain_port_stats``); port 0 means all others."""

    port: int
    packets: int
    repaired: int
    left_wrong: int


@dataclass(frozen=True)
class Stats:
    """What a drain has done since it was made (``struct drain_stats``).

    batch_sizes: receive calls by how many packets they brought; see BATCH_BOUNDS.
    waits: probes by how long they waited; see WAIT_BOUNDS.
    wait_us: how long they all waited, in microseconds.
    ports: packets by destination port, in the order in which the ports were first seen.
    """

    packets: int = 0
    bytes: int = 0
    batches: int = 0
    sends: int = 0
    send_errors: int = 0
    verdict_errors: int = 0
    overruns: int = 0
    interrupts: int = 0
    malformed: int = 0
    unexpected: int = 0
    wait_us: int = 0
    reasons: tuple[int, ...] = (0,) * len(REASONS)
    batch_sizes: tuple[int, ...] = (0,) * (len(BATCH_BOUNDS) + 1)
    waits: tuple[int, ...] = (0,) * (len(WAIT_BOUNDS) + 1)
    ports: tuple[PortStats, ...] = ()

    def by_reason(self) -> dict[str, int]:
        """Packets by the name of the reason; every reason is there."""
        return dict(zip(REASONS, self.reasons, strict=True))


def checksum(data: bytes) -> int:
    """Return the folded one's-complement sum of ``data`` as a big-endian number (RFC 1071)."""
    return _folded(lib.checksum_add(ffi.from_buffer(data), len(data)))


def checksum_portable(data: bytes) -> int:
    """Return the same, computed by the plain C reference."""
    return _folded(lib.checksum_add_portable(ffi.from_buffer(data), len(data)))


def _folded(raw: int) -> int:
    return socket.ntohs(lib.checksum_fold(raw))


def checksum_backend() -> str:
    """Return the name of the implementation that this CPU runs."""
    return str(ffi.string(lib.checksum_in_use.name).decode())


def repair(
    packet: bytes,
    policy: Policy = Policy(),
    *,
    wirelen: int | None = None,
    partial: bool = False,
    replaceable: bool = True,
) -> Repair:
    """Verify and repair the outer UDP checksum of one packet, given from its IP header on.

    wirelen: the packet's real length in bytes, if ``packet`` is only its beginning.
    partial: the kernel has yet to compute its checksum.
    replaceable: the packet can be given back with another payload.
    """
    buffer = bytearray(packet)
    result = lib.repair(
        ffi.from_buffer(buffer),
        len(buffer),
        len(buffer) if wirelen is None else wirelen,
        partial,
        replaceable,
        _to_c(policy),
    )
    return Repair(REASONS[result.reason], bytes(buffer))


def inspect(packet: Packet, policy: Policy = Policy()) -> Inspection:
    """Judge outer and inner checksums of one packet, given from its IP header on."""
    data = ffi.from_buffer("uint8_t[]", packet)
    seen = lib.inspect((data, len(packet)), ffi.addressof(_to_c(policy), "ports"))
    return Inspection(
        _STATUS[seen.status],
        _OUTER[seen.check],
        seen.found,
        seen.expected,
        seen.difference,
        seen.source,
        seen.dest,
        seen.vni,
        _INNER[seen.inner],
        seen.inner_found,
        seen.inner_expected,
    )


class Drain:
    """Empties one bound netfilter queue; see the theory of operation in ``csrc/drain.h``.

    run() belongs to one thread and releases the GIL; the rest may be called from any thread.
    """

    def __init__(self, fd: int, queue: int, policy: Policy) -> None:
        pointer = lib.drain_new(fd, queue, _to_c(policy))
        if pointer == ffi.NULL:
            raise MemoryError("no memory for the drain's buffers")
        self._drain = ffi.gc(pointer, lib.drain_free)

    def configure(self, socket_bytes: int, copy_range: int = COPY_WHOLE) -> None:
        """Have the kernel copy packets and accept what does not fit; OSError if not."""
        _raise(lib.drain_configure(self._drain, socket_bytes, copy_range))

    def run(self) -> None:
        """Repair packets until stop(); OSError if the socket or the queue fails."""
        _raise(lib.drain_run(self._drain))

    def stop(self) -> None:
        """Make run() return after the batch it is working on."""
        lib.drain_stop(self._drain)

    def probe(self) -> None:
        """Measure how long a packet that is queued now waits for its verdict; see Stats.waits."""
        lib.drain_probe(self._drain)

    def set_policy(self, policy: Policy) -> None:
        """Use another policy from the next batch on."""
        lib.drain_set_policy(self._drain, _to_c(policy))

    def stats(self) -> Stats:
        """Return the counters as they are now."""
        raw = ffi.new("struct drain_stats *")
        lib.drain_get_stats(self._drain, raw)
        plain = {
            field.name: _plain(getattr(raw, field.name))
            for field in fields(Stats)
            if field.name != "ports"
        }
        return Stats(**plain, ports=_ports(raw.ports))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)


def _ports(slots: Any) -> tuple[PortStats, ...]:
    """Return the slots in use: those with a port, and the last one if anything was counted."""
    *named, others = slots
    used = [slot for slot in named if slot.port] + [others] * bool(others.packets)
    return tuple(PortStats(s.port, s.packets, s.repaired, s.left_wrong) for s in used)


def _raise(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
