"""What ``csumfix status`` says, in which order, and that it fits into 80 columns."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from csumfix.core import REASONS
from csumfix.host.queues import KernelQueue
from csumfix.host.rules import LoadedRule
from csumfix.service.lanes import Lane
from csumfix.service.snapshot import NO_COUNTS, ReloadSnapshot, Snapshot
from csumfix.views import status
from csumfix.views.status import HostState, headlines
from tests.unit.snapshots import lane, queue, snapshot, tunnel

QUIET = lane(departures={"right": 73}, repaired=0)
FILL = LoadedRule("4", "kernel", "fill-8472", 5, 500, "-j CHECKSUM --checksum-fill")


def state(service: Snapshot | None = None, **changes: Any) -> HostState:
    own: dict[str, Any] = {
        "tunnels": [tunnel()],
        "rules": [FILL],
        "rules_known": True,
        "queues": [KernelQueue(0, 4711, 0, 2, 65531, 0, 0, 0)],
        "service": service,
        "silent": False,
        "trouble": [],
    }
    return HostState(**{**own, **changes})


def healthy(**changes: Any) -> Snapshot:
    own: dict[str, Any] = {"lanes": (QUIET,), "queues": {0: NO_COUNTS}}
    return snapshot(**{**own, **changes})


def shown(seen: HostState, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    status.show(
        seen, Console(file=stream, width=80, force_terminal=terminal, legacy_windows=False)
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    ("seen", "first"),
    [
        (
            state(healthy()),
            "all is well: 1 tunnel port, 1 in the kernel lane, 0 in the queue lane",
        ),
        (
            state(healthy(lanes=(QUIET, lane(port=4789, lane="queue")))),
            "all is well: 2 tunnel ports, 1 in the kernel lane, 1 in the queue lane",
        ),
        (state(healthy(lanes=())), "all is well: no tunnel yet; csumfix waits for one"),
        (
            state(healthy(trouble="queue 0 stands still with 3 packets in it")),
            "trouble: queue 0 stands still with 3 packets in it: run 'csumfix restart'",
        ),
        (state(healthy(rules=None)), "trouble: the rules are not loaded: see the service's log"),
        (
            state(healthy(reload=ReloadSnapshot(ok=False))),
            "warning: the last reload failed, the old settings are in force: see the log",
        ),
        (
            state(healthy(lanes=(lane(wrong_seconds=3.2),))),
            "warning: a packet left with a wrong checksum 3 s ago: see 'csumfix trace --bad-only'",
        ),
        (
            state(healthy(lanes=(lane(wrong_seconds=3.2, why="setting lane = kernel for vx"),))),
            "warning: a packet left with a wrong checksum 3 s ago: set lane = auto",
        ),
        (
            state(
                healthy(lanes=(lane(wrong_seconds=3.2, seconds=3.0),))
            ),  # it is why it went there
            "all is well: 1 tunnel port, 1 in the kernel lane, 0 in the queue lane",
        ),
        (
            state(healthy(lanes=(lane(wrong_seconds=3600.0, seconds=7200.0),))),
            "all is well: 1 tunnel port, 1 in the kernel lane, 0 in the queue lane",
        ),
        (
            state(healthy(lanes=(lane(probe_lost=True, probe_why="all lost"),))),
            "warning: the kernel lane does not cure port 8472: run 'csumfix doctor': all lost",
        ),
        (
            state(healthy(probe_fault="no packet sockets")),
            "warning: no probes, so a NIC that lies is not noticed: no packet sockets: set probe "
            "= off if that is meant to be so",
        ),
        (
            state(),
            "no service runs here; the kernel lane's rules are loaded and work without it",
        ),
        (
            state(rules=[]),
            "csumfix does not run in this network namespace: start it with 'csumfix run'",
        ),
        (
            state(silent=True, trouble=["csumfix runs, but does not answer"]),
            "trouble: csumfix runs, but does not answer",
        ),
    ],
)
def test_the_first_line_says_whether_all_is_well_and_what_to_do(
    seen: HostState, first: str
) -> None:
    assert shown(seen).splitlines()[0] == first


def test_the_worst_comes_first_and_nothing_is_left_out() -> None:
    seen = healthy(
        trouble="queue 0 stands still", reload=ReloadSnapshot(ok=False), tap_fault="no permission"
    )
    texts = [headline.text for headline in headlines(state(seen))]
    assert [text.split()[0] for text in texts] == ["trouble:", "warning:", "warning:"]


def everything() -> HostState:
    big = {str(reason): 10**12 for reason in REASONS}
    ports = tuple(
        lane(
            port=port,
            lane="queue",
            leaving_queue=bool(port % 2),
            seconds=86400.0 * 999,
            why="a packet from port 50362 to 65535, VNI 16777215, left fifteen-letters with its "
            "outer checksum off by 65534",
            kernel_packets=10**12,
            repaired=10**12,
            departures={"wrong": 10**6, "right": 10**9},
        )
        for port in range(60_000, 60_003)
    )
    return state(
        snapshot(
            lanes=ports,
            queues={number: queue(reasons=big) for number in range(65_530, 65_533)},
            kernel_fault="the kernel lane's rules were refused",
            backend="nft",
            backend_why="iptables cannot load the rules (CHECKSUM: no such target)",
        ),
        tunnels=[tunnel("fifteen-letters", vni=2**24 - 1, port=65535, mtu=65535)] * 3,
        rules=[replace(FILL, role="fill-65535", packets=10**12)],
        queues=[KernelQueue(65_535, 4711, 65_536, 2, 65531, 10**9, 10**9, 0)],
    )


def test_nft_is_named_with_the_reason() -> None:
    text = shown(state(snapshot(backend="nft", backend_why="iptables is not installed")))
    assert (
        "nft loads the rules, because iptables is not installed: "
        "the kernel lane queues the flows that NAT touches\n" in text
    )
    assert "nft" not in shown(state(snapshot(backend="iptables")))


def test_everything_fits_into_80_columns_of_a_terminal() -> None:
    text = shown(everything(), terminal=True)
    lines = [_without_escapes(line) for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "..." not in text
    assert "…" not in text, "something was cut off"


def _without_escapes(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def test_a_program_gets_whole_lines_without_colour() -> None:
    text = shown(everything())
    assert "\x1b" not in text
    assert any("off by 65534" in line and "port 60000 is in" in line for line in text.splitlines())


def test_a_verdict_has_a_colour_on_a_terminal() -> None:
    assert shown(state(healthy()), terminal=True).startswith("\x1b[32mall is well")
    assert shown(state(healthy(rules=None)), terminal=True).startswith("\x1b[1;31mtrouble")


def test_no_netlink_port_is_shown() -> None:
    queues = [KernelQueue(0, 987_654_321, 0, 2, 65531, 0, 0, 0)]
    assert "987654321" not in shown(state(healthy(), queues=queues))


def test_notes_about_the_settings_are_shown() -> None:
    note = "the settings name devices that are not here: vx9"
    assert note in shown(state(healthy(settings_notes=(note,)))).splitlines()


def test_more_queues_than_columns_are_added_up() -> None:
    text = shown(state(healthy(queues={n: queue() for n in range(5)})))
    assert ["all", "500"] in [line.split() for line in text.splitlines()]


def test_a_service_of_another_version_is_told() -> None:
    assert "version 9.8.7 (this command is " in shown(state(healthy()))


def test_it_says_since_when_it_counts() -> None:
    text = shown(state(healthy()))
    assert "\nall counters since 2023-11-1" in text
    assert "when this process started" in text


def test_a_thousand_ports_are_counted_though_not_listed() -> None:
    ports = tuple(replace(QUIET, port=port) for port in range(1, 3001))
    seen = healthy(lanes=(*ports, replace(QUIET, port=4000, lane=str(Lane.QUEUE)))).bounded()
    text = shown(state(seen))
    first = text.splitlines()[0]
    assert first == "all is well: 3001 tunnel ports, 3000 in the kernel lane, 1 in the queue lane"
    assert "and 2961 more" in text
    assert any(line.split()[:2] == ["4000", "queue"] for line in text.splitlines())
    assert len(text.splitlines()) < 100
