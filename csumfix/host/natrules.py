"""The rules of this host that rewrite addresses, and which program made them.

Reads what ``iptables-save``, ``nft list ruleset`` and /proc/net/ip_vs say; changes nothing.
iptables-save without ``-t`` shows the tables that exist and makes none, not even the legacy one,
whose ``-t nat`` would load a module.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from csumfix.host.programs import relative
from csumfix.host.rules import search_path

IPVS = Path("/proc/net/ip_vs")
TIMEOUT = 2.0  # seconds for one program: a host can have 100,000 rules

Rewrites = Literal["source", "destination", "stateless"]

TARGETS: dict[str, Rewrites] = {
    "SNAT": "source",
    "MASQUERADE": "source",
    "DNAT": "destination",
    "REDIRECT": "destination",
    "NETMAP": "destination",
}

OWNERS = (
    ("KUBE-", "kube-proxy"),
    ("kube-proxy", "kube-proxy"),
    ("cali", "Calico"),
    ("CILIUM", "Cilium"),
    ("OLD_CILIUM", "Cilium"),
    ("FLANNEL", "flannel"),
    ("ANTREA", "Antrea"),
    ("WEAVE", "Weave Net"),
    ("CNI-", "a CNI plugin"),
    ("DOCKER", "Docker"),
    ("docker", "Docker"),
    ("POST_", "firewalld"),
    ("PRE_", "firewalld"),
    ("OUTPUT_direct", "firewalld"),
    ("firewalld", "firewalld"),
    ("ufw", "ufw"),
    ("LIBVIRT", "libvirt"),
)
"""Programs by the beginning of the names of their chains or nft tables."""

HINTS = (("docker0", "Docker"), ("flanneld", "flannel"), ("kube", "kube-proxy"))
"""Programs by words in their rules, for rules in the kernel's own chains."""

SOMEBODY = "an unknown program or an administrator"

SAVED = re.compile(r"^\[(\d+):\d+\] -A (\S+) (.*)$")
TARGET = re.compile(r" -[jg] (\S+)")
MARK = re.compile(r"--(?:set-x?mark|or-mark) (0x[0-9a-f]+)")
NFT_TABLE = re.compile(r"^table (\S+) (\S+) \{")
NFT_CHAIN = re.compile(r"^\s+chain (\S+) \{")
NFT_SET = re.compile(r"\b(?:ip6? [sd]addr|udp [sd]port) set ")
NFT_NAT = re.compile(r"\b(snat|masquerade|dnat|redirect)\b")
NFT_MARK = re.compile(r"mark set (?:meta )?mark or (0x[0-9a-f]+)")
NFT_COUNTER = re.compile(r"counter packets (\d+) bytes \d+")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
OF_IPTABLES = frozenset({"nat", "mangle", "filter", "raw", "security"})
"""Tables that iptables-nft makes; nft shows them, too."""


@dataclass(frozen=True)
class NatRule:
    """A rule that rewrites addresses or ports.

    family: "4", "6" or "both". packets: that it has rewritten; None if it does not count them.
    """

    family: str
    rewrites: Rewrites
    owner: str
    chain: str
    text: str
    packets: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other rules."""
        return self.family, self.chain, self.text


@dataclass(frozen=True)
class NatRules:
    """All of them.

    mark: kube-proxy's mark for packets to be masqueraded; None if it marks none.
    clears_mark: whether kube-proxy clears it when it masquerades (since 1.18.6, kubernetes#92035).
    ipvs: virtual UDP services: address and port.
    trouble: why some could not be read; empty if all were.
    """

    rules: tuple[NatRule, ...] = ()
    mark: int | None = None
    clears_mark: bool = False
    ipvs: frozenset[tuple[str, int]] = frozenset()
    trouble: str = ""


async def read() -> NatRules:
    """Read them."""
    commands: list[tuple[str, tuple[str, ...]]] = [("both", ("nft", "list", "ruleset"))]
    for program in _iptables():
        commands.append(("4", (relative(program, "-save", ipv6=False), "-c")))
        commands.append(("6", (relative(program, "-save", ipv6=True), "-c")))
    results = await asyncio.gather(*(_output(command) for _, command in commands))
    trouble = next((error for _, error in results if error), "")
    texts = [(family, text) for (family, _), (text, _) in zip(commands, results, strict=True)]
    return parse(texts, _ipvs(), trouble)


def _iptables() -> list[str]:
    """Return the variants of iptables that are installed, and the one that was asked for."""
    named = os.environ.get("CSUMFIX_IPTABLES")
    both = [
        one for one in ("iptables-nft", "iptables-legacy") if shutil.which(one, path=search_path())
    ]
    return [*([named] if named and named not in both else []), *(both or ["iptables"])]


async def _output(command: tuple[str, ...]) -> tuple[str, str]:
    """Return what a program prints, and why it failed; nothing if it is not installed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PATH": search_path(), "LC_ALL": "C"},
        )
    except OSError:
        return "", ""
    try:
        async with asyncio.timeout(TIMEOUT):
            out, err = await process.communicate()
    except TimeoutError:
        return "", f"{command[0]} took too long"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    text = out.decode(errors="backslashreplace")
    if process.returncode:
        lines = err.decode(errors="backslashreplace").strip().splitlines()
        return text, lines[0] if lines else f"{command[0]} failed"
    return text, ""


