"""The thin side of the seams: what is asked of a kernel reaches the modules that do it."""

import asyncio
import socket
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.host import flows, queues, rules, tunnels, underlays
from csumfix.host.changes import Changes
from csumfix.host.events import LINKS
from csumfix.host.rules import Backend, RuleSet
from csumfix.service import netlink
from csumfix.service.kernel import (
    NetfilterQueues,
    NetlinkLinks,
    RecordedFlows,
    ScriptRules,
    ThreadTap,
    real_kernel,
)

SET = RuleSet((8472,), (), 0, 1, "4", (1, 65535))


class Calls:
    """Stands for functions that block, and notes how they are called."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, *arguments: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread(), "it would block the loop"
        self.seen.append(arguments)
        return "result"


@pytest.mark.parametrize(
    ("owner", "name", "arguments"),
    [
        (rules, "apply", (SET,)),
        (rules, "remove", ()),
        (rules, "differences", (SET,)),
        (rules, "packets", ()),
        (rules, "changes_are_announced", ()),
        (flows, "create", ()),
        (flows, "destroy", ()),
        (flows, "are_left", ()),
    ],
)
def test_what_blocks_runs_in_a_thread(
    owner: Any, name: str, arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    monkeypatch.setattr(owner, name, calls)
    script = ScriptRules()
    script.backend = None if owner is rules else Backend("iptables")
    seam = script if owner is rules else RecordedFlows(script)
    result = asyncio.run(getattr(seam, name)(*arguments))
    assert calls.seen == [arguments]
    assert result in ("result", None)


class Script:
    """Stands for csumfix-rules, which turns to nft, or has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        for name in ("apply", "differences"):
            monkeypatch.setattr(rules, name, self._take)
        monkeypatch.setattr(rules, "loaded_by", lambda: "nft")
        monkeypatch.setattr(flows, "create", lambda: self.asked.append("create ipset"))
        monkeypatch.setattr(flows, "destroy", lambda: self.asked.append("destroy ipset"))
        monkeypatch.setattr(flows, "are_left", lambda: self.asked.append("ipset"))
        monkeypatch.setattr(flows, "are_left_in_nft", lambda: self.asked.append("set of nft"))

    def _take(self, wanted: RuleSet) -> Backend:
        self.asked.append(wanted.backend)
        if wanted.backend == "iptables":
            return Backend("iptables")
        return Backend("nft", "iptables is not installed")


def test_what_has_turned_to_nft_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> list[str]:
        script = Script(monkeypatch)
        seam = ScriptRules()
        wanted = replace(SET, backend="auto")
        chosen = await seam.apply(wanted)
        assert await seam.apply(wanted) == chosen
        await seam.differences(wanted)
        await seam.apply(replace(SET, backend="iptables"))
        return script.asked

    assert asyncio.run(scenario()) == ["auto", "nft", "nft", "iptables"]


@pytest.mark.parametrize(
    ("difference", "about_kernel"),
    [
        ("family=4 lane=kernel rule=gate what=missing text=-A", True),
        ("family=4 lane=kernel rule=burst what=missing text=-A", True),
        ("family=6 lane=queue rule=bridged what=missing text=-A", True),
        ("family=4 lane=kernel rule=fill-8472 what=missing text=-A", False),
        ("family=4 lane=queue what=missing table=csumfix", False),
    ],
)
def test_rules_that_await_the_kernel_are_no_other_programs_work(
    difference: str, about_kernel: bool
) -> None:
    assert rules.is_about_kernel(difference) is about_kernel


def test_flows_are_where_the_rules_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> list[str]:
        script = Script(monkeypatch)
        seam = ScriptRules()
        recorded = RecordedFlows(seam)
        await recorded.create()  # of a predecessor that uses nft
        await seam.apply(SET)
        await recorded.create()
        await recorded.are_left()
        await recorded.destroy()
        return script.asked

    assert asyncio.run(scenario()) == ["auto", "set of nft"]


def applied(monkeypatch: pytest.MonkeyPatch, *backends: str) -> list[str]:
    """Return what is asked of whom while these backends load rules, one after the other."""

    async def scenario() -> list[str]:
        script, seam = Script(monkeypatch), ScriptRules()
        for backend in backends:
            await seam.apply(replace(SET, leaving_ports=(8472,), backend=backend))
        return script.asked

    return asyncio.run(scenario())


