"""Sends datagrams and counts the answers, or answers them.

    python echo.py serve ADDRESS PORT    prints "ready", then sends every datagram back
    python echo.py ask ADDRESS PORT      prints how many were sent and how many answered

Run by path and on its own, as the forwarder is. The sockets are ordinary ones: over a device with
checksum offload the kernel leaves the checksums of what they send partial.
"""

import contextlib
import select
import socket
import sys
import time

_FLOWS = 4  # source ports: each inner flow gets an outer source port of its own
_ROUNDS = 3  # datagrams of a flow; NAT treats the first one differently
_PAUSE = 0.01  # seconds between two rounds
_PATIENCE = 0.5  # seconds for the last answers
_DATAGRAM_MAX = 65535  # bytes


def serve(address: str, port: int) -> None:
    """Send every datagram back until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            data, source = sock.recvfrom(_DATAGRAM_MAX)
            with contextlib.suppress(OSError):
                sock.sendto(data, source)


def ask(address: str, port: int) -> tuple[int, int]:
    """Send datagrams of several flows; return how many, and how many were answered."""
    with contextlib.ExitStack() as stack:
        flows = []
        for _ in range(_FLOWS):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.connect((address, port))
            flows.append(sock)
        sent = 0
        answers: set[tuple[int, bytes]] = set()
        for number in range(_ROUNDS):
            for sock in flows:
                with contextlib.suppress(OSError):
                    sock.send(b"%d" % number)
                    sent += 1
            _collect(flows, answers, _PAUSE, sent)
        _collect(flows, answers, _PATIENCE, sent)
        return sent, len(answers)


def _collect(
    flows: list[socket.socket], answers: set[tuple[int, bytes]], seconds: float, enough: int
) -> None:
    """Read answers for this many seconds, or until there are enough."""
    ends = time.monotonic() + seconds
    while len(answers) < enough and (left := ends - time.monotonic()) > 0:
        for sock in select.select(flows, [], [], left)[0]:
            with contextlib.suppress(OSError):
                answers.add((sock.fileno(), sock.recv(_DATAGRAM_MAX)))


def main(argv: list[str]) -> None:
    """See the module's description."""
    match argv:
        case ["serve", address, port]:
            serve(address, int(port))
        case ["ask", address, port]:
            sent, answered = ask(address, int(port))
            sys.stdout.write(f"{sent} {answered}\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
