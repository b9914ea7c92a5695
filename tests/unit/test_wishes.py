"""Which lane the operator wants for a port, from the settings of its devices."""

from dataclasses import replace

import pytest

from csumfix.host.tunnels import Tunnel
from csumfix.options import LaneSetting, Options, TunnelOptions
from csumfix.service.wishes import Wish, conflicts, missing, unfilled, wishes

AUTO, KERNEL, QUEUE = LaneSetting.AUTO, LaneSetting.KERNEL, LaneSetting.QUEUE
FLANNEL = Tunnel("flannel.1", 8472, "4", 1450)
SAME_PORT = replace(FLANNEL, name="vx2")
OTHER = replace(FLANNEL, name="vx3", port=4789)
ZERO = replace(FLANNEL, checksum=False)


def settings(lane: LaneSetting = AUTO, zero: str = "keep", **own: LaneSetting | None) -> Options:
    """Return settings with a table for each of these devices; flannel is called flannel.1."""
    names = {"flannel.1" if name == "flannel" else name: lane for name, lane in own.items()}
    return Options(
        lane=lane, zero=zero, tunnels={name: TunnelOptions(lane) for name, lane in names.items()}
    )


def wish(options: Options, *found: Tunnel, port: int = 8472) -> Wish:
    return wishes(options, found, {port})[port]


def test_without_tables_all_ports_want_what_is_set_for_all() -> None:
    found = wishes(settings(QUEUE), [FLANNEL, OTHER], {4789, 8472, 9999})
    assert found == dict.fromkeys((4789, 8472, 9999), Wish(QUEUE, "setting lane = queue"))


def test_a_table_is_for_the_port_of_its_device_only() -> None:
    found = wishes(settings(flannel=QUEUE), [FLANNEL, OTHER], {4789, 8472})
    assert found == {
        4789: Wish(AUTO, "setting lane = auto"),
        8472: Wish(QUEUE, "setting lane = queue for flannel.1"),
    }


def test_a_table_wins_over_what_is_set_for_all_whichever_repairs_more() -> None:
    wanted = wish(settings(QUEUE, flannel=KERNEL), FLANNEL)
    assert wanted == Wish(KERNEL, "setting lane = kernel for flannel.1")


def test_a_table_without_a_lane_changes_nothing() -> None:
    assert wish(settings(KERNEL, flannel=None), FLANNEL) == Wish(KERNEL, "setting lane = kernel")


@pytest.mark.parametrize(
    ("options", "lane", "why"),
    [
        (settings(flannel=QUEUE, vx2=KERNEL), QUEUE, "setting lane = queue for flannel.1"),
        (settings(flannel=KERNEL, vx2=QUEUE), QUEUE, "setting lane = queue for vx2"),
        (settings(flannel=KERNEL), AUTO, "setting lane = auto"),
        (settings(QUEUE, flannel=KERNEL), QUEUE, "setting lane = queue"),
        (settings(flannel=QUEUE, vx2=QUEUE), QUEUE, "setting lane = queue for flannel.1, vx2"),
        (settings(QUEUE, flannel=QUEUE), QUEUE, "setting lane = queue"),
        (settings(KERNEL, vx2=AUTO), AUTO, "setting lane = auto for vx2"),
    ],
)
def test_devices_that_share_a_port_take_the_lane_that_repairs_most(
    options: Options, lane: LaneSetting, why: str
) -> None:
    for found in ([FLANNEL, SAME_PORT], [SAME_PORT, FLANNEL]):
        wanted = wish(options, *found)
        assert wanted.lane is lane
        assert set(wanted.why.replace(",", "").split()) == set(why.replace(",", "").split())


def test_a_conflict_is_told_with_what_each_device_wants() -> None:
    found = [FLANNEL, SAME_PORT, OTHER]
    assert conflicts(settings(flannel=QUEUE, vx2=KERNEL, vx3=KERNEL), found) == [
        "port 8472 takes lane = queue, because its devices want different ones: "
        "queue flannel.1; kernel vx2"
    ]
    assert not conflicts(settings(flannel=AUTO, vx3=QUEUE), found)
    assert not conflicts(settings(), found)


def test_devices_that_are_not_here_are_named() -> None:
    (line,) = missing(settings(flannel=QUEUE, vx9=QUEUE, vx8=None), [FLANNEL])
    assert line == "the settings name devices that are not here: vx8, vx9"
    assert not missing(settings(flannel=QUEUE), [FLANNEL])


def test_a_line_about_many_devices_is_bounded() -> None:
    many = {f"v{number:014}": QUEUE for number in range(1000)}
    found = [replace(FLANNEL, name=name) for name in many]
    lines = [
        *missing(settings(**many), []),
        *conflicts(settings(**many), [FLANNEL, *found]),
        wish(settings(**many), *found).why,
    ]
    assert len(lines) == 3
    assert all(len(line) < 250 for line in lines)


@pytest.mark.parametrize(
    ("device", "fills"),
    [
        (ZERO, True),
        (FLANNEL, False),
        (replace(ZERO, family="6"), False),
        (replace(ZERO, family="6", checksum6=False), True),
        (replace(FLANNEL, checksum6=False), False),
        (replace(FLANNEL, family="both", checksum6=False), True),
        (replace(FLANNEL, metadata=True), True),
    ],
)
def test_zero_is_filled_in_the_queue_lane_where_it_can_be_sent(
    device: Tunnel, fills: bool
) -> None:
    filling = Wish(QUEUE, "setting zero = fill")
    assert (wish(settings(zero="fill"), device) == filling) is fills
    assert wish(settings(), device).lane is AUTO


def test_a_port_without_a_device_may_send_zero() -> None:
    assert wish(settings(zero="fill")) == Wish(QUEUE, "setting zero = fill")


def test_a_port_that_is_told_to_stay_in_the_kernel_lane_is_not_filled() -> None:
    assert wish(settings(KERNEL, zero="fill"), ZERO).lane is KERNEL
    assert wish(settings(zero="fill", flannel=KERNEL), ZERO).lane is KERNEL
    assert wish(settings(QUEUE, zero="fill"), ZERO) == Wish(QUEUE, "setting lane = queue")


def test_a_port_that_keeps_zero_though_it_is_to_be_filled_is_told() -> None:
    (line,) = unfilled(settings(zero="fill", flannel=KERNEL), [ZERO, OTHER])
    assert line.startswith("port 8472 keeps outer checksums of 0")
    assert line.endswith(": setting lane = kernel for flannel.1")
    assert not unfilled(settings(zero="fill", flannel=KERNEL), [FLANNEL])
    assert not unfilled(settings(zero="fill"), [ZERO])
    assert not unfilled(settings(KERNEL), [ZERO])
