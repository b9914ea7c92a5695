"""The results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import loads
from bench.matrix import HEALTHY, UNTRACKED
from bench.stats import (
    BASELINE,
    CEILING,
    Cell,
    Cells,
    Series,
    by_key,
    from_json,
    known,
    middle,
    ratios,
)

DOES_NOT_CURE = "does not cure"
QUIET = 0.1  # cores; background work of an idle machine
NO_LOSS = 0.00005  # less would be shown as 0.00 %
RESULTS = Path(__file__).parent / "results"
LATEST = RESULTS / "latest.json"


@dataclass
class Results:
    """One run.

    idle_cores: core-seconds per second that all cures together used before any load began.
    busy_cores: the same for the whole machine; CPU figures are too high by that.
    complete: whether no round is missing.
    """

    host: str
    kernel: str
    cells: list[Cell]
    cpu: str = ""
    started: str = ""
    mode: str = ""
    seconds_per_cell: float = 0.0
    idle_cores: float = 0.0
    busy_cores: float = 0.0
    complete: bool = True
    tools: dict[str, str] = field(default_factory=dict)


def save(results: Results, path: Path) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(asdict(results)), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read a JSON file that save() wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Results(**{**raw, "cells": [from_json(cell) for cell in raw["cells"]]})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value


def number(value: float | None) -> str:
    """Format a number with three significant digits; None is a dash."""
    if value is None:
        return "-"
    if abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"  # noqa: PLR2004


def ratio(value: float | None) -> str:
    """Format a ratio; small ones keep significant digits."""
    if value is None or value <= 0 or value >= 0.1:  # noqa: PLR2004
        return number(value)
    return f"{value:.4f}"


def span(values: Series) -> str:
    """Format the median of ratios, and their span if they differ."""
    numbers = known(values)
    low, high = min(numbers, default=None), max(numbers, default=None)
    spread = "" if low == high else f" ({ratio(low)}-{ratio(high)})"
    return f"{ratio(middle(values))}{spread}"


def base_of(cause: str) -> str:
    """Return the cure to which the others are compared under this cause."""
    return CEILING if cause in (HEALTHY, UNTRACKED) else BASELINE


def _against(cells: Cells, cell: Cell, name: str) -> str:
    base = base_of(cell.cause)
    if cell.cure == base:
        return "1"
    return span(ratios(cells, cell.key, replace(cell.key, cure=base), name))


def _notes(cell: Cell) -> str:
    notes = []
    if cell.p99 is not None:
        notes.append(f"p99 {number(cell.p99)}, p99.9 {number(cell.p999)}")
    if cell.loss is not None and cell.loss > NO_LOSS:
        notes.append(f"{100 * cell.loss:.2f} % lost")
    if cell.out_of_order:
        notes.append(f"{number(cell.out_of_order)}/s out of order")
    if cell.retransmitted:
        notes.append(f"{number(cell.retransmitted)}/s sent again")
    return ", ".join(notes)


def _row(cells: Cells, cell: Cell) -> list[str]:
    if not cell.cures:
        return [cell.cure, "-", "-", DOES_NOT_CURE, "-", ""]
    return [
        cell.cure,
        number(cell.cpu_us_per_packet),
        _against(cells, cell, "cpu_values"),
        number(cell.median),
        _against(cells, cell, "values"),
        _notes(cell),
    ]


@dataclass(frozen=True)
class Table:
    """All cures under one cause and load."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(results: Results) -> Iterator[Table]:
    """Yield one table per cause and load."""
    cells = by_key(results.cells)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in results.cells:
        groups.setdefault((cell.cause, cell.load), []).append(cell)
    for (cause, name), group in groups.items():
        load_ = loads.BY_NAME[name]
        rounds = max(cell.rounds for cell in group)
        against = f"to {base_of(cause)}"
        yield Table(
            f"{cause}: {load_.title} ({rounds} rounds)",
            ["cure", f"CPU, {load_.cpu_unit}", against, load_.unit, against, ""],
            [_row(cells, cell) for cell in group],
        )


def heading(results: Results) -> str:
    """Return where and how a run was made."""
    busy = f", other programs used {results.busy_cores:.2f} cores"
    return (
        f"{results.host}, Linux {results.kernel}, {results.cpu}; {results.started}; "
        f"{results.mode} run, {results.seconds_per_cell:g} s per cell"
        f"{'' if results.complete else ', interrupted'}"
        f"{busy if results.busy_cores > QUIET else ''}."
    )


EXPLANATION = (
    "Medians over rounds. Ratios are taken within a round; brackets show their span. CPU is the "
    "time of all cores. For CPU and round trips, less is better. Another processor gives other "
    "figures."
)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is text and whose others are numbers."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def markdown(results: Results) -> str:
    """Render all cells, one table per cause and load."""
    lines = ["# What each cure costs", "", heading(results), "", EXPLANATION]
    for table in tables(results):
        lines += ["", f"## {table.title}", "", *markdown_table(table.head, table.rows)]
    return "\n".join((*lines, ""))
