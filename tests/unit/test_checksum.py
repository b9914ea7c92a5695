"""The Internet checksum against scapy's."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from csumfix import core
from tests.packets import reproducible

IMPLEMENTATIONS = [core.checksum, core.checksum_portable]
Checksum = Callable[[bytes], int]


@pytest.mark.parametrize("checksum", IMPLEMENTATIONS)
@given(st.binary(max_size=1500))
@reproducible
def test_same_as_scapy(checksum: Checksum, data: bytes) -> None:
    assert checksum(data) == scapy_checksum(data) ^ 0xFFFF


@pytest.mark.parametrize("checksum", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"\0" * 9, 0),
        (b"\x12", 0x1200),
        (b"\xff\xff", 0xFFFF),
        (b"\xff\xff\0\1", 1),
        (bytes.fromhex("0001f203f4f5f6f7"), 0xDDF2),  # RFC 1071, section 3
        (b"\xff" * 65536, 0xFFFF),
        (b"\xff" * 65535, 0xFF00),
    ],
)
def test_known_values(checksum: Checksum, data: bytes, expected: int) -> None:
    assert checksum(data) == expected


def test_backend_has_a_name() -> None:
    assert core.checksum_backend() in {"avx512", "avx2", "portable"}
