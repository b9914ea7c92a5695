"""The demonstration: a real kernel bug loses DNS over VXLAN, and csumfix cures it.

`make demo` runs it. Each step prints what it did, the result, and whether that was expected. If
any result was not, the exit code is 1.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console

from csumfix.errors import CsumfixError
from csumfix_lab.lab import Lab
from csumfix_lab.process import Process
from csumfix_lab.sandbox import require, search_path

_CAUSES = ("kube-proxy", "dnat")
_CSUMFIX = [sys.executable, "-m", "csumfix"]
_SERVICE = [*_CSUMFIX, "run"]
_START = 5.0  # seconds for the service or tcpdump to be ready
_ARRIVAL = 1.0  # seconds for a captured packet to be printed
_STOP = 10.0  # seconds for the service to drain and end
_SETTLE = 0.2  # seconds for a packet to be counted
_QUERIES = 10
_BAD = "bad udp cksum"
_WRONG = "WRONG"
_LABEL = 44  # columns


class _Output:
    """Collects a process's lines in a thread, so that the process never blocks on a full pipe."""

    def __init__(self, process: subprocess.Popen[str], stream: str) -> None:
        self._pipe = getattr(process, stream)
        self._lines: list[str] = []
        self._change = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        with self._pipe:
            for line in self._pipe:
                with self._change:
                    self._lines.append(line.rstrip())
                    self._change.notify_all()
        with self._change:
            self._ended = True
            self._change.notify_all()

    def find(self, pattern: str, timeout: float) -> str | None:
        """Return the first line that matches, waiting up to `timeout` seconds for one."""

        def found() -> str | None:
            return next((line for line in self._lines if re.search(pattern, line)), None)

        with self._change:
            self._change.wait_for(lambda: self._ended or found() is not None, timeout)
            return found()

    @property
    def last(self) -> str:
        """The last line so far."""
        with self._change:
            return self._lines[-1] if self._lines else "(no output)"


