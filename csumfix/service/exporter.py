"""Serves the metrics, and meanwhile sends the probes that measure the waiting time in the queues.

``/metrics`` is for Prometheus, ``/healthz`` for the program that supervises the process. There is
no password and no encryption: anybody who can reach the address may read, so use a local one. See
httpserver.py for what clients can cost.

metrics.py and prometheus_client are imported when metrics are served for the first time.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from csumfix.errors import CsumfixError, Exit
from csumfix.service.httpserver import HttpServer, Request, Response, text
from csumfix.service.pace import Pace
from csumfix.service.snapshot import Snapshot

BACKLOG = 1024
"""Connections that the kernel keeps for us, if its limit permits (net.core.somaxconn)."""

SCRAPES, SCRAPERS = (20, 10), 4
"""Scrapes that are answered: per second on average, at once; and that may wait for their turn."""

PROBES_PER_SECOND = 5
"""A wait is sampled some 75 times between two scrapes. Probes are most of what an idle service
does."""

EXIT_CODES = {errno.EADDRINUSE: Exit.IN_USE, errno.EACCES: Exit.PERMISSION}


class Exporter:
    """Serves at the address that move() is given, and nowhere before that.

    snapshot: what the metrics are made of.
    trouble: says in a line why the service is not healthy; None if it is.
    probe: makes every queue measure its wait.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        trouble: Callable[[], str | None],
        probe: Callable[[], None],
    ) -> None:
        self._snapshot, self._trouble, self._probe = snapshot, trouble, probe
        self._loop = asyncio.get_running_loop()
        self._address: str | None = None
        self._server: HttpServer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pace = Pace(*SCRAPES)
        self._scrapers = 0
        self._render: Callable[[str], tuple[bytes, str]] | None = None

    async def move(self, address: str | None) -> None:
        """Serve at another address, or not at all; if that is impossible, all stays as it was.

        address: such as 127.0.0.1:9478 or [::1]:9478.
        """
        if address == self._address:
            return
        before = self._address
        # First away from the old address: the new one may include it.
        self._close()
        try:
            self._open(address)
        except CsumfixError:
            self._open(before)
            raise

    def _open(self, address: str | None) -> None:
        if not address:
            return
        self._server = HttpServer(_listen(address), self._answer)
        self._address = address
        if self._render is None:
            from csumfix.service import metrics

            self._render = metrics.renderer(self._snapshot)
        self._schedule_probe()

    def _close(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._server:
            self._server.close()
        self._server = self._address = None

    async def _answer(self, request: Request) -> Response:
        try:
            path = urlsplit(request.target).path
        except ValueError:
            return text("no valid address", HTTPStatus.BAD_REQUEST)
        match path:
            case "/metrics":
                return await self._scrape(request.headers.get("accept", ""))
            case "/healthz":
                trouble = self._trouble()
                status = HTTPStatus.SERVICE_UNAVAILABLE if trouble else HTTPStatus.OK
                return text(trouble or "ok", status)
        return text("there are /metrics and /healthz", HTTPStatus.NOT_FOUND)

    async def _scrape(self, accepted: str) -> Response:
        if self._scrapers >= SCRAPERS:
            return text("too many scrapes at a time: try again", HTTPStatus.SERVICE_UNAVAILABLE)
        self._scrapers += 1
        try:
            while pause := self._pace.take():
                await asyncio.sleep(pause)
        finally:
            self._scrapers -= 1
        assert self._render  # _open() has made it
        body, content_type = self._render(accepted)
        return Response(body, content_type=content_type)

    def _schedule_probe(self) -> None:
        # Probe at Poisson intervals, which see time averages (PASTA: Wolff, "Poisson Arrivals See
        # Time Averages", 1982). A fixed period could synchronise with the traffic.
        pause = random.expovariate(PROBES_PER_SECOND)
        self._timer = self._loop.call_later(pause, self._probe_and_go_on)

    def _probe_and_go_on(self) -> None:
        self._schedule_probe()
        self._probe()


def _listen(address: str) -> socket.socket:
    parts = urlsplit(f"//{address}")
    family = socket.AF_INET6 if ":" in str(parts.hostname) else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((parts.hostname, parts.port or 0))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise CsumfixError(
            f"cannot serve metrics at {address}: {error.strerror}: "
            "another program has that port, or this host lacks that address: "
            "choose another with --metrics",
            EXIT_CODES.get(error.errno or 0, Exit.USAGE),
        ) from error
    return listening
