"""Recognises inner TCP segments that GRO would merge. Pods choose these bytes."""

from __future__ import annotations

from csumfix.protocols import Protocol

TUNNEL_HEADER = 8
"""Bytes of either protocol's header; Geneve's options follow."""

UDP_HEADER, ETHERNET_HEADER, IPV6_HEADER, TCP_HEADER = 8, 14, 40, 20
TCP = 6
SYN_RST = 0x06


def udp_offset(packet: bytes) -> int:
    """Return where the UDP header of a packet without IPv6 extension headers begins."""
    return (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else IPV6_HEADER  # noqa: PLR2004


def inner_offset(packet: bytes, protocol: Protocol) -> int:
    """Return where the payload of a tunnel packet begins; IndexError if it is too short."""
    return payload_offset(packet, udp_offset(packet), protocol)


def payload_offset(packet: bytes, udp: int, protocol: Protocol) -> int:
    """Do the same, given where the UDP header begins."""
    tunnel = udp + UDP_HEADER
    options = (packet[tunnel] & 0x3F) * 4 if protocol == "geneve" else 0
    return tunnel + TUNNEL_HEADER + options


def has_tcp_data(packet: bytes, protocol: Protocol) -> bool:
    """Tell whether the inner packet is TCP with data, and neither SYN nor RST.

    GRO merges nothing else (tcp_gro_receive() in net/ipv4/tcp_offload.c). False for headers that
    GRO does not parse.
    """
    try:
        return _is_data(packet, inner_offset(packet, protocol) + ETHERNET_HEADER)
    except IndexError:
        return False


def _is_data(packet: bytes, ip: int) -> bool:
    version = packet[ip] >> 4
    if version == 4 and packet[ip + 9] == TCP:  # noqa: PLR2004
        tcp = ip + (packet[ip] & 15) * 4
    elif version == 6 and packet[ip + 6] == TCP:  # noqa: PLR2004
        tcp = ip + IPV6_HEADER
    else:
        return False
    data = tcp + (packet[tcp + 12] >> 4) * 4
    return data < _end(packet, ip) and not packet[tcp + 13] & SYN_RST


def _end(packet: bytes, ip: int) -> int:
    """Return where an IP packet ends, which may be before the end of its frame."""
    if packet[ip] >> 4 == 4:  # noqa: PLR2004
        return ip + int.from_bytes(packet[ip + 2 : ip + 4], "big")
    return ip + IPV6_HEADER + int.from_bytes(packet[ip + 4 : ip + 6], "big")
