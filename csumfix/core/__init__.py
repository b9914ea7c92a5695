"""Typed face of the C core: packets in, verdicts and plain data out.

The one module that touches the cffi extension. See the headers in ``csrc/`` for how each part
works; the names here are the same.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, fields
from typing import Any

from csumfix.core._core import ffi, lib

MAX_PORTS: int = lib.OUTER_PORTS_MAX
COPY_WHOLE: int = lib.DRAIN_COPY_WHOLE

REASONS: tuple[str, ...] = tuple(
    ffi.string(lib.repair_reason_name(number)).decode() for number in range(lib.REPAIR_REASONS)
)
"""Every reason of a verdict, by its number in ``enum repair_reason``."""

REPAIRED: frozenset[str] = frozenset({"recomputed", "recomputed_unproven", "zero_filled"})
"""The reasons that come with a rewritten checksum."""

LEFT_WRONG: frozenset[str] = frozenset({"inner_corrupt", "inner_partial", "inner_malformed"})
"""The reasons for which a wrong checksum stays as it is."""

BATCH_BOUNDS: tuple[int, ...] = tuple(lib.drain_batch_bounds)
"""Upper bounds of Stats.batch_sizes in packets; the last size has none."""

WAIT_BOUNDS: tuple[float, ...] = tuple(bound / 1e6 for bound in lib.drain_wait_bounds)
"""Upper bounds of Stats.waits in seconds; the last wait has none."""


class Outer(enum.Enum):
    """What an outer checksum is; ``NONE`` if the packet could not be judged."""

    NONE = 0
    RIGHT = 1
    WRONG = 2
    ZERO = 3


class Inner(enum.Enum):
    """What the inner packet's own checksums say about it (``enum inner_state``)."""

    UNPROVEN = 0
    RIGHT = 1
    CORRUPT = 2
    PARTIAL = 3
    MALFORMED = 4


class Status(enum.Enum):
    """Whether a packet is VXLAN that can be judged, and if not, why (``enum outer_status``)."""

    OK = 0
    NOT_IP = 1
    MALFORMED_IP = 2
    FRAGMENT = 3
    REROUTED = 4
    NOT_UDP = 5
    MALFORMED_UDP = 6
    OTHER_PORT = 7
    NOT_VXLAN = 8


@dataclass(frozen=True)
class Policy:
    """What to repair.

    ports: UDP destination ports that carry VXLAN; none means any. At most MAX_PORTS.
    fill_zero: also compute checksums that were sent as 0.
    """

    ports: tuple[int, ...] = ()
    fill_zero: bool = False

    def _to_c(self) -> Any:
        policy = ffi.new("struct repair_policy *")
        policy.ports.count = len(self.ports)
        for index, port in enumerate(self.ports):
            policy.ports.port[index] = port
        policy.fill_zero = self.fill_zero
        return policy


@dataclass(frozen=True)
class Repair:
    """A verdict: why, and the packet as it should be sent."""

    reason: str
    packet: bytes

    @property
    def replaced(self) -> bool:
        """Whether the packet was changed."""
        return self.reason in REPAIRED


@dataclass(frozen=True)
class Inspection:
    """All that can be told about one tunnel packet; checksums and ports in host order."""

    status: Status
    outer: Outer = Outer.NONE
    found: int = 0
    expected: int = 0
    source: int = 0
    dest: int = 0
    vni: int = 0
    inner: Inner = Inner.UNPROVEN
    inner_found: int = 0
    inner_expected: int = 0


@dataclass(frozen=True)
class Stats:
    """What a drain has done since it was made (``struct drain_stats``).

    batch_sizes: receive calls by how many packets they brought; see BATCH_BOUNDS.
    waits: probes by how long they waited; see WAIT_BOUNDS.
    wait_us: how long they all waited, in microseconds.
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

    def by_reason(self) -> dict[str, int]:
        """Packets by the name of the reason; every reason is there."""
        return dict(zip(REASONS, self.reasons, strict=True))


def checksum(data: bytes) -> int:
    """Return the folded one's-complement sum of ``data`` as a big-endian number (RFC 1071)."""
    return _big_endian(lib.fold(lib.checksum_add(ffi.from_buffer(data), len(data))))


def checksum_portable(data: bytes) -> int:
    """Do the same as checksum() by the plain C reference."""
    return _big_endian(lib.fold(lib.checksum_add_portable(ffi.from_buffer(data), len(data))))


def _big_endian(in_memory: int) -> int:
    return int.from_bytes(bytes(ffi.buffer(ffi.new("uint16_t *", in_memory))), "big")


def checksum_backend() -> str:
    """Name of the implementation that this CPU runs."""
    return str(ffi.string(lib.backend()).decode())


def repair(
    packet: bytes,
    policy: Policy = Policy(),
    *,
    wirelen: int | None = None,
    partial: bool = False,
) -> Repair:
    """Verify and mend the outer UDP checksum of one packet, given from its IP header on.

    wirelen: the packet's real length in bytes, if ``packet`` is only its beginning.
    partial: the kernel has yet to compute its checksum.
    """
    buffer = bytearray(packet)
    result = lib.repair(
        ffi.from_buffer(buffer),
        len(buffer),
        len(buffer) if wirelen is None else wirelen,
        partial,
        policy._to_c(),
    )
    return Repair(REASONS[result.reason], bytes(buffer))


def inspect(packet: bytes, policy: Policy = Policy()) -> Inspection:
    """Judge outer and inner checksums of one packet, given from its IP header on."""
    view = ffi.new("struct view *")
    data = ffi.from_buffer("uint8_t[]", packet)
    view.data, view.len = data, len(packet)
    c_policy = policy._to_c()
    seen = lib.inspect(view[0], ffi.addressof(c_policy, "ports"))
    return Inspection(
        Status(seen.status),
        Outer(seen.check),
        seen.found,
        seen.expected,
        seen.source,
        seen.dest,
        seen.vni,
        Inner(seen.inner),
        seen.inner_found,
        seen.inner_expected,
    )


class Drain:
    """Empties one bound netfilter queue; see the theory of operation in ``csrc/drain.h``.

    run() belongs to one thread and releases the GIL; the rest may be called from any thread.
    """

    def __init__(self, fd: int, queue: int, policy: Policy) -> None:
        # The drain may still be looking at any policy that it was ever given. They are few, and
        # equal ones are the same.
        self._policies: dict[Policy, Any] = {}
        pointer = lib.drain_new(fd, queue, self._keep(policy))
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
        lib.drain_set_policy(self._drain, self._keep(policy))

    def _keep(self, policy: Policy) -> Any:
        if policy not in self._policies:
            self._policies[policy] = policy._to_c()
        return self._policies[policy]

    def stats(self) -> Stats:
        """Return the counters as they are now."""
        raw = ffi.new("struct drain_stats *")
        lib.drain_get_stats(self._drain, raw)
        return Stats(**{field.name: _plain(getattr(raw, field.name)) for field in fields(Stats)})


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)


def _raise(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
