"""``csumfix doctor --bundle``: one file with what somebody else needs to diagnose a case.

It holds no packets. What only root may read is read first, because a command that looks at packets
gives up root.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import platform
import socket
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import click
from pyroute2.ethtool.ioctl import IoctlEthtool

from csumfix.errors import CsumfixError, Exit
from csumfix.host import nics, programs, rtnetlink, rules, tunnels, underlays
from csumfix.text import printable, printable_data
from csumfix.views import excerpt, status
from csumfix.views.anonymous import Replacer, names_of

LONGEST = 256 << 10
"""Characters of a file in the bundle; it has some 15 of them."""

JOURNAL = ("journalctl", "--unit=csumfix", "--lines=300", "--no-pager", "--quiet")
DEVICES = 32
"""Devices whose details are in it."""

PACKAGES = ("csumfix", "cffi", "click", "netfilterqueue", "pyroute2", "rich", "scapy")

COUNTERS = (
    "/proc/net/snmp",
    "/proc/net/snmp6",
    "/proc/net/netstat",
    "/proc/net/stat/nf_conntrack",
    "/proc/net/netfilter/nfnetlink_queue",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/net/ipv4/ip_local_port_range",
)

README = """\
A support bundle of csumfix.

It holds csumfix's diagnosis of a host, and the data behind it: versions, firewall rules that may
touch a tunnel, devices, counters, the service's state and its last log lines. It holds no packets.
Apart from diagnosis.json, everything was read before the diagnosis began.

