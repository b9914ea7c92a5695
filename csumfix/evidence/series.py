"""Counts the probes of one kind to one remote end, and says how many of them are enough."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from csumfix.evidence.departures import Departure
from csumfix.evidence.outcomes import MARKS, SOCKETS, Kind, KindOutcome

PINGS, ON_THE_WAY = 20, 2
"""Pings that are sent in any case: they show how many packets the path loses. If answers are
missing, but for those to the last two, the pings go on for as long as the probes may."""

ENOUGH, ENOUGH_MARKED = 2, 4
"""Answers after which no more packets of a kind are sent. Each marked packet is a flow of its own,
and a few of them show whether NAT gives them new outer ports."""

ENOUGH_WRONG = 6
"""Packets that left with a wrong outer checksum, after which no more of a kind are sent."""

LOST_FLOW = 10
"""Packets of a flow that do not go unanswered by chance."""


@dataclass
class Series:
    """The packets of one kind to one remote end."""

    kind: Kind
    remote: bytes
    outcome: KindOutcome
    flows: list[int]
    sent: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """By token: the flow, and whether the packet counts."""
    answers: set[int] = field(default_factory=set)
    began: set[int] = field(default_factory=set)
    at: dict[int, float] = field(default_factory=dict)
    """When each packet was sent, by its token."""
    next: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether no more packets need be sent."""
        if self.outcome.fault or self.outcome.left[Departure.WRONG] >= ENOUGH_WRONG:
            return True
        if self.kind is Kind.PING and not self._is_path_known:
            return False
        counted = Counter(
            flow for flow, counts in map(self.sent.__getitem__, self.answers) if counts
        )
        if len(self.flows) > 1:
            return all(counted[flow] for flow in self.flows)
        return counted.total() >= (ENOUGH_MARKED if self.kind in MARKS else ENOUGH)

    @property
    def _is_path_known(self) -> bool:
        """Whether enough pings were answered to say that the path loses none."""
        due = list(self.sent)[:-ON_THE_WAY]
        return len(self.sent) >= PINGS and self.answers.issuperset(due)

    @property
    def is_answered(self) -> bool:
        """Whether nothing more need be waited for: of pings every answer counts."""
        is_whole = self.kind is not Kind.PING or len(self.answers) == len(self.sent)
        return self.is_settled and (is_whole or bool(self.outcome.fault))

    def lost_flows(self) -> int:
        """Return how many flows have no answer that counts."""
        sent = Counter(flow for flow, counts in self.sent.values() if counts)
        alive = {self.sent[token][0] for token in self.answers if self.sent[token][1]}
        return sum(number >= LOST_FLOW for flow, number in sent.items() if flow not in alive)

    def draw(self) -> tuple[int, int]:
        """Return the flow and the token of the next packet."""
        flow = self.flows[self.next % len(self.flows)]
        token = random.getrandbits(16)
        while token in self.sent:
            token = random.getrandbits(16)
        self.next += 1
        return flow, token

    def note(self, flow: int, token: int) -> None:
        """A packet has been sent."""
        counts = flow in self.began or self.kind in SOCKETS
        self.began.add(flow)
        self.sent[token] = (flow, counts)
        self.at[token] = time.monotonic()
        self.outcome.sent += counts
        if counts:
            self.outcome.sent_at.append(self.at[token])

    def take(self, token: int) -> bool:
        """An answer came; tell whether it answers a packet of ours that counts."""
        if token not in self.sent:
            return False
        counts = self.sent[token][1]
        if token not in self.answers:
            self.answers.add(token)
            self.outcome.answered += counts
            if counts:
                self.outcome.answered_at.append(self.at[token])
        return counts
