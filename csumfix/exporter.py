"""The metrics' HTTP server, and the prober that measures the time in the queue meanwhile.

``/metrics`` is for Prometheus, ``/healthz`` for whoever watches over the process. There is no
password and no encryption: anybody who can reach the address may read, so let it be a local one.

Slow clients can not do much harm: at most CONNECTIONS are served at a time, others are hung up on,
and one that keeps silent for TIMEOUT seconds is, too.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from csumfix import metrics
from csumfix.control import Snapshot
from csumfix.errors import CsumfixError, Exit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("csumfix")

ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^]]+)\]|(?P<ipv4>[^:]+)):(?P<port>[0-9]+)")
LAST_PORT = 65535

CONNECTIONS = 8
TIMEOUT = 5.0

PROBES_PER_SECOND = 10

EXIT_CODES = {errno.EADDRINUSE: Exit.IN_USE, errno.EACCES: Exit.PERMISSION}


def serve(
    address: str,
    snapshot: Callable[[], Snapshot],
    trouble: Callable[[], str | None],
    probe: Callable[[], None],
) -> Exporter:
    """Serve metrics until close(); the functions are called in other threads.

    address: such as 127.0.0.1:9478 or [::1]:9478.
    trouble: says in a line why the service is not healthy; None if it is.
    probe: has every queue measure its wait.
    """
    return Exporter(_listen(address, _application(snapshot, trouble)), probe)


def parse_address(address: str) -> tuple[str, int]:
    """Split IP:PORT or [IPv6]:PORT; raise CsumfixError if it is neither."""
    match = ADDRESS.fullmatch(address)
    try:
        if match and 0 < int(match["port"]) <= LAST_PORT:
            ip = IPv6Address(match["ipv6"]) if match["ipv6"] else IPv4Address(match["ipv4"])
            return str(ip), int(match["port"])
    except AddressValueError:
        pass
    raise CsumfixError(
        f"can not serve metrics on {address!r}: that is not an IP address and a port: "
        "write it as 127.0.0.1:9478 or [::1]:9478",
        Exit.USAGE,
    )


class Exporter:
    """A running server and prober."""

    def __init__(self, server: _Server, probe: Callable[[], None]) -> None:
        self._server = server
        self._probe = probe
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=server.serve_forever, name="metrics", daemon=True),
            threading.Thread(target=self._probe_at_random, name="probes", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop; probe() is not called any more after this."""
        self._closed.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()

    def _probe_at_random(self) -> None:
        # Moments of a Poisson process see what all moments see on average; regular ones could keep
        # step with the traffic.
        while not self._closed.wait(random.expovariate(PROBES_PER_SECOND)):
            self._probe()


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT

    def log_message(self, *_: Any) -> None:
        """Keep quiet about requests."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A WSGI server with a bounded number of threads."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking DNS for our name, which HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or hang up if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, in the thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that hang up or keep silent."""
        log.debug("metrics: a connection broke", exc_info=True)


def _listen(address: str, application: WSGIApplication) -> _Server:
    try:
        server = _Server(parse_address(address))
    except OSError as error:
        raise CsumfixError(
            f"can not serve metrics on {address}: {error.strerror}: "
            "another program has that port, or this host lacks that address: "
            "choose another with --metrics",
            EXIT_CODES.get(error.errno or 0, Exit.USAGE),
        ) from error
    server.set_app(application)
    return server


def _application(
    snapshot: Callable[[], Snapshot], trouble: Callable[[], str | None]
) -> WSGIApplication:
    exposition: WSGIApplication = make_wsgi_app(metrics.registry(snapshot))

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return exposition(environ, start_response)
            case "/healthz":
                reason = trouble()
                status = "503 Service Unavailable" if reason else "200 OK"
                return _text(start_response, status, reason or "ok")
            case _:
                return _text(start_response, "404 Not Found", "there are /metrics and /healthz")

    return answer


def _text(start_response: StartResponse, status: str, line: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{line}\n".encode()]
