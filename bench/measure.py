"""Runs the cells: labs side by side, cures interleaved, round after round.

Theory of operation
-------------------
Each pair of cause and cure has its own lab, with the cure in place, for the whole run. Labs that
are not being measured have no traffic and cost nothing; the run checks that. So the cures of one
load are measured right after each other, in a new random order in each round. Whatever else the
machine does in that minute affects all of them alike.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench import clock, cures, loads
from bench.matrix import CAUSES, HEALTHY, lab_key
from bench.stats import Key, Sample
from csumfix_lab import Lab
from csumfix_lab.process import Process

IDLE_SECONDS = 1.0
DRAIN_LIMIT = 10.0  # seconds for a slow shim to drain its queue
DRAIN_STEP = 0.02
_QUEUES = "/proc/net/netfilter/nfnetlink_queue"
_WAITING = 2  # column with the number of packets that wait for a verdict

LabKey = tuple[str, str, int]
"""See matrix.lab_key()."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PreparedLab:
    """A lab with a cure in place."""

    lab: Lab
    cure: cures.Cure
    server: Process | None

    def settle(self) -> None:
        """Wait until its queues are empty: draining them would disturb the next cell."""
        give_up = time.monotonic() + DRAIN_LIMIT
        while self.cure.queued and self._waiting() and time.monotonic() < give_up:
            time.sleep(DRAIN_STEP)

    def _waiting(self) -> int:
        lines = self.lab.sender.run(["cat", _QUEUES]).stdout.splitlines()
        return sum(int(line.split()[_WAITING]) for line in lines)


@dataclass(frozen=True)
class Idle:
    """Core-seconds of CPU time per second without traffic: of all cures, of the whole machine."""

    cures: float
    machine: float


class PreparedLabs:
    """All labs of a run; built on entering the context, removed on leaving it."""

    def __init__(self, cells: Sequence[Key], progress: Progress) -> None:
        self.keys = list(dict.fromkeys(map(lab_key, cells)))
        self._progress = progress
        self._labs: dict[LabKey, PreparedLab] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PreparedLabs:
        with contextlib.ExitStack() as stack:
            for where in self.keys:
                cause, name, mtu = where
                self._progress(f"building: {name} under {cause}")
                lab = stack.enter_context(Lab(CAUSES[cause], mtu=mtu))
                if cause == HEALTHY:
                    cures.conntrack_on(lab)
                cure = cures.BY_NAME[name]
                self._labs[where] = PreparedLab(lab, cure, cure.start(lab))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, where: LabKey) -> PreparedLab:
        return self._labs[where]

    def idle(self) -> Idle:
        """Measure for a second what uses CPU without traffic."""
        self._progress("checking that idle cures are idle")
        servers = [one.server for one in self._labs.values() if one.server]
        pids = [pid for one in servers if (pid := one.command_pid())]
        time.sleep(IDLE_SECONDS)  # for work that is left over from building them
        before = sum(map(clock.process_seconds, pids))
        busy = clock.busy_share(clock.Window.after(0, IDLE_SECONDS))
        ours = (sum(map(clock.process_seconds, pids)) - before) / IDLE_SECONDS
        return Idle(cures=ours, machine=busy)


def rounds(
    labs: PreparedLabs,
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
    hopeless: set[tuple[LabKey, str]] = set()
    for number in range(count):
        by_load: dict[str, list[Key]] = {}
        for key in cells:
            by_load.setdefault(key.load, []).append(key)
        names = list(by_load)
        order.shuffle(names)
        for name in names:
            # Cells with the same lab share one sample.
            groups: dict[LabKey, list[Key]] = {}
            for key in by_load[name]:
                groups.setdefault(lab_key(key), []).append(key)
            turns = [where for where in groups if (where, name) not in hopeless]
            order.shuffle(turns)
            for where in turns:
                progress(f"{name}: {where[1]} under {where[0]}")
                sample = _measure(labs[where], loads.BY_NAME[name], seconds)
                if not sample.cures and number == 0:
                    # A single failure may be an accident, such as a server that started slowly.
                    sample = _measure(labs[where], loads.BY_NAME[name], seconds)
                    if not sample.cures:
                        hopeless.add((where, name))
                for key in groups[where]:
                    yield key, sample, number


def _measure(at: PreparedLab, load: loads.Load, seconds: float) -> Sample:
    sample = load.run(at.lab, max(seconds, load.least_seconds))
    at.settle()
    return sample


def collect(into: list[dict[Key, Sample]], key: Key, sample: Sample, number: int) -> None:
    """Put a sample into its round."""
    while len(into) <= number:
        into.append({})
    into[number][key] = sample
