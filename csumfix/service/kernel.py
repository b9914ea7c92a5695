"""What the service needs of its node's kernel, as protocols, and the thin real implementations.

The modules of csumfix/host do the work. What takes long runs in a thread, so that the event loop
goes on. Tests hand in fakes that note what was done, and in which order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from csumfix.core import Policy, Stats
from csumfix.errors import CsumfixError
from csumfix.evidence import offload
from csumfix.evidence.outcomes import Probes
from csumfix.evidence.probes import Prober
from csumfix.evidence.tap import Tap, Traffic
from csumfix.host import flows, queues, remotes, rules, sockets, tunnels, underlays
from csumfix.host.changes import Changes
from csumfix.host.queues import KernelQueue
from csumfix.host.remotes import Remote
from csumfix.host.rules import AUTO, NFT, Backend, RuleKey, RuleSet
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import Protocols
from csumfix.service.netlink import listening
from csumfix.threads import in_thread


class Rules(Protocol):
    """The rules of iptables or nft; see host/rules.py."""

    async def apply(self, wanted: RuleSet) -> Backend:
        """Make exactly these rules be loaded; return what has loaded them."""

    async def remove(self) -> None:
        """Remove our rules; nothing happens if there are none."""

    async def differences(self, wanted: RuleSet) -> tuple[str, ...]:
        """Return how the loaded rules differ from these."""

    async def packets(self) -> Counter[RuleKey]:
        """Count the packets that met our rules."""

    async def changes_are_announced(self) -> bool:
        """Tell whether changes of rules make netlink events."""

    def conntrack_is_on(self) -> bool:
        """Tell whether conntrack follows any connection."""


class Links(Protocol):
    """The network devices; see host/tunnels.py, host/sockets.py and host/underlays.py."""

    async def tunnels(self) -> list[Tunnel]:
        """Return the vxlan and geneve devices."""

    async def socket_ports(self) -> frozenset[int]:
        """Return those well-known ports that have a UDP socket here."""

    async def underlays(self, found: Collection[Tunnel], *, named: bool) -> frozenset[int]:
        """Return the numbers of the devices that carry these tunnels."""


class Flows(Protocol):
    """The flows that are still in the queue lane while their port leaves it; host/flows.py."""

    async def create(self) -> None:
        """Make an empty set of flows, or take the one that rules still use."""

    async def destroy(self) -> None:
        """Remove the set, if it is there and no rule uses it."""

    async def are_left(self) -> bool:
        """Tell whether any flow is in the set."""


class Queue(Protocol):
    """One bound queue; see host/queues.py."""

    number: int
    error: OSError | None

    def start(self, on_failure: Callable[[], None]) -> None:
        """Begin to answer packets; on_failure is called in the queue's thread if that fails."""

    def stop(self) -> None:
        """Stop answering packets and unbind the queue; what it holds is lost."""

    def probe(self) -> None:
        """Measure how long a packet that is queued now waits."""

    def set_policy(self, policy: Policy) -> None:
        """Repair by another policy from now on."""

    def stats(self) -> Stats:
        """Return what has been done so far."""


class Queues(Protocol):
    """The netfilter queues of this network namespace."""

    def bind(self, number: int, policy: Policy) -> Queue:
        """Bind a queue. What arrives waits in it until it is started."""

    def bound(self) -> dict[int, KernelQueue]:
        """Return the bound queues, other programs' included, by number."""

    def require_free(self, numbers: Sequence[int]) -> None:
        """Raise CsumfixError if one of these queues is bound."""

    def exist(self) -> bool:
        """Tell whether the kernel has loaded NFQUEUE."""


class OtherEnds(Protocol):
    """The other ends of the tunnels; see host/remotes.py and evidence/probes.py."""

    async def find(self, found: Sequence[Tunnel], enough: int) -> list[Remote]:
        """Return so many remote ends of each of these tunnels and inner family, if there are."""

    async def ask(
        self, remotes: Sequence[Remote], underlays: Collection[int], *, watch: bool
    ) -> Probes:
        """Send them probes; watch: whether to look for their answers at the underlays, too."""


class EgressTap(Protocol):
    """Looks at packets that leave; see evidence/tap.py."""

    def start(self) -> None:
        """Begin to watch."""

    async def stop(self) -> None:
        """Stop watching; nothing happens if that has been done."""

    def watch(self, devices: frozenset[int], ports: Protocols, pause: float) -> None:
        """Watch these devices for packets to these ports from now on."""

    def traffic(self) -> Traffic:
        """Return what has been seen so far."""


Listen = Callable[[tuple[int, int], Changes, Callable[[], None]], AbstractContextManager[None]]
"""Has a function called after each event of a kind that changes something for us."""


@dataclass(frozen=True)
class Kernel:
    """Everything that the service needs of the kernel.

    make_tap: takes the pause between two looks, and what to call when a packet leaves wrong.
    """

    rules: Rules
    links: Links
    flows: Flows
    queues: Queues
    make_tap: Callable[[float, Callable[[], None]], EgressTap]
    listen: Listen
    ends: OtherEnds


# The real ones


