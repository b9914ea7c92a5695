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
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench import chart, cures, loads, measure, plan, report, targets
from bench.stats import Key, Sample, summarise
from csumfix.errors import CsumfixError

_DEFAULTS = (report.LATEST, report.RESULTS / "quick.json")
COLUMNS = 120  # of what is printed to a file


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="The main loads, two rounds, under three minutes.")
@click.option("--cause", "causes", multiple=True, type=click.Choice(list(plan.CAUSES)))
@click.option("--load", "only_loads", multiple=True, help="Name of a load, or its beginning.")
@click.option("--cure", "only_cures", multiple=True, type=click.Choice(cures.NAMES))
@click.option("--rounds", type=click.IntRange(1), help="Rounds to measure.")
@click.option("--seconds", type=click.FloatRange(0.2), help="Seconds counted in each cell.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random order.")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Results file; table and chart get the same name with .md and .png. A run that was "
    "not filtered writes bench/results/latest.json (--quick: quick.json) by default, others write "
    "nothing.",
)
@click.option(
    "--compare-only", is_flag=True, help="Measure nothing: show and draw the results file again."
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
) -> None:
    """Measure what each cure of wrong VXLAN checksums costs, all of them on the same work."""
    if compare_only:
        _publish(report.load(path or report.LATEST), path or report.LATEST)
        return
    base = plan.QUICK if quick else plan.FULL
    names = [name for name in loads.NAMES if _chosen(name, only_loads)]
    if only_loads and not names:
        raise click.UsageError(f"no such load; there are: {' '.join(loads.NAMES)}")
    filtered = bool(causes or names or only_cures)
    if filtered and not quick:
        base = plan.Plan(base.rounds, base.seconds, plan.EVERYTHING)
    base = plan.Plan(rounds or base.rounds, seconds or base.seconds, base.blocks)
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
        path = None  # a part of a run is no replacement for a whole one
    _publish(results, path)
    if not results.complete:
        sys.exit(1)


def _chosen(name: str, wanted: Sequence[str]) -> bool:
    """Tell whether a load is named, or begins like what is no load's whole name."""
    return name in wanted or any(name.startswith(one) for one in wanted if one not in loads.NAMES)


def _run(base: plan.Plan, cells: Sequence[Key], seed: int, mode: str) -> report.Results:
    loads.prepare()
    taken: list[dict[Key, Sample]] = []
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    idle, complete = 0.0, False
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

            with measure.Stations(cells, say) as stations:
                idle = stations.idle_share()
                samples = measure.rounds(stations, cells, base.rounds, base.seconds, seed, say)
                for key, sample, number in samples:
                    measure.collect(taken, key, sample, number)
                    bar.advance(task)
                bar.update(task, completed=len(cells) * base.rounds)
                complete = True
                say("closing labs")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: these are the results so far\n")
    return report.Results(
        host=platform.node(),
        kernel=platform.release(),
        cpu=_cpu(),
        started=started,
        mode=mode,
        seconds_per_cell=base.seconds,
        idle_cores=idle,
        complete=complete,
        tools={name: _version(name) for name in ("iperf3", "sockperf")},
        cells=summarise(taken, loads.UNITS, cells),
    )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {models[0] if models else platform.machine()}"


def _version(tool: str) -> str:
    result = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    return (result.stdout or result.stderr).strip().split("\n")[0]


def _publish(results: report.Results, path: Path | None) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=COLUMNS)
    text = report.markdown(results)
    console.print(Markdown(text))
    if path is None:
        return
    report.save(results, path)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    try:
        chart.draw(results, path.with_suffix(".png"))
    except ImportError:
        console.print("no chart: matplotlib is not installed: pip install 'csumfix[bench]'")
    outcomes = targets.read(path)
    if results.mode != "full":
        outcomes = [one for one in outcomes if one.met is not None]
    targets.show(outcomes, console.print)
    console.print(f"written: {path}, .md and .png beside it")


if __name__ == "__main__":
    main(prog_name="python -m bench")
