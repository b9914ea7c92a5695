"""Finds out which of the kernel bugs the running kernel has, by trying them in throwaway labs.

Theory of operation
-------------------
A few cases over the same underlay share a lab, because a lab takes longer to build than a case to
try. The labs run side by side: most of the time they wait for datagrams that are lost. In a lab
the rules of one case are loaded after those of another, each time into tables that are emptied
first. Datagrams then go through the tunnel and are sent back; the receiver's counters say whether
their checksums were wrong. Each try uses new inner source ports, and so new outer flows, which
are not affected by earlier rules. Where a bug shows, the kernel lane's rules are loaded, and the
same is tried again.

A lab dies with this process. On Ctrl-C the cases that are being tried end first, within a second.
"""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from csumfix.errors import CsumfixError, Exit
from csumfix.host import rules
from csumfix_lab import echo, spec
from csumfix_lab.causes import BY_NAME, Cause
from csumfix_lab.kernelbugs import CASES, IPVS, BugCase, BugOutcome, Exchange, judge, not_testable
from csumfix_lab.lab import Lab
from csumfix_lab.rules import LOADERS
from csumfix_lab.sandbox import require

_CASES_PER_LAB = 3
_PORT = 53  # what kube-proxy's service forwards
_FAMILIES = ("iptables", "ip6tables")
_REWRITTEN = re.compile(r"^\[(\d+):\d+\] -A OUTPUT .*ctstate", re.MULTILINE)
_IPVS_TABLE = Path("/proc/net/ip_vs")
_NO_IPVS = "this kernel has no IPVS, or has not loaded it, which only root may do: modprobe ip_vs"

# Loaded before each case, which empties the tables. The rule counts what conntrack NAT rewrites:
# packets of confirmed flows whose address or port it has changed.
_TABLES = """*nat
COMMIT
*mangle
-A OUTPUT -p udp --dport {port} -m conntrack --ctstate SNAT,DNAT --ctstatus CONFIRMED
COMMIT
"""


@dataclass(frozen=True)
class Result:
    """What the self-test found.

    kernel: its release, such as 6.1.0-18-amd64.
    seconds: that it took.
    """

    kernel: str
    seconds: float
    outcomes: tuple[BugOutcome, ...]


@dataclass(frozen=True)
class _Shape:
    """What a lab must be like for a case."""

    ipv6: bool
    outer_checksum: bool


def run(cases: Sequence[BugCase] = CASES) -> Result:
    """Try the cases; raise CsumfixError if this machine cannot try any."""
    began = time.monotonic()
    kernel_lane = rules.kernel_lane(spec.LabSpec().port)
    stop = threading.Event()
    found: dict[BugCase, BugOutcome] = {}
    failures: list[CsumfixError] = []

    def work(shape: _Shape, some: list[BugCase]) -> None:
        try:
            for outcome in _try_all(shape, some, kernel_lane, stop):
                found[outcome.case] = outcome
        except (CsumfixError, subprocess.CalledProcessError) as error:
            failures.append(_failure(error))
            for case in some:
                found.setdefault(case, not_testable(case, str(failures[-1])))

    labs = _labs(cases)
    with ThreadPoolExecutor(len(labs)) as pool:
        try:
            for future in [pool.submit(work, *one) for one in labs]:
                future.result()
        except BaseException:
            stop.set()
            raise
    if failures and all(outcome.exchange is None for outcome in found.values()):
        raise failures[0]
    outcomes = tuple(found[case] for case in cases)
    return Result(os.uname().release, time.monotonic() - began, outcomes)


def _labs(cases: Sequence[BugCase]) -> list[tuple[_Shape, list[BugCase]]]:
    """Return what labs there must be, each with its cases."""
    shapes: dict[_Shape, list[BugCase]] = {}
    for case in cases:
        shapes.setdefault(_Shape(case.ipv6, case.bug.outer_checksum), []).append(case)
    return [
        (shape, some[at : at + _CASES_PER_LAB])
        for shape, some in shapes.items()
        for at in range(0, len(some), _CASES_PER_LAB)
    ]


def _try_all(
    shape: _Shape, cases: Sequence[BugCase], kernel_lane: str, stop: threading.Event
) -> Iterator[BugOutcome]:
    """Try cases in one lab."""
    if stop.is_set():
        return
    cause = Cause("self-test", story="", symptom="", outer_checksum=shape.outer_checksum)
    with Lab(cause, ipv6=shape.ipv6) as lab:
        station = _Station(lab, kernel_lane)
        for case in cases:
            if stop.is_set():
                return
            yield station.outcome(case)


