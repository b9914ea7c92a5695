"""What must be true before the service touches anything; the rule script checks the rest."""

from __future__ import annotations

from pathlib import Path

from csumfix.errors import CsumfixError, Exit

CAP_NET_ADMIN = 12  # linux/capability.h


def require_net_admin() -> None:
    """Raise unless this process may administer its network namespace."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    if not int(effective.split()[1], 16) >> CAP_NET_ADMIN & 1:
        raise CsumfixError(
            "no permission to change rules and queues: CAP_NET_ADMIN is missing: "
            "run as root, or give the service that capability",
            Exit.PERMISSION,
        )
