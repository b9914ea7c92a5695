"""A well-made Python shim: NetfilterQueue's callback, with csumfix's repair in C.

    python netfilterqueue_shim.py QUEUE PORT

It returns the payload of changed packets only. It prints "ready" when the queue is bound, and runs
until it is killed.
"""

from __future__ import annotations

import sys
from typing import Any

from netfilterqueue import NetfilterQueue

from csumfix.core import Policy, repair
from csumfix.host.queues import MAX_LENGTH, SOCKET_BYTES


def main() -> None:
    """Bind the queue and serve it."""
    policy = Policy(ports=(int(sys.argv[2]),))

    def repair_packet(packet: Any) -> None:
        payload = packet.get_payload()
        # NetfilterQueue copies at most 4,016 bytes; the IP header has the real length.
        result = repair(payload, policy, wirelen=int.from_bytes(payload[2:4], "big"))
        if result.replaced:
            packet.set_payload(result.packet)
        packet.accept()

    queue = NetfilterQueue()
    queue.bind(int(sys.argv[1]), repair_packet, MAX_LENGTH, sock_len=SOCKET_BYTES)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    queue.run()


if __name__ == "__main__":
    main()
