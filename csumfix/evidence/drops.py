"""Packets that the kernel dropped for their checksum during an observation. Pure.

A packet with a wrong outer checksum is dropped, and counted, where the tunnel ends: in the host's
network namespace. One with a right outer and a wrong inner checksum is dropped in the pod's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Drops:
    """The checksum errors of one network namespace, by counter, before and after.

    owner, is_host: see csumfix.host.namespaces.
    """

    owner: str
    is_host: bool
    before: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def risen(self) -> dict[str, int]:
        """By how much each counter rose; only those that did."""
        both = self.before.keys() & self.after.keys()
        differences = {name: self.after[name] - self.before[name] for name in sorted(both)}
        return {name: number for name, number in differences.items() if number > 0}

    @property
    def number(self) -> int:
        """How many packets were dropped meanwhile."""
        return sum(self.risen.values())

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "owner": self.owner,
            "is_host": self.is_host,
            "before": dict(self.before),
            "after": dict(self.after),
            "risen": self.risen,
        }


def of_host(drops: Iterable[Drops]) -> int:
    """Return how many packets the host dropped."""
    return sum(one.number for one in drops if one.is_host)


def of_pods(drops: Iterable[Drops]) -> int:
    """Return how many packets everybody but the host dropped."""
    return sum(one.number for one in drops if not one.is_host)
