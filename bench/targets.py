"""The project's targets, evaluated from a run.

    .venv/bin/python -m bench.targets bench/results/latest.json

Exits with 1 if a target is missed, 2 if one could not be evaluated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import loads, report
from bench.matrix import FIXED, HEALTHY, ONE_FLOW, SIXTEEN
from bench.stats import BASELINE, CEILING, Cells, Key, Series, by_key, known, less, middle, series
from bench.stats import ratios as paired_ratios

DEFAULT = "csumfix"
NOISE = 50.0
"""Insignificant out-of-order arrivals per second: losses cause up to 30 with any cure. If the
packets of a flow take two ways, there are hundreds or thousands."""


@dataclass(frozen=True)
class TargetOutcome:
    """A target and its result.

    measured: median of paired ratios or differences; low and high: their span.
    """

    what: str
    against: str
    goal: str
    measured: float | None
    low: float | None
    high: float | None
    met: bool | None

    @property
    def verdict(self) -> str:
        """Return met, missed or not run."""
        return "not run" if self.met is None else "met" if self.met else "missed"


def _outcome(what: str, against: str, values: Series, *, least: float | None = None,
             most: float | None = None) -> TargetOutcome:  # fmt: skip
    measured = middle(values)
    goal = f">= {least:g}" if least is not None else f"<= {most:g}"
    met = None
    if measured is not None:
        met = measured >= least if least is not None else measured <= (most or 0)
    numbers = known(values)
    low, high = min(numbers, default=None), max(numbers, default=None)
    return TargetOutcome(what, against, goal, measured, low, high, met)


class _Run:
    """Compares the cells of a run."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def ratios(self, cause: str, load: str, base: str, name: str, cure: str = DEFAULT) -> Series:
        above = Key(cause, load, cure)
        return paired_ratios(self._cells, above, replace(above, cure=base), name)

    def cpu(self, cause: str, base: str) -> TargetOutcome:
        values = self.ratios(cause, FIXED, base, "cpu_values")
        return _outcome(f"{cause}: CPU per packet", base, values, most=1.05)

    def speed(
        self, cause: str, load: str, base: str, least: float, cure: str = DEFAULT
    ) -> TargetOutcome:
        title = loads.BY_NAME[load].title.removesuffix(", saturating")
        whose = "" if cure == DEFAULT else ", queue lane"
        values = self.ratios(cause, load, base, "values", cure)
        return _outcome(f"{cause}: {title}{whose}", base, values, least=least)

    def round_trip(self, label: str, name: str, most: float) -> TargetOutcome:
        values = self.ratios("snat", "latency-spaced", CEILING, name)
        return _outcome(f"snat: round trip {label}", CEILING, values, most=most)

    def order(self, cause: str) -> TargetOutcome:
        key = Key(cause, "tcp-messages", DEFAULT)
        ours = series(self._cells, key, "out_of_order_values")
        base = series(self._cells, replace(key, cure=CEILING), "out_of_order_values")
        more = less(ours, base) if len(ours) == len(base) else []
        return _outcome(f"{cause}: extra out of order per s", CEILING, more, most=NOISE)

    def tap(self) -> Iterator[TargetOutcome]:
        """Compare with the same rules without the service: the tap makes the difference.

        One percent is below the noise of a round, so the rounds of all causes are combined.
        """
        cpu, udp = (
            [value for cause in ("snat", "dnat", HEALTHY)
             for value in self.ratios(cause, load, "kernel-rules", name)]
            for load, name in ((FIXED, "cpu_values"), (ONE_FLOW[1], "values"))
        )  # fmt: skip
        yield _outcome("tap: CPU per packet", "kernel-rules", cpu, most=1.01)
        yield _outcome("tap: UDP 512 B, one flow", "kernel-rules", udp, least=0.99)


def evaluate(cells: Cells) -> list[TargetOutcome]:
    """Return the outcomes of all targets, in the order of their table."""
    run = _Run(cells)
    return [
        run.cpu(HEALTHY, CEILING),
        run.cpu("snat", BASELINE),
        run.cpu("dnat", BASELINE),
        *(run.speed(HEALTHY, load, CEILING, 0.97) for load in ONE_FLOW),
        *(run.speed("snat", load, BASELINE, 0.97) for load in (*ONE_FLOW, SIXTEEN)),
        run.speed("snat", "tcp-bulk", BASELINE, 1.6),
        run.speed("snat", "tcp-bulk", "checksum-target", 1.0),
        run.round_trip("p50", "values", 1.03),
        run.round_trip("p99", "p99_values", 1.1),
        run.order("snat"),
        run.order(HEALTHY),
        run.speed("snat", "tcp-bulk", BASELINE, 0.8, "csumfix-queue"),
        *run.tap(),
    ]


def of(results: report.Results) -> list[TargetOutcome]:
    """Evaluate a run; of a run that was not full, only targets that it has measured."""
    outcomes = evaluate(by_key(results.cells))
    if results.mode == "full":
        return outcomes
    return [one for one in outcomes if one.met is not None]


def _row(one: TargetOutcome) -> list[str]:
    spread = ""
    if one.low is not None and one.low != one.high:
        to = "-" if one.low >= 0 else " to "
        spread = f" ({report.ratio(one.low)}{to}{report.ratio(one.high)})"
    return [one.what, one.against, one.goal, f"{report.ratio(one.measured)}{spread}"]


def table(outcomes: Iterable[TargetOutcome]) -> Table:
    """Return the table for a terminal."""
    shown = Table("csumfix", "compared with", "goal", "measured", "", box=None)
    colours = {"met": "green", "missed": "red", "not run": "dim"}
    for one in outcomes:
        shown.add_row(*_row(one), f"[{colours[one.verdict]}]{one.verdict}[/]")
    return shown


def markdown(outcomes: Iterable[TargetOutcome]) -> str:
    """Render the table for the results page; nothing if there are no outcomes."""
    rows = [[*_row(one), one.verdict] for one in outcomes]
    head = ["csumfix", "compared with", "goal", "measured", ""]
    lines = ["", "## Targets", "", *report.markdown_table(head, rows)] if rows else []
    return "\n".join((*lines, ""))


def main(argv: list[str]) -> int:
    """See the module's description."""
    path = Path(argv[0]) if argv else report.LATEST
    if not path.exists():
        sys.stderr.write(f"bench.targets: {path} does not exist; run 'make bench' first\n")
        return 2
    outcomes = evaluate(by_key(report.load(path).cells))
    Console().print(table(outcomes))
    met = [one.met for one in outcomes]
    return 1 if False in met else 2 if None in met else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