def test_iptables_finds_an_ipset_for_ports_that_left_the_queue_lane_under_nft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert applied(monkeypatch, "nft", "iptables") == ["nft", "create ipset", "iptables"]


def test_nft_leaves_no_ipset_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor of a service that has turned to nft tries iptables first."""
    assert applied(monkeypatch, "auto") == ["create ipset", "auto", "destroy ipset"]
    moved = applied(monkeypatch, "iptables", "nft")
    assert moved == ["create ipset", "iptables", "nft", "destroy ipset"]


def test_a_set_that_cannot_be_made_is_for_csumfix_rules_to_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(monkeypatch)

    def refuse() -> None:
        raise CsumfixError("no ip_set", Exit.KERNEL)

    monkeypatch.setattr(flows, "create", refuse)
    asyncio.run(ScriptRules().apply(replace(SET, leaving_ports=(8472,), backend="iptables")))
    assert script.asked == ["iptables"]


def test_links(monkeypatch: pytest.MonkeyPatch) -> None:
    async def discover() -> list[str]:
        return ["tunnel"]

    async def find(found: list[str], *, named: bool) -> tuple[list[str], bool]:
        return found, named

    monkeypatch.setattr(tunnels, "discover", discover)
    monkeypatch.setattr(underlays, "find", find)

    async def scenario() -> Any:
        found = await NetlinkLinks().tunnels()
        return await NetlinkLinks().underlays(found, named=True)

    assert asyncio.run(scenario()) == (["tunnel"], True)


def test_queues(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(queues, "PROC_QUEUES", tmp_path / "queues")
    assert not NetfilterQueues().exist()
    (tmp_path / "queues").write_text("    7  99999     3 1    64     5     6        8  1\n")
    assert NetfilterQueues().exist()
    assert NetfilterQueues().bound()[7].waiting == 3
    NetfilterQueues().require_free([6])
    made: list[Any] = []
    monkeypatch.setattr(queues, "Queue", lambda *args, **more: made.append((args, more)))
    NetfilterQueues(max_length=16).bind(3, Policy())
    assert made == [((3, Policy()), {"max_length": 16})]


def test_the_tap_starts_and_stops() -> None:
    async def scenario() -> None:
        tap = ThreadTap(0.0, lambda: None)
        tap.start()
        tap.watch(frozenset(), {8472: "vxlan"}, 0.0)
        assert tap.traffic().ports == {}
        await tap.stop()

    asyncio.run(scenario())


def test_the_real_kernel_takes_other_queues() -> None:
    own = NetfilterQueues(16)
    assert real_kernel(own).queues is own
    assert isinstance(real_kernel().queues, NetfilterQueues)
    assert isinstance(real_kernel().rules.conntrack_is_on(), bool)


class Events:
    """Netlink events that a test sends."""

    def __init__(self, *_: Any) -> None:
        self.here, self.there = socket.socketpair()
        self.here.setblocking(False)
        self.error: OSError | None = None
        self.reads = 0
        self.closed = False

    def fileno(self) -> int:
        return self.here.fileno()

    def read(self) -> bool:
        self.reads += 1
        said = self.here.recv(65536)
        if self.error:
            raise self.error
        return b"ours" in said

    def close(self) -> None:
        self.closed = True
        self.here.close()
        self.there.close()


def heard(
    monkeypatch: pytest.MonkeyPatch, *said: bytes, error: OSError | None = None
) -> Counter[str]:
    """Return how often the service was told, and how often events were read."""
    events = Events()
    events.error = error
    monkeypatch.setattr(netlink, "NetlinkEvents", lambda *_: events)
    counted: Counter[str] = Counter()

    def react() -> None:
        counted["told"] += 1

    async def scenario() -> None:
        with netlink.listening(LINKS, Changes(), react):
            for one in said:
                events.there.send(one)
                await asyncio.sleep(0.005)
            await asyncio.sleep(3 * netlink.PAUSE)
        assert events.closed

    asyncio.run(scenario())
    counted["read"] = events.reads
    return counted


def test_an_event_that_changes_something_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert heard(monkeypatch, b"ours") == {"told": 1, "read": 1}


def test_an_event_about_others_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert heard(monkeypatch, b"other")["told"] == 0


def test_many_events_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert heard(monkeypatch, *[b"ours"] * 20)["read"] <= 5


def test_events_that_cannot_be_read_may_have_changed_anything(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert heard(monkeypatch, b"other", error=OSError(105, "No buffer space"))["told"] == 1
    assert "cannot read netlink events" in caplog.text
