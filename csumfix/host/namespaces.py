"""The network namespaces of this machine that processes show, and their checksum errors.

/proc/PID/net shows the namespace of that process, so nothing has to be entered to read its
counters. The files are opened once. They stay readable after privileges have been given up, and
after the process has ended. A namespace in which no process runs is not found.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POD_LOGS = (Path("/var/log/pods"), Path("/host/var/log/pods"))
"""Kubelet makes a directory NAMESPACE_NAME_UID here for each pod (BuildPodLogsDirectory() in
kubernetes pkg/kubelet/kuberuntime/helpers.go). ``kubectl debug node`` has the node's files in
/host."""

ERRORS = ("UdpInCsumErrors", "Udp6InCsumErrors", "TcpInCsumErrors")
"""Packets dropped for their checksum: UDP over IPv4, UDP over IPv6, TCP over either."""

FILES = ("snmp", "snmp6")
LONGEST = 1 << 16
"""Bytes of such a file that are read; they have some 3,000."""

MOST = 1000
"""Namespaces that are looked at."""

DESCRIPTORS = MOST * len(FILES) + 256

POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
CONTAINER = re.compile(r"[-/]([0-9a-f]{12})[0-9a-f]{52}(?:\.scope)?(?:/|$)")
UNIT = re.compile(r"/([^/]+\.service)(?:/|$)")


@dataclass
class Namespace:
    """One network namespace.

    owner: who has it, such as "this host" or "pod kube-system/dns-1"; printable only with
        csumfix.text, because processes and their cgroups may have any name.
    is_host: whether it is the one that this process is in.
    """

    owner: str
    is_host: bool
    _files: list[int]

    def errors(self) -> dict[str, int]:
        """Return the values of ERRORS since the namespace was made; not of what it lacks."""
        texts = [os.pread(file, LONGEST, 0).decode("ascii", "replace") for file in self._files]
        return parse(texts)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            os.close(file)


@dataclass
class Namespaces:
    """The namespaces that were found, this process's own first.

    hidden: processes that could not be looked at: they are another user's.
    passed_over: namespaces that were too many.
    """

    namespaces: list[Namespace]
    hidden: int = 0
    passed_over: int = 0


@contextlib.contextmanager
def opened() -> Iterator[Namespaces]:
    """Find the namespaces; close them in the end."""
    found = Namespaces([])
    try:
        with _more_descriptors():
            _find(found)
            yield found
    finally:
        for one in found.namespaces:
            one.close()


@contextlib.contextmanager
def _more_descriptors() -> Iterator[None]:
    """Raise the limit of open files, which is 1,024 by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _find(found: Namespaces) -> None:
    own = PROC / "self"
    seen = {_number(own)}
    _add(found, own, "this host", is_host=True)
    names = pod_names(entry for path in POD_LOGS for entry in _entries(path))
    for process in sorted(int(name) for name in _entries(PROC) if name.isdigit()):
        path = PROC / str(process)
        try:
            number = _number(path)
        except PermissionError:
            found.hidden += 1
            continue
        except OSError:  # it has just ended
            continue
        if number in seen:
            continue
        seen.add(number)
        if len(found.namespaces) >= MOST:
            found.passed_over += 1
            continue
        _add(found, path, _owner(path, names), is_host=False)


def _number(process: Path) -> int:
    return (process / "ns" / "net").stat().st_ino


def _add(found: Namespaces, process: Path, name: str, *, is_host: bool) -> None:
    files: list[int] = []
    try:
        for file in FILES:
            with contextlib.suppress(FileNotFoundError):  # no IPv6, or it has just ended
                files.append(os.open(process / "net" / file, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:  # no descriptors left, or no permission
        found.passed_over += 1
        for descriptor in files:
            os.close(descriptor)
        return
    if files:
        found.namespaces.append(Namespace(name, is_host, files))


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - names are wanted, not paths
    except OSError:
        return []


def _owner(process: Path, names: dict[str, str]) -> str:
    return owner(_text(process / "cgroup"), _text(process / "comm"), names)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST).decode(errors="backslashreplace")
    except OSError:
        return ""


# --------------------------------------------------------------------------------- pure parts


def pod_names(directories: Iterable[str]) -> dict[str, str]:
    """Return NAMESPACE/NAME of pods by their UID, from the names of their log directories."""
    names = {}
    for directory in directories:
        parts = directory.split("_")
        if len(parts) == 3:  # noqa: PLR2004 - neither a namespace nor a pod has "_" in its name
            names[parts[2]] = f"{parts[0]}/{parts[1]}"
    return names


def owner(cgroup: str, command: str, names: dict[str, str]) -> str:
    """Name the owner of a process: its pod, its container, its unit, or itself.

    cgroup: the text of /proc/PID/cgroup.
    names: see pod_names().
    """
    pod = POD.search(cgroup)
    if pod:
        uid = pod[1].replace("_", "-")  # systemd's slices have no "-" in names
        return f"pod {names.get(uid, f'with UID {uid}')}"
    container = CONTAINER.search(cgroup)
    if container:
        return f"container {container[1]}"
    unit = UNIT.search(cgroup)
    if unit:
        return f"service {unit[1]}"
    return f"process {command.strip() or 'without a name'}"


def parse(texts: Iterable[str]) -> dict[str, int]:
    """Read texts of /proc/net/snmp and /proc/net/snmp6; return ERRORS by name."""
    values: dict[str, int] = {}
    for text in texts:
        names: list[str] = []
        for line in text.splitlines():
            words = line.split()
            if len(words) == 2 and not words[0].endswith(":"):  # noqa: PLR2004 - snmp6
                values |= _chosen([(words[0], words[1])])
            elif names and words[:1] == names[:1]:  # snmp: a line of names, a line of values
                prefix = names[0][:-1]
                pairs = zip(names[1:], words[1:], strict=False)
                values |= _chosen((prefix + name, value) for name, value in pairs)
                names = []
            else:
                names = words
    return values


def _chosen(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    return {name: int(value) for name, value in pairs if name in ERRORS and value.isdecimal()}
