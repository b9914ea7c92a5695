"""Traffic through a tunnel, by two processes that stay: starting Python takes a second in a guest.

As a program it is one end, which reads commands from its standard input, a line each, and answers
each with a line. Commands of the sender: ``udp ADDRESS COUNT SIZE``, ``tcp ADDRESS SIZE``, and
``later ADDRESS NANOSECONDS`` for a datagram that shall leave at that time; that of the receiver,
which listens on all addresses: ``take``, for what has come since the last one.
"""

from __future__ import annotations

import hashlib
import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

PORT = 7000
TCP_PATIENCE = 10.0  # seconds
SO_TXTIME = SCM_TXTIME = 61  # asm-generic/socket.h


def payload(number: int, size: int) -> bytes:
    """Return the bytes of a datagram: its number, then bytes that follow from it."""
    seed = number.to_bytes(4, "big")
    return seed + (hashlib.sha512(seed).digest() * (size // 64 + 1))[: size - 4]


def stream(size: int) -> bytes:
    """Return the bytes of a TCP connection."""
    return (hashlib.sha512(b"stream").digest() * (size // 64 + 1))[:size]


def checksum_errors() -> dict[str, int]:
    """Return how many packets the kernel has dropped for their checksums, by protocol."""
    rows = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    errors = {
        names[0]: int(values[names.index("InCsumErrors")])
        for names, values in zip(rows[::2], rows[1::2], strict=True)
        if "InCsumErrors" in names
    }
    rows = [line.split() for line in Path("/proc/net/snmp6").read_text().splitlines()]
    return errors | {name: int(value) for name, value in rows if name.endswith("InCsumErrors")}


class Receiver:
    """Takes what comes, over both protocols."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("", PORT))
        self._listener = socket.create_server(("", PORT))
        for one in (self._udp, self._listener, sys.stdin.fileno()):
            self._selector.register(one, selectors.EVENT_READ)
        self._streams: dict[socket.socket, bytes] = {}
        self._forget()

    def _forget(self) -> None:
        self._last = 0
        self._numbers: list[int] = []
        self._overtaken = 0
        self._damaged = 0
        self._whole: list[str] = []

    def run(self) -> None:
        print("ready", flush=True)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == sys.stdin.fileno():
                    if not sys.stdin.readline():
                        return
                    self._tell()
                elif key.fileobj is self._udp:
                    self._datagram(self._udp.recv(65535))
                elif key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._streams[connection] = b""
                    self._selector.register(connection, selectors.EVENT_READ)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._segment(key.fileobj)

    def _datagram(self, data: bytes) -> None:
        self._last = time.monotonic_ns()
        number = int.from_bytes(data[:4], "big")
        self._overtaken += number < max(self._numbers, default=0)
        self._numbers.append(number)
        self._damaged += data != payload(number, len(data))

    def _segment(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        self._streams[connection] += data
        if not data:
            self._whole.append(hashlib.sha256(self._streams.pop(connection)).hexdigest())
            self._selector.unregister(connection)
            connection.sendall(b"!")
            connection.close()

    def _tell(self) -> None:
        report = {
            "numbers": sorted(self._numbers),
            "overtaken": self._overtaken,
            "damaged": self._damaged,
            "last": self._last,
            "streams": self._whole,
            "errors": checksum_errors(),
        }
        print(json.dumps(report), flush=True)
        self._forget()


def send_udp(address: str, count: int, size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(count):
            sender.sendto(payload(number, size), (address, PORT))


def send_tcp(address: str, size: int) -> None:
    with socket.create_connection((address, PORT), TCP_PATIENCE) as sender:
        sender.sendall(stream(size))
        sender.shutdown(socket.SHUT_WR)
        sender.recv(1)


def send_later(address: str, at: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        # struct sock_txtime: clock, flags.
        sender.setsockopt(socket.SOL_SOCKET, SO_TXTIME, struct.pack("II", time.CLOCK_MONOTONIC, 0))
        ancillary = [(socket.SOL_SOCKET, SCM_TXTIME, struct.pack("Q", at))]
        sender.sendmsg([payload(0, 64)], ancillary, 0, (address, PORT))


SENDERS: dict[str, Callable[..., None]] = {"udp": send_udp, "tcp": send_tcp, "later": send_later}


def run_sender() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        what, address, *numbers = line.split()
        try:
            SENDERS[what](address, *map(int, numbers))
            print("done", flush=True)
        except OSError as error:
            print(error, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        Receiver().run()
    else:
        run_sender()
