"""The naive shim: NetfilterQueue, and scapy to take each packet apart and build it anew.

    python scapy_shim.py QUEUE

Prints "ready" when the queue is bound, and runs until it is killed.
"""

from __future__ import annotations

import sys
from typing import Any

from netfilterqueue import NetfilterQueue
from scapy.all import IP, UDP  # type: ignore[attr-defined]


def rebuild(packet: Any) -> None:
    """Have scapy compute the checksums of every packet, whatever they were."""
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
