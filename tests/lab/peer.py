"""Traffic for the lab's nodes: numbered payloads whose every byte the receiver can predict.

Runs as a program inside a node: ``peer.py sink|send|flood|tcp-sink|tcp-send ...``; sinks
print ``listening``, and at the end, as a flood does, one JSON line.
"""

import argparse
import hashlib
import itertools
import json
import random
import select
import socket
import struct
import sys
import time
from typing import TextIO

BURST = 16
"""How many datagrams a flood sends between two looks at the clock."""

NUMBER = struct.Struct("!II")  # sequence number, length in bytes


def payload(number: int, size: int) -> bytes:
    """Return the payload of this number: pseudo-random, so that no two sums are alike."""
    body = random.Random(number * 65536 + size).randbytes(size)
    return (NUMBER.pack(number, size) + body)[:size]


def is_intact(data: bytes) -> bool:
    number, size = NUMBER.unpack_from(data)
    return data == payload(number, size)


def _bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option in (33, socket.SO_RCVBUF):  # 33: SO_RCVBUFFORCE
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, 64 << 20)
            break
        except PermissionError:
            continue
    sock.bind((address, port))
    return sock


def sink(address: str, port: int, count: int, patience: float) -> dict[str, int]:
    """Receive until `count` datagrams came, or, once standard input was closed (the sender is
    done), none came for `patience` seconds.
    """
    sock = _bound(address, port, socket.SOCK_DGRAM)
    print("listening", flush=True)
    received: list[bytes] = []
    sources: list[socket.socket | TextIO] = [sock, sys.stdin]
    while len(received) < count:
        ready, _, _ = select.select(sources, [], [], patience if len(sources) == 1 else None)
        if not ready:
            break
        if sock in ready:
            received.append(sock.recv(65536))
        elif sys.stdin in ready:
            sources.remove(sys.stdin)
    # Checked only now: while datagrams come, receiving them is all that matters.
    numbers = {NUMBER.unpack_from(data)[0] for data in received}
    return {
        "arrived": len(received),
        "intact": sum(map(is_intact, received)),
        "different": len(numbers),
    }


def send(address: str, port: int, count: int, size: int, flows: int, rate: float) -> None:
    """Send `count` datagrams from `flows` sockets in turn, at most `rate` a second (0: any)."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(flows)]
    payloads = [payload(number, size) for number in range(count)]
    start = time.monotonic()
    for number, data in enumerate(payloads):
        socks[number % flows].sendto(data, (address, port))
        ahead = start + number / rate - time.monotonic() if rate else 0
        if ahead > 0:
            time.sleep(ahead)


def flood(address: str, port: int, size: int, flows: int, rate: float) -> dict[str, int]:
    """Send datagrams from `flows` sockets in turn, `rate` a second, until standard input is
    closed.
    """
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(flows)]
    start = time.monotonic()
    for number in itertools.count():
        socks[number % flows].sendto(payload(number, size), (address, port))
        ahead = start + number / rate - time.monotonic()
        if number % BURST == 0 and select.select([sys.stdin], [], [], max(0, ahead))[0]:
            break
    return {"sent": number + 1}


def tcp_sink(address: str, port: int) -> dict[str, int | str]:
    """Accept one connection and read it to its end."""
    server = _bound(address, port, socket.SOCK_STREAM)
    server.listen()
    print("listening", flush=True)
    server.settimeout(20)
    connection, _ = server.accept()
    connection.settimeout(20)
    digest, total = hashlib.sha256(), 0
    while data := connection.recv(1 << 20):
        digest.update(data)
        total += len(data)
    return {"bytes": total, "sha256": digest.hexdigest()}


def tcp_send(address: str, port: int, size: int) -> None:
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.settimeout(20)
        connection.sendall(random.Random(size).randbytes(size))


def tcp_digest(size: int) -> str:
    """Return what tcp_sink() must report for `size` bytes of tcp_send()."""
    return hashlib.sha256(random.Random(size).randbytes(size)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["sink", "send", "flood", "tcp-sink", "tcp-send"])
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--patience", type=float, default=0.5)
    args = parser.parse_args()
    if args.what == "sink":
        print(json.dumps(sink(args.address, args.port, args.count, args.patience)))
    elif args.what == "send":
        send(args.address, args.port, args.count, args.size, args.flows, args.rate)
    elif args.what == "flood":
        print(json.dumps(flood(args.address, args.port, args.size, args.flows, args.rate)))
    elif args.what == "tcp-sink":
        print(json.dumps(tcp_sink(args.address, args.port)))
    else:
        try:
            tcp_send(args.address, args.port, args.size)
        except OSError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
