"""Draws the chart of what each cure costs. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import cures, loads
from bench.matrix import FIXED, HEALTHY, ONE_FLOW, SIXTEEN
from bench.report import DOES_NOT_CURE, Results, base_of, heading, number, ratio
from bench.stats import CEILING, Cell, Key, by_key, known, middle, ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS, REFERENCE, BAD, INK = "#0b6e4f", "#8a94a3", "#c9ced6", "#b3261e", "#222222"
COLUMNS = 3
LEAST_ROWS = 6  # rows of a panel, so that few cures do not make thick bars
LIMIT = 2.4  # end of the x axis; longer bars are cut and labelled with their value
LEAST_LIMIT = 1.2
LABEL_GAP = 0.04
DPI = 130


@dataclass(frozen=True)
class Panel:
    """One small chart: all cures under one cause and load, as ratios to one of them.

    field: the series of Cell to compare.
    order: whether labels give the packets out of order.
    """

    cause: str
    load: str
    title: str
    field: str = "values"
    less_is_better: bool = False
    order: bool = False

    @property
    def base(self) -> str:
        """The cure whose bar is 1."""
        return base_of(self.cause)


def _cpu(cause: str) -> Panel:
    cause_ = "no bug" if cause == HEALTHY else cause
    return Panel(cause, FIXED, f"CPU per packet ({cause_})", "cpu_values", less_is_better=True)


PANELS = (
    _cpu(HEALTHY),
    _cpu("snat"),
    _cpu("dnat"),
    Panel("snat", "tcp-messages", "TCP, pipelined messages (snat)", order=True),
    Panel("snat", "tcp-bulk", "TCP bulk (snat)"),
    Panel("snat", "latency-spaced", "Round trip p50, spaced (snat)", less_is_better=True),
    Panel("snat", ONE_FLOW[1], "UDP 512 B, one flow, saturating (snat)"),
    Panel("snat", SIXTEEN, "UDP 512 B, sixteen flows, saturating (snat)"),
    Panel(HEALTHY, ONE_FLOW[1], "UDP 512 B, one flow, saturating (no bug)"),
)


@dataclass(frozen=True)
class Bar:
    """One cure in a panel; ratio None means that it does not cure."""

    cure: str
    ratio: float | None
    low: float
    high: float
    note: str = ""

    @property
    def cut(self) -> bool:
        """Whether the bar is longer than the axis."""
        return self.ratio is not None and self.ratio > LIMIT

    @property
    def label(self) -> str:
        """The text at the end of the bar."""
        assert self.ratio is not None
        hidden = self.high > LIMIT and not self.cut
        return ratio(self.ratio) + (f" (to {ratio(self.high)})" if hidden else "") + self.note


def bars(panel: Panel, cells: Iterable[Cell]) -> list[Bar]:
    """Return the bars of a panel in the order of the cures."""
    named = by_key(cells)
    base = Key(panel.cause, panel.load, panel.base)
    if base not in named:
        return []
    out = []
    for cure in cures.NAMES:
        cell = named.get(replace(base, cure=cure))
        if cell is None:
            continue
        found = ratios(named, cell.key, base, panel.field)
        numbers = known(found)
        centre = middle(found) if cell.cures else None
        low, high = min(numbers, default=0), max(numbers, default=0)
        out.append(Bar(cure, centre, low, high, _note(panel, cell)))
    return out


def _note(panel: Panel, cell: Cell) -> str:
    return f", {number(cell.out_of_order)}/s out of order" if panel.order else ""


def draw(results: Results, path: Path) -> None:
    """Draw the results into a PNG file."""
    import matplotlib as mpl  # noqa: PLC0415 - optional

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    shown = [(panel, found) for panel in PANELS if len(found := bars(panel, results.cells)) > 1]
    if not shown:
        return
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, squeeze=False, figsize=(5.6 * columns, 0.9 + 2.75 * rows)
    )
    for axes, (panel, found) in zip(grid.flat, shown, strict=False):
        _panel(axes, panel, found, results)
    for axes in list(grid.flat)[len(shown) :]:
        axes.axis("off")
    figure.suptitle(
        "What each cure of wrong VXLAN checksums costs (medians of ratios within a round; "
        "whiskers: minimum and maximum)",
        fontsize=12, x=0.01, ha="left", color=INK,
    )  # fmt: skip
    figure.text(0.01, 0.005, heading(results), fontsize=8, color=OTHERS)
    figure.tight_layout(rect=(0, 0.02, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _scale(results: Results, panel: Panel) -> str:
    """Return what 1 stands for, and whether more or less is better."""
    cell = by_key(results.cells)[Key(panel.cause, panel.load, panel.base)]
    load = loads.BY_NAME[panel.load]
    cpu = panel.field == "cpu_values"
    one = cell.cpu_us_per_packet if cpu else cell.median
    unit = load.cpu_unit if cpu else load.unit
    better = "less is better" if panel.less_is_better else "more is better"
    title = cures.BY_NAME[panel.base].title
    return f'ratio to "{title}" (1 = {number(one)} {unit}); {better}'


def _colour(cure: str) -> str:
    if cures.BY_NAME[cure].ours:
        return OURS
    return REFERENCE if cure in (CEILING, "accept-only") else OTHERS


def _bar(axes: Axes, at: int, bar: Bar, limit: float) -> None:
    if bar.ratio is None:
        axes.text(LABEL_GAP * limit, at, DOES_NOT_CURE, va="center", fontsize=9, color=BAD)
        return
    length, low, high = (min(value, LIMIT) for value in (bar.ratio, bar.low, bar.high))
    axes.barh(at, length, height=0.62, color=_colour(bar.cure))
    if bar.cut:
        _break_mark(axes, at, 0.9 * length, 0.02 * limit)
    else:
        axes.plot([low, high], [at, at], color=INK, linewidth=1, solid_capstyle="butt")
        for end in (low, high):
            axes.plot([end, end], [at - 0.13, at + 0.13], color=INK, linewidth=1)
    axes.text(
        max(high, length) + LABEL_GAP * limit, at, bar.label, va="center", fontsize=9, color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def _break_mark(axes: Axes, at: int, where: float, width: float) -> None:
    """Draw a slanted gap across a bar that is longer than the axis."""
    bottom, top = [where - width, where + width], [at + 0.4, at - 0.4]
    axes.plot(bottom, top, color="white", linewidth=6, solid_capstyle="butt")
    for side in (-width, width):
        axes.plot([x + side for x in bottom], top, color=INK, linewidth=1)


def _panel(axes: Axes, panel: Panel, found: Sequence[Bar], results: Results) -> None:
    limit = max(LEAST_LIMIT, *(min(bar.high, LIMIT) for bar in found))
    for at, bar in enumerate(found):
        _bar(axes, at, bar, limit)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.set_title(panel.title, fontsize=10, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(_scale(results, panel), fontsize=8, color=INK, loc="left")
    titles = [cures.BY_NAME[bar.cure].title for bar in found]
    axes.set_yticks(range(len(found)), titles, fontsize=9)
    for tick, bar in zip(axes.get_yticklabels(), found, strict=True):
        if cures.BY_NAME[bar.cure].ours:
            tick.set_color(OURS)
    axes.set_ylim(max(len(found), LEAST_ROWS) - 0.4, -0.6)
    axes.set_xlim(0, limit * (1.6 if panel.order else 1.18))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
