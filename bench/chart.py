"""The chart: what each cure costs, at a glance. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import cures, loads
from bench.report import DOES_NOT_CURE, Results, number, ratio
from bench.stats import BASELINE, CEILING, Cell, Series, known, middle, paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS, REFERENCE, BAD, INK = "#0b6e4f", "#8a94a3", "#c9ced6", "#b3261e", "#222222"
COLUMNS = 3
LEAST_ROWS = 6  # of a panel, so that a few cures do not make thick bars
LIMIT = 2.4  # of the x axis; longer bars are cut, their number tells
LEAST_LIMIT = 1.2
LABEL_GAP = 0.04
DPI = 130


@dataclass(frozen=True)
class Panel:
    """One small chart: all cures under one cause and load, as ratios to `base`."""

    cause: str
    load: str
    title: str
    base: str = BASELINE
    field: str = "values"
    lower_is_better: bool = False


PANELS = (
    Panel("snat", "udp-saturating-64-1", "UDP 64 B, one flow (snat)"),
    Panel("snat", "udp-saturating-512-1", "UDP 512 B, one flow (snat)"),
    Panel("snat", "udp-saturating-1400-1", "UDP 1,400 B, one flow (snat)"),
    Panel("snat", "udp-saturating-512-16", "UDP 512 B, sixteen flows (snat)"),
    Panel("snat", "tcp-bulk", "TCP bulk (snat)"),
    Panel("snat", "tcp-bulk-9000", "TCP bulk, MTU 9000 (snat)"),
    Panel("dnat", "udp-saturating-512-1", "UDP 512 B, every packet recomputed (dnat)"),
    Panel("healthy", "udp-saturating-512-1", "UDP 512 B, tunnel without the bug", base=CEILING),
    Panel(
        "snat", "latency-spaced", "Round trip p50, spaced (snat)", lower_is_better=True
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """One cure in a panel; ratio None means that it does not cure."""

    cure: str
    ratio: float | None
    low: float
    high: float


def bars(panel: Panel, cells: Sequence[Cell]) -> list[Bar]:
    """Return the bars of a panel in the order of the cures."""
    mine = {c.cure: c for c in cells if (c.cause, c.load) == (panel.cause, panel.load)}
    if panel.base not in mine:
        return []
    base: Series = getattr(mine[panel.base], panel.field)
    out = []
    for cure in cures.NAMES:
        if cure not in mine:
            continue
        ratios = paired(getattr(mine[cure], panel.field), base)
        numbers = known(ratios)
        centre = middle(ratios) if mine[cure].cures else None
        out.append(Bar(cure, centre, min(numbers, default=0), max(numbers, default=0)))
    return out


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
        rows, columns, squeeze=False, figsize=(4.9 * columns, 0.9 + 2.75 * rows)
    )
    for axes, (panel, found) in zip(grid.flat, shown, strict=False):
        _panel(axes, panel, found, _absolute(results, panel))
    for axes in list(grid.flat)[len(shown) :]:
        axes.axis("off")
    figure.suptitle(
        "What each cure of wrong VXLAN checksums costs, as a ratio to ethtool-off in the same "
        "round (median; whiskers: min-max)",
        fontsize=12, x=0.01, ha="left", color=INK,
    )  # fmt: skip
    figure.text(
        0.01, 0.005,
        f"{results.host}, Linux {results.kernel}, {results.cpu}, {results.started}, "
        f"{results.mode} run{'' if results.complete else ', interrupted'}",
        fontsize=8, color=OTHERS,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.02, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _absolute(results: Results, panel: Panel) -> str:
    """Say what 1 stands for."""
    for cell in results.cells:
        if (cell.cause, cell.load, cell.cure) == (panel.cause, panel.load, panel.base):
            return f"1 = {panel.base}: {number(cell.median)} {loads.BY_NAME[panel.load].unit}"
    return ""


def _colour(cure: str) -> str:
    if cure.startswith("csumfix"):
        return OURS
    return REFERENCE if cure in (CEILING, "accept-only") else OTHERS


def _label_of(bar: Bar) -> str:
    assert bar.ratio is not None
    cut = bar.high > LIMIT
    return ratio(bar.ratio) + (f" (to {ratio(bar.high)})" if cut else "")


def _panel(axes: Axes, panel: Panel, found: Sequence[Bar], absolute: str) -> None:
    def clip(value: float) -> float:
        return min(value, LIMIT)

    limit = max(LEAST_LIMIT, *(clip(bar.high) for bar in found))
    for at, bar in enumerate(found):
        if bar.ratio is None:
            axes.text(LABEL_GAP * limit, at, DOES_NOT_CURE, va="center", fontsize=9, color=BAD)
            continue
        axes.barh(at, clip(bar.ratio), height=0.62, color=_colour(bar.cure))
        low, high = clip(bar.low), clip(bar.high)
        axes.plot([low, high], [at, at], color=INK, linewidth=1, solid_capstyle="butt")
        for end in (low, high):
            axes.plot([end, end], [at - 0.13, at + 0.13], color=INK, linewidth=1)
        axes.text(
            max(high, clip(bar.ratio)) + LABEL_GAP * limit, at, _label_of(bar),
            va="center", fontsize=9, color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
    better = "less is better" if panel.lower_is_better else "more is better"
    axes.set_title(panel.title, fontsize=10, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(f"{absolute}; {better}", fontsize=8, color=INK, loc="left")
    axes.set_yticks(range(len(found)), [bar.cure for bar in found], fontsize=9)
    for tick, bar in zip(axes.get_yticklabels(), found, strict=True):
        if bar.cure.startswith("csumfix"):
            tick.set_color(OURS)
    axes.set_ylim(max(len(found), LEAST_ROWS) - 0.4, -0.6)
    axes.set_xlim(0, limit * 1.18)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
