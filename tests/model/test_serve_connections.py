"""Clients that mean harm, or go away: by bare sockets, hundreds of them; none disturbs others."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.folder import save_model
from model.serve.connections import Connection
from model.serve.house import MAX_READING
from model.serve.options import Serving
from model.serve.server import CLOSE_SECONDS
from tests.commands import velocity
from tests.servers.model_server import RunningServer, run_server, with_limits
from tests.tiny import TOKENIZER_JSON, make_model
from tests.waiting import wait_until

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
END = b"data: [DONE]\n\n"
# To be reset, not ended: as of a machine that is gone.
RESET = struct.pack("ii", 1, 0)


def ask(**fields: Any) -> bytes:
    """A whole request for a text that does not end early."""
    body = json.dumps({"prompt": "one", "logit_bias": {"0": -100}, **fields}).encode()
    return f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint-7"
    save_model(folder, make_model(), TOKENIZER_JSON)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with run_server(folder, with_limits(max_waiting=100)) as running:
        yield running


def connect(server: RunningServer, receive: int = 2**16) -> socket.socket:
    """A connection whose unread bytes may be so many."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    connection.settimeout(120)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return connection


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side ends; it has two minutes for each part."""
    parts = [b""]
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def read_events(connection: socket.socket) -> bytes:
    """The last bytes of a stream, whether or not it ended well."""
    end = b""
    with suppress(ConnectionError):
        while END not in end and (part := connection.recv(65536)):
            end = end[-100:] + part
    return end


@pytest.fixture
def steps(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The model's steps wait while it is not set."""
    predict, steps = server.served.generator.model.predict, threading.Event()

    def wait(*given: Any, **named: Any) -> Any:
        steps.wait(60)
        return predict(*given, **named)

    monkeypatch.setattr(server.served.generator.model, "predict", wait)
    yield steps
    steps.set()


def test_a_head_that_does_not_arrive_is_not_waited_for(
    server: RunningServer, steps: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, at first and after an answer; a request that is being answered stays."""
    with connect(server) as slow, connect(server) as busy:
        busy.sendall(ask(max_tokens=2))
        wait_until(lambda: server.served.batcher.num_running == 1)
        monkeypatch.setattr("model.serve.connections.HEAD_SECONDS", 0.4)
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in slow.recv(1000)
        ended = threading.Event()

        def dribble() -> None:
            with suppress(OSError):
                while not ended.wait(0.05):
                    slow.sendall(b"G")

        thread = threading.Thread(target=dribble)
        thread.start()
        read_all(slow)
        ended.set()
        thread.join()
        with connect(server) as silent:
            assert read_all(silent) == b""
        steps.set()
        assert b"200 OK" in busy.recv(1000)


def test_connections_are_bounded(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.client.get("/health").status_code == 200  # One that stays.
    monkeypatch.setattr("model.serve.connections.MAX_CONNECTIONS", 3)
    with connect(server) as first, connect(server), connect(server) as refused:
        assert read_all(refused) == b""
        first.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in first.recv(1000)
    monkeypatch.undo()
    assert server.client.get("/health").status_code == 200


def test_hundreds_that_go_away_leave_nothing_behind(
    server: RunningServer, steps: threading.Event
) -> None:
    """In the middle of their streams, or while they wait; half of them without a word."""
    batcher = server.served.batcher
    for _ in range(3):
        with ExitStack() as stack:
            gone = [stack.enter_context(connect(server)) for _ in range(100)]
            for number, connection in enumerate(gone):
                connection.sendall(ask(max_tokens=100, stream=number % 3 > 0))
                if number % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            # The others are told to come back: too many requests are being read.
            wait_until(lambda: batcher.num_running + batcher.num_waiting >= MAX_READING)
            steps.set()
            time.sleep(0.02)
        wait_until(lambda: batcher.num_running == batcher.num_waiting == 0)
        steps.clear()
    steps.set()
    wait_until(lambda: server.house.num_reading == 0)
    assert server.post("/v1/completions", prompt="one", max_tokens=1).status_code == 200


def test_a_client_that_reads_nothing_is_not_waited_for(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reads on in time is."""
    begin, begun = Connection.connection_made, list[Any]()

    def begin_narrow(connection: Connection, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        begin(connection, transport)
        begun.append(transport)

    monkeypatch.setattr(Connection, "connection_made", begin_narrow)
    monkeypatch.setattr("model.serve.connections.READ_SECONDS", 2.0)
    asked = ask(max_tokens=120, stream=True, logprobs=20)
    with connect(server, receive=4096) as silent, connect(server, receive=4096) as slow:
        silent.sendall(asked)
        slow.sendall(asked)
        time.sleep(0.3)
        assert END in read_events(slow)
        wait_until(lambda: begun[0].is_closing())
        assert END not in read_events(silent)


def test_requests_in_a_row_are_answered_in_order(server: RunningServer) -> None:
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with connect(server) as connection:
        rows = [ask(max_tokens=n, stream=n == 3) for n in (1, 2, 3)]
        connection.sendall(b"".join([*rows, last]))
        answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:6] for answer in answers] == [b"200 OK"] * 4
    assert b'"completion_tokens":1' in answers[0]
    assert b'"completion_tokens":2' in answers[1]
    assert b"[DONE]" in answers[2]
    assert b'"status":"ok"' in answers[3]


def test_a_flood_of_headers_is_not_kept(server: RunningServer) -> None:
    with connect(server) as connection:
        with suppress(ConnectionError):
            connection.sendall(HEAD.encode() + b"X: " + b"a" * 20_000_000)
        assert b"200" not in read_all(connection)
    assert server.client.get("/health").status_code == 200


def test_streams_do_not_keep_the_server_from_ending(folder: Path) -> None:
    """Nor clients that would ask more by the same connection, nor half a request."""
    with ExitStack() as stack:
        with run_server(folder, with_limits(stop_seconds=0.2)) as server:
            half, answered, writing = (stack.enter_context(connect(server)) for _ in range(3))
            half.sendall(b"POST /v1/")
            answered.sendall(ask(max_tokens=1))
            assert b"200 OK" in answered.recv(1000)
            writing.sendall(ask(max_tokens=100, stream=True, n=12))
            assert b"200 OK" in writing.recv(1000)
            begun = time.monotonic()
        assert time.monotonic() - begun < CLOSE_SECONDS
        assert b"[DONE]" in read_all(writing)


def test_an_empty_key_is_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "the API key is empty, and would let everybody in"
    code, _, errors = velocity("serve", "--ckpt", folder, "--port", "0", "--api-key", "")
    assert code != 0
    assert told in errors
    monkeypatch.setenv("VELOCITY_API_KEY", "")
    with pytest.raises(ValueError, match=told):
        Serving()
