"""Runs programs that only read something of this host, such as iptables-save."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from csumfix.host.rules import search_path

PATIENCE = 10.0  # seconds


def output(command: Sequence[str]) -> str:
    """Return what a program printed; if that failed, a line that says why."""
    try:
        result = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=PATIENCE,
            env={**os.environ, "PATH": search_path(), "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return f"({command[0]} did not end within {PATIENCE:.0f} s)\n"
    except OSError as error:
        return f"({command[0]} could not be run: {error.strerror})\n"
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["without a message"]
        return f"{result.stdout}({command[0]} failed: {lines[-1]})\n"
    return result.stdout


def relative(program: str, suffix: str, *, ipv6: bool) -> str:
    """Return the name of a relative of iptables: its ip6tables, its "-save".

    program: a name, or a path such as /opt/sbin/iptables-host.
    """
    directory, slash, name = program.rpartition("/")
    if ipv6:
        name = name.replace("iptables", "ip6tables", 1)
    return f"{directory}{slash}{name}{suffix}"
