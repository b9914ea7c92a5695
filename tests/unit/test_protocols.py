"""What tunnel ports carry."""

from csumfix.host.tunnels import Tunnel, protocols
from csumfix.options import Options
from csumfix.protocols import known, named

VXLAN = Tunnel("vxlan0", 7000, "4", 1450)
GENEVE = Tunnel("geneve0", 7000, "4", 1450, protocol="geneve")


def test_a_number_tells_what_a_well_known_port_carries() -> None:
    assert named((4789, 6081, 7000)) == {4789: "vxlan", 6081: "geneve", 7000: "vxlan"}
    assert named((7000,), (7000, 7001)) == {7000: "geneve", 7001: "geneve"}


def test_settings_name_ports_of_either_kind() -> None:
    options = Options(ports=(6081, 7000), geneve_ports=(7001,))
    assert options.protocols == {6081: "geneve", 7000: "vxlan", 7001: "geneve"}


def test_a_device_knows_better_than_a_number() -> None:
    assert protocols([GENEVE], {7000: "vxlan", 8472: "vxlan"}) == {7000: "geneve", 8472: "vxlan"}
    on_6081 = Tunnel("vxlan1", 6081, "4", 1450)
    assert protocols([on_6081], named((6081,))) == {6081: "vxlan"}


def test_a_port_that_two_kinds_of_devices_have_is_unknown() -> None:
    assert protocols([VXLAN, GENEVE], {7000: "vxlan"}) == {}
    assert known({}, [(7000, "geneve"), (7000, "geneve")]) == {7000: "geneve"}
