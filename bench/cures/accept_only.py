"""The cost of NFQUEUE alone: csumfix's drain with a policy that matches no packet.

    python accept_only.py FIRST_QUEUE QUEUES

It accepts every packet unchanged by batch verdicts, without looking at its checksum. It prints
"ready" when the queues are bound, and runs until it is killed.
"""

from __future__ import annotations

import sys
import threading

from csumfix.core import Policy
from csumfix.host.queues import Queue

NO_TUNNEL = Policy(ports=(1,))


def main() -> None:
    """Bind the queues and serve them."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    failed = threading.Event()
    queues = [Queue(number, NO_TUNNEL) for number in range(first, first + count)]
    for queue in queues:
        queue.start(failed.set)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    failed.wait()
    sys.exit("accept_only: a queue failed")


if __name__ == "__main__":
    main()
