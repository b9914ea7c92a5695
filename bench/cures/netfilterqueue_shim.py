"""The competent Python shim: NetfilterQueue's callback, with csumfix's repair in C.

    python netfilterqueue_shim.py QUEUE PORT

Only packets that had to be changed are given back with payload. Prints "ready" when the queue is
bound, and runs until it is killed.
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

    def mend(packet: Any) -> None:
        payload = packet.get_payload()
        # NetfilterQueue copies no more than 4,016 bytes; the IP header knows the real length.
        result = repair(payload, policy, wirelen=int.from_bytes(payload[2:4], "big"))
        if result.replaced:
            packet.set_payload(result.packet)
        packet.accept()

    queue = NetfilterQueue()
    queue.bind(int(sys.argv[1]), mend, MAX_LENGTH, sock_len=SOCKET_BYTES)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    queue.run()


if __name__ == "__main__":
    main()
