"""Runs the cells: labs side by side, cures interleaved, round after round.

Theory of operation
-------------------
Each pair of cause and cure has a lab of its own, with the cure in place, from the beginning to
the end. Labs that are not being measured have no traffic and cost nothing, which is checked. So
the cures of one load can be measured one right after the other, in a new random order each round,
and whatever else the machine does in that minute is done to all of them alike.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench import clock, cures, loads
from bench.plan import CAUSES, HEALTHY, station
from bench.stats import Key, Round, Sample
from csumfix_lab import Lab
from csumfix_lab.process import Process

IDLE_SECONDS = 1.0
DRAIN_LIMIT = 10.0  # seconds for a slow shim to empty its queue
DRAIN_STEP = 0.02
_QUEUES = "/proc/net/netfilter/nfnetlink_queue"
_WAITING = 2  # its column with the number of packets without a verdict

Place = tuple[str, str, int]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Station:
    """A lab with a cure in place."""

    lab: Lab
    cure: cures.Cure
    server: Process | None

    def settle(self) -> None:
        """Wait until no packet is left in its queues: working them off would disturb others."""
        give_up = time.monotonic() + DRAIN_LIMIT
        while self.cure.queued and self._waiting() and time.monotonic() < give_up:
            time.sleep(DRAIN_STEP)

    def _waiting(self) -> int:
        lines = self.lab.sender.run(["cat", _QUEUES]).stdout.splitlines()
        return sum(int(line.split()[_WAITING]) for line in lines)


@dataclass(frozen=True)
class Idle:
    """Core-seconds per second that are worked without traffic: by all cures, by everything."""

    cures: float
    machine: float


class Stations:
    """All labs of a run; made when entered, gone when left."""

    def __init__(self, cells: Sequence[Key], progress: Progress) -> None:
        self.places = list(dict.fromkeys(map(station, cells)))
        self._progress = progress
        self._stations: dict[Place, Station] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stations:
        with contextlib.ExitStack() as stack:
            for place in self.places:
                cause, name, mtu = place
                self._progress(f"building: {name} under {cause}")
                lab = stack.enter_context(Lab(CAUSES[cause], mtu=mtu))
                if cause == HEALTHY:
                    cures.conntrack_on(lab)
                cure = cures.BY_NAME[name]
                self._stations[place] = Station(lab, cure, cure.start(lab))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, place: Place) -> Station:
        return self._stations[place]

    def idle(self) -> Idle:
        """Look for a second at what works without traffic."""
        self._progress("checking that idle cures are idle")
        servers = [one.server for one in self._stations.values() if one.server]
        pids = [pid for one in servers if (pid := one.command_pid())]
        time.sleep(IDLE_SECONDS)  # what building them has left to do
        before = sum(map(clock.process_seconds, pids))
        busy = clock.busy_share(clock.Window.after(0, IDLE_SECONDS))
        ours = (sum(map(clock.process_seconds, pids)) - before) / IDLE_SECONDS
        return Idle(cures=ours, machine=busy)


def rounds(
    stations: Stations,
    cells: Sequence[Key],
    count: int,
    seconds: float,
    seed: int,
    progress: Progress,
) -> Iterator[tuple[Key, Sample, int]]:
    """Measure `count` rounds; yield each sample with the number of its round, from 0.

    A cell whose traffic did not arrive twice in round 0 is not tried again.
    """
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    hopeless: set[tuple[Place, str]] = set()
    for number in range(count):
        by_load: dict[str, list[Key]] = {}
        for key in cells:
            by_load.setdefault(key.load, []).append(key)
        names = list(by_load)
        order.shuffle(names)
        for name in names:
            # Cells that share a lab share the sample.
            places: dict[Place, list[Key]] = {}
            for key in by_load[name]:
                places.setdefault(station(key), []).append(key)
            turns = [place for place in places if (place, name) not in hopeless]
            order.shuffle(turns)
            for place in turns:
                progress(f"{name}: {place[1]} under {place[0]}")
                sample = _measure(stations[place], loads.BY_NAME[name], seconds)
                if not sample.cures and number == 0:
                    # Once may be an accident, such as a server that was slow to start.
                    sample = _measure(stations[place], loads.BY_NAME[name], seconds)
                    if not sample.cures:
                        hopeless.add((place, name))
                for key in places[place]:
                    yield key, sample, number


def _measure(at: Station, load: loads.Load, seconds: float) -> Sample:
    sample = load.run(at.lab, max(seconds, load.least_seconds))
    at.settle()
    return sample


def collect(into: list[dict[Key, Sample]], key: Key, sample: Sample, number: int) -> None:
    """Put a sample into its round."""
    while len(into) <= number:
        into.append({})
    into[number][key] = sample


__all__ = ["Idle", "Progress", "Round", "Station", "Stations", "collect", "rounds"]
