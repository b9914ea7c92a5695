"""A small HTTP server in the event loop: one GET or HEAD per connection.

h11 parses requests and writes the heads of responses. It is pure Python, does no I/O, and adds
0.2 MB and 10 ms of imports to asyncio; aiohttp adds 17 MB and 0.5 s. It has no server, so here is
one that cannot be kept busy:

- A client has TIMEOUT seconds to send its request, and as long to read the response.
- Connections are accepted as fast as they come, up to a rate that costs some 25 % of a CPU. Those
  that are not accepted fill the kernel's queue, and a queue that a local process fills again and
  again never has room for a kubelet.
- If there are too many, the oldest is closed. Refusing new ones would let a few slow clients lock
  out all others.
- Requests are answered at a bounded rate, in the order in which they came.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

import h11

from csumfix.service.listener import Acceptor
from csumfix.service.pace import Pace

CONNECTIONS = 256
TIMEOUT = 5.0

CONNECTS, REQUESTS = (8000, 1000), (200, 25)
"""Connections that are accepted, and requests that are answered: per second, and in a row."""

LONGEST_HEAD = 8 << 10
"""Bytes of a request's head at most."""

SOON = 0.02
"""Seconds in which most requests arrive. Only then does the event loop watch a connection, so that
those of a storm, which are closed before that, cost half as much."""

AT_ONCE = 16 << 10
"""Bytes of one read."""

IGNORED = 64 << 10
"""Bytes at most that a client may send after its request."""


@dataclass(frozen=True)
class Request:
    """A request. Header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Response:
    """A response."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


def text(line: str, status: HTTPStatus = HTTPStatus.OK, *headers: tuple[str, str]) -> Response:
    """Return a response of one line."""
    return Response(f"{line}\n".encode(), status, headers=headers)


class HttpServer:
    """Serves at a listening socket until it is closed.

    answer: returns the response to a request.
    """

    def __init__(
        self, listening: socket.socket, answer: Callable[[Request], Awaitable[Response]]
    ) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._clients: dict[_Client, float] = {}  # and when their time is over; the oldest first
        self._expiry: asyncio.TimerHandle | None = None
        self._pace = Pace(*REQUESTS)
        self._turn: asyncio.TimerHandle | None = None
        self._waiting: deque[_Client] = deque()
        self._silent: list[_Client] = []  # have sent nothing yet, and the loop does not watch them
        self._look: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor = Acceptor(listening, self._on_connection, Pace(*CONNECTS))

    def close(self) -> None:
        """Stop listening, and hang up on all clients."""
        self._acceptor.close()
        for task in self._tasks:
            task.cancel()
        for client in list(self._clients):
            client.close()
        for timer in filter(None, (self._expiry, self._turn, self._look)):
            timer.cancel()

    def _on_connection(self, connection: socket.socket) -> None:
        if len(self._clients) >= CONNECTIONS:
            next(iter(self._clients)).close()
        connection.setblocking(False)
        client = _Client(self, self._loop, connection)
        self.give_time(client)
        if client.read():
            return
        self._silent.append(client)
        if self._look is None:
            self._look = self._loop.call_later(SOON, self._look_at_silent)

    def _look_at_silent(self) -> None:
        self._look = None
        silent, self._silent = self._silent, []
        for client in silent:
            client.read_on()

    def give_time(self, client: _Client) -> None:
        """Hang up on the client TIMEOUT seconds from now."""
        self._clients.pop(client, None)
        self._clients[client] = self._loop.time() + TIMEOUT
        if self._expiry is None:
            self._expiry = self._loop.call_later(TIMEOUT, self._expire)

    def forget(self, client: _Client) -> None:
        """Note that the client is gone."""
        del self._clients[client]

    def _expire(self) -> None:
        now = self._loop.time()
        while self._clients:
            client, end = next(iter(self._clients.items()))
            if end > now:
                self._expiry = self._loop.call_at(end, self._expire)
                return
            client.close()
        self._expiry = None

    def queue(self, client: _Client) -> None:
        """Have the client parse what it has received, when it is its turn."""
        self._waiting.append(client)
        if self._turn is None:
            self._take_turns()

    def _take_turns(self) -> None:
        self._turn = None
        while self._waiting:
            pause = 0.0 if self._waiting[0].is_closed else self._pace.take()
            if pause:
                self._turn = self._loop.call_later(pause, self._take_turns)
                return
            self._waiting.popleft().parse()

    def respond(self, client: _Client, request: Request) -> None:
        """Answer a request."""
        task = self._loop.create_task(self._respond(client, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond(self, client: _Client, request: Request) -> None:
        if request.method in ("GET", "HEAD"):
            response = await self._answer(request)
        else:
            allowed = ("Allow", "GET, HEAD")
            response = text("only GET and HEAD", HTTPStatus.METHOD_NOT_ALLOWED, allowed)
        client.send(response)


class _Client:
    """One connection: reads a request, sends the response, and waits for the client to hang up.

    Without that wait, closing the socket while input is unread would reset the connection, and the
    client could lose the response (RFC 9112, 9.6).
    """

    def __init__(
        self, server: HttpServer, loop: asyncio.AbstractEventLoop, connection: socket.socket
    ) -> None:
        self._server, self._loop, self._socket = server, loop, connection
        self._http: h11.Connection | None = None  # made when there is something to parse
        self._method = b""
        self._out = b""
        self._ignored = 0
        self._reading = self._writing = self._answered = False
        self.is_closed = False

    def read(self) -> bool:
        """Read what is there; tell whether there was anything, such as the end."""
        try:
            data = self._socket.recv(AT_ONCE)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
        else:
            self._on_data(data)
        return True

    def _on_data(self, data: bytes) -> None:
        if not data:
            self.close()
        elif self._answered:
            self._ignored += len(data)
            if self._ignored > IGNORED:
                self.close()
        else:
            self._pause()
            if self._http is None:
                self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
            self._http.receive_data(data)
            self._server.queue(self)

    def parse(self) -> None:
        """Look for a whole request in what was received."""
        if self.is_closed or self._http is None:
            return
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self.send(text("no valid request", HTTPStatus(error.error_status_hint)))
            return
        if isinstance(event, h11.Request):
            self._method = event.method
            headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            target = event.target.decode("ascii")
            self._server.respond(self, Request(event.method.decode(), target, headers))
        elif event is h11.NEED_DATA:
            self.read_on()
        else:
            self.close()

    def send(self, response: Response) -> None:
        """Send the response; it is the only one."""
        if self.is_closed or self._http is None:
            return
        head = h11.Response(
            status_code=response.status,
            reason=response.status.phrase,
            headers=[
                ("Content-Type", response.content_type),
                ("Content-Length", str(len(response.body))),
                ("Connection", "close"),
                *response.headers,
            ],
        )
        self._out = (self._http.send(head) or b"") + (
            b"" if self._method == b"HEAD" else response.body
        )
        self._server.give_time(self)
        self._write()

    def _write(self) -> None:
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._out:
            if not self._writing:
                self._loop.add_writer(self._socket, self._write)
                self._writing = True
            return
        self._stop_writing()
        self._answered = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.read_on()

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._pause()
        self._stop_writing()
        self._socket.close()
        self._server.forget(self)

    def read_on(self) -> None:
        """Read whatever comes from now on."""
        if not (self._reading or self.is_closed):
            self._loop.add_reader(self._socket, self.read)
            self._reading = True

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._socket)
            self._reading = False

    def _stop_writing(self) -> None:
        if self._writing:
            self._loop.remove_writer(self._socket)
            self._writing = False
