"""README's table, and how it gets there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bench import cures
from bench.matrix import FIXED, HEALTHY, ONE_FLOW
from bench.report import DOES_NOT_CURE, Results, base_of, number, ratio
from bench.stats import Cells, Key, by_key, middle, ratios

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- bench table: `make bench` writes it, from bench/results/latest.json -->"
END = "<!-- end of bench table -->"


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
COLUMNS = (
    Column("CPU us/packet, no bug", HEALTHY, FIXED, *_CPU),
    Column("CPU, snat", "snat", FIXED, *_CPU),
    Column("CPU, dnat", "dnat", FIXED, *_CPU),
    Column("out of order, per s", "snat", "tcp-messages", "out_of_order", ""),
    Column("sent again, per s", "snat", "tcp-messages", "retransmitted", ""),
    Column("TCP messages, Gbit/s", "snat", "tcp-messages"),
    Column("TCP bulk, Gbit/s", "snat", "tcp-bulk"),
    Column("UDP, 1,000 packets/s", "snat", ONE_FLOW[1]),
    Column("round trip p50, us", "snat", "latency-spaced"),
)


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


def summary(results: Results) -> str:
    """Render one table of all cures, CPU first, and what its figures are."""
    cells = by_key(results.cells)
    lines = [
        f"| {' | '.join(('cure', *(column.title for column in COLUMNS)))} |",
        f"|---|{'---:|' * len(COLUMNS)}",
    ]
    for cure in cures.NAMES:
        row = [_entry(cells, column, cure) for column in COLUMNS]
        if any(row):
            title = cures.BY_NAME[cure].title
            title = f"**{title}**" if cures.BY_NAME[cure].ours else title
            lines.append(f"| {' | '.join((title, *row))} |")
    rounds = max((cell.rounds for cell in results.cells), default=0)
    caption = (
        f"Measured on {results.cpu}, Linux {results.kernel}, {results.started[:10]}; medians of "
        f"{rounds} rounds. Cause snat unless said. In brackets: the ratio to `ethtool -K ... off` "
        "in the same round; without a bug, to `no bug, no cure`."
    )
    return "\n".join((*lines, "", caption))


def block(text: str) -> str:
    """Return what stands between the markers in README's text."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def insert(text: str, table: str) -> str:
    """Return README's text with another table between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def update(results: Results) -> None:
    """Write the table into README."""
    text = README.read_text(encoding="utf-8")
    README.write_text(insert(text, summary(results)), encoding="utf-8")
