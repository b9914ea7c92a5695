"""csumfix-rules beside ufw and firewalld: after the next apply the rules of both are right.

Debian's packages run in a root of their own, made by mmdebstrap, in a namespace of their own.
firewalld gets a D-Bus daemon; neither needs systemd.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csumfix_lab.node import Node
from csumfix_lab.sandbox import Sandbox
from tests.lab.harness import until

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
PACKAGES = "firewalld,ufw,iptables,nftables,dbus"
LANES = ("--lane=both", "--port=8472", "--bridged=queue", "--gate=none")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Debian with both firewalls."""
    with tempfile.TemporaryDirectory(prefix="csumfix-firewalls-") as folder:
        made = Path(folder) / "root"
        subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={PACKAGES}"),
                *("--dpkgopt=force-unsafe-io", "bookworm", str(made)),
            ],
            check=True,
            capture_output=True,
        )
        made.chmod(0o755)
        shutil.copy(SCRIPT, made / "usr/local/bin")
        yield made


class Host:
    """A host with a firewall."""

    def __init__(self, sandbox: Sandbox, root: Path) -> None:
        self._node = Node(sandbox, "host")
        self._root = str(root)
        self._node.run(["mount", "--rbind", "/proc", f"{root}/proc"])
        self._node.run(["mount", "-t", "tmpfs", "none", f"{root}/run"])
        self._node.run(["ip", "link", "set", "lo", "up"])

    def command(self, command: str) -> list[str]:
        return ["chroot", self._root, *command.split()]

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._node.run(self.command(command), check=check, timeout=60)

    def choose(self, variant: str) -> None:
        """Have Debian's alternatives lead to this variant of iptables."""
        for tool in ("iptables", "ip6tables"):
            self.run(f"update-alternatives --set {tool} /usr/sbin/{tool}-{variant}")

    def start(self, command: str) -> None:
        """Start a daemon, which ends with the sandbox."""
        self._node.popen(
            self.command(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def start_firewalld(self, backend: str) -> None:
        settings = Path(self._root) / "etc/firewalld/firewalld.conf"
        text = re.sub(
            "(?m)^FirewallBackend=.*", f"FirewallBackend={backend}", settings.read_text()
        )
        settings.write_text(text)
        self.run("mkdir -p /run/dbus")
        self.start("dbus-daemon --system --nofork --nopidfile")
        self.start("firewalld --nofork --nopid")
        until(
            lambda: self.run("firewall-cmd --state", check=False).returncode == 0 or None,
            30.0,
            lambda: "firewalld does not start",
        )

    def tables(self) -> str:
        """Return the rules, chains and policies of all tables, without counters.

        An empty built-in chain is none: iptables-nft makes them as it needs them.
        """
        saved = self.run("iptables-save").stdout + self.run("ip6tables-save").stdout
        saved = re.sub(r"(?m) \[[0-9:]*\]$", "", saved)
        return re.sub(r"(?m)^(#.*|\*.*|COMMIT|:\w+ ACCEPT)\n", "", saved)

    def settle(self) -> None:
        """Apply our rules; they are right then, and without them all is as before."""
        self.run("csumfix-rules remove")
        before = self.tables()
        self.run(f"csumfix-rules apply {' '.join(LANES)}")
        assert self.run(f"csumfix-rules check {' '.join(LANES)}").stdout == ""
        self.run("csumfix-rules remove")
        assert self.tables() == before
        self.run(f"csumfix-rules apply {' '.join(LANES)}")

    def assert_mended_after(self, command: str) -> None:
        """Whatever the command did to our rules."""
        self.run(command)
        self.run(f"csumfix-rules apply {' '.join(LANES)}")
        assert self.run(f"csumfix-rules check {' '.join(LANES)}").stdout == ""
        self.settle()


@pytest.fixture
def host(root: Path) -> Iterator[Host]:
    sandbox = Sandbox("host")
    try:
        yield Host(sandbox, root)
    finally:
        sandbox.close()


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_ufw(host: Host, variant: str) -> None:
    host.choose(variant)
    host.settle()
    host.assert_mended_after("ufw --force enable")
    assert "ufw-user-input" in host.tables()
    for command in ("ufw reload", "ufw disable", "/lib/ufw/ufw-init flush-all"):
        host.assert_mended_after(command)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_firewalld(host: Host, backend: str) -> None:
    host.choose("nft")
    host.settle()
    host.start_firewalld(backend)
    host.settle()
    for command in ("firewall-cmd --reload", "firewall-cmd --complete-reload"):
        host.assert_mended_after(command)
