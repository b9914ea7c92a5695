"""The metrics' HTTP server, and the probes that measure the time in the queue meanwhile.

``/metrics`` is for Prometheus, ``/healthz`` for whoever watches over the process. There is no
password and no encryption: anybody who can reach the address may read, so let it be a local one.

Slow clients cannot do much harm: at most CONNECTIONS are served at a time. One that keeps silent
for TIMEOUT seconds is hung up on, and when there are too many, the one that is there longest: if
newcomers were, eight clients that send a byte now and then would keep out kubelet's probes.
Many clients cannot do much harm either: what is accepted and answered per second is bounded, and
costs a small share of a CPU. The others wait in the kernel, or are refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from csumfix.errors import CsumfixError, Exit
from csumfix.service import metrics
from csumfix.service.pace import Pace
from csumfix.service.snapshot import Snapshot

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("csumfix")

CONNECTIONS = 8
CONNECTS, SCRAPES = (250, 25), (20, 10)
"""Connections that are accepted, and scrapes that are answered: per second on average, at once."""

BACKLOG = 128

SCRAPERS = 4
"""Scrapes at the same time."""

TIMEOUT = 5.0
POLL = 0.1

PROBES_PER_SECOND = 10

UNAVAILABLE = "503 Service Unavailable"
EXIT_CODES = {errno.EADDRINUSE: Exit.IN_USE, errno.EACCES: Exit.PERMISSION}

Answer = TypeVar("Answer")


class Exporter:
    """Serves at the address that it is moved to, at first nowhere.

    snapshot: what the metrics are made of.
    trouble: says in a line why the service is not healthy; None if it is.
    probe: has every queue measure its wait.

    All three are called in the event loop, where nothing changes meanwhile.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        trouble: Callable[[], str | None],
        probe: Callable[[], None],
    ) -> None:
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self._application = _application(
            lambda: self._in_loop(snapshot), lambda: self._in_loop(trouble)
        )
        self._address: str | None = None
        self._server: _Server | None = None
        self._timer = self._loop.call_later(0, int)

    async def move(self, address: str | None) -> None:
        """Serve at another address, or not at all; if that is impossible, all stays as it was.

        address: such as 127.0.0.1:9478 or [::1]:9478.
        """
        if address == self._address:
            return
        before = self._address
        # First away from the old address: the new one may include it.
        await self._close()
        try:
            self._open(address)
        except CsumfixError:
            self._open(before)
            raise

    def _open(self, address: str | None) -> None:
        if not address:
            return
        self._server = _listen(address, self._application)
        self._address = address
        threading.Thread(
            target=self._server.serve_forever, args=[POLL], name="metrics", daemon=True
        ).start()
        self._plan_probe()

    async def _close(self) -> None:
        self._timer.cancel()
        if self._server:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()
        self._server = self._address = None

    def _plan_probe(self) -> None:
        # Moments of a Poisson process see what all moments see on average; regular ones could keep
        # step with the traffic.
        pause = random.expovariate(PROBES_PER_SECOND)
        self._timer = self._loop.call_later(pause, self._probe_and_go_on)

    def _probe_and_go_on(self) -> None:
        self._plan_probe()
        self._probe()

    def _in_loop(self, function: Callable[[], Answer]) -> Answer:
        """Call a function in the event loop, from another thread."""

        async def call() -> Answer:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(TIMEOUT)


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT

    def log_message(self, *_: Any) -> None:
        """Keep quiet about requests."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A WSGI server with a bounded number of threads."""

    daemon_threads = True
    request_queue_size = BACKLOG

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._served: list[socket.socket] = []  # the oldest first
        self._pace = Pace(*CONNECTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking DNS for our name, which HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, not too soon after the last ones."""
        time.sleep(self._pace.take())
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; if there are too many, instead of the oldest."""
        if not self._free.acquire(blocking=False):
            self._hang_up_on_oldest()
            if not self._free.acquire(timeout=POLL):
                self.shutdown_request(request)
                return
        self._served.append(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._forget(request)
            raise

    def _hang_up_on_oldest(self) -> None:
        with suppress(IndexError, OSError):  # it may be leaving by itself
            self._served[0].shutdown(socket.SHUT_RDWR)

    def _forget(self, request: socket.socket) -> None:
        self._served.remove(request)
        self._free.release()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, in the thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that hang up or keep silent."""
        log.debug("metrics: a connection broke", exc_info=True)


def _listen(address: str, application: WSGIApplication) -> _Server:
    parts = urlsplit(f"//{address}")
    try:
        server = _Server((str(parts.hostname), parts.port or 0))
    except OSError as error:
        raise CsumfixError(
            f"cannot serve metrics at {address}: {error.strerror}: "
            "another program has that port, or this host lacks that address: "
            "choose another with --metrics",
            EXIT_CODES.get(error.errno or 0, Exit.USAGE),
        ) from error
    server.set_app(application)
    return server


def _application(
    snapshot: Callable[[], Snapshot], trouble: Callable[[], str | None]
) -> WSGIApplication:
    exposition = _paced(make_wsgi_app(metrics.registry(snapshot)))

    def health() -> tuple[str, str]:
        reason = trouble()
        return (UNAVAILABLE, reason) if reason else ("200 OK", "ok")

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            match environ["PATH_INFO"]:
                case "/metrics":
                    return exposition(environ, start_response)
                case "/healthz":
                    return _text(start_response, *health())
        except TimeoutError:
            return _text(start_response, UNAVAILABLE, "the service does not answer itself")
        return _text(start_response, "404 Not Found", "there are /metrics and /healthz")

    return answer


def _paced(exposition: WSGIApplication) -> WSGIApplication:
    """Have scrapes wait for their turn, but never so many that health is not answered."""
    pace = Pace(*SCRAPES)
    free = threading.BoundedSemaphore(SCRAPERS)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not free.acquire(blocking=False):
            return _text(start_response, UNAVAILABLE, "too many scrapes at a time: try again")
        try:
            pace.wait()
            return exposition(environ, start_response)
        finally:
            free.release()

    return answer


def _text(start_response: StartResponse, status: str, line: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{line}\n".encode()]
