"""The benchmark's command line: measure, report, compare. See bench/README.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bench import chart, cures, loads, matrix, measure, readme, report, targets
from bench.stats import Key, Sample, summarise
from csumfix.errors import CsumfixError

_DEFAULTS = (report.LATEST, report.RESULTS / "quick.json")
COLUMNS = 80  # width of output that does not go to a terminal
RATIO_WIDTH = len("0.88 (0.83-0.94)")
NOTES_WIDTH = len("5.95 % lost")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Main loads, two rounds, under three minutes.")
@click.option(
    "--cause",
    "causes",
    multiple=True,
    metavar="CAUSE",
    type=click.Choice(list(matrix.CAUSES)),
    help=f"Only this cause: {', '.join(matrix.CAUSES)}.",
)
@click.option(
    "--load",
    "only_loads",
    multiple=True,
    metavar="LOAD",
    help="Only this load; the beginning of a name selects several.",
)
@click.option(
    "--cure",
    "only_cures",
    multiple=True,
    metavar="CURE",
    type=click.Choice(cures.NAMES),
    help=f"Only this cure: {', '.join(cures.NAMES)}.",
)
@click.option("--rounds", type=click.IntRange(1), help="Number of rounds.")
@click.option("--seconds", type=click.FloatRange(0.2), help="Counted seconds per cell.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the random order.")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Results file. Tables and chart get the same name with .md and .png. Default of a full "
    "run: bench/results/latest.json, of --quick: quick.json; a filtered run writes nothing.",
)
@click.option("--compare-only", is_flag=True, help="Show the results file without measuring.")
@click.option(
    "--write",
    is_flag=True,
    help="With --compare-only: write tables and chart again, and those of README and docs/ if the "
    "file is latest.json.",
)
def main(  # noqa: PLR0913, PLR0917 - one for each option
    quick: bool,
    causes: tuple[str, ...],
    only_loads: tuple[str, ...],
    only_cures: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    seed: int,
    path: Path | None,
    compare_only: bool,
    write: bool,
) -> None:
    """Measure what each cure of wrong VXLAN checksums costs, under the same loads."""
    if compare_only:
        _compare(path or report.LATEST, write)
        return
    if write:
        raise click.UsageError("--write belongs to --compare-only; a run writes what --json names")
    base = matrix.QUICK if quick else matrix.FULL
    names = _names(only_loads)
    filtered = bool(causes or names or only_cures)
    if filtered and not quick:
        base = matrix.Matrix(base.rounds, base.seconds, matrix.EVERYTHING)
    base = matrix.Matrix(rounds or base.rounds, seconds or base.seconds, base.blocks)
    cells = base.cells(causes or (("snat",) if filtered else ()), names, only_cures)
    if not cells:
        raise click.UsageError("these filters leave nothing to measure")
    mode = "filtered" if filtered else "quick" if quick else "full"
    if path is None and not filtered:
        path = _DEFAULTS[quick]
    try:
        results = _run(base, cells, seed, mode)
    except CsumfixError as error:
        raise click.ClickException(str(error)) from None
    if not results.complete and path in _DEFAULTS:
        path = None  # an interrupted run must not replace a complete one
    _show(results)
    if path is not None:
        report.save(results, path)
        _write(results, path)
    if not results.complete:
        sys.exit(1)


def _compare(path: Path, write: bool) -> None:
    if not path.exists():
        raise click.ClickException(f"{path} does not exist; run 'make bench' first")
    results = report.load(path)
    _show(results)
    if write:
        _write(results, path)


def _names(wanted: Sequence[str]) -> list[str]:
    """Return the wanted loads; a word that is not a load's whole name selects by its beginning."""
    prefixes = tuple(one for one in wanted if one not in loads.NAMES)
    names = [name for name in loads.NAMES if name in wanted or name.startswith(prefixes)]
    if wanted and not names:
        raise click.UsageError(f"no such load; choose from: {' '.join(loads.NAMES)}")
    return names


def _run(base: matrix.Matrix, cells: Sequence[Key], seed: int, mode: str) -> report.Results:
    loads.prepare()
    taken: list[dict[Key, Sample]] = []
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    idle, complete = measure.Idle(0, 0), False
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    try:
        with bar:
            task = bar.add_task("building labs", total=len(cells) * base.rounds)

            def say(text: str) -> None:
                bar.update(task, description=f"{text:<55}")

            with measure.PreparedLabs(cells, say) as labs:
                idle = labs.idle()
                samples = measure.rounds(labs, cells, base.rounds, base.seconds, seed, say)
                for key, sample, number in samples:
                    measure.collect(taken, key, sample, number)
                    bar.advance(task)
                bar.update(task, completed=len(cells) * base.rounds)
                complete = True
                say("closing labs")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the results so far:\n")
    return report.Results(
        host=platform.node(),
        kernel=platform.release(),
        cpu=_cpu(),
        started=started,
        mode=mode,
        seconds_per_cell=base.seconds,
        idle_cores=idle.cures,
        busy_cores=idle.machine,
        complete=complete,
        tools={name: _version(name) for name in ("iperf3", "sockperf")},
        cells=summarise(taken, loads.UNITS, cells),
    )


def _cpu() -> str:
    """Name the processor with family and model: hypervisors give different ones the same name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(":") for line in lines)
    known = {name.strip(): value.strip() for name, _, value in pairs}
    name = known.get("model name", platform.machine())
    family, model = known.get("cpu family"), known.get("model")
    exact = f" (family {family}, model {model})" if family and model else ""
    return f"{os.cpu_count()} x {name}{exact}"


def _version(tool: str) -> str:
    result = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    return (result.stdout or result.stderr).strip().split("\n")[0]


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=COLUMNS, highlight=False)


def _show(results: report.Results) -> None:
    console = _console()
    console.print(report.heading(results), report.EXPLANATION, sep="\n")
    for one in report.tables(results):
        console.print(f"\n[bold]{one.title}[/]")
        console.print(_narrow(one))
    outcomes = targets.of(results)
    if outcomes:
        console.print("\n[bold]Targets[/]")
        console.print(targets.table(outcomes))


def _narrow(one: report.Table) -> Table:
    """Lay a table out for 80 columns: long texts are wrapped, never cut."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    *heads, notes = one.head
    for at, head in enumerate(heads):
        width = RATIO_WIDTH if head.startswith("to ") else None
        table.add_column(
            head.replace(", ", ",\n"),
            no_wrap=at == 0,
            justify="right" if at else "left",
            min_width=width,
            max_width=width,
            overflow="fold",
        )
    table.add_column(notes, min_width=NOTES_WIDTH, overflow="fold")
    for row in one.rows:
        table.add_row(*row)
    return table


def _write(results: report.Results, path: Path) -> None:
    """Write tables, chart and README's table of a results file."""
    console = _console()
    page = report.markdown(results) + targets.markdown(targets.of(results))
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    try:
        chart.draw(results, path.with_suffix(".png"))
    except ImportError:
        console.print("no chart: matplotlib is not installed; 'make bench' installs it")
    if path == report.LATEST:
        readme.update(results)
    console.print(f"written: {path}, and the same with .md and .png")


if __name__ == "__main__":
    main(prog_name=".venv/bin/python -m bench")
