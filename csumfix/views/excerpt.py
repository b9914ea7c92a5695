"""The firewall rules that may touch a tunnel, out of all rules of a host. Pure.

A Kubernetes node has ten thousand NAT rules, most of them one service's. Rules that only choose an
endpoint of a service are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

OURS = "CSUMFIX"

SERVICES = re.compile(r"^-A KUBE-(?:SVC|SEP|FW|EXT|XLB|SERVICES|NODEPORTS)")
REWRITES = re.compile(
    r"-[jg] (?:MASQUERADE|SNAT|NETMAP|MARK|CONNMARK|CHECKSUM|NFQUEUE|TPROXY|CT|NOTRACK|DNAT"
    r"|REDIRECT)\b"
)
BUILT_IN = re.compile(r"^-A (?:PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)\b")
OTHER_PROTOCOL = re.compile(r"-p (?!udp\b|all\b)\w+")

NFT_OPENS = re.compile(r"^\s*(?:table|chain|type) ")
NFT_REWRITES = re.compile(
    r"\b(?:masquerade|snat|dnat|redirect|notrack|queue|mark set)\b|\b(?:addr|sport|dport) set\b"
)

MOST = 500
"""Lines of an excerpt."""


def iptables(text: str, ports: Collection[int], devices: Collection[str]) -> str:
    """Return the lines of iptables-save that may touch a tunnel.

    ports: of tunnels; devices: their names.
    """
    words = _words(ports, devices)
    return _cut(text, lambda line: _keep(line, words))


def _keep(line: str, words: re.Pattern[str]) -> bool:
    if not line.startswith(("-A", ":")):
        return True  # a table's name, COMMIT, a comment of the program
    if OURS in line or (words.pattern and words.search(line)):
        return True
    if line.startswith(":"):
        return line.split()[1] != "-"  # the policies
    if SERVICES.match(line):
        return False
    if BUILT_IN.match(line):
        return True
    return bool(REWRITES.search(line)) and not OTHER_PROTOCOL.search(line)


def nft(text: str, ports: Collection[int], devices: Collection[str]) -> str:
    """Return the lines of ``nft list ruleset`` that may touch a tunnel."""
    words = _words(ports, devices)

    def keep(line: str) -> bool:
        if NFT_OPENS.match(line) or line.strip() == "}":
            return True
        return bool(NFT_REWRITES.search(line) or (words.pattern and words.search(line)))

    return _cut(text, keep)


def _words(ports: Collection[int], devices: Collection[str]) -> re.Pattern[str]:
    """Return what finds any of them as a word; a pattern of "" if there is none."""
    found = [*map(str, sorted(ports)), *map(re.escape, sorted(devices))]
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(found)})(?![\w.-])" if found else "")


EMPTY_CHAIN = re.compile(r"^[ \t]*chain \S+ \{\n[ \t]*\}\n", re.MULTILINE)


def _cut(text: str, keep: Callable[[str], bool]) -> str:
    """Return the lines to keep, and how many were not."""
    lines = text.splitlines()
    kept = [line for line in lines if keep(line)]
    excerpt = EMPTY_CHAIN.sub("", "".join(f"{line}\n" for line in kept)).splitlines()
    more = len(excerpt) - MOST
    notes = [f"# {len(lines) - len(kept)} lines that do not touch a tunnel were left out"]
    if more > 0:
        notes.append(f"# {more} lines more were cut off")
    return "".join(f"{line}\n" for line in [*excerpt[:MOST], *notes])
