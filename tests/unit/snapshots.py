"""Snapshots made by hand, each number different, so that none can be taken for another."""

from typing import Any

from csumfix import core
from csumfix.service.control import Snapshot

STARTED = 1_700_000_000.0


def tunnel(name: str = "flannel.1", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "port": 8472,
        "family": "4",
        "mtu": 1450,
        "vni": 1,
        "checksum": True,
        "checksum6": True,
        "metadata": False,
        "source_ports": [32768, 60999],
        "index": 3,
        "underlay": 2,
        "remote": "",
        **changes,
    }


def lane(**changes: Any) -> dict[str, Any]:
    return {
        "port": 8472,
        "lane": "kernel",
        "why": "default",
        "seconds": 125.0,
        "leaving_queue": False,
        "kernel_packets": 71,
        "repaired": 72,
        "departures": {"right": 73, "partial": 74, "wrong": 75},
        **changes,
    }


def queue(**changes: Any) -> dict[str, Any]:
    """A queue; `reasons` may name some of them only."""
    reasons = changes.pop("reasons", {"right": 90, "recomputed": 7, "inner_corrupt": 3})
    return {
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
        "reasons": dict.fromkeys(core.REASONS, 0) | reasons,
        "batch_sizes": [1, 0, 0, 2, 0, 0, 1, 0],
        "waits": [5, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
        "kernel": {"waiting": 51, "queue_dropped": 52, "user_dropped": 53},
        **changes,
    }


def snapshot(**changes: Any) -> Snapshot:
    return {
        "version": "9.8.7",
        "pid": 4711,
        "started": STARTED,
        "config": {},
        "reload": {"ok": True, "time": STARTED + 60, "succeeded": 61, "failed": 62},
        "tunnels": [tunnel()],
        "lanes": [lane()],
        "lane_changes": 65,
        "kernel_fault": None,
        "nat_packets": 66,
        "tap_fault": None,
        "trouble": None,
        "successor": None,
        "rules": {"kernel_ports": [8472]},
        "rules_restored": 63,
        "rule_failures": 64,
        "queues": {"0": queue()},
        **changes,
    }
