"""Passes Ethernet frames between two ports, and damages them as broken equipment does.

    python forwarder.py nic TAP DEVICE            make TAP, a NIC that lies about checksum offload
    python forwarder.py damage IN OUT UDP_PORT    damage outer checksums on the way from IN to OUT

It is run by path and needs only the standard library, so it starts quickly. It prints "ready" when
it forwards frames, and runs until it is killed.

The lying NIC is a TAP that accepts partial checksums (TUN_F_CSUM). The kernel says in a
virtio_net_hdr before each frame which checksum is still to be computed
(VIRTIO_NET_HDR_F_NEEDS_CSUM); this program discards that header. The TAP offers no TSO, so no
frame exceeds the MTU.
"""

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Protocol

_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM = 0x01
_VNET_HDR = bytes(10)  # struct virtio_net_hdr: nothing left to compute

_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_ETH_P_ALL = 0x0003
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD

_FRAME_MAX = 65536 + 64  # bytes
_BUFFER = 8 << 20  # bytes of socket buffer; less without CAP_NET_ADMIN outside the sandbox
_BURST = 64  # frames read from one port before the other has its turn

Transform = Callable[[bytes], bytes]


class Port(Protocol):
    """A source and sink of Ethernet frames."""

    def fileno(self) -> int:
        """Return the descriptor to poll."""

    def receive(self) -> bytes:
        """Return one frame; raise BlockingIOError if there is none."""

    def send(self, frame: bytes) -> None:
        """Send one frame; raise OSError if the device refuses it."""


class LyingNic:
    """The TAP's far side: reads the frames that the node sends, and delivers frames to it."""

    def __init__(self, name: str) -> None:
        self._fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _TUN_F_CSUM)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def receive(self) -> bytes:
        """Return one frame, with its checksums still partial."""
        return os.read(self._fd, _FRAME_MAX)[len(_VNET_HDR) :]

    def send(self, frame: bytes) -> None:
        """Deliver one frame to the node, which will verify its checksums."""
        os.write(self._fd, _VNET_HDR + frame)


class Cable:
    """A network device, read and written below the IP stack."""

    def __init__(self, device: str) -> None:
        # With protocol 0 the socket receives nothing until its options are set.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        with contextlib.suppress(PermissionError):
            force = 33  # SO_RCVBUFFORCE, not in the socket module
            self._socket.setsockopt(socket.SOL_SOCKET, force, _BUFFER)
        self._socket.bind((device, _ETH_P_ALL))

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def receive(self) -> bytes:
        """Return one frame."""
        return self._socket.recv(_FRAME_MAX, socket.MSG_DONTWAIT)

    def send(self, frame: bytes) -> None:
        """Send one frame, which the kernel takes for complete."""
        self._socket.send(frame)


def unchanged(frame: bytes) -> bytes:
    """Pass a frame on as it is."""
    return frame


def _udp_offset(frame: bytes) -> int | None:
    """Return where the UDP header of an unfragmented packet begins, or None."""
    ethertype = int.from_bytes(frame[12:14])
    if ethertype == _ETH_P_IP and frame[23] == socket.IPPROTO_UDP:
        fragmented = int.from_bytes(frame[20:22]) & 0x3FFF
        return None if fragmented else 14 + (frame[14] & 0x0F) * 4
    if ethertype == _ETH_P_IPV6 and frame[20] == socket.IPPROTO_UDP:
        return 14 + 40
    return None


def damage(port: int) -> Transform:
    """Return a function that damages the UDP checksum of packets to `port`, and nothing else."""

    def transform(frame: bytes) -> bytes:
        udp = _udp_offset(frame)
        if udp is None or int.from_bytes(frame[udp + 2 : udp + 4]) != port:
            return frame
        checksum = int.from_bytes(frame[udp + 6 : udp + 8])
        # The result is never 0, which would mean "no checksum".
        wrong = checksum ^ (0xAAAA if checksum == 0x5555 else 0x5555)  # noqa: PLR2004
        return frame[: udp + 6] + wrong.to_bytes(2) + frame[udp + 8 :]

    return transform


def _pass_on(source: Port, target: Port, transform: Transform) -> None:
    """Move up to one burst of frames; those that a device refuses are lost, as on a wire."""
    for _ in range(_BURST):
        try:
            frame = source.receive()
        except OSError:  # none left, or the device is down
            return
        with contextlib.suppress(OSError):
            target.send(transform(frame))


def forward(one: Port, other: Port, transform: Transform) -> None:
    """Pass frames both ways until killed; `transform` those from `one` to `other`."""
    poll = select.poll()
    poll.register(one, select.POLLIN)
    poll.register(other, select.POLLIN)
    directions = {
        one.fileno(): (one, other, transform),
        other.fileno(): (other, one, unchanged),
    }
    while True:
        for descriptor, _ in poll.poll():
            _pass_on(*directions[descriptor])


def main(argv: list[str]) -> None:
    """See the module's description."""
    one: Port
    transform: Transform = unchanged
    match argv:
        case ["nic", tap, device]:
            one, other = LyingNic(tap), Cable(device)
        case ["damage", incoming, outgoing, port]:
            one, other, transform = Cable(incoming), Cable(outgoing), damage(int(port))
        case _:
            sys.exit(__doc__)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    forward(one, other, transform)


if __name__ == "__main__":
    main(sys.argv[1:])
