"""The metrics' HTTP server on the loopback device: answers, refusals, clients that misbehave."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from subprocess import PIPE
from typing import Any, TypeVar

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.service import exporter, httpserver
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


def test_a_service_that_hangs_answers_nothing(subject: Subject) -> None:
    """So a probe runs into its time-out, which is what it is for."""
    hang = threading.Event()
    subject.loop.call_soon_threadsafe(hang.wait)
    try:
        with subject.connect() as client:
            client.settimeout(0.3)
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with pytest.raises(TimeoutError):
                client.recv(1)
            hang.set()
            client.settimeout(5)
            assert client.recv(12) == b"HTTP/1.1 200"
    finally:
        hang.set()


def exchange(subject: Subject, request: bytes) -> bytes:
    """Send bytes, and return what comes back until the server hangs up."""
    with subject.connect() as client:
        client.sendall(request)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer


HOST = b"Host: x\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEALTH, 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz?verbose HTTP/1.1\r\n" + HOST, 200),
        (b"GET http://x/healthz HTTP/1.1\r\n" + HOST, 200),
        (b"GET http://[/healthz HTTP/1.1\r\n" + HOST, 400),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 3\r\n" + HOST + b"abc", 405),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST, 405),
        (b"BREW /healthz HTTP/1.1\r\n" + HOST, 405),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /healthz HTTP/1.1\r\n folded: header\r\n\r\n", 400),
        (b"GET /healthz\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),  # TLS
        (b"\0" * 100, 400),
        (b"GET /" + b"a" * 3 * httpserver.LONGEST_HEAD + b" HTTP/1.1\r\n" + HOST, 431),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 3 * httpserver.LONGEST_HEAD, 431),
    ],
)
def test_each_request_gets_the_status_it_deserves(
    subject: Subject, request_: bytes, status: int
) -> None:
    answer = exchange(subject, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Length: %d" % len(body) in head


def test_head_is_get_without_a_body(subject: Subject) -> None:
    answer = exchange(subject, b"HEAD /healthz HTTP/1.1\r\n" + HOST)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 3" in head
    assert body == b""


def test_a_method_that_is_refused_comes_with_those_that_are_not(subject: Subject) -> None:
    assert b"\r\nAllow: GET, HEAD\r\n" in exchange(subject, b"PUT / HTTP/1.1\r\n" + HOST)


def test_only_the_first_of_several_requests_is_answered(subject: Subject) -> None:
    """The head says so: "Connection: close"."""
    assert exchange(subject, HEALTH * 50).count(b"HTTP/1.1") == 1


def test_a_client_that_never_stops_sending_is_hung_up_on(subject: Subject) -> None:
    with subject.connect() as client, pytest.raises(OSError):
        client.sendall(HEALTH)
        for _ in range(10_000):
            client.sendall(b"x" * 65536)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpserver, "TIMEOUT", 0.5)


@pytest.mark.usefixtures("hurried")
def test_silent_clients_are_hung_up_on(
    subject: Subject, capfd: pytest.CaptureFixture[str]
) -> None:
    silent = [subject.connect() for _ in range(httpserver.CONNECTIONS)]
    assert all(hung_up(client) for client in silent)
    for client in silent:
        client.close()
    assert subject.get("/healthz")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("hurried")
def test_a_client_that_sends_a_byte_now_and_then_is_hung_up_on(subject: Subject) -> None:
    """As slowloris does."""
    with subject.connect() as client:
        began = time.monotonic()
        with pytest.raises(OSError):
            for byte in HEALTH:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - began < 1.5


@pytest.mark.usefixtures("hurried")
def test_a_client_that_does_not_read_is_hung_up_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(_: httpserver.Request) -> httpserver.Response:
        return httpserver.Response(bytes(32 << 20))

    assert subject.exporter._server
    monkeypatch.setattr(subject.exporter._server, "_answer", answer)
    with subject.connect() as client:
        client.sendall(HEALTH)
        time.sleep(1)
        received = 0
        with suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                received += len(data)
        assert 0 < received < 32 << 20
    with subject.connect() as client:  # one that reads gets it all
        client.sendall(HEALTH)
        received = 0
        while data := client.recv(1 << 20):
            received += len(data)
        assert received > 32 << 20


def test_clients_that_stay_do_not_keep_newcomers_out(subject: Subject) -> None:
    stubborn = [subject.connect() for _ in range(httpserver.CONNECTIONS)]
    for client in stubborn:
        client.sendall(b"GET /")
    for _ in range(3):
        assert subject.get("/healthz")[0] == 200
    assert hung_up(stubborn[0])
    for client in stubborn:
        client.close()


STORM = """
import socket, sys
peers = []
print("storm", flush=True)
while True:
    peer = socket.socket()
    peer.setblocking(False)
    peer.connect_ex(("127.0.0.1", int(sys.argv[1])))
    peers = [*peers[-50:], peer]
"""


def test_health_is_answered_while_another_process_opens_connections_in_a_loop(
    subject: Subject,
) -> None:
    storm = subprocess.Popen([sys.executable, "-c", STORM, str(subject.port)], stdout=PIPE)
    try:
        assert storm.stdout
        storm.stdout.readline()
        slowest = 0.0
        for _ in range(10):
            began = time.monotonic()
            assert subject.get("/healthz") == (200, "ok\n")
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.1)
        assert slowest < 1
    finally:
        storm.kill()
        storm.wait()


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
