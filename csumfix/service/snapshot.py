"""The service's state and counters at one moment, as typed objects.

`status`, `top`, the metrics and the control socket all use these classes. On the control socket a
snapshot is a JSON object. The service and the command that asks it can be of different versions,
so a reader ignores fields that it does not know, and fields that are missing have their defaults.
SCHEMA changes only when a field gets another meaning.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from csumfix import core
from csumfix.core import PortStats, Stats
from csumfix.evidence.departures import Departure
from csumfix.host.queues import KernelQueue
from csumfix.host.rules import RuleSet
from csumfix.host.tunnels import Tunnel

SCHEMA = 1

LISTED = 1000
"""Tunnels, and ports, that an answer on the control socket lists at most."""

LOADING = 1.0
"""Seconds after a change of lane in which packets may leave that have not met the new rules."""

REQUIRED = ("version", "pid", "started")
"""What tells a snapshot from any other JSON object."""


@dataclass(frozen=True)
class KernelCounters:
    """What the kernel shows of a queue; see host/queues.py."""

    waiting: int = 0
    queue_dropped: int = 0
    user_dropped: int = 0

    @property
    def dropped(self) -> int:
        """Packets that the kernel dropped for either reason."""
        return self.queue_dropped + self.user_dropped


@dataclass(frozen=True)
class QueueSnapshot:
    """The counters of one queue; see core.Stats.

    reasons: packets by the reason of their verdict.
    kernel: None if the kernel does not show the queue.
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
    reasons: Mapping[str, int] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = ()
    waits: tuple[int, ...] = ()
    ports: tuple[PortStats, ...] = ()
    kernel: KernelCounters | None = None

    @classmethod
    def of(cls, stats: Stats, kernel: KernelQueue | None) -> QueueSnapshot:
        """Return the counters of a drain and of its queue in the kernel."""
        same = {
            one.name: getattr(stats, one.name) for one in fields(cls) if hasattr(stats, one.name)
        }
        same["reasons"] = {str(name): count for name, count in stats.by_reason().items()}
        if kernel:
            same["kernel"] = KernelCounters(
                kernel.waiting, kernel.queue_dropped, kernel.user_dropped
            )
        return cls(**same)

    @property
    def written(self) -> int:
        """Packets that left with a new checksum, repaired or filled in."""
        return sum(self.reasons.get(reason, 0) for reason in core.WRITTEN)

    @property
    def left_wrong(self) -> int:
        """Packets that left with the wrong checksum that they came with."""
        return sum(self.reasons.get(reason, 0) for reason in core.LEFT_WRONG)

    def __sub__(self, earlier: QueueSnapshot) -> QueueSnapshot:
        """Return what happened since an earlier snapshot; `waiting` is as it is now."""
        return QueueSnapshot(
            **{one.name: _minus(self, earlier, one.name) for one in fields(QueueSnapshot)}
        )


NO_COUNTS = QueueSnapshot(kernel=KernelCounters())
"""A queue that has just been bound."""


def _minus(later: QueueSnapshot, earlier: QueueSnapshot, name: str) -> Any:
    new, old = getattr(later, name), getattr(earlier, name)
    if isinstance(new, int):
        return new - old
    if isinstance(new, Mapping):
        return {key: count - old.get(key, 0) for key, count in new.items()}
    if isinstance(new, KernelCounters):
        return _kernel_minus(new, old)
    if name == "ports":
        before = {one.port: one for one in old}
        return tuple(_port_minus(one, before.get(one.port)) for one in new)
    return _tuple_minus(new, old) if isinstance(new, tuple) else new


def _tuple_minus(new: tuple[int, ...], old: tuple[int, ...]) -> tuple[int, ...]:
    padded = [*old, *[0] * (len(new) - len(old))]
    return tuple(b - a for a, b in zip(padded, new, strict=False))


def _kernel_minus(new: KernelCounters, old: KernelCounters | None) -> KernelCounters:
    if old is None:  # nobody knows what had been dropped by then
        return KernelCounters(new.waiting)
    return KernelCounters(
        new.waiting, new.queue_dropped - old.queue_dropped, new.user_dropped - old.user_dropped
    )


def _port_minus(new: PortStats, old: PortStats | None) -> PortStats:
    if old is None:
        return new
    return PortStats(
        new.port,
        new.packets - old.packets,
        new.repaired - old.repaired,
        new.left_wrong - old.left_wrong,
    )


