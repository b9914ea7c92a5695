"""The output of the self-test: verdict, table, and what was not testable and why."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from csumfix.errors import Exit
from csumfix.text import printable
from csumfix_lab.kernelbugs import KERNEL_LANE, QUEUE_LANE, Bug, BugOutcome, BugState
from csumfix_lab.selftest import Result

_ABSENT = "-"
_CURES = {
    KERNEL_LANE: (
        "kernel lane (tried here): csumfix run; "
        "or without the service: csumfix-rules apply --lane kernel"
    ),
    QUEUE_LANE: (
        "queue lane (not tried here): csumfix run, which uses it once wrong packets leave; "
        "or csumfix run --lane queue"
    ),
}


def exit_code(result: Result) -> Exit:
    """Return NEGATIVE if the kernel has any of the bugs, BROKEN if nothing could be tried."""
    states = {outcome.state for outcome in result.outcomes}
    if BugState.LIVE in states:
        return Exit.NEGATIVE
    return Exit.OK if BugState.FIXED in states else Exit.BROKEN


def verdict(result: Result) -> str:
    """Say in one sentence which bugs this kernel has, and what cures them."""
    bugs = _by_bug(result)
    tried = {
        bug for bug in bugs if any(one.state is not BugState.NOT_TESTABLE for one in bugs[bug])
    }
    live = {bug: _cures(bugs[bug]) for bug in bugs if _cures(bugs[bug])}
    kernel = f"This kernel, {printable(result.kernel)},"
    if not tried:
        return f"{kernel} could not be tested; see the reasons below."
    if not live:
        return f"{kernel} has none of the {len(tried)} bugs that could be tried."
    queue = [bug.name for bug, cures in live.items() if QUEUE_LANE in cures]
    cured = "the kernel lane cures all of them"
    if len(queue) == len(live):
        cured = "the queue lane cures them"
    elif queue:
        cured = f"the kernel lane cures all but {' and '.join(queue)} (queue lane)"
    return f"{kernel} has {len(live)} of the {len(tried)} bugs that could be tried: {cured}."


def as_json(result: Result) -> dict[str, Any]:
    """Return the result as plain data."""
    return {
        "kernel": printable(result.kernel),
        "seconds": round(result.seconds, 1),
        "verdict": verdict(result),
        "bugs": [outcome.as_json() for outcome in result.outcomes],
    }


def show(result: Result, console: Console) -> None:
    """Print the result for people."""
    _line(console, verdict(result))
    console.print(_table(result))
    for line in _notes(result):
        _line(console, line)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _by_bug(result: Result) -> dict[Bug, list[BugOutcome]]:
    bugs: dict[Bug, list[BugOutcome]] = {}
    for outcome in result.outcomes:
        bugs.setdefault(outcome.case.bug, []).append(outcome)
    return bugs


def _cures(outcomes: list[BugOutcome]) -> list[str]:
    """Return the lanes that cure a bug, over IPv4 first; none if it is not live."""
    return list(dict.fromkeys(outcome.cure for outcome in outcomes if outcome.cure))


def _table(result: Result) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("outer header rewritten by", "over IPv4", "over IPv6", "cure"):
        table.add_column(column)
    for bug, outcomes in _by_bug(result).items():
        states = {outcome.case.ipv6: str(outcome.state) for outcome in outcomes}
        cells = (states.get(ipv6, _ABSENT) for ipv6 in (False, True))
        table.add_row(bug.name, *cells, ", ".join(_cures(outcomes)) or _ABSENT)
    return table


def _notes(result: Result) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for outcome in result.outcomes:
        if outcome.reason:
            family = "IPv6" if outcome.case.ipv6 else "IPv4"
            reasons.setdefault(outcome.reason, []).append(f"{outcome.case.bug.name} ({family})")
    for reason, names in reasons.items():
        yield printable(f"not testable: {'; '.join(names)}: {reason}")
    cures = {outcome.cure for outcome in result.outcomes}
    yield from (text for cure, text in _CURES.items() if cure in cures)
    if cures - {""}:
        yield (
            "A bug does harm only where something rewrites the tunnel's packets; "
            "'csumfix doctor' finds out whether that is the case on this host."
        )
