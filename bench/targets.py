"""The project's targets, evaluated from a results file.

    python -m bench.targets bench/results/latest.json

Exits with 1 if a target is missed, 2 if one could not be evaluated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import report
from bench.stats import CEILING, Cell, Key, Series, known, less, middle, paired

CORE = report.RESULTS / "core.json"
Cells = Mapping[Key, Cell]

# csumfix without an option: what `csumfix run` does.
DEFAULT = "csumfix-packets"


@dataclass(frozen=True)
class Outcome:
    """A target and what came of it.

    measured: median of paired ratios; low and high: their span.
    """

    what: str
    against: str
    goal: str
    measured: float | None
    low: float | None = None
    high: float | None = None
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """Return met, missed or not measured."""
        return "not measured" if self.met is None else "met" if self.met else "missed"


def _outcome(what: str, against: str, ratios: Series, *, least: float | None = None,
             most: float | None = None) -> Outcome:  # fmt: skip
    measured = middle(ratios)
    goal = f">= {least:g}" if least is not None else f"<= {most:g}"
    met = None
    if measured is not None:
        met = measured >= least if least is not None else measured <= (most or 0)
    numbers = known(ratios)
    return Outcome(
        what, against, goal, measured, min(numbers, default=None), max(numbers, default=None), met
    )


def _values(cells: Cells, key: Key, name: str = "values") -> Series:
    cell = cells.get(key)
    return list(getattr(cell, name)) if cell else []


def ratios(cells: Cells, above: Key, below: Key) -> Series:
    """Return value by value, paired by round; empty if a cell is missing."""
    return _paired(_values(cells, above), _values(cells, below))


def _paired(above: Series, below: Series) -> Series:
    return paired(above, below) if len(above) == len(below) else []


def added(cells: Cells, name: str, above: Key, below: Key) -> Series:
    """Return the ratio of what two cures add to the round trip of a tunnel without the bug."""
    base = _values(cells, Key(above.cause, above.load, CEILING), name)
    one, other = _values(cells, above, name), _values(cells, below, name)
    if not len(base) == len(one) == len(other):
        return []
    return _paired(less(one, base), less(other, base))


def evaluate(cells: Cells, core: Mapping[str, Any] | None) -> list[Outcome]:
    """Return every row of the table of targets, one outcome for each load or mode in it."""
    out: list[Outcome] = []

    def compare(load: str, cure: str, other: str, least: float, cause: str = "snat",
                other_cause: str = "") -> None:  # fmt: skip
        values = ratios(cells, Key(cause, load, cure), Key(other_cause or cause, load, other))
        against = f"{other} under {other_cause}" if other_cause else other
        out.append(_outcome(f"{cause}: {load}: {cure}", against, values, least=least))

    one_flow = [f"udp-saturating-{size}-1" for size in (64, 512, 1400)]
    for other, least in (("ethtool-off", 1.2), ("netfilterqueue", 1.8), ("scapy", 300)):
        for load in one_flow:
            compare(load, DEFAULT, other, least)
    for load in one_flow:
        # Nothing arrives under dnat if all is accepted as it is; under snat everything does, and
        # the kernel does the same work for it.
        compare(load, DEFAULT, "accept-only", 0.95, "dnat", "snat")
    for size in (64, 512, 1400):
        compare(f"udp-saturating-{size}-16", DEFAULT, "ethtool-off", 1.0)
    for other, least in (("ethtool-off", 1.5), ("checksum-target", 1.0)):
        for cure in ("csumfix-nat", "csumfix-packets"):
            compare("tcp-bulk", cure, other, least)
    compare("tcp-bulk", "csumfix-all", "ethtool-off", 0.8)
    for load in (*one_flow, "tcp-bulk"):
        compare(load, "csumfix-nat", CEILING, 0.98, "healthy")
    for label, name in (("p50", "values"), ("p99", "p99_values")):
        above = Key("snat", "latency-spaced", DEFAULT)
        below = Key("snat", "latency-spaced", "netfilterqueue")
        out.append(
            _outcome(
                f"snat: added latency {label}, spaced: {DEFAULT}",
                "netfilterqueue",
                added(cells, name, above, below),
                most=0.6,
            )
        )
    speed = core.get("repair_right_1478_to_dpdk") if core else None
    out.append(
        _outcome("repair, right 1,478 B packet: speed", "DPDK rte_raw_cksum", [speed], least=2.0)
    )
    return out


def read(path: Path, core: Path = CORE) -> list[Outcome]:
    """Evaluate a results file, with the core's results beside it if there are any."""
    cells = {cell.key: cell for cell in report.load(path).cells}
    measured = json.loads(core.read_text(encoding="utf-8")) if core.exists() else None
    return evaluate(cells, measured)


def markdown(outcomes: list[Outcome]) -> str:
    """Render the table."""
    lines = ["| load and cure | against | goal | measured (min-max) | |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_cells(one))} |" for one in outcomes]
    return "\n".join((*lines, ""))


def _cells(one: Outcome) -> list[str]:
    span = ""
    if one.low is not None and one.high is not None and one.low != one.high:
        span = f" ({report.ratio(one.low)} to {report.ratio(one.high)})"
    return [one.what, one.against, one.goal, f"{report.ratio(one.measured)}{span}", one.verdict]


def show(outcomes: list[Outcome], write: Callable[[Table], None]) -> None:
    """Print the table."""
    table = Table("load and cure", "against", "goal", "measured (min-max)", "", box=None)
    colours = {"met": "green", "missed": "red", "not measured": "dim"}
    for one in outcomes:
        *cells, verdict = _cells(one)
        table.add_row(*cells, f"[{colours[verdict]}]{verdict}[/]")
    write(table)


def main(argv: list[str]) -> int:
    """See the module's description."""
    path = Path(argv[0]) if argv else report.LATEST
    if not path.exists():
        sys.stderr.write(f"bench.targets: {path} does not exist: run python -m bench first\n")
        return 2
    outcomes = read(path)
    show(outcomes, Console().print)
    met = [one.met for one in outcomes]
    return 1 if False in met else 2 if None in met else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