class ScriptRules:
    """The rules, by csumfix-rules.

    If it may choose, and has turned to nft, it is not asked again to try iptables first.

    backend: that has loaded them; None before the first time.
    """

    def __init__(self) -> None:
        self.backend: Backend | None = None

    async def apply(self, wanted: RuleSet) -> Backend:
        """Make exactly these rules be loaded; return what has loaded them."""
        before = self.backend
        if wanted.backend == AUTO and before and before.name == NFT:
            await in_thread(rules.apply, replace(wanted, backend=NFT))
            return before
        has_ipset = before is not None and before.name != NFT
        if wanted.leaving_ports and wanted.backend != NFT and not has_ipset:
            # iptables is asked for the first time, or again, and refuses rules without their set.
            has_ipset = True
            with suppress(CsumfixError):  # then the refusal of csumfix-rules says it
                await in_thread(flows.create)
        try:
            self.backend = await in_thread(rules.apply, wanted)
        finally:
            if has_ipset and (self.backend is None or self.backend.name == NFT):
                await in_thread(flows.destroy)
        return self.backend

    async def remove(self) -> None:
        """Remove our rules; nothing happens if there are none."""
        await in_thread(rules.remove)

    async def differences(self, wanted: RuleSet) -> tuple[str, ...]:
        """Return how the loaded rules differ from these."""
        if self.backend:
            wanted = replace(wanted, backend=self.backend.name)
        return await in_thread(rules.differences, wanted)

    async def packets(self) -> Counter[RuleKey]:
        """Count the packets that met our rules."""
        return await in_thread(rules.packets)

    async def changes_are_announced(self) -> bool:
        """Tell whether changes of rules make netlink events."""
        return await in_thread(rules.changes_are_announced)

    def conntrack_is_on(self) -> bool:
        """Tell whether conntrack follows any connection."""
        return rules.conntrack_is_on()


class NetlinkLinks:
    """The devices, by rtnetlink."""

    async def tunnels(self) -> list[Tunnel]:
        """Return the vxlan and geneve devices."""
        return await tunnels.discover()

    async def socket_ports(self) -> frozenset[int]:
        """Return those well-known ports that have a UDP socket here."""
        return await in_thread(sockets.socket_ports)

    async def underlays(self, found: Collection[Tunnel], *, named: bool) -> frozenset[int]:
        """Return the numbers of the devices that carry these tunnels."""
        return await underlays.find(found, named=named)


class RecordedFlows:
    """The flows, in an ipset or, if nft has loaded the rules, in a set of its table."""

    def __init__(self, script: ScriptRules) -> None:
        self._rules = script

    async def create(self) -> None:
        """Make an empty set of flows, or take the one that rules still use."""
        # If these are a predecessor's rules, nobody knows yet.
        by_nft = self._by_nft if self._rules.backend else await in_thread(rules.loaded_by) == NFT
        if not by_nft:
            await in_thread(flows.create)

    async def destroy(self) -> None:
        """Remove the set, if it is there and no rule uses it."""
        if not self._by_nft:
            await in_thread(flows.destroy)

    async def are_left(self) -> bool:
        """Tell whether any flow is in the set."""
        return await in_thread(flows.are_left_in_nft if self._by_nft else flows.are_left)

    @property
    def _by_nft(self) -> bool:
        backend = self._rules.backend
        return backend is not None and backend.name == NFT


class NetfilterQueues:
    """The queues, by NetfilterQueue and the drain.

    max_length: packets that each may hold.
    """

    def __init__(self, max_length: int = queues.MAX_LENGTH) -> None:
        self._max_length = max_length

    def bind(self, number: int, policy: Policy) -> Queue:
        """Bind a queue. What arrives waits in it until it is started."""
        return queues.Queue(number, policy, max_length=self._max_length)

    def bound(self) -> dict[int, KernelQueue]:
        """Return the bound queues, other programs' included, by number."""
        return queues.kernel_queues()

    def require_free(self, numbers: Sequence[int]) -> None:
        """Raise CsumfixError if one of these queues is bound."""
        queues.require_free(numbers)

    def exist(self) -> bool:
        """Tell whether the kernel has loaded NFQUEUE."""
        return queues.PROC_QUEUES.exists()


class ProbedEnds:
    """The other ends, by rtnetlink and packet sockets."""

    async def find(self, found: Sequence[Tunnel], enough: int) -> list[Remote]:
        """Return so many remote ends of each of these tunnels and inner family, if there are."""
        return await remotes.find(found, enough=enough)

    async def ask(
        self, remotes: Sequence[Remote], underlays: Collection[int], *, watch: bool
    ) -> Probes:
        """Send them probes; watch: whether to look for their answers at the underlays, too."""
        ports = tunnels.protocols([remote.tunnel for remote in remotes])
        return await Prober(remotes, ports, underlays, None, offload.extent(watch=watch)).run()


class ThreadTap:
    """The egress tap, in a thread of its own."""

    def __init__(self, pause: float, on_wrong: Callable[[], None]) -> None:
        self._tap = Tap(pause, on_wrong)

    def start(self) -> None:
        """Begin to watch."""
        self._tap.start()

    async def stop(self) -> None:
        """Stop watching; nothing happens if that has been done."""
        await in_thread(self._tap.stop)

    def watch(self, devices: frozenset[int], ports: Protocols, pause: float) -> None:
        """Watch these devices for packets to these ports from now on."""
        self._tap.watch(devices, ports, pause)

    def traffic(self) -> Traffic:
        """Return what has been seen so far."""
        return self._tap.traffic()


def real_kernel(queues: Queues | None = None) -> Kernel:
    """Return the kernel that this process runs on.

    queues: other queues than the usual ones.
    """
    script = ScriptRules()
    return Kernel(
        rules=script,
        links=NetlinkLinks(),
        flows=RecordedFlows(script),
        queues=queues or NetfilterQueues(),
        make_tap=ThreadTap,
        listen=listening,
        ends=ProbedEnds(),
    )
