"""Receives the tunnel's datagrams on an ordinary UDP socket and resends their payload.

    python relay.py ADDRESS PORT ONE OTHER    from ONE to OTHER, and back

It is run by path, like the forwarder. It prints "ready" when its socket is bound, and runs until
it is killed.

A local socket accepts a packet whose checksums are still partial (CHECKSUM_PARTIAL, as a veth
device passes it on) without verifying it (skb_csum_unnecessary() in include/linux/skbuff.h). The
payload that it reads then has a partial inner checksum. A GSO packet is delivered whole, as one
datagram.
"""

import contextlib
import socket
import sys

_DATAGRAM_MAX = 65535  # bytes
_BUFFER = 8 << 20  # bytes of socket buffer; less without CAP_NET_ADMIN outside the sandbox
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
    """Pass datagrams on until killed; those that cannot be sent are lost, as on a wire."""
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