class _NotLoadedError(Exception):
    """The setup that provokes a bug failed; the message says why."""


class _Station:
    """A lab in which one case after another is tried."""

    def __init__(self, lab: Lab, kernel_lane: str) -> None:
        self._lab = lab
        self._kernel_lane = kernel_lane
        self._families = [LOADERS[tool] for tool in _FAMILIES]
        server = lab.receiver.popen(
            [*_program(echo, "-I", "-S"), "serve", lab.pod_ip, str(_PORT)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None
        with server.stdout as stdout:
            if stdout.readline() != "ready\n":
                raise CsumfixError("the lab's program csumfix_lab.echo did not start", Exit.KERNEL)
        self._errors = self._all_errors()

    def outcome(self, case: BugCase) -> BugOutcome:
        """Try a case; if it shows the bug, try it again with the kernel lane."""
        try:
            self._provoke(case)
            exchange = self._try(case)
            return judge(case, exchange, self._try_kernel_lane(case) if exchange.errors else None)
        except _NotLoadedError as error:
            return not_testable(case, str(error))
        except (CsumfixError, subprocess.CalledProcessError) as error:
            return not_testable(case, str(_failure(error)))

    def _provoke(self, case: BugCase) -> None:
        """Set up what provokes a bug, with empty tables, and nothing of the case before."""
        require(*(loader[0] for loader in self._families))
        tables = _TABLES.format(port=self._lab.spec.port)
        inputs = [(loader, tables) for loader in self._families]
        inputs.append((self._remote(case), ""))
        if case.bug.cause == IPVS and not _IPVS_TABLE.exists():
            raise _NotLoadedError(_NO_IPVS)
        for tool, text in BY_NAME[case.bug.cause].rules(self._lab.spec).items():
            require(LOADERS[tool][0])
            inputs.append((LOADERS[tool], text))
        self._load(inputs)

    def _remote(self, case: BugCase) -> list[str]:
        """Return the command that gives the tunnel its remote end, which may be virtual."""
        cause = BY_NAME.get(case.bug.cause)
        end = spec.RECEIVER if cause and not cause.virtual_vtep else spec.VIRTUAL_VTEP
        mac = self._lab.spec.receiver.mac
        options = ["dev", self._lab.device, "dst", end.ip(case.ipv6), "self", "permanent"]
        return ["bridge", "fdb", "replace", mac, *options]

    def _load(self, inputs: Sequence[tuple[list[str], str]]) -> None:
        """Give each command its input."""
        lines = [f"{shlex.join(argv)} <<'END'\n{text}\nEND" for argv, text in inputs]
        result = self._lab.sender.run(["sh", "-eu"], input="\n".join([*lines, ""]), check=False)
        if result.returncode:
            raise _NotLoadedError(_last_line(result.stderr))

    def _try_kernel_lane(self, case: BugCase) -> Exchange | None:
        """Try once more with the kernel lane's rules; None if they cannot be loaded."""
        restore = self._families[case.ipv6]
        try:
            self._load([([*restore, "--noflush"], self._kernel_lane)])
        except _NotLoadedError:
            return None
        return self._try(case)

    def _try(self, case: BugCase) -> Exchange:
        """Send datagrams through the tunnel."""
        cause = BY_NAME.get(case.bug.cause)
        address = self._lab.service_ip if cause and cause.service else self._lab.pod_ip
        asked = self._lab.sender.run([*_program(echo, "-I", "-S"), "ask", address, str(_PORT)])
        sent, answered = map(int, asked.stdout.split())
        before, self._errors = self._errors, self._all_errors()
        errors = self._errors - before
        return Exchange(sent, answered, errors, 0 if errors else self._rewritten(case))

    def _all_errors(self) -> int:
        return self._lab.receiver.counters().udp_drops

    def _rewritten(self, case: BugCase) -> int:
        """Return how many packets conntrack NAT is seen to have rewritten."""
        save = self._families[case.ipv6][0].replace("restore", "save")
        found = _REWRITTEN.search(self._lab.sender.run([save, "-c", "-t", "mangle"]).stdout)
        return int(found[1]) if found else 0


def _program(module: ModuleType, *options: str) -> list[str]:
    """Return the command that runs one of the lab's programs; options: of Python."""
    return [sys.executable, *options, str(Path(str(module.__file__)).resolve())]


def _failure(error: CsumfixError | subprocess.CalledProcessError) -> CsumfixError:
    """Return the error as one for the operator."""
    if isinstance(error, CsumfixError):
        return error
    return CsumfixError(
        f"{error.cmd[0]} failed in the lab: {_last_line(error.stderr or '')}", Exit.BROKEN
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "failed without a word"
