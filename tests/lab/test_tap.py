"""The egress tap while things happen to its host."""

import time

import pytest

from csumfix_lab import Lab
from tests.lab.harness import (
    CSUMFIX,
    HEALTHY,
    SILENT,
    Service,
    checksum_errors,
    link,
    send,
    service,
    until,
)
from tests.lab.tunnel import UNBOUND, rebuild

WITHOUT_NET_RAW = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")


def looked_at(daemon: Service) -> int:
    (lane,) = daemon.status()["service"]["lanes"]
    return int(sum(lane["departures"].values()))


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_without_permission_it_says_so_once_and_the_kernel_lane_works(lab: Lab) -> None:
    with service(lab.sender, prefix=WITHOUT_NET_RAW) as daemon:
        daemon.wait_for("warning: the egress tap cannot see what leaves")
        errors = checksum_errors(lab)
        assert send(lab, 50, 512).whole
        assert checksum_errors(lab) == errors
        assert looked_at(daemon) == 0
        shown = lab.sender.run([*CSUMFIX, "status"]).stdout
        reason = "no permission to open packet sockets (CAP_NET_RAW)"
        assert f"no egress tap, so lanes stay as they are: {reason}" in shown
        assert len([line for line in daemon.lines() if "egress tap" in line]) == 1


@HEALTHY
@pytest.mark.parametrize(
    "changes",
    [
        ("set eth0 down", "set eth0 up"),
        ("set eth0 down", "set eth0 name wan0", "set wan0 up"),
    ],
    ids=["down and up", "renamed"],
)
def test_it_goes_on_looking_when_the_underlay_comes_back(
    lab: Lab, changes: tuple[str, ...]
) -> None:
    with service(lab.sender) as daemon:
        assert send(lab, 20, 512).whole
        until(lambda: looked_at(daemon) >= 20 or None, 5, lambda: str(daemon.status()))
        for change in changes:
            link(lab, change)
        before = looked_at(daemon)

        def sees_more() -> bool | None:
            send(lab, 5, 512)
            return looked_at(daemon) > before or None

        until(sees_more, 15, lambda: str(daemon.status()))


BRIDGE = """
ip link add under0 type bridge
ip link set eth0 master under0
ip link set under0 up
ip addr flush dev eth0
ip addr add 192.0.2.1/24 dev under0
ip addr add 2001:db8::1/64 dev under0 nodad
"""


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("bound", [False, True], ids=["by the route", "bound"])
def test_it_sees_a_bridge_that_carries_the_tunnel(ipv6: bool, bound: bool) -> None:
    with Lab("stateless", ipv6=ipv6) as lab:
        lab.sender.run(["sh", "-eu"], input=BRIDGE)
        checksum = "noudp6zerocsumtx" if ipv6 else UNBOUND
        rebuild(lab, f"{checksum} dev under0" if bound else checksum)
        with service(lab.sender) as daemon:
            send(lab, 5, 64)
            assert " left under0 " in daemon.wait_for("warning: port 8472: now in the queue lane")
            assert send(lab, 20, 512).whole


@pytest.mark.parametrize("lab", ["stateless"], indirect=True)
def test_an_underlay_may_go_while_it_is_watched(lab: Lab) -> None:
    rebuild(lab, UNBOUND)
    link(lab, "add under0 link eth0 type macvlan mode bridge")
    link(lab, "set under0 up")
    route = "ip route add 192.0.2.200/32 dev under0 src 192.0.2.1"
    lab.sender.run(route.split())
    with service(lab.sender, SILENT) as daemon:
        time.sleep(1.5)
        link(lab, "del under0")  # and its route; that by eth0 remains
        time.sleep(1.5)
        send(lab, 5, 64)
        assert " left eth0 " in daemon.wait_for("warning: port 8472: now in the queue lane")
        assert send(lab, 20, 512).whole


@HEALTHY
def test_it_can_be_turned_off(lab: Lab) -> None:
    with service(lab.sender, "--tap-pause=0") as daemon:
        assert send(lab, 20, 512).whole
        assert looked_at(daemon) == 0
