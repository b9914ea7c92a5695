"""Geneve packets in the queue lane. A raw socket sends them: this kernel may lack the device."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address

import pytest

from csumfix.evidence.probepackets import datagram
from csumfix_lab import Lab
from tests.lab.harness import QUEUE, Service, service
from tests.packets import GENEVE_PORT, Shape, build, geneve_option

OTHER_PORT = 7000
SENDER, RECEIVER = "192.0.2.1", "192.0.2.2"
OPTIONS = geneve_option(bytes(28))  # so many that the packet could be VXLAN by its first byte

SEND = f"""
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
for line in sys.stdin:
    sock.sendto(bytes.fromhex(line), ("{RECEIVER}", 0))
"""
RECEIVE = f"""
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("{RECEIVER}", int(sys.argv[1])))
sock.settimeout(1)
print("listening", flush=True)
try:
    while True:
        print(sock.recv(65535).hex())
except TimeoutError:
    pass
"""


def payload(change: tuple[int, int] = (0, 0)) -> bytes:
    """Return a Geneve packet; change: a byte to change, from Geneve's header on, and how."""
    tunnel = build(Shape(geneve=OPTIONS, payload=bytes(64)))
    data = bytearray(tunnel.data[tunnel.udp + 8 :])
    data[change[0]] ^= change[1]
    return bytes(data)


INTACT, CORRUPT, CONTROL = payload(), payload((-1, 0xFF)), payload((1, 0x80))


def wrong(port: int, data: bytes) -> str:
    """Return a UDP datagram with a wrong checksum, in hex."""
    ends = ip_address(SENDER).packed, ip_address(RECEIVER).packed
    right = datagram(*ends, (40000, port), data)
    return (right[:6] + bytes([right[6] ^ 0x55]) + right[7:]).hex()


def deliver(lab: Lab, port: int) -> list[bytes]:
    """Send one packet of each kind; return what the receiver's kernel did not drop."""
    receiver = lab.receiver.popen(
        [sys.executable, "-c", RECEIVE, str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert receiver.stdout
    assert receiver.stdout.readline() == "listening\n"
    lines = "\n".join(wrong(port, data) for data in (INTACT, CORRUPT, CONTROL))
    lab.sender.run([sys.executable, "-c", SEND], input=lines)
    out, _ = receiver.communicate(timeout=30)
    return [bytes.fromhex(line) for line in out.split()]


def reasons(daemon: Service) -> dict[str, int]:
    return {reason: count for reason, count in daemon.reasons().items() if count}


@pytest.mark.parametrize("lab", ["none"], indirect=True)
def test_geneve_is_repaired_and_only_what_proves_itself(lab: Lab) -> None:
    assert deliver(lab, OTHER_PORT) == []
    options = (f"--port={GENEVE_PORT}", f"--geneve-port={OTHER_PORT}", "--probe=off")
    with service(lab.sender, QUEUE, *options) as daemon:
        for port in (GENEVE_PORT, OTHER_PORT):
            assert deliver(lab, port) == [INTACT], port
        expected = {"recomputed": 2, "inner_corrupt": 2, "inner_unknown": 2}
        assert reasons(daemon) == expected


@pytest.mark.parametrize("lab", ["none"], indirect=True)
def test_geneve_at_a_port_of_vxlan_is_left_alone(lab: Lab) -> None:
    with service(lab.sender, QUEUE, f"--port={OTHER_PORT}", "--probe=off") as daemon:
        assert deliver(lab, OTHER_PORT) == []
        assert reasons(daemon) == {"inner_unknown": 3}