def _ipvs() -> str:
    try:
        return IPVS.read_text()
    except OSError:  # not in this kernel, or not for us
        return ""


def parse(texts: list[tuple[str, str]], ipvs: str = "", trouble: str = "") -> NatRules:
    """Parse the output of the programs, which is given by family ("4", "6", or "both" for nft)."""
    rules: dict[tuple[str, str, str], NatRule] = {}
    mark, clears = None, False
    for family, text in texts:
        lines = list(_nft_lines(text) if family == "both" else _saved_lines(text))
        for chain, line, packets in lines:
            rule = _rule(family, chain, line, packets)
            if rule:
                rules[rule.key] = rule
            mark = _mark(chain, line) or mark
            clears = clears or _clears(chain, line)
    return NatRules(tuple(rules.values()), mark, clears, _services(ipvs), trouble)


Line = tuple[str, str, int | None]
"""Chain, rule, and how many packets it has seen."""


def _saved_lines(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        found = SAVED.match(line)
        if found:
            yield found[2], found[3], int(found[1])


def _nft_lines(text: str) -> Iterator[Line]:
    table = chain = ""
    for line in text.splitlines():
        if found := NFT_TABLE.match(line):
            table, chain = found[2], ""
        elif found := NFT_CHAIN.match(line):
            chain = found[1]
        elif table not in OF_IPTABLES and chain and line.strip() not in ("", "}"):
            counter = NFT_COUNTER.search(line)
            text = NFT_COUNTER.sub("counter", line.strip())
            yield f"{table} {chain}", text, int(counter[1]) if counter else None


def _rule(family: str, chain: str, line: str, packets: int | None) -> NatRule | None:
    rewrites = _nft_rewrites(line) if family == "both" else _saved_rewrites(line)
    if not rewrites:
        return None
    return NatRule(family, rewrites, owner(chain, line), chain, line, packets)


def _saved_rewrites(line: str) -> Rewrites | None:
    found = TARGET.search(QUOTED.sub('""', f" {line}"))
    return TARGETS.get(found[1]) if found else None


def _nft_rewrites(line: str) -> Rewrites | None:
    if NFT_SET.search(line):
        return "stateless"
    found = NFT_NAT.search(line)
    if not found or line.startswith("type "):
        return None
    return "source" if found[1] in ("snat", "masquerade") else "destination"


def owner(chain: str, line: str) -> str:
    """Name who made a rule, by its chain or, in the kernel's own chains, by its text."""
    for beginning, name in OWNERS:
        if chain.startswith(beginning):
            return name
    for word, name in HINTS:
        if word in line:
            return name
    return SOMEBODY


def _mark(chain: str, line: str) -> int | None:
    found = None
    if chain == "KUBE-MARK-MASQ":
        found = MARK.search(line)
    elif chain.startswith("kube-proxy mark"):
        found = NFT_MARK.search(line)
    return int(found[1], 16) if found else None


def _clears(chain: str, line: str) -> bool:
    if chain == "KUBE-POSTROUTING":
        return "-j MARK" in line
    return chain == "kube-proxy masquerading" and "mark set" in line


def _services(text: str) -> frozenset[tuple[str, int]]:
    """Read the virtual UDP services of IPVS: "UDP  C0A80001:2118 rr" or "[...]:2118"."""
    found = set()
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "UDP":
            address, _, port = words[1].rpartition(":")
            with suppress(ValueError):
                found.add((_address(address), int(port, 16)))
    return frozenset(found)


def _address(text: str) -> str:
    if text.startswith("["):
        return str(ipaddress.ip_address(text.strip("[]")))
    return str(ipaddress.ip_address(int(text, 16)))
