"""Packets that the kernel dropped for their checksum during an observation.

A packet with a wrong outer checksum is dropped, and counted, where the tunnel ends: in the host's
network namespace. One with a right outer and a wrong inner checksum is dropped in the pod's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from csumfix.host import namespaces
from csumfix.host.namespaces import Namespaces
from csumfix.text import listing, printable

OWNERS = 3
"""How many owners of network namespaces told() names."""


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

    @property
    def counters(self) -> str:
        """The counters that rose, in words."""
        return listing(f"{name} +{number}" for name, number in self.risen.items())

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


def told(drops: Iterable[Drops]) -> list[str]:
    """Return a phrase for the host and one for everybody else, if they dropped packets."""
    risen = sorted((one for one in drops if one.risen), key=lambda one: -one.number)
    host = [_told(one) for one in risen if one.is_host]
    others = [_told(one) for one in risen if not one.is_host]
    return [*host, *([listing(others, "; ", OWNERS)] if others else [])]


def _told(one: Drops) -> str:
    return f"{one.owner} dropped received packets for a wrong checksum ({one.counters})"


@dataclass(frozen=True)
class Observation:
    """An observation that goes on.

    found: the namespaces whose counters are watched, and what could not be looked at.
    """

    found: Namespaces
    before: Sequence[Mapping[str, int]]

    def drops(self) -> list[Drops]:
        """Return what was dropped until now."""
        return [
            Drops(printable(one.owner), one.is_host, before, one.errors())
            for one, before in zip(self.found.namespaces, self.before, strict=True)
        ]


@contextmanager
def observed() -> Iterator[Observation]:
    """Watch the counters of this host's network namespaces."""
    with namespaces.opened() as found:
        yield Observation(found, [one.errors() for one in found.namespaces])
