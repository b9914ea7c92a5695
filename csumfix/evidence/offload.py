"""Whether checksums that are left to offload arrive at the other ends of tunnels. Pure.

This is what the service asks every so often (service/probing.py). The doctor asks much more; see
conclusions.py. The question is put in pairs: a control, whose inner checksum is complete, and the
same with its inner checksum left to offload. If the control is answered and the other is not, then
the NIC does not compute checksums that it offers to compute, or something on the path needs them
earlier.

There are two questions, because the kernel lane completes single packets (all of them on a host
without conntrack) and leaves GSO packets alone. Packets of one question are lost or answered
whatever becomes of the other. The controls of a question are tried one after the other, each only
if the one before is not answered:

==========  ==========  ================  =====================================================
question    control     left to offload   it is tried if
==========  ==========  ================  =====================================================
single      SYN         SYN_OFFLOADED     always
single      PING        PING_OFFLOADED    SYN packets are not answered: a firewall can drop them
single      PING_OUTER  PING_OFFLOADED    pings are not answered either: with the outer checksum
                                          on, a NIC that lies ruins pings as well
GSO         DATA        GSO               always
==========  ==========  ================  =====================================================

A healthy remote end gets some ten packets, and one that answers nothing 9 of each control. One to
which packets are lost gets some 10 controls and 15 others to either question.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from csumfix.evidence.outcomes import Extent, Kind, KindOutcome, Outcomes

SURE = 12
"""Packets without a single answer that are not lost by chance. On a path that loses 20 % each way,
this happens to one round in 200,000 (0.36 ** 12)."""

CONFIRMED = 2
"""Answers to the control that show that it gets through."""

CONTROLS, CLOSING = 8, 5
"""Packets of a control at most: at first, and after those that were left to offload. Here and in
MOST, the first packet of each flow comes in addition: it does not count (Outcome.sent)."""

MOST = 25
"""Packets left to offload at most."""

FLOWS = {Kind.SYN_OFFLOADED: 2, Kind.GSO: 2}
"""Flows of packets left to offload, so that one bad path of several does not lose all."""

Pair = tuple[Kind, Kind]
"""A control, and what is left to offload."""

SINGLE: Sequence[Pair] = (
    (Kind.SYN, Kind.SYN_OFFLOADED),
    (Kind.PING, Kind.PING_OFFLOADED),
    (Kind.PING_OUTER, Kind.PING_OFFLOADED),
)
SUPER: Sequence[Pair] = ((Kind.DATA, Kind.GSO),)
QUESTIONS = (SINGLE, SUPER)
"""Pairs in the order in which they are tried."""

LEFT = frozenset(kind for pairs in QUESTIONS for _, kind in pairs)
"""What is left to offload."""

PATIENCE = 3
"""Rounds without an answer until the next control is tried."""


class Offload(enum.Enum):
    """What became of packets whose checksum was left to offload."""

    LOST = enum.auto()
    ANSWERED = enum.auto()
    UNKNOWN = enum.auto()


def judge(outcomes: Outcomes) -> Offload:
    """Judge what came of the probes to one remote end."""
    verdicts = {_answer(outcomes, pairs) for pairs in QUESTIONS}
    if Offload.LOST in verdicts:
        return Offload.LOST
    return Offload.ANSWERED if Offload.ANSWERED in verdicts else Offload.UNKNOWN


def _answer(outcomes: Outcomes, pairs: Sequence[Pair]) -> Offload:
    """Answer one question."""
    if any(outcomes.get(kind, KindOutcome()).answered for _, kind in pairs):
        return Offload.ANSWERED
    if any(_is_lost(outcomes, *pair) for pair in pairs):
        return Offload.LOST
    return Offload.UNKNOWN


def _is_lost(outcomes: Outcomes, control: Kind, kind: Kind) -> bool:
    """Tell whether enough packets were lost between two that were answered.

    Packets of which the control was not answered later prove nothing: the path may have failed.
    """
    answered = outcomes.get(control, KindOutcome()).answered_at
    if len(answered) < CONFIRMED:
        return False
    first, last = min(answered), max(answered)
    sent = outcomes.get(kind, KindOutcome()).sent_at
    return sum(first <= at <= last for at in sent) >= SURE


def is_decided(outcomes: Outcomes) -> bool:
    """Tell whether nothing more need be sent."""
    verdicts = {_answer(outcomes, pairs) for pairs in QUESTIONS}
    return Offload.LOST in verdicts or Offload.UNKNOWN not in verdicts


def wanted(outcomes: Outcomes, number: int) -> Collection[Kind]:
    """Return the kinds of which a packet should be sent in the round of this number."""
    if is_decided(outcomes):
        return ()
    return {kind for pairs in QUESTIONS for kind in _wanted(outcomes, pairs, number)}


def _wanted(outcomes: Outcomes, pairs: Sequence[Pair], number: int) -> Iterator[Kind]:
    if _answer(outcomes, pairs) is not Offload.UNKNOWN:
        return
    for place, (control, kind) in enumerate(pairs):
        if number < place * PATIENCE:
            return
        asked = outcomes.get(control, KindOutcome())
        offloaded = outcomes.get(kind, KindOutcome())
        most = CONTROLS + (CLOSING if asked.answered else 0)
        if asked.sent < most and (asked.answered < CONFIRMED or offloaded.sent >= SURE):
            yield control
        if asked.answered:
            if offloaded.sent < MOST:
                yield kind
            return


def words(outcomes: Outcomes) -> str:
    """Say of a remote end to which packets are lost what was sent and answered."""
    pairs = next(one for one in QUESTIONS if _answer(outcomes, one) is Offload.LOST)
    control, kind = next(pair for pair in pairs if _is_lost(outcomes, *pair))
    lost, asked = outcomes[kind], outcomes[control]
    what = "GSO probes" if kind is Kind.GSO else "probes"
    return (
        f"{lost.sent} of {lost.sent} {what} whose checksum was left to the NIC were lost, "
        f"{asked.answered} of {asked.sent} with a complete one were answered"
    )


class Counts(NamedTuple):
    """Packets of a round that count: sent and answered, by how their checksum was sent."""

    complete_sent: int = 0
    complete_answered: int = 0
    offloaded_sent: int = 0
    offloaded_answered: int = 0

    def __add__(self, other: object) -> Counts:
        """Add two counts."""
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def count(outcomes: Outcomes) -> Counts:
    """Count the packets to one remote end."""
    offloaded = [one for kind, one in outcomes.items() if kind in LEFT]
    others = [one for kind, one in outcomes.items() if kind not in LEFT]
    return Counts(
        *(sum(one.sent for one in others), sum(one.answered for one in others)),
        *(sum(one.sent for one in offloaded), sum(one.answered for one in offloaded)),
    )


def extent(*, watch: bool) -> Extent:
    """Return how much the service asks; watch: whether answers that arrive wrong count, too."""
    kinds = frozenset(kind for pairs in QUESTIONS for pair in pairs for kind in pair)
    return Extent(kinds, FLOWS, watch, wanted, is_decided)
