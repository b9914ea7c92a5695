"""Where the control socket of a network namespace is, and who is believed there.

Theory of operation
-------------------
One service runs in each network namespace. It listens at two addresses:

- **A path**, ``/run/csumfix/net-INODE.sock``. A path does not belong to a network namespace:
  containers may share /run, or have their own. So the file is named after the inode of
  /proc/self/ns/net, which tells namespaces apart (namespaces(7)). Only root and the service's
  user can write the directory or connect to the socket. Nobody else can take this name, or fill
  the socket's backlog.
- **An abstract name**, ``@csumfix``. It belongs to the network namespace, whatever is mounted
  where. It tells a second service, in a container with its own /run, that one runs already, and
  anybody may ask for the state there. Any process can take the name while it is free, so the name
  alone proves nothing: see `is_believed`.

Clients try the path first. Where /run cannot be written there is the abstract name only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ABSTRACT = "\0csumfix"
DIRECTORY = Path("/run/csumfix")
NAMESPACE = Path("/proc/self/ns/net")
DYNAMIC_USER = Path("/run/systemd/dynamic-uid/direct:csumfix")
"""Where systemd notes the user id of a unit with ``User=csumfix`` and ``DynamicUser=yes``."""

UCRED = struct.Struct("3i")  # pid, uid, gid: see unix(7)
TIMEVAL = struct.Struct("ll")
OTHERS_WRITE = 0o022


@dataclass(frozen=True)
class Owner:
    """The process at the other end of a connection: the one that connected, or that listens."""

    pid: int
    uid: int

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"


def owner(connection: socket.socket) -> Owner:
    """Return the process at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid, uid, _ = UCRED.unpack(raw)
    return Owner(pid, uid)


def path() -> Path:
    """Return the path of this network namespace's socket."""
    return DIRECTORY / f"net-{NAMESPACE.stat().st_ino}.sock"


def is_believed(uid: int) -> bool:
    """Tell whether a service of this user is believed.

    Root is, we are, and the user is for whom systemd or root made the directory.
    """
    return uid in (0, os.geteuid()) or uid in _service_users()


def _service_users() -> Iterator[int]:
    with contextlib.suppress(OSError):
        run = DIRECTORY.parent.stat()
        if run.st_uid == 0 and not run.st_mode & OTHERS_WRITE:
            yield DIRECTORY.lstat().st_uid
    with contextlib.suppress(OSError, ValueError):
        yield int(DYNAMIC_USER.readlink().name)


def prepare_directory() -> bool:
    """Make the directory if there is none; tell whether only root and we can write it."""
    with contextlib.suppress(OSError):  # another mount namespace, a read-only file system
        DIRECTORY.mkdir(mode=0o755)
    try:
        seen = DIRECTORY.lstat()
    except OSError:
        return False
    ours = seen.st_uid in (0, os.geteuid()) and not seen.st_mode & OTHERS_WRITE
    return stat.S_ISDIR(seen.st_mode) and ours


@dataclass(frozen=True)
class Occupant:
    """What answers at the addresses of this network namespace.

    connection: to the service; None if none was found. The caller closes it.
    stranger: who else has the abstract name and is not believed.
    busy: an address whose backlog is full, so that nobody else can connect.
    """

    connection: socket.socket | None = None
    stranger: Owner | None = None
    busy: str | None = None


def find(patience: float) -> Occupant:
    """Connect to the service in this network namespace; wait `patience` seconds per address."""
    stranger = busy = None
    for address in (str(path()), ABSTRACT):
        try:
            connection = _connect(address, patience)
        except BlockingIOError:
            busy = address
            continue
        except OSError:  # nobody is there, or we may not connect
            continue
        if is_believed(owner(connection).uid):
            return Occupant(connection)
        stranger = owner(connection)
        connection.close()
    return Occupant(None, stranger, busy)


def _connect(address: str, patience: float) -> socket.socket:
    """Connect; raise BlockingIOError if the backlog is full for `patience` seconds."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        # A non-blocking socket would be refused at once while the backlog is full.
        limit = TIMEVAL.pack(int(patience), int(patience % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    connection.settimeout(patience)
    return connection
