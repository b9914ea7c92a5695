"""Faults of a network other than wrong checksums: nft rules for the wire, or for a node.

The wire is a bridge, so its rules are of family bridge. See Lab.fault().
"""

from csumfix_lab.spec import DEVICE

TABLE = "csumfix_lab_fault"


def _wire(*rules: str) -> str:
    return table("bridge", "forward", *rules)


def table(family: str, hook: str, *rules: str) -> str:
    """Return an nft table with one chain at a hook."""
    lines = "\n        ".join(rules)
    return f"""
table {family} {TABLE} {{
    chain {hook} {{
        type filter hook {hook} priority filter; policy accept;
        {lines}
    }}
}}
"""


def black_hole(port: int) -> str:
    """Have the wire drop the tunnel."""
    return _wire(f"udp dport {port} drop")


def loss(port: int, percent: int) -> str:
    """Have the wire lose some of the tunnel's packets, in either direction."""
    return _wire(f"udp dport {port} numgen random mod 100 < {percent} drop")


def mtu_hole(port: int, longest: int) -> str:
    """Have the wire silently drop packets of more than this many bytes, from the IP header on."""
    # On a bridge the length of a packet is counted from its network header, too (nft(8)).
    return _wire(f"udp dport {port} meta length > {longest} drop")


def firewall() -> str:
    """Have a node drop new TCP connections from the tunnel."""
    return table("inet", "input", f'iifname "{DEVICE}" tcp flags & (syn|ack) == syn drop')
