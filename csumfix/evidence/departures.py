"""Judges the outer checksum of a tunnel packet that is about to leave this host. Pure."""

from __future__ import annotations

import enum

from csumfix.core import Inner, Inspection, Outer, Status


class Departure(enum.StrEnum):
    """The state of a packet's outer checksum as it leaves."""

    RIGHT = "right"
    """Verified."""
    ZERO = "zero"
    """0, "not computed"."""
    PARTIAL = "partial"
    """Not computed yet. The device does that, or the software that segments a GSO packet."""
    WRONG = "wrong"
    """Wrong, and nothing will correct it. The inner packet is whole, or cannot prove it."""
    CORRUPT = "corrupt"
    """Wrong, over an inner packet that is damaged or whose checksum nothing will compute."""
    NOT_JUDGED = "not_judged"
    """Cut short, a fragment, no tunnel packet, or with a payload that nobody here knows."""


WHOLE = frozenset({Inner.RIGHT, Inner.UNPROVEN})


def judge(seen: Inspection, *, complete: bool) -> Departure:
    """Judge a packet at the device.

    complete: whether the kernel considers its checksums computed. If so, nothing will compute a
        checksum that looks partial.
    """
    # With an unknown payload: the device may be about to compute a checksum in there.
    unknown = seen.inner is Inner.UNKNOWN and seen.outer is Outer.WRONG
    if seen.status is not Status.OK or unknown:
        return Departure.NOT_JUDGED
    if seen.outer is Outer.RIGHT:
        return Departure.RIGHT
    if seen.outer is Outer.ZERO:
        return Departure.ZERO
    if not complete and seen.outer in (Outer.PARTIAL, Outer.LCO):
        return Departure.PARTIAL
    if seen.inner in WHOLE or (seen.inner is Inner.PARTIAL and not complete):
        return Departure.WRONG
    return Departure.CORRUPT
