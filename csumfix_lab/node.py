"""A node: one network namespace of the lab."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from csumfix_lab.process import Process
from csumfix_lab.sandbox import Sandbox


@dataclass(frozen=True)
class Counters:
    """Counters of one network namespace since it was created.

    The `in_csum_errors` count datagrams and segments dropped for a wrong checksum. A packet with a
    wrong outer checksum counts in the underlay's family. One with a right outer and a wrong inner
    checksum counts in the inner family and protocol.
    """

    in_csum_errors: int  # UdpInCsumErrors, IPv4
    in_csum_errors6: int  # Udp6InCsumErrors
    in_datagrams: int  # UdpInDatagrams, tunnel packets included
    in_datagrams6: int  # Udp6InDatagrams
    in_errors: int  # UdpInErrors: checksum errors among them
    in_errors6: int  # Udp6InErrors
    tcp_in_csum_errors: int  # TcpInCsumErrors, both families

    @property
    def udp_drops(self) -> int:
        """UDP checksum errors of both families."""
        return self.in_csum_errors + self.in_csum_errors6


def _parse(text: str) -> dict[str, int]:
    """Return the counters in files of /proc/net as one mapping, by names like UdpInCsumErrors."""
    values: dict[str, int] = {}
    names: list[str] = []
    for line in text.splitlines():
        head, *rest = line.split()
        if not head.endswith(":"):  # snmp6: one name and value per line
            values[head] = int(rest[0])
        elif names and names[0] == head:  # snmp, netstat: a line of names, a line of values
            values |= {
                head[:-1] + name: int(value) for name, value in zip(names[1:], rest, strict=True)
            }
            names = []
        else:
            names = [head, *rest]
    return values


class Node:
    """One network namespace of a lab."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self.name = name
        self._sandbox = sandbox

    def __repr__(self) -> str:
        return f"Node({self.name!r})"

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = None,
        input: str | None = None,  # noqa: A002 - the name subprocess.run uses
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; return its output and exit code.

        `env` is added to the environment. Raises CalledProcessError if `check` and it failed, and
        TimeoutExpired, having killed it, after `timeout` seconds.
        """
        process = self.popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if check and process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(argv), out, err)
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def popen(self, argv: Sequence[str], **options: Any) -> Process:
        """Start a command and return at once; closing the lab kills it.

        Options are Popen's, but `env` is added to the environment, and streams are text by
        default. Signals reach the command itself: see csumfix_lab.process.
        """
        return self._sandbox.popen(self.name, argv, **options)

    def all_counters(self) -> dict[str, int]:
        """Return all counters of the network namespace by their names in nstat."""
        files = [f"/proc/net/{name}" for name in ("snmp", "snmp6", "netstat")]
        return _parse(self.run(["cat", *files]).stdout)

    def counters(self) -> Counters:
        """Return the drop counters."""
        values = self.all_counters()
        return Counters(
            in_csum_errors=values["UdpInCsumErrors"],
            in_csum_errors6=values["Udp6InCsumErrors"],
            in_datagrams=values["UdpInDatagrams"],
            in_datagrams6=values["Udp6InDatagrams"],
            in_errors=values["UdpInErrors"],
            in_errors6=values["Udp6InErrors"],
            tcp_in_csum_errors=values["TcpInCsumErrors"],
        )

    def offloads(self, device: str) -> dict[str, str]:
        """Return the settings `ethtool -k` shows, such as {"tx-checksumming": "on"}."""
        lines = self.run(["ethtool", "-k", device]).stdout.splitlines()[1:]
        pairs = (line.partition(":") for line in lines)
        return {name.strip(): value.strip() for name, _, value in pairs}
