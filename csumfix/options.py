"""What the service was asked to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass

LAST_QUEUE = 65535
"""Highest number that a netfilter queue can have."""


class LaneSetting(enum.StrEnum):
    """Which lane the operator wants for all tunnels; service/lanes.py explains them."""

    AUTO = "auto"
    KERNEL = "kernel"
    QUEUE = "queue"


@dataclass(frozen=True)
class Options:
    """The settings of ``csumfix run``; ``csumfix.config`` reads them and describes each.

    ports: UDP ports of tunnels besides those of the devices.
    hold: seconds without evidence after which a port leaves the queue lane.
    tap_pause: seconds between two looks at what leaves; 0 for no look at all.
    metrics: ADDRESS:PORT to serve metrics at.
    """

    lane: LaneSetting = LaneSetting.AUTO
    hold: int = 600
    tap_pause: float = 1.0
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
