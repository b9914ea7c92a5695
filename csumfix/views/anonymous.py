"""Replaces addresses and names in texts, each by the same substitute throughout. Pure.

Replacements are of the ranges reserved for examples and tests: IPv4 198.18.0.0/15 (RFC 2544),
IPv6 2001:db8::/32 (RFC 3849), and MAC addresses that are locally administered. Prefix lengths and
ports stay. So do addresses that say nothing about a network: unspecified, loopback, netmasks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address

FIRST_V4 = int(IPv4Address("198.18.0.1"))
FIRST_V6 = int(IPv6Address("2001:db8::1"))
FIRST_MAC = 0x020000000001

SHORTEST = 3
"""Characters of a name; shorter ones are found in words that have nothing to do with it."""

RUN = re.compile(r"[0-9A-Za-z:.]*:[0-9A-Za-z:.]*:[0-9A-Za-z:.]*")
"""May hold a MAC or IPv6 address, perhaps behind a word and a colon."""

MOST_GROUPS = 24
"""Longer runs are no addresses that we know (InfiniBand's have 20). They are replaced whole."""

MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)
V4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)")
IN_NAME = re.compile(r"\bip-\d{1,3}(?:-\d{1,3}){3}(?:\.[\w-]+)*")
"""A host name that holds an address, as those of EC2 do."""

COMMENT = re.compile(r'(comment (?:\\?"|))([^\s"\\]+/[^\s"\\]*)')
"""A rule's comment that begins with NAMESPACE/NAME, as kube-proxy writes it."""

POD = re.compile(r"\b(pod )([a-z0-9.-]+/[a-z0-9.-]+)")
"""What csumfix.host.namespaces.owner() says."""

PLAIN_V6 = frozenset(map(IPv6Address, ("::", "::1", "fe80::", "ff00::")))


class Replacer:
    """Replaces addresses and names, and remembers the substitutes."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """Prepare; names: what kind ("host") each name is of, which its replacement says."""
        self._known: dict[str, dict[str, str]] = defaultdict(dict)  # by kind
        self._kinds = {name: kind for name, kind in names.items() if len(name) >= SHORTEST}
        # The longest first, because one name may begin like another; domains with the host.
        ordered = sorted(self._kinds, key=len, reverse=True)
        self._names = re.compile(
            rf"(?<![\w-])({'|'.join(map(re.escape, ordered))})(?:\.[A-Za-z][\w-]*)*(?![\w-])"
        )

    def text(self, text: str) -> str:
        """Return the text with everything replaced."""
        if self._kinds:
            text = self._names.sub(lambda found: self._named(found[1]), text)
        text = COMMENT.sub(lambda found: found[1] + self._next("name", found[2]), text)
        text = POD.sub(lambda found: found[1] + self._next("name", found[2]), text)
        text = IN_NAME.sub(lambda found: self._next("host", found[0]), text)
        text = RUN.sub(lambda found: self._run(found[0]), text)
        return V4.sub(lambda found: self._v4(found[0]), text)

    def _named(self, name: str) -> str:
        return self._next(self._kinds[name], name)

    def _next(self, kind: str, original: str) -> str:
        """Return the replacement of a name."""
        return self._replacement(kind, original, lambda number: f"{kind}-{number + 1}")

    def _replacement(self, kind: str, original: str, make: Callable[[int], str]) -> str:
        """Return the known replacement, or a new one; make: from the number of known ones."""
        known = self._known[kind]
        if original not in known:
            known[original] = make(len(known))
        return known[original]

    def _run(self, run: str) -> str:
        """Replace the longest address between two colons of a run, and what is beside it."""
        groups = run.split(":")
        if len(groups) > MOST_GROUPS:
            return self._next("address", run)
        spans = [
            (start, end)
            for start in range(len(groups))
            for end in range(len(groups), start + 2, -1)
        ]
        for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
            middle = ":".join(groups[start:end])
            tail = middle[len(middle.rstrip(".")) :]
            replaced = self._address(middle.removesuffix(tail))
            if replaced is not None:
                before = "".join(f"{group}:" for group in groups[:start])
                after = "".join(f":{group}" for group in groups[end:])
                return f"{before}{replaced}{tail}{after}"
        return run

    def _address(self, text: str) -> str | None:
        """Return the replacement of a MAC or IPv6 address; None if it is neither."""
        if MAC.fullmatch(text):
            return self._mac(text.lower())
        try:
            address = IPv6Address(text)
        except AddressValueError:
            return None
        if address in PLAIN_V6:
            return text
        return self._replacement(
            "IPv6", str(address), lambda number: str(IPv6Address(FIRST_V6 + number))
        )

    def _mac(self, address: str) -> str:
        if address in ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"):
            return address
        return self._replacement(
            "MAC", address, lambda number: (FIRST_MAC + number).to_bytes(6).hex(":")
        )

    def _v4(self, text: str) -> str:
        try:
            address = IPv4Address(text)
        except AddressValueError:
            return text
        if address.is_unspecified or address.is_loopback or text.startswith("255."):
            return text
        return self._replacement("IPv4", text, lambda number: str(IPv4Address(FIRST_V4 + number)))


PLAIN_DEVICES = re.compile(
    r"lo|eth\d+|en[ospx]\w+|bond\d+|br\d+|wg\d+|tunl0|kube-ipvs0|cni0|docker0|br-int"
    r"|flannel[.-]\w+|(?:cilium|antrea|ovs|vxlan|genev|geneve|veth|cali|lxc)\S*"
)
"""Devices that programs name. These names help the reader of a bundle and reveal nothing."""


def names_of(host: str, devices: Iterable[str]) -> dict[str, str]:
    """Return the names to replace: of the host, and of devices that people have named."""
    own = {name: "device" for name in devices if not PLAIN_DEVICES.fullmatch(name)}
    return {**own, host: "host", host.partition(".")[0]: "host"}