"""
REPLACED = """\
Addresses and names were replaced, each by the same substitute throughout: IPv4 by addresses in
198.18.0.0/15, IPv6 by addresses in 2001:db8::/32, MAC addresses by addresses that begin with
02:00, and the names of the host, of pods, of services, and of devices that people have named.
Chains, sets and tables of firewalls keep their names. Look through the files before you pass
them on.
"""
NOT_REPLACED = "Addresses and names are those of the host; --replace-addresses replaces them.\n"

Finish = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def optional(path: Path | None, *, replace: bool) -> Iterator[Finish]:
    """Yield a function that takes the diagnosis, and writes the bundle if there is to be one.

    path: a new file, which disappears again if the function is not called; None for no bundle.
    replace: addresses and names.
    """
    if path is None:
        yield lambda _: None
        return
    with _created(path) as file:
        parts = _collect()
        names = names_of(os.uname().nodename, _names()) if replace else None

        def finish(diagnosis: Mapping[str, Any]) -> None:
            with _explained(path):
                file.write(pack({"diagnosis.json": as_text(diagnosis), **parts}, names))
                file.flush()
            click.echo(f"csumfix: support bundle written to {path}", err=True)

        yield finish


@contextlib.contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    """Create a file that only its owner may read; delete it if nothing comes of it."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CsumfixError(
            f"--bundle: {path} exists already; name a new file", Exit.USAGE
        ) from None
    except OSError as error:
        raise CsumfixError(
            f"--bundle: {path} cannot be created: {error.strerror}; name another file", Exit.USAGE
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        try:
            yield file
        finally:
            if not file.tell():
                with contextlib.suppress(OSError):  # we may have given up root since
                    path.unlink()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CsumfixError(
            f"--bundle: {path} cannot be written: {error.strerror}; name a file on another disk",
            Exit.BROKEN,
        ) from None


def pack(parts: Mapping[str, str], names: Mapping[str, str] | None) -> bytes:
    """Return a compressed archive of these files; pure but for the clock.

    names: what to replace, with the addresses; see Replacer. None to leave all as it is.
    """
    replacer = None if names is None else Replacer(names)
    readme = README + (REPLACED if replacer else NOT_REPLACED)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in {"README": readme, **parts}.items():
            whole = replacer.text(text) if replacer and name != "README" else text
            data = _bounded(whole).encode(errors="backslashreplace")
            member = tarfile.TarInfo(f"csumfix-bundle/{name}")
            member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    # Not tarfile's own "w:gz", which imports gzip by now: nobody may not read root's Python.
    return gzip.compress(stream.getvalue())


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n(cut off here)\n"


def as_text(data: Any) -> str:
    """Return plain data as the text of a file."""
    return json.dumps(printable_data(data), indent=2, default=str) + "\n"


# ------------------------------------------------------------------------------- what is in it


def _collect() -> dict[str, str]:
    """Read everything except the diagnosis; a file that cannot be read says why."""
    try:
        found = asyncio.run(tunnels.discover())
    except CsumfixError:  # devices.json will say it
        found = []
    names = {tunnel.name for tunnel in found}
    ports = {tunnel.port for tunnel in found}
    iptables = os.environ.get("CSUMFIX_IPTABLES", "iptables")
    parts = {
        "versions.json": lambda: as_text(_versions(iptables)),
        "rules-of-csumfix.txt": lambda: rules.run(["status"]).stdout,
        "iptables.txt": lambda: excerpt.iptables(_saved(iptables, ipv6=False), ports, names),
        "ip6tables.txt": lambda: excerpt.iptables(_saved(iptables, ipv6=True), ports, names),
        "nft.txt": lambda: excerpt.nft(programs.output(["nft", "list", "ruleset"]), ports, names),
        "devices.json": lambda: as_text(asyncio.run(_devices())),
        "counters.txt": lambda: "".join(f"== {path}\n{_read(path)}\n" for path in COUNTERS),
        "service.json": lambda: as_text(status.gather().as_json()),
        "log.txt": lambda: programs.output(JOURNAL) or "(the journal has no lines of csumfix)\n",
    }
    return {name: attempt(read) for name, read in parts.items()}


def attempt(read: Callable[[], str]) -> str:
    """Return what was read; if that failed, a line that says why."""
    try:
        return read()
    except (CsumfixError, rtnetlink.NetlinkError, OSError) as error:
        return f"(not readable: {error})\n"


def _saved(iptables: str, *, ipv6: bool) -> str:
    # Without -t: to name a table of legacy iptables is to make it.
    return programs.output([programs.relative(iptables, "-save", ipv6=ipv6), "-c"])


def _versions(iptables: str) -> dict[str, Any]:
    system = [line for line in _read("/etc/os-release").splitlines() if line.startswith("PRETTY")]
    return {
        "kernel": " ".join(os.uname()[2:]),
        "system": system,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "iptables": programs.output([iptables, "--version"]).strip(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


async def _devices() -> dict[str, Any]:
    """Return the tunnels, and details of them and of the devices that carry them."""
    found = await tunnels.discover()
    carriers = await underlays.find(found, named=not found)
    numbers = [*sorted(carriers), *(tunnel.index for tunnel in found)][:DEVICES]
    return {"tunnels": [asdict(one) for one in found], "details": [*map(_details, numbers)]}


def _details(number: int) -> dict[str, Any]:
    """Return what the kernel and the driver say of a device."""
    name = underlays.name(number)
    link = rtnetlink.device(number, statistics=True)
    if link is None:
        return {"index": number, "trouble": "it has just gone"}
    statistics = link.get("stats64") or {}
    return {
        "index": number,
        "name": name,
        **{key: link.get(key) for key in ("mtu", "flags", "operstate", "address", "master")},
        "kind": link.get(("linkinfo", "kind")),
        "driver": nics.driver(name) or "not known",
        "features": _features(name),
        "statistics": {key: value for key, value in statistics.items() if value},
    }


def _features(device: str) -> list[str]:
    """Return the offload features that are on."""
    try:
        features = IoctlEthtool(device).get_features()
        return [name for name, is_on, *_ in features if is_on]
    except Exception as error:  # pyroute2 raises a class of its own for each of several errors
        return [f"not known: {error!r}"]


def _names() -> list[str]:
    return [printable(name) for _, name in socket.if_nameindex()]


def _read(path: str) -> str:
    """Return a file's text; if it cannot be read, a line that says why."""
    try:
        with Path(path).open(encoding="utf-8", errors="backslashreplace") as file:
            return file.read(LONGEST)
    except OSError as error:
        return f"(not readable: {error.strerror})\n"
