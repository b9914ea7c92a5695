"""What the service was asked to do."""

from __future__ import annotations

from dataclasses import dataclass

LAST_QUEUE = 65535
"""Highest number that a netfilter queue can have."""


@dataclass(frozen=True)
class Options:
    """The settings of ``csumfix run``; ``csumfix.config`` reads them and describes each.

    ports: UDP ports to divert beside those of the devices.
    metrics: ADDRESS:PORT to serve metrics at.
    """

    divert: str = "packets"
    ports: tuple[int, ...] = ()
    queues: int = 1
    queue_base: int = 0
    zero: str = "keep"
    metrics: str | None = None
    log_format: str = "text"
    take_over: bool = False
    superseded: str = "exit"

    @property
    def queue_numbers(self) -> range:
        """Numbers of the queues."""
        return range(self.queue_base, self.queue_base + self.queues)

    @property
    def fill_zero(self) -> bool:
        """Whether to compute outer checksums that were sent as 0."""
        return self.zero == "fill"
