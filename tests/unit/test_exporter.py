"""The metrics' HTTP server on the loopback device: answers, refusals, clients that misbehave."""

import errno
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from csumfix import exporter
from csumfix.errors import CsumfixError, Exit
from tests.unit.snapshots import snapshot


class Subject:
    """An exporter on a free port."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.trouble: str | None = None
        self.probes = 0
        self.port = free_port(host)
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.exporter = exporter.serve(
            self.address, snapshot, lambda: self.trouble, self._count_probe
        )

    def _count_probe(self) -> None:
        self.probes += 1

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://{self.address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def subject() -> Iterator[Subject]:
    subject = Subject()
    yield subject
    subject.exporter.close()


def test_metrics(subject: Subject) -> None:
    status, text = subject.get("/metrics")
    assert status == 200
    assert 'csumfix_overrun_packets_total{queue="0"} 45.0' in text.splitlines()
    assert "process_cpu_seconds_total" in text


def test_metrics_in_the_format_that_prometheus_prefers(subject: Subject) -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    status, text = subject.get("/metrics", Accept=accept)
    assert status == 200
    assert text.endswith("# EOF\n")
    assert "# TYPE csumfix_overrun_packets counter" in text


def test_health(subject: Subject) -> None:
    assert subject.get("/healthz") == (200, "ok\n")
    subject.trouble = "queue 0 failed"
    assert subject.get("/healthz") == (503, "queue 0 failed\n")


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/favicon.ico"])
def test_nothing_else_is_there(subject: Subject, path: str) -> None:
    assert subject.get(path)[0] == 404


def test_ipv6() -> None:
    subject = Subject("::1")
    try:
        assert subject.get("/healthz") == (200, "ok\n")
    finally:
        subject.exporter.close()


def test_an_address_in_use_is_refused_in_one_line(subject: Subject) -> None:
    with pytest.raises(CsumfixError, match="--metrics") as caught:
        exporter.serve(subject.address, snapshot, lambda: None, lambda: None)
    assert caught.value.code is Exit.IN_USE
    assert "\n" not in str(caught.value)


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(CsumfixError, match="lacks that address") as caught:
        exporter.serve("192.0.2.1:9478", snapshot, lambda: None, lambda: None)
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:9478", ("127.0.0.1", 9478)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:9478", ("fe80::1%eth0", 9478)),
    ],
)
def test_addresses(address: str, parsed: tuple[str, int]) -> None:
    assert exporter.parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    [
        *("", ":9478", "9478", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536"),
        *("::1:9478", "[::1]", "[127.0.0.1]:9478", "localhost:9478", "127.0.0.1:9478/metrics"),
        *("user@127.0.0.1:9478", "127.0.0.1:x", "[::1:9478"),
    ],
)
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(CsumfixError, match=r"\[::1\]:9478") as caught:
        exporter.parse_address(address)
    assert caught.value.code is Exit.USAGE


def test_silent_clients_are_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporter._Handler, "timeout", 0.5)
    subject = Subject()
    try:
        silent = [subject.connect() for _ in range(exporter.CONNECTIONS)]
        with subject.connect() as one_too_many:
            assert hung_up(one_too_many)
        assert all(hung_up(client) for client in silent)
        for client in silent:
            client.close()
        assert subject.get("/healthz")[0] == 200
        assert capfd.readouterr().err == ""
    finally:
        subject.exporter.close()


def hung_up(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_probes_end_with_the_exporter() -> None:
    subject = Subject()
    deadline = time.monotonic() + 10
    while subject.probes < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    subject.exporter.close()
    probes = subject.probes
    assert probes >= 3
    time.sleep(0.5)
    assert subject.probes == probes
    with pytest.raises(OSError, match="refused") as caught:
        subject.connect()
    assert caught.value.errno == errno.ECONNREFUSED
