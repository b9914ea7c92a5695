"""The lab: two nodes, a wire between them, and one cause of wrong outer checksums."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from csumfix.errors import CsumfixError, Exit
from csumfix_lab import drawing, faults, forwarder, relay, spec, topology
from csumfix_lab.causes import BY_NAME, CAUSES, Cause
from csumfix_lab.node import Node
from csumfix_lab.process import Process
from csumfix_lab.rules import LOADERS
from csumfix_lab.sandbox import Sandbox, require
from csumfix_lab.spec import LabSpec

_TUN = Path("/dev/net/tun")
_PATIENCE = 5.0  # seconds for anything in the lab to start


def _named(cause: str) -> Cause:
    if cause not in BY_NAME:
        raise CsumfixError(
            f"there is no cause {cause!r}; choose from: {', '.join(CAUSES)}", Exit.USAGE
        )
    return BY_NAME[cause]


class Lab:
    """A lab that exists between __enter__ and __exit__, and dies with this process.

    `cause` is the name of one, or one of your own. `mtu` is the underlay's in bytes, `port` the
    tunnel's UDP port, `ipv6` the underlay's family.
    Raises CsumfixError for unknown causes and values out of range, and if this host cannot build
    it.
    """

    device = spec.DEVICE
    pod_ip = spec.POD_IP
    pod_ip6 = spec.POD_IP6
    service_ip = spec.SERVICE_IP  # used by the causes kube-proxy and cni only
    dns_name = spec.DNS_NAME

    def __init__(
        self,
        cause: str | Cause = "none",
        *,
        ipv6: bool = False,
        mtu: int = 1500,
        port: int = 8472,
    ) -> None:
        self.cause = cause if isinstance(cause, Cause) else _named(cause)
        try:
            self.spec = LabSpec(
                ipv6=ipv6,
                mtu=mtu,
                port=port,
                guest=self.cause.guest,
                virtual_vtep=bool(self.cause.virtual_vtep),
                relay=self.cause.relay,
                outer_checksum=self.cause.outer_checksum,
            )
        except ValueError as error:
            raise CsumfixError(str(error), Exit.USAGE) from None
        self._sandbox: Sandbox | None = None

    def __enter__(self) -> Self:
        loaders = {LOADERS[tool][0] for tool in self.cause.rules(self.spec)}
        require("bridge", "ethtool", "ping", *sorted(loaders))
        if self.cause.lying_nic:
            self._require_tun()
        extra = ("middlebox", "guest") if self.cause.guest else ()
        self._sandbox = Sandbox("sender", "wire", "receiver", *extra)
        try:
            self._build()
        except subprocess.CalledProcessError as error:
            self.close()
            text = "; ".join(error.stderr.strip().splitlines())
            raise CsumfixError(
                f"cannot build the lab: {text}; probably a feature this kernel lacks "
                "(vxlan, veth, bridge, NAT, IPVS): load its module as root",
                Exit.KERNEL,
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs in the lab and remove it; return when nothing is left."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def node(self, name: str) -> Node:
        """Return any node by its name, "wire" and "middlebox" included."""
        if self._sandbox is None:
            raise RuntimeError("the lab is not running: use it in a with block")
        return Node(self._sandbox, name)

    @property
    def sender(self) -> Node:
        """The node with the bug, on which csumfix runs."""
        return self.node("sender")

    @property
    def receiver(self) -> Node:
        """The node with the service pod. Its counters show what was lost."""
        return self.node("receiver")

    @property
    def wire(self) -> Node:
        """The network between the nodes."""
        return self.node("wire")

    @property
    def client(self) -> Node:
        """The node on which traffic starts: the sender, or the guest behind it."""
        return self.node("guest" if self.cause.guest else "sender")

    @contextlib.contextmanager
    def fault(self, node: Node, rules: str) -> Iterator[None]:
        """Break the network at a node, or at the wire, by one of the rules of faults.py."""
        require("nft")
        node.run(["nft", "-f", "-"], input=rules)
        family = rules.split()[1]
        try:
            yield
        finally:
            node.run(["nft", "delete", "table", family, faults.TABLE])

    def start_dns(self) -> Process:
        """Start a DNS server in the service pod; return when it answers."""
        require("dnsmasq", "dig")
        # Without --no-daemon, dnsmasq changes its groups, which a user namespace forbids.
        options = (
            "--no-daemon", "--conf-file=/dev/null", "--pid-file=", "--no-resolv", "--no-hosts",
            "--bind-interfaces", "--log-facility=-",
            f"--listen-address={self.pod_ip}", f"--listen-address={self.pod_ip6}",
            f"--address=/{self.dns_name}/{self.pod_ip}",
            f"--address=/{self.dns_name}/{self.pod_ip6}",
        )  # fmt: skip
        server = self.receiver.popen(
            ["dnsmasq", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _PATIENCE
        while self._dig(self.receiver, self.pod_ip, self.dns_name) is None:
            if server.poll() is not None or time.monotonic() > deadline:
                raise CsumfixError(
                    "dnsmasq does not answer in the service pod; see: csumfix lab -- "
                    f"ip netns exec receiver dnsmasq {' '.join(options)}",
                    Exit.BROKEN,
                )
            time.sleep(0.02)
        return server

    def query(self, address: str, name: str | None = None, *, tcp: bool = False) -> str | None:
        """Ask the DNS server at `address` from the client, once, for at most a second.

        Returns the A record as text, or None if no answer came.
        """
        return self._dig(self.client, address, name or self.dns_name, tcp=tcp)

    @staticmethod
    def _dig(node: Node, address: str, name: str, *, tcp: bool = False) -> str | None:
        transport = ["+tcp"] if tcp else []
        result = node.run(
            ["dig", f"@{address}", "+tries=1", "+time=1", "+short", *transport, name, "A"],
            check=False,
        )
        return result.stdout.strip() if result.returncode == 0 else None

    def _require_tun(self) -> None:
        cause = f"cause {self.cause.name} needs {_TUN}"
        if not _TUN.exists():
            raise CsumfixError(f"{cause}; load it with: modprobe tun", Exit.KERNEL)
        if not os.access(_TUN, os.R_OK | os.W_OK):
            raise CsumfixError(
                f"{cause}, which you may not open; run as root, or: chmod 666 {_TUN}",
                Exit.PERMISSION,
            )

    def _build(self) -> None:
        what = self.spec
        for node in {self.sender.name, self.receiver.name, self.client.name}:
            self._script(node, topology.settings())
        self._script("wire", topology.wire(what, lying_nic=self.cause.lying_nic))
        if self.cause.lying_nic:
            self._start("wire", forwarder, "nic", topology.LYING_NIC, topology.NIC_PORT)
            move = f"ip link set {topology.LYING_NIC} netns sender name eth0"
            self._script("wire", move)
        if self.cause.guest:
            self._script("middlebox", topology.middlebox(what))
            ports = topology.MIDDLEBOX_IN, topology.MIDDLEBOX_OUT
            self._start("middlebox", forwarder, "damage", *ports, str(what.port))
            self._script("guest", topology.guest(what))
        if what.relay:
            ends = spec.SENDER.ip(what.ipv6), spec.RECEIVER.ip(what.ipv6)
            self._start("wire", relay, what.remote_vtep, str(what.port), *ends)
        self._script("sender", topology.sender(what))
        self._script("receiver", topology.receiver(what))
        for tool, rules in self.cause.rules(what).items():
            self.sender.run(LOADERS[tool], input=rules)
        self._check()

    def _script(self, name: str, script: str) -> None:
        self.node(name).run(["sh", "-eu"], input=script)

    def _start(self, name: str, program: ModuleType, *arguments: str) -> None:
        """Start one of the lab's programs in a node; return when it forwards packets."""
        process = self.node(name).popen(
            [sys.executable, str(Path(str(program.__file__)).resolve()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process.stdout as stdout:
            if stdout.readline() != "ready\n":
                what = " ".join([program.__name__, *arguments])
                raise CsumfixError(f"the lab's program {what!r} did not start", Exit.KERNEL)

    def _check(self) -> None:
        """Check that the underlay works: plain pings pass with every cause."""
        receiver = spec.RECEIVER.ip(self.spec.ipv6)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            ping = ["ping", "-n", "-q", "-c1", "-W1", receiver]
            if self.client.run(ping, check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise CsumfixError(
            f"cannot build the lab: {receiver} does not answer pings on the underlay; "
            "this is a bug in csumfix",
            Exit.BROKEN,
        )

    def describe(self) -> str:
        """Return a drawing of the topology and a description of the cause, for the operator."""
        return drawing.describe(self.cause, self.spec)
