"""The settings of the service: their defaults, and their descriptions for operators.

Each setting is described only here. ``csumfix.config`` makes the flags from these descriptions;
``make manual`` makes the sample file, the man pages and the table in docs/.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from csumfix.protocols import Protocols, named

LAST_QUEUE = 65535
"""Highest number that a netfilter queue can have."""

_SETTING = "setting"
"""Key of a field's metadata."""


class LaneSetting(enum.StrEnum):
    """Which lane the operator wants for all tunnels; service/lanes.py explains them."""

    AUTO = "auto"
    KERNEL = "kernel"
    QUEUE = "queue"


@dataclass(frozen=True)
class Setting:
    """What is known about a setting besides its default.

    name: of the flag without its dashes, and of the key in the file.
    meaning: one or two sentences, also in the command's help.
    more: further sentences, for the man page, the table and the sample file.
    values: the meaning of each value, if there are only these.
    bounds: lowest and highest number.
    metavar: what stands for the value in the help.
    example: a value to show where the default is not to set it at all.
    is_flag: it takes no value on the command line.
    is_list: it may be given several times, and is a list in the file.
    is_for_managers: it is for what starts the service, and not in the sample file.
    """

    name: str
    meaning: str
    more: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None
    metavar: str | None = None
    example: str | None = None
    is_flag: bool = False
    is_list: bool = False
    is_for_managers: bool = False


def _about(name: str, meaning: str, more: str = "", **attributes: Any) -> dict[str, Setting]:
    return {_SETTING: Setting(name, meaning, more, **attributes)}


@dataclass(frozen=True)
class TunnelOptions:
    """The settings of one vxlan or geneve device, in a table of the settings file.

    lane: None if it is the one for all.
    """

    lane: LaneSetting | None = field(
        default=None,
        metadata=_about(
            "lane",
            "The lane of this device's UDP port, instead of the one for all.",
            values={str(lane): "" for lane in LaneSetting},
            example="queue",
        ),
    )


@dataclass(frozen=True)
class Options:
    """The settings of ``csumfix run``.

    tunnels: those of single devices, by name; only the settings file has these.
    """

    lane: LaneSetting = field(
        default=LaneSetting.AUTO,
        metadata=_about(
            "lane",
            "Where checksums are completed: in the kernel before NAT (kernel), by csumfix in a "
            "queue (queue), or wherever it proves to be necessary (auto).",
            values={
                "auto": "kernel lane; a port moves to the queue lane while its packets leave with "
                "a wrong checksum, or if probes whose checksum is left to offload are lost",
                "kernel": "always the kernel lane",
                "queue": "always the queue lane",
            },
        ),
    )
    hold: int = field(
        default=600,
        metadata=_about(
            "hold",
            "With lane auto: seconds without a wrong packet before a port leaves the queue lane.",
            bounds=(1, 7 * 24 * 3600),
            metavar="SECONDS",
        ),
    )
    tap_pause: float = field(
        default=1.0,
        metadata=_about(
            "tap-pause",
            "Seconds between two looks at departing packets. 0: never look.",
            "With 0, only probes can move a port to the queue lane.",
            bounds=(0, 3600),
            metavar="SECONDS",
        ),
    )
    probe: str = field(
        default="on",
        metadata=_about(
            "probe",
            "Whether to ask the other ends of the tunnels, with a few packets every 30 seconds, "
            "what arrives there.",
            "Without probes, relays and NICs that do not do what they claim are not "
            "noticed. docs/security.md lists the packets.",
            values={"on": "ask", "off": "send nothing"},
        ),
    )
    ports: tuple[int, ...] = field(
        default=(),
        metadata=_about(
            "port",
            "Extra VXLAN port, for tunnels without a local device; repeatable.",
            "6081 carries Geneve, here as well. Ports 4789, 8472 and 6081 are found without it "
            "where a UDP socket has them, as with Docker Swarm, whose vxlan device is in another "
            "network namespace.",
            bounds=(1, 65535),
            is_list=True,
        ),
    )
    geneve_ports: tuple[int, ...] = field(
        default=(),
        metadata=_about(
            "geneve-port",
            "Extra Geneve port, for tunnels without a local device; repeatable.",
            "A device knows what its port carries, whatever these settings say.",
            bounds=(1, 65535),
            is_list=True,
        ),
    )
    queues: int = field(
        default=1,
        metadata=_about(
            "queues",
            "Number of queues, each with its own thread.",
            "A flow stays in one of them.",
            bounds=(1, 64),
        ),
    )
    queue_base: int = field(
        default=0,
        metadata=_about(
            "queue-base",
            "Number of the first netfilter queue.",
            "Choose another if another program uses these numbers.",
            bounds=(0, LAST_QUEUE),
        ),
    )
    zero: str = field(
        default="keep",
        metadata=_about(
            "zero",
            "What to do with an outer checksum of 0, which means 'not computed'.",
            "Only the queue lane computes it, for every packet.",
            values={
                "keep": "leave it",
                "fill": "compute it: a port that may send 0 takes the queue lane, unless it is "
                "told to stay in the kernel lane",
            },
        ),
    )
    metrics: str | None = field(
        default=None,
        metadata=_about(
            "metrics",
            "Serve Prometheus metrics here, such as 127.0.0.1:9478.  [default: nowhere]",
            "There is no password and no encryption. The systemd unit admits only this host; "
            "to admit others, add IPAddressAllow= with 'systemctl edit csumfix'.",
            metavar="ADDRESS:PORT",
            example="127.0.0.1:9478",
        ),
    )
    log_format: str = field(
        default="text",
        metadata=_about(
            "log-format",
            "Format of log lines.",
            values={"text": "for people", "json": "one JSON object per line"},
        ),
    )
    take_over: bool = field(
        default=False,
        metadata=_about(
            "take-over",
            "Take over from a running csumfix instead of refusing to start; loses no packet.",
            is_flag=True,
            is_for_managers=True,
        ),
    )
    superseded: str = field(
        default="exit",
        metadata=_about(
            "superseded",
            "What to do when another process has taken over.",
            values={"exit": "exit with 0", "wait": "stay idle until SIGTERM, for Kubernetes"},
            is_for_managers=True,
        ),
    )

    tunnels: Mapping[str, TunnelOptions] = field(default_factory=dict)

    @property
    def protocols(self) -> Protocols:
        """What the extra ports carry."""
        return named(self.ports, self.geneve_ports)

    @property
    def queue_numbers(self) -> range:
        """Numbers of the queues."""
        return range(self.queue_base, self.queue_base + self.queues)

    @property
    def fill_zero(self) -> bool:
        """Whether to compute outer checksums that were sent as 0."""
        return self.zero == "fill"


DEFAULTS = Options()


def _described(kind: type[Options | TunnelOptions]) -> dict[str, Setting]:
    known = (each for each in fields(kind) if _SETTING in each.metadata)
    return {each.name: each.metadata[_SETTING] for each in known}


SETTINGS: Mapping[str, Setting] = _described(Options)
"""Those for all tunnels, by the name of the field in Options."""

TUNNEL_SETTINGS: Mapping[str, Setting] = _described(TunnelOptions)
"""Those of one device, by the name of the field in TunnelOptions."""
