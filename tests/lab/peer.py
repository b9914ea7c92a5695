"""Traffic for the lab's nodes: numbered payloads whose every byte the receiver can predict.

Runs as a program inside a node: ``peer.py sink|send|flood|tcp-sink|tcp-send ...``; sinks
print ``listening``, and at the end, as a flood does, one JSON line.

Two loads mix packets of the MTU with GSO packets in one flow, and so show whether it is kept in
order: ``pipeline`` (to a ``tcp-sink``) and ``gso-send`` (to an ``order-sink``).
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

MESSAGES = (1_400, 20_000)
"""Sizes in bytes of a pipeline's messages, in turn: a packet of the MTU, and a GSO packet."""

SEGMENT = 1_200
"""Bytes in a segment of a UDP GSO packet."""

SEGMENTS = (1, 10)
"""How many segments the sends of ``gso-send`` have, in turn; a single one is no GSO packet."""

UDP_SEGMENT = 103  # linux/udp.h


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


def _datagrams(
    address: str, port: int, count: int, patience: float
) -> list[tuple[bytes, tuple[str, int]]]:
    """Receive datagrams with their sources.

    Return when `count` came, or, once standard input was closed (the sender is done), none came
    for `patience` seconds.
    """
    sock = _bound(address, port, socket.SOCK_DGRAM)
    print("listening", flush=True)
    received: list[tuple[bytes, tuple[str, int]]] = []
    sources: list[socket.socket | TextIO] = [sock, sys.stdin]
    while len(received) < count:
        ready, _, _ = select.select(sources, [], [], patience if len(sources) == 1 else None)
        if not ready:
            break
        if sock in ready:
            received.append(sock.recvfrom(65536))
        elif sys.stdin in ready:
            sources.remove(sys.stdin)
    return received


def sink(address: str, port: int, count: int, patience: float) -> dict[str, int]:
    """Receive datagrams as _datagrams() does, and count the intact ones."""
    received = _datagrams(address, port, count, patience)
    # Checked only now: while datagrams come, receiving them is all that matters.
    numbers = [NUMBER.unpack_from(data)[0] for data, _ in received]
    highest: dict[tuple[str, int], int] = {}
    late = 0
    for number, (_, source) in zip(numbers, received, strict=True):
        late += number < highest.get(source, 0)
        highest[source] = max(number, highest.get(source, 0))
    return {
        "arrived": len(received),
        "intact": sum(is_intact(data) for data, _ in received),
        "different": len(set(numbers)),
        "late": late,
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


def gso_send(address: str, port: int, count: int, rate: float) -> None:
    """Send numbered segments over one flow: `count` times a single packet and a GSO packet."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT)
    sock.connect((address, port))
    numbers = itertools.count()
    start = time.monotonic()
    for turn in range(count):
        for segments in SEGMENTS:
            chosen = itertools.islice(numbers, segments)
            sock.send(b"".join(NUMBER.pack(n, SEGMENT).ljust(SEGMENT, b".") for n in chosen))
        time.sleep(max(0, start + turn / rate - time.monotonic()))


def order_sink(address: str, port: int, count: int, patience: float) -> dict[str, int]:
    """Receive datagrams as _datagrams() does, and compare their order with their numbers."""
    received = _datagrams(address, port, count, patience)
    numbers = [NUMBER.unpack_from(data)[0] for data, _ in received]
    highest = itertools.accumulate(numbers, max)
    different = len(set(numbers))
    return {
        "late": sum(number < most for number, most in zip(numbers, highest, strict=True)),
        "missing": count - different,
        "duplicates": len(numbers) - different,
    }


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


def pipeline(address: str, port: int, seconds: float, rate: float) -> dict[str, int | str]:
    """Send MESSAGES again and again over one connection, at most `rate` times a second (0: any).

    Returns what tcp_sink() should.
    """
    messages = [random.Random(size).randbytes(size) for size in MESSAGES]
    digest, total = hashlib.sha256(), 0
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.monotonic()
        for turn in itertools.count(1):
            for message in messages:
                connection.sendall(message)
                digest.update(message)
                total += len(message)
            now = time.monotonic() - start
            if now > seconds:
                break
            if rate and turn / rate > now:
                time.sleep(turn / rate - now)
    return {"bytes": total, "sha256": digest.hexdigest()}


def tcp_digest(size: int) -> str:
    """Return what tcp_sink() must report for `size` bytes of tcp_send()."""
    return hashlib.sha256(random.Random(size).randbytes(size)).hexdigest()


def run(args: argparse.Namespace) -> dict[str, int] | dict[str, int | str] | None:
    """Do what the command line asks for, and return what is to be printed."""
    to = args.address, args.port
    match args.what:
        case "sink":
            return sink(*to, args.count, args.patience)
        case "order-sink":
            return order_sink(*to, args.count, args.patience)
        case "tcp-sink":
            return tcp_sink(*to)
        case "flood":
            return flood(*to, args.size, args.flows, args.rate)
        case "pipeline":
            return pipeline(*to, args.seconds, args.rate)
        case "send":
            send(*to, args.count, args.size, args.flows, args.rate)
        case "gso-send":
            gso_send(*to, args.count, args.rate)
        case "tcp-send":
            tcp_send(*to, args.size)
    return None


PROGRAMS = ("sink", "order-sink", "tcp-sink", "flood", "pipeline", "send", "gso-send", "tcp-send")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=PROGRAMS)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--patience", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=1)
    args = parser.parse_args()
    try:
        result = run(args)
    except OSError as error:  # a TCP connection that cannot be
        sys.exit(str(error))
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
