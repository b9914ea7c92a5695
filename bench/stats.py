"""Pure arithmetic: makes cells with medians and paired ratios from the samples of all rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

BASELINE = "ethtool-off"
CEILING = "none"


@dataclass(frozen=True)
class Sample:
    """The result of one load under one cure in one round.

    value: in the load's unit; None if the traffic did not arrive.
    cpu_us: microseconds of all cores per delivered packet, MB or answered request.
    loss: share of the sent traffic that did not arrive, 0 to 1; None if the load does not count
    it.
    p99, p999: microseconds, of latency loads, whose value is the p50.
    out_of_order: packets per second that arrived after a later packet of their flow.
    retransmitted: TCP segments per second that were retransmitted.
    The last two are None if the load does not count them.
    """

    value: float | None
    cpu_us: float | None = None
    loss: float | None = None
    p99: float | None = None
    p999: float | None = None
    out_of_order: float | None = None
    retransmitted: float | None = None

    @property
    def cures(self) -> bool:
        """Whether the traffic arrived."""
        return self.value is not None


@dataclass(frozen=True, order=True)
class Key:
    """Identifies the cell to which a sample belongs."""

    cause: str
    load: str
    cure: str


Round = Mapping[Key, Sample]
Series = list[float | None]
"""One number per round; None where nothing was measured or nothing arrived."""


@dataclass
class Cell:
    """All rounds of one load under one cure, as in the JSON file."""

    cause: str
    load: str
    cure: str
    unit: str
    median: float | None
    min: float | None
    max: float | None
    rounds: int
    cures: bool
    ratio_to_ethtool_off: float | None
    ratio_min: float | None
    ratio_max: float | None
    ratio_to_none: float | None
    cpu_us_per_packet: float | None
    cpu_unit: str
    cpu_ratio_to_ethtool_off: float | None
    loss: float | None
    p50: float | None
    p99: float | None
    p999: float | None
    out_of_order: float | None = None
    retransmitted: float | None = None
    values: Series = field(default_factory=list)
    cpu_values: Series = field(default_factory=list)
    p99_values: Series = field(default_factory=list)
    out_of_order_values: Series = field(default_factory=list)
    ratios: Series = field(default_factory=list)

    @property
    def key(self) -> Key:
        """Return the cell's key."""
        return Key(self.cause, self.load, self.cure)


Cells = Mapping[Key, Cell]


def by_key(cells: Iterable[Cell]) -> dict[Key, Cell]:
    """Return cells by their keys."""
    return {cell.key: cell for cell in cells}


def series(cells: Cells, key: Key, name: str = "values") -> Series:
    """Return one series of a cell; empty if there is no such cell."""
    cell = cells.get(key)
    return list(getattr(cell, name)) if cell else []


def ratios(cells: Cells, above: Key, below: Key, name: str = "values") -> Series:
    """Divide one cell by another, round by round; empty if one is missing."""
    one, other = series(cells, above, name), series(cells, below, name)
    return paired(one, other) if len(one) == len(other) else []


def known(values: Iterable[float | None]) -> list[float]:
    """Return the numbers without the missing ones."""
    return [value for value in values if value is not None]


def middle(values: Iterable[float | None]) -> float | None:
    """Return the median of the known numbers; None if there are none."""
    numbers = known(values)
    return median(numbers) if numbers else None


def paired(above: Sequence[float | None], below: Sequence[float | None]) -> Series:
    """Divide round by round; None where a number is missing or the divisor not positive."""
    return [
        None if a is None or b is None or b <= 0 else a / b
        for a, b in zip(above, below, strict=True)
    ]


def less(values: Sequence[float | None], base: Sequence[float | None]) -> Series:
    """Subtract round by round; None where a number is missing."""
    return [None if a is None or b is None else a - b for a, b in zip(values, base, strict=True)]


def _series(rounds: Sequence[Round], key: Key, name: str) -> Series:
    return [getattr(one[key], name) if key in one else None for one in rounds]


def summarise(
    rounds: Sequence[Round], units: Mapping[str, tuple[str, str]], order: Sequence[Key]
) -> list[Cell]:
    """Return a cell for each measured key of `order`.

    units: load -> unit of its value, unit of its CPU cost.
    """
    seen = {key for one in rounds for key in one}
    return [_cell(rounds, key, units[key.load]) for key in order if key in seen]


def _cell(rounds: Sequence[Round], key: Key, units: tuple[str, str]) -> Cell:
    def against(cure: str, name: str) -> Series:
        return paired(
            _series(rounds, key, name), _series(rounds, Key(key.cause, key.load, cure), name)
        )

    values = _series(rounds, key, "value")
    numbers = known(values)
    measured = sum(key in one for one in rounds)
    ratios = against(BASELINE, "value")
    cpu = _series(rounds, key, "cpu_us")
    p99 = _series(rounds, key, "p99")
    out_of_order = _series(rounds, key, "out_of_order")
    timed = any(value is not None for value in p99)
    return Cell(
        cause=key.cause,
        load=key.load,
        cure=key.cure,
        unit=units[0],
        median=middle(values),
        min=min(numbers, default=None),
        max=max(numbers, default=None),
        rounds=measured,
        # Up to half of the rounds may fail by accident.
        cures=2 * len(numbers) > measured,
        ratio_to_ethtool_off=middle(ratios),
        ratio_min=min(known(ratios), default=None),
        ratio_max=max(known(ratios), default=None),
        ratio_to_none=middle(against(CEILING, "value")),
        cpu_us_per_packet=middle(cpu),
        cpu_unit=units[1],
        cpu_ratio_to_ethtool_off=middle(against(BASELINE, "cpu_us")),
        loss=middle(_series(rounds, key, "loss")),
        p50=middle(values) if timed else None,
        p99=middle(p99),
        p999=middle(_series(rounds, key, "p999")),
        out_of_order=middle(out_of_order),
        retransmitted=middle(_series(rounds, key, "retransmitted")),
        values=values,
        cpu_values=cpu,
        p99_values=p99,
        out_of_order_values=out_of_order,
        ratios=ratios,
    )


def from_json(raw: Mapping[str, Any]) -> Cell:
    """Read a cell back; unknown keys are an error."""
    return Cell(**raw)
