"""Generates tunnel packets of every kind, with random damage; number N is always the same."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from scapy.utils import checksum

from csumfix.core import Policy
from tests.bases import odd_bases, plain_bases
from tests.packets import GENEVE_PORT, PORT, Tunnel

SEED = 4

GENEVE = (GENEVE_PORT,)
SOME = (0, 63, 64, 4789, *range(PORT - 64, PORT + 65, 8), *range(GENEVE_PORT, 65535, 512), 65535)
POLICIES = (
    Policy(geneve=GENEVE),
    Policy(fill_zero=True, geneve=GENEVE),
    Policy(ports=(PORT, GENEVE_PORT), geneve=GENEVE),
    Policy(ports=(PORT, GENEVE_PORT), fill_zero=True, geneve=GENEVE),
    Policy(ports=(4789, PORT, GENEVE_PORT), geneve=GENEVE),
    Policy(ports=(4789,) * 16, geneve=GENEVE),
    Policy(ports=SOME, geneve=(1, 4790, *GENEVE, 65535)),
    Policy(geneve=(PORT,)),  # each protocol at the other's port
)


@dataclass(frozen=True)
class Case:
    """One call of repair()."""

    packet: bytes
    policy: Policy
    wirelen: int
    partial: bool
    replaceable: bool


@dataclass(frozen=True)
class Base:
    """A packet to damage, and the offsets of significant bytes."""

    tunnel: Tunnel
    fields: tuple[int, ...]


# Offsets of header bytes with types and lengths.
IP_FIELDS = {4: (0, 2, 3, 6, 7, 9, 20, 21), 6: (0, 4, 5, 6, 40, 41, 42, 43)}
UDP_FIELDS = (2, 3, 4, 5, 6, 7)
TUNNEL_FIELDS = (8, 9, 10, 11, 14, 15, 19)
L4_FIELDS = (4, 5, 6, 7, 12)
TYPE_FIELDS = (-2, -1)  # in front of the inner IP header
VALUES = (0, 1, 2, 3, 4, 6, 8, 17, 43, 44, 58, 60, 131, 137, 0x45, 0x46, 0x60, 0xC9, 0xFF)


@cache
def bases() -> tuple[Base, ...]:
    """Build every packet once."""
    return tuple(
        Base(tunnel, fields_of(tunnel)) for make in (plain_bases, odd_bases) for tunnel in make()
    )


def fields_of(tunnel: Tunnel) -> tuple[int, ...]:
    """Return the offsets of the bytes that tweak_fields() changes."""
    data = tunnel.data
    offsets = [
        *IP_FIELDS[data[0] >> 4],
        *[tunnel.udp + at for at in UDP_FIELDS + TUNNEL_FIELDS],
        *[
            tunnel.inner_ip + at
            for at in TYPE_FIELDS + IP_FIELDS.get(data[tunnel.inner_ip] >> 4, ())
        ],
        *[tunnel.inner_l4 + at for at in L4_FIELDS],
    ]
    return tuple(at for at in offsets if at < len(data))


def tweak_fields(random: Random, base: Base, data: bytearray) -> None:
    for _ in range(random.choice((1, 1, 2))):
        at = random.choice(base.fields)
        near = (data[at] + random.choice((-8, -1, 1, 8))) % 256
        data[at] = random.choice((*VALUES, near, near, near, near ^ 0x80))


def corrupt_inner(random: Random, base: Base, data: bytearray) -> None:
    """Flip a bit at or after the inner IP header."""
    data[random.randrange(base.tunnel.inner_ip, len(data))] ^= 1 << random.randrange(8)


def no_inner_check(random: Random, base: Base, data: bytearray) -> None:
    """Write 0 or a random value to the inner UDP checksum."""
    at = base.tunnel.inner_l4 + 6
    if at + 2 <= len(data):
        struct.pack_into("!H", data, at, random.choice((0, 0, 0xFFFF, random.randrange(65536))))


def add_to_port(data: bytearray, at: int, check: int) -> None:
    """Add a right checksum to the source port, so that the right one becomes a computed 0."""
    (port,) = struct.unpack_from("!H", data, at)
    total = port + check
    struct.pack_into("!H", data, at, (total & 0xFFFF) + (total >> 16))


def computed_zero_inside(random: Random, base: Base, data: bytearray) -> None:
    """Make the computed inner UDP checksum 0, which is sent as 0xffff."""
    at = base.tunnel.inner_l4
    if at + 8 <= len(data):
        (check,) = struct.unpack_from("!H", data, at + 6)
        add_to_port(data, at, check)
        struct.pack_into("!H", data, at + 6, random.choice((0xFFFF, 0xFFFF, 0, 1)))


def flip_bytes(random: Random, base: Base, data: bytearray) -> None:
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] = random.randrange(256)


def cut(random: Random, base: Base, data: bytearray) -> None:
    """Remove a random part or a few bytes from the end."""
    del data[random.choice((random.randrange(len(data)), len(data) - random.randint(1, 8))) :]


def cut_inside(random: Random, base: Base, data: bytearray) -> None:
    """Remove the end of the inner packet, and correct the outer lengths."""
    tunnel = base.tunnel
    del data[random.randrange(tunnel.udp + 8, len(data)) :]
    length_at, before = (2, 0) if tunnel.data[0] >> 4 == 4 else (4, 40)
    struct.pack_into("!H", data, length_at, len(data) - before)
    struct.pack_into("!H", data, tunnel.udp + 4, len(data) - tunnel.udp)


def append(random: Random, base: Base, data: bytearray) -> None:
    """Add bytes after the packet."""
    data += random.randbytes(random.randint(1, 9))


DAMAGES: tuple[tuple[float, Callable[[Random, Base, bytearray], None]], ...] = (
    (0.15, corrupt_inner),
    (0.07, no_inner_check),
    (0.03, computed_zero_inside),
    (0.30, tweak_fields),
    (0.12, flip_bytes),
    (0.08, cut_inside),
    (0.03, cut),
    (0.04, append),
)


def right_check(data: bytearray, udp: int) -> int:
    """Return the outer checksum computed by scapy, for consistent lengths."""
    length = int.from_bytes(data[udp + 4 : udp + 6], "big")
    addresses = data[12:20] if data[0] >> 4 == 4 else data[8:40]
    covered = addresses + struct.pack("!HH", 17, length) + data[udp : udp + length]
    covered[len(addresses) + 10 : len(addresses) + 12] = b"\0\0"
    return checksum(bytes(covered)) or 0xFFFF


def pseudo_header_sum(data: bytearray, udp: int) -> int:
    """Return the value of a CHECKSUM_PARTIAL outer field."""
    addresses = data[12:20] if data[0] >> 4 == 4 else data[8:40]
    return checksum(bytes(addresses + b"\0\x11" + data[udp + 4 : udp + 6])) ^ 0xFFFF


def nat(random: Random, data: bytearray, udp: int) -> None:
    """Rewrite the source as NAT does, without updating the checksum."""
    struct.pack_into("!H", data, udp, random.randrange(1, 65536))
    data[15 if data[0] >> 4 == 4 else 23] = random.randrange(256)


def set_outer_check(random: Random, data: bytearray, udp: int) -> None:
    """Make the checksum right, zero, or wrong in one of several ways."""
    if len(data) < udp + 8:
        return
    kind = random.random()
    if kind > 0.92:  # unchanged: local checksum offload, if the inner one is partial
        return
    check = random.randrange(65536)
    if kind < 0.15:
        check = 0
    elif kind < 0.65:
        check = right_check(data, udp)
    elif kind < 0.7:
        add_to_port(data, udp, right_check(data, udp))
        check = random.choice((0xFFFF, 0, check))
    elif kind < 0.75:
        check = pseudo_header_sum(data, udp)
    elif kind < 0.80:
        check = int.from_bytes(data[udp + 6 : udp + 8], "big")
    struct.pack_into("!H", data, udp + 6, check)
    if 0.3 < kind < 0.65 or 0.75 <= kind < 0.80:
        nat(random, data, udp)


def case(number: int) -> Case:
    """Return packet ``number`` with its policy and metadata."""
    random = Random(SEED << 32 | number)
    base = random.choice(bases())
    data = bytearray(base.tunnel.data)
    for probability, damage in DAMAGES:
        if data and random.random() < probability:
            damage(random, base, data)
    set_outer_check(random, data, base.tunnel.udp)
    longer = random.choice((1, 1500)) if random.random() < 0.02 else 0
    return Case(
        packet=bytes(data),
        policy=random.choice(POLICIES),
        wirelen=len(data) + longer,
        partial=random.random() < 0.02,
        replaceable=random.random() >= 0.01,
    )
