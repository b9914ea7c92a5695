"""The metrics' HTTP server on the loopback device: answers, refusals, clients that misbehave."""

import asyncio
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.service import exporter
from tests.unit.snapshots import snapshot

T = TypeVar("T")


class Subject:
    """An exporter on a free port, with its event loop in another thread."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.trouble: str | None = None
        self.probes = 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever).start()
        self.exporter = self.do(self._make())
        self.port = free_port(host)
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.move(self.address)

    async def _make(self) -> exporter.Exporter:
        return exporter.Exporter(snapshot, lambda: self.trouble, self._count_probe)

    def _count_probe(self) -> None:
        self.probes += 1

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(10)

    def move(self, address: str | None) -> None:
        self.do(self.exporter.move(address))

    def close(self) -> None:
        self.move(None)
        self.loop.call_soon_threadsafe(self.loop.stop)

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
    subject.close()


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
        subject.close()


@pytest.fixture
def foreign() -> Iterator[str]:
    """Address of a port that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_in_use_is_refused_in_one_line(subject: Subject, foreign: str) -> None:
    with pytest.raises(CsumfixError, match="--metrics") as caught:
        subject.move(foreign)
    assert caught.value.code is Exit.IN_USE
    assert "\n" not in str(caught.value)
    assert subject.get("/healthz") == (200, "ok\n")  # where it was


def test_an_address_of_another_host_is_refused(subject: Subject) -> None:
    with pytest.raises(CsumfixError, match="lacks that address") as caught:
        subject.move("192.0.2.1:9478")
    assert caught.value.code is Exit.USAGE


def test_it_moves(subject: Subject) -> None:
    subject.move(f"0.0.0.0:{subject.port}")  # includes the old one
    assert subject.get("/healthz")[0] == 200
    old, subject.port = subject.port, free_port("127.0.0.1")
    subject.move(f"127.0.0.1:{subject.port}")
    subject.connect().close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=5)


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_a_service_that_hangs_is_not_healthy(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(exporter, "TIMEOUT", 0.2)
    hang = threading.Event()
    subject.loop.call_soon_threadsafe(hang.wait)
    try:
        assert subject.get(path) == (503, "the service does not answer itself\n")
    finally:
        hang.set()


def test_silent_clients_are_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporter._Handler, "timeout", 0.5)
    subject = Subject()
    try:
        silent = [subject.connect() for _ in range(exporter.CONNECTIONS)]
        assert all(hung_up(client) for client in silent)
        for client in silent:
            client.close()
        assert subject.get("/healthz")[0] == 200
        assert capfd.readouterr().err == ""
    finally:
        subject.close()


def test_clients_that_stay_do_not_keep_newcomers_out(subject: Subject) -> None:
    stubborn = [subject.connect() for _ in range(exporter.CONNECTIONS)]
    for client in stubborn:
        client.sendall(b"GET /")
    for _ in range(3):
        assert subject.get("/healthz")[0] == 200
    assert hung_up(stubborn[0])
    for client in stubborn:
        client.close()


def hung_up(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_probes_end_with_the_server() -> None:
    subject = Subject()
    deadline = time.monotonic() + 10
    while subject.probes < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    subject.close()
    probes = subject.probes
    assert probes >= 3
    time.sleep(0.5)
    assert subject.probes == probes
    with pytest.raises(ConnectionRefusedError):
        subject.connect()
