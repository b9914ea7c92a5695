"""Runs the service at full rate for minutes, and checks that nothing grows, wraps or leaks.

    python -m tests.soak --seconds 600

Meanwhile devices come and go, settings are reloaded and metrics are scraped, as on a long-lived
node. Prints each failure and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import programs, udp
from bench.clock import Window
from csumfix_lab import Lab
from tests.lab.harness import Service, checksum_errors, link, service

SIZE, FLOWS = 512, 8
OPTIONS = ("--lane=queue", "--queues=2", "--metrics=127.0.0.1:9478")
INTERVAL = 5.0
"""Seconds between samples of the service."""

CHANGE_EVERY = 6
"""Samples between changes of devices and settings."""

RSS_SLACK_KB = 2048
"""How much the resident memory may grow from the second quarter of the run to the last."""


@dataclass(frozen=True)
class Sample:
    """Resources and counters of the service at one time."""

    rss_kb: int
    descriptors: int
    threads: int
    counters: dict[str, int]


def sample(daemon: Service) -> Sample:
    """Measure the process, and ask it for its counters."""
    process = Path(f"/proc/{daemon.process.command_pid()}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    queues: dict[str, Any] = daemon.status()["service"]["queues"]
    return Sample(
        rss_kb=int(status["VmRSS"].split()[0]),
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        counters={
            f"{number} {name}": value
            for number, queue in queues.items()
            for name, value in {**queue, **queue["reasons"]}.items()
            if isinstance(value, int)
        },
    )


def change(lab: Lab, daemon: Service) -> None:
    """Add and remove a device, and reload the settings."""
    link(lab, "add other0 type vxlan id 9 dstport 4789 dev eth0")
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(INTERVAL / 2)
    link(lab, "del other0")


def failures(samples: list[Sample]) -> Iterator[str]:
    """Yield what has grown, and counters that went back."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = statistics.median(one.rss_kb for one in late) - statistics.median(
        one.rss_kb for one in early
    )
    if grown > RSS_SLACK_KB:
        yield f"resident memory has grown by {grown} kB"
    for name in ("descriptors", "threads"):
        if max(getattr(one, name) for one in late) > max(getattr(one, name) for one in early):
            yield f"{name} have grown"
    for before, after in itertools.pairwise(samples):
        for name, value in after.counters.items():
            if value < before.counters.get(name, 0):
                yield f"counter {name} went back from {before.counters[name]} to {value}"


@contextmanager
def scraped(lab: Lab) -> Iterator[None]:
    """Scrape the metrics once per second in the background."""
    scraper = lab.sender.popen([sys.executable, "-m", "tests.soak", "--scrape"])
    try:
        yield
        assert scraper.poll() is None, "the scraper has failed"
    finally:
        scraper.kill()
        scraper.wait(5)


def scrape() -> None:
    """Scrape until killed."""
    while True:
        with urllib.request.urlopen("http://127.0.0.1:9478/metrics", timeout=5) as answer:
            answer.read()
        time.sleep(1)


def soak(seconds: float) -> list[str]:
    """Run the service under load; return the failures."""
    programs.build("load")
    with (
        Lab(cause="dnat") as lab,
        service(lab.sender, *OPTIONS) as daemon,
        scraped(lab),
    ):
        errors = checksum_errors(lab)
        window = Window.after(1, seconds)
        samples = []
        with udp.traffic(lab, SIZE, FLOWS, 0, window) as (sender, receiver):
            while sender.poll() is None:
                samples.append(sample(daemon))
                print(f"{len(samples) * INTERVAL:6.0f} s  {samples[-1].rss_kb} kB", flush=True)
                if len(samples) % CHANGE_EVERY == 0:
                    change(lab, daemon)
                time.sleep(INTERVAL)
            sent = programs.parse_count(sender.communicate(timeout=10)[0])
            got = programs.parse_count(receiver.communicate(timeout=10)[0])
        last = sample(daemon).counters
        let_through = sum(value for name, value in last.items() if name.endswith(" overruns"))
        seen = sum(value for name, value in last.items() if name.endswith(" packets"))
        dropped = checksum_errors(lab) - errors
        print(
            f"sent {sent.total}, received {got.total}, bad {got.bad}, seen {seen}, "
            f"let through {let_through}, dropped for checksums {dropped}, "
            f"no room at the receiver {got.overflows}"
        )
        found = list(failures(samples))
        if sent.total - got.total > let_through + got.overflows:
            found.append("more packets were lost than were let through")
        if not seen:
            found.append("no packet was queued")
        if got.bad:
            found.append("contents have changed")
        return found


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--scrape", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scrape:
        scrape()
    found = soak(arguments.seconds)
    for failure in found:
        print(failure, file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
