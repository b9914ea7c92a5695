"""repair() with scapy as the oracle: what comes back is exactly what scapy would have sent."""

from __future__ import annotations

import enum
import struct
from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from csumfix import core
from tests.packets import (
    CHECK_OFFSET,
    GENEVE_PORT,
    PORT,
    Shape,
    Transport,
    build,
    expected_check,
    partial_check,
    proven_shapes,
    reproducible,
    shapes,
)

POLICY = core.Policy(ports=(PORT, GENEVE_PORT), geneve=(GENEVE_PORT,))
FILL = core.Policy(ports=(PORT, GENEVE_PORT), geneve=(GENEVE_PORT,), fill_zero=True)

BIG = Shape(payload=bytes(range(250)) * 32)  # a jumbo frame's worth


def untouched(packet: bytes, reason: str, policy: core.Policy = FILL) -> None:
    assert core.repair(packet, policy) == core.Repair(reason, packet)


@given(shapes)
@example(BIG)
@reproducible
def test_right_packet_is_untouched(shape: Shape) -> None:
    untouched(build(shape).data, "right")


@given(shapes, st.integers(1, 0xFFFF), st.binary(max_size=8))
@example(BIG, 1, b"")
@reproducible
def test_wrong_checksum_becomes_scapys(shape: Shape, wrong: int, trailing: bytes) -> None:
    right = build(shape)
    assume(wrong != right.check)
    reason = "recomputed" if shape.proven else "recomputed_unproven"
    got = core.repair(right.with_check(wrong) + trailing, POLICY)
    assert got == core.Repair(reason, right.data + trailing)
    untouched(got.packet, "right")


@given(proven_shapes, st.integers(1, 0xFFFF), st.integers(1, 250))
@reproducible
def test_checksum_left_behind_by_nat(shape: Shape, new_port: int, new_host: int) -> None:
    """What the bug makes: address and port rewritten, the checksum as it was before."""
    before = build(shape)
    right = build(replace(shape, source_port=new_port, host=new_host))
    reason = "right" if before.check == right.check else "recomputed"
    got = core.repair(right.with_check(before.check), POLICY)
    assert got == core.Repair(reason, right.data)


@given(proven_shapes, st.integers(1, 0xFFFF), st.data())
@example(BIG, 1, None)
@reproducible
def test_corrupt_inner_packet_is_never_vouched_for(
    shape: Shape, wrong: int, data: st.DataObject | None
) -> None:
    right = build(shape)
    covered = range(right.inner_l4, right.inner_end)
    at = data.draw(st.sampled_from(covered)) if data else covered[-1]
    bit = data.draw(st.integers(0, 7)) if data else 0
    # UDP's length field makes it malformed instead, and a checksum of 0 means that there is none.
    assume(shape.transport is not Transport.UDP or at - right.inner_l4 not in range(4, 8))
    corrupt = right.with_bytes(at, bytes([right.data[at] ^ 1 << bit]))
    packet = corrupt.with_check(wrong)
    assume(wrong != expected_check(corrupt))
    untouched(packet, "inner_corrupt")
    untouched(corrupt.with_check(0), "inner_corrupt", FILL)
    untouched(corrupt.with_check(0), "zero_kept", POLICY)


@given(shapes.filter(lambda s: s.transport is not Transport.NO_IP and s.inner_version == 4))
@reproducible
def test_corrupt_inner_ipv4_header(shape: Shape) -> None:
    right = build(shape)
    ttl = right.inner_ip + 8
    corrupt = right.with_bytes(ttl, bytes([right.data[ttl] ^ 1]))
    untouched(corrupt.with_check(right.check ^ 0x5555 or 1), "inner_corrupt")


@given(proven_shapes)
@reproducible
def test_partial_inner_checksum(shape: Shape) -> None:
    """CHECKSUM_PARTIAL: the field holds the folded sum of the pseudo-header."""
    assume(shape.transport is not Transport.ICMP or shape.inner_version == 6)
    right = build(shape)
    at = right.inner_l4 + CHECK_OFFSET[shape.transport]
    partial = right.with_bytes(at, struct.pack("!H", partial_check(right, shape)))
    packet = partial.with_check(expected_check(partial) ^ 0x5555 or 1)
    untouched(packet, "inner_partial")
    assert core.inspect(packet, POLICY).inner is core.Inner.PARTIAL


@given(shapes)
@reproducible
def test_zero_is_kept_or_filled(shape: Shape) -> None:
    right = build(shape)
    untouched(right.with_check(0), "zero_kept", POLICY)
    assert core.repair(right.with_check(0), FILL) == core.Repair("zero_filled", right.data)


