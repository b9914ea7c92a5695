"""Snapshots made by hand, each number different, so that none can be taken for another."""

from typing import Any

from csumfix import core
from csumfix.host.rules import RuleSet
from csumfix.host.tunnels import Tunnel
from csumfix.service.snapshot import (
    KernelCounters,
    PortSnapshot,
    QueueSnapshot,
    ReloadSnapshot,
    Snapshot,
)

STARTED = 1_700_000_000.0
RULES = RuleSet((8472,), (), 0, 1, "4", (32768, 60999))


def tunnel(name: str = "flannel.1", **changes: Any) -> Tunnel:
    own: dict[str, Any] = {
        "port": 8472,
        "family": "4",
        "mtu": 1450,
        "vni": 1,
        "source_ports": (32768, 60999),
        "index": 3,
        "underlay": 2,
    }
    return Tunnel(name, **{**own, **changes})


def lane(**changes: Any) -> PortSnapshot:
    own: dict[str, Any] = {
        "port": 8472,
        "why": "default",
        "seconds": 125.0,
        "kernel_packets": 71,
        "repaired": 72,
        "departures": {"right": 73, "partial": 74, "wrong": 75},
        "probe_lost": False,
        "probe_seconds": 12.0,
        "probes_sent": {"complete": 76, "offloaded": 77},
        "probes_answered": {"complete": 78, "offloaded": 79},
    }
    return PortSnapshot(**{**own, **changes})


def queue(**changes: Any) -> QueueSnapshot:
    """A queue; `reasons` may name some of them only."""
    reasons = changes.pop("reasons", {"right": 90, "recomputed": 7, "inner_corrupt": 3})
    own: dict[str, Any] = {
        "packets": sum(reasons.values()),
        "bytes": 123_456,
        "batches": 41,
        "sends": 42,
        "send_errors": 43,
        "verdict_errors": 44,
        "overruns": 45,
        "interrupts": 46,
        "malformed": 47,
        "unexpected": 48,
        "wait_us": 2_500_000,
        "reasons": {str(reason): 0 for reason in core.REASONS} | reasons,
        "batch_sizes": (1, 0, 0, 2, 0, 0, 1, 0),
        "waits": (5, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1),
        "kernel": KernelCounters(51, 52, 53),
    }
    return QueueSnapshot(**{**own, **changes})


def snapshot(**changes: Any) -> Snapshot:
    own: dict[str, Any] = {
        "version": "9.8.7",
        "pid": 4711,
        "started": STARTED,
        "reload": ReloadSnapshot(True, STARTED + 60, 61, 62),
        "tunnels": (tunnel(),),
        "lanes": (lane(),),
        "lane_changes": 65,
        "nat_packets": 66,
        "rules": RULES,
        "rules_restored": 63,
        "rule_failures": 64,
        "queues": {0: queue()},
    }
    return Snapshot(**{**own, **changes}).counted()