class _Narrator:
    """Prints the steps and counts those with an unexpected result."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        self.failures = 0

    def heading(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold")

    def text(self, text: str) -> None:
        self._console.print(text)

    def detail(self, text: str) -> None:
        """Print a line that belongs to the step above."""
        self.text(f"{'':<10}{text.strip()}")

    def step(self, label: str, result: str, ok: bool) -> None:
        """Print one step: what was done, the result, and whether it was expected."""
        self._console.print("  ok      " if ok else "  FAILED  ", end="",
                            style="green" if ok else "bold red")  # fmt: skip
        self._console.print(f"{label:<{_LABEL}}{result}")
        self.failures += not ok


class _Demo:
    """One cause, from the bug to its cure."""

    def __init__(self, lab: Lab, say: _Narrator) -> None:
        self._lab = lab
        self._say = say
        # Under kube-proxy only the service IP suffers; elsewhere the pod IP does.
        self._victim = lab.service_ip if lab.cause.service else lab.pod_ip

    def run(self) -> None:
        """Show the bug, then the cure."""
        lab, say = self._lab, self._say
        say.text(f"\n{lab.describe()}")
        settings, rules = self._settings(), self._mangle()
        say.heading("Without csumfix")
        self._show_bug()
        say.heading("With csumfix")
        with self._service() as service:
            self._show_cure()
            same = self._settings() == settings
            say.step(
                f"ethtool -k eth0, {lab.device} on the sender",
                "as before: offload untouched" if same else "changed",
                same,
            )
            self._stop(service)
        clean = self._mangle() == rules
        say.step("mangle tables on the sender", "clean" if clean else "rules left behind", clean)

    def _drops(self) -> int:
        time.sleep(_SETTLE)
        return self._lab.receiver.counters().udp_drops

    def _settings(self) -> list[dict[str, str]]:
        return [self._lab.sender.offloads(device) for device in ("eth0", self._lab.device)]

    def _mangle(self) -> list[str]:
        # With -S, a table that was never used looks like an emptied one.
        tools = ("iptables", "ip6tables")
        return [self._lab.sender.run([tool, "-t", "mangle", "-S"]).stdout for tool in tools]

    def _name(self, address: str) -> str:
        return f"{'service' if address == self._lab.service_ip else 'pod'} IP {address}"

    def _query(self, address: str, *, answered: bool) -> None:
        """Query once, and report whether the result was expected."""
        answer = self._lab.query(address)
        self._say.step(
            f"query {self._lab.dns_name} by {self._name(address)}",
            f"answer {answer}" if answer else "no answer" if answered else "lost (expected)",
            (answer == self._lab.pod_ip) if answered else answer is None,
        )

    def _show_bug(self) -> None:
        lab, say = self._lab, self._say
        if self._victim != lab.pod_ip:
            self._query(lab.pod_ip, answered=True)
        before = self._drops()
        with self._trace() as trace, self._capture() as capture:
            self._query(self._victim, answered=False)
            leaving = trace.find(_WRONG, _ARRIVAL)
            bad = capture.find(_BAD, _ARRIVAL)
        result = f"no {_WRONG!r}" if leaving is None else "leaves:"
        say.step("csumfix trace on the sender", result, leaving is not None)
        if leaving is not None:
            say.detail(leaving)
        result = f"no {_BAD!r}" if bad is None else "arrives, but:"
        say.step("tcpdump of the receiver's eth0", result, bad is not None)
        if bad is not None:
            say.detail(bad)
        after = self._drops()
        say.step("the receiver's drop counter", f"{before} -> {after}", after > before)

    def _show_cure(self) -> None:
        lab, say = self._lab, self._say
        before = self._drops()
        if self._victim != lab.pod_ip:
            self._query(lab.pod_ip, answered=True)
        self._query(self._victim, answered=True)
        answers = sum(lab.query(self._victim) == lab.pod_ip for _ in range(_QUERIES))
        say.step(f"{_QUERIES} more", f"{answers} answered", answers == _QUERIES)
        after = self._drops()
        say.step("the receiver's drop counter", f"{before} -> {after}", after == before)
        self._show_departures()

    def _show_departures(self) -> None:
        """Show what the service's egress tap has seen."""
        shown = self._lab.sender.run([*_CSUMFIX, "status", "--json"]).stdout
        (lane,) = json.loads(shown)["service"]["lanes"]
        looked, wrong = sum(lane["departures"].values()), lane["departures"].get("wrong", 0)
        result = f"{looked} packets left, {wrong} of them wrong; {lane['lane']} lane"
        self._say.step("csumfix status on the sender", result, looked > 0 and wrong == 0)

    @contextlib.contextmanager
    def _trace(self) -> Iterator[_Output]:
        """Run csumfix trace for packets that leave the sender with a wrong checksum."""
        process = self._lab.sender.popen(
            [*_CSUMFIX, "trace", "--bad-only"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _Output(process, "stderr").find("tracing", _START)
        try:
            yield _Output(process, "stdout")
        finally:
            process.terminate()
            process.wait(_STOP)

    @contextlib.contextmanager
    def _capture(self) -> Iterator[_Output]:
        """Capture on the receiver; yield the output of tcpdump, which runs outside the lab."""
        frames = self._lab.receiver.popen(
            [sys.executable, "-m", "csumfix_lab.capture", "eth0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        # As root, tcpdump would switch to another user, which may not exist in a container.
        stay = ["-Z", "root"] if os.geteuid() == 0 else []
        assert frames.stdout is not None
        with frames.stdout:
            tcpdump = subprocess.Popen(
                ["tcpdump", *stay, "-nvvl", "-r", "-", "udp", "port", str(self._lab.spec.port)],
                stdin=frames.stdout,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PATH": search_path()},
            )
        _Output(tcpdump, "stderr").find("reading from", _START)
        try:
            yield _Output(tcpdump, "stdout")
        finally:
            frames.kill()
            tcpdump.wait()  # ends with the stream

    @contextlib.contextmanager
    def _service(self) -> Iterator[Process]:
        """Run csumfix on the sender."""
        process = self._lab.sender.popen(
            _SERVICE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        log = _Output(process, "stderr")
        ready = log.find("^ready", _START)
        self._say.step("start: csumfix run", ready or log.last, ready is not None)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _stop(self, service: Process) -> None:
        service.terminate()
        try:
            code = service.wait(_STOP)
        except subprocess.TimeoutExpired:
            self._say.step("stop: SIGTERM", f"still running after {_STOP:.0f} s", ok=False)
            return
        self._say.step("stop: SIGTERM", f"exit code {code}", code == 0)


def main(argv: list[str]) -> int:
    """Show the bug and the cure for the causes in `argv`, or for kube-proxy and dnat."""
    say = _Narrator()
    try:
        require("tcpdump")
        for cause in argv or _CAUSES:
            with Lab(cause) as lab:
                lab.start_dns()
                _Demo(lab, say).run()
    except CsumfixError as error:
        sys.stderr.write(f"demo: {error}\n")
        return error.code
    say.heading("All as expected." if not say.failures else f"{say.failures} steps FAILED.")
    say.text("Next: .venv/bin/csumfix lab --cause snat    # the same by hand, in a shell")
    return 1 if say.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
