"""A naive shim: NetfilterQueue, with scapy to dissect and rebuild each packet.

    python scapy_shim.py QUEUE

It prints "ready" when the queue is bound, and runs until it is killed.
"""

from __future__ import annotations

import sys
from typing import Any

from netfilterqueue import NetfilterQueue
from scapy.all import IP, UDP  # type: ignore[attr-defined]


def rebuild(packet: Any) -> None:
    """Compute the checksums of a packet with scapy, whatever they were."""
    ip = IP(packet.get_payload())
    del ip.chksum
    if UDP in ip:
        del ip[UDP].chksum
    packet.set_payload(bytes(ip))
    packet.accept()


def main() -> None:
    """Bind the queue and serve it."""
    queue = NetfilterQueue()
    queue.bind(int(sys.argv[1]), rebuild)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    queue.run()


if __name__ == "__main__":
    main()
