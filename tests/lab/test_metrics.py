"""The running service, scraped by a real Prometheus on the same node."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from urllib.parse import urlencode

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from csumfix_lab.node import Node
from tests.lab.harness import (
    QUEUE,
    SILENT,
    Sink,
    assert_no_rules,
    send,
    sender,
    service,
    until,
)
from tests.prometheus import PROMETHEUS, dashboard_expressions, promtool

METRICS = "--metrics=127.0.0.1:9478"
URL = "http://127.0.0.1:9478/"
API = "http://127.0.0.1:9090/api/v1"
PATIENCE = 20.0  # seconds for Prometheus to start, and to see what it is waited for

CONFIG = f"""
global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}
rule_files: [{Path("deploy/prometheus/csumfix.rules.yml").resolve()}]
scrape_configs:
  - job_name: csumfix
    static_configs: [{{targets: ["127.0.0.1:9478"]}}]
"""

GET = """
import sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=5) as answer:
        print(answer.read().decode(), end="")
except urllib.error.HTTPError as refusal:
    sys.exit(f"{refusal.code} {refusal.read().decode()}")
except OSError as error:
    sys.exit(str(error))
"""

SCRAPER = [
    *(sys.executable, "-c"),
    """
import select, sys, urllib.request
scrapes = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    urllib.request.urlopen("http://127.0.0.1:9478/metrics", timeout=5).read()
    scrapes += 1
