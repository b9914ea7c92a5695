"""The control socket, at an address of its own: who is answered, what, and how long."""

import asyncio
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.service import address, control, listener
from csumfix.service.control import Handler, Peer
from csumfix.service.lanes import Lane, PortLane, lanes_from_json, lanes_to_json
from csumfix.service.snapshot import to_json
from tests.unit.snapshots import snapshot


@pytest.fixture(autouse=True)
def _own_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(address, "ABSTRACT", f"\0csumfix-test-{secrets.token_hex(8)}")
    monkeypatch.setattr(address, "DIRECTORY", tmp_path / "run")
    monkeypatch.setattr(address, "DYNAMIC_USER", tmp_path / "nobody")
    yield


async def tell_status(peer: Peer) -> None:
    await peer.send(**to_json(snapshot()))


async def refuse(peer: Peer) -> None:
    await peer.send(error="not now", code=Exit.IN_USE)


async def keep_silent(_: Peer) -> None:
    await asyncio.sleep(60)


HANDLERS = {
    "status": Handler(tell_status, harmless=True),
    "restart": Handler(refuse),
    "silent": Handler(keep_silent),
}


@asynccontextmanager
async def served(**handlers: Handler) -> AsyncIterator[control.ControlServer]:
    server = await control.serve({**HANDLERS, **handlers})
    try:
        yield server
    finally:
        server.close()


def say(line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(address.ABSTRACT)
        client.sendall(line)
        with client.makefile("rb") as stream:
            return stream.read()


def test_nobody_there_is_no_service() -> None:
    assert control.status() is None
    assert control.restart() is None


def test_the_state_is_told() -> None:
    async def scenario() -> None:
        async with served():
            assert await asyncio.to_thread(control.status) == snapshot()
        assert await asyncio.to_thread(control.status) is None

    asyncio.run(scenario())
    assert not list(address.DIRECTORY.iterdir()), "the file must go with the service"


def test_a_refusal_is_told_with_its_code() -> None:
    async def scenario() -> None:
        async with served():
            answer = await asyncio.to_thread(control.restart)
            assert answer == {"error": "not now", "code": Exit.IN_USE}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "line", [b"\n", b"nonsense\n", b"[]\n", b"{}\n", b"x" * 100_000 + b"\n", b"[" * 60_000 + b"\n"]
)
def test_nonsense_is_survived(line: bytes) -> None:
    async def scenario() -> None:
        async with served():
            await asyncio.to_thread(say, line)
            assert await asyncio.to_thread(control.status)

    asyncio.run(scenario())


def test_an_unknown_request_is_answered_with_the_known_ones() -> None:
    async def scenario() -> None:
        async with served():
            answer = json.loads(await asyncio.to_thread(say, b'{"request": "dance"}\n'))
            assert answer["error"] == "no such request; known: status restart silent"

    asyncio.run(scenario())


def test_a_second_service_is_refused() -> None:
    async def scenario() -> None:
        async with served():
            with pytest.raises(CsumfixError, match="already runs") as caught:
                await control.serve(HANDLERS)
            assert caught.value.code is Exit.IN_USE
            assert f"process {os.getpid()} of user {os.geteuid()}" in str(caught.value)

    asyncio.run(scenario())


def test_who_keeps_silent_is_not_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 0.1)

    async def scenario() -> None:
        async with served(status=Handler(keep_silent, harmless=True)):
            with pytest.raises(CsumfixError, match="does not answer"):
                await asyncio.to_thread(control.status)

    asyncio.run(scenario())


def test_what_is_not_a_state_is_not_believed() -> None:
    async def lie(peer: Peer) -> None:
        await peer.send(pid=1)

    async def scenario() -> None:
        async with served(status=Handler(lie, harmless=True)):
            with pytest.raises(CsumfixError, match="does not speak like csumfix"):
                await asyncio.to_thread(control.status)

    asyncio.run(scenario())


def test_a_stranger_at_the_name_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "is_believed", lambda _: False)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(address.ABSTRACT)
        stranger.listen()
        with pytest.raises(CsumfixError, match=f"process {os.getpid()} .* is not believed"):
            control.status()


def test_strangers_may_look_but_not_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_may_command", lambda _: False)

    async def scenario() -> None:
        async with served():
            assert await asyncio.to_thread(control.status)
            answer = await asyncio.to_thread(control.restart)
            assert answer
            assert answer["code"] == Exit.PERMISSION

    asyncio.run(scenario())


def test_strangers_do_not_lock_the_operator_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_may_command", lambda _: False)

    async def scenario() -> None:
        async with served():
            silent = [socket.socket(socket.AF_UNIX) for _ in range(control.MAX_STRANGERS)]
            for one in silent:
                one.connect(address.ABSTRACT)
            await asyncio.sleep(0.2)
            with socket.socket(socket.AF_UNIX) as late:
                late.settimeout(2)
                late.connect(address.ABSTRACT)
                assert await asyncio.to_thread(late.recv, 1) == b"", "one stranger too many"
            monkeypatch.setattr(control, "_may_command", lambda _: True)
            assert await asyncio.to_thread(control.status)
            for one in silent:
                one.close()

    asyncio.run(scenario())


def test_a_file_that_somebody_removes_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "RETRY", 0.1)

    async def scenario() -> None:
        async with served():
            address.path().unlink()
            await asyncio.sleep(0.5)
            assert address.path().is_socket()

    asyncio.run(scenario())


def test_a_name_that_another_program_has_is_taken_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "RETRY", 0.1)
    monkeypatch.setattr(listener, "GLANCE", 0.1)

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as thief:
            thief.bind(address.ABSTRACT)  # and does not listen
            server = control.ControlServer(HANDLERS)
            server.open()
            assert server.trouble
            assert "has the name @csumfix" in server.trouble
            assert await asyncio.to_thread(control.status), "it is served at the path"
        await asyncio.sleep(0.5)
        assert server.trouble is None
        assert await asyncio.to_thread(say, b'{"request": "status"}\n')
        server.close()

    asyncio.run(scenario())


def test_the_lanes_of_every_port_there_is_fit_into_a_take_over() -> None:
    lane = PortLane(Lane.QUEUE, 1.5, "a packet left wrong" * 8, by_evidence=True)
    lanes = {port: replace(lane, since=port + 0.5) for port in range(1, 65536)}

    async def take_over(peer: Peer) -> None:
        await peer.send(pid=1, lanes=lanes_to_json(lanes))
        await peer.receive(10)

    async def scenario() -> None:
        handler = {"take-over": Handler(take_over)}
        async with served(**handler):
            peer = await control.connect()
            assert peer
            await peer.send(request="take-over")
            answer = await peer.receive(10)
            assert answer
            assert lanes_from_json(answer["lanes"]) == lanes
            peer.close()

    asyncio.run(scenario())


def test_a_directory_that_others_can_write_is_not_used() -> None:
    address.DIRECTORY.mkdir()
    address.DIRECTORY.chmod(0o777)
    assert not address.prepare_directory()
    address.DIRECTORY.chmod(0o755)
    assert address.prepare_directory()


def test_a_peer_that_hangs_up_is_noticed() -> None:
    seen: list[bool] = []

    async def wait(peer: Peer) -> None:
        seen.append(await peer.hangs_up(5))

    async def scenario() -> None:
        async with served(silent=Handler(wait)):
            peer = await control.connect()
            assert peer
            await peer.send(request="silent")
            peer.close()
            await asyncio.sleep(0.2)

    asyncio.run(scenario())
    assert seen == [True]
