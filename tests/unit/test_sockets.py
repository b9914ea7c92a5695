"""Tables of UDP sockets, as Linux 6.18 shows them."""

from pathlib import Path

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.host import sockets
from tests.unit.fakes import FLANNEL

HEAD = (
    "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout"
    " inode ref pointer drops            \n"
)
END = " 00000000:00000000 00:00000000 00000000     0        0 6932372 2 000000002ad880bd 0\n"
GENEVE = " 1361: 00000000:17C1 00000000:0000 07" + END
VXLAN = " 1360: 00000000:12B5 00000000:0000 07" + END
BOUND = "  531: 010200C0:2118 00000000:0000 07" + END
CLIENT = " 1361: 0100007F:12B5 0100007F:0035 01" + END
OTHER = "13954: 00000000:03E7 00000000:0000 07" + END
SIX = "  531: 00000000000000000000000000000000:2118 00000000000000000000000000000000:0000 07" + END


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], set()),
        ([VXLAN], {4789}),
        ([BOUND, VXLAN], {4789, 8472}),
        ([SIX], {8472}),
        ([GENEVE], {6081}),
        ([CLIENT], set()),  # connected: a tunnel's socket has no peer
        ([OTHER], set()),  # nothing tells a tunnel's socket from another
    ],
)
def test_ports_in_a_table(lines: list[str], found: set[int]) -> None:
    assert sockets.parse(HEAD + "".join(lines)) == found


def test_a_host_without_ipv6_and_a_port_that_a_device_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "udp").write_text(HEAD + BOUND + VXLAN)
    monkeypatch.setattr(sockets, "TABLES", (tmp_path / "udp", tmp_path / "udp6"))
    assert sockets.hidden_ports([FLANNEL]) == {4789}


def test_a_table_that_cannot_be_read_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sockets, "TABLES", (tmp_path,))
    with pytest.raises(CsumfixError, match="Is a directory") as caught:
        sockets.socket_ports()
    assert caught.value.code is Exit.KERNEL
