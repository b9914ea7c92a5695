"""The egress tap while things happen to its host."""

import pytest

from csumfix_lab import Lab
from tests.lab.shim import CSUMFIX, HEALTHY, Service, checksum_errors, link, send, service, until

WITHOUT_NET_RAW = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")


def looked_at(shim: Service) -> int:
    (lane,) = shim.status()["service"]["lanes"]
    return int(sum(lane["departures"].values()))


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_without_permission_it_says_so_once_and_the_kernel_lane_works(lab: Lab) -> None:
    with service(lab.sender, prefix=WITHOUT_NET_RAW) as shim:
        shim.wait_for("warning: the egress tap sees nothing")
        errors = checksum_errors(lab)
        assert send(lab, 50, 512).whole
        assert checksum_errors(lab) == errors
        assert looked_at(shim) == 0
        shown = lab.sender.run([*CSUMFIX, "status"]).stdout
        assert "no egress tap: no permission to open packet sockets (CAP_NET_RAW)" in shown
        assert len([line for line in shim.lines() if "egress tap" in line]) == 1


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
    with service(lab.sender) as shim:
        assert send(lab, 20, 512).whole
        until(lambda: looked_at(shim) >= 20 or None, 5, lambda: str(shim.status()))
        for change in changes:
            link(lab, change)
        before = looked_at(shim)

        def sees_more() -> bool | None:
            send(lab, 5, 512)
            return looked_at(shim) > before or None

        until(sees_more, 15, lambda: str(shim.status()))


@HEALTHY
def test_it_can_be_turned_off(lab: Lab) -> None:
    with service(lab.sender, "--tap-pause=0") as shim:
        assert send(lab, 20, 512).whole
        assert looked_at(shim) == 0
