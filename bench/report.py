"""The results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import loads
from bench.stats import BASELINE, Cell, from_json

DOES_NOT_CURE = "does not cure"
RESULTS = Path(__file__).parent / "results"
LATEST = RESULTS / "latest.json"


@dataclass
class Results:
    """One run.

    idle_cores: core-seconds per second that all cures together worked before any load began.
    complete: whether all rounds were run.
    """

    host: str
    kernel: str
    cells: list[Cell]
    cpu: str = ""
    started: str = ""
    mode: str = ""
    seconds_per_cell: float = 0.0
    idle_cores: float = 0.0
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
    """Write a number with three significant digits; a dash for none."""
    if value is None:
        return "-"
    if abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"  # noqa: PLR2004


def ratio(value: float | None) -> str:
    """Write a ratio so that small ones keep a digit."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"  # noqa: PLR2004


def _row(cell: Cell) -> list[str]:
    if not cell.cures:
        return [cell.cure, DOES_NOT_CURE, *["-"] * 5]
    span = f"{number(cell.median)} ({number(cell.min)}-{number(cell.max)})"
    extra = "-"
    if cell.p99 is not None:
        extra = f"p99 {number(cell.p99)}, p99.9 {number(cell.p999)}"
    elif cell.loss is not None:
        extra = f"{100 * cell.loss:.2f} % lost"
    own = cell.cure == BASELINE
    return [
        cell.cure,
        span,
        "1" if own else ratio(cell.ratio_to_ethtool_off),
        "" if own else f"{ratio(cell.ratio_min)}-{ratio(cell.ratio_max)}",
        ratio(cell.ratio_to_none),
        number(cell.cpu_us_per_packet),
        extra,
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(head), ["---", *["---:"] * (len(head) - 2), "---"], *map(list, rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _groups(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.cause, cell.load), []).append(cell)
    return groups


def markdown(results: Results) -> str:
    """Render all cells, a table for each cause and load."""
    lines = [
        "# What each cure costs",
        "",
        f"{results.host}, Linux {results.kernel}, {results.cpu}; {results.started}; "
        f"{results.mode} run, {results.seconds_per_cell:g} s a cell"
        f"{'' if results.complete else ', interrupted'}.",
        "",
        "Medians over rounds (min-max). Ratios are to the same round's other cure. CPU is both "
        "cores'. For round trips less is better.",
    ]
    for (cause, name), cells in _groups(results.cells).items():
        load_ = loads.BY_NAME[name]
        rounds = max(cell.rounds for cell in cells)
        lines += ["", f"## {cause}: {load_.title} ({rounds} rounds)", ""]
        head = [
            "cure", load_.unit, "to ethtool-off", "min-max", "to none",
            f"CPU {load_.cpu_unit}", "",
        ]  # fmt: skip
        lines += _table(head, map(_row, cells))
    return "\n".join((*lines, ""))


SUMMARY_LOADS = (
    "udp-saturating-64-1", "udp-saturating-512-1", "udp-saturating-1400-1",
    "udp-saturating-512-16", "tcp-bulk", "tcp-bulk-9000", "latency-spaced",
)  # fmt: skip


def summary(results: Results, cause: str = "snat") -> str:
    """Render one small table for the README: cures by loads, median and ratio."""
    groups = _groups(results.cells)
    names = [name for name in SUMMARY_LOADS if (cause, name) in groups]
    cures = list(dict.fromkeys(cell.cure for name in names for cell in groups[cause, name]))
    head = ["cure", *(f"{loads.BY_NAME[n].title}, {loads.BY_NAME[n].unit}" for n in names)]
    rows = []
    for cure in cures:
        row = [cure]
        for name in names:
            found = [cell for cell in groups[cause, name] if cell.cure == cure]
            row.append(_short(found[0]) if found else "")
        rows.append(row)
    return "\n".join((*_table(head, rows), ""))


def _short(cell: Cell) -> str:
    if not cell.cures:
        return DOES_NOT_CURE
    return f"{number(cell.median)} (x {ratio(cell.ratio_to_ethtool_off)})"