print(scrapes)
""",
]
"""Scrapes without a pause until its input ends; prints how often."""


def get(node: Node, url: str) -> subprocess.CompletedProcess[str]:
    return node.run([sys.executable, "-c", GET, url], check=False, timeout=20)


class Prometheus:
    """A server on a node; what it knows of the service is asked of it over HTTP."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def answers(self) -> bool:
        return get(self._node, f"{API}/status/buildinfo").returncode == 0

    def values(self, expression: str) -> list[float]:
        """Evaluate an expression."""
        answer = get(self._node, f"{API}/query?{urlencode({'query': expression})}")
        assert answer.returncode == 0, f"{expression}: {answer.stderr}"
        return [float(one["value"][1]) for one in json.loads(answer.stdout)["data"]["result"]]

    def value(self, expression: str) -> float | None:
        """Evaluate an expression that has one value; None as long as it has none."""
        values = self.values(expression)
        assert len(values) <= 1, values
        return values[0] if values else None

    def wait_for(self, expression: str, value: float) -> None:
        until(
            lambda: self.value(expression) == value,
            PATIENCE,
            lambda: f"{expression} is {self.value(expression)} and not {value}",
        )

    def unhealthy_rules(self) -> list[str] | None:
        """Names of rules whose evaluation failed; None as long as some were not evaluated."""
        groups = json.loads(get(self._node, f"{API}/rules").stdout)["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if not rules or any(rule["health"] == "unknown" for rule in rules):
            return None
        return [rule["name"] for rule in rules if rule["health"] != "ok"]


@contextmanager
def prometheus(node: Node, directory: Path) -> Iterator[Prometheus]:
    config, log = directory / "prometheus.yml", directory / "log"
    config.write_text(CONFIG)
    with log.open("w") as stream:
        process = node.popen(
            [
                str(PROMETHEUS),
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                "--web.listen-address=127.0.0.1:9090",
            ],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=stream,
        )
    try:
        server = Prometheus(node)
        until(server.answers, PATIENCE, log.read_text)
        server.wait_for("up", 1)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def test_prometheus_sees_what_was_sent(lab: Lab, tmp_path: Path) -> None:
    with (
        service(lab.sender, QUEUE, SILENT, "--queues=2", METRICS) as daemon,
        prometheus(lab.sender, tmp_path) as server,
    ):
        assert send(lab, 300, 512, flows=20).whole
        server.wait_for('sum(csumfix_packets_total{outcome="repaired"})', 300)
        assert server.value("sum(csumfix_packets_total)") == 300
        assert server.value("sum(csumfix_batch_packets_sum)") == 300
        assert server.value("sum(csumfix_overrun_packets_total)") == 0
        assert server.value("count(csumfix_queue_packets == 0)") == 2
        assert server.value("csumfix_rules_loaded") == 1
        labels = f'device="{lab.device}",vni="1",port="8472",family="4",protocol="vxlan"'
        info = f"csumfix_tunnel_info{{{labels}}}"
        assert server.value(info) == 1
        state = daemon.status()["service"]
        total = sum(queue["bytes"] for queue in state["queues"].values())
        assert server.value("sum(csumfix_bytes_total)") == total
        assert server.value(f'csumfix_build_info{{version="{state["version"]}"}}') == 1
        tunnels = f'csumfix_tunnel_mtu_bytes{{device="{lab.device}"}}'
        assert server.value(tunnels) == state["tunnels"][0]["mtu"]
        failed = until(
            lambda: [rules] if (rules := server.unhealthy_rules()) is not None else None,
            PATIENCE,
            lambda: "rules are not evaluated",
        )
        assert failed == [[]]
        answers = {expression: server.values(expression) for expression in dashboard_expressions()}
        assert [expression for expression, values in answers.items() if not values] == []


def test_promtool_has_no_complaint_about_a_scrape(lab: Lab) -> None:
    with service(lab.sender, QUEUE, SILENT, METRICS):
        assert send(lab, 10, 64).whole
        text = get(lab.sender, f"{URL}metrics").stdout
        assert 'outcome="repaired",queue="0",reason="recomputed"} 10.0' in text
        assert promtool("check", "metrics", input=text) == ""


def test_health(lab: Lab) -> None:
    with service(lab.sender, METRICS):
        assert get(lab.sender, f"{URL}healthz").stdout == "ok\n"
        assert get(lab.sender, URL).stderr.startswith("404")


def test_nothing_listens_unless_asked_to(lab: Lab) -> None:
    with service(lab.sender):
        assert "refused" in get(lab.sender, f"{URL}metrics").stderr


@contextmanager
def foreign_server(node: Node) -> Iterator[None]:
    """Another program that has the metrics' port."""
    process = node.popen(
        [sys.executable, "-m", "http.server", "--bind=127.0.0.1", "9478"],
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    try:
        until(lambda: get(node, URL).returncode == 0, PATIENCE, lambda: "nobody listens")
        yield
    finally:
        process.kill()
        process.wait(5)


def test_the_port_of_another_program_is_refused(lab: Lab) -> None:
    with foreign_server(lab.sender):
        command = [sys.executable, "-m", "csumfix", "run", METRICS]
        result = lab.sender.run(command, check=False, timeout=20)
    assert result.returncode == Exit.IN_USE
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "127.0.0.1:9478" in result.stderr
    assert_no_rules(lab.sender)


def test_a_reload_moves_the_metrics(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "csumfix.toml"
    file.write_text("")
    with service(lab.sender, f"--config={file}") as daemon, foreign_server(lab.sender):
        for count, address in enumerate(("127.0.0.1:9479", "[::1]:9479"), start=1):
            file.write_text(f'metrics = "{address}"')
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("reloaded", count=count)
            text = get(lab.sender, f"http://{address}/metrics").stdout
            assert "csumfix_config_last_reload_successful 1.0" in text
        file.write_text('metrics = "127.0.0.1:9478"')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("error: reload failed")
        text = get(lab.sender, "http://[::1]:9479/metrics").stdout
        assert "csumfix_config_last_reload_successful 0.0" in text
        assert send(lab, 10, 64).whole


def test_a_successor_serves_the_metrics(lab: Lab) -> None:
    with (
        service(lab.sender, QUEUE, SILENT, METRICS) as old,
        service(lab.sender, QUEUE, SILENT, METRICS, "--take-over") as new,
    ):
        assert old.process.wait(10) == 0
        assert send(lab, 10, 64).whole
        sample = 'reason="recomputed"} 10.0'
        until(
            lambda: sample in get(lab.sender, f"{URL}metrics").stdout,
            PATIENCE,
            lambda: str(new.lines()),
        )
        assert not [line for line in new.lines() if "error" in line]


@pytest.mark.parametrize("lab", ["none"], indirect=True)
def test_scraping_at_full_load_loses_nothing(lab: Lab) -> None:
    """Scraped without a pause, by two at a time, while packets come as fast as they can."""
    packets = 60_000
    with service(lab.sender, QUEUE, SILENT, METRICS) as daemon:
        sink = Sink(lab, packets)
        load = sender(lab, packets, 512, flows=16)
        scrapers = [lab.sender.popen(SCRAPER, stdin=PIPE, stdout=PIPE) for _ in range(2)]
        assert load.wait(60) == 0
        scrapes = [int(scraper.communicate(timeout=10)[0]) for scraper in scrapers]
        assert sink.delivery().whole
        (queue,) = daemon.status()["service"]["queues"].values()
        assert queue["packets"] + queue["overruns"] == packets
        assert queue["kernel"]["queue_dropped"] == queue["kernel"]["user_dropped"] == 0
        assert min(scrapes) > 0


@pytest.mark.parametrize("lab", ["none"], indirect=True)
def test_probes_do_not_blur_the_count_of_overruns(lab: Lab) -> None:
    """A full buffer loses probes, too, which the kernel counts together with the packets."""
    packets = 20_000
    with service(lab.sender, QUEUE, SILENT, METRICS) as daemon:
        sink = Sink(lab, packets)
        daemon.process.send_signal(signal.SIGSTOP)
        assert sender(lab, packets, 1400, flows=400, rate=packets).wait(30) == 0
        daemon.process.send_signal(signal.SIGCONT)
        assert sink.delivery().whole
        (queue,) = daemon.status()["service"]["queues"].values()
        assert queue["overruns"] > 0
        assert queue["packets"] + queue["overruns"] == packets
