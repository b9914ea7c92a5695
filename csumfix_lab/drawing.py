"""The lab as text: a drawing of the topology, and what is wrong in it."""

import textwrap

from csumfix_lab.causes import Cause
from csumfix_lab.spec import (
    DEVICE,
    GUEST_GATEWAY,
    RECEIVER,
    SENDER,
    SERVICE_IP,
    VIRTUAL_VTEP,
    Dual,
    End,
    LabSpec,
)

_WIDTH = 80  # columns
_LINK = 13  # least number of columns between two boxes
_TUNNEL_ROW, _UNDERLAY_ROW = 2, 3  # rows of a box, counted from its top border


def _rows(name: str, pairs: list[tuple[str, str]]) -> list[str]:
    return [name, *(f"{label:<10}{value}".rstrip() for label, value in pairs)]


def _end(name: str, end: End, ipv6: bool, pod: bool) -> list[str]:
    pairs = [(DEVICE, end.vtep.ip(False)), ("eth0", end.underlay.ip(ipv6))]
    return _rows(name, [*pairs, *([("pod", end.pod.ip(False))] if pod else [])])


def _box(rows: list[str], height: int) -> list[str]:
    width = max(map(len, rows))
    border = f"+{'-' * (width + 2)}+"
    padded = rows + [""] * (height - len(rows))
    return [border, *(f"| {row:<{width}} |" for row in padded), border]


def _link(label: str, height: int) -> list[str]:
    """Return a column that joins two boxes: the tunnel above, the underlay below."""
    width = max(len(label) + 4, _LINK)
    rows = [" " * width] * (height + 2)
    rows[_TUNNEL_ROW] = " VXLAN ".center(width, "=")
    rows[_UNDERLAY_ROW] = f" {label} ".center(width, "-")
    return rows


def _draw(spec: LabSpec) -> list[str]:
    ipv6 = spec.ipv6
    receiver = _end("receiver", spec.receiver, ipv6, pod=True)
    height = len(receiver)
    wire = "relay" if spec.relay else "wire"
    columns = [_link(wire, height), _box(receiver, height)]
    if spec.guest:
        legs: list[tuple[str, Dual]] = [("eth1", GUEST_GATEWAY), ("eth0", SENDER)]
        router = _rows("sender", [("", "")] + [(leg, at.ip(ipv6)) for leg, at in legs])
        guest = _end("guest", spec.client, ipv6, pod=False)
        columns = [_box(guest, height), _link("middlebox", height), _box(router, height), *columns]
    else:
        columns = [_box(_end("sender", spec.client, ipv6, pod=False), height), *columns]
    return ["  " + "".join(row).rstrip() for row in zip(*columns, strict=True)]


def _notes(cause: Cause, spec: LabSpec) -> list[str]:
    notes = [
        "wire: a bridge whose ports compute every checksum, so the receiver gets what a real "
        "wire would carry",
        f"outer UDP checksum: {'on' if spec.ipv6 or spec.outer_checksum else 'off (zero)'}",
    ]
    if cause.service:
        notes.append(f"service: {SERVICE_IP} port 53, by kube-proxy's rules on the sender")
    if cause.virtual_vtep:
        virtual, real = VIRTUAL_VTEP.ip(spec.ipv6), RECEIVER.ip(spec.ipv6)
        what = cause.virtual_vtep.format(real=real)
        notes.append(f"tunnel's remote end: {virtual}, {what}")
    return notes


def describe(cause: Cause, spec: LabSpec) -> str:
    """Return the drawing with title, story of the cause and notes, about 15 lines."""
    family = "IPv6" if spec.ipv6 else "IPv4"
    title = (
        f"cause {cause.name}: VXLAN over {family}, port {spec.port}, "
        f"MTU {spec.mtu} (in the tunnel {spec.tunnel_mtu})"
    )
    story = textwrap.wrap(cause.story, _WIDTH)
    notes = [
        line
        for note in _notes(cause, spec)
        for line in textwrap.wrap(f"- {note}", _WIDTH, subsequent_indent="  ")
    ]
    return "\n".join([title, "", *_draw(spec), "", *story, *notes])