@given(shapes.filter(lambda s: not s.proven), st.integers(1, 0xFFFE))
@reproducible
def test_computed_zero_is_sent_as_all_ones(shape: Shape, wrong: int) -> None:
    """Two bytes of the right value, at an even offset that no inner checksum covers, do it."""
    # An inner UDP packet without checksum is covered by the outer one alone, as is its padding.
    padded = replace(shape, payload=b"", padding=bytes(4))
    start = build(padded)
    at = start.inner_end + (start.inner_end - start.udp) % 2
    right = build(replace(padded, padding=_at(at - start.inner_end, start.check)))
    assert right.check == 0xFFFF
    untouched(right.data, "right")
    assert core.repair(right.with_check(0), FILL) == core.Repair("zero_filled", right.data)
    repaired = core.repair(right.with_check(wrong), POLICY)
    assert repaired == core.Repair("recomputed_unproven", right.data)


def _at(offset: int, value: int) -> bytes:
    return (bytes(offset) + struct.pack("!H", value)).ljust(4, b"\0")


@given(st.lists(st.integers(0, 0xFFFF), max_size=100), st.integers(1, 0xFFFF))
@reproducible
def test_only_the_ports_of_the_policy(ports: list[int], port: int) -> None:
    right = build(Shape(port=port))
    wrong = right.with_check(right.check ^ 0x5555 or 1)
    got = core.repair(wrong, core.Policy(ports=tuple(ports)))
    if not ports or port in ports:
        assert got == core.Repair("recomputed", right.data)
    else:
        assert got == core.Repair("other_port", wrong)


@pytest.mark.parametrize("ports", [(65536,), (-1,), (*range(100), 65536)])
def test_impossible_ports(ports: tuple[int, ...]) -> None:
    with pytest.raises(OverflowError):
        core.repair(b"", core.Policy(ports=ports))


@given(shapes)
@reproducible
def test_what_the_kernel_says(shape: Shape) -> None:
    right = build(shape)
    packet = right.with_check(right.check ^ 0x5555 or 1)
    longer = core.repair(packet, wirelen=len(packet) + 1)
    assert longer == core.Repair("truncated", packet)
    assert core.repair(packet, partial=True) == core.Repair("partial", packet)
    assert core.repair(packet, replaceable=False) == core.Repair("no_headroom", packet)


@given(shapes, st.data())
@reproducible
def test_packet_that_ends_early_is_untouched(shape: Shape, data: st.DataObject) -> None:
    right = build(shape)
    cut = data.draw(st.integers(0, len(right.data) - 1))
    untouched(right.with_check(1)[:cut], "malformed_ip" if cut else "not_ip")


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x45")
@example(b"\x60" + bytes(39))
@reproducible
def test_random_bytes(data: bytes) -> None:
    got = core.repair(data, core.Policy(fill_zero=True))
    assert got.replaced or got.packet == data


@given(shapes, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6))
@reproducible
def test_mutated_packets(shape: Shape, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(build(shape).data)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    packet = bytes(mutated)
    got = core.repair(packet, FILL)
    if not got.replaced:
        assert got.packet == packet
        return
    changed = [at for at, byte in enumerate(got.packet) if byte != packet[at]]
    assert len(got.packet) == len(packet)
    assert changed
    assert changed[-1] - changed[0] <= 1
    untouched(got.packet, "right")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("size", [0, 1, 64, 1400, 1500, 8000])
def test_every_transport_and_size(version: int, transport: Transport, size: int) -> None:
    shape = Shape(
        version=version, inner_version=version, transport=transport, payload=b"\xa5" * size
    )
    right = build(shape)
    untouched(right.data, "right")
    assert core.repair(right.with_check(right.check ^ 1 or 2)).packet == right.data


def test_any_number_of_ports() -> None:
    right = build(Shape())
    wrong = right.with_check(right.check ^ 0x5555 or 1)
    others = tuple(port for port in range(1, 65536) if port != PORT)
    assert core.repair(wrong, core.Policy(others)) == core.Repair("other_port", wrong)
    everything = core.Policy((*others, PORT))
    assert core.repair(wrong, everything) == core.Repair("recomputed", right.data)


def test_a_constant_of_c_that_python_does_not_know_fails_the_import() -> None:
    class Partly(enum.Enum):
        VERIFIED = 0

    with pytest.raises(ImportError, match="REPAIR_FILLED"):
        core._complete("repair_outcome", "REPAIR_OUTCOMES")(Partly)
    core._complete("repair_outcome", "REPAIR_OUTCOMES")(core.Outcome)


def test_what_each_reason_means() -> None:
    """For those that something hangs on, once more in words."""
    assert {"recomputed", "recomputed_unproven", "zero_filled"} == core.WRITTEN
    assert {
        f"inner_{one}" for one in ("corrupt", "partial", "malformed", "unknown")
    } == core.LEFT_WRONG
    assert core.OUTCOMES["right"] is core.Outcome.VERIFIED
    assert core.OUTCOMES["zero_filled"] is core.Outcome.FILLED


def test_reasons() -> None:
    assert len(set(core.REASONS)) == len(core.REASONS)
    assert set(core.REASONS) > core.WRITTEN
    for reason in core.REASONS:
        assert core.Repair(reason, b"").replaced == (reason in core.WRITTEN)
    assert set(core.OUTCOMES.values()) == set(core.Outcome)