@dataclass(frozen=True)
class PortSnapshot:
    """One tunnel port: its lane, and what happened to its packets.

    seconds: how long it has been in this lane.
    leaving_queue: flows of it are still in the queue lane, though the port has left it.
    kernel_packets: packets that met the CHECKSUM rule.
    repaired: packets that the queue lane repaired.
    departures: packets that the egress tap looked at, by the state of their checksum.
    wrong_seconds: since a packet was last seen to leave with a wrong checksum; None if never.
    probe_lost: whether probes whose checksum was left to offload were lost, in this lane, while
        others were answered; None if that is not known.
    probe_why: the same in words. probe_seconds: since it was found.
    probes_sent, probes_answered: by how their checksum was sent, complete or offloaded.
    """

    port: int = 0
    lane: str = "kernel"
    why: str = ""
    seconds: float = 0.0
    leaving_queue: bool = False
    kernel_packets: int = 0
    repaired: int = 0
    departures: Mapping[str, int] = field(default_factory=dict)
    wrong_seconds: float | None = None
    probe_lost: bool | None = None
    probe_why: str = ""
    probe_seconds: float | None = None
    probes_sent: Mapping[str, int] = field(default_factory=dict)
    probes_answered: Mapping[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Packets that were seen to leave with a wrong checksum."""
        return self.departures.get(Departure.WRONG, 0)

    @property
    def is_wrong_in_its_lane(self) -> bool:
        """Whether a packet left wrong after the port had come to its lane."""
        return self.wrong_seconds is not None and self.wrong_seconds + LOADING < self.seconds

    @property
    def is_plain(self) -> bool:
        """Whether it has always been in the kernel lane, and nothing wrong was seen."""
        unusual = self.wrong or self.repaired or self.leaving_queue or self.probe_lost
        return self.lane == "kernel" and not unusual


@dataclass(frozen=True)
class ReloadSnapshot:
    """When the settings were last read, whether they were valid, and how often either happened.

    time: in seconds since 1970.
    """

    ok: bool = True
    time: float = 0.0
    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Snapshot:
    """The whole service.

    version: of the software that runs, not of what is installed now.
    started: when all counters began with 0, in seconds since 1970.
    successor: process id of a successor that was started and has not taken over yet.
    trouble: why the service is not healthy; None if it is.
    control: what is wrong with the control socket; None if nothing is.
    rules: that are known to be loaded; None if none are, or if that is not known.
    lanes: one for each tunnel port.
    tunnels_count, lanes_count, queue_lane_count: how many there are; the lists can be cut.
    wrong_packets: that the tap saw leave wrong, of all ports.
    wrong_seconds: since the last of them that was in the lane where its port is now; None if there
        was none.
    backend, backend_why: what has loaded the rules, and why, if it is not the first choice.
    kernel_fault, tap_fault, probe_fault: why the kernel lane, or the egress tap, does not work, or
        no probes can be sent.
    probe_rounds: how often the other ends were asked.
    settings_notes: what the operator may not expect of the settings.
    """

    version: str = ""
    schema: int = SCHEMA
    pid: int = 0
    started: float = 0.0
    config: Mapping[str, Any] = field(default_factory=dict)
    reload: ReloadSnapshot = ReloadSnapshot()
    successor: int | None = None
    trouble: str | None = None
    control: str | None = None
    rules: RuleSet | None = None
    rules_restored: int = 0
    rule_failures: int = 0
    tunnels: tuple[Tunnel, ...] = ()
    tunnels_count: int = 0
    lanes: tuple[PortSnapshot, ...] = ()
    lanes_count: int = 0
    queue_lane_count: int = 0
    lane_changes: int = 0
    wrong_packets: int = 0
    wrong_seconds: float | None = None
    nat_packets: int = 0
    backend: str = ""
    backend_why: str = ""
    kernel_fault: str | None = None
    tap_fault: str | None = None
    probe_fault: str | None = None
    probe_rounds: int = 0
    settings_notes: tuple[str, ...] = ()
    queues: Mapping[int, QueueSnapshot] = field(default_factory=dict)

    def counted(self) -> Snapshot:
        """Return it with what is to be said of all its ports, and the numbers of list items."""
        since = [one.wrong_seconds for one in self.lanes if one.is_wrong_in_its_lane]
        return replace(
            self,
            tunnels_count=len(self.tunnels),
            lanes_count=len(self.lanes),
            queue_lane_count=sum(one.lane == "queue" for one in self.lanes),
            wrong_packets=sum(one.wrong for one in self.lanes),
            wrong_seconds=min((one for one in since if one is not None), default=None),
        )

    def bounded(self, limit: int = LISTED) -> Snapshot:
        """Return it with lists that fit into an answer; unusual ports take precedence."""
        ranked = sorted(self.lanes, key=lambda one: one.is_plain)[:limit]
        kept = tuple(sorted(ranked, key=lambda one: one.port))
        return replace(
            self,
            config=_cut_config(self.config, limit),
            settings_notes=self.settings_notes[:limit],
            tunnels=self.tunnels[:limit],
            lanes=kept,
            rules=_cut(self.rules, limit),
        )


def _cut_config(config: Mapping[str, Any], limit: int) -> dict[str, Any]:
    tunnels: Mapping[str, Any] = config.get("tunnels", {})
    return {**config, "tunnels": dict(islice(tunnels.items(), limit))}


def _cut(rules: RuleSet | None, limit: int) -> RuleSet | None:
    if rules is None:
        return None
    return replace(
        rules,
        kernel_ports=rules.kernel_ports[:limit],
        queue_ports=rules.queue_ports[:limit],
        leaving_ports=rules.leaving_ports[:limit],
    )


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as a JSON object."""
    return asdict(snapshot)


def from_json(plain: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot in a JSON object; ValueError if there is none."""
    missing = [name for name in REQUIRED if name not in plain]
    if missing:
        raise ValueError(f"no {missing[0]}")
    seen: Snapshot = _object(Snapshot, plain)
    return replace(  # a service of 0.1.0 did not count them
        seen,
        tunnels_count=max(seen.tunnels_count, len(seen.tunnels)),
        lanes_count=max(seen.lanes_count, len(seen.lanes)),
    )


# Decoding

ZEROS: dict[Any, Any] = {int: 0, float: 0.0, str: "", bool: False}


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _object(kind: Any, plain: Any) -> Any:
    """Return an instance of a dataclass made of the fields that it knows."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"{kind.__name__} is no object")
    hints = _hints(kind)
    values = {}
    for one in fields(kind):
        if one.name in plain:
            values[one.name] = _value(hints[one.name], plain[one.name])
        elif _has_no_default(one):
            values[one.name] = _zero(hints[one.name])
    return kind(**values)


def _has_no_default(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _zero(hint: Any) -> Any:
    if hint in ZEROS:
        return ZEROS[hint]
    if get_origin(hint) is Literal:
        return get_args(hint)[-1]
    return (0, 0) if hint == tuple[int, int] else ()


def _value(hint: Any, plain: Any) -> Any:  # noqa: PLR0911 - one for each kind of type
    """Return plain data as a value of this type; ValueError if it is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return plain
    if origin in (Union, types.UnionType):
        (wanted,) = (one for one in arguments if one is not type(None))
        return None if plain is None else _value(wanted, plain)
    if origin is Literal:
        return _value(str, plain)
    if origin is tuple:
        return _tuple(arguments, plain)
    if origin is Mapping:
        return _mapping(arguments, plain)
    if is_dataclass(hint):
        return _object(hint, plain)
    return _scalar(hint, plain)


def _tuple(kinds: tuple[Any, ...], plain: Any) -> tuple[Any, ...]:
    if not isinstance(plain, list | tuple):
        raise ValueError("no list")
    if kinds[-1] is Ellipsis:
        return tuple(_value(kinds[0], one) for one in plain)
    return tuple(_value(kind, one) for kind, one in zip(kinds, plain, strict=True))


def _mapping(kinds: tuple[Any, ...], plain: Any) -> dict[Any, Any]:
    if not isinstance(plain, Mapping):
        raise ValueError("no object")
    # The keys of a JSON object are strings.
    return {kinds[0](key): _value(kinds[1], one) for key, one in plain.items()}


def _scalar(kind: Any, plain: Any) -> Any:
    if kind is float and isinstance(plain, int):
        return float(plain)
    if not isinstance(plain, kind) or (kind is int and isinstance(plain, bool)):
        raise ValueError(f"{plain!r} is no {kind.__name__}")
    return plain
