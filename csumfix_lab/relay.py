"""Receives the tunnel's datagrams by an ordinary UDP socket and sends their payload again.

    python relay.py ADDRESS PORT ONE OTHER    from ONE to OTHER, and back

Run by path and on its own, as the forwarder is. It prints "ready" when it receives, and runs until
it is killed.

A packet that reaches a local socket with its checksums not finished (CHECKSUM_PARTIAL, as a veth
device passes it on) is taken for right, and the socket gets its payload as it is: with the inner
checksum not finished. A super-packet is delivered whole, as one datagram.
"""

import contextlib
import socket
import sys

_DATAGRAM_MAX = 65535  # bytes
_BUFFER = 8 << 20  # bytes of socket buffer; without CAP_NET_ADMIN outside we get less
_SO_RCVBUFFORCE = 33  # not in the socket module


def _socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.bind((address, port))
    return sock


def relay(sock: socket.socket, port: int, one: str, other: str) -> None:
    """Pass datagrams on for ever; what cannot be sent is lost, as on a wire."""
    peers = {one: (other, port), other: (one, port)}
    while True:
        data, (source, *_) = sock.recvfrom(_DATAGRAM_MAX)
        if source in peers:
            with contextlib.suppress(OSError):
                sock.sendto(data, peers[source])


def main(argv: list[str]) -> None:
    """See the module's description."""
    if len(argv) != 4:  # noqa: PLR2004
        sys.exit(__doc__)
    address, port, one, other = argv
    sock = _socket(address, int(port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    relay(sock, int(port), one, other)


if __name__ == "__main__":
    main(sys.argv[1:])
