"""The lab as text: a drawing of the topology, and what is wrong in it."""

import textwrap

from csumfix_lab.causes import Cause
from csumfix_lab.plan import (
    DEVICE,
    GUEST_GATEWAY,
    RECEIVER,
    SENDER,
    SERVICE_IP,
    VIRTUAL_VTEP,
    Dual,
    End,
    Plan,
)

_WIDTH = 96  # columns
_LINK = 13  # columns at least between two boxes
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


def _draw(plan: Plan) -> list[str]:
    ipv6 = plan.ipv6
    receiver = _end("receiver", plan.receiver, ipv6, pod=True)
    height = len(receiver)
    wire = "relay" if plan.relay else "wire"
    columns = [_link(wire, height), _box(receiver, height)]
    if plan.guest:
        legs: list[tuple[str, Dual]] = [("eth1", GUEST_GATEWAY), ("eth0", SENDER)]
        router = _rows("sender", [("", "")] + [(leg, at.ip(ipv6)) for leg, at in legs])
        guest = _end("guest", plan.client, ipv6, pod=False)
        columns = [_box(guest, height), _link("middlebox", height), _box(router, height), *columns]
    else:
        columns = [_box(_end("sender", plan.client, ipv6, pod=False), height), *columns]
    return ["  " + "".join(row).rstrip() for row in zip(*columns, strict=True)]


def _notes(cause: Cause, plan: Plan) -> list[str]:
    notes = [
        "wire: a bridge whose ports finish every checksum, so the receiver sees what a real "
        "wire would carry",
        f"outer UDP checksum: {'on' if plan.ipv6 or plan.outer_checksum else 'off (zero)'}",
    ]
    if cause.service:
        notes.append(f"service: {SERVICE_IP} port 53, by kube-proxy's rules on the sender")
    if cause.virtual_vtep:
        virtual, real = VIRTUAL_VTEP.ip(plan.ipv6), RECEIVER.ip(plan.ipv6)
        what = cause.virtual_vtep.format(real=real)
        notes.append(f"tunnel's remote end: {virtual}, {what}")
    return notes


def describe(cause: Cause, plan: Plan) -> str:
    """Return the drawing with its title, the cause's story and notes, some 15 lines."""
    family = "IPv6" if plan.ipv6 else "IPv4"
    title = (
        f"cause {cause.name}: VXLAN over {family}, port {plan.port}, "
        f"MTU {plan.mtu} (in the tunnel {plan.tunnel_mtu})"
    )
    story = textwrap.wrap(cause.story, _WIDTH)
    notes = [
        line
        for note in _notes(cause, plan)
        for line in textwrap.wrap(f"- {note}", _WIDTH, subsequent_indent="  ")
    ]
    return "\n".join([title, "", *_draw(plan), "", *story, *notes])
