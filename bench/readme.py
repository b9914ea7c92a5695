"""The tables in README.md and docs/benchmark.md, and how they get there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bench import cures
from bench.matrix import FIXED, HEALTHY, ONE_FLOW
from bench.report import DOES_NOT_CURE, Results, base_of, number, ratio
from bench.stats import Cells, Key, by_key, middle, ratios
from manual.marks import Place

ROOT = Path(__file__).parents[1]
WRITER = "`make bench` writes it, from bench/results/latest.json"


@dataclass(frozen=True)
class Column:
    """One figure for each cure.

    name: the figure's attribute of Cell.
    series: the same by round, if its ratio to another cure is to be shown.
    """

    title: str
    cause: str
    load: str
    name: str = "median"
    series: str = "values"


_CPU = ("cpu_us_per_packet", "cpu_values")
_HEALTHY = Column("CPU us/packet, no bug", HEALTHY, FIXED, *_CPU)
_SNAT = Column("CPU, snat", "snat", FIXED, *_CPU)
_DNAT = Column("CPU, dnat", "dnat", FIXED, *_CPU)
_BULK = Column("TCP bulk, Gbit/s", "snat", "tcp-bulk")
_UDP = Column("UDP, 1,000 packets/s", "snat", ONE_FLOW[1])
COLUMNS = (
    *(_HEALTHY, _SNAT, _DNAT),
    Column("out of order, per s", "snat", "tcp-messages", "out_of_order", ""),
    Column("sent again, per s", "snat", "tcp-messages", "retransmitted", ""),
    Column("TCP messages, Gbit/s", "snat", "tcp-messages"),
    *(_BULK, _UDP),
    Column("round trip p50, us", "snat", "latency-spaced"),
)
BRIEF_COLUMNS = (_HEALTHY, _SNAT, _DNAT, _BULK, _UDP)
BRIEF_CURES = ("none", "ethtool-off", "netfilterqueue", "csumfix", "csumfix-queue")


def _entry(cells: Cells, column: Column, cure: str) -> str:
    key = Key(column.cause, column.load, cure)
    cell = cells.get(key)
    if cell is None:
        return ""
    if not cell.cures:
        return DOES_NOT_CURE
    text = number(getattr(cell, column.name))
    if not column.series:
        return text
    base = replace(key, cure=base_of(column.cause))
    return f"{text} ({ratio(middle(ratios(cells, key, base, column.series)))})"


def _table(results: Results, columns: tuple[Column, ...], names: tuple[str, ...]) -> list[str]:
    """Render a table of these cures."""
    cells = by_key(results.cells)
    lines = [
        f"| {' | '.join(('cure', *(column.title for column in columns)))} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for cure in names:
        row = [_entry(cells, column, cure) for column in columns]
        if any(row):
            title = cures.BY_NAME[cure].title
            title = f"**{title}**" if cures.BY_NAME[cure].ours else title
            lines.append(f"| {' | '.join((title, *row))} |")
    return lines


def brief(results: Results) -> str:
    """Render the table of README: what an operator chooses between."""
    lines = _table(results, BRIEF_COLUMNS, BRIEF_CURES)
    caption = (
        f"{results.cpu}, Linux {results.kernel}, {results.started[:10]}. Cause snat unless said."
    )
    return "\n".join((*lines, "", caption))


def summary(results: Results) -> str:
    """Render one table of all cures, CPU first, and what its figures are."""
    lines = _table(results, COLUMNS, tuple(cures.NAMES))
    rounds = max((cell.rounds for cell in results.cells), default=0)
    caption = (
        f"Measured on {results.cpu}, Linux {results.kernel}, {results.started[:10]}; medians of "
        f"{rounds} rounds. Cause snat unless said. In brackets: the ratio to `ethtool -K ... off` "
        "in the same round; without a bug, to `no bug, no cure`."
    )
    return "\n".join((*lines, "", caption))


FULL = Place(
    ROOT / "docs/benchmark.md", f"<!-- bench table: {WRITER} -->", "<!-- end of bench table -->"
)
BRIEF = Place(
    ROOT / "README.md",
    f"<!-- brief bench table: {WRITER} -->",
    "<!-- end of brief bench table -->",
)


def update(results: Results) -> None:
    """Write both tables."""
    FULL.write(summary(results))
    BRIEF.write(brief(results))
